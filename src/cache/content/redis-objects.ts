/** The parts of which objects in Redis consist: reading, writing and dropping them. */
import type { ContentKey } from "./content-cache.ts";
import { cacheError } from "./failure.ts";
import { forEachParallel, withDeadline } from "./operations.ts";
import {
  connectRedis,
  type RedisAddress,
  type RedisCommands,
  type RedisConnection,
  type RedisLibrary,
} from "./redis-connection.ts";
import { redisError } from "./redis-failure.ts";
import {
  chunkCount,
  decodeManifest,
  encodeManifest,
  RedisKeys,
  type ChunkRange,
  type Manifest,
} from "./redis-manifest.ts";

const parallelRemovals = 64;
const removalAttempts = 3;

// The only things that take more than one command: both act on what they have just compared.
const deleteIfEqual = `
if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end
return 0`;
const extendIfEqual = `
if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("PEXPIRE", KEYS[1], ARGV[2]) end
return 0`;

/** What {@link RedisObjects} needs. */
export interface RedisObjectsOptions {
  name: string;
  address: RedisAddress;
  prefix: string;
  commandTimeoutMs: number;
}

/** The objects of one cache, over two connections: one for reads, one for all that changes. */
export class RedisObjects {
  readonly name: string;
  readonly #keys: RedisKeys;
  readonly #commandTimeoutMs: number;
  readonly #connect: () => RedisConnection;
  readonly #reading: RedisConnection;
  #writing: RedisConnection | undefined;

  /** Connects for reading at once; for writing when something is written. */
  constructor(ioredis: RedisLibrary, options: RedisObjectsOptions) {
    this.name = options.name;
    this.#keys = new RedisKeys(options.prefix);
    this.#commandTimeoutMs = options.commandTimeoutMs;
    this.#connect = () => connectRedis(ioredis, options.address);
    this.#reading = this.#connect();
  }

  /**
   * Fails while the server is known to be gone, instead of waiting for the next attempt to reach it.
   * @throws ClipError CACHE_UNAVAILABLE, CACHE_DENIED
   */
  checkReachable(key: ContentKey): void {
    const { outage } = this.#reading;
    if (outage !== undefined) throw redisError(this.name, `read of ${key}`, outage, outage);
  }

  /** The manifest of an object that is complete. */
  async manifest(key: ContentKey, signal: AbortSignal): Promise<Manifest | undefined> {
    const bytes = await this.#manifestBytes(key, signal);
    if (bytes === undefined) return undefined;
    const manifest = decodeManifest(bytes);
    if (manifest !== undefined) return manifest;
    throw cacheError("CACHE_PROTOCOL", this.name, `what is under ${key} is no object of clip`, {
      hint: "Give clip a prefix of its own.",
    });
  }

