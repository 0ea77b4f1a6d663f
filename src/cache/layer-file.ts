/** One layer on disk: a sparse file of its uncompressed tar and the map of the spans in it. */
import { rm, stat, type FileHandle } from "node:fs/promises";
import { describeError } from "../base/errors.ts";
import type { Log } from "../telemetry/log.ts";
import { asDiskError, readFully, writeFully } from "./files.ts";
import { spanMapHeaderBytes, spanMapStateOffset, type SpanTable } from "./span-map.ts";

/** How long a span may be readable but not yet claimed on disk, and how many of them. */
const flushDelayMs = 1_000;
const flushSpans = 32;

/** What {@link LayerFile} is opened with; `DiskCache` makes it. */
export interface LayerFileParts {
  dataPath: string;
  mapPath: string;
  data: FileHandle;
  map: FileHandle;
  table: SpanTable;
  /** One byte a span, 1 where it is there, over shared memory: what FUSE threads look at. */
  present: Uint8Array;
  complete: boolean;
  /** Makes the names of files that are new durable; absent where they are not. */
  settleNames?: () => Promise<void>;
  log: Log;
}

/**
 * The spans of one layer that are on disk.
 *
 * A span is written, then visible to readers in {@link spanPresent}, then made durable, then claimed
 * in the map on disk. So after a crash the map never claims bytes that are not there.
 */
export class LayerFile {
  /** The sparse file: byte n of it is byte n of the uncompressed layer. */
  readonly path: string;
  readonly size: number;
  readonly spanStarts: Float64Array;
  /**
   * Zero where a span is missing. A span that comes back after it was dropped gets another value
   * than before, so that a thread which was reading it meanwhile notices.
   */
  readonly spanPresent: Uint8Array;
  /** The value that each span got last. */
  readonly #lastFlags: Uint8Array;
  readonly #mapPath: string;
  readonly #data: FileHandle;
  readonly #map: FileHandle;
  readonly #log: Log;
  #settleNames: (() => Promise<void>) | undefined;
  /** What the map on disk claims, or is about to. */
  readonly #claimed: Uint8Array;
  readonly #unclaimed = new Set<number>();
  #complete: boolean;
  #flushing: Promise<void> = Promise.resolve();
  #flushTimer: NodeJS.Timeout | undefined;
  readonly #writing = new Set<Promise<void>>();
  #closed = false;

  constructor(parts: LayerFileParts) {
    this.path = parts.dataPath;
    this.#mapPath = parts.mapPath;
    this.#data = parts.data;
    this.#map = parts.map;
    this.#log = parts.log;
    this.#settleNames = parts.settleNames;
    this.spanStarts = parts.table.starts;
    this.size = parts.table.starts.at(-1) ?? 0;
    this.spanPresent = parts.present;
    this.#claimed = Uint8Array.from(parts.present);
    this.#lastFlags = Uint8Array.from(parts.present);
    this.#complete = parts.complete;
  }

  get spanCount(): number {
    return this.spanPresent.length;
  }

  /** Whether the whole file has matched its diffID. */
  get complete(): boolean {
    return this.#complete;
  }

  /** Whether the bytes of this span can be read from the file. */
  has(span: number): boolean {
    return Atomics.load(this.spanPresent, span) !== 0;
  }

  /**
   * `length` bytes at `offset`, which must lie in spans that are present; undefined when the disk
   * does not give them.
   */
  async read(offset: number, length: number): Promise<Buffer | undefined> {
    try {
      return await readFully(this.#data, offset, length);
    } catch (error) {
      this.#log.warn(
        { path: this.path, offset, length, error: describeError(error) },
        "a layer on disk cannot be read",
      );
      return undefined;
    }
  }

