/** How an object lies in Redis: chunks, and a manifest that is written last and makes it visible. */
import * as v from "valibot";
import type { ContentKey } from "./content-cache.ts";

/** What is under the key itself. */
export interface Manifest {
  readonly size: number;
  readonly chunkBytes: number;
  /** Tells the chunks of this upload from those of any other upload of the key. */
  readonly upload: string;
}

const byteCount = v.pipe(v.number(), v.safeInteger(), v.minValue(0));

const schema = v.strictObject({
  version: v.literal(1),
  size: byteCount,
  chunkBytes: v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(512 * 1024 * 1024)),
  upload: v.pipe(v.string(), v.regex(/^[0-9a-f]{16}$/)),
});

/** The bytes of a manifest. */
export function encodeManifest(manifest: Manifest): Buffer {
  return Buffer.from(JSON.stringify({ version: 1, ...manifest }));
}

/** The manifest that these bytes are; undefined when they are none. */
export function decodeManifest(bytes: Buffer): Manifest | undefined {
  if (bytes.length > 1000) return undefined;
  try {
    const { size, chunkBytes, upload } = v.parse(schema, JSON.parse(bytes.toString("utf8")));
    return { size, chunkBytes, upload };
  } catch {
    return undefined;
  }
}

/**
 * The Redis keys of an object. None has a hash tag: in a cluster the chunks of a layer spread over
 * all nodes, and nothing needs two keys in one place.
 */
export class RedisKeys {
  readonly #prefix: string;

  constructor(prefix: string) {
    this.#prefix = prefix;
  }

  manifest(key: ContentKey): string {
    return `${this.#prefix}${key}`;
  }

  lock(key: ContentKey): string {
    return `${this.#prefix}${key}:lock`;
  }

  chunk(key: ContentKey, upload: string, index: number): string {
    return `${this.#prefix}${key}:${upload}:${index}`;
  }
}

/** How many chunks an object has. */
export function chunkCount({ size, chunkBytes }: Manifest): number {
  return Math.ceil(size / chunkBytes);
}

/** Length of a chunk: all have the same but the last. */
export function chunkLength({ size, chunkBytes }: Manifest, index: number): number {
  return Math.min(chunkBytes, size - index * chunkBytes);
}

/** A part of a chunk that belongs to a range. */
export interface ChunkRange {
  index: number;
  /** First byte inside the chunk. */
  start: number;
  length: number;
  /** Where it goes, from the start of the range. */
  at: number;
}

/** The parts of chunks that make up `length` bytes at `offset`. */
export function* chunkRanges(
  manifest: Manifest,
  offset: number,
  length: number,
): Generator<ChunkRange, void, undefined> {
  for (let at = 0; at < length;) {
    const index = Math.floor((offset + at) / manifest.chunkBytes);
    const start = offset + at - index * manifest.chunkBytes;
    const part = Math.min(length - at, manifest.chunkBytes - start);
    yield { index, start, length: part, at };
    at += part;
  }
}
