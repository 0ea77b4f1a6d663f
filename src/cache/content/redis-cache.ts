/** A content cache in Redis or Valkey, on one server or a cluster. */
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
import type { ContentSource } from "./content-source.ts";
import { pastEnd } from "./failure.ts";
import { forEachParallel, Operations } from "./operations.ts";
import type { RedisAddress } from "./redis-connection.ts";
import { chunkRanges, type Manifest } from "./redis-manifest.ts";
import { RedisObjects } from "./redis-objects.ts";
import { RedisStore } from "./redis-store.ts";

/** Which server, and how objects lie in it. */
export interface RedisCacheOptions {
  /** Default: `redis`. */
  name?: string;
  /** The server; with `cluster` some of its nodes, from which the others are learnt. */
  nodes: readonly { host: string; port: number }[];
  /** Whether the nodes are those of a cluster. Default: false. */
  cluster?: boolean;
  username?: string;
  password?: string;
  /** Number of the database; a cluster has but one. */
  database?: number;
  /** Speak TLS; `ca` are certificates (PEM) to trust instead of the system's. Default: false. */
  tls?: boolean | { ca: string };
  /** Comes before each key. Default: `clip:`. */
  prefix?: string;
  /** Size of the values of which objects consist. Default 1 MiB. */
  chunkBytes?: number;
  /** How long an object is kept after it was stored. Default: until Redis evicts it. */
  ttlSeconds?: number;
  /** Longest wait for a connection. Default 3 s. */
  connectTimeoutMs?: number;
  /** Longest wait for the answer to one command, that for a chunk among them. Default 10 s. */
  commandTimeoutMs?: number;
}

const MiB = 1024 * 1024;
const parallelReads = 4;
const knownManifestsMax = 1024;

/**
 * Opens the cache: loads the client (about 30 ms) and begins to connect. Reads and stores have
 * connections of their own, so that no read waits behind a chunk that is being stored. Memory: a
 * store holds 4 chunks, a read up to 4 parts of chunks. `maxmemory` with `allkeys-lru` or
 * `allkeys-lfu` is a good policy: an object that has lost a chunk is missed, and removed.
 */
export async function openRedisCache(options: RedisCacheOptions): Promise<ContentCache> {
  const ioredis = await import("ioredis");
  const commandTimeoutMs = options.commandTimeoutMs ?? 10_000;
  const { nodes, cluster, username, password, database, tls } = options;
  const address: RedisAddress = {
    nodes,
    ...(cluster === undefined ? {} : { cluster }),
    ...(username === undefined ? {} : { username }),
    ...(password === undefined ? {} : { password }),
    ...(database === undefined ? {} : { database }),
    ...(tls === undefined ? {} : { tls }),
    connectTimeoutMs: options.connectTimeoutMs ?? 3_000,
    silenceMs: commandTimeoutMs,
  };
  const objects = new RedisObjects(ioredis, {
    name: options.name ?? "redis",
    address,
    prefix: options.prefix ?? "clip:",
    commandTimeoutMs,
  });
  return new RedisCache(objects, options);
}

class RedisCache implements ContentCache {
  readonly name: string;
  readonly #objects: RedisObjects;
  readonly #store: RedisStore;
  readonly #operations: Operations;
  /** Least recently used first. One that is out of date leads to chunks that are gone. */
  readonly #knownManifests = new Map<ContentKey, Manifest>();

  constructor(objects: RedisObjects, options: RedisCacheOptions) {
    this.name = objects.name;
    this.#objects = objects;
    this.#store = new RedisStore(objects, {
      chunkBytes: options.chunkBytes ?? MiB,
      ...(options.ttlSeconds === undefined ? {} : { ttlMs: options.ttlSeconds * 1000 }),
    });
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
      // A reader has other tiers; one that insists has none.
      if (options.insist !== true) this.#objects.checkReachable(key);
      const known = this.#knownManifests.get(key);
      const found =
        (known !== undefined && (await this.#readKnown(key, known, offset, target, signal))) ||
        (await this.#readFresh(key, offset, target, signal));
      return found ? { from: this.name } : undefined;
    });
  }

  async store(
    key: ContentKey,
    source: ContentSource,
    options: StoreOptions = {},
  ): Promise<StoreOutcome> {
    return this.#operations.runDetached(options.signal, (signal) =>
      this.#store.run(key, source, options.replace === true, signal),
    );
  }

  async has(key: ContentKey, options: CallOptions = {}): Promise<ContentInfo | undefined> {
    return this.#operations.run(options.signal, async (signal) => {
      const manifest = await this.#objects.manifest(key, signal);
      return manifest === undefined ? undefined : { from: this.name, size: manifest.size };
    });
  }

  async remove(key: ContentKey, options: RemoveOptions = {}): Promise<void> {
    await this.#operations.run(options.signal, async (signal) => {
      this.#knownManifests.delete(key);
      await this.#objects.remove(key, signal);
    });
  }

  async close(): Promise<void> {
    await this.#operations.close();
    this.#objects.close();
  }

  /** Reads without asking for the manifest; false when the object may have changed since. */
  async #readKnown(
    key: ContentKey,
    manifest: Manifest,
    offset: number,
    target: Buffer,
    signal: AbortSignal,
  ): Promise<boolean> {
    const inside = offset + target.length <= manifest.size && target.length > 0;
    if (inside && (await this.#readChunks(key, manifest, offset, target, signal))) {
      this.#remember(key, manifest);
      return true;
    }
    this.#knownManifests.delete(key);
    return false;
  }

  async #readFresh(
    key: ContentKey,
    offset: number,
    target: Buffer,
    signal: AbortSignal,
  ): Promise<boolean> {
    const manifest = await this.#objects.manifest(key, signal);
    if (manifest === undefined) return false;
    if (offset + target.length > manifest.size) {
      throw pastEnd(this.name, key, { offset, length: target.length }, manifest.size);
    }
    if (await this.#readChunks(key, manifest, offset, target, signal)) {
      this.#remember(key, manifest);
      return true;
    }
    // Redis has evicted a part of it: what is left is of no use, and in the way of the next store.
    await this.#objects.discard(key, manifest, signal);
    return false;
  }

  /** Fills `target`; false when a chunk is missing. */
  async #readChunks(
    key: ContentKey,
    manifest: Manifest,
    offset: number,
    target: Buffer,
    signal: AbortSignal,
  ): Promise<boolean> {
    let complete = true;
    const ranges = chunkRanges(manifest, offset, target.length);
    await forEachParallel(ranges, parallelReads, signal, async (range, _, linked) => {
      if (!complete) return;
      const bytes = await this.#objects.chunkRange(key, manifest, range, linked);
      linked.throwIfAborted();
      if (bytes === undefined) complete = false;
      else bytes.copy(target, range.at);
    });
    return complete;
  }

  #remember(key: ContentKey, manifest: Manifest): void {
    this.#knownManifests.delete(key);
    this.#knownManifests.set(key, manifest);
    if (this.#knownManifests.size <= knownManifestsMax) return;
    const [oldest] = this.#knownManifests.keys();
    if (oldest !== undefined) this.#knownManifests.delete(oldest);
  }
}
