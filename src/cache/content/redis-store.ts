/** Storing an object in Redis: under a lock, chunk after chunk, the manifest last. */
import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { ContentKey } from "./content-cache.ts";
import { exactChunks, type ContentSource } from "./content-source.ts";
import { cacheError } from "./failure.ts";
import { forEachParallel, orAborted } from "./operations.ts";
import { chunkCount, type Manifest } from "./redis-manifest.ts";
import { numbers, type RedisObjects } from "./redis-objects.ts";

// A client that dies loses its lock after this time; one that lives renews it.
const lockMs = 30_000;
const lockPollMs = 200;
const lockWaitMs = 10 * 60_000;
// Chunks of an upload whose client has died go away after this time.
const incomingMs = 2 * 3600_000;
// Chunks outlive their manifest, so that nobody sees an object of which a part has expired.
const chunkGraceMs = 60_000;
const parallelWrites = 3;
const parallelKeeps = 64;

/** How objects are stored. */
export interface RedisStoreOptions {
  chunkBytes: number;
  /** Default: until Redis evicts it. */
  ttlMs?: number;
}

/** The stores of one cache. */
export class RedisStore {
  readonly #objects: RedisObjects;
  readonly #options: RedisStoreOptions;

  constructor(objects: RedisObjects, options: RedisStoreOptions) {
    this.#objects = objects;
    this.#options = options;
  }

  /**
   * Stores an object. Another client that is storing the same one is waited for; if it fails, this
   * one takes over. After `signal` this goes on until what was sent is cleaned up.
   */
  async run(
    key: ContentKey,
    source: ContentSource,
    replace: boolean,
    signal: AbortSignal,
  ): Promise<"stored" | "present"> {
    const isPresent = async () =>
      !replace && (await this.#objects.manifest(key, signal)) !== undefined;
    if (await isPresent()) return "present";
    const token = randomBytes(16).toString("hex");
    const deadline = performance.now() + lockWaitMs;
    while (!(await this.#objects.lock(key, token, lockMs, signal))) {
      if (performance.now() > deadline) {
        throw cacheError("CACHE_UNAVAILABLE", this.#objects.name, `${key} is being stored`);
      }
      await orAborted(sleep(lockPollMs), signal);
      if (await isPresent()) return "present";
    }
    try {
      // Who had the lock before may have succeeded.
      if (await isPresent()) return "present";
      return await this.#upload(key, source, { replace, token }, signal);
    } finally {
      // If this fails the lock expires.
      await this.#objects.unlock(key, token).catch(() => {});
    }
  }

  async #upload(
    key: ContentKey,
    source: ContentSource,
    { replace, token }: { replace: boolean; token: string },
    signal: AbortSignal,
  ): Promise<"stored" | "present"> {
    const manifest: Manifest = {
      size: source.size,
      chunkBytes: this.#options.chunkBytes,
      upload: randomBytes(8).toString("hex"),
    };
    const former = replace ? await this.#objects.manifest(key, signal) : undefined;
    let published = false;
    try {
      await this.#writeChunks(key, manifest, source, token, signal);
      await this.#keepChunks(key, manifest, signal);
      const lifeMs = this.#options.ttlMs;
      published = await this.#objects.publish(key, manifest, { lifeMs, replace }, signal);
    } finally {
      // What this leaves behind when the server is gone expires, see incomingMs.
      if (!published) await this.#objects.abandon(key, manifest).catch(() => {});
    }
    if (former !== undefined) await this.#objects.dropChunks(key, former).catch(() => {});
    return published ? "stored" : "present";
  }

  async #writeChunks(
    key: ContentKey,
    { chunkBytes, upload }: Manifest,
    source: ContentSource,
    token: string,
    signal: AbortSignal,
  ): Promise<void> {
    let renewed = performance.now();
    const chunks = exactChunks(source, chunkBytes, signal);
    await forEachParallel(chunks, parallelWrites, signal, async (chunk, index, linked) => {
      if (performance.now() - renewed > lockMs / 3) {
        renewed = performance.now();
        await this.#objects.extendLock(key, token, lockMs, linked);
      }
      await this.#objects.writeChunk(key, upload, index, chunk, incomingMs, linked);
    });
  }

  /** Takes the expiry off the chunks, which also tells whether all of them are still there. */
  async #keepChunks(key: ContentKey, manifest: Manifest, signal: AbortSignal): Promise<void> {
    const { ttlMs } = this.#options;
    const lifeMs = ttlMs === undefined ? undefined : ttlMs + chunkGraceMs;
    const indexes = numbers(chunkCount(manifest));
    await forEachParallel(indexes, parallelKeeps, signal, async (index, _, linked) => {
      if (await this.#objects.keepChunk(key, manifest.upload, index, lifeMs, linked)) return;
      throw cacheError("CACHE_FULL", this.#objects.name, `a part of ${key} was evicted at once`, {
        hint: "Give Redis more memory, or limit the size of the objects that go there.",
      });
    });
  }
}
