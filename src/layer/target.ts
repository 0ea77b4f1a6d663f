/** What must be known of a layer to make it ready. */
import type { Digest } from "../base/digest.ts";

/** A repository on a registry. */
export interface Repository {
  /** Host, with a port where it is not the default one: `registry.example.com:5000`. */
  host: string;
  /** Repository on that host: `team/app`. */
  name: string;
}

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
