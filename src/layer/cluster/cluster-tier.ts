/** The content cache as layers see it: it gives spans and indexes, and takes what this node has. */
import { digestOf, type Digest } from "../../base/digest.ts";
import { ClipError, describeError, isClipError } from "../../base/errors.ts";
import type { ContentKey } from "../../cache/content/content-cache.ts";
import { decodePreamble } from "../../index/format.ts";
import type { LayerHead } from "../../index/model.ts";
import type { PublishedIndex } from "../../index/published.ts";
import { bufferSource } from "../../index/sources.ts";
import type { Log } from "../../telemetry/log.ts";
import type { DemandActivity } from "../demand-activity.ts";
import type { SpanSource } from "../span-source.ts";
import type { LayerTarget } from "../target.ts";
import type { TrustedIndexes } from "../trusted-indexes.ts";
import { CachedSource } from "./cached-source.ts";
import type { ClusterCounters, ClusterOptions, SharedLayer } from "./cluster-options.ts";
import { Hedge } from "./hedge.ts";
import { LayerStores, type LocalLayers } from "./layer-stores.ts";
import { indexOffset, isVouchedFor, readSeal, sealedBytesMin } from "./sealed-index.ts";
import { SharedObjects } from "./shared-objects.ts";
import { StoreQueue } from "./store-queue.ts";

/** Layers that wait to be stored at most. */
const queueLengthMax = 4_096;
/** Longest time that finding an index may take: there is the registry. */
const findIndexMs = 10_000;

/** What {@link ClusterTier} is made with besides its options. */
export interface ClusterTierParts extends ClusterOptions {
  /** Database of what is to be stored. */
  queuePath: string;
  layers: LocalLayers;
  indexes: TrustedIndexes;
  activity: DemandActivity;
  log: Log;
}

/** See the module. Owns the queue of stores, but not the cache. */
export class ClusterTier {
  readonly counters: ClusterCounters = {
    ...{ indexes: 0, indexesRefused: 0, quarantined: 0, repaired: 0 },
    ...{ stored: 0, alreadyStored: 0, storeErrors: 0, storesDropped: 0 },
  };
  readonly #parts: ClusterTierParts;
  readonly #objects: SharedObjects;
  readonly #hedge: Hedge;
  readonly #stores: LayerStores | undefined;
  /** Layers whose copy in the cluster has to be replaced as soon as this node has the right one. */
  readonly #toRepair = new Set<string>();
  /** Layers whose shared index has misled this node. */
  readonly #misleading = new Set<string>();

  constructor(parts: ClusterTierParts) {
    const { keyDerivation, members, hedgeMsMin, hedgeMsMax } = parts;
    this.#parts = parts;
    this.#objects = new SharedObjects({ keyDerivation, members });
    this.#hedge = new Hedge(hedgeMsMin, hedgeMsMax);
    this.#stores = parts.store ? this.#openStores() : undefined;
  }

  /** Goes on with what an earlier run had to store. */
  start(): void {
    this.#stores?.start();
  }

  /** Layers that wait to be stored. */
  get storesWaiting(): number {
    return this.#stores?.length ?? 0;
  }

  /** These layers. */
  waitingToBeStored(): ReadonlySet<Digest> {
    return this.#stores?.layers() ?? new Set();
  }

  /** Whether indexes must be signed. */
  get signs(): boolean {
    return this.#parts.indexKeys.length > 0;
  }

  /** How long the registry is not asked for an index yet, in milliseconds. */
  get patienceMs(): number {
    return this.#parts.hedgeMsMax;
  }

  /** The layer, as the content cache has it. */
  source(head: LayerHead): SpanSource {
    const { cache, log } = this.#parts;
    return new CachedSource({
      ...{ head, cache, log },
      objects: this.#objects,
      hedge: this.#hedge,
      onWrong: (layer, from) => this.#quarantine(layer, from),
    });
  }

