/** Makes a layer ready: finds its index, or pulls it whole and indexes it in passing. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Semaphore } from "../base/concurrency.ts";
import { ClipError, describeError, isClipError } from "../base/errors.ts";
import type { DiskCache } from "../cache/disk-cache.ts";
import { buildLayerIndex } from "../index/build.ts";
import { isGzipLayer } from "../index/create.ts";
import type { PublishedIndex } from "../index/published.ts";
import type { LayerIndexReader } from "../index/reader.ts";
import type { Repository } from "../registry/reference.ts";
import { layerCached, layerMissed } from "../telemetry/events.ts";
import type { Log } from "../telemetry/log.ts";
import type { ClusterTier } from "./cluster/cluster-tier.ts";
import type { LayerCounters } from "./counters.ts";
import type { DemandActivity } from "./demand-activity.ts";
import { splitPaths } from "./implied-directories.ts";
import type { IndexLookup } from "./index-lookup.ts";
import type { MetaImages } from "./meta-images.ts";
import { repositoriesWithBlob, type LayerRegistry } from "./places.ts";
import type { LayerRecord, LayerRecords } from "./records.ts";
import { isRegistryFailure } from "./registry-source.ts";
import { spanTableOf } from "./span-source.ts";
import type { LayerTarget } from "./target.ts";
import type { TrustedIndexes } from "./trusted-indexes.ts";

/** Bytes of one range of a whole pull. */
const pullChunkBytes = 4 * 1024 * 1024;

/** What {@link LayerPreparer} is made with. */
export interface LayerPreparerOptions {
  registry: LayerRegistry;
  indexes: TrustedIndexes;
  /** Absent: published indexes are not looked for. */
  lookup?: IndexLookup;
  cache: DiskCache;
  metaImages: MetaImages;
  records: LayerRecords;
  counters: LayerCounters;
  /** A whole pull is something that others make way for. */
  activity: DemandActivity;
  /** Absent: layers are not shared. */
  cluster?: ClusterTier;
  /** Layers are filled and checked as a whole after their first use. */
  checksLater: boolean;
  log: Log;
  /** Uncompressed bytes between two checkpoints of an index that is built here. */
  spanBytes: number;
  /** Whole pulls wait here for their turn. */
  pulls: Semaphore;
  /** Connections of one whole pull. */
  pullConnections: number;
}

/** A layer that has been pulled whole and has matched its digests. */
export interface PulledLayer {
  /** Its index, made from it. */
  reader: LayerIndexReader;
  /** The file with its uncompressed bytes. */
  path: string;
}

/** What is done with a layer after it was pulled whole, before it takes the place of what is there. */
export type OnPulled = (pulled: PulledLayer, signal: AbortSignal) => Promise<void>;

/** A layer that can be mounted. */
export interface PreparedLayer {
  record: LayerRecord;
  index: LayerIndexReader;
}

/** Brings layers to where they can be mounted; see the module. */
export class LayerPreparer {
  readonly #options: LayerPreparerOptions;

  constructor(options: LayerPreparerOptions) {
    this.#options = options;
  }

  /**
   * Makes a layer ready and records it. A layer that is known keeps its number.
   * @param onPulled if it is given the layer is pulled whole, whatever index there is
   * @returns the layer, and its index, which the caller closes
   * @throws ClipError LAYER_UNSUPPORTED, REGISTRY_*, CORRUPT_*, LIMIT_EXCEEDED, DISK_FULL, ABORTED
   */
  async prepare(
    target: LayerTarget,
    signal: AbortSignal,
    onPulled?: OnPulled,
  ): Promise<PreparedLayer> {
    if (!isGzipLayer(target.mediaType)) {
      throw new ClipError("LAYER_UNSUPPORTED", `layers of type ${target.mediaType} are not served`);
    }
    const { indexes, cluster, log } = this.#options;
    const startedAt = performance.now();
    for (;;) {
      const found = await (onPulled === undefined
        ? this.#index(target, signal)
        : this.#pulled(target, onPulled, signal));
      const { reader, origin } = found;
      try {
        const record = await this.#record(target, found, signal);
        const { number, layerDigest: layer, size: bytes } = record;
        const durationMs = Math.round(performance.now() - startedAt);
        log.info({ layer, number, origin, bytes, durationMs }, "the layer is ready");
        return { record, index: reader };
      } catch (error) {
        await reader.close();
        if (!mayBeLie(error, origin)) throw error;
        const fields = { layer: target.layerDigest, origin, error: describeError(error) };
        log.error(fields, "the file table of a layer index is of no use; the index is not used");
        await indexes.distrust(reader);
        if (isShared(origin)) await cluster?.distrust(reader.head);
      }
    }
  }

  /**
   * A published index of a layer that can be served lazily, which the caller closes; undefined when
   * there is none.
   * @throws ClipError ABORTED
   */
  async publishedIndex(
    target: LayerTarget,
    repositories: readonly Repository[],
    signal: AbortSignal,
  ): Promise<LayerIndexReader | undefined> {
    const { reader } = await this.#publishedIndex(target, repositories, signal);
    return reader;
  }

  /** Makes the metadata image of a layer and records the layer. */
  async #record(
    target: LayerTarget,
    { reader, ranges }: FoundIndex,
    signal: AbortSignal,
  ): Promise<LayerRecord> {
    const { records, metaImages } = this.#options;
    const { layerDigest, diffId } = target;
    const { impliedDirectories, ...made } = await metaImages.make(reader, signal);
    const layer = { diffId, layerDigest, size: reader.head.uncompressedSize, ranges, ...made };
    return { number: records.put(target, layer, splitPaths(impliedDirectories)), ...layer };
  }

