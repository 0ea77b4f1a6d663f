/** What the request handler needs of a layer's directory tree. */

/** What stat(2) shows of an inode of a tree. */
export interface TreeInode {
  /** Type and permission bits. */
  mode: number;
  size: number;
  links: number;
  uid: number;
  gid: number;
  /** Device number of a device node, as the kernel encodes it in 32 bits. */
  device: number;
  modifiedSeconds: number;
  modifiedNanoseconds: number;
}

/** One name in a directory of a tree. */
export interface TreeEntry {
  name: Buffer;
  nid: number;
  /** DT_* type: bits 12 to 15 of the mode. */
  type: number;
}

/** A run of a file's bytes: where it stands in the layer blob, or nowhere if it is a hole. */
export interface Segment {
  blobOffset: number | undefined;
  length: number;
}

/** A layer as a tree of inodes that are addressed by nid. Every method throws CORRUPT_EROFS. */
export interface LayerTree {
  readonly rootNid: number;
  inode(nid: number): TreeInode;
  lookup(nid: number, name: Buffer): number | undefined;
  /** The entries of a directory, `.` and `..` included, from the `first`-th on. */
  entries(nid: number, first: number): Iterable<TreeEntry>;
  readlink(nid: number): Buffer;
  xattrs(nid: number): readonly { name: Buffer; value: Buffer }[];
  /** Where the bytes of a range are, which must lie inside the file. */
  segments(nid: number, offset: number, length: number): Segment[];
}
