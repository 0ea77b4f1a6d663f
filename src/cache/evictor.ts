/** Keeps the disk cache within its limits: what was used least recently goes. */
import { setTimeout as delay } from "node:timers/promises";
import { steadyNow } from "../base/clock.ts";
import { ClipError, describeError } from "../base/errors.ts";
import type { Log } from "../telemetry/log.ts";
import type { DiskLimits, DiskSpace, FileOnDisk } from "./disk-space.ts";
import type { LayerFile, SpaceKeeper } from "./layer-file.ts";

const MiB = 1024 * 1024;
/** Longest wait of a span for room; whoever reads it has its bytes already. */
const admitMs = 2_000;
/** How long no other attempt is made when nothing was left that might go. */
const pauseMs = 2_000;
/** How often readers' marks are turned into times. */
const collectMs = 60_000;
/** How often the size of layers that are being pulled whole is looked at. */
const watchMs = 250;
/** Bytes that are freed at once when the file system is full. */
const reliefBytes = 32 * MiB;

/** What the eviction has done; plain numbers that only grow. */
export interface EvictionCounters {
  spans: number;
  /** Bytes of these spans and of whole layers. */
  bytes: number;
  /** Layers nobody used that went as a whole. */
  layers: number;
  /** Spans and whole pulls for which no room could be made. */
  refused: number;
}

/** In which order layers go; whoever was used last does not matter between them. */
export type EvictionRank =
  | "ordinary"
  /** Other nodes are still to get it from here. */
  | "unshared"
  /** It comes back only as a whole. */
  | "costly";

/** A layer that is on disk and not open. */
export interface ClosedLayer {
  bytes: number;
  usedAt: number;
  rank: EvictionRank;
  /** Deletes it if nobody needs it. */
  remove(): Promise<boolean>;
}

/** What {@link Evictor} is made with. */
export interface EvictorOptions {
  space: DiskSpace;
  /** Layers of a rank that are open and of which spans may go; default: of any. */
  openFiles: (rank?: EvictionRank) => LayerFile[];
  /** Of these files, the layers that are not open. */
  closedLayers: (files: readonly FileOnDisk[]) => ClosedLayer[];
  log: Log;
}

/** How it stands with the disk cache. */
export interface DiskCacheState extends DiskLimits {
  bytes: number;
  evicted: Readonly<EvictionCounters>;
}

/**
 * Makes room in the background when the high-water mark is passed, and while a span waits when the
 * limit is. Layers that nobody has open go first, one by one; then spans of those that are open.
 * Then, in the same order, what other nodes are still to get from here, and at last what comes back
 * only as a whole.
 */
export class Evictor implements SpaceKeeper {
  readonly counters: EvictionCounters = { spans: 0, bytes: 0, layers: 0, refused: 0 };
  readonly #options: EvictorOptions;
  readonly #space: DiskSpace;
  readonly #closing = new AbortController();
  readonly #pulls = new Set<AbortController>();
  #running: Promise<number> | undefined;
  #fruitlessAt = -Infinity;
  #collectTimer: NodeJS.Timeout | undefined;
  #watchTimer: NodeJS.Timeout | undefined;

  constructor(options: EvictorOptions) {
    this.#options = options;
    this.#space = options.space;
  }

  /** Counts what is on disk; what is too much goes in the background. */
  async start(): Promise<void> {
    await this.#space.measure();
    this.#collectTimer = setInterval(() => this.#collect(), collectMs).unref();
  }

