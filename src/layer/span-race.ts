/** Asks the sources of a layer for spans, the next one as well when one is slow: the first wins. */
import { hash } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { ClipError, describeError, isClipError } from "../base/errors.ts";
import type { LayerHead } from "../index/model.ts";
import type { Log } from "../telemetry/log.ts";
import { sourceCounters, type LayerCounters } from "./counters.ts";
import type { SpanSource } from "./span-source.ts";

/** Which spans are wanted, and of whom. */
export interface SpanRaceOptions {
  head: LayerHead;
  /** First and last of the spans that are wanted. */
  first: number;
  last: number;
  /** Asked in order, nearest first. */
  sources: readonly SpanSource[];
  signal: AbortSignal;
  counters: LayerCounters;
  log: Log;
}

/** How an attempt went on. */
type Step = { bytes: Buffer } | { failure: unknown } | "missed";

/**
 * The spans, in order, each checked against its digest. A source that fails, or does not have them,
 * is followed by the next one; one that lets wait for longer than its patience is joined by the next
 * one, and whichever has the span first goes on alone. Whatever was begun has ended when this ends.
 * @throws what the last source failed with, when none is left
 */
export async function* raceSpans(options: SpanRaceOptions): AsyncGenerator<Buffer> {
  const { first, last, signal } = options;
  const entrants = new Entrants(options.sources);
  const ended: Promise<void>[] = [];
  let running: Attempt[] = [];
  let failure: unknown;
  const begin = (source: SpanSource, span: number) => {
    running.push(new Attempt(source, span, options));
  };
  const abandon = (attempts: readonly Attempt[]) => {
    ended.push(...attempts.map((attempt) => attempt.abandon()));
  };
  try {
    for (let span = first; span <= last;) {
      const next = entrants.next(running);
      if (running.length === 0) {
        if (next === undefined) throw failure ?? noSource();
        begin(next, span);
        continue;
      }
      const winner = await firstStep(running, next === undefined ? undefined : patience(running));
      signal.throwIfAborted();
      if (winner === undefined) {
        if (next === undefined) continue;
        for (const { source } of running) source.patience?.spent();
        begin(next, span);
        continue;
      }
      const { attempt, step } = winner;
      if (step !== "missed" && "bytes" in step) {
        const slower = running.filter((other) => other !== attempt);
        for (const other of slower) other.noteIfOverdue();
        abandon(slower);
        running = [attempt];
        span++;
        // On its way while this one is being used.
        if (span <= last) attempt.goOn();
        yield step.bytes;
        continue;
      }
      running = running.filter((other) => other !== attempt);
      abandon([attempt]);
      if (step === "missed") {
        entrants.missed(attempt.source);
        sourceCounters(options.counters, attempt.source.name).misses++;
        continue;
      }
      noteFailure(attempt, step.failure, span, options);
      // That a last resort is of no help, either, tells the least.
      if (failure === undefined || !entrants.isLastResort(attempt.source)) failure = step.failure;
      entrants.failed(attempt.source, isCorrupt(step.failure));
    }
  } finally {
    abandon(running);
    await Promise.all(ended);
  }
}

/** The sources that may still be asked. */
class Entrants {
  readonly #sources: readonly SpanSource[];
  readonly #lastResorts: readonly SpanSource[];
  readonly #out = new Set<SpanSource>();
  /**
   * Those that sent wrong bytes: they are asked once more, since these may have been damaged on the
   * way. That is after all others, so that such a failure is the one that is told.
   */
  readonly #second = new Set<SpanSource>();

  constructor(sources: readonly SpanSource[]) {
    this.#sources = sources;
    this.#lastResorts = sources.flatMap(({ lastResort }) => lastResort ?? []);
  }

  /** The next one to ask besides those that are running. */
  next(running: readonly Attempt[]): SpanSource | undefined {
    const free = this.#sources.filter(
      (source) => !this.#out.has(source) && !running.some((attempt) => attempt.source === source),
    );
    const fresh = free.find((source) => !this.#second.has(source));
    if (fresh !== undefined || running.length > 0) return fresh;
    return free[0] ?? this.#lastResorts.find((source) => !this.#out.has(source));
  }

  isLastResort(source: SpanSource): boolean {
    return !this.#sources.includes(source);
  }

  missed(source: SpanSource): void {
    this.#out.add(source);
  }

  failed(source: SpanSource, corrupt: boolean): void {
    const isFirst = !this.isLastResort(source) && !this.#second.has(source);
    if (corrupt && isFirst) this.#second.add(source);
    else this.#out.add(source);
  }
}

/** One source that is being asked for the spans from one on. */
class Attempt {
  readonly source: SpanSource;
  readonly #options: SpanRaceOptions;
  readonly #controller = new AbortController();
  readonly #spans: AsyncGenerator<Buffer>;
  readonly #startedAt = performance.now();
  #waitingSince = this.#startedAt;
  #hasGiven = false;
  /** The span that is awaited; never rejects. */
  step: Promise<{ attempt: Attempt; step: Step }>;

