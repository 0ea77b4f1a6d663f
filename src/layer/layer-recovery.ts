/**
 * What becomes of a layer whose index is wrong. If only its data cannot be had by that index, the layer
 * is pulled whole, and goes on under its number; if the index has shown what is not so, the layer is
 * condemned.
 */
import { open, type FileHandle } from "node:fs/promises";
import { ClipError, describeError } from "../base/errors.ts";
import type { KeyedQueue } from "../base/keyed-queue.ts";
import type { DiskCache } from "../cache/disk-cache.ts";
import type { LayerIndexReader } from "../index/reader.ts";
import type { Log } from "../telemetry/log.ts";
import type { ActiveLayers } from "./active-layers.ts";
import type { BackgroundFill } from "./background-fill.ts";
import type { ClusterTier } from "./cluster/cluster-tier.ts";
import type { LayerCounters } from "./counters.ts";
import { isFormer, overwriteFormer } from "./former-file.ts";
import { missingSpans, type LayerBlob } from "./layer-blob.ts";
import type { LayerMounting } from "./layer-mounting.ts";
import type { LayerMounts } from "./layer-mounts.ts";
import type { LayerParts } from "./layer-parts.ts";
import type { PulledLayer } from "./layer-preparer.ts";
import type { LayerRecord, LayerRecords } from "./records.ts";
import { RecoveryPauses } from "./recovery-pauses.ts";
import { isCorrupt } from "./span-race.ts";
import type { TrustedIndexes } from "./trusted-indexes.ts";
import type { Verification } from "./verification.ts";
import { checkSpans } from "./verify-spans.ts";

/** What {@link LayerRecovery} is made with; it owns none of it. */
export interface LayerRecoveryOptions {
  records: LayerRecords;
  cache: DiskCache;
  indexes: TrustedIndexes;
  parts: LayerParts;
  mounts: LayerMounts;
  mounting: LayerMounting;
  active: ActiveLayers;
  /** What is done with one layer excludes each other; by diffID. */
  queue: KeyedQueue;
  /** Absent: layers are not completed in the background. */
  fill: BackgroundFill | undefined;
  /** Absent: layers are not shared. */
  cluster?: ClusterTier;
  /** Reads a complete layer, and compares its metadata image with it. */
  verify: (record: LayerRecord, path: string, signal: AbortSignal) => Promise<Verification>;
  counters: LayerCounters;
  log: Log;
}

/** See the module. */
export class LayerRecovery {
  readonly #options: LayerRecoveryOptions;
  readonly #running = new Map<number, Promise<LayerBlob | undefined>>();
  readonly #pauses = new RecoveryPauses();

  constructor(options: LayerRecoveryOptions) {
    this.#options = options;
  }