  async #publishedIndex(
    target: LayerTarget,
    repositories: readonly Repository[],
    signal: AbortSignal,
  ): Promise<{ reader: LayerIndexReader | undefined; ranges: boolean }> {
    const [published, lazy] = await Promise.allSettled([
      this.#adoptPublished(target, repositories, signal),
      this.#servesRanges(target, repositories, signal),
    ]);
    const reader = published.status === "fulfilled" ? published.value : undefined;
    const answered = lazy.status === "fulfilled" ? lazy.value : undefined;
    if (answered === true && published.status === "fulfilled") return { reader, ranges: true };
    await reader?.close();
    if (published.status === "rejected") throw published.reason;
    if (lazy.status === "rejected") throw lazy.reason;
    return { reader: undefined, ranges: answered ?? true };
  }

  async #index(target: LayerTarget, signal: AbortSignal): Promise<FoundIndex> {
    const local = await this.#options.indexes.openFor(target);
    if (local !== undefined) {
      const ranges = this.#options.records.byDiffId(target.diffId)?.ranges ?? true;
      return { reader: local, origin: "local index", ranges };
    }
    const { cluster, checksLater } = this.#options;
    // The cluster is asked first and alone only where its word is enough.
    const shared = cluster?.findIndex(target, signal);
    shared?.catch(() => {});
    if (cluster?.signs === true) {
      // A cache that lets wait must not keep the registry from being asked.
      const soon = await within(cluster.patienceMs, shared);
      const signed = await this.#adoptShared(target, soon, signal);
      if (signed !== undefined) return { reader: signed, origin: "signed index", ranges: true };
    }
    const inRegistry = this.#fromRegistry(target, signal);
    inRegistry.catch(() => {});
    const published = await inRegistry.then(({ reader }) => reader).catch(() => undefined);
    if (published !== undefined) {
      return { reader: published, origin: "published index", ranges: true };
    }
    if (checksLater || cluster?.signs === true) {
      const found = await this.#adoptShared(target, await shared, signal);
      if (found !== undefined) return { reader: found, origin: "shared index", ranges: true };
    }
    const { repositories, ranges } = await inRegistry;
    const reader = await this.#pull(target, repositories, signal);
    return { reader, origin: wholePull, ranges };
  }

  async #pulled(target: LayerTarget, onPulled: OnPulled, signal: AbortSignal): Promise<FoundIndex> {
    const { registry, records, log } = this.#options;
    const ranges = records.byDiffId(target.diffId)?.ranges ?? true;
    const repositories = await repositoriesWithBlob(registry, target, signal, log);
    const reader = await this.#pull(target, repositories, signal, onPulled);
    return { reader, origin: wholePull, ranges };
  }

  /** The published index, if there is one, and where the layer can be pulled from. */
  async #fromRegistry(target: LayerTarget, signal: AbortSignal) {
    const { registry, log } = this.#options;
    const repositories = await repositoriesWithBlob(registry, target, signal, log);
    // The first has the layer. Other hosts are guesses, which may take long to be proved wrong.
    const onSameHost = repositories.filter(({ host }) => host === repositories[0]?.host);
    return { repositories, ...(await this.#publishedIndex(target, onSameHost, signal)) };
  }

  async #adoptShared(
    target: LayerTarget,
    shared: PublishedIndex | undefined,
    signal: AbortSignal,
  ): Promise<LayerIndexReader | undefined> {
    const { indexes } = this.#options;
    return shared === undefined ? undefined : indexes.adopt(target, [shared], signal);
  }

  async #adoptPublished(
    target: LayerTarget,
    repositories: readonly Repository[],
    signal: AbortSignal,
  ): Promise<LayerIndexReader | undefined> {
    const { lookup, indexes } = this.#options;
    const published = (await lookup?.find(target, repositories, signal)) ?? [];
    return indexes.adopt(target, published, signal);
  }

  /**
   * Without ranges nothing can be lazy; the answer also shows that the blob may be read. Undefined
   * when nobody answers.
   */
  async #servesRanges(
    target: LayerTarget,
    repositories: readonly Repository[],
    signal: AbortSignal,
  ): Promise<boolean | undefined> {
    const { registry, log } = this.#options;
    const { layerDigest, compressedSize } = target;
    for (const repository of repositories) {
      try {
        return await registry.blob(repository, layerDigest, compressedSize).supportsRanges(signal);
      } catch (error) {
        if (signal.aborted || !isRegistryFailure(error)) throw error;
        log.warn(
          { layer: layerDigest, host: repository.host, error: describeError(error) },
          "a repository does not give a layer",
        );
      }
    }
    return undefined;
  }

  async #pull(
    target: LayerTarget,
    repositories: readonly Repository[],
    signal: AbortSignal,
    onPulled?: OnPulled,
  ): Promise<LayerIndexReader> {
    const { activity, pulls } = this.#options;
    const done = activity.enter();
    const pull = () => this.#pullFromAny(target, repositories, signal, onPulled);
    return pulls.run(pull, signal).finally(done);
  }

  async #pullFromAny(
    target: LayerTarget,
    repositories: readonly Repository[],
    signal: AbortSignal,
    onPulled: OnPulled | undefined,
  ): Promise<LayerIndexReader> {
    const { log } = this.#options;
    let failure: unknown;
    for (const repository of repositories) {
      signal.throwIfAborted();
      try {
        return await this.#pullFrom(target, repository, signal, onPulled);
      } catch (error) {
        if (signal.aborted || !isRegistryFailure(error)) throw error;
        failure = error;
        log.warn(
          { layer: target.layerDigest, host: repository.host, error: describeError(error) },
          "the layer could not be pulled from a repository",
        );
      }
    }
    throw failure;
  }

  async #pullFrom(
    target: LayerTarget,
    repository: Repository,
    signal: AbortSignal,
    onPulled: OnPulled | undefined,
  ): Promise<LayerIndexReader> {
    const { registry, cache, indexes, counters, log, spanBytes, pullConnections } = this.#options;
    const { layerDigest, diffId, compressedSize } = target;
    layerMissed(log, layerDigest, { host: repository.host });
    const startedAt = performance.now();
    const pull = await cache.beginPull(layerDigest, compressedSize);
    const bounded = AbortSignal.any([signal, pull.signal]);
    try {
      const blob = registry.blob(repository, layerDigest, compressedSize);
      const compressed = blob.parallelStream({
        connections: pullConnections,
        chunkBytes: pullChunkBytes,
        signal: bounded,
      });
      const outputPath = pull.path;
      const options = { spanBytes, layerDigest, diffId, outputPath, signal: bounded };
      const { head, encoded, reader } = await buildLayerIndex(compressed, options);
      await onPulled?.({ reader, path: outputPath }, bounded);
      await indexes.put(reader, encoded);
      await cache.adoptComplete(layerDigest, spanTableOf(head));
      counters.wholePulls++;
      counters.wholePullBytes += compressedSize;
      layerCached(log, layerDigest, {
        bytes: head.uncompressedSize,
        path: cache.dataPath(layerDigest),
        durationMs: Math.round(performance.now() - startedAt),
      });
      this.#options.cluster?.share({ layerDigest, diffId, size: head.uncompressedSize });
      return reader;
    } catch (error) {
      counters.wholePullErrors++;
      if (!signal.aborted) pull.signal.throwIfAborted();
      throw error;
    } finally {
      await pull.end();
    }
  }
}

/** Where an index came from, for the log. */
type Origin =
  "local index" | "signed index" | "shared index" | "published index" | typeof wholePull;

const wholePull = "whole pull";

/** An index that a layer can be served with. */
interface FoundIndex {
  reader: LayerIndexReader;
  origin: Origin;
  /** The registry gives parts of the layer. */
  ranges: boolean;
}

/** Whether the index is to blame for a layer of which no metadata image can be made. */
function mayBeLie(error: unknown, origin: Origin): boolean {
  if (origin === wholePull) return false;
  if (isClipError(error, "CORRUPT_INDEX")) return true;
  // One that is kept here may have been made here: then it is the layer that is of no use.
  return isClipError(error, "CORRUPT_TAR") && origin !== "local index";
}

function isShared(origin: Origin): boolean {
  return origin === "shared index" || origin === "signed index";
}

/** What `promise` gives within so many milliseconds; undefined when it takes longer. */
async function within<Value>(
  milliseconds: number,
  promise: Promise<Value> | undefined,
): Promise<Value | undefined> {
  const timer = new AbortController();
  const over = sleep(milliseconds, undefined, { signal: timer.signal }).catch(() => undefined);
  try {
    return await Promise.race([promise, over]);
  } finally {
    timer.abort();
  }
}
