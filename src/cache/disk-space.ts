/** How much room the disk cache has, and how much of it has to be made. */
import { lstat, readdir, statfs } from "node:fs/promises";
import { join } from "node:path";

const MiB = 1024 * 1024;
/** Longest time for which the free space of a file system, which others use too, is taken as known. */
const freeBytesAgeMs = 1_000;
/** Largest distance between two water marks. */
const marginBytesMax = 1024 * MiB;

/** What the disk cache may take. */
export interface DiskLimits {
  /** Most bytes on disk of all layers; 0: no limit. */
  bytesMax: number;
  /** Bytes that stay free on the file system; 0: none in particular. */
  freeBytesMin: number;
}

/** A file in the cache directory. */
export interface FileOnDisk {
  name: string;
  /** Bytes of its blocks. */
  bytes: number;
  modifiedAt: number;
}

/**
 * How far things may go: `limit` is never passed by a span that is written, at `high` room begins to
 * be made, and down to `low` it is made.
 */
export type WaterMark = "limit" | "high" | "low";

const distance: Record<WaterMark, number> = { limit: 0, high: 1, low: 2 };

/**
 * Keeps count of the bytes on disk. Counted exactly by {@link measure}; in between, what is written
 * and freed is added up.
 */
export class DiskSpace {
  readonly limits: DiskLimits;
  readonly #directory: string;
  readonly #freeBytes: () => Promise<number>;
  #used = 0;
  #reserved = 0;
  #free = Infinity;
  #freeKnownAt = -Infinity;

  constructor(directory: string, limits: DiskLimits, freeBytes = () => freeBytesOf(directory)) {
    this.#directory = directory;
    this.limits = limits;
    this.#freeBytes = freeBytes;
  }

  /** Bytes on disk, those that are being written included. */
  get used(): number {
    return this.#used + this.#reserved;
  }

  /** Bytes that are free on the file system, as far as is known. */
  get free(): number {
    return this.#free - this.#reserved;
  }

  /** Counts what is there. */
  async measure(): Promise<FileOnDisk[]> {
    const files: FileOnDisk[] = [];
    for (const name of await readdir(this.#directory)) {
      const found = await lstat(join(this.#directory, name)).catch(() => undefined);
      if (found?.isFile() !== true) continue;
      files.push({ name, bytes: found.blocks * 512, modifiedAt: found.mtimeMs });
    }
    this.#used = files.reduce((sum, { bytes }) => sum + bytes, 0);
    this.#freeKnownAt = -Infinity;
    await this.refresh();
    return files;
  }

  /** Looks how much is free, if that is not known well enough. */
  async refresh(): Promise<void> {
    if (performance.now() - this.#freeKnownAt < freeBytesAgeMs) return;
    this.#freeKnownAt = performance.now();
    this.#free = await this.#freeBytes();
  }

  /** `bytes` are about to be written; to be told when they have been, or could not be. */
  reserve(bytes: number): (written: boolean) => void {
    this.#reserved += bytes;
    return (written) => {
      this.#reserved -= bytes;
      if (written) this.#add(bytes);
    };
  }

  /** `bytes` have been freed. */
  freed(bytes: number): void {
    this.#add(-bytes);
  }

  /** Bytes that have to go until this mark is kept; negative: bytes that may come. */
  excess(mark: WaterMark): number {
    return this.#excessOf(mark, this.used, this.free);
  }

  /** As {@link excess}, but for what has been written already. */
  writtenExcess(mark: WaterMark): number {
    return this.#excessOf(mark, this.#used, this.#free);
  }

  #excessOf(mark: WaterMark, used: number, free: number): number {
    const { bytesMax, freeBytesMin } = this.limits;
    const steps = distance[mark];
    const overLimit = bytesMax === 0 ? -Infinity : used - bytesMax + steps * marginOf(bytesMax);
    const underFloor =
      freeBytesMin === 0 ? -Infinity : freeBytesMin + steps * marginOf(freeBytesMin) - free;
    return Math.max(overLimit, underFloor);
  }

  #add(bytes: number): void {
    this.#used = Math.max(0, this.#used + bytes);
    this.#free -= bytes;
  }
}

function marginOf(bytes: number): number {
  return Math.min(bytes / 16, marginBytesMax);
}

async function freeBytesOf(directory: string): Promise<number> {
  const { bavail, bsize } = await statfs(directory);
  return bavail * bsize;
}
