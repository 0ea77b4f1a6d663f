/** The layer indexes that this node has: one file each in one directory. */
import { randomUUID } from "node:crypto";
import { mkdir, open, readdir, rename, rm, stat, utimes } from "node:fs/promises";
import { join } from "node:path";
import { type Digest, digestKey, digestOf, isDigest } from "../base/digest.ts";
import { ClipError, describeError, isClipError } from "../base/errors.ts";
import type { RangeSource } from "../base/range.ts";
import type { Log } from "../telemetry/log.ts";
import { corruptIndex } from "./failure.ts";
import type { PublishedIndex } from "./published.ts";
import { type LayerIndexReader, openLayerIndex } from "./reader.ts";
import { fileSource, prefixedSource } from "./sources.ts";
import { SwitchingSource } from "./switching-source.ts";

/** What an {@link IndexStore} needs. */
export interface IndexStoreOptions {
  directory: string;
  /** The oldest indexes are removed when all together are larger than this. */
  bytesMax: number;
  log: Log;
}

const temporarySuffix = ".new";

/** A published index that is open, of which the rest is to be fetched. */
interface Adopted {
  digest: Digest;
  /** Its beginning. */
  prefix: Buffer;
  remote: RangeSource;
  /** What it is read from until it is here. */
  source: SwitchingSource;
}

/** A published index that is being fetched to be kept. */
interface Fetch {
  controller: AbortController;
  /** Never fails. */
  done: Promise<void>;
}

/** Owns its directory. Indexes are written whole or not at all, and survive a crash. */
export class IndexStore {
  readonly #options: IndexStoreOptions;
  readonly #closing = new AbortController();
  /** Published indexes that are being fetched, by the layer that they are of. */
  readonly #background = new Map<Digest, Fetch>();

  constructor(options: IndexStoreOptions) {
    this.#options = options;
  }

  /**
   * Makes the directory and removes what a crash left half written. To be called once, first.
   * @throws ClipError SYSTEM_CALL
   */
  async start(): Promise<void> {
    const { directory } = this.#options;
    await attempt(directory, async () => {
      await mkdir(directory, { recursive: true, mode: 0o700 });
      for (const name of await readdir(directory)) {
        if (name.endsWith(temporarySuffix)) await rm(join(directory, name), { force: true });
      }
    });
  }

  /**
   * The index of a layer. The caller closes it.
   * @returns undefined when there is none, or when it was damaged and has been removed
   */
  async open(layerDigest: Digest): Promise<LayerIndexReader | undefined> {
    const path = this.#path(layerDigest);
    const source = await fileSource(path);
    if (source === undefined) return undefined;
    try {
      const reader = await openLayerIndex(source);
      if (reader.head.layerDigest !== layerDigest) throw corruptIndex("it is of another layer");
      const now = new Date();
      await utimes(path, now, now).catch(() => {});
      return reader;
    } catch (error) {
      await source.close?.();
      if (!isClipError(error)) throw error;
      const fields = { layer: layerDigest, code: error.code, error: describeError(error) };
      this.#options.log.warn(fields, "a damaged index is removed");
      await this.#unlink(layerDigest);
      return undefined;
    }
  }