  constructor(source: SpanSource, span: number, options: SpanRaceOptions) {
    this.source = source;
    this.#options = options;
    sourceCounters(options.counters, source.name).fetches++;
    const signal = AbortSignal.any([options.signal, this.#controller.signal]);
    this.#spans = checkedSpans(source, span, options, signal);
    this.step = this.#take();
  }

  /** Milliseconds for which the span has been awaited. */
  get waitedMs(): number {
    return performance.now() - this.#waitingSince;
  }

  /** Has it bring the next span. */
  goOn(): void {
    this.#waitingSince = performance.now();
    this.step = this.#take();
  }

  /** Another one was faster: if this one has had its time, it has failed. */
  noteIfOverdue(): void {
    const { source } = this;
    if (source.patience?.isOverdue(this.waitedMs) !== true) return;
    sourceCounters(this.#options.counters, source.name).errors++;
    // Whoever watches over the source learns of it by the reason.
    this.#controller.abort(
      new ClipError("TIMEOUT", `${source.name} was slower than the next tier`),
    );
  }

  /** Ends it; resolves when it has ended. */
  async abandon(): Promise<void> {
    this.#controller.abort();
    await this.step;
    await this.#spans.return(undefined).catch(() => {});
  }

  async #take(): Promise<{ attempt: Attempt; step: Step }> {
    try {
      const next = await this.#spans.next();
      if (next.done === true) return { attempt: this, step: "missed" };
      this.#note(next.value.length);
      return { attempt: this, step: { bytes: next.value } };
    } catch (failure) {
      return { attempt: this, step: { failure } };
    }
  }

  #note(bytes: number): void {
    const counts = sourceCounters(this.#options.counters, this.source.name);
    if (!this.#hasGiven) counts.latencies.add(performance.now() - this.#startedAt);
    this.#hasGiven = true;
    counts.spans++;
    counts.bytes += bytes;
  }
}

/** How long the next source is not asked yet: as long as the one that was asked last may take. */
function patience(running: readonly Attempt[]): number | undefined {
  const newest = running.at(-1);
  const milliseconds = newest?.source.patience?.milliseconds();
  if (newest === undefined || milliseconds === undefined) return undefined;
  return Math.max(0, milliseconds - newest.waitedMs);
}

/** The first step that any of them takes; undefined when none does within the limit. */
async function firstStep(
  running: readonly Attempt[],
  limitMs: number | undefined,
): Promise<{ attempt: Attempt; step: Step } | undefined> {
  const steps = running.map(({ step }) => step);
  if (limitMs === undefined) return Promise.race(steps);
  const timer = new AbortController();
  const over = sleep(limitMs, undefined, { signal: timer.signal }).catch(() => {});
  try {
    return (await Promise.race([...steps, over])) ?? undefined;
  } finally {
    timer.abort();
  }
}

function noteFailure(
  { source }: Attempt,
  failure: unknown,
  span: number,
  { head, counters, log }: SpanRaceOptions,
): void {
  const counts = sourceCounters(counters, source.name);
  if (isCorrupt(failure)) counts.corrupt++;
  else counts.errors++;
  log.warn(
    { source: source.name, layer: head.layerDigest, span, error: describeError(failure) },
    "a span could not be fetched",
  );
}

/** Whether bytes, or what is said of them, were wrong; also when all sources have been asked. */
export function isCorrupt(error: unknown): boolean {
  return (
    isClipError(error, "CORRUPT_LAYER") ||
    isClipError(error, "CORRUPT_GZIP") ||
    isClipError(error, "CORRUPT_INDEX")
  );
}

/**
 * The spans from `first` to the last one, as they arrive, each checked. Ends before that only where
 * the source is allowed to.
 */
async function* checkedSpans(
  source: SpanSource,
  first: number,
  { head, last }: SpanRaceOptions,
  signal: AbortSignal,
): AsyncGenerator<Buffer> {
  const { spans } = head;
  const end = spans[last];
  const start = spans[first]?.checkpoint.uncompressedOffset ?? 0;
  const until = end === undefined ? start : end.checkpoint.uncompressedOffset + end.length;
  let at = first;
  let pieces: Buffer[] = [];
  let gathered = 0;
  for await (let piece of source.stream(start, until, signal)) {
    for (;;) {
      const span = spans[at];
      if (at > last || span === undefined) break;
      const part = piece.subarray(0, span.length - gathered);
      piece = piece.subarray(part.length);
      pieces.push(part);
      gathered += part.length;
      if (gathered < span.length) break;
      const bytes = pieces.length === 1 ? part : Buffer.concat(pieces);
      if (`sha256:${hash("sha256", bytes)}` !== span.digest) {
        source.onWrong?.(span.checkpoint.uncompressedOffset);
        throw wrongSpan(source, at);
      }
      yield bytes;
      at++;
      pieces = [];
      gathered = 0;
      if (piece.length === 0) break;
    }
  }
  if (at <= last && (source.mayEndEarly !== true || gathered > 0)) throw wrongSpan(source, at);
}

function noSource(): ClipError {
  return new ClipError("REGISTRY_NOT_FOUND", "no source has the layer");
}

function wrongSpan(source: SpanSource, span: number): ClipError {
  return new ClipError("CORRUPT_LAYER", `${source.name} gave wrong bytes for span ${span}`, {
    hint: "What it has of the layer is damaged, or the index is, or something on the way.",
  });
}
