/** Spans from the content cache: ranges of the uncompressed layer. */
import { ClipError, describeError, isClipError } from "../../base/errors.ts";
import type { ContentCache, ContentKey } from "../../cache/content/content-cache.ts";
import { spanAt } from "../../cache/span-map.ts";
import type { LayerHead } from "../../index/model.ts";
import {
  rangeReadHit,
  rangeReadMissed,
  rangeReadTried,
  type CachedLayer,
} from "../../telemetry/events.ts";
import type { Log } from "../../telemetry/log.ts";
import type { SpanSource } from "../span-source.ts";
import type { Hedge } from "./hedge.ts";
import type { SharedObjects } from "./shared-objects.ts";

/** Bytes of one request (but always at least one span), and requests at the same time. */
const requestBytes = 2 * 1024 * 1024;
const parallelRequests = 3;

/** What {@link CachedSource} is made with. */
export interface CachedSourceOptions {
  head: LayerHead;
  cache: ContentCache;
  objects: SharedObjects;
  hedge: Hedge;
  log: Log;
  /** Told when the copy of a cache was wrong. */
  onWrong: (head: LayerHead, cache: string) => void;
  /** Ask although it failed or missed just before. */
  insist?: boolean;
}

/** Bytes that came, and from which cache. */
interface Piece {
  start: number;
  bytes: Buffer;
  from: string;
}

/** One layer in the content cache. What comes from there is not trusted. */
export class CachedSource implements SpanSource {
  readonly name = "content_cache";
  readonly mayEndEarly = true;
  readonly patience: Hedge;
  readonly lastResort?: CachedSource;
  readonly #options: CachedSourceOptions;
  readonly #key: ContentKey;
  readonly #logged: CachedLayer;
  readonly #starts: Float64Array;
  /** Which cache gave the latest answers, to know whose a wrong span was. */
  readonly #givers: { start: number; end: number; from: string }[] = [];

  constructor(options: CachedSourceOptions) {
    const { head, objects, hedge } = options;
    this.#options = options;
    this.patience = hedge;
    this.#key = objects.layerKey(head);
    this.#logged = objects.logged(head);
    this.#starts = new Float64Array(head.spans.length + 1);
    for (const [at, { checkpoint }] of head.spans.entries()) {
      this.#starts[at] = checkpoint.uncompressedOffset;
    }
    this.#starts[head.spans.length] = head.uncompressedSize;
    if (options.insist !== true) this.lastResort = new CachedSource({ ...options, insist: true });
  }

  /** @throws ClipError CACHE_*, TIMEOUT, ABORTED, CLOSED */
  async *stream(start: number, end: number, signal: AbortSignal): AsyncGenerator<Buffer> {
    const { objects, insist = false } = this.#options;
    if (!objects.isWorthAsking(this.#key, insist)) return;
    const controller = new AbortController();
    const either = AbortSignal.any([signal, controller.signal]);
    const running: Promise<Piece | undefined>[] = [];
    let next = start;
    try {
      for (;;) {
        while (next < end && running.length < parallelRequests) {
          const until = this.#requestEnd(next, end);
          const piece = this.#read(next, until, either);
          // A failure is seen when its turn comes, or never, if the reader leaves before.
          piece.catch(() => {});
          running.push(piece);
          next = until;
        }
        const piece = await running.shift();
        if (piece === undefined) return;
        this.#remember(piece);
        yield piece.bytes;
      }
    } finally {
      controller.abort();
      await Promise.allSettled(running);
    }
  }

  onWrong(start: number): void {
    const giver = this.#givers.findLast((one) => one.start <= start && start < one.end);
    if (giver !== undefined) this.#options.onWrong(this.#options.head, giver.from);
  }

  /** Where a request that begins at `start` ends: at a span boundary. */
  #requestEnd(start: number, end: number): number {
    let span = spanAt(this.#starts, start);
    let until = this.#starts[span + 1] ?? end;
    while (until < end && (this.#starts[span + 2] ?? Infinity) - start <= requestBytes) {
      span++;
      until = this.#starts[span + 1] ?? end;
    }
    return Math.min(until, end);
  }

  /** Undefined when it is not there, or the caches are being left alone. */
  async #read(start: number, end: number, signal: AbortSignal): Promise<Piece | undefined> {
    const { cache, objects, hedge, insist, log } = this.#options;
    const range = { offset: start, length: end - start };
    rangeReadTried(log, this.#logged, range);
    const startedAt = performance.now();
    const durationMs = () => Math.round(performance.now() - startedAt);
    const bytes = Buffer.allocUnsafeSlow(range.length);
    try {
      const except = objects.wrongCopies(this.#key);
      const hit = await cache.read(this.#key, start, bytes, { signal, except, insist });
      if (hit === undefined) {
        objects.noteMiss(this.#key);
        rangeReadMissed(log, this.#logged, { ...range, durationMs: durationMs() });
        return undefined;
      }
      hedge.add(performance.now() - startedAt);
      objects.noteHit(this.#key);
      const moved = { bytes: bytes.length, durationMs: durationMs() };
      rangeReadHit(log, this.#logged, { ...range, ...moved });
      return { start, bytes, from: hit.from };
    } catch (error) {
      if (signal.aborted) throw error;
      const fields = { durationMs: durationMs(), error: describeError(error) };
      rangeReadMissed(log, this.#logged, { ...range, ...fields });
      if (isSkipped(error)) return undefined;
      this.#noteShort(error);
      throw error;
    }
  }

  /** An object that ends too early is as wrong as one with other bytes. */
  #noteShort(error: unknown): void {
    if (!isClipError(error, "CACHE_PROTOCOL")) return;
    const { cache, size } = error.context;
    if (typeof cache === "string" && typeof size === "number") {
      this.#options.onWrong(this.#options.head, cache);
    }
  }

  #remember({ start, bytes, from }: Piece): void {
    this.#givers.push({ start, end: start + bytes.length, from });
    if (this.#givers.length > 64) this.#givers.shift();
  }
}

/** Whether a breaker let nothing through: that has been told once, and costs nothing. */
function isSkipped(error: unknown): boolean {
  return error instanceof ClipError && error.context["skipped"] === true;
}
