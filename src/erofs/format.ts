/**
 * The on-disk format of EROFS as far as clip uses it (Linux, Documentation/filesystems/erofs.rst,
 * fs/erofs/erofs_fs.h). Little-endian throughout. Offsets in bytes, from the start of the structure.
 *
 * An image of clip's holds metadata alone, in blocks of 512 bytes, the unit of tar archives. File
 * data is on one extra device, the layer blob. Blocks of that device are addressed in one of two
 * ways: a file in one piece by its first block in the address space that all devices share, where
 * the blob comes after the image; a sparse file by a list of chunks, each with a device and a block.
 */

export const blockBits = 9;
export const blockBytes = 1 << blockBits;

export const superblockOffset = 1024;
const superblockBytes = 128;
export const superblockMagic = 0xe0f5e1e2;
export const superblock = {
  magic: 0x00,
  featureCompat: 0x08,
  blockBits: 0x0c,
  rootNid: 0x0e,
  inodes: 0x10,
  blocks: 0x24,
  metaBlock: 0x28,
  xattrBlock: 0x2c,
  uuid: 0x30,
  featureIncompat: 0x50,
  extraDevices: 0x56,
  deviceTableSlot: 0x58,
} as const;

/**
 * Compatible features: inodes have modification times. Not a checksum of the superblock, which with
 * blocks of 512 bytes crashes fsck.erofs 1.8.
 */
export const featureCompat = 0x2;
/** Incompatible features: files in chunks, and a table of extra devices. */
export const featureIncompat = 0x4 | 0x8;

export const deviceSlotBytes = 128;
/** Offset of the one device slot, right after the superblock. */
export const deviceSlotOffset = superblockOffset + superblockBytes;
export const deviceSlot = { tag: 0x00, blocks: 0x40, unifiedBlock: 0x44 } as const;
export const deviceTagBytes = 64;

/** A nid is an inode's offset in units of 32 bytes, since the metadata area begins at 0. */
export const nidBytes = 32;
/** The first inode, the root, follows the device slot. */
export const firstInodeOffset = deviceSlotOffset + deviceSlotBytes;

/** Clip writes the extended form of inodes alone: the compact one has no time of its own. */
export const inodeBytes = 64;
export const inode = {
  format: 0x00,
  xattrCount: 0x02,
  mode: 0x04,
  size: 0x08,
  /** First block, chunk format, or device number. */
  union: 0x10,
  number: 0x14,
  uid: 0x18,
  gid: 0x1c,
  mtime: 0x20,
  mtimeNanoseconds: 0x28,
  nlink: 0x2c,
} as const;
/** Bit 0 of an inode's format: the extended form. The data layout is in the bits above. */
export const formatExtended = 1;

/** Data layouts: in whole blocks; the same with the rest right after the inode; in chunks. */
export const layoutPlain = 0;
export const layoutInline = 2;
export const layoutChunks = 4;

/** "No block": an empty file's first block, or a hole in place of a chunk. */
export const noBlock = 0xffffffff;

/** Chunk format: the low bits are log2 of the blocks in a chunk; this one says 8-byte indexes. */
export const chunkIndexes = 0x20;
export const chunkBitsMask = 0x1f;
export const chunkIndexBytes = 8;
export const chunkIndex = { device: 2, block: 4 } as const;
/** The device number of the layer blob. */
export const blobDevice = 1;

export const direntBytes = 12;
export const dirent = { nid: 0, nameOffset: 8, type: 10 } as const;

export const xattrHeaderBytes = 12;
export const xattrEntryBytes = 4;
export const xattrEntry = { nameLength: 0, nameIndex: 1, valueLength: 2 } as const;

/** File types of `st_mode`, and what directory entries say for them. */
export const modeTypes = {
  fifo: 0o010000,
  char: 0o020000,
  directory: 0o040000,
  block: 0o060000,
  file: 0o100000,
  symlink: 0o120000,
} as const;
export const direntTypes = {
  file: 1,
  directory: 2,
  char: 3,
  block: 4,
  fifo: 5,
  symlink: 7,
} as const;

/** The kinds of inode. */
export type InodeType = keyof typeof modeTypes;
