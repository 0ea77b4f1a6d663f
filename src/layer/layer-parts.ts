/**
 * What a layer is mounted and read from besides its bytes: its metadata image and its index. Either
 * is made anew when it has been lost.
 */
import type { Digest } from "../base/digest.ts";
import { ClipError, describeError, isClipError } from "../base/errors.ts";
import type { DiskCache } from "../cache/disk-cache.ts";
import type { LayerIndexReader } from "../index/reader.ts";
import type { Log } from "../telemetry/log.ts";
import type { LayerPreparer, OnPulled } from "./layer-preparer.ts";
import type { MetaImages } from "./meta-images.ts";
import type { BlobRecord, LayerRecord, LayerRecords } from "./records.ts";
import type { LayerTarget } from "./target.ts";
import type { TrustedIndexes } from "./trusted-indexes.ts";
import type { Verification } from "./verification.ts";

/** Bound of making a layer ready again of which something was lost. */
const recoveryMs = 10 * 60_000;

/** What {@link LayerParts} is made with; it owns none of it. */
export interface LayerPartsOptions {
  preparer: LayerPreparer;
  metaImages: MetaImages;
  indexes: TrustedIndexes;
  records: LayerRecords;
  cache: DiskCache;
  /** Reads a complete layer, and makes its metadata image if that is missing. */
  verify: (record: LayerRecord, path: string, signal: AbortSignal) => Promise<Verification>;
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

  /** As {@link LayerPreparer.prepare}; what there is of another blob of the layer goes. */
  async prepare(
    target: LayerTarget,
    signal: AbortSignal,
    onPulled?: OnPulled,
  ): Promise<LayerRecord> {
    const { preparer, records } = this.#options;
    const before = records.byDiffId(target.diffId);
    const { record, index } = await preparer.prepare(target, signal, onPulled);
    await this.#freshIndexes.get(record.number)?.close();
    this.#freshIndexes.set(record.number, index);
    if (before !== undefined && before.layerDigest !== record.layerDigest) {
      await this.discard(before.layerDigest);
    }
    return record;
  }

  /**
   * Makes a layer ready of which everything or something has been lost, from whatever blob of it is
   * known: the one that it is made of before the others.
   * @param onPulled as for {@link LayerPreparer.prepare}
   * @throws what {@link prepare} throws for the first of them
   */
  async prepareAnew(diffId: Digest, onPulled?: OnPulled): Promise<LayerRecord> {
    const { records } = this.#options;
    const own = records.byDiffId(diffId)?.layerDigest;
    const isOther = ({ layerDigest }: BlobRecord) => (layerDigest === own ? 0 : 1);
    const blobs = records.blobs(diffId).sort((a, b) => isOther(a) - isOther(b));
    const signal = AbortSignal.any([this.stopping, AbortSignal.timeout(recoveryMs)]);
    let failure: unknown;
    for (const blob of blobs) {
      try {
        return await this.prepare({ ...blob, diffId }, signal, onPulled);
      } catch (error) {
        if (!isClipError(error) || signal.aborted) throw error;
        failure ??= error;
      }
    }
    throw failure ?? new ClipError("REGISTRY_NOT_FOUND", `no blob of ${diffId} is known`);
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

  /**
   * Makes sure that the metadata image is there: it may have been made by another version.
   * @returns the layer, which may be made of another blob now
   */
  async ensureImage(record: LayerRecord): Promise<LayerRecord> {
    return (await this.#makeImage(record)) ? record : this.prepareAnew(record.diffId);
  }

  /** Whether a layer can be served with what is on disk; its metadata image is there then. */
  async isOnDisk(record: LayerRecord): Promise<boolean> {
    const { cache, indexes } = this.#options;
    const { layerDigest, size } = record;
    if (!(await this.#makeImage(record))) return false;
    if ((await cache.completePath(layerDigest, size)) !== undefined) return true;
    const index = await indexes.open(layerDigest);
    await index?.close();
    return index !== undefined;
  }

  /**
   * The index of a layer; made anew if it has gone, undefined if the layer is complete then. The
   * layer may be made of another blob then.
   */
  async takeIndex(
    known: LayerRecord,
  ): Promise<{ record: LayerRecord; index: LayerIndexReader | undefined }> {
    const kept = await this.takeKeptIndex(known);
    if (kept !== undefined) return { record: known, index: kept };
    const record = await this.prepareAnew(known.diffId);
    const index = this.takeFreshIndex(record);
    const { layerDigest, size } = record;
    if ((await this.#options.cache.completePath(layerDigest, size)) === undefined) {
      return { record, index };
    }
    await index?.close();
    return { record, index: undefined };
  }

  /** The index of a layer that has just been made ready. */
  takeFreshIndex({ number }: LayerRecord): LayerIndexReader | undefined {
    const index = this.#freshIndexes.get(number);
    this.#freshIndexes.delete(number);
    return index;
  }

  /** The index of a layer if it is kept here. */
  async takeKeptIndex(record: LayerRecord): Promise<LayerIndexReader | undefined> {
    return this.takeFreshIndex(record) ?? this.#options.indexes.open(record.layerDigest);
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

  /** Fires when layers are not made ready again any more. */
  get stopping(): AbortSignal {
    return this.#stopping.signal;
  }

  /** Gives up making layers ready again. */
  stop(): void {
    this.#stopping.abort();
  }

  async close(): Promise<void> {
    for (const number of [...this.#freshIndexes.keys()]) await this.forget(number);
  }

  /** Whether the metadata image of a layer is there, or could be made of what is on disk. */
  async #makeImage(record: LayerRecord): Promise<boolean> {
    const { metaImages, indexes, cache } = this.#options;
    const { layerDigest, size } = record;
    if (await metaImages.has(layerDigest)) return true;
    const index = await indexes.open(layerDigest);
    if (index !== undefined && (await this.#makeImageFrom(index))) return true;
    const path = await cache.completePath(layerDigest, size);
    return path !== undefined && this.#makeImageFromArchive(record, path);
  }

  /** Whether there was a file table in an index, which is closed here, and removed if not. */
  async #makeImageFrom(index: LayerIndexReader): Promise<boolean> {
    const { metaImages, indexes, log } = this.#options;
    const { layerDigest } = index.head;
    try {
      await metaImages.make(index);
      return true;
    } catch (error) {
      if (!isClipError(error, "CORRUPT_INDEX")) throw error;
      const fields = { layer: layerDigest, error: describeError(error) };
      log.warn(fields, "a kept index is damaged, and is removed");
      await indexes.remove(layerDigest);
      return false;
    } finally {
      await index.close();
    }
  }

  async #makeImageFromArchive(record: LayerRecord, path: string): Promise<boolean> {
    const { verify, log } = this.#options;
    try {
      const { digest } = await verify(record, path, this.stopping);
      return digest === record.diffId;
    } catch (error) {
      if (!isClipError(error, "CORRUPT_LAYER")) throw error;
      const fields = { layer: record.layerDigest, error: describeError(error) };
      log.warn(fields, "no metadata image can be made of a complete layer");
      return false;
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
