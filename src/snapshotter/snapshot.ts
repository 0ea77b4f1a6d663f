/** What a snapshot is. */

/** Labels of a snapshot. A map, since clients choose the keys. */
export type Labels = ReadonlyMap<string, string>;

/** A snapshot is being written, is a read-only look at a committed one, or is finished. */
type SnapshotKind = "active" | "view" | "committed";

/** What a snapshot takes up by itself, its parents apart. */
export interface SnapshotUsage {
  bytes: number;
  inodes: number;
}

/** One state of a snapshot; a change makes a new object. */
export interface Snapshot {
  /** Never used twice; survives the commit and restarts, and names the directories. */
  readonly id: number;
  /** The client's key while active or view, its name once committed. */
  readonly name: string;
  /** Name of the parent, "" for none. */
  readonly parent: string;
  readonly kind: SnapshotKind;
  readonly labels: Labels;
  /** Nanoseconds since 1970. */
  readonly createdAt: bigint;
  /** Nanoseconds since 1970. */
  readonly updatedAt: bigint;
  /** Number of the layer that serves a remote snapshot; undefined for one with directories. */
  readonly layer: number | undefined;
  /** Of a committed snapshot with directories, once it has been measured. */
  readonly usage: SnapshotUsage | undefined;
}

/** A view of something, and a layer that is served on demand, have no directories of their own. */
export function hasDirectories({
  kind,
  parent,
  layer,
}: Pick<Snapshot, "kind" | "parent" | "layer">): boolean {
  return layer === undefined && (kind !== "view" || parent === "");
}

/** The chainID under which a client wants to find what it prepares (containerd's handshake). */
export const refLabel = "containerd.io/snapshot.ref";
/** By its presence clients know that a snapshot's content is fetched on demand. */
export const remoteLabel = "containerd.io/snapshot/remote";
