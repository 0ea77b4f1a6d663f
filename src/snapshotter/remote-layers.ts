/** What the snapshotter needs of others to serve layers on demand. */
import type { ResolvedImage, ResolveRequest } from "../containerd/resolved-image.ts";
import type { RootAttributes } from "../layer/layers-options.ts";
import type { LayerTarget } from "../layer/target.ts";
import type { LowerDirectory } from "./mounts.ts";
import type { SnapshotUsage } from "./snapshot.ts";

/** The layers of this node. A number names a layer for as long as a snapshot refers to it. */
export interface RemoteLayers {
  /**
   * As {@link RemoteLayers.ensure}, ahead of time. Cheap to repeat; never fails: a layer that could
   * not be made ready, or was given up, is undefined.
   */
  prefetch(target: LayerTarget, signal: AbortSignal): Promise<number | undefined>;
  /** Makes a layer ready to be mounted, however long that takes; its number. */
  ensure(target: LayerTarget, signal: AbortSignal): Promise<number>;
  /** Mounts a layer if it is not mounted; where. Also works after a restart. */
  mount(layer: number): Promise<LowerDirectory>;
  /** Mode and owner of the root of a layer: its mount must not be asked, this process may serve it. */
  rootOf(layer: number): Promise<RootAttributes>;
  /**
   * Checks that a layer may be shown over these, the topmost first.
   * @throws ClipError LAYER_UNSUPPORTED when it would look otherwise than unpacked over them
   */
  checkOver(layer: number, below: readonly number[]): Promise<void>;
  /** What of a layer is on this node's disk. Downloads nothing. */
  usage(layer: number): Promise<SnapshotUsage>;
  /** The numbers of all layers that are known. */
  numbers(): number[];
  /** No snapshot refers to the layer any more. */
  release(layer: number): void;
}

/** Finds the layer that a chainID stands for; undefined when no image is known to have it. */
export interface LayerResolver {
  resolve(request: ResolveRequest, signal: AbortSignal): Promise<ResolvedImage | undefined>;
}
