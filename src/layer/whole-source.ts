/**
 * Spans from a registry that gives no parts of a blob: the whole layer passes by once, for all who
 * wait for something of it, and what is missing on disk is kept on the way.
 */
import { abortable, type Semaphore } from "../base/concurrency.ts";
import { ClipError, describeError, isClipError } from "../base/errors.ts";
import type { LayerFile } from "../cache/layer-file.ts";
import { spanAt } from "../cache/span-map.ts";
import type { LayerHead } from "../index/model.ts";
import type { Log } from "../telemetry/log.ts";
import type { LayerCounters } from "./counters.ts";
import { raceSpans } from "./span-race.ts";
import type { SpanSource } from "./span-source.ts";

/** What {@link WholeSource} is made with. */
export interface WholeSourceOptions {
  head: LayerHead;
  file: Pick<LayerFile, "has" | "write" | "spanStarts" | "spanCount">;
  /** The registry, which can be streamed from the beginning. */
  source: SpanSource;
  /** Whether there is a place that has the blob and gives no parts of it. */
  isNeeded: (signal: AbortSignal) => Promise<boolean>;
  /** Told when the layer begins to be pulled. */
  onBegin: () => void;
  /** Whole pulls wait here for their turn. */
  pulls: Semaphore;
  counters: LayerCounters;
  log: Log;
}

/** The last resort of a layer; see the module. Holds a few spans in memory at a time. */
export class WholeSource implements SpanSource {
  readonly name = "whole";
  readonly mayEndEarly = true;
  readonly #options: WholeSourceOptions;
  readonly #closing = new AbortController();
  #pass: Pass | undefined;

  constructor(options: WholeSourceOptions) {
    this.#options = options;
  }

  /** @throws ClipError REGISTRY_*, CORRUPT_*, ABORTED, CLOSED */
  async *stream(start: number, end: number, signal: AbortSignal): AsyncGenerator<Buffer> {
    const { file, isNeeded } = this.#options;
    if (!(await isNeeded(signal))) return;
    const first = spanAt(file.spanStarts, start);
    const last = spanAt(file.spanStarts, end - 1);
    const pass = await this.#passBefore(first, signal);
    const wanted: Promise<Buffer>[] = [];
    for (let span = first; span <= last; span++) wanted.push(pass.span(span));
    for (const bytes of wanted) yield await abortable(bytes, signal);
  }

  /** Gives up and waits for the end. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#pass?.ended;
  }

  /** A pass over the layer that has not gone past the span. */
  async #passBefore(span: number, signal: AbortSignal): Promise<Pass> {
    for (;;) {
      const closing = this.#closing.signal;
      if (closing.aborted) throw new ClipError("CLOSED", "the layer is closed");
      this.#pass ??= new Pass(this.#options, closing, () => (this.#pass = undefined));
      if (this.#pass.next <= span) return this.#pass;
      await abortable(this.#pass.ended, signal);
    }
  }
}

/** The layer from its beginning to where nobody needs more of it. */
class Pass {
  /** The span that comes next, or is being kept. */
  next = 0;
  /** Settles when it is over; never fails. */
  readonly ended: Promise<void>;
  readonly #options: WholeSourceOptions;
  readonly #waiting = new Map<number, PromiseWithResolvers<Buffer>>();
  #current: Buffer | undefined;
  /** From the next span up to this one all were on disk when it was last looked. */
  #present = 0;
  #diskIsFull = false;

  constructor(options: WholeSourceOptions, signal: AbortSignal, onEnd: () => void) {
    this.#options = options;
    this.ended = this.#run(signal).then(onEnd);
  }

  /** The bytes of a span that has not gone by. */
  span(span: number): Promise<Buffer> {
    if (span === this.next && this.#current !== undefined) return Promise.resolve(this.#current);
    const waiting = this.#waiting.get(span) ?? Promise.withResolvers<Buffer>();
    // Whoever waits for it may have left.
    waiting.promise.catch(() => {});
    this.#waiting.set(span, waiting);
    return waiting.promise;
  }

  async #run(signal: AbortSignal): Promise<void> {
    const { head, pulls, counters, log } = this.#options;
    const layer = head.layerDigest;
    let failure: unknown = new ClipError("CLOSED", "the layer is closed");
    try {
      await pulls.run(() => this.#pull(signal), signal);
      counters.wholePulls++;
      counters.wholePullBytes += head.compressedSize;
    } catch (error) {
      failure = error;
      if (!signal.aborted) {
        counters.wholePullErrors++;
        log.warn({ layer, error: describeError(error) }, "a layer could not be pulled whole again");
      }
    }
    for (const { reject } of this.#waiting.values()) reject(failure);
  }

  async #pull(signal: AbortSignal): Promise<void> {
    const { head, source, onBegin, counters, log } = this.#options;
    onBegin();
    log.warn(
      { layer: head.layerDigest },
      "no registry gives parts of a layer that has been lost here: it is pulled whole again",
    );
    const last = head.spans.length - 1;
    const spans = raceSpans({ head, first: 0, last, sources: [source], signal, counters, log });
    for await (const bytes of spans) {
      await this.#take(bytes);
      if (this.#isOver()) return;
    }
  }

  async #take(bytes: Buffer): Promise<void> {
    this.#current = bytes;
    this.#waiting.get(this.next)?.resolve(bytes);
    this.#waiting.delete(this.next);
    try {
      await this.#options.file.write(this.next, bytes);
    } catch (error) {
      this.#options.counters.writeErrors++;
      this.#diskIsFull ||= isClipError(error, "DISK_FULL");
    }
    this.#current = undefined;
    this.next++;
  }

  #isOver(): boolean {
    const { file } = this.#options;
    if (this.#waiting.size > 0) return false;
    this.#present = Math.max(this.#present, this.next);
    while (this.#present < file.spanCount && file.has(this.#present)) this.#present++;
    return this.#diskIsFull || this.#present >= file.spanCount;
  }
}
