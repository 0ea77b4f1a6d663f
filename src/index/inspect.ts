/** What a layer index holds, in numbers, for people. */
import type { Digest } from "../base/digest.ts";
import type { IndexSizes, LayerIndexReader } from "./reader.ts";

/** The numbers of one index. */
export interface IndexSummary {
  layerDigest: Digest;
  diffId: Digest;
  compressedSize: number;
  uncompressedSize: number;
  /** Stored bytes of each part. */
  sizes: IndexSizes;
  /** The whole index over the uncompressed layer. */
  sizeRatio: number;
  spans: { count: number; lengthMin: number; lengthMean: number; lengthMax: number };
  /** How many entries there are of each type. */
  entries: Record<string, number>;
  /** Bytes in regular files. */
  fileBytes: number;
}

/**
 * Sums up an index.
 * @throws as `LayerIndexReader.readEntries`
 */
export async function summariseIndex(reader: LayerIndexReader): Promise<IndexSummary> {
  const { spans, ...head } = reader.head;
  const entries: Record<string, number> = {};
  let fileBytes = 0;
  for (const { type, size } of await reader.readEntries()) {
    entries[type] = (entries[type] ?? 0) + 1;
    fileBytes += size;
  }
  const lengths = spans.map(({ length }) => length);
  const extreme = (pick: (a: number, b: number) => number) =>
    lengths.length === 0 ? 0 : lengths.reduce((a, b) => pick(a, b));
  return {
    ...head,
    sizes: reader.sizes,
    sizeRatio: reader.sizes.total / Math.max(head.uncompressedSize, 1),
    spans: {
      count: spans.length,
      lengthMin: extreme(Math.min),
      lengthMean: Math.round(head.uncompressedSize / Math.max(spans.length, 1)),
      lengthMax: extreme(Math.max),
    },
    entries,
    fileBytes,
  };
}
