/** The layer index: all that is needed to serve a layer lazily. */
import type { Digest } from "../base/digest.ts";
import type { Checkpoint } from "../gzip/checkpoint.ts";
import type { TarEntry } from "../tar/entry.ts";

/**
 * The uncompressed bytes between two neighbouring checkpoints: the unit of fetching, verifying
 * and caching. Span n ends where span n + 1 begins; the last one ends with the layer.
 */
export interface Span {
  /** Where decoding starts. */
  checkpoint: Checkpoint;
  /** Uncompressed length in bytes. */
  length: number;
  /** End (exclusive) of the compressed bytes that decoding this span needs. */
  compressedEnd: number;
  /** sha256 of the uncompressed bytes. */
  digest: Digest;
}

/** What the head of a layer index says. */
export interface LayerHead {
  layerDigest: Digest;
  diffId: Digest;
  /** Bytes of the layer as the registry holds it. */
  compressedSize: number;
  /** Bytes of the layer blob: the uncompressed tar. */
  uncompressedSize: number;
  spans: Span[];
}

/** A layer index as it is built: everything in memory. */
export interface LayerIndex {
  head: LayerHead;
  entries: TarEntry[];
  /** The window of each span's checkpoint, sparse, not compressed; empty where none is needed. */
  windows: Buffer[];
}
