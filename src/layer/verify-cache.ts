/**
 * Finds what has gone bad on disk, has it served no more, and puts the right bytes in its place. A file
 * that the kernel reads by itself, as the device of an EROFS mount, is only ever written over.
 */
import { open, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import type { Digest } from "../base/digest.ts";
import { ClipError, describeError } from "../base/errors.ts";
import type { KeyedQueue } from "../base/keyed-queue.ts";
import type { DiskCache } from "../cache/disk-cache.ts";
import { blobName } from "../fuse/session.ts";
import type { LayerHead } from "../index/model.ts";
import type { Log } from "../telemetry/log.ts";
import type { ActiveLayers } from "./active-layers.ts";
import type { LayerCounters } from "./counters.ts";
import { isFormer, overwriteFormer } from "./former-file.ts";
import { missingSpans, type LayerBlob } from "./layer-blob.ts";
import type { LayerMounts } from "./layer-mounts.ts";
import type { LayerParts } from "./layer-parts.ts";
import type { MetaImages } from "./meta-images.ts";
import type { LayerRecord, LayerRecords } from "./records.ts";
import { spanTableOf } from "./span-source.ts";
import type { TrustedIndexes } from "./trusted-indexes.ts";
import type { Verification } from "./verification.ts";
import { checkSpans, checkWhole, type CheckPace, type SpanFindings } from "./verify-spans.ts";

/** What was found of one layer. */
export interface LayerCheck {
  number: number;
  layerDigest: Digest;
  /** Spans that were read, and their bytes; a layer without a kept index is read as one. */
  spans: number;
  bytes: number;
  /** Spans whose bytes on disk were wrong or could not be read. */
  damaged: number;
  /** Those of them that are right on disk again. The others are fetched when somebody reads them. */
  repaired: number;
  /** `damaged`: it is made anew for the next mount; `missing` ones are made when they are needed. */
  image: "right" | "missing" | "damaged" | "repaired";
}

/** How layers are checked. */
export interface CheckOptions extends CheckPace {
  /** Fetch at once what was damaged. */
  repair: boolean;
}

/** What {@link CacheVerifier} is made with; it owns none of it. */
export interface CacheVerifierOptions {
  fuseMountpoint: string;
  records: LayerRecords;
  cache: DiskCache;
  indexes: TrustedIndexes;
  metaImages: MetaImages;
  mounts: LayerMounts;
  parts: LayerParts;
  active: ActiveLayers;
  /** What is done with one layer excludes each other; by diffID. */
  queue: KeyedQueue;
  /** Reads a complete layer and puts its metadata image right. */
  verify: (record: LayerRecord, path: string, signal: AbortSignal) => Promise<Verification>;
  /** Has the rest of a layer fetched some time. */
  fill: (blob: LayerBlob) => void;
  counters: LayerCounters;
  log: Log;
}

/** See the module. */
export class CacheVerifier {
  readonly #options: CacheVerifierOptions;

  constructor(options: CacheVerifierOptions) {
    this.#options = options;
  }

  /**
   * Checks one layer.
   * @throws AbortError
   */
  async check(record: LayerRecord, options: CheckOptions): Promise<LayerCheck> {
    const { counters, log } = this.#options;
    const { number, layerDigest } = record;
    const data = await this.#checkData(record, options);
    const image = await this.#checkImage(record, options);
    counters.checkedBytes += data.bytes;
    counters.damagedSpans += data.damaged;
    counters.repairedSpans += data.repaired;
    if (image === "damaged" || image === "repaired") counters.damagedImages++;
    if (image === "repaired") counters.repairedImages++;
    const found = { ...data, image };
    if (data.damaged > 0 || image === "damaged" || image === "repaired") {
      log.error({ layer: layerDigest, number, ...found }, "a layer was damaged on disk");
    } else {
      log.debug({ layer: layerDigest, number, ...found }, "a layer is right on disk");
    }
    return { number, layerDigest, ...found };
  }

  /**
   * Serves a layer span by span that was served as a whole, since something of it cannot be read.
   * @throws ClipError CLOSED when it has been let go, and what keeps its index from being had
   */
  async reopen({ number, diffId }: LayerRecord): Promise<LayerBlob> {
    const { queue, active, records } = this.#options;
    return queue.run(diffId, async () => {
      const record = records.byNumber(number);
      if (record?.number !== number) throw new ClipError("CLOSED", "the layer has been let go");
      return active.blob(number) ?? this.#open(record);
    });
  }

  async #checkData(record: LayerRecord, options: CheckOptions) {
    const { active, cache, mounts } = this.#options;
    const { number, layerDigest, diffId } = record;
    const blob = active.blob(number);
    if (blob !== undefined) {
      const { head, file } = blob;
      const view = { head, path: file.path, present: file.spanPresent };
      return this.#withHealed(record, await checkSpans(view, options), options);
    }
    const path = cache.dataPath(layerDigest);
    const claims = await cache.claims(layerDigest);
    if (claims === undefined) {
      const isRead = (await mounts.current(number)) === "local";
      // The kernel reads a file of which nobody knows any more what is in it.
      return isRead ? this.#heal(record, undefined, options) : nothing;
    }
    const head = await this.#keptHead(layerDigest, claims.tableDigest);
    if (head !== undefined) {
      const present = claims.complete ? claims.present.fill(1) : claims.present;
      return this.#withHealed(record, await checkSpans({ path, head, present }, options), options);
    }
    if (!claims.complete) return nothing;
    const whole = { path, size: claims.size, digest: diffId };
    const read = { spans: 1, bytes: claims.size };
    if (await checkWhole(whole, options)) return { ...nothing, ...read };
    const healed = await this.#heal(record, undefined, options);
    return { ...healed, ...read };
  }

  async #withHealed(record: LayerRecord, found: SpanFindings, options: CheckOptions) {
    const { spans, bytes, damaged } = found;
    if (damaged.length === 0) return { ...nothing, spans, bytes };
    const healed = await this.#heal(record, damaged, options);
    return { ...healed, spans, bytes };
  }

  /** The head of the kept index of a layer if it divides the layer in this way. */
  async #keptHead(layerDigest: Digest, tableDigest: Digest): Promise<LayerHead | undefined> {
    const { indexes, log } = this.#options;
    try {
      const index = await indexes.open(layerDigest);
      await index?.close();
      if (index === undefined || spanTableOf(index.head).digest !== tableDigest) return undefined;
      return index.head;
    } catch (error) {
      const fields = { layer: layerDigest, error: describeError(error) };
      log.warn(fields, "the kept index of a layer cannot be used");
      return undefined;
    }
  }

  /**
   * Looks again at these spans (default: all), alone; gives up those that are damaged and, where that
   * is wanted or the kernel may read them, writes right ones over them.
   */
  #heal(record: LayerRecord, spans: readonly number[] | undefined, options: CheckOptions) {
    const { queue, active, cache, mounts, records } = this.#options;
    const { number, diffId } = record;
    return queue.run(diffId, async () => {
      if (records.byNumber(number) === undefined) return nothing;
      const wasServed = active.has(number);
      const isDevice = (await mounts.current(number)) === "local";
      const path = cache.dataPath(record.layerDigest);
      const before = isDevice ? await open(path, "r+").catch(() => undefined) : undefined;
      let blob = active.blob(number);
      try {
        blob ??= await this.#open(record);
        if (before !== undefined && (await isFormer(before, blob.file.path))) {
          return await this.#healFormer(before, blob, options);
        }
        return await this.#healBlob(blob, spans, isDevice, options);
      } catch (error) {
        if (blob !== undefined) throw error;
        return await this.#abandon(record, error);
      } finally {
        await before?.close();
        if (!wasServed) await active.remove(number);
      }
    });
  }

  async #healBlob(
    blob: LayerBlob,
    spans: readonly number[] | undefined,
    isDevice: boolean,
    options: CheckOptions,
  ) {
    const { log, fill } = this.#options;
    const { file, head } = blob;
    const layer = head.layerDigest;
    const wasComplete = file.complete;
    const view = { head, path: file.path, present: file.spanPresent };
    const pace = { before: async () => {}, signal: options.signal };
    const { damaged } = await checkSpans(view, pace, spans);
    try {
      if (damaged.length > 0) await file.drop(damaged);
    } catch (error) {
      // Readers do not see them any more; after a restart they are found again.
      log.error({ layer, error: describeError(error) }, "the span map cannot be written");
    }
    const missing = isDevice ? missingSpans(blob) : damaged;
    const isWanted = options.repair || isDevice;
    const repaired = isWanted ? await blob.restore(missing, options.signal) : 0;
    if (repaired < missing.length || !wasComplete) fill(blob);
    else if (missing.length > 0) await file.markComplete();
    return { ...nothing, damaged: missing.length, repaired };
  }

  /** The kernel reads a file in the place of which the one of `blob` has come. */
  async #healFormer(former: FileHandle, blob: LayerBlob, options: CheckOptions) {
    await blob.restore(missingSpans(blob), options.signal);
    const isWhole = await overwriteFormer(former, blob.file);
    if (!isWhole) {
      const layer = blob.head.layerDigest;
      this.#options.log.error({ layer }, "a file that the kernel reads could not be put right");
      this.#options.fill(blob);
    }
    return { ...nothing, damaged: 1, repaired: isWhole ? 1 : 0 };
  }

  /** Nothing is known of the layer but that it is wrong. */
  async #abandon({ number, layerDigest }: LayerRecord, error: unknown) {
    const { active, cache, log } = this.#options;
    const fields = { layer: layerDigest, number, error: describeError(error) };
    log.error(fields, "a damaged layer cannot be repaired, and is not served until it can be had");
    await active.remove(number);
    await cache.disown(layerDigest);
    return { ...nothing, damaged: 1 };
  }

  async #open(known: LayerRecord): Promise<LayerBlob> {
    const { parts, indexes, active } = this.#options;
    const { record, index } = await parts.takeIndex(await parts.ensureImage(known));
    if (index !== undefined) return active.addPartial(record, index);
    // It was made anew, and is being kept.
    await indexes.settled();
    const made = await parts.takeKeptIndex(record);
    if (made !== undefined) return active.addPartial(record, made);
    throw noIndex(record);
  }

  async #checkImage(record: LayerRecord, options: CheckOptions): Promise<LayerCheck["image"]> {
    const { metaImages, queue, records, log } = this.#options;
    const { layerDigest, number, diffId } = record;
    const state = await metaImages.check(layerDigest);
    if (state === "right" || state === "missing") return state;
    return queue.run(diffId, async () => {
      if (records.byNumber(number) === undefined) return "missing";
      const now = await metaImages.check(layerDigest);
      if (now === "right" || now === "missing") return now;
      if (now === "unknown" && !options.repair) return "right";
      try {
        if (options.repair) await this.#remakeImage(record, options.signal);
        else await metaImages.remove(layerDigest);
        if (now === "unknown") return "right";
        return options.repair ? "repaired" : "damaged";
      } catch (error) {
        options.signal.throwIfAborted();
        const fields = { layer: layerDigest, number, error: describeError(error) };
        log.error(fields, "a metadata image cannot be made anew");
        return now === "unknown" ? "right" : "damaged";
      }
    });
  }

  async #remakeImage(record: LayerRecord, signal: AbortSignal): Promise<void> {
    const { metaImages, cache, parts, verify } = this.#options;
    const { layerDigest, size, diffId } = record;
    const complete = await cache.completePath(layerDigest, size);
    if (complete !== undefined) await verify(record, complete, signal);
    // What the archive says is the truth; without it the index is asked.
    if ((await metaImages.check(layerDigest)) !== "right") {
      await metaImages.remove(layerDigest);
      await parts.ensureImage(record);
    }
    await this.#mountAgain(record, complete);
    this.#options.log.warn({ layer: layerDigest, diffId }, "a metadata image was made anew");
  }

  /** Mounts that are in use keep the image that they were made from; those to come get this one. */
  async #mountAgain({ number, layerDigest }: LayerRecord, complete: string | undefined) {
    const { mounts, metaImages, fuseMountpoint } = this.#options;
    const backing = await mounts.current(number);
    if (backing === undefined) return;
    const served = join(fuseMountpoint, blobName(number));
    const device = backing === "local" ? complete : served;
    if (device === undefined) return;
    await mounts.mount(number, metaImages.path(layerDigest), device, backing);
  }
}

const nothing = { spans: 0, bytes: 0, damaged: 0, repaired: 0 };

function noIndex({ layerDigest }: LayerRecord): ClipError {
  return new ClipError("REGISTRY_NOT_FOUND", `no index of ${layerDigest} can be had`);
}
