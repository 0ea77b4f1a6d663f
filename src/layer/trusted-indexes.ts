/** The layer indexes that may be used: those of this node, and others, but none that has lied. */
import type { Digest } from "../base/digest.ts";
import { describeError, isClipError } from "../base/errors.ts";
import { spanBytesMax } from "../base/limits.ts";
import type { PublishedIndex } from "../index/published.ts";
import type { LayerIndexReader } from "../index/reader.ts";
import type { IndexStore } from "../index/store.ts";
import type { Log } from "../telemetry/log.ts";
import type { LayerRecords } from "./records.ts";
import type { LayerTarget } from "./target.ts";

/** What {@link TrustedIndexes} works with; it owns none of it. */
export interface TrustedIndexesOptions {
  indexes: IndexStore;
  /** Knows which indexes have misled this node. */
  records: LayerRecords;
  log: Log;
}

/** See the module. */
export class TrustedIndexes {
  readonly #options: TrustedIndexesOptions;

  constructor(options: TrustedIndexesOptions) {
    this.#options = options;
  }

  /** The index of a layer that is kept here; the caller closes it. Trouble counts as none. */
  async open(layerDigest: Digest): Promise<LayerIndexReader | undefined> {
    const { indexes, records, log } = this.#options;
    try {
      const reader = await indexes.open(layerDigest);
      if (reader === undefined || !records.isDistrusted(reader.headDigest)) return reader;
      await reader.close();
      await indexes.remove(layerDigest);
    } catch (error) {
      if (!isClipError(error)) throw error;
      log.warn({ layer: layerDigest, error: describeError(error) }, "a kept index is damaged");
    }
    return undefined;
  }

  /** The whole index of a layer that is kept here, as it is stored; undefined when there is none. */
  async encoded(layerDigest: Digest): Promise<Buffer | undefined> {
    const reader = await this.open(layerDigest);
    await reader?.close();
    return reader === undefined ? undefined : this.#options.indexes.encoded(layerDigest);
  }

  /** As {@link open}, if the index fits the layer. */
  async openFor(target: LayerTarget): Promise<LayerIndexReader | undefined> {
    const reader = await this.open(target.layerDigest);
    if (reader === undefined || isUsable(reader, target)) return reader;
    await reader.close();
    return undefined;
  }

  /**
   * Opens the first of these indexes that may be used and fits the layer, and keeps it; the caller
   * closes it. Undefined when none does.
   * @throws ClipError ABORTED
   */
  async adopt(
    target: LayerTarget,
    published: readonly PublishedIndex[],
    signal: AbortSignal,
  ): Promise<LayerIndexReader | undefined> {
    const { indexes, records, log } = this.#options;
    const { layerDigest } = target;
    for (const candidate of published) {
      const fields = { layer: layerDigest, index: candidate.digest };
      if (records.isDistrusted(candidate.headDigest)) {
        log.warn(fields, "an index that has lied is not used again");
        continue;
      }
      try {
        const reader = await indexes.adopt(layerDigest, [candidate], signal);
        if (isUsable(reader, target)) return reader;
        await reader.close();
        log.warn(fields, "an index does not fit the layer");
      } catch (error) {
        if (signal.aborted) throw error;
        log.warn({ ...fields, error: describeError(error) }, "an index of a layer cannot be used");
      }
    }
    return undefined;
  }

  /**
   * Keeps an index that was made here from the whole layer.
   * @throws ClipError DISK_FULL, SYSTEM_CALL
   */
  async put(reader: LayerIndexReader, encoded: Buffer): Promise<void> {
    const { indexes, records } = this.#options;
    records.trust(reader.headDigest);
    await indexes.put(reader.head.layerDigest, encoded);
  }

  /** From now on an index is not used, wherever it comes from. */
  async distrust({
    head,
    headDigest,
  }: Pick<LayerIndexReader, "head" | "headDigest">): Promise<void> {
    const { indexes, records } = this.#options;
    records.distrust(headDigest);
    await indexes.remove(head.layerDigest);
  }

  /** Resolves when what was adopted is kept, or could not be. */
  async settled(): Promise<void> {
    await this.#options.indexes.settled();
  }

  /** Removes the kept index of a layer. */
  async remove(layerDigest: Digest): Promise<void> {
    await this.#options.indexes.remove(layerDigest);
  }
}

/** Whether an index is of this layer and fit for serving it lazily. */
function isUsable({ head }: LayerIndexReader, target: LayerTarget): boolean {
  return (
    head.layerDigest === target.layerDigest &&
    head.diffId === target.diffId &&
    head.compressedSize === target.compressedSize &&
    head.spans.every((span) => span.length <= spanBytesMax)
  );
}
