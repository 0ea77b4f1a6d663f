/** What directories take up on disk. */
import type { BigIntStats } from "node:fs";
import { lstat, readdir } from "node:fs/promises";
import { Semaphore } from "../base/concurrency.ts";
import { ClipError } from "../base/errors.ts";
import type { SnapshotUsage } from "./snapshot.ts";

/**
 * Blocks and inodes of the tree at `path`, itself included; a file with several names counts once.
 * Other file systems mounted in it do not count. What vanishes meanwhile does not either.
 * @throws ClipError ABORTED
 */
export async function diskUsage(path: string, signal?: AbortSignal): Promise<SnapshotUsage> {
  const usage: SnapshotUsage = { bytes: 0, inodes: 0 };
  const seen = new Set<bigint>();
  const root = await statIfThere(path);
  if (root === undefined) return usage;
  // Names need not be UTF-8.
  const directories = [Buffer.from(path)];
  count(root);
  for (let at = directories.pop(); at !== undefined; at = directories.pop()) {
    for (const name of await namesIn(at)) {
      if (signal?.aborted === true) throw new ClipError("ABORTED", "the measuring was given up");
      const child = Buffer.concat([at, separator, name]);
      const stats = await statIfThere(child);
      if (stats === undefined || stats.dev !== root.dev) continue;
      count(stats);
      if (stats.isDirectory()) directories.push(child);
    }
  }
  return usage;

  function count(stats: BigIntStats): void {
    if (!stats.isDirectory() && stats.nlink > 1n) {
      if (seen.has(stats.ino)) return;
      seen.add(stats.ino);
    }
    usage.bytes += Number(stats.blocks) * 512;
    usage.inodes++;
  }
}

/** Remembers measurements for a while, and makes one at a time. */
export class UsageMeter {
  readonly #keepMs: number;
  readonly #turns = new Semaphore(1);
  readonly #measured = new Map<string, { until: number; usage: Promise<SnapshotUsage> }>();
  readonly #closing = new AbortController();

  constructor(keepMs: number) {
    this.#keepMs = keepMs;
  }

  /** The usage of `path`, at most `keepMs` old. @throws ClipError CLOSED */
  async measure(path: string): Promise<SnapshotUsage> {
    const known = this.#measured.get(path);
    if (known !== undefined && performance.now() < known.until) return known.usage;
    const usage = this.#turns.run(() => diskUsage(path, this.#closing.signal));
    const entry = { until: Infinity, usage };
    this.#measured.set(path, entry);
    try {
      return await usage;
    } catch (error) {
      this.forget(path);
      throw this.#closing.signal.aborted
        ? new ClipError("CLOSED", "clip is stopping", { cause: error })
        : error;
    } finally {
      entry.until = performance.now() + this.#keepMs;
    }
  }

  /** Drops what is known of `path`. */
  forget(path: string): void {
    this.#measured.delete(path);
  }

  close(): void {
    this.#closing.abort();
  }
}

const separator = Buffer.from("/");

async function namesIn(path: Buffer): Promise<Buffer[]> {
  try {
    return await readdir(path, { encoding: "buffer" });
  } catch (error) {
    if (isMissing(error)) return [];
    throw error;
  }
}

async function statIfThere(path: string | Buffer): Promise<BigIntStats | undefined> {
  try {
    return await lstat(path, { bigint: true });
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

function isMissing(error: unknown): boolean {
  return (
    error instanceof Error &&
    "code" in error &&
    (error.code === "ENOENT" || error.code === "ENOTDIR")
  );
}
