/** Stores layers in the content cache, one after the other, behind the readers. */
import { steadyNow } from "../../base/clock.ts";
import type { Digest } from "../../base/digest.ts";
import { describeError, isClipError } from "../../base/errors.ts";
import { sharedIndexBytesMax } from "../../base/limits.ts";
import {
  isWorthRetrying,
  type ContentCache,
  type ContentKey,
  type StoreOptions,
  type StoreOutcome,
} from "../../cache/content/content-cache.ts";
import { bufferSource } from "../../cache/content/content-source.ts";
import { asCacheFault } from "../../cache/content/failure.ts";
import { storeBegun, storeDone, storeFailed, storeQueued } from "../../telemetry/events.ts";
import type { Log } from "../../telemetry/log.ts";
import type { DemandActivity } from "../demand-activity.ts";
import type { TrustedIndexes } from "../trusted-indexes.ts";
import type { ClusterCounters, SharedLayer } from "./cluster-options.ts";
import { layerContent } from "./layer-content.ts";
import { sealIndex } from "./sealed-index.ts";
import type { SharedObjects } from "./shared-objects.ts";
import type { QueuedStore, StoreQueue } from "./store-queue.ts";

/** First and longest wait after a failure; it doubles in between. */
const backoffMsMin = 1_000;
const backoffMsMax = 5 * 60_000;
/** How long a layer is tried to be stored, and how often at least: clocks can be wrong. */
const patienceMs = 24 * 3600 * 1000;
const attemptsMin = 20;
/** How long nothing is done when the queue itself, which is on disk, fails. */
const queueFailureMs = 10_000;

/** The layers on this node's disk. */
export interface LocalLayers {
  /** All that the node has, complete or not. */
  all(): readonly SharedLayer[];
  /** The file of a layer of which every byte is there and has matched. */
  completePath(layer: SharedLayer): Promise<string | undefined>;
}

/** What {@link LayerStores} is made with. */
export interface LayerStoresOptions {
  /** Closed with the stores. */
  queue: StoreQueue;
  cache: ContentCache;
  objects: SharedObjects;
  layers: LocalLayers;
  indexes: TrustedIndexes;
  activity: DemandActivity;
  indexKey: Buffer | undefined;
  bytesPerSecond: number | undefined;
  counters: ClusterCounters;
  log: Log;
  /** Shortest wait after a failure, for tests. */
  backoffMsMin?: number;
}

/** Works off a {@link StoreQueue}. */
export class LayerStores {
  readonly #options: LayerStoresOptions;
  readonly #closing = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  #running: Promise<void> | undefined;
  #starting: Promise<void> | undefined;
  #restUntil = 0;
  /** Of layers that are put in place of others: which caches have done that, by the key. */
  readonly #replaced = new Map<ContentKey, Set<string>>();

  constructor(options: LayerStoresOptions) {
    this.#options = options;
  }

  /** Layers that wait to be stored, or are being stored. */
  get length(): number {
    return this.#options.queue.length;
  }

  /** These layers; none while the queue cannot be read. */
  layers(): ReadonlySet<Digest> {
    try {
      return this.#options.queue.layers();
    } catch (error) {
      this.#noteQueueFailure(error);
      return new Set();
    }
  }

  /** Begins with what an earlier run left, be it that it had no time left to queue it. */
  start(): void {
    this.#arm();
    this.#starting = this.#addUnsettled().catch((error: unknown) => this.#noteQueueFailure(error));
  }

