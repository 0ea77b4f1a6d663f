/** The disk cache: one sparse file per layer in one flat directory, shared by all images. */
import { fstatSync } from "node:fs";
import {
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  writeFile,
  type FileHandle,
} from "node:fs/promises";
import { join } from "node:path";
import { steadyNow } from "../base/clock.ts";
import { digestFromKey, digestKey, type Digest } from "../base/digest.ts";
import { ClipError, describeError } from "../base/errors.ts";
import { KeyedQueue } from "../base/keyed-queue.ts";
import { spanMapBytesMax } from "../base/limits.ts";
import { punchHole } from "../os/libc.ts";
import type { Log } from "../telemetry/log.ts";
import { DiskSpace, type DiskLimits, type FileOnDisk } from "./disk-space.ts";
import { Evictor, type ClosedLayer, type DiskCacheState, type EvictionRank } from "./evictor.ts";
import { asDiskError, syncDirectory, writeFileDurably } from "./files.ts";
import { LayerFile, layerFileBytesOnDisk, removeLayerFile } from "./layer-file.ts";
import {
  decodeSpanMap,
  encodeSpanMapHeader,
  type SpanMapHeader,
  type SpanTable,
} from "./span-map.ts";

/** What the file of a span map has behind the name of its layer's file. */
export const mapSuffix = ".spans";
const pullSuffix = ".pull";

/** Where the disk cache is kept. */
export interface DiskCacheOptions {
  directory: string;
  /** Default: none. */
  limits?: DiskLimits;
  /** Bytes that are free on the file system; default: what it says. */
  freeBytes?: () => Promise<number>;
  log: Log;
}

/** What is on disk of a layer, as its span map says. */
export interface SpanClaims extends SpanMapHeader {
  /** By span, 1 where it is there. */
  present: Uint8Array;
}

/** Whoever knows what layers are used for. */
export interface LayerUsers {
  /** Layers whose file the kernel may be reading by itself: no byte of it may go. */
  devices(): ReadonlySet<Digest>;
  /** Layers that other nodes are still to get from here: they go after those that are not. */
  unshared(): ReadonlySet<Digest>;
  /** Layers that come back only as a whole: they go when nothing else is left that may go. */
  costly(): ReadonlySet<Digest>;
  /** Runs `remove` unless the layer is in use or about to be; whether it ran. */
  ifUnused(layerDigest: Digest, remove: () => Promise<void>): Promise<boolean>;
}

/** A whole pull of a layer. */
export interface LayerPull {
  /** Where its uncompressed bytes go before they are adopted. */
  path: string;
  /** Fires with DISK_FULL when the layer is larger than what room could be made for. */
  signal: AbortSignal;
  /** Deletes what has not been adopted. */
  end(): Promise<void>;
}

/**
 * Layers on disk, by layer digest. A layer is a file `sha256_<hex>` that holds the uncompressed tar,
 * as far as it is there, and a file `sha256_<hex>.spans` that says what of it is.
 */
