/** One layer on disk: a sparse file of its uncompressed tar and the map of the spans in it. */
import { rm, stat, type FileHandle } from "node:fs/promises";
import { steadyNow } from "../base/clock.ts";
import { ClipError, describeError, isClipError } from "../base/errors.ts";
import type { Log } from "../telemetry/log.ts";
import { asDiskError, readFully, writeFully } from "./files.ts";
import { spanAt, spanMapHeaderBytes, spanMapStateOffset, type SpanTable } from "./span-map.ts";
import { SpanUse } from "./span-use.ts";

/** How long a span may be readable but not yet claimed on disk, and how many of them. */
const flushDelayMs = 1_000;
const flushSpans = 32;

/** Spans whose blocks are freed in one go. */
const punchSpansMax = 32;

/** Whoever keeps the disk from filling up. */
export interface SpaceKeeper {
  /**
   * Has room made for `bytes` that are about to be written; does not wait long.
   * @returns to be called when they have been written, or could not be
   * @throws ClipError DISK_FULL
   */
  admit(bytes: number): Promise<(written: boolean) => void>;
  /** The file system had no room for `bytes`; whether trying again may help. */
  relieve(bytes: number): Promise<boolean>;
}

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
  /** How long the data is now; at once, so that no write comes before what is done about it. */
  sizeNow: () => number;
  /** Frees the blocks of a range of the data. */
  punch: (offset: number, length: number) => Promise<void>;
  /** The kernel may be reading the file by itself: what is there stays until it is written over. */
  isDevice?: boolean;
  /** Absent: as much is written as the disk takes. */
  space?: SpaceKeeper;
  /** When the spans that are there were last used, in milliseconds since 1970. */
  usedAt: number;
  log: Log;
}

