/** What must be known of a layer to make it ready. */
import type { Digest } from "../base/digest.ts";
import type { Repository } from "../registry/reference.ts";

/** A layer of an image, and where it may be found. */
export interface LayerTarget {
  layerDigest: Digest;
  diffId: Digest;
  /** Bytes of the layer as the registry holds it. */
  compressedSize: number;
  mediaType: string;
  /** The manifest that lists the layer: what a published index refers to. */
  manifestDigest: Digest;
  /** Repositories that may hold the layer and the manifest, best first. */
  repositories: Repository[];
}
