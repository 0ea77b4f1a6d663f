/** The layers of this node: made ready, mounted, read, filled, and let go. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { Semaphore } from "../base/concurrency.ts";
import { ClipError, describeError } from "../base/errors.ts";
import { DiskCache } from "../cache/disk-cache.ts";
import type { DiskCacheState } from "../cache/evictor.ts";
import { ErofsReader } from "../erofs/reader.ts";
import type { FuseReadRequest } from "../fuse/session.ts";
import type { Log } from "../telemetry/log.ts";
import { ActiveLayers } from "./active-layers.ts";
import { BackgroundFill } from "./background-fill.ts";
import { ByteBudget } from "./byte-budget.ts";
import { CacheUpkeep, type VerifyCacheOptions } from "./cache-upkeep.ts";
import { cacheUsers } from "./cache-users.ts";
import type { ClusterCounters } from "./cluster/cluster-options.ts";
import { ClusterTier } from "./cluster/cluster-tier.ts";
import { newLayerCounters, type LayerCounters } from "./counters.ts";
import { DemandActivity } from "./demand-activity.ts";
import { differingDirectory } from "./implied-directories.ts";
import { IndexLookup } from "./index-lookup.ts";
import { KeyedQueue } from "../base/keyed-queue.ts";
import type { LayerBlob } from "./layer-blob.ts";
import { LayerMounting } from "./layer-mounting.ts";
import { LayerMounts } from "./layer-mounts.ts";
import { LayerParts, type LayerPartsOptions } from "./layer-parts.ts";
import { LayerPreparer } from "./layer-preparer.ts";
import { LayerRecovery } from "./layer-recovery.ts";
import { layerStatus, type LayerQueues, type LayerStatus } from "./layer-status.ts";
import type { LayersOptions, MountedLayer, RootAttributes } from "./layers-options.ts";
import { MetaImages } from "./meta-images.ts";
import type { MountMode } from "./mount-mode.ts";
import { LayerRecords, type LayerRecord } from "./records.ts";
import { SharedWork } from "../base/shared-work.ts";
import type { LayerTarget } from "./target.ts";
import { TrustedIndexes } from "./trusted-indexes.ts";
import type { LayerCheck } from "./verify-cache.ts";

const MiB = 1024 * 1024;

/** Owns the layers of a node; see the module. */
export class Layers {
  /** What has been done since {@link Layers.open}. */
  readonly counters: LayerCounters = newLayerCounters();
  /** How layers are mounted. */
  readonly mode: MountMode;
  readonly #log: Log;
  readonly #records: LayerRecords;
  readonly #cache: DiskCache;
  readonly #budget: ByteBudget;
  readonly #metaImages: MetaImages;
  readonly #mounts: LayerMounts;
  readonly #lookup: IndexLookup | undefined;
  readonly #pulls: Semaphore;
  readonly #parts: LayerParts;
  readonly #active: ActiveLayers;
  readonly #fill: BackgroundFill | undefined;
  readonly #upkeep: CacheUpkeep;
  readonly #mounting: LayerMounting;
  readonly #recovery: LayerRecovery;
  readonly #cluster: ClusterTier | undefined;
  readonly #ensuring = new SharedWork<number>();
  /** Preparing, mounting and releasing of one layer exclude each other; by diffID. */
  readonly #queue = new KeyedQueue();
  /** When each layer was last asked for, in the order of all requests. */
  readonly #wantedAt = new Map<number, number>();
  #clock = 0;

