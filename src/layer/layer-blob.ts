/** The uncompressed tar of a layer as one virtual file, whatever part of it is local. */
import { ClipError, describeError, isClipError } from "../base/errors.ts";
import type { LayerFile } from "../cache/layer-file.ts";
import { spanAt } from "../cache/span-map.ts";
import type { LayerHead } from "../index/model.ts";
import type { DemandActivity } from "./demand-activity.ts";
import { ReadAhead } from "./read-ahead.ts";
import { SpanFetcher, type SpanFetcherOptions } from "./span-fetcher.ts";

/** What {@link LayerBlob} is made with. */
export interface LayerBlobOptions extends SpanFetcherOptions {
  /** Readers of all layers, so that background work can make way for them. */
  activity: DemandActivity;
  /** Told when spans that were on disk could not be read, and have been given up. */
  onLost?: () => void;
}

/** How often a read looks for a span that comes and goes. */
const attemptsMax = 4;

/** How many spans may come wrong before the others are not asked for. */
const wrongSpansMax = 3;

/** A part of the background fill. */
export interface FillStep {
  /** The span after it. */
  next: number;
  /** Its uncompressed bytes. */
  bytes: number;
  done: Promise<void>;
}

/** Reads of one layer: from disk what is there, from the sources what is not. */
export class LayerBlob {
  readonly head: LayerHead;
  readonly file: LayerFile;
  readonly #options: LayerBlobOptions;
  readonly #fetcher: SpanFetcher;
  readonly #readAhead = new ReadAhead();
  /** Why every read fails from now on. */
  #failure: ClipError | undefined;

  constructor(options: LayerBlobOptions) {
    this.head = options.head;
    this.file = options.file;
    this.#options = options;
    this.#fetcher = new SpanFetcher(options);
  }

  /**
   * The bytes at `offset`, `length` of them or as many as there are before the end of the layer.
   * @throws ClipError ABORTED when the reader gives up; another code when every source failed
   */
  async read(offset: number, length: number, signal?: AbortSignal): Promise<Buffer[]> {
    const end = Math.min(offset + length, this.file.size);
    if (offset >= end) return [];
    const { counters, activity } = this.#options;
    counters.reads++;
    const startedAt = performance.now();
    const leave = activity.enter();
    try {
      const pieces = await this.#readRange(offset, end, signal);
      counters.readBytes += end - offset;
      return pieces;
    } finally {
      counters.readLatencies.add(performance.now() - startedAt);
      leave();
    }
  }