/**
 * The spans of one layer that are on disk.
 *
 * A span is written, then visible to readers in {@link spanPresent}, then made durable, then claimed
 * in the map on disk. It goes in the opposite order: readers lose sight of it, the claim is taken
 * back durably, then its blocks are freed. So after a crash at any moment the map never claims bytes
 * that are not there.
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
  /** Which spans were used when. */
  readonly use: SpanUse;
  /** The value that each span got last. */
  readonly #lastFlags: Uint8Array;
  readonly #mapPath: string;
  readonly #data: FileHandle;
  readonly #map: FileHandle;
  readonly #log: Log;
  readonly #sizeNow: LayerFileParts["sizeNow"];
  readonly #punch: LayerFileParts["punch"];
  readonly #isDevice: boolean;
  readonly #space: SpaceKeeper | undefined;
  #settleNames: (() => Promise<void>) | undefined;
  /** What the map on disk claims, or is about to. */
  readonly #claimed: Uint8Array;
  readonly #unclaimed = new Set<number>();
  #complete: boolean;
  #flushing: Promise<void> = Promise.resolve();
  #flushTimer: NodeJS.Timeout | undefined;
  readonly #writing = new Map<number, Promise<void>>();
  /** How many reads are under way in each span. */
  readonly #reading = new Map<number, number>();
  /** Spans that are going, until that is durable and their blocks are free. */
  readonly #leaving = new Map<number, Promise<void>>();
  /** The map on disk may claim spans that were given up: no block may be freed any more. */
  #mapIsBehind = false;
  #holds = 0;
  #closed = false;

  constructor(parts: LayerFileParts) {
    this.path = parts.dataPath;
    this.#mapPath = parts.mapPath;
    this.#data = parts.data;
    this.#map = parts.map;
    this.#log = parts.log;
    this.#settleNames = parts.settleNames;
    this.#sizeNow = parts.sizeNow;
    this.#punch = parts.punch;
    this.#isDevice = parts.isDevice ?? false;
    this.#space = parts.space;
    this.use = new SpanUse(parts.present.length, parts.usedAt);
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

  /** Bytes of a span. */
  lengthOf(span: number): number {
    return (this.spanStarts[span + 1] ?? 0) - (this.spanStarts[span] ?? 0);
  }

  /**
   * `length` bytes at `offset`, which must lie in spans that are present; undefined when the disk
   * does not give them, or when a span was given up meanwhile. None is evicted until they are read.
   */
  async read(offset: number, length: number): Promise<Buffer | undefined> {
    const flags = this.#flagsOf(offset, length);
    const done = this.#holdRange(offset, length);
    let failure = "the file ends before";
    try {
      const bytes = await readFully(this.#data, offset, length);
      if (bytes !== undefined && flags.equals(this.#flagsOf(offset, length))) return bytes;
      if (bytes !== undefined) failure = "it was given up meanwhile";
    } catch (error) {
      failure = describeError(error);
    } finally {
      done();
    }
    const fields = { path: this.path, offset, length, error: failure };
    this.#log.warn(fields, "a layer on disk cannot be read");
    return undefined;
  }

  /** Nothing is evicted until the returned function is called: someone reads the file itself. */
  hold(): () => void {
    this.#holds++;
    let held = true;
    return () => {
      if (held) this.#holds--;
      held = false;
    };
  }

  /** Whether this span can be evicted now. */
  mayEvict(span: number): boolean {
    const frozen = this.#closed || this.#mapIsBehind || this.#holds > 0;
    return !frozen && this.has(span) && !this.#reading.has(span);
  }

  /**
   * Frees the blocks of spans; those that may not go now are left. Whoever is reading one of them
   * elsewhere sees in {@link spanPresent} that it has gone.
   * @returns how many went, and their bytes
   * @throws ClipError SYSTEM_CALL; no span is claimed whose blocks may be gone
   */
  async evict(spans: Iterable<number>): Promise<{ spans: number; bytes: number }> {
    const going = [...spans].filter((span) => this.mayEvict(span)).sort((a, b) => a - b);
    const went = { spans: 0, bytes: 0 };
    for (let at = 0; at < going.length; at += punchSpansMax) {
      // By now some of them may be wanted, or even the whole: see {@link complete}.
      if (at > 0 && this.#complete) break;
      const batch = going.slice(at, at + punchSpansMax).filter((span) => this.mayEvict(span));
      if (batch.length === 0) continue;
      await this.#retract(batch, () => this.#free(batch));
      went.spans += batch.length;
      for (const span of batch) went.bytes += this.lengthOf(span);
    }
    return went;
  }

  /**
   * Keeps a span; it is readable from the file when this returns.
   * @throws ClipError DISK_FULL; the span is then not there, and nothing else is touched.
   */
  async write(span: number, bytes: Uint8Array): Promise<void> {
    if (this.#closed || this.has(span)) return;
    const done = await this.#space?.admit(bytes.length);
    let written = false;
    try {
      for (;;) {
        const before = this.#leaving.get(span) ?? this.#writing.get(span);
        if (before === undefined) break;
        await before.catch(() => {});
      }
      if (this.#closed || this.has(span)) return;
      const writing = this.#writeSpan(span, bytes).finally(() => this.#writing.delete(span));
      this.#writing.set(span, writing);
      await writing;
      written = true;
    } finally {
      done?.(written);
    }
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
    await this.#retract([...spans].sort((a, b) => a - b));
  }

  /**
   * Records durably that the whole file has matched its diffID.
   * @throws ClipError DISK_FULL when a span has gone meanwhile
   */
  async markComplete(): Promise<void> {
    const release = this.hold();
    try {
      await this.flush();
      await this.#settleNames?.();
      // In turn with what is taken back: the record of a span that goes must be the later one.
      const marked = this.#flushing.then(() => this.#writeComplete());
      this.#flushing = marked.catch(() => {});
      await marked;
    } finally {
      release();
    }
  }

  /** Claims what can be claimed and closes the files. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await Promise.allSettled(this.#writing.values());
    await this.#flushLogged();
    await Promise.all([this.#data.close(), this.#map.close()]);
  }

  /** Closes the file without claiming anything more and deletes it. */
  async remove(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#flushTimer);
    await Promise.allSettled(this.#writing.values());
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

  async #writeComplete(): Promise<void> {
    this.#checkAllClaimed();
    await this.#writeState(1);
    await this.#map.datasync();
    this.#checkAllClaimed();
    this.#complete = true;
  }

  #checkAllClaimed(): void {
    if (!this.#claimed.includes(0)) return;
    throw new ClipError("DISK_FULL", "a span of the layer is not there any more");
  }

  /** What was and is true of the spans of a range tells whether they were the same all the while. */
  #flagsOf(offset: number, length: number): Buffer {
    const first = spanAt(this.spanStarts, offset);
    const last = spanAt(this.spanStarts, offset + length - 1);
    return Buffer.from(this.spanPresent.slice(first, last + 1));
  }

  #holdRange(offset: number, length: number): () => void {
    const first = spanAt(this.spanStarts, offset);
    const spans: number[] = [];
    for (let span = first; (this.spanStarts[span] ?? Infinity) < offset + length; span++) {
      spans.push(span);
      this.#reading.set(span, (this.#reading.get(span) ?? 0) + 1);
    }
    if (spans.length > 0) this.use.mark(first, first + spans.length - 1);
    return () => {
      for (const span of spans) {
        const left = (this.#reading.get(span) ?? 1) - 1;
        if (left > 0) this.#reading.set(span, left);
        else this.#reading.delete(span);
      }
    };
  }

  async #writeSpan(span: number, bytes: Uint8Array): Promise<void> {
    if (this.#sizeNow() < this.size) await this.#giveUpCutOff();
    const isFirst = !this.#isDevice && this.#lastFlags[span] === 0;
    await this.#writeBytes(bytes, this.spanStarts[span] ?? 0, isFirst);
    if (this.#closed) return;
    const flag = ((this.#lastFlags[span] ?? 0) % 255) + 1;
    this.#lastFlags[span] = flag;
    this.use.note(span, steadyNow());
    Atomics.store(this.spanPresent, span, flag);
    this.#unclaimed.add(span);
    if (this.#unclaimed.size >= flushSpans) void this.#flushLogged();
    else this.#flushTimer ??= setTimeout(() => void this.#flushLogged(), flushDelayMs).unref();
  }

  /**
   * A file that was cut short grows again with the next write behind its end. What was there before is
   * given up first: it would be read as zeros.
   */
  async #giveUpCutOff(): Promise<void> {
    const size = this.#sizeNow();
    const isCutOff = (span: number) => this.has(span) && (this.spanStarts[span + 1] ?? 0) > size;
    const lost = [...this.spanPresent.keys()].filter(isCutOff);
    if (lost.length > 0) await this.#retract(lost);
    // Another write may have found it out first.
    else await Promise.all(this.#leaving.values());
    if (this.#mapIsBehind) {
      throw new ClipError("SYSTEM_CALL", `${this.path} was cut short, which cannot be recorded`);
    }
  }

  async #writeBytes(bytes: Uint8Array, offset: number, isFirst: boolean): Promise<void> {
    try {
      await writeFully(this.#data, bytes, offset);
    } catch (error) {
      if (!isClipError(error, "DISK_FULL")) throw error;
      // What was written of it is of no use to anyone, unless there were bytes that the kernel may
      // be reading by itself.
      if (isFirst && !this.#mapIsBehind) await this.#punch(offset, bytes.length).catch(() => {});
      if ((await this.#space?.relieve(bytes.length)) !== true) throw error;
      await writeFully(this.#data, bytes, offset);
    }
  }

  async #free(spans: readonly number[]): Promise<void> {
    for (const { first, last } of runsOf(spans)) {
      const start = this.spanStarts[first] ?? 0;
      await this.#punch(start, (this.spanStarts[last + 1] ?? start) - start);
    }
  }

  /** Takes back, durably, that these spans (in order) are there. They stay away until `after`. */
  async #retract(spans: readonly number[], after = async () => {}): Promise<void> {
    for (const span of spans) this.#forget(span);
    this.#complete = false;
    const gone = this.#flushing.then(() => this.#writeRetraction(spans)).then(after);
    const settled = gone.catch(() => {});
    this.#flushing = settled;
    for (const span of spans) this.#leaving.set(span, settled);
    try {
      await gone;
    } finally {
      for (const span of spans) this.#leaving.delete(span);
    }
  }

  async #writeRetraction(spans: readonly number[]): Promise<void> {
    try {
      await this.#writeState(0);
      await this.#writeClaims(spans[0] ?? 0, spans.at(-1) ?? 0);
      await this.#map.datasync();
    } catch (error) {
      this.#mapIsBehind = true;
      throw error;
    }
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

/** Neighbours among spans in order. */
function* runsOf(spans: readonly number[]): Generator<{ first: number; last: number }> {
  for (let at = 0; at < spans.length; at++) {
    const first = spans[at] ?? 0;
    while (spans[at + 1] === (spans[at] ?? 0) + 1) at++;
    yield { first, last: spans[at] ?? first };
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