  private constructor(options: LayersOptions, cache: DiskCache) {
    const { root, session, registry, indexes, findIndexes, fuseMountpoint, log } = options;
    this.mode = options.mode;
    this.#log = log;
    this.#cache = cache;
    const { counters } = this;
    this.#budget = new ByteBudget(options.memoryBytesMax ?? 128 * MiB);
    const records = LayerRecords.open(join(root, "layers.db"));
    this.#records = records;
    this.#metaImages = new MetaImages({
      directory: join(root, "meta"),
      keepRuntimeDirectories: options.keepRuntimeDirectories ?? false,
    });
    this.#mounts = new LayerMounts({
      directory: join(root, "l"),
      fuseMountpoint,
      readAheadKilobytes: options.readAheadKilobytes ?? 1024,
      records,
      log,
    });
    this.#lookup =
      findIndexes === undefined ? undefined : new IndexLookup({ find: findIndexes, log });
    const activity = new DemandActivity();
    const trusted = new TrustedIndexes({ indexes, records, log });
    this.#cluster =
      options.cluster === undefined
        ? undefined
        : new ClusterTier({
            ...options.cluster,
            queuePath: join(root, "stores.db"),
            layers: {
              all: () => records.all(),
              completePath: ({ layerDigest, size }) => cache.completePath(layerDigest, size),
            },
            ...{ indexes: trusted, activity, log },
          });
    const cluster = this.#cluster === undefined ? {} : { cluster: this.#cluster };
    this.#pulls = new Semaphore(options.concurrentPulls ?? 3);
    const preparer = new LayerPreparer({
      ...cluster,
      checksLater: options.backgroundFillDelayMs !== undefined,
      ...(this.#lookup === undefined ? {} : { lookup: this.#lookup }),
      ...{ registry, cache, records, counters, activity, log },
      ...{ indexes: trusted, metaImages: this.#metaImages },
      ...{ spanBytes: options.spanBytes ?? MiB, pulls: this.#pulls },
      pullConnections: options.pullConnections ?? 4,
    });
    const verify: LayerPartsOptions["verify"] = (record, path, signal) =>
      this.#upkeep.verifyWhole(record, path, signal);
    this.#parts = new LayerParts({
      ...{ preparer, records, cache, indexes: trusted, metaImages: this.#metaImages, log },
      verify,
    });
    this.#active = new ActiveLayers({
      ...cluster,
      ...{ session, registry, cache, records, activity, counters, log },
      ...{ budget: this.#budget, pulls: this.#pulls },
      openAlternate: (record, digest, signal) => this.#parts.openAlternate(record, digest, signal),
      loadImage: async ({ layerDigest }) =>
        this.mode === "fuse" ? this.#metaImages.load(layerDigest) : undefined,
      reopen: (record) => this.#reopen(record),
      recover: (record, blob, error) => this.#recovery.recover(record, blob, error),
      onLost: (blob) => this.#fill?.schedule(blob),
    });
    this.#upkeep = new CacheUpkeep({
      ...{ fuseMountpoint, records, cache, indexes: trusted, activity, counters, log },
      ...{ metaImages: this.#metaImages, mounts: this.#mounts, parts: this.#parts },
      ...{ active: this.#active, queue: this.#queue, fill: (blob) => this.#fill?.schedule(blob) },
      keepRuntimeDirectories: options.keepRuntimeDirectories ?? false,
      ...{ scrub: options.scrub, scrubPath: join(root, "scrub.db") },
    });
    cache.setUsers(
      cacheUsers({
        ...{ records, mounts: this.#mounts, active: this.#active, queue: this.#queue, ...cluster },
      }),
    );
    this.#fill =
      options.backgroundFillDelayMs === undefined
        ? undefined
        : new BackgroundFill({
            delayMs: options.backgroundFillDelayMs,
            ...(options.backgroundFillBytesPerSecond === undefined
              ? {}
              : { bytesPerSecond: options.backgroundFillBytesPerSecond }),
            diskRoom: () => cache.room,
            activity,
            counters,
            log,
            verify: ({ head, file: { path, size } }, signal) =>
              this.#upkeep.verifyWhole({ ...head, size }, path, signal),
            onComplete: ({ head: { layerDigest, diffId, uncompressedSize: size } }) =>
              this.#cluster?.share({ layerDigest, diffId, size }),
            onFailure: (blob, error) => void this.#recovery.recoverBlob(blob, error),
            onMismatch: (blob) => void this.#recovery.condemn(blob),
          });
    const parts = { cache, parts: this.#parts, active: this.#active, mounts: this.#mounts };
    const fill = this.#fill;
    this.#mounting = new LayerMounting({
      ...{ ...parts, mode: this.mode, fuseMountpoint, metaImages: this.#metaImages, fill },
    });
    this.#recovery = new LayerRecovery({
      ...{ ...cluster, ...parts, records, indexes: trusted, mounting: this.#mounting, fill },
      ...{ queue: this.#queue, counters, log },
      verify,
    });
  }

  /**
   * Opens what an earlier run left: layers keep their numbers and bytes, mounts that still work are
   * taken over, everything that belongs to no layer is removed.
   * @throws ClipError ARGUMENT_INVALID, SYSTEM_CALL
   */
  static async open(options: LayersOptions): Promise<Layers> {
    const { root, fuseMountpoint, log } = options;
    if (`${root}${fuseMountpoint}`.includes(",")) {
      throw new ClipError("ARGUMENT_INVALID", "the paths of mounts must not contain commas");
    }
    await mkdir(root, { recursive: true, mode: 0o711 });
    const { diskLimits: limits } = options;
    const directory = join(root, "cache");
    const cache = await DiskCache.open({ directory, ...(limits && { limits }), log });
    const layers = new Layers(options, cache);
    await layers.#start();
    return layers;
  }

  /** What has been done for the cluster; undefined where layers are not shared. */
  get clusterCounters(): ClusterCounters | undefined {
    return this.#cluster?.counters;
  }

  /** As {@link Layers.ensure}, ahead of time. Never fails: a layer that cannot be had is undefined. */
  prefetch(target: LayerTarget, signal: AbortSignal): Promise<number | undefined> {
    return this.ensure(target, signal).catch((error: unknown) => {
      const fields = { layer: target.layerDigest, error: describeError(error) };
      this.#log.debug(fields, "a layer could not be made ready ahead of time");
      return undefined;
    });
  }

  /**
   * Makes a layer ready to be mounted, however long that takes.
   * @returns its number
   * @throws ClipError LAYER_UNSUPPORTED, REGISTRY_*, CORRUPT_*, LIMIT_EXCEEDED, DISK_FULL, ABORTED
   */
  async ensure(target: LayerTarget, signal?: AbortSignal): Promise<number> {
    const work = async (shared: AbortSignal) => {
      const ready = await this.#ensureNow(target, shared);
      // A release that waits behind this must find it wanted.
      this.#wantedAt.set(ready, ++this.#clock);
      return ready;
    };
    const number = await this.#ensuring.run(
      target.diffId,
      (shared) => this.#queue.run(target.diffId, () => work(shared)),
      signal,
    );
    // Others may have asked for the same layer with other repositories.
    this.#records.learn(target);
    this.#wantedAt.set(number, ++this.#clock);
    return number;
  }

  /**
   * Mounts a layer if it is not mounted; one that was condemned is made ready anew.
   * @throws ClipError ARGUMENT_INVALID for a layer that is not known, SYSTEM_CALL, and what
   *   {@link Layers.ensure} throws when something of the layer has been lost
   */
  async mount(number: number): Promise<MountedLayer> {
    return this.#withLayer(number, async (record) => {
      this.#cache.noteUse(record.layerDigest);
      const release = this.#cache.hold(record.layerDigest);
      const path = await this.#mounting.mount(record).finally(release);
      return { path, opaqueRoot: record.opaqueRoot };
    });
  }

  /**
   * Checks that a layer, mounted over these (the topmost first), looks as if it had been unpacked
   * over them.
   * @throws ClipError LAYER_UNSUPPORTED, ARGUMENT_INVALID for a layer that is not known, and what
   *   {@link Layers.ensure} throws when something of a layer has been lost
   */
  async checkOver(number: number, below: readonly number[]): Promise<void> {
    const implied = await this.#withLayer(number, async (record) =>
      this.#records.impliedDirectories(record.number),
    );
    const path = await differingDirectory(implied, this.#imagesOf(below));
    if (path === undefined) return;
    throw new ClipError(
      "LAYER_UNSUPPORTED",
      `directories without an entry of their own, as ${JSON.stringify(path.toString())}, take ` +
        "mode and owner from the layers below",
    );
  }

  /**
   * Mode and owner of the root of a layer. They come from its metadata image: nothing in this
   * process may look at a tree that it serves.
   * @throws what {@link Layers.mount} throws
   */
  async rootOf(number: number): Promise<RootAttributes> {
    const image = await this.#imageOf(number);
    const { mode, uid, gid } = image.inode(image.rootNid);
    return { mode, uid, gid };
  }

  /** What of a layer is really on this node's disk, and how many inodes it has. */
  async usage(number: number): Promise<{ bytes: number; inodes: number }> {
    const record = this.#records.byNumber(number);
    if (record === undefined && this.#records.diffIdOf(number) === undefined) throw unknown(number);
    // One that was condemned has nothing on disk.
    if (record === undefined) return { bytes: 0, inodes: 0 };
    const { layerDigest, inodes } = record;
    const [data, meta] = await Promise.all([
      this.#cache.bytesOnDisk(layerDigest),
      this.#metaImages.bytesOnDisk(layerDigest),
    ]);
    return { bytes: data + meta, inodes };
  }

  /** How it stands with each layer, one after the other, so that nothing urgent has to wait. */
  async status(): Promise<LayerStatus[]> {
    const sources = { cache: this.#cache, metaImages: this.#metaImages, active: this.#active };
    const all: LayerStatus[] = [];
    for (const record of this.#records.all()) all.push(await layerStatus(record, sources));
    return all;
  }

  /** Compares what is on disk with its digests; as {@link CacheUpkeep.verifyCache}. */
  verifyCache(options: VerifyCacheOptions): Promise<LayerCheck[]> {
    return this.#upkeep.verifyCache(options);
  }

  /** What the disk cache takes and may take, and what has been evicted. */
  get diskCache(): DiskCacheState {
    return this.#cache.state;
  }

  /** What waits to be done now, or is being done. */
  queues(): LayerQueues {
    const { running, waiting } = this.#pulls;
    const { used, limit } = this.#budget;
    return {
      fill: this.#fill?.queued ?? 0,
      pullsRunning: running,
      pullsWaiting: waiting,
      stores: this.#cluster?.storesWaiting ?? 0,
      memoryBytes: used,
      memoryBytesMax: limit,
    };
  }

  /**
   * Lets a layer go: its mounts, its bytes and its record; its index is kept. Nothing happens if the
   * layer is not known, has been asked for since, or has a former number that was not let go. Never
   * fails.
   */
  async release(number: number): Promise<void> {
    const diffId = this.#records.diffIdOf(number);
    if (diffId === undefined) return;
    const askedAt = ++this.#clock;
    try {
      await this.#queue.run(diffId, async () => {
        if ((this.#wantedAt.get(number) ?? 0) > askedAt) return;
        const former = this.#records.formerNumbers(diffId);
        if (former.includes(number)) {
          this.#records.forgetFormerNumber(number);
          this.#wantedAt.delete(number);
        }
        const record = this.#records.byNumber(number);
        // Whoever knows the layer by a former number needs it, too.
        if (record === undefined || former.length > 0) return;
        this.#records.remove(number);
        await this.#clear(record);
      });
    } catch (error) {
      this.#log.error({ number, error: describeError(error) }, "a layer could not be let go");
    }
  }

  /** The numbers of all layers that are known, former ones first. */
  numbers(): number[] {
    const numbers = this.#records.all().map(({ number }) => number);
    return [...this.#records.formerNumbers(), ...numbers];
  }

  /** Lets every layer go whose number is not among `inUse`: a crash may have left such. */
  async releaseUnused(inUse: Iterable<number>): Promise<void> {
    const used = new Set(inUse);
    const unused = this.numbers().filter((number) => !used.has(number));
    await Promise.all(unused.map((number) => this.release(number)));
  }

  /** Answers a read that the FUSE threads handed over. */
  handleRead(request: FuseReadRequest): void {
    this.#active.handleRead(request);
  }

  /**
   * Stops everything; what has been fetched is kept. Mounts are detached unless they are to be taken
   * over by the next run; whoever uses one keeps it. The FUSE session is not touched.
   */
  async close({ keepMounts = false } = {}): Promise<void> {
    this.#parts.stop();
    await this.#upkeep.close();
    await Promise.all([this.#ensuring.close(), this.#lookup?.close(), this.#fill?.close()]);
    await this.#queue.idle();
    await this.#cluster?.close();
    if (!keepMounts) await this.#mounts.releaseAll();
    await this.#active.close();
    await this.#parts.close();
    await Promise.all([this.#cache.close(), this.#metaImages.close()]);
    this.#records.close();
  }

  async #start(): Promise<void> {
    const records = this.#records.all();
    const digests = records.map(({ layerDigest }) => layerDigest);
    await this.#mounts.open();
    await this.#mounts.sweep(new Set(records.map(({ number }) => number)));
    await this.#metaImages.open(digests);
    await this.#cache.sweep(digests);
    await Promise.all(this.#mounts.servedByFuse().map((number) => this.#resume(number)));
    this.#cluster?.start();
    this.#upkeep.start();
  }

  /** Serves a layer again that someone may have mounted; one that cannot be does not keep others. */
  async #resume(number: number): Promise<void> {
    try {
      const record = this.#records.byNumber(number);
      if (record === undefined) throw unknown(number);
      if (await this.#mounting.resume(record)) return;
      this.#log.warn(
        { number },
        "the index of a mounted layer has gone: it is had again when read",
      );
    } catch (error) {
      this.#log.error({ number, error: describeError(error) }, "a mounted layer cannot be served");
    }
  }

  async #reopen(record: LayerRecord): Promise<LayerBlob> {
    const blob = await this.#upkeep.reopen(record);
    this.#fill?.schedule(blob);
    return blob;
  }

  async *#imagesOf(numbers: readonly number[]): AsyncGenerator<ErofsReader> {
    for (const number of numbers) yield await this.#imageOf(number);
  }

  async #imageOf(number: number): Promise<ErofsReader> {
    const image = await this.#withLayer(number, async (record) => {
      const { layerDigest } = await this.#parts.ensureImage(record);
      return this.#metaImages.load(layerDigest);
    });
    return new ErofsReader(Buffer.from(image));
  }

  async #ensureNow(target: LayerTarget, signal: AbortSignal): Promise<number> {
    const known = this.#records.byDiffId(target.diffId);
    if (known !== undefined) {
      const { number } = known;
      if (this.#active.has(number) || (await this.#parts.isUsable(known))) return number;
    }
    return (await this.#parts.prepare(target, signal)).number;
  }

  /** Lets everything go of a layer that is no longer on record. */
  async #clear(record: LayerRecord): Promise<void> {
    // What a crash leaves of it is swept at the next start.
    this.#wantedAt.delete(record.number);
    await this.#mounting.end(record);
    await this.#parts.discard(record.layerDigest);
  }

  /** Does something with a layer, alone; one that was condemned is made ready anew before that. */
  #withLayer<Value>(number: number, work: (record: LayerRecord) => Promise<Value>): Promise<Value> {
    const diffId = this.#records.diffIdOf(number);
    if (diffId === undefined) return Promise.reject(unknown(number));
    return this.#queue.run(diffId, async () => {
      const known = this.#records.byNumber(number);
      if (known !== undefined) return work(known);
      if (this.#records.diffIdOf(number) === undefined) throw unknown(number);
      return work(await this.#parts.prepareAnew(diffId));
    });
  }
}

function unknown(number: number): ClipError {
  return new ClipError("ARGUMENT_INVALID", `there is no layer ${number}`);
}