  /**
   * Keeps a span; it is readable from the file when this returns.
   * @throws ClipError DISK_FULL; the span is then not there, and nothing else is touched.
   */
  async write(span: number, bytes: Uint8Array): Promise<void> {
    if (this.#closed || this.has(span)) return;
    const writing = writeFully(this.#data, bytes, this.spanStarts[span] ?? 0);
    this.#writing.add(writing);
    try {
      await writing;
    } finally {
      this.#writing.delete(writing);
    }
    if (this.#closed || this.has(span)) return;
    const flag = ((this.#lastFlags[span] ?? 0) % 255) + 1;
    this.#lastFlags[span] = flag;
    Atomics.store(this.spanPresent, span, flag);
    this.#unclaimed.add(span);
    if (this.#unclaimed.size >= flushSpans) void this.#flushLogged();
    else this.#flushTimer ??= setTimeout(() => void this.#flushLogged(), flushDelayMs).unref();
  }

  /** Makes everything that is present durable and claims it in the map. */
  async flush(): Promise<void> {
    clearTimeout(this.#flushTimer);
    this.#flushTimer = undefined;
    const mine = this.#flushing.then(() => this.#flushOnce());
    this.#flushing = mine.catch(() => {});
    await mine;
  }

  /** Gives spans up: from now on they are fetched again. Their bytes stay until overwritten. */
  async drop(spans: Iterable<number>): Promise<void> {
    for (const span of spans) this.#forget(span);
    this.#complete = false;
    await this.#flushing;
    await this.#writeState(0);
    await this.#writeClaims(0, this.spanCount - 1);
    await this.#map.datasync();
  }

  /** Records durably that the whole file has matched its diffID. */
  async markComplete(): Promise<void> {
    await this.flush();
    await this.#settleNames?.();
    await this.#writeState(1);
    await this.#map.datasync();
    this.#complete = true;
  }

  /** Claims what can be claimed and closes the files. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await Promise.allSettled(this.#writing);
    await this.#flushLogged();
    await Promise.all([this.#data.close(), this.#map.close()]);
  }

  /** Closes the file without claiming anything more and deletes it. */
  async remove(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#flushTimer);
    await Promise.allSettled(this.#writing);
    await this.#flushing;
    await removeLayerFile(this.path, this.#mapPath);
    await Promise.all([this.#data.close(), this.#map.close()]);
  }

  async #flushOnce(): Promise<void> {
    const spans = [...this.#unclaimed];
    if (spans.length === 0) return;
    this.#unclaimed.clear();
    try {
      await this.#data.datasync();
      await this.#settleNames?.();
      this.#settleNames = undefined;
    } catch (error) {
      // After a failed sync nobody knows what of these spans is on the disk.
      for (const span of spans) this.#forget(span);
      throw asDiskError(error);
    }
    for (const span of spans) if (this.has(span)) this.#claimed[span] = 1;
    await this.#writeClaims(Math.min(...spans), Math.max(...spans));
    await this.#map.datasync();
  }

  async #flushLogged(): Promise<void> {
    try {
      await this.flush();
    } catch (error) {
      this.#log.warn(
        { path: this.path, error: describeError(error) },
        "spans of a layer could not be made durable",
      );
    }
  }

  #forget(span: number): void {
    Atomics.store(this.spanPresent, span, 0);
    this.#claimed[span] = 0;
    this.#unclaimed.delete(span);
  }

  async #writeClaims(first: number, last: number): Promise<void> {
    const claims = this.#claimed.subarray(first, last + 1);
    await writeFully(this.#map, claims, spanMapHeaderBytes + first);
  }

  async #writeState(state: number): Promise<void> {
    await writeFully(this.#map, Uint8Array.of(state), spanMapStateOffset);
  }
}

/** Deletes the files of a layer: the map first, since it must not outlive what it claims. */
export async function removeLayerFile(dataPath: string, mapPath: string): Promise<void> {
  await rm(mapPath, { force: true });
  await rm(dataPath, { force: true });
}

/** Bytes that the files of a layer that is not open take on disk. */
export async function layerFileBytesOnDisk(dataPath: string, mapPath: string): Promise<number> {
  const sizes = await Promise.all(
    [dataPath, mapPath].map((path) =>
      stat(path).then(
        (found) => found.blocks * 512,
        () => 0,
      ),
    ),
  );
  return sizes.reduce((sum, bytes) => sum + bytes, 0);
}