  /** Has a layer stored; that is on disk when this returns, unless the disk is full. */
  add(layer: SharedLayer, replace: boolean): void {
    if (this.#closing.signal.aborted) return;
    const { queue, objects, counters, log } = this.#options;
    storeQueued(log, objects.logged(layer), { bytes: layer.size });
    // Whoever has replaced it before may have a wrong one again.
    if (replace) this.#forgetReplaced(layer);
    try {
      for (const dropped of queue.add(layer, replace, steadyNow())) {
        this.#logDropped(dropped, "too many layers wait to be stored");
        counters.storesDropped++;
      }
    } catch (error) {
      // Sharing is a service to others: this node goes on without it.
      this.#logDropped(layer, describeError(error));
      counters.storesDropped++;
    }
    this.#arm();
  }

  /** A layer need not be stored: the cluster has it. */
  settle(layer: SharedLayer): void {
    try {
      this.#options.queue.settle(layer);
    } catch (error) {
      this.#noteQueueFailure(error);
    }
  }

  /** Stops; what has not been stored is stored in the next run. */
  async close(): Promise<void> {
    this.#closing.abort();
    clearTimeout(this.#timer);
    await Promise.all([this.#running, this.#starting]);
    this.#options.queue.close();
  }

  async #addUnsettled(): Promise<void> {
    const { queue, layers } = this.#options;
    for (const layer of queue.unsettled(layers.all())) {
      const isComplete = (await layers.completePath(layer)) !== undefined;
      if (this.#closing.signal.aborted) return;
      if (isComplete) this.add(layer, false);
    }
  }

  #arm(): void {
    clearTimeout(this.#timer);
    if (this.#running !== undefined || this.#closing.signal.aborted) return;
    const first = this.#first();
    const restMs = this.#restUntil - performance.now();
    if (first === undefined && restMs <= 0) return;
    const waitMs = Math.max(first === undefined ? 0 : waitOf(first), restMs);
    this.#timer = setTimeout(() => this.#startFirst(), waitMs).unref();
  }

  #startFirst(): void {
    const first = this.#first();
    if (first === undefined || waitOf(first) > 0) return this.#arm();
    this.#running = this.#run(first)
      .catch((error: unknown) => this.#noteQueueFailure(error))
      .finally(() => {
        this.#running = undefined;
        this.#arm();
      });
  }

  #first(): QueuedStore | undefined {
    try {
      return this.#options.queue.first();
    } catch (error) {
      this.#noteQueueFailure(error);
      return undefined;
    }
  }

  #noteQueueFailure(error: unknown): void {
    const fields = { error: describeError(error), retryMs: queueFailureMs };
    this.#options.log.error(fields, "the queue of layers to be stored cannot be kept");
    this.#restUntil = performance.now() + queueFailureMs;
  }

  async #run(entry: QueuedStore): Promise<void> {
    const { queue, objects, activity, counters, log } = this.#options;
    let startedAt = performance.now();
    const durationMs = () => Math.round(performance.now() - startedAt);
    const bytes = entry.size;
    try {
      await activity.calm(this.#closing.signal);
      startedAt = performance.now();
      const outcome = await this.#store(entry);
      if (outcome === "postponed" && !isLate(entry)) {
        this.#postpone(entry);
        return;
      }
      queue.settle(entry);
      this.#forgetReplaced(entry);
      if (outcome === "postponed") return this.#drop(entry, "the layer did not become complete");
      if (outcome === "gone") return this.#drop(entry, "the layer is not on this node any more");
      if (outcome === "refused") return this.#drop(entry, "no cache takes a layer of its size");
      // Those that replaced it in an earlier attempt have it now.
      const stored = outcome === "stored" || entry.replace;
      if (stored) counters.stored++;
      else counters.alreadyStored++;
      if (entry.replace) counters.repaired++;
      objects.forget(objects.layerKey(entry));
      storeDone(log, objects.logged(entry), { bytes, durationMs: durationMs(), stored });
    } catch (error) {
      if (this.#closing.signal.aborted) return;
      counters.storeErrors++;
      const fields = { bytes, durationMs: durationMs(), error: describeError(error) };
      const isSource = isClipError(error, "CORRUPT_LAYER") || isClipError(error, "CORRUPT_INDEX");
      if (isSource || isLate(entry)) {
        storeFailed(log, objects.logged(entry), fields);
        queue.settle(entry);
        this.#forgetReplaced(entry);
        this.#drop(entry, isSource ? "what this node has is damaged" : "it was tried for long");
        return;
      }
      const retryMs = this.#postpone(entry, isWorthRetrying(error));
      storeFailed(log, objects.logged(entry), { ...fields, retryMs });
    }
  }

  async #store(entry: QueuedStore): Promise<StoreOutcome | "gone" | "postponed"> {
    const { cache, objects, layers, indexes, activity, log } = this.#options;
    const path = await layers.completePath(entry);
    // It may become complete yet: after a crash, or when spans of it have been evicted.
    if (path === undefined) return isKnown(entry, layers) ? "postponed" : "gone";
    const reader = await indexes.open(entry.layerDigest);
    if (reader === undefined) return "gone";
    try {
      const { head } = reader;
      storeBegun(log, objects.logged(entry), { path });
      const fault = await this.#storeIndex(entry).catch(asCacheFault);
      const makeWay = (inner: AbortSignal) => activity.quiet(inner);
      const { bytesPerSecond } = this.#options;
      const source = layerContent({ path, head, makeWay, bytesPerSecond });
      const key = objects.layerKey(entry);
      const outcome = await cache.store(key, source, this.#storeOptions(entry, key));
      // A member of a chain that takes nothing does not keep the others from the layer.
      if (fault !== undefined) throw fault;
      return outcome;
    } finally {
      await reader.close();
    }
  }

  /** First: from then on other nodes can be lazy, be it with the registry. */
  async #storeIndex(entry: QueuedStore): Promise<undefined> {
    const { cache, objects, indexes, indexKey } = this.#options;
    const { layerDigest } = entry;
    const encoded = await indexes.encoded(layerDigest);
    if (encoded === undefined || encoded.length > sharedIndexBytesMax) return;
    const sealed = sealIndex(layerDigest, encoded, indexKey);
    const key = objects.indexKey(layerDigest);
    await cache.store(key, bufferSource(sealed), this.#storeOptions(entry, key));
    objects.forget(key);
  }

  #storeOptions({ replace }: QueuedStore, key: ContentKey): StoreOptions {
    const { signal } = this.#closing;
    if (!replace) return { signal };
    const replaced = this.#replaced.get(key) ?? new Set();
    this.#replaced.set(key, replaced);
    return { signal, replace, replaced };
  }

  #forgetReplaced(layer: SharedLayer): void {
    const { objects } = this.#options;
    this.#replaced.delete(objects.layerKey(layer));
    this.#replaced.delete(objects.indexKey(layer.layerDigest));
  }

  /** @returns how long it waits */
  #postpone(entry: QueuedStore, soon = true): number {
    const first = this.#options.backoffMsMin ?? backoffMsMin;
    const backoffMs = Math.min(first * 2 ** Math.min(entry.attempts, 20), backoffMsMax);
    // Nodes that failed together must not come back together.
    const retryMs = Math.round((soon ? backoffMs : backoffMsMax) * (0.5 + Math.random() / 2));
    this.#options.queue.postpone(entry, steadyNow() + retryMs);
    return retryMs;
  }

  #drop(entry: SharedLayer, reason: string): void {
    this.#options.counters.storesDropped++;
    this.#logDropped(entry, reason);
  }

  #logDropped(entry: SharedLayer, reason: string): void {
    const { objects, log } = this.#options;
    log.warn({ ...objects.logged(entry), bytes: entry.size, reason }, "a layer will not be stored");
  }
}

function isKnown({ layerDigest }: SharedLayer, layers: LocalLayers): boolean {
  return layers.all().some((layer) => layer.layerDigest === layerDigest);
}

/** Milliseconds until an entry is due. */
function waitOf({ dueAt }: QueuedStore): number {
  const waitMs = Math.max(0, dueAt - steadyNow());
  // None waits for longer than that: this one was queued before the clock was set back.
  return waitMs > backoffMsMax ? 0 : waitMs;
}

function isLate({ queuedAt, attempts }: QueuedStore): boolean {
  return attempts >= attemptsMin && steadyNow() - queuedAt > patienceMs;
}
