/** What is told of layers to a person or a program that asks how the node is doing. */
import type { Digest } from "../base/digest.ts";
import type { DiskCache } from "../cache/disk-cache.ts";
import type { ActiveLayers } from "./active-layers.ts";
import type { MetaImages } from "./meta-images.ts";
import type { LayerRecord } from "./records.ts";

/** One layer of this node. */
export interface LayerStatus {
  number: number;
  layerDigest: Digest;
  diffId: Digest;
  /** `complete`: all of it is local and has matched the diffID; `lazy`: some may have to come. */
  state: "lazy" | "complete";
  /** Uncompressed bytes. */
  size: number;
  /** Uncompressed bytes that are local; of a layer that is not in use, what its file takes up. */
  localBytes: number;
  /** Bytes on disk of the layer, its span map and its metadata image. */
  diskBytes: number;
}

/** What waits to be done for layers, or is being done. */
export interface LayerQueues {
  /** Layers that are being filled in the background or wait for it. */
  fill: number;
  /** Whole pulls that are under way. */
  pullsRunning: number;
  /** Whole pulls that wait for their turn. */
  pullsWaiting: number;
  /** Layers that wait to be stored in the content cache, or are being stored. */
  stores: number;
  /** Bytes in memory for spans on their way, and their limit. */
  memoryBytes: number;
  memoryBytesMax: number;
}

/** Where {@link layerStatus} looks. */
export interface LayerStatusSources {
  cache: DiskCache;
  metaImages: MetaImages;
  active: ActiveLayers;
}

/** How it stands with a layer. Looks at a few files; reads none of the layer. */
export async function layerStatus(
  record: LayerRecord,
  { cache, metaImages, active }: LayerStatusSources,
): Promise<LayerStatus> {
  const { number, layerDigest, diffId, size } = record;
  const [dataBytes, imageBytes, completePath] = await Promise.all([
    cache.bytesOnDisk(layerDigest),
    metaImages.bytesOnDisk(layerDigest),
    cache.completePath(layerDigest, size),
  ]);
  const complete = completePath !== undefined;
  const file = active.blob(number)?.file;
  return {
    number,
    layerDigest,
    diffId,
    state: complete ? "complete" : "lazy",
    size,
    localBytes: complete
      ? size
      : file === undefined
        ? Math.min(size, dataBytes)
        : presentBytes(file),
    diskBytes: dataBytes + imageBytes,
  };
}

function presentBytes(file: { spanStarts: Float64Array; spanPresent: Uint8Array }): number {
  const { spanStarts, spanPresent } = file;
  let bytes = 0;
  for (const [span, flag] of spanPresent.entries()) {
    if (flag !== 0) bytes += (spanStarts[span + 1] ?? 0) - (spanStarts[span] ?? 0);
  }
  return bytes;
}