  get state(): DiskCacheState {
    return { ...this.#space.limits, bytes: this.#space.used, evicted: this.counters };
  }

  /** Bytes that may be written before anything has to go. */
  get room(): number {
    return Math.max(0, -this.#space.excess("high"));
  }

  async admit(bytes: number): Promise<(written: boolean) => void> {
    await this.#space.refresh();
    const done = this.#space.reserve(bytes);
    if (this.#space.excess("high") > 0) void this.#makeRoom();
    // What is under way now may have begun too early to count this one in.
    for (let attempt = 0; attempt < 2 && this.#space.excess("limit") > 0; attempt++) {
      await this.#wait(this.#makeRoom());
    }
    if (this.#space.excess("limit") <= 0) return done;
    done(false);
    this.counters.refused++;
    throw diskFull();
  }

  /** `bytes` were written that nobody was asked for. */
  added(bytes: number): void {
    this.#space.reserve(bytes)(true);
    if (this.#space.excess("high") > 0) void this.#makeRoom();
  }

  async relieve(bytes: number): Promise<boolean> {
    await this.#running;
    return (await this.#makeRoom(Math.max(bytes, reliefBytes))) > 0;
  }

  /**
   * Begins a whole pull of a layer that takes at least `bytesMin`.
   * @returns what fires with DISK_FULL when the layer turns out to be too large, and what ends it
   * @throws ClipError DISK_FULL
   */
  async beginPull(bytesMin: number): Promise<{ signal: AbortSignal; end(): void }> {
    await this.#space.measure();
    const missing = this.#missingFor(bytesMin);
    if (missing > 0) await this.#makeRoom(missing);
    if (this.#missingFor(bytesMin) > 0) {
      this.counters.refused++;
      throw diskFull();
    }
    const controller = new AbortController();
    this.#pulls.add(controller);
    this.#watch();
    return { signal: controller.signal, end: () => void this.#pulls.delete(controller) };
  }

  /** Something large has come or gone: looks again. */
  async look(): Promise<void> {
    await this.#space.measure();
    this.#fruitlessAt = -Infinity;
    if (this.#space.excess("high") > 0) void this.#makeRoom();
  }

  /** Stops; what is being freed is freed. */
  async close(): Promise<void> {
    this.#closing.abort();
    clearInterval(this.#collectTimer);
    clearTimeout(this.#watchTimer);
    await this.#running;
  }

  /** Bytes that have to go before so many may come. */
  #missingFor(bytes: number): number {
    return Math.max(this.#space.excess("limit") + bytes, bytes - this.#space.free);
  }

  async #wait(running: Promise<unknown>): Promise<void> {
    const over = new AbortController();
    const signal = AbortSignal.any([over.signal, this.#closing.signal]);
    await Promise.race([running, delay(admitMs, undefined, { signal }).catch(() => {})]);
    over.abort();
  }

  /** Frees `bytesMin`, or what is over the low-water mark; never fails. */
  #makeRoom(bytesMin = 0): Promise<number> {
    if (this.#running !== undefined) return this.#running;
    const isPausing = performance.now() - this.#fruitlessAt < pauseMs;
    if (this.#closing.signal.aborted || (isPausing && bytesMin === 0)) return Promise.resolve(0);
    this.#running = this.#evict(bytesMin)
      .catch((error: unknown) => {
        this.#options.log.warn({ error: describeError(error) }, "no room could be made on disk");
        return 0;
      })
      .finally(() => (this.#running = undefined));
    return this.#running;
  }

  async #evict(bytesMin: number): Promise<number> {
    const startedAt = performance.now();
    const files = await this.#space.measure();
    const target = Math.max(bytesMin, this.#space.excess("low"));
    if (target <= 0) return 0;
    const closed = this.#options.closedLayers(files);
    const layersBefore = this.counters.layers;
    let freed = await this.#evictRank(closed, target, "ordinary");
    freed += await this.#evictRank(closed, target - freed, "unshared");
    // Spans that are being written can rather be done without.
    const isOver = this.#space.writtenExcess("high") > 0;
    const rest = Math.max(bytesMin - freed, isOver ? this.#space.writtenExcess("low") : 0);
    freed += await this.#evictRank(closed, rest, "costly");
    this.counters.bytes += freed;
    if (freed === 0) {
      this.#fruitlessAt = performance.now();
      this.#options.log.warn({ target }, "the disk cache is full of layers in use");
    }
    // Counts what the file system really gave back.
    await this.#space.measure();
    const durationMs = Math.round(performance.now() - startedAt);
    const { used: bytes, limits } = this.#space;
    const layers = this.counters.layers - layersBefore;
    this.#options.log.info(
      { freed, target, layers, bytes, bytesMax: limits.bytesMax, durationMs },
      "made room in the disk cache",
    );
    return freed;
  }

  async #evictRank(
    closed: readonly ClosedLayer[],
    target: number,
    rank: EvictionRank,
  ): Promise<number> {
    const layers = closed.filter((layer) => layer.rank === rank);
    const freed = await this.#evictLayers(layers, target);
    return freed + (await this.#evictSpans(target - freed, rank));
  }

  async #evictLayers(layers: readonly ClosedLayer[], target: number): Promise<number> {
    let freed = 0;
    for (const layer of layers.toSorted((a, b) => a.usedAt - b.usedAt)) {
      if (freed >= target || this.#closing.signal.aborted) break;
      if (!(await layer.remove())) continue;
      freed += layer.bytes;
      this.counters.layers++;
      this.#space.freed(layer.bytes);
    }
    return freed;
  }

  async #evictSpans(target: number, rank: EvictionRank): Promise<number> {
    if (target <= 0) return 0;
    this.#collect();
    let freed = 0;
    const { openFiles } = this.#options;
    for (const [file, spans] of leastRecentlyUsed(openFiles(rank), target)) {
      if (this.#closing.signal.aborted) break;
      // The kernel may have begun to read it by itself.
      if (!openFiles(rank).includes(file)) continue;
      const went = await file.evict(spans);
      this.counters.spans += went.spans;
      this.#space.freed(went.bytes);
      freed += went.bytes;
    }
    return freed;
  }

  #collect(): void {
    const now = steadyNow();
    for (const file of this.#options.openFiles()) file.use.collect(now);
  }

  #watch(): void {
    if (this.#watchTimer !== undefined || this.#pulls.size === 0) return;
    this.#watchTimer = setTimeout(() => {
      void this.#checkPulls()
        .catch((error: unknown) => {
          const fields = { error: describeError(error) };
          this.#options.log.warn(fields, "the disk cache cannot be measured");
        })
        .finally(() => {
          this.#watchTimer = undefined;
          if (!this.#closing.signal.aborted) this.#watch();
        });
    }, watchMs).unref();
  }

  async #checkPulls(): Promise<void> {
    await this.#space.measure();
    if (this.#space.excess("high") > 0) await this.#makeRoom();
    if (this.#space.excess("limit") <= 0) return;
    // The last one to begin gives way, so that the others may end.
    const pull = [...this.#pulls].at(-1);
    if (pull === undefined) return;
    this.#pulls.delete(pull);
    this.counters.refused++;
    pull.abort(diskFull());
  }
}

/** The spans that are to go, by file, so that `target` bytes become free. */
function leastRecentlyUsed(
  files: readonly LayerFile[],
  target: number,
): Map<LayerFile, Set<number>> {
  const candidates: { file: LayerFile; span: number; usedAt: number }[] = [];
  for (const file of files) {
    for (let span = 0; span < file.spanCount; span++) {
      if (file.mayEvict(span)) candidates.push({ file, span, usedAt: file.use.usedAt(span) });
    }
  }
  candidates.sort((a, b) => a.usedAt - b.usedAt);
  const chosen = new Map<LayerFile, Set<number>>();
  let bytes = 0;
  for (const { file, span } of candidates) {
    if (bytes >= target) break;
    bytes += file.lengthOf(span);
    const spans = chosen.get(file) ?? new Set();
    chosen.set(file, spans.add(span));
  }
  return chosen;
}

function diskFull(): ClipError {
  return new ClipError("DISK_FULL", "the disk cache is full, and nothing in it may go", {
    hint: "Raise cache.bytes_max, free space on the disk, or remove images no longer needed.",
  });
}
