/**
 * The steps of a layer on its way to the readers, one function an event, so that wording, level and
 * fields are in one place. `docs/metrics.md` lists them.
 */
import { digestKey, type Digest } from "../base/digest.ts";
import type { Log } from "./log.ts";

/** A layer and the key under which a content cache has it. */
export interface CachedLayer {
  layer: Digest;
  cacheKey: string;
}

/** A layer and the name of its file in the disk cache. */
function onDisk(layer: Digest): CachedLayer {
  return { layer, cacheKey: digestKey(layer) };
}

/** No tier has the layer in a form that ranges can be read of: it is pulled whole. */
export function layerMissed(log: Log, layer: Digest, fields: { host: string }): void {
  log.info(
    { ...onDisk(layer), ...fields },
    "cache miss - downloading and decompressing layer from registry",
  );
}

/** A layer that was pulled whole is on disk, checked. `bytes` are those of the uncompressed layer. */
export function layerCached(
  log: Log,
  layer: Digest,
  fields: { bytes: number; path: string; durationMs: number },
): void {
  log.info({ ...onDisk(layer), ...fields }, "layer decompressed and cached to disk");
}

/** The daemon starts without a content cache. */
export function contentCacheNotConfigured(log: Log): void {
  log.warn({}, "ContentCache not configured - layer will NOT be shared across cluster");
}

/** A layer of `bytes` uncompressed bytes was put into the queue of what is to be stored. */
export function storeQueued(log: Log, layer: CachedLayer, fields: { bytes: number }): void {
  log.info({ ...layer, ...fields }, "storing decompressed layer in ContentCache (async)");
}

/** It is the layer's turn to be stored. */
export function storeBegun(log: Log, layer: CachedLayer, fields: { path: string }): void {
  log.debug({ ...layer, ...fields }, "store of decompressed layer started");
}

/** A layer is in the content cache; `stored` is false when another node had stored it already. */
export function storeDone(
  log: Log,
  layer: CachedLayer,
  fields: { bytes: number; durationMs: number; stored: boolean },
): void {
  log.info(
    { ...layer, ...fields },
    "successfully stored decompressed layer in ContentCache - available for cluster range reads",
  );
}

/** A layer could not be stored; it is tried again after `retryMs`, if that is given. */
export function storeFailed(
  log: Log,
  layer: CachedLayer,
  fields: { bytes: number; durationMs: number; error: string; retryMs?: number },
): void {
  log.error({ ...layer, ...fields }, "FAILED to store layer in ContentCache");
}

/** A range of the uncompressed layer, as the content cache is asked for it. */
export interface LayerRange {
  offset: number;
  length: number;
}

/** The content cache is asked for a range of a layer. */
export function rangeReadTried(log: Log, layer: CachedLayer, range: LayerRange): void {
  log.debug({ ...layer, ...range }, "trying ContentCache range read");
}

/** The content cache gave a range of a layer. */
export function rangeReadHit(
  log: Log,
  layer: CachedLayer,
  fields: LayerRange & { bytes: number; durationMs: number },
): void {
  log.debug({ ...layer, ...fields }, "content cache hit - range read from remote");
}

/** The content cache does not have a range of a layer, or, with `error`, could not say. */
export function rangeReadMissed(
  log: Log,
  layer: CachedLayer,
  fields: LayerRange & { durationMs: number; error?: string },
): void {
  log.debug({ ...layer, ...fields }, "content cache miss - will decompress from OCI");
}

/** A content cache has failed so often that it is left alone for a while. */
export function contentCacheLeftAlone(
  log: Log,
  fields: { cache: string; error: string | undefined },
): void {
  log.warn(fields, "ContentCache fails or is slow - it is left alone for a while");
}

/** A content cache that was left alone answers again. */
export function contentCacheUsedAgain(log: Log, fields: { cache: string }): void {
  log.info(fields, "ContentCache answers again");
}
