/**
 * What a layer is mounted and read from besides its bytes: its metadata image and its index. Either
 * is made anew when it has been lost.
 */
import type { Digest } from "../base/digest.ts";
import { ClipError, isClipError } from "../base/errors.ts";
import type { DiskCache } from "../cache/disk-cache.ts";
import type { LayerIndexReader } from "../index/reader.ts";
import type { LayerPreparer } from "./layer-preparer.ts";
import type { MetaImages } from "./meta-images.ts";
import type { LayerRecord, LayerRecords } from "./records.ts";
import type { LayerTarget } from "./target.ts";
import type { TrustedIndexes } from "./trusted-indexes.ts";

/** Bound of making a layer ready again of which something was lost. */
const recoveryMs = 10 * 60_000;

/** What {@link LayerParts} is made with; it owns none of it. */
export interface LayerPartsOptions {
  preparer: LayerPreparer;
  metaImages: MetaImages;
  indexes: TrustedIndexes;
  records: LayerRecords;
  cache: DiskCache;
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

  /** As {@link LayerPreparer.prepare}; what there is of another blob of the layer goes. */
  async prepare(target: LayerTarget, signal: AbortSignal): Promise<LayerRecord> {
    const { preparer, records } = this.#options;
    const before = records.byDiffId(target.diffId);
    const { record, index } = await preparer.prepare(target, signal);
    await this.#freshIndexes.get(record.number)?.close();
    this.#freshIndexes.set(record.number, index);
    if (before !== undefined && before.layerDigest !== record.layerDigest) {
      await this.discard(before.layerDigest);
    }
    return record;
  }

  /**
   * Makes a layer ready that has no record any more, from whatever blob of it is known.
   * @throws what {@link prepare} throws for the last of them
   */
  async prepareKnown(diffId: Digest): Promise<LayerRecord> {
    let failure: unknown = new ClipError("REGISTRY_NOT_FOUND", `no blob of ${diffId} is known`);
    for (const blob of this.#options.records.blobs(diffId)) {
      try {
        return await this.prepare({ ...blob, diffId }, this.#recoverySignal());
      } catch (error) {
        if (!isClipError(error)) throw error;
        failure = error;
      }
    }
    throw failure;
  }

  /** Deletes what is on disk of a blob, besides its index, unless a layer is made of it. */
  async discard(layerDigest: Digest): Promise<void> {
    const { records, cache, metaImages } = this.#options;
    if (records.all().some((record) => record.layerDigest === layerDigest)) return;
    // A mount that still reads from the file keeps it.
    await cache.removeLayer(layerDigest);
    await metaImages.remove(layerDigest);
  }

  /** Whether a layer that nobody uses could be mounted as it is. */
  async isUsable({ number, layerDigest, size }: LayerRecord): Promise<boolean> {
    const { metaImages, cache } = this.#options;
    if (this.#freshIndexes.has(number)) return true;
    if (!(await metaImages.has(layerDigest))) return false;
    if ((await cache.completePath(layerDigest, size)) !== undefined) return true;
    const index = await this.#options.indexes.open(layerDigest);
    await index?.close();
    return index !== undefined;
  }

  /** Makes sure that the metadata image is there: it may have been made by another version. */
  async ensureImage(record: LayerRecord): Promise<void> {
    const { metaImages } = this.#options;
    const { layerDigest } = record;
    if (await metaImages.has(layerDigest)) return;
    const index = await this.#options.indexes.open(layerDigest);
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
    const kept = this.#freshIndexes.get(number) ?? (await this.#options.indexes.open(layerDigest));
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
    const kept = this.#freshIndexes.get(number) ?? (await this.#options.indexes.open(layerDigest));
    this.#freshIndexes.delete(number);
    return kept;
  }

  /** An index of another blob with the same contents, kept here or published; the caller closes it. */
  async openAlternate(
    record: LayerRecord,
    layerDigest: Digest,
    signal: AbortSignal,
  ): Promise<LayerIndexReader | undefined> {
    const { indexes, preparer } = this.#options;
    const target = this.#targetOf(record, layerDigest);
    return (
      (await indexes.openFor(target)) ??
      (await preparer.publishedIndex(target, target.repositories, signal))
    );
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
    await this.prepare(this.#targetOf(record, record.layerDigest), this.#recoverySignal());
  }

  #recoverySignal(): AbortSignal {
    return AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(recoveryMs)]);
  }

  #targetOf(record: LayerRecord, layerDigest: Digest): LayerTarget {
    const blob = this.#options.records
      .blobs(record.diffId)
      .find((candidate) => candidate.layerDigest === layerDigest);
    if (blob !== undefined) return { ...blob, diffId: record.diffId };
    throw new ClipError("REGISTRY_NOT_FOUND", `no repository of ${layerDigest} is known`);
  }
}