export class DiskCache {
  readonly directory: string;
  readonly #log: Log;
  readonly #open = new Map<Digest, LayerFile>();
  /** Layers that are complete, but not yet recorded as such on disk. */
  readonly #settling = new Map<Digest, Promise<void>>();
  /** When layers were last used, in milliseconds since 1970, as far as it was noted. */
  readonly #usedAt = new Map<Digest, number>();
  readonly #evictor: Evictor;
  /** Opening and evicting one layer exclude each other. */
  readonly #queue = new KeyedQueue();
  #users: LayerUsers = {
    devices: () => new Set(),
    unshared: () => new Set(),
    costly: () => new Set(),
    ifUnused: async (_, remove) => {
      await remove();
      return true;
    },
  };

  private constructor(options: DiskCacheOptions) {
    const { directory, log, limits = { bytesMax: 0, freeBytesMin: 0 }, freeBytes } = options;
    this.directory = directory;
    this.#log = log;
    this.#evictor = new Evictor({
      space: new DiskSpace(directory, limits, freeBytes),
      openFiles: (rank) => this.#evictableFiles(rank),
      closedLayers: (files) => this.#closedLayers(files),
      log,
    });
  }

  /** Opens the cache in `directory`, which is created if need be. */
  static async open(options: DiskCacheOptions): Promise<DiskCache> {
    await mkdir(options.directory, { recursive: true, mode: 0o700 });
    const cache = new DiskCache(options);
    await cache.#evictor.start();
    return cache;
  }

  /** From now on nothing is evicted that `users` need. To be called before layers are used. */
  setUsers(users: LayerUsers): void {
    this.#users = users;
  }

  /** What is on disk, its limits, and what has been evicted. */
  get state(): DiskCacheState {
    return this.#evictor.state;
  }

  /** Bytes that may be written before anything has to go; Infinity without limits. */
  get room(): number {
    return this.#evictor.room;
  }

  /** Nothing of a layer that is open is evicted until the returned function is called. */
  hold(layerDigest: Digest): () => void {
    return this.#open.get(layerDigest)?.hold() ?? (() => {});
  }

  /** A layer is being used, whether its bytes are read or not. */
  noteUse(layerDigest: Digest): void {
    this.#usedAt.set(layerDigest, steadyNow());
  }

  /**
   * Opens the file of a layer. What an earlier run left is taken over if it was written for the same
   * span table; otherwise the file starts empty.
   * @throws ClipError DISK_FULL
   */
  openLayer(layerDigest: Digest, table: SpanTable): Promise<LayerFile> {
    return this.#queue.run(layerDigest, () => this.#openLayer(layerDigest, table));
  }

  async #openLayer(layerDigest: Digest, table: SpanTable): Promise<LayerFile> {
    if (this.#open.has(layerDigest)) {
      throw new ClipError("ARGUMENT_INVALID", `the cache file of ${layerDigest} is open already`);
    }
    await this.#settling.get(layerDigest);
    const { dataPath, mapPath } = this.#paths(layerDigest);
    const found = await readMatchingMap(dataPath, mapPath, table);
    // The kernel may be reading this very file: it is kept, and right bytes are written over it.
    const isDevice = this.#users.devices().has(layerDigest);
    if (found === undefined) {
      if (isDevice) await this.#emptyMap(dataPath, mapPath, table);
      else await this.#createEmpty(dataPath, mapPath, table);
      this.#evictor.added((await stat(mapPath)).blocks * 512);
    }

    const present = new Uint8Array(new SharedArrayBuffer(table.starts.length - 1));
    if (found !== undefined) present.set(found.complete ? present.fill(1) : found.present);
    const data = await open(dataPath, "r+");
    const map = await open(mapPath, "r+").catch(async (error: unknown) => {
      await data.close();
      throw error;
    });
    const punch = (offset: number, length: number) => punchHole(data.fd, offset, length);
    if (found !== undefined && !isDevice) await this.#freeUnclaimed(data, table, present, punch);
    const file = new LayerFile({
      dataPath,
      mapPath,
      data,
      map,
      table,
      present,
      complete: found?.complete ?? false,
      ...(found === undefined ? { settleNames: () => syncDirectory(this.directory) } : {}),
      sizeNow: () => fstatSync(data.fd).size,
      punch,
      isDevice,
      space: this.#evictor,
      usedAt: this.#usedAt.get(layerDigest) ?? (await data.stat()).mtimeMs,
      log: this.#log,
    });
    this.#open.set(layerDigest, file);
    return file;
  }

  /**
   * Begins a whole pull of a layer of so many compressed bytes.
   * @throws ClipError DISK_FULL
   */
  async beginPull(layerDigest: Digest, compressedSize: number): Promise<LayerPull> {
    const path = `${this.#paths(layerDigest).dataPath}${pullSuffix}`;
    await rm(path, { force: true });
    const pull = await this.#evictor.beginPull(compressedSize);
    return {
      path,
      signal: pull.signal,
      end: async () => {
        pull.end();
        await rm(path, { force: true });
      },
    };
  }

  /**
   * Takes the file that a {@link LayerPull} has written, whose diffID has been checked, as the complete layer. It can
   * be used at once; that it is complete is recorded in the background, when its bytes are durable.
   * A crash before that leaves a layer of which nothing is claimed. The layer must not be open.
   */
  async adoptComplete(layerDigest: Digest, table: SpanTable): Promise<void> {
    const { dataPath, mapPath } = this.#paths(layerDigest);
    await rm(mapPath, { force: true });
    await syncDirectory(this.directory);
    await rename(`${dataPath}${pullSuffix}`, dataPath);
    const settling = this.#settle(dataPath, mapPath, table)
      .catch((error: unknown) => {
        const fields = { layer: layerDigest, error: describeError(error) };
        this.#log.warn(fields, "a complete layer could not be recorded as such");
      })
      .finally(() => this.#settling.delete(layerDigest));
    this.#settling.set(layerDigest, settling);
    this.noteUse(layerDigest);
    await this.#evictor.look();
  }

  /** Where the bytes of a layer are, or would be. */
  dataPath(layerDigest: Digest): string {
    return this.#paths(layerDigest).dataPath;
  }

  /** The file of a layer of `size` bytes whose every byte is there and matched; open or not. */
  async completePath(layerDigest: Digest, size: number): Promise<string | undefined> {
    const { dataPath, mapPath } = this.#paths(layerDigest);
    const file = this.#open.get(layerDigest);
    if (file !== undefined) return file.complete ? dataPath : undefined;
    if (this.#settling.has(layerDigest)) return dataPath;
    const found = await readMap(dataPath, mapPath);
    return found?.header.complete === true && found.header.size === size ? dataPath : undefined;
  }

  /** What the map on disk of a layer that is not open claims; undefined when there is none. */
  async claims(layerDigest: Digest): Promise<SpanClaims | undefined> {
    const { dataPath, mapPath } = this.#paths(layerDigest);
    if (this.#open.has(layerDigest) || this.#settling.has(layerDigest)) return undefined;
    const found = await readMap(dataPath, mapPath);
    return found === undefined ? undefined : { ...found.header, present: found.present };
  }

  /**
   * Forgets durably what there is of a layer that is not open, without a byte of it being changed: the
   * kernel may be reading it.
   */
  async disown(layerDigest: Digest): Promise<void> {
    await this.#queue.run(layerDigest, async () => {
      await this.#settling.get(layerDigest);
      await rm(this.#paths(layerDigest).mapPath, { force: true });
      await syncDirectory(this.directory);
    });
  }

  /** Closes a layer's file; it stays on disk. */
  async closeLayer(layerDigest: Digest): Promise<void> {
    const file = this.#open.get(layerDigest);
    this.#open.delete(layerDigest);
    await file?.close();
  }

  /** Deletes what is on disk of a layer, open or not. */
  async removeLayer(layerDigest: Digest): Promise<void> {
    const { dataPath, mapPath } = this.#paths(layerDigest);
    const file = this.#open.get(layerDigest);
    this.#open.delete(layerDigest);
    await this.#settling.get(layerDigest);
    if (file === undefined) await removeLayerFile(dataPath, mapPath);
    else await file.remove();
    await rm(`${dataPath}${pullSuffix}`, { force: true });
    this.#usedAt.delete(layerDigest);
    await this.#evictor.look();
  }

  /** Bytes that a layer really takes on disk. */
  async bytesOnDisk(layerDigest: Digest): Promise<number> {
    const { dataPath, mapPath } = this.#paths(layerDigest);
    return layerFileBytesOnDisk(dataPath, mapPath);
  }

  /** Deletes every file that does not belong to one of these layers: what a crash left behind. */
  async sweep(keep: Iterable<Digest>): Promise<void> {
    const names = new Set<string>();
    for (const digest of keep) names.add(digestKey(digest)).add(digestKey(digest) + mapSuffix);
    for (const name of await readdir(this.directory)) {
      if (!names.has(name)) await rm(join(this.directory, name), { force: true, recursive: true });
    }
  }

  /** Closes every layer. */
  async close(): Promise<void> {
    await this.#evictor.close();
    await Promise.all([...this.#open.keys()].map((digest) => this.closeLayer(digest)));
    await Promise.all(this.#settling.values());
  }

  #paths(layerDigest: Digest): { dataPath: string; mapPath: string } {
    const dataPath = join(this.directory, digestKey(layerDigest));
    return { dataPath, mapPath: dataPath + mapSuffix };
  }

  #evictableFiles(rank?: EvictionRank): LayerFile[] {
    const devices = this.#users.devices();
    const rankOf = this.#ranks();
    return [...this.#open]
      .filter(([digest]) => !devices.has(digest) && (rank ?? rankOf(digest)) === rankOf(digest))
      .map(([, file]) => file);
  }

  #ranks(): (digest: Digest) => EvictionRank {
    const costly = this.#users.costly();
    const unshared = this.#users.unshared();
    return (digest) => {
      if (costly.has(digest)) return "costly";
      return unshared.has(digest) ? "unshared" : "ordinary";
    };
  }

  #closedLayers(files: readonly FileOnDisk[]): ClosedLayer[] {
    const mapBytes = new Map(files.map(({ name, bytes }) => [name, bytes]));
    const rankOf = this.#ranks();
    return files.flatMap(({ name, bytes, modifiedAt }) => {
      const digest = digestFromKey(name);
      if (digest === undefined || this.#open.has(digest)) return [];
      return {
        bytes: bytes + (mapBytes.get(name + mapSuffix) ?? 0),
        usedAt: Math.max(modifiedAt, this.#usedAt.get(digest) ?? 0),
        rank: rankOf(digest),
        remove: () => this.#removeUnused(digest),
      };
    });
  }

  async #removeUnused(digest: Digest): Promise<boolean> {
    const { dataPath, mapPath } = this.#paths(digest);
    let removed = false;
    const remove = async () => {
      if (this.#open.has(digest) || this.#settling.has(digest)) return;
      await removeLayerFile(dataPath, mapPath);
      removed = true;
    };
    await this.#users.ifUnused(digest, () => this.#queue.run(digest, remove));
    return removed;
  }

  /** Frees what a crash left in the file of spans that the map does not claim. */
  async #freeUnclaimed(
    data: FileHandle,
    table: SpanTable,
    present: Uint8Array,
    punch: (offset: number, length: number) => Promise<void>,
  ): Promise<void> {
    const { starts } = table;
    let claimed = 0;
    for (let span = 0; span < present.length; span++) {
      if (present[span] !== 0) claimed += (starts[span + 1] ?? 0) - (starts[span] ?? 0);
    }
    // Ends of spans share blocks; less than this is not worth it.
    const tolerated = 8192 * present.length;
    if ((await data.stat()).blocks * 512 <= claimed + tolerated) return;
    for (let first = present.indexOf(0); first >= 0;) {
      const next = present.indexOf(1, first);
      const start = starts[first] ?? 0;
      const end = starts[next < 0 ? present.length : next] ?? start;
      await punch(start, end - start).catch((error: unknown) => {
        this.#log.warn({ error: describeError(error) }, "unused blocks could not be freed");
      });
      first = next < 0 ? -1 : present.indexOf(0, next);
    }
  }

  async #settle(dataPath: string, mapPath: string, table: SpanTable): Promise<void> {
    const data = await open(dataPath, "r+");
    try {
      await data.sync();
    } finally {
      await data.close();
    }
    await syncDirectory(this.directory);
    await writeFileDurably(mapPath, encodeMap(table, true));
  }

  /** Claims nothing of a file that stays as it is, but for its length. */
  async #emptyMap(dataPath: string, mapPath: string, table: SpanTable): Promise<void> {
    await rm(mapPath, { force: true });
    await syncDirectory(this.directory);
    await writeUnclaimed(dataPath, mapPath, table, "a");
  }

  async #createEmpty(dataPath: string, mapPath: string, table: SpanTable): Promise<void> {
    // The old map goes first: it must never stand beside other data. Nothing is synced here, since
    // nothing is claimed yet; what a crash leaves of these files is not taken for a layer.
    await removeLayerFile(dataPath, mapPath);
    await writeUnclaimed(dataPath, mapPath, table, "wx");
  }
}

