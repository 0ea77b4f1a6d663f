/** What containerd tells about the layer that a client wants to have prepared. */
import type { Digest } from "../base/digest.ts";
import type { LayerTarget } from "../layer/target.ts";

/** Which layer is wanted. */
export interface ResolveRequest {
  /** containerd's namespace. */
  namespace: string;
  /** The chainID of the layer. */
  chainId: Digest;
  /** Labels of the Prepare: some clients say in them which image is pulled from where. */
  labels: ReadonlyMap<string, string>;
}

/** An image that has the wanted layer. */
export interface ResolvedImage {
  /** All layers of the image, the base first. */
  layers: LayerTarget[];
  /** The chainIDs of the layers. */
  chainIds: Digest[];
  /** Which of the layers is the wanted one. */
  position: number;
  /** containerd has the blobs of this and all upper layers: nothing would be fetched. */
  contentIsLocal: boolean;
}