  /**
   * The index of a layer. Where the cluster has a key, only an index that is signed with it.
   * Trouble with the cache is logged and counts as none.
   * @throws ClipError ABORTED
   */
  async findIndex(target: LayerTarget, signal: AbortSignal): Promise<PublishedIndex | undefined> {
    const { layerDigest } = target;
    const key = this.#objects.indexKey(layerDigest);
    if (this.#misleading.has(layerDigest) || !this.#objects.isWorthAsking(key)) return undefined;
    const bounded = AbortSignal.any([signal, AbortSignal.timeout(findIndexMs)]);
    try {
      const found = await this.#fetchIndex(key, target, bounded);
      if (found !== undefined) this.counters.indexes++;
      return found;
    } catch (error) {
      if (signal.aborted) throw error;
      const refused = isClipError(error, "CORRUPT_INDEX") || isClipError(error, "LIMIT_EXCEEDED");
      if (refused) {
        this.counters.indexesRefused++;
        this.#toRepair.add(layerDigest);
      }
      this.#parts.log.warn(
        { layer: layerDigest, error: describeError(error) },
        "the content cache gave no usable layer index",
      );
      return undefined;
    }
  }

  /**
   * This node has the whole layer, and it has matched its digests: the cluster may have it, unless
   * that is where it came from.
   */
  share(layer: SharedLayer): void {
    if (this.#stores === undefined) return;
    const replace = this.#toRepair.delete(layer.layerDigest);
    if (!replace && this.#objects.isPresent(this.#objects.layerKey(layer))) {
      this.#stores.settle(layer);
    } else this.#stores.add(layer, replace);
  }

  /** The index of the layer has misled this node: it is not used again, and goes. */
  async distrust(head: LayerHead): Promise<void> {
    const { cache, log } = this.#parts;
    const { layerDigest } = head;
    this.#misleading.add(layerDigest);
    this.#toRepair.add(layerDigest);
    if (this.#stores === undefined) return;
    try {
      await cache.remove(this.#objects.indexKey(layerDigest));
    } catch (error) {
      log.warn(
        { layer: layerDigest, error: describeError(error) },
        "a wrong layer index could not be removed from the content cache",
      );
    }
  }

  /** Stops storing. */
  async close(): Promise<void> {
    await this.#stores?.close();
  }

  #openStores(): LayerStores {
    const { queuePath, cache, layers, indexes, activity, indexKeys, log } = this.#parts;
    return new LayerStores({
      queue: StoreQueue.open(queuePath, queueLengthMax),
      ...{ cache, layers, indexes, activity, log },
      objects: this.#objects,
      indexKey: indexKeys[0],
      bytesPerSecond: this.#parts.storeBytesPerSecond,
      counters: this.counters,
    });
  }

  async #fetchIndex(
    key: ContentKey,
    { layerDigest }: LayerTarget,
    signal: AbortSignal,
  ): Promise<PublishedIndex | undefined> {
    const { cache, indexKeys } = this.#parts;
    const beginning = Buffer.allocUnsafeSlow(sealedBytesMin);
    if ((await cache.read(key, 0, beginning, { signal })) === undefined) {
      this.#objects.noteMiss(key);
      return undefined;
    }
    const { end, mac } = readSeal(beginning);
    const rest = Buffer.allocUnsafeSlow(Math.max(0, end - beginning.length));
    const offset = beginning.length;
    if (rest.length > 0 && (await cache.read(key, offset, rest, { signal })) === undefined) {
      return undefined;
    }
    const encoded = Buffer.concat([beginning, rest]).subarray(indexOffset, end);
    if (this.signs && !isVouchedFor(layerDigest, encoded, mac, indexKeys)) {
      throw new ClipError("CORRUPT_INDEX", "the shared index is not signed by this cluster");
    }
    return asPublished(encoded);
  }

  #quarantine(head: LayerHead, from: string): void {
    const { layerDigest } = head;
    if (!this.#objects.quarantine(this.#objects.layerKey(head), from)) return;
    this.counters.quarantined++;
    this.#toRepair.add(layerDigest);
    this.#parts.log.error(
      { ...this.#objects.logged(head), cache: from },
      "the content cache has wrong bytes of a layer; they are not used",
    );
  }
}

/** An index that is in memory, as the store of indexes takes it. */
function asPublished(encoded: Buffer): PublishedIndex {
  const headEnd = decodePreamble(encoded);
  return {
    digest: digestOf(encoded),
    size: encoded.length,
    headDigest: digestOf(encoded.subarray(0, headEnd)),
    prefixBytes: encoded.length,
    source: bufferSource(encoded),
  };
}