/** Gives a file its length, and a map that claims nothing of it. */
async function writeUnclaimed(
  dataPath: string,
  mapPath: string,
  table: SpanTable,
  dataFlag: "a" | "wx",
): Promise<void> {
  try {
    const data = await open(dataPath, dataFlag, 0o600);
    try {
      await data.truncate(table.starts.at(-1) ?? 0);
    } finally {
      await data.close();
    }
    await writeFile(mapPath, encodeMap(table, false), { flag: "wx", mode: 0o600 });
  } catch (error) {
    throw asDiskError(error);
  }
}

function encodeMap(table: SpanTable, complete: boolean): Buffer {
  const spanCount = table.starts.length - 1;
  const header = encodeSpanMapHeader({
    spanCount,
    size: table.starts.at(-1) ?? 0,
    tableDigest: table.digest,
    complete,
  });
  return Buffer.concat([header, Buffer.alloc(spanCount, complete ? 1 : 0)]);
}

/** The span map of a layer if it was written for this table. */
async function readMatchingMap(
  dataPath: string,
  mapPath: string,
  table: SpanTable,
): Promise<SpanClaims | undefined> {
  const found = await readMap(dataPath, mapPath);
  if (found === undefined) return undefined;
  const { header, present } = found;
  const same =
    header.spanCount === table.starts.length - 1 &&
    header.size === (table.starts.at(-1) ?? 0) &&
    header.tableDigest === table.digest;
  return same ? { ...header, present } : undefined;
}

/** A well-formed span map beside a data file of the size that it states. */
async function readMap(
  dataPath: string,
  mapPath: string,
): Promise<{ header: SpanMapHeader; present: Uint8Array } | undefined> {
  try {
    const map = await stat(mapPath);
    if (map.size > spanMapBytesMax) return undefined;
    const decoded = decodeSpanMap(await readFile(mapPath));
    if (decoded === undefined || decoded.present.some((one) => one > 1)) return undefined;
    return (await stat(dataPath)).size === decoded.header.size ? decoded : undefined;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
    throw error;
  }
}
