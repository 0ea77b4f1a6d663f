/** What the sharing of layers with a cluster is made with. */
import type { Digest } from "../../base/digest.ts";
import type { ContentCache } from "../../cache/content/content-cache.ts";

/** How this node shares layers; see `ClusterTier`. */
export interface ClusterOptions {
  /** Stays the caller's: it is closed after the layers. */
  cache: ContentCache;
  /** Names of the caches that it consists of. */
  members: readonly string[];
  /** What the key of a layer's bytes is made of. Indexes are always kept by layer digest. */
  keyDerivation: "layer-digest" | "diffid";
  /** Keys of the cluster: indexes are signed with the first and accepted with any. May be empty. */
  indexKeys: readonly Buffer[];
  /** Store what this node has pulled or completed. */
  store: boolean;
  /** Most bytes a second of that; absent: unlimited. */
  storeBytesPerSecond?: number;
  /** Between these, in milliseconds, lies the wait after which the next tier is asked as well. */
  hedgeMsMin: number;
  hedgeMsMax: number;
}

/** A layer as the content cache knows it. */
export interface SharedLayer {
  layerDigest: Digest;
  diffId: Digest;
  /** Uncompressed bytes. */
  size: number;
}

/** What was done for and by sharing; plain numbers that only grow. */
export interface ClusterCounters {
  /** Layer indexes that came from the content cache. */
  indexes: number;
  /** Indexes from there that were refused: damaged, or not signed by the cluster. */
  indexesRefused: number;
  /** Copies of layers that were found to be wrong, and that were replaced. */
  quarantined: number;
  repaired: number;
  /** Layers that were stored, that were there already, attempts that failed, and layers given up. */
  stored: number;
  alreadyStored: number;
  storeErrors: number;
  storesDropped: number;
}
