/**
 * What a layer is mounted and read from besides its bytes: its metadata image and its index. Either
 * is made anew when it has been lost.
 */
import type { Digest } from "../base/digest.ts";
import { ClipError, describeError, isClipError } from "../base/errors.ts";
import type { DiskCache } from "../cache/disk-cache.ts";
import type { LayerIndexReader } from "../index/reader.ts";
import type { IndexStore } from "../index/store.ts";
import type { Log } from "../telemetry/log.ts";
import type { LayerPreparer } from "./layer-preparer.ts";
import type { MetaImages } from "./meta-images.ts";
import type { LayerRecord, LayerRecords } from "./records.ts";
import type { SpanIndex } from "./registry-source.ts";
import type { LayerTarget } from "./target.ts";

/** Bound of making a layer ready again of which something was lost. */
const recoveryMs = 10 * 60_000;

/** What {@link LayerParts} is made with; it owns none of it. */
export interface LayerPartsOptions {
  preparer: LayerPreparer;
  metaImages: MetaImages;
  indexes: IndexStore;
  records: LayerRecords;
  cache: DiskCache;
  log: Log;
}

/** The parts of all layers; see the module. Calls for one layer must not overlap. */
export class LayerParts {
  readonly #options: LayerPartsOptions;
  /** Indexes of layers that have been made ready and not been used yet; may not be on disk yet. */
  readonly #freshIndexes = new Map<number, LayerIndexReader>();

  readonly #stopping = new AbortController();

  constructor(options: LayerPartsOptions) {
    this.#options = options;
  }

  /**
   * As {@link LayerPreparer.prepare}.
   * @returns the number of the layer
   */
  async prepare(target: LayerTarget, signal: AbortSignal): Promise<number> {
    const { record, index } = await this.#options.preparer.prepare(target, signal);
    await this.#freshIndexes.get(record.number)?.close();
    this.#freshIndexes.set(record.number, index);
    return record.number;
  }

  /** Whether a layer that nobody uses could be mounted as it is. */
  async isUsable({ number, layerDigest, size }: LayerRecord): Promise<boolean> {
    const { metaImages, cache } = this.#options;
    if (this.#freshIndexes.has(number)) return true;
    if (!(await metaImages.has(layerDigest))) return false;
    if ((await cache.completePath(layerDigest, size)) !== undefined) return true;
    const index = await this.#openIndex(layerDigest);
    await index?.close();
    return index !== undefined;
  }

  /** Makes sure that the metadata image is there: it may have been made by another version. */
  async ensureImage(record: LayerRecord): Promise<void> {
    const { metaImages } = this.#options;
    const { layerDigest } = record;
    if (await metaImages.has(layerDigest)) return;
    const index = await this.#openIndex(layerDigest);
    if (index === undefined) {
      await this.#prepareAgain(record);
      return;
    }
    try {
      await metaImages.make(index);
    } finally {
      await index.close();
    }
  }

  /** The index of a layer; made anew if it has gone, undefined if the layer is complete then. */
  async takeIndex(record: LayerRecord): Promise<LayerIndexReader | undefined> {
    const { number, layerDigest, size } = record;
    const kept = this.#freshIndexes.get(number) ?? (await this.#openIndex(layerDigest));
    if (kept === undefined) await this.#prepareAgain(record);
    const index = kept ?? this.#freshIndexes.get(number);
    this.#freshIndexes.delete(number);
    if (kept !== undefined) return index;
    const complete = await this.#options.cache.completePath(layerDigest, size);
    if (complete === undefined) return index;
    await index?.close();
    return undefined;
  }

  /** The index of a layer if it is kept here. */
  async takeKeptIndex({ number, layerDigest }: LayerRecord): Promise<LayerIndexReader | undefined> {
    const kept = this.#freshIndexes.get(number) ?? (await this.#openIndex(layerDigest));
    this.#freshIndexes.delete(number);
    return kept;
  }

  /** An index of another blob with the same contents, kept here or published. */
  async openAlternate(
    record: LayerRecord,
    layerDigest: Digest,
    signal: AbortSignal,
  ): Promise<SpanIndex | undefined> {
    const target = this.#targetOf(record, layerDigest);
    const found =
      (await this.#openIndex(layerDigest)) ??
      (await this.#options.preparer.publishedIndex(target, target.repositories, signal));
    return found?.head.diffId === record.diffId ? found : undefined;
  }

  /** Drops what is in memory of a layer. */
  async forget(number: number): Promise<void> {
    await this.#freshIndexes.get(number)?.close();
    this.#freshIndexes.delete(number);
  }

  /** Gives up making layers ready again. */
  stop(): void {
    this.#stopping.abort();
  }

  async close(): Promise<void> {
    for (const number of [...this.#freshIndexes.keys()]) await this.forget(number);
  }

  async #prepareAgain(record: LayerRecord): Promise<void> {
    const target = this.#targetOf(record, record.layerDigest);
    const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(recoveryMs)]);
    await this.prepare(target, signal);
  }

  async #openIndex(layerDigest: Digest): Promise<LayerIndexReader | undefined> {
    const { indexes, log } = this.#options;
    try {
      return await indexes.open(layerDigest);
    } catch (error) {
      if (!isClipError(error)) throw error;
      log.warn({ layer: layerDigest, error: describeError(error) }, "a kept index is damaged");
      return undefined;
    }
  }

  #targetOf(record: LayerRecord, layerDigest: Digest): LayerTarget {
    const blob = this.#options.records
      .blobs(record.diffId)
      .find((candidate) => candidate.layerDigest === layerDigest);
    if (blob !== undefined) return { ...blob, diffId: record.diffId };
    throw new ClipError("REGISTRY_NOT_FOUND", `no repository of ${layerDigest} is known`);
  }
}
