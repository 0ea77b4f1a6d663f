/** What a tar archive says about one entry, with every name as the bytes that stand in it. */

/** The kinds of entry that matter to a file system. */
export type EntryType = "file" | "directory" | "symlink" | "hardlink" | "char" | "block" | "fifo";

/** One extended attribute; names and values are bytes. */
export interface Xattr {
  name: Buffer;
  value: Buffer;
}

/** A run of a file's bytes that stands in the archive; what no extent covers is a hole. */
export interface Extent {
  /** Where the run begins in the file, in bytes. */
  fileOffset: number;
  /**
   * Where the run begins in the (uncompressed) archive, in bytes. A multiple of 512 but in sparse
   * files whose runs do not have whole blocks, since the runs follow each other without padding.
   */
  archiveOffset: number;
  /** Its length in bytes. */
  length: number;
}

/** One entry of a tar archive, in the order in which it stands there. */
export interface TarEntry {
  /**
   * Path relative to the root: no leading or trailing slash, no `.` or `..` or empty components.
   * Empty for the root directory itself.
   */
  path: Buffer;
  type: EntryType;
  /** Permission bits with setuid, setgid and sticky: 0 to 0o7777. */
  mode: number;
  uid: number;
  gid: number;
  /** Seconds since 1970, may be negative; nanoseconds 0 to 999,999,999. */
  mtimeSeconds: number;
  mtimeNanoseconds: number;
  /** Bytes of a regular file as a reader sees them (with holes); 0 for all other types. */
  size: number;
  /** Data of a regular file, sorted by `fileOffset`, not overlapping. */
  extents: Extent[];
  /** Target of a symlink as it stands; of a hard link, normalised like `path`. Else empty. */
  linkTarget: Buffer;
  deviceMajor: number;
  deviceMinor: number;
  xattrs: Xattr[];
}