  /**
   * Has a layer anew if bytes of it, or what its index says of them, were wrong although every source
   * was asked: once, however many reads fail by that, and not again soon.
   * @returns what serves the layer instead of `blob`; undefined when the failure stands. Never fails.
   */
  async recover(
    { number, diffId }: LayerRecord,
    blob: LayerBlob,
    failure: unknown,
  ): Promise<LayerBlob | undefined> {
    const running = this.#running.get(number);
    if (running !== undefined) return running;
    const served = this.#options.active.blob(number);
    if (served !== blob) return served;
    if (!isCorrupt(failure) || !this.#pauses.isOver(number)) return undefined;
    const recovering = this.#options.queue
      .run(diffId, () => this.#recoverNow(number, blob, failure))
      .catch((error: unknown) => this.#noteFailure(blob, number, error))
      .finally(() => this.#running.delete(number));
    this.#running.set(number, recovering);
    return recovering;
  }

  /** As {@link recover}, where it was no read that failed. */
  async recoverBlob(blob: LayerBlob, failure: unknown): Promise<void> {
    const record = this.#options.records.byDiffId(blob.head.diffId);
    if (record !== undefined) await this.recover(record, blob, failure);
  }

  /**
   * The index lied about the layer: what is mounted of it fails from now on, and it is made ready anew
   * for the next mount. Never fails.
   */
  async condemn(blob: LayerBlob): Promise<void> {
    const { active, queue, records, parts, cluster, log } = this.#options;
    const { diffId, layerDigest } = blob.head;
    try {
      const found = active.condemn(blob, lie(blob));
      const distrusted = cluster?.distrust(blob.head);
      if (found !== undefined) {
        await queue.run(diffId, async () => {
          const record = records.byNumber(found.number);
          if (record === undefined || active.blob(record.number) !== blob) return;
          await this.#letGo(record, blob);
          await parts.discard(layerDigest);
        });
      }
      await distrusted;
    } catch (error) {
      const fields = { layer: layerDigest, error: describeError(error) };
      log.error(fields, "a wrong layer could not be let go");
    }
  }

  async #recoverNow(
    number: number,
    blob: LayerBlob,
    failure: unknown,
  ): Promise<LayerBlob | undefined> {
    const { records, active, mounts, cache, counters, log } = this.#options;
    const record = records.byNumber(number);
    // While this waited the layer may have been let go, or been had anew.
    if (record?.number !== number || active.blob(number) !== blob) return active.blob(number);
    const layer = record.layerDigest;
    log.warn(
      { layer, number, error: describeError(failure) },
      "bytes of a layer are not what its index says, wherever they come from: it is pulled whole",
    );
    const isDevice = (await mounts.current(number)) === "local";
    const device = isDevice
      ? await open(cache.dataPath(layer), "r+").catch(() => undefined)
      : undefined;
    try {
      const replaced = await this.#replace(record, blob);
      this.#pauses.succeeded(number);
      if (replaced === undefined) {
        counters.mismatches++;
        log.error({ layer, number }, "the index of a layer has lied; the layer is made ready anew");
        return undefined;
      }
      if (device !== undefined) await this.#overwrite(device, replaced);
      counters.recoveries++;
      log.warn({ layer, number }, "a layer with a wrong index was pulled whole, and goes on");
      return replaced;
    } finally {
      await device?.close();
    }
  }

  /** Pulls a layer whole and serves that; undefined if it had to be condemned. */
  async #replace(record: LayerRecord, blob: LayerBlob): Promise<LayerBlob | undefined> {
    const { parts, active, fill } = this.#options;
    const { number, diffId, layerDigest } = record;
    const former: Former = { state: "served" };
    const makeWay = async (pulled: PulledLayer, signal: AbortSignal) => {
      // It did that for another blob of the layer, which could not be taken after all.
      if (former.state !== "served") return;
      const hasLied = await this.#hasLied(record, blob, pulled, signal);
      // If another blob had to be taken it was the first that is wrong.
      const isSameBlob = pulled.reader.head.layerDigest === layerDigest;
      if (hasLied || isSameBlob) await this.#distrust(number, blob);
      if (hasLied) {
        former.state = "condemned";
        active.condemn(blob, lie(blob));
        await this.#letGo(record, blob);
      } else {
        await fill?.cancel(blob);
        former.state = "suspended";
        former.index = await active.suspend(number);
      }
    };
    try {
      const anew = await parts.prepareAnew(diffId, makeWay);
      if (former.state === "condemned") return undefined;
      const index = parts.takeFreshIndex(anew);
      if (index === undefined) throw new ClipError("CLOSED", "the layer has been let go");
      const replacement = await active.addPartial(anew, index);
      await former.index?.close();
      return replacement;
    } catch (error) {
      if (former.state === "condemned") await parts.discard(layerDigest);
      if (former.index !== undefined) await this.#serveAgain(record, former.index);
      throw error;
    }
  }

  /** Whether the index of `blob` says something else of the layer, as far as it has been shown. */
  async #hasLied(
    record: LayerRecord,
    { head, file }: LayerBlob,
    { reader, path }: PulledLayer,
    signal: AbortSignal,
  ): Promise<boolean> {
    if (reader.head.uncompressedSize !== record.size) return true;
    const shown = { head, path, present: file.spanPresent };
    const { damaged } = await checkSpans(shown, { before: async () => {}, signal });
    if (damaged.length > 0) return true;
    const { image } = await this.#options.verify(record, path, signal);
    return image === "lie";
  }

  async #distrust(number: number, blob: LayerBlob): Promise<void> {
    const { active, indexes, cluster } = this.#options;
    const index = active.index(number);
    if (index !== undefined) await indexes.distrust(index);
    // Before the right one is shared.
    await cluster?.distrust(blob.head);
  }

  /** Puts the file right that the kernel reads, if the one of `blob` has come in its place. */
  async #overwrite(device: FileHandle, blob: LayerBlob): Promise<void> {
    const { parts, log } = this.#options;
    if (!(await isFormer(device, blob.file.path))) return;
    // Nothing, unless it could not be recorded that the layer is complete.
    await blob.restore(missingSpans(blob), parts.stopping);
    if (await overwriteFormer(device, blob.file)) return;
    const layer = blob.head.layerDigest;
    log.error({ layer }, "a file that the kernel reads could not be put right");
  }

  /** The layer could not be replaced after all. */
  async #serveAgain(record: LayerRecord, index: LayerIndexReader): Promise<void> {
    const { active, fill, log } = this.#options;
    const { number, layerDigest } = record;
    try {
      const blob = await active.addPartial(record, index);
      fill?.schedule(blob);
    } catch (error) {
      const fields = { layer: layerDigest, number, error: describeError(error) };
      log.error(fields, "a layer is not served until it is mounted again");
      await active.remove(number);
    }
  }

  /** Ends a layer that was made from an index that lied, and remembers both. */
  async #letGo(record: LayerRecord, blob: LayerBlob): Promise<void> {
    const { active, records, indexes, mounting } = this.#options;
    const index = active.index(record.number);
    if (index !== undefined) records.condemn(record.number, index.headDigest);
    await indexes.remove(blob.head.layerDigest);
    await mounting.end(record);
  }

  #noteFailure(blob: LayerBlob, number: number, error: unknown): undefined {
    const { counters, log } = this.#options;
    counters.recoveryErrors++;
    this.#pauses.failed(number);
    const fields = { layer: blob.head.layerDigest, number, error: describeError(error) };
    log.error(fields, "a layer whose index is wrong could not be had anew");
    return undefined;
  }
}

/** What has become of what was served. */
interface Former {
  state: "served" | "suspended" | "condemned";
  index?: LayerIndexReader | undefined;
}

function lie({ head }: LayerBlob): ClipError {
  return new ClipError("CORRUPT_LAYER", `${head.layerDigest} is not what its index says`);
}
