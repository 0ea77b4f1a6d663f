/** Fetches the missing spans of one layer: each once, however many readers wait for it. */
import { ClipError, describeError, isClipError } from "../base/errors.ts";
import type { LayerFile } from "../cache/layer-file.ts";
import type { LayerHead } from "../index/model.ts";
import type { Log } from "../telemetry/log.ts";
import type { ByteBudget } from "./byte-budget.ts";
import type { LayerCounters } from "./counters.ts";
import { raceSpans } from "./span-race.ts";
import type { SpanSource } from "./span-source.ts";

/** Most uncompressed bytes that one fetch asks for (but always at least one span). */
const runBytesMax = 8 * 1024 * 1024;
/** Fetches whose readers have all left and that may go on nevertheless. */
const orphansMax = 4;

/** What {@link SpanFetcher} is made with. */
export interface SpanFetcherOptions {
  head: LayerHead;
  file: LayerFile;
  /** Asked in order, nearest first. */
  sources: readonly SpanSource[];
  budget: ByteBudget;
  counters: LayerCounters;
  log: Log;
}

/** A fetch of neighbouring spans. */
interface Run {
  first: number;
  last: number;
  waiters: number;
  controller: AbortController;
}

interface SpanInFlight {
  run: Run;
  bytes: Promise<Buffer>;
  /** Settles when the span has been written to disk, or could not be. */
  kept: Promise<void>;
  resolve(bytes: Buffer): void;
  reject(error: unknown): void;
}

/**
 * Spans on their way from the sources to memory and from there to the disk cache. Every span is
 * checked against its digest in the layer index before anyone sees it.
 */
export class SpanFetcher {
  readonly #head: LayerHead;
  readonly #file: LayerFile;
  readonly #sources: readonly SpanSource[];
  readonly #budget: ByteBudget;
  readonly #counters: LayerCounters;
  readonly #log: Log;
  readonly #inFlight = new Map<number, SpanInFlight>();
  readonly #orphans = new Set<Run>();
  readonly #running = new Set<Promise<void>>();
  #closed = false;

  constructor(options: SpanFetcherOptions) {
    this.#head = options.head;
    this.#file = options.file;
    this.#sources = options.sources;
    this.#budget = options.budget;
    this.#counters = options.counters;
    this.#log = options.log;
  }

  /** Whether the span is on its way. */
  isInFlight(span: number): boolean {
    return this.#inFlight.has(span);
  }