  /**
   * Begins to fetch what is missing first at or after span `from`, for the background fill.
   * @returns the span to go on from, the bytes that are fetched, and when they are on disk;
   *   undefined when nothing is missing up to the end
   */
  fill(from: number, bytesMax: number, signal: AbortSignal): FillStep | undefined {
    const { file } = this;
    let first = from;
    while (first < file.spanCount && file.has(first)) first++;
    if (first >= file.spanCount) return undefined;
    let last = first;
    const start = file.spanStarts[first] ?? 0;
    while (last + 1 < file.spanCount && !file.has(last + 1)) {
      if ((file.spanStarts[last + 2] ?? 0) - start > bytesMax) break;
      last++;
    }
    this.#options.counters.filledSpans += this.#fetcher.start(first, last);
    const bytes = (file.spanStarts[last + 1] ?? 0) - start;
    return { next: last + 1, bytes, done: this.#settle(first, last, signal) };
  }

  /**
   * Fetches spans that were given up, and keeps them. Once no source has answered for one, or some have
   * come wrong, the rest is not asked for: each would take as long to fail. Whoever reads there tries
   * again.
   * @returns how many of them are on disk now; what cannot be had, or kept, is left out
   * @throws ClipError ABORTED
   */
  async restore(spans: readonly number[], signal: AbortSignal): Promise<number> {
    const isLeft = (span: number) => !this.file.has(span);
    let wrong = 0;
    for (const span of spans) {
      try {
        this.#fetcher.start(span, span);
        if (this.#fetcher.isInFlight(span)) await this.#fetcher.waitUntilKept(span, signal);
      } catch (error) {
        if (signal.aborted) throw error;
        if (!isClipError(error, "ABORTED")) wrong++;
        const othersMayCome = isAboutOneSpan(error) && wrong < wrongSpansMax;
        const left = othersMayCome ? 1 : spans.filter(isLeft).length;
        const fields = { layer: this.head.layerDigest, span, left, error: describeError(error) };
        this.#options.log.warn(fields, "damaged spans cannot be fetched now");
        if (!othersMayCome) break;
      }
    }
    return spans.length - spans.filter(isLeft).length;
  }

  /** Whether a span is being fetched or written to disk. */
  isFetching(span: number): boolean {
    return this.#fetcher.isInFlight(span);
  }

  /** From now on every read fails: the layer is not what its diffID says. */
  condemn(reason: ClipError): void {
    this.#failure = reason;
  }

  /** Gives up what is being fetched. The file stays open: it belongs to the disk cache. */
  async close(): Promise<void> {
    this.#failure ??= new ClipError("CLOSED", "the layer is closed");
    await this.#fetcher.close();
  }

  /** Waits until spans that are on their way are on disk. */
  async #settle(first: number, last: number, signal: AbortSignal): Promise<void> {
    const waits: Promise<void>[] = [];
    for (let span = first; span <= last; span++) {
      if (this.#fetcher.isInFlight(span)) waits.push(this.#fetcher.waitUntilKept(span, signal));
    }
    await Promise.all(waits);
    for (let span = first; span <= last; span++) {
      if (this.file.has(span)) continue;
      // It came, but could not be kept: more of the same is of no use.
      throw new ClipError("DISK_FULL", "a span could not be kept on disk");
    }
  }

  async #readRange(offset: number, end: number, signal?: AbortSignal): Promise<Buffer[]> {
    const starts = this.file.spanStarts;
    const first = spanAt(starts, offset);
    const last = spanAt(starts, end - 1);
    this.#startMissing(first, last);
    this.#fetchAhead(offset, end);

    const pieces: Buffer[] = [];
    for (let span = first; span <= last; span++) {
      const spanStart = starts[span] ?? 0;
      const from = Math.max(offset, spanStart);
      const until = Math.min(end, starts[span + 1] ?? end);
      const bytes = await this.#spanBytes(span, from, until, signal);
      pieces.push(bytes);
    }
    return pieces;
  }

  #startMissing(first: number, last: number): void {
    const { counters } = this.#options;
    for (let span = first; span <= last; span++) {
      if (this.file.has(span)) counters.spanHits++;
      else if (this.#fetcher.isInFlight(span)) counters.spanJoins++;
      else counters.spanMisses++;
    }
    this.#fetcher.start(first, last);
  }

  #fetchAhead(offset: number, end: number): void {
    const { budget, counters } = this.#options;
    const until = Math.min(this.#readAhead.note(offset, end - offset), this.file.size);
    if (until <= end || !budget.hasRoom(2 * (until - end))) return;
    const first = spanAt(this.file.spanStarts, end);
    const last = spanAt(this.file.spanStarts, until - 1);
    counters.prefetchedSpans += this.#fetcher.start(first, last);
  }

  /** The bytes from `from` to `until`, which lie in one span. */
  async #spanBytes(span: number, from: number, until: number, signal?: AbortSignal) {
    const spanStart = this.file.spanStarts[span] ?? 0;
    // A span can go between the look and the read: it failed, was given up, or was dropped.
    for (let attempt = 1; ; attempt++) {
      this.#throwIfFailed();
      if (this.file.has(span)) {
        const bytes = await this.file.read(from, until - from);
        if (bytes !== undefined) return bytes;
        this.#throwIfFailed();
        await this.#giveUp(span);
      }
      this.#fetcher.start(span, span);
      // Somebody else may have brought it back.
      if (!this.#fetcher.isInFlight(span) && attempt < attemptsMax) continue;
      try {
        const bytes = await this.#fetcher.wait(span, signal);
        return bytes.subarray(from - spanStart, until - spanStart);
      } catch (error) {
        const mine = signal?.aborted === true || !isClipError(error, "ABORTED");
        if (mine || attempt === attemptsMax) throw error;
      }
    }
  }

  #throwIfFailed(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  async #giveUp(span: number): Promise<void> {
    const { counters, log, onLost } = this.#options;
    const fields = { layer: this.head.layerDigest, span };
    counters.unreadableSpans++;
    try {
      await this.file.drop([span]);
    } catch (error) {
      // Readers do not see it any more; after a restart it is found again.
      log.error({ ...fields, error: describeError(error) }, "the span map cannot be written");
    }
    log.warn(fields, "a span on disk cannot be read, and is fetched again");
    onLost?.();
  }
}

/** The spans of a layer that are not on disk. */
export function missingSpans({ file }: Pick<LayerBlob, "file">): number[] {
  return [...file.spanPresent.keys()].filter((span) => !file.has(span));
}

/** Whether other spans may be had nevertheless: this one came wrong, or whoever fetched it gave up. */
function isAboutOneSpan(error: unknown): boolean {
  return isClipError(error) && (error.code.startsWith("CORRUPT_") || error.code === "ABORTED");
}