  /** The whole index of a layer as it is stored; undefined when there is none. */
  async encoded(layerDigest: Digest): Promise<Buffer | undefined> {
    const source = await fileSource(this.#path(layerDigest));
    try {
      return await source?.read(0, source.size);
    } finally {
      await source?.close?.();
    }
  }

  /**
   * Keeps an encoded index, in place of one that is there or on its way; it is on disk when this
   * returns.
   * @throws ClipError DISK_FULL, SYSTEM_CALL
   */
  async put(layerDigest: Digest, encoded: Buffer): Promise<void> {
    await this.#cancel(layerDigest);
    await this.#write(layerDigest, encoded);
  }

  /** Forgets the index of a layer, be it on its way; readers that have it open keep it. */
  async remove(layerDigest: Digest): Promise<void> {
    await this.#cancel(layerDigest);
    await this.#unlink(layerDigest);
  }

  /** The layers that have an index here. */
  async list(): Promise<Digest[]> {
    const names = await readdir(this.#options.directory);
    return names.map((name) => name.replace("_", ":")).filter(isDigest);
  }

  /**
   * Opens the first of the published indexes that is sound: one request brings all but the
   * windows. These are read one by one from where the index was found, until the whole index has
   * been fetched in the background, checked and put into the store. The caller closes the reader.
   * @throws what the last of them failed with
   */
  async adopt(
    layerDigest: Digest,
    published: readonly PublishedIndex[],
    signal?: AbortSignal,
  ): Promise<LayerIndexReader> {
    let failure: unknown = new ClipError("REGISTRY_NOT_FOUND", `no index for ${layerDigest}`);
    for (const candidate of published) {
      try {
        return await this.#adoptOne(layerDigest, candidate, signal);
      } catch (error) {
        if (!isClipError(error) || error.code === "ABORTED") throw error;
        this.#options.log.warn(
          {
            layer: layerDigest,
            index: candidate.digest,
            code: error.code,
            error: describeError(error),
          },
          "a published index is of no use",
        );
        failure = error;
      }
    }
    throw failure;
  }

  /** Resolves when no index is being fetched in the background any more. */
  async settled(): Promise<void> {
    while (this.#background.size > 0) {
      await Promise.all([...this.#background.values()].map(({ done }) => done));
    }
  }

  /** Ends what runs in the background. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.settled();
  }

  async #adoptOne(
    layerDigest: Digest,
    { source: remote, digest, headDigest, prefixBytes }: PublishedIndex,
    signal: AbortSignal | undefined,
  ): Promise<LayerIndexReader> {
    const prefix = await remote.read(0, Math.min(prefixBytes, remote.size), signal);
    const source = new SwitchingSource(prefixedSource(prefix, remote));
    const reader = await openLayerIndex(source, { headDigest, signal });
    if (reader.head.layerDigest !== layerDigest) throw corruptIndex("it is of another layer");
    while (this.#background.has(layerDigest)) await this.#cancel(layerDigest);
    this.#keepInBackground(layerDigest, { digest, prefix, remote, source });
    return reader;
  }

  #keepInBackground(layerDigest: Digest, adopted: Adopted): void {
    const controller = new AbortController();
    const signal = AbortSignal.any([this.#closing.signal, controller.signal]);
    const done = this.#complete(layerDigest, adopted, signal)
      .catch((error: unknown) => {
        if (signal.aborted) return;
        const fields = { layer: layerDigest, index: adopted.digest, error: describeError(error) };
        this.#options.log.warn(fields, "a published index cannot be kept");
      })
      .finally(() => {
        if (this.#background.get(layerDigest) === fetch) this.#background.delete(layerDigest);
      });
    const fetch: Fetch = { controller, done };
    this.#background.set(layerDigest, fetch);
  }

  async #complete(
    layerDigest: Digest,
    { digest, prefix, remote, source }: Adopted,
    signal: AbortSignal,
  ): Promise<void> {
    const rest =
      prefix.length < remote.size
        ? await remote.read(prefix.length, remote.size - prefix.length, signal)
        : Buffer.alloc(0);
    const encoded = Buffer.concat([prefix, rest]);
    if (digestOf(encoded) !== digest) throw corruptIndex("it does not match its digest");
    signal.throwIfAborted();
    await this.#write(layerDigest, encoded);
    const local = await fileSource(this.#path(layerDigest));
    if (local !== undefined) await source.switchTo(local);
  }

  /** Gives up what is being fetched of a layer's index: it must not come after what is done now. */
  async #cancel(layerDigest: Digest): Promise<void> {
    const fetch = this.#background.get(layerDigest);
    fetch?.controller.abort();
    await fetch?.done;
  }

  async #write(layerDigest: Digest, encoded: Buffer): Promise<void> {
    const { directory } = this.#options;
    const temporary = join(directory, `${randomUUID()}${temporarySuffix}`);
    await attempt(directory, async () => {
      try {
        const file = await open(temporary, "wx", 0o600);
        try {
          await file.writeFile(encoded);
          await file.sync();
        } finally {
          await file.close();
        }
        await rename(temporary, this.#path(layerDigest));
      } catch (error) {
        await rm(temporary, { force: true });
        throw error;
      }
      await syncDirectory(directory);
    });
    await this.#evict(layerDigest);
  }

  async #unlink(layerDigest: Digest): Promise<void> {
    await rm(this.#path(layerDigest), { force: true });
  }

  async #evict(kept: Digest): Promise<void> {
    const { directory, bytesMax, log } = this.#options;
    const files = [];
    for (const digest of await this.list()) {
      const found = await stat(join(directory, digestKey(digest))).catch(() => undefined);
      if (found !== undefined) files.push({ digest, size: found.size, usedAt: found.mtimeMs });
    }
    let total = files.reduce((sum, { size }) => sum + size, 0);
    for (const { digest, size } of files.sort((a, b) => a.usedAt - b.usedAt)) {
      if (total <= bytesMax) return;
      if (digest === kept) continue;
      log.info({ layer: digest, bytes: size }, "the oldest index is removed to make room");
      await this.#unlink(digest);
      total -= size;
    }
  }

  #path(layerDigest: Digest): string {
    return join(this.#options.directory, digestKey(layerDigest));
  }
}

// A rename is not on disk before the directory is.
async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

async function attempt(directory: string, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const isFull = code === "ENOSPC" || code === "EDQUOT";
    throw new ClipError(
      isFull ? "DISK_FULL" : "SYSTEM_CALL",
      `cannot write to the index store ${directory}`,
      { cause: error },
    );
  }
}
