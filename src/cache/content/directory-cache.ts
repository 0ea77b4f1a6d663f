/**
 * A content cache in a directory that the nodes of the cluster share (NFS, EFS, CephFS, JuiceFS), or
 * that one node has for itself.
 */
import { randomBytes } from "node:crypto";
import { link, mkdir, open, readdir, rename, rm, stat, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { Semaphore } from "../../base/concurrency.ts";
import {
  checkRange,
  type CallOptions,
  type ContentCache,
  type ContentHit,
  type ContentInfo,
  type ContentKey,
  type ReadOptions,
  type RemoveOptions,
  type StoreOptions,
  type StoreOutcome,
} from "./content-cache.ts";
import { exactChunks, type ContentSource } from "./content-source.ts";
import { fileError, isMissing, systemCode } from "./directory-failure.ts";
import { cacheError, pastEnd } from "./failure.ts";
import { Operations, withDeadline } from "./operations.ts";

/** Where the directory is and how patient to be with it. */
export interface DirectoryCacheOptions {
  /** Default: `directory`. */
  name?: string;
  /** The directory. It must exist: an empty mount point must not be taken for the cache. */
  path: string;
  /** Longest wait for one step: the read of a range, a piece written, a sync. Default 30 s. */
  stepTimeoutMs?: number;
  /**
   * File operations at the same time, default 2. A network file system that is dead holds each
   * thread that touches it, and Node has 4 of them for all files (UV_THREADPOOL_SIZE).
   */
  parallel?: number;
}

const chunkBytes = 1024 * 1024;
// Synced as it goes, so that no single sync at the end has a whole layer to write.
const syncBytes = 32 * 1024 * 1024;
const incomingName = ".incoming";
const staleMs = 24 * 3600 * 1000;
// A dead server or a link that a file system cannot make: then the rename must do.
const withoutLinks = new Set(["EPERM", "EOPNOTSUPP", "ENOTSUP", "ENOSYS", "EMLINK"]);

/**
 * Opens the cache; touches nothing yet. One file a key. Files are written under another name,
 * synced and then linked, so that a file with the right name is whole, on whatever node. Memory: a
 * store holds 1 MiB, a read as much again as its target.
 */
export function openDirectoryCache(options: DirectoryCacheOptions): ContentCache {
  return new DirectoryCache(options);
}

class DirectoryCache implements ContentCache {
  readonly name: string;
  readonly #path: string;
  readonly #incoming: string;
  readonly #stepTimeoutMs: number;
  readonly #permits: Semaphore;
  readonly #operations: Operations;
  #swept = false;

  constructor(options: DirectoryCacheOptions) {
    this.name = options.name ?? "directory";
    this.#path = options.path;
    this.#incoming = join(options.path, incomingName);
    this.#stepTimeoutMs = options.stepTimeoutMs ?? 30_000;
    this.#permits = new Semaphore(options.parallel ?? 2);
    this.#operations = new Operations(this.name);
  }

  async read(
    key: ContentKey,
    offset: number,
    target: Buffer,
    options: ReadOptions = {},
  ): Promise<ContentHit | undefined> {
    checkRange(offset, target.length);
    return this.#operations.run(options.signal, async (signal) => {
      const range = { offset, length: target.length };
      const bytes = await this.#step(`read of ${key}`, signal, () => this.#readRange(key, range));
      if (bytes === undefined) return undefined;
      bytes.copy(target);
      return { from: this.name };
    });
  }

  async store(
    key: ContentKey,
    source: ContentSource,
    options: StoreOptions = {},
  ): Promise<StoreOutcome> {
    return this.#operations.run(options.signal, async (signal) => {
      const replace = options.replace === true;
      if (!replace && (await this.#stat(key, signal)) !== undefined) return "present";
      await this.#prepareIncoming(signal);
      const temporary = join(this.#incoming, `${key}.${randomBytes(8).toString("hex")}`);
      try {
        await this.#write(temporary, source, signal);
        return await this.#step(`publication of ${key}`, signal, () =>
          publish(temporary, join(this.#path, key), replace),
        );
      } finally {
        // Bounded on its own: what ended the store must not leave the file behind.
        await this.#step("removal of a partial file", undefined, () =>
          rm(temporary, { force: true }),
        ).catch(() => {});
      }
    });
  }

  async has(key: ContentKey, options: CallOptions = {}): Promise<ContentInfo | undefined> {
    return this.#operations.run(options.signal, async (signal) => {
      const size = await this.#stat(key, signal);
      return size === undefined ? undefined : { from: this.name, size };
    });
  }

  async remove(key: ContentKey, options: RemoveOptions = {}): Promise<void> {
    await this.#operations.run(options.signal, (signal) =>
      this.#step(`removal of ${key}`, signal, () => rm(join(this.#path, key), { force: true })),
    );
  }

  async close(): Promise<void> {
    await this.#operations.close();
  }

  /** The bytes in a buffer of their own: a read that nobody waits for any more still fills it. */
  async #readRange(
    key: ContentKey,
    range: { offset: number; length: number },
  ): Promise<Buffer | undefined> {
    const file = await this.#openObject(key);
    if (file === undefined) return undefined;
    try {
      const { size } = await file.stat();
      if (range.offset + range.length > size) throw pastEnd(this.name, key, range, size);
      const bytes = Buffer.allocUnsafe(range.length);
      for (let done = 0; done < bytes.length;) {
        const { bytesRead } = await file.read(
          bytes,
          done,
          bytes.length - done,
          range.offset + done,
        );
        if (bytesRead === 0) throw pastEnd(this.name, key, range, range.offset + done);
        done += bytesRead;
      }
      return bytes;
    } finally {
      await file.close();
    }
  }

  async #openObject(key: ContentKey): Promise<FileHandle | undefined> {
    try {
      return await open(join(this.#path, key), "r");
    } catch (error) {
      if (!isMissing(error)) throw error;
      await this.#requireDirectory();
      return undefined;
    }
  }

  async #stat(key: ContentKey, signal: AbortSignal): Promise<number | undefined> {
    return this.#step(`look-up of ${key}`, signal, async () => {
      try {
        const found = await stat(join(this.#path, key));
        if (found.isFile()) return found.size;
        throw cacheError("CACHE_PROTOCOL", this.name, `${key} is not a file`);
      } catch (error) {
        if (!isMissing(error)) throw error;
        await this.#requireDirectory();
        return undefined;
      }
    });
  }

  /** A directory that is gone is a fault, not a miss. */
  async #requireDirectory(): Promise<void> {
    const found = await stat(this.#path).catch((error: unknown) => {
      if (isMissing(error)) return undefined;
      throw error;
    });
    if (found?.isDirectory() !== true) {
      throw cacheError("CACHE_UNAVAILABLE", this.name, `${this.#path} is no directory`, {
        hint: "Create it, or mount the file system that has it.",
      });
    }
  }

  async #prepareIncoming(signal: AbortSignal): Promise<void> {
    await this.#step("preparation", signal, async () => {
      await this.#requireDirectory();
      await mkdir(this.#incoming).catch((error: unknown) => {
        if (systemCode(error) !== "EEXIST") throw error;
      });
      if (this.#swept) return;
      this.#swept = true;
      await removeStale(this.#incoming, Date.now() - staleMs);
    });
  }

  async #write(path: string, source: ContentSource, signal: AbortSignal): Promise<void> {
    const file = await this.#open(path, signal);
    try {
      let unsynced = 0;
      let offset = 0;
      for await (const chunk of exactChunks(source, chunkBytes, signal)) {
        const at = offset;
        await this.#step("write", signal, () => writeFully(file, chunk, at));
        offset += chunk.length;
        unsynced += chunk.length;
        if (unsynced < syncBytes) continue;
        await this.#step("sync", signal, () => file.datasync());
        unsynced = 0;
      }
      await this.#step("sync", signal, () => file.sync());
    } finally {
      await this.#step("closing", undefined, () => file.close()).catch(() => {});
    }
  }

  /** Creates a file; one that comes after the wait has ended is closed again. */
  async #open(path: string, signal: AbortSignal): Promise<FileHandle> {
    return this.#step("creation of a file", signal, async (stillWanted) => {
      const file = await open(path, "wx", 0o644);
      if (stillWanted.aborted) await file.close();
      return file;
    });
  }

  /**
   * One bounded step. Its permit is held until the system calls have really returned, however long
   * that takes: that keeps a dead file system from taking all threads.
   */
  #step<Value>(
    what: string,
    signal: AbortSignal | undefined,
    work: (signal: AbortSignal) => Promise<Value>,
  ): Promise<Value> {
    const name = `content cache ${this.name}: ${what}`;
    return withDeadline(name, this.#stepTimeoutMs, [signal], (bounded) =>
      this.#permits.run(async () => {
        try {
          return await work(bounded);
        } catch (error) {
          throw fileError(this.name, what, error);
        }
      }, bounded),
    );
  }
}

async function writeFully(file: FileHandle, bytes: Buffer, offset: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, offset + done);
    done += bytesWritten;
  }
}

/**
 * Gives a finished file its name. The directory is not synced: a name that a crash takes back is a
 * miss, and no miss is worth a write barrier on a shared file system.
 */
async function publish(
  temporary: string,
  path: string,
  replace: boolean,
): Promise<"stored" | "present"> {
  if (!replace) {
    try {
      await link(temporary, path);
      return "stored";
    } catch (error) {
      const code = systemCode(error) ?? "";
      if (code === "EEXIST") return "present";
      if (!withoutLinks.has(code)) throw error;
    }
  }
  await rename(temporary, path);
  return "stored";
}

/** Removes what nodes that died in the middle of a store left behind before `time`. */
async function removeStale(directory: string, time: number): Promise<void> {
  for (const name of await readdir(directory)) {
    const path = join(directory, name);
    // Another node may be sweeping too.
    const found = await stat(path).catch(() => undefined);
    if (found?.isFile() === true && found.mtimeMs < time) await rm(path, { force: true });
  }
}
