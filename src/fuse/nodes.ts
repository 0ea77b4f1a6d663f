/** The inodes that the session shows: its root, the blob of each layer, and the trees' own. */
import type { ErofsReader } from "../erofs/reader.ts";
import { nodeIdOf, nodeOf, type FuseLayer, type Node } from "./layer.ts";
import { rootNodeId, type Attributes } from "./protocol.ts";

/** A layer that a thread serves. */
export interface ServedLayer {
  readonly layer: FuseLayer;
  readonly tree: ErofsReader | undefined;
}

/** What the answers depend on. */
export interface HandlerState {
  readonly layers: ReadonlyMap<number, ServedLayer>;
  /** When the set of layers last changed; the modification time of the root. */
  readonly rootModified: { seconds: number; nanoseconds: number };
  /**
   * Whether OPEN is refused with ENOSYS, once and for all opens of the session. It saves an OPEN
   * and a RELEASE for every file of a tree, but blobs are then read through the page cache.
   */
  readonly noOpen: boolean;
  /** Fills `target` from `offset` of a layer's data file; false if that did not work. */
  readLocal(layer: FuseLayer, offset: number, target: Buffer): boolean;
}

/** How long the kernel may keep what never changes, in seconds: ten years. */
export const forever = 10 * 365 * 86_400;
export const treeValidity = { name: forever, attributes: forever };
/** Names in the root go when their layer does; what they stand for never changes. */
export const rootValidity = { name: 0, attributes: forever };

const typeDirectory = 0o040000;
const typeRegular = 0o100000;

/** A node that exists. `tree` is set unless it is a blob. */
export interface FoundNode {
  served: ServedLayer;
  node: Node;
  tree: ErofsReader | undefined;
}

/** What a nodeid other than the root's stands for; undefined once its layer is gone. */
export function findNode(state: HandlerState, nodeId: number): FoundNode | undefined {
  const node = nodeOf(nodeId);
  const served = node === undefined ? undefined : state.layers.get(node.layer);
  if (node === undefined || served === undefined) return undefined;
  if (node.inode === 0) return { served, node, tree: undefined };
  return served.tree === undefined ? undefined : { served, node, tree: served.tree };
}

/** Attributes of the inode `nid` of a tree. */
export function treeAttributes(layer: number, tree: ErofsReader, nid: number): Attributes {
  const inode = tree.inode(nid);
  return {
    nodeId: nodeIdOf(layer, nid),
    size: inode.size,
    mode: inode.mode,
    links: inode.nlink,
    uid: inode.uid,
    gid: inode.gid,
    device: inode.device,
    modifiedSeconds: inode.mtimeSeconds,
    modifiedNanoseconds: inode.mtimeNanoseconds,
  };
}

/** Attributes of a layer blob. */
export function blobAttributes(layer: FuseLayer): Attributes {
  return {
    nodeId: nodeIdOf(layer.number, 0),
    size: layer.size,
    mode: typeRegular | 0o400,
    links: 1,
    uid: 0,
    gid: 0,
    device: 0,
    modifiedSeconds: 0,
    modifiedNanoseconds: 0,
  };
}

/** Attributes of a layer's blob or, if it has one, of the root of its tree. */
export function rootEntryAttributes(served: ServedLayer, asTree: boolean): Attributes | undefined {
  if (!asTree) return blobAttributes(served.layer);
  const { tree } = served;
  return tree && treeAttributes(served.layer.number, tree, tree.rootNid);
}

/** Attributes of the root. */
export function rootAttributes(state: HandlerState): Attributes {
  return {
    nodeId: rootNodeId,
    size: 0,
    // As a snapshotter's directories: what is in the layers (setuid programs) is not for everyone.
    mode: typeDirectory | 0o500,
    links: 2,
    uid: 0,
    gid: 0,
    device: 0,
    modifiedSeconds: state.rootModified.seconds,
    modifiedNanoseconds: state.rootModified.nanoseconds,
  };
}