  /** Starts to fetch those of the spans `first` to `last` that are neither here nor on their way. */
  start(first: number, last: number): number {
    let started = 0;
    for (let span = first; span <= last; span++) {
      if (!this.#isMissing(span)) continue;
      const runFirst = span;
      let bytes = this.#lengthOf(span);
      while (span < last && this.#isMissing(span + 1)) {
        bytes += this.#lengthOf(span + 1);
        if (bytes > runBytesMax) break;
        span++;
      }
      this.#startRun(runFirst, span);
      started += span - runFirst + 1;
    }
    return started;
  }

  /**
   * The bytes of a span that is on its way.
   * @throws ClipError ABORTED when `signal` fires; the fetch goes on for others
   */
  async wait(span: number, signal?: AbortSignal): Promise<Buffer> {
    const flight = this.#inFlight.get(span);
    if (flight === undefined) throw new ClipError("CLOSED", "the span is not on its way");
    const { run } = flight;
    run.waiters++;
    this.#orphans.delete(run);
    let onAbort: () => void = () => {};
    try {
      if (signal === undefined) return await flight.bytes;
      const aborted = new Promise<never>((_, reject) => {
        onAbort = () =>
          reject(new ClipError("ABORTED", "the reader gave up", { cause: signal.reason }));
        if (signal.aborted) onAbort();
        else signal.addEventListener("abort", onAbort, { once: true });
      });
      return await Promise.race([flight.bytes, aborted]);
    } finally {
      signal?.removeEventListener("abort", onAbort);
      run.waiters--;
      if (run.waiters === 0 && signal?.aborted === true) this.#orphan(run);
    }
  }

  /**
   * Waits until a span that is on its way has been written to disk, or could not be.
   * @throws ClipError as {@link wait}
   */
  async waitUntilKept(span: number, signal: AbortSignal): Promise<void> {
    const kept = this.#inFlight.get(span)?.kept;
    await this.wait(span, signal);
    await kept;
  }

  /** Gives up what is on its way and waits for it to end. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const flight of this.#inFlight.values()) flight.run.controller.abort();
    await Promise.all(this.#running);
  }

  #isMissing(span: number): boolean {
    return !this.#file.has(span) && !this.#inFlight.has(span);
  }

  #lengthOf(span: number): number {
    return this.#head.spans[span]?.length ?? 0;
  }

  #startRun(first: number, last: number): void {
    const run: Run = { first, last, waiters: 0, controller: new AbortController() };
    for (let span = first; span <= last; span++) {
      const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
      // Nobody may be waiting: a failure is then seen by whoever asks next.
      promise.catch(() => {});
      const kept = promise.then((bytes) => this.#keep(span, bytes));
      kept.catch(() => {});
      this.#inFlight.set(span, { run, bytes: promise, kept, resolve, reject });
    }
    const running = this.#fetchRun(run).finally(() => this.#running.delete(running));
    this.#running.add(running);
  }

  // Of the fetches that nobody waits for, the newest few go on: their readers may come back.
  #orphan(run: Run): void {
    this.#orphans.add(run);
    if (this.#orphans.size <= orphansMax) return;
    const [oldest] = this.#orphans;
    if (oldest !== undefined) this.#abandon(oldest);
  }

  #abandon(run: Run): void {
    this.#orphans.delete(run);
    this.#leave(run, run.first);
    run.controller.abort();
  }

  /** The spans of the run from `first` on are no longer on their way. */
  #leave(run: Run, first: number): void {
    for (let span = first; span <= run.last; span++) {
      if (this.#inFlight.get(span)?.run === run) this.#inFlight.delete(span);
    }
  }

  async #fetchRun(run: Run): Promise<void> {
    const { signal } = run.controller;
    const flights: SpanInFlight[] = [];
    for (let span = run.first; span <= run.last; span++) {
      const flight = this.#inFlight.get(span);
      if (flight !== undefined) flights.push(flight);
    }
    const writes: Promise<void>[] = [];
    let release = () => {};
    try {
      if (this.#closed) throw new ClipError("CLOSED", "the layer is closed");
      release = await this.#budget.acquire(this.#costOf(run), signal);
      signal.throwIfAborted();
      await this.#fetchSpans(run, flights, writes);
    } catch (error) {
      // Whoever asks after a failure tries again.
      this.#leave(run, run.first + writes.length);
      for (const flight of flights.slice(writes.length)) flight.reject(error);
    } finally {
      // Until it is on disk a span stays in flight, so that nobody fetches it again.
      await Promise.all(writes);
      this.#leave(run, run.first);
      this.#orphans.delete(run);
      release();
    }
  }

  #costOf(run: Run): number {
    let bytes = 0;
    for (let span = run.first; span <= run.last; span++) bytes += this.#lengthOf(span);
    const from = this.#head.spans[run.first]?.checkpoint.compressedOffset ?? 0;
    return bytes + (this.#head.spans[run.last]?.compressedEnd ?? from) - from;
  }

  async #fetchSpans(run: Run, flights: SpanInFlight[], writes: Promise<void>[]): Promise<void> {
    const spans = raceSpans({
      head: this.#head,
      first: run.first,
      last: run.last,
      sources: this.#sources,
      signal: run.controller.signal,
      counters: this.#counters,
      log: this.#log,
    });
    for await (const bytes of spans) {
      const flight = flights[writes.length];
      if (flight === undefined) return;
      flight.resolve(bytes);
      writes.push(flight.kept);
    }
  }

  async #keep(span: number, bytes: Buffer): Promise<void> {
    // Whoever waits for it gets it first.
    await new Promise((resolve) => setImmediate(resolve));
    try {
      await this.#file.write(span, bytes);
    } catch (error) {
      this.#counters.writeErrors++;
      const fields = { layer: this.#head.layerDigest, span, error: describeError(error) };
      // Of a full disk the cache itself tells, once for many spans.
      const level = isClipError(error, "DISK_FULL") ? "debug" : "warn";
      this.#log[level](fields, "a span could not be kept on disk");
    }
  }
}