  /** A part of a chunk; undefined when the chunk is gone. */
  async chunkRange(
    key: ContentKey,
    manifest: Manifest,
    range: ChunkRange,
    signal: AbortSignal,
  ): Promise<Buffer | undefined> {
    const chunk = this.#keys.chunk(key, manifest.upload, range.index);
    const last = range.start + range.length - 1;
    const bytes = await this.#ask(`read of ${key}`, [signal], this.#reading, (commands) =>
      commands.getrangeBuffer(chunk, range.start, last),
    );
    return bytes?.length === range.length ? bytes : undefined;
  }

  /** Writes a chunk that goes away by itself unless {@link keepChunk} follows. */
  async writeChunk(
    key: ContentKey,
    upload: string,
    index: number,
    bytes: Buffer,
    lifeMs: number,
    signal: AbortSignal,
  ): Promise<void> {
    await this.#change(`upload of ${key}`, [signal], (commands) =>
      commands.call("SET", this.#keys.chunk(key, upload, index), bytes, "PX", lifeMs),
    );
  }

  /** Keeps a chunk for `lifeMs`, or for good; false when it is gone. */
  async keepChunk(
    key: ContentKey,
    upload: string,
    index: number,
    lifeMs: number | undefined,
    signal: AbortSignal,
  ): Promise<boolean> {
    const chunk = this.#keys.chunk(key, upload, index);
    const kept = await this.#change(`upload of ${key}`, [signal], (commands) =>
      lifeMs === undefined ? commands.persist(chunk) : commands.pexpire(chunk, lifeMs),
    );
    return kept === 1;
  }

  /** Makes an object visible; false when there is one already and `replace` is not set. */
  async publish(
    key: ContentKey,
    manifest: Manifest,
    options: { lifeMs: number | undefined; replace: boolean },
    signal: AbortSignal,
  ): Promise<boolean> {
    const life = options.lifeMs === undefined ? [] : ["PX", options.lifeMs];
    const condition = options.replace ? [] : ["NX"];
    const bytes = encodeManifest(manifest);
    const reply = await this.#change(`upload of ${key}`, [signal], (commands) =>
      commands.call("SET", this.#keys.manifest(key), bytes, ...life, ...condition),
    );
    return reply === "OK";
  }

  /** Takes the lock of a key for `lifeMs`; false when another client has it. */
  async lock(
    key: ContentKey,
    token: string,
    lifeMs: number,
    signal: AbortSignal,
  ): Promise<boolean> {
    const reply = await this.#change(`lock of ${key}`, [signal], (commands) =>
      commands.call("SET", this.#keys.lock(key), Buffer.from(token), "PX", lifeMs, "NX"),
    );
    return reply === "OK";
  }

  /** Keeps a lock that this client has. */
  async extendLock(
    key: ContentKey,
    token: string,
    lifeMs: number,
    signal: AbortSignal,
  ): Promise<void> {
    await this.#change(`lock of ${key}`, [signal], (commands) =>
      commands.eval(extendIfEqual, 1, this.#keys.lock(key), token, String(lifeMs)),
    );
  }

  /** Gives a lock back, if it is still this client's. */
  async unlock(key: ContentKey, token: string): Promise<void> {
    await this.#change(`lock of ${key}`, [], (commands) =>
      commands.eval(deleteIfEqual, 1, this.#keys.lock(key), token),
    );
  }

  /** Removes whatever is under the key. */
  async remove(key: ContentKey, signal: AbortSignal): Promise<void> {
    for (let attempt = 0; attempt < removalAttempts; attempt++) {
      const bytes = await this.#manifestBytes(key, signal);
      if (bytes === undefined) return;
      if (!(await this.#deleteManifest(key, bytes, [signal]))) continue;
      const manifest = decodeManifest(bytes);
      if (manifest !== undefined) await this.dropChunks(key, manifest);
      return;
    }
  }

  /** Removes an object, unless it has been replaced meanwhile. */
  async discard(key: ContentKey, manifest: Manifest, signal: AbortSignal): Promise<void> {
    const deleted = await this.#deleteManifest(key, encodeManifest(manifest), [signal]);
    if (deleted) await this.dropChunks(key, manifest);
  }

  /** Takes an upload back, whether or not it has become visible. Nothing aborts this. */
  async abandon(key: ContentKey, manifest: Manifest): Promise<void> {
    await this.#deleteManifest(key, encodeManifest(manifest), []);
    await this.dropChunks(key, manifest);
  }

  /**
   * Frees the chunks of an upload that is not, or no longer, visible. Nothing aborts it, since
   * nobody else would find them; the first command that fails ends it.
   */
  async dropChunks(key: ContentKey, manifest: Manifest): Promise<void> {
    const indexes = numbers(chunkCount(manifest));
    const never = new AbortController().signal;
    await forEachParallel(indexes, parallelRemovals, never, async (index) => {
      await this.#change(`removal of ${key}`, [], (commands) =>
        commands.unlink(this.#keys.chunk(key, manifest.upload, index)),
      );
    });
  }

  close(): void {
    this.#reading.close();
    this.#writing?.close();
  }

  async #manifestBytes(key: ContentKey, signal: AbortSignal): Promise<Buffer | undefined> {
    const bytes = await this.#ask(`look-up of ${key}`, [signal], this.#reading, (commands) =>
      commands.getBuffer(this.#keys.manifest(key)),
    );
    return bytes ?? undefined;
  }

  async #deleteManifest(
    key: ContentKey,
    bytes: Buffer,
    signals: readonly AbortSignal[],
  ): Promise<boolean> {
    const deleted = await this.#change(`removal of ${key}`, signals, (commands) =>
      commands.eval(deleteIfEqual, 1, this.#keys.manifest(key), bytes),
    );
    return deleted === 1;
  }

  #change<Value>(
    what: string,
    signals: readonly AbortSignal[],
    work: (commands: RedisCommands) => Promise<Value>,
  ): Promise<Value> {
    this.#writing ??= this.#connect();
    return this.#ask(what, signals, this.#writing, work);
  }

  #ask<Value>(
    what: string,
    signals: readonly AbortSignal[],
    connection: RedisConnection,
    work: (commands: RedisCommands) => Promise<Value>,
  ): Promise<Value> {
    const name = `content cache ${this.name}: ${what}`;
    return withDeadline(name, this.#commandTimeoutMs, signals, async () => {
      try {
        return await connection.run(work);
      } catch (error) {
        throw redisError(this.name, what, error, connection.fault);
      }
    });
  }
}

/** 0, 1, … up to `count`. */
export function* numbers(count: number): Generator<number, void, undefined> {
  for (let number = 0; number < count; number++) yield number;
}
