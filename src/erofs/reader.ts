/** Reads the EROFS metadata images that `buildErofsImage` writes, for file systems served by other means. */
import type { Xattr } from "../tar/entry.ts";
import { ClipError } from "../base/errors.ts";
import { pathBytesMax } from "../base/limits.ts";
import { DirentBlock } from "./dirent-block.ts";
import {
  blobDevice,
  blockBits,
  blockBytes,
  chunkBitsMask,
  chunkIndex,
  chunkIndexBytes,
  chunkIndexes,
  deviceSlot,
  deviceSlotBytes,
  deviceSlotOffset,
  featureIncompat,
  firstInodeOffset,
  formatExtended,
  inode as field,
  inodeBytes,
  layoutChunks,
  layoutInline,
  layoutPlain,
  modeTypes,
  nidBytes,
  noBlock,
  superblock,
  superblockMagic,
  superblockOffset,
  xattrEntryBytes,
  xattrHeaderBytes,
  type InodeType,
} from "./format.ts";
import { decodeXattrs } from "./xattr.ts";

/** What stat(2) tells of a file. */
export interface ErofsInode {
  nid: number;
  type: InodeType;
  /** File type and permissions, as `st_mode`. */
  mode: number;
  uid: number;
  gid: number;
  size: number;
  /** Seconds since 1970, may be negative. */
  mtimeSeconds: number;
  mtimeNanoseconds: number;
  nlink: number;
  /** Device number of a device as Linux packs it into 32 bits (`new_encode_dev`), else 0. */
  device: number;
}

/** A name in a directory. */
export interface ErofsDirent {
  /** A view of the image. */
  name: Buffer;
  nid: number;
  type: InodeType;
  /** Where to go on after this entry. */
  cookie: number;
}

/** A run of a file's bytes. */
export interface DataExtent {
  fileOffset: number;
  length: number;
  /** Where it is in the layer blob; nothing for a hole, which reads as zeros. */
  blobOffset: number | undefined;
}

interface InodePlace extends ErofsInode {
  layout: number;
  /** First block, chunk format, or device number. */
  union: number;
  xattrsStart: number;
  /** Where the attributes end. */
  tail: number;
}

/** At most 39 entries fit into a block. */
const cookiesPerBlock = 64;

/**
 * An image in memory, which may be shared with other threads; nothing is cached. All methods throw
 * ClipError CORRUPT_EROFS where the image points outside itself or the blob, and take bounded time
 * whatever is in it. What is no number of an inode, or an inode of another type than the method is
 * for, is CORRUPT_EROFS too: it can only have come from the image.
 */
export class ErofsReader {
  /** The inode of the root directory. */
  readonly rootNid: number;
  /** How many inodes there are. */
  readonly inodes: number;
  /** Bytes of the layer blob, rounded up to whole blocks. */
  readonly blobSize: number;
  readonly #image: Buffer;
  readonly #blobStart: number;
  readonly #blobBlocks: number;

  /** @throws ClipError CORRUPT_EROFS when the image is not one of clip's. */
  constructor(image: Buffer) {
    const isOurs =
      image.length >= firstInodeOffset + inodeBytes &&
      image.length % blockBytes === 0 &&
      image.readUInt32LE(superblockOffset + superblock.magic) === superblockMagic &&
      image.readUInt8(superblockOffset + superblock.blockBits) === blockBits &&
      image.readUInt32LE(superblockOffset + superblock.metaBlock) === 0 &&
      image.readUInt32LE(superblockOffset + superblock.blocks) * blockBytes === image.length &&
      image.readUInt32LE(superblockOffset + superblock.featureIncompat) === featureIncompat &&
      image.readUInt16LE(superblockOffset + superblock.extraDevices) === 1 &&
      image.readUInt16LE(superblockOffset + superblock.deviceTableSlot) * deviceSlotBytes ===
        deviceSlotOffset;
    if (!isOurs) throw corrupt("this is not a metadata image");
    this.#image = image;
    this.#blobBlocks = image.readUInt32LE(deviceSlotOffset + deviceSlot.blocks);
    this.#blobStart = image.readUInt32LE(deviceSlotOffset + deviceSlot.unifiedBlock);
    this.blobSize = this.#blobBlocks * blockBytes;
    this.inodes = image.readUInt32LE(superblockOffset + superblock.inodes);
    this.rootNid = image.readUInt16LE(superblockOffset + superblock.rootNid);
    this.#typed(this.rootNid, "directory");
  }

  /** The attributes of an inode. */
  inode(nid: number): ErofsInode {
    const { type, mode, uid, gid, size, nlink, device, ...rest } = this.#inode(nid);
    const { mtimeSeconds, mtimeNanoseconds } = rest;
    return { nid, type, mode, uid, gid, size, mtimeSeconds, mtimeNanoseconds, nlink, device };
  }

  /** The inode that `name` in a directory leads to. */
  lookup(nid: number, name: Buffer): number | undefined {
    const directory = this.#typed(nid, "directory");
    let low = 0;
    let high = blockCount(directory) - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.#direntBlock(directory, middle).compare(0, name) <= 0) low = middle;
      else high = middle - 1;
    }
    const block = this.#direntBlock(directory, low);
    const index = block.find(name);
    return index === undefined ? undefined : block.nid(index);
  }

  /**
   * The entries of a directory in byte order, `.` and `..` among them, from a cookie on; 0 is the
   * beginning, and a cookie past the end is the end.
   */
  *readdir(nid: number, cookie = 0): Generator<ErofsDirent> {
    const directory = this.#typed(nid, "directory");
    if (!Number.isSafeInteger(cookie) || cookie < 0) return;
    const blocks = blockCount(directory);
    let index = cookie % cookiesPerBlock;
    for (let at = Math.floor(cookie / cookiesPerBlock); at < blocks; at++) {
      const block = this.#direntBlock(directory, at);
      for (; index < block.count; index++) {
        yield {
          name: block.name(index),
          nid: block.nid(index),
          type: block.type(index),
          cookie: at * cookiesPerBlock + index + 1,
        };
      }
      index = 0;
    }
  }

  /** The target of a symbolic link. */
  readlink(nid: number): Buffer {
    const inode = this.#typed(nid, "symlink");
    if (inode.size === 0 || inode.size >= pathBytesMax) throw corrupt("a link target is too long");
    const isInline = inode.layout === layoutInline;
    const start = isInline ? inode.tail : inode.union * blockBytes;
    return Buffer.from(this.#slice(start, inode.size));
  }

  /** All extended attributes of an inode. */
  xattrs(nid: number): Xattr[] {
    const { xattrsStart, tail } = this.#inode(nid);
    return decodeXattrs(this.#slice(xattrsStart, tail - xattrsStart));
  }

  /** The value of one extended attribute. */
  xattr(nid: number, name: Buffer): Buffer | undefined {
    return this.xattrs(nid).find((xattr) => xattr.name.equals(name))?.value;
  }

  /**
   * Where the bytes of a file are: runs in order and without gaps, from `offset` on for `length`
   * bytes or to the end of the file.
   */
  extents(nid: number, offset = 0, length = Infinity): DataExtent[] {
    const inode = this.#typed(nid, "file");
    const end = Math.min(inode.size, offset + length);
    if (end <= offset) return [];
    if (inode.layout === layoutChunks) return this.#chunkExtents(inode, offset, end);
    if (inode.layout !== layoutPlain) throw corrupt("a file has its data in the image");
    const first = inode.union - this.#blobStart;
    this.#checkBlob(first, Math.ceil(inode.size / blockBytes));
    const blobOffset = first * blockBytes + offset;
    return [{ fileOffset: offset, length: end - offset, blobOffset }];
  }

  #chunkExtents(inode: InodePlace, offset: number, end: number): DataExtent[] {
    const chunkBytes = blockBytes * 2 ** (inode.union & chunkBitsMask);
    const indexStart = Math.ceil(inode.tail / chunkIndexBytes) * chunkIndexBytes;
    const indexes = this.#slice(indexStart, Math.ceil(inode.size / chunkBytes) * chunkIndexBytes);
    const extents: DataExtent[] = [];
    for (let at = offset; at < end;) {
      const chunk = Math.floor(at / chunkBytes);
      const chunkEnd = Math.min((chunk + 1) * chunkBytes, inode.size);
      const length = Math.min(chunkEnd, end) - at;
      const inChunk = at - chunk * chunkBytes;
      const bytes = chunkEnd - chunk * chunkBytes;
      const start = this.#chunkStart(indexes, chunk * chunkIndexBytes, bytes);
      append(extents, at, length, start === undefined ? undefined : start + inChunk);
      at += length;
    }
    return extents;
  }

  #chunkStart(indexes: Buffer, at: number, bytes: number): number | undefined {
    const block = indexes.readUInt32LE(at + chunkIndex.block);
    if (block === noBlock) return undefined;
    if (indexes.readUInt16LE(at + chunkIndex.device) !== blobDevice) {
      throw corrupt("a chunk is on an unknown device");
    }
    this.#checkBlob(block, Math.ceil(bytes / blockBytes));
    return block * blockBytes;
  }

  #checkBlob(first: number, count: number): void {
    if (first < 0 || first + count > this.#blobBlocks) {
      throw corrupt("the data of a file lies outside the layer blob");
    }
  }

  #typed(nid: number, type: InodeType): InodePlace {
    const inode = this.#inode(nid);
    if (inode.type !== type) throw corrupt(`inode ${nid} is a ${inode.type}, not a ${type}`);
    return inode;
  }

  #inode(nid: number): InodePlace {
    const at = nid * nidBytes;
    if (!Number.isInteger(nid) || at < firstInodeOffset || at + inodeBytes > this.#image.length) {
      throw corrupt(`inode ${nid} is outside the image`);
    }
    const image = this.#image;
    const format = image.readUInt16LE(at + field.format);
    const layout = format >> 1;
    const mode = image.readUInt16LE(at + field.mode);
    const type = typeNames.get(mode & typeMask);
    const isLayout = layout === layoutPlain || layout === layoutInline || layout === layoutChunks;
    const union = image.readUInt32LE(at + field.union);
    const isChunked = layout === layoutChunks;
    const size = readUInt64(image, at + field.size);
    if (
      (format & formatExtended) === 0 ||
      !isLayout ||
      type === undefined ||
      (type === "directory" && size === 0) ||
      (isChunked && (type !== "file" || (union & ~chunkBitsMask) !== chunkIndexes)) ||
      size > Number.MAX_SAFE_INTEGER
    ) {
      throw corrupt(`inode ${nid} is damaged`);
    }
    const count = image.readUInt16LE(at + field.xattrCount);
    const xattrsStart = at + inodeBytes;
    const xattrBytes = count === 0 ? 0 : xattrHeaderBytes + (count - 1) * xattrEntryBytes;
    return {
      nid,
      type,
      mode,
      uid: image.readUInt32LE(at + field.uid),
      gid: image.readUInt32LE(at + field.gid),
      size,
      mtimeSeconds: Number(image.readBigInt64LE(at + field.mtime)),
      mtimeNanoseconds: image.readUInt32LE(at + field.mtimeNanoseconds),
      nlink: image.readUInt32LE(at + field.nlink),
      device: type === "char" || type === "block" ? union : 0,
      layout,
      union,
      xattrsStart,
      tail: xattrsStart + xattrBytes,
    };
  }

  #direntBlock(directory: InodePlace, index: number): DirentBlock {
    const last = blockCount(directory) - 1;
    const length = index < last ? blockBytes : directory.size - last * blockBytes;
    const isTail = index === last && directory.layout === layoutInline;
    const start = isTail ? directory.tail : (directory.union + index) * blockBytes;
    return new DirentBlock(this.#slice(start, length));
  }

  #slice(start: number, length: number): Buffer {
    const end = start + length;
    if (length < 0 || end > this.#image.length) {
      throw corrupt("something lies outside the image");
    }
    return this.#image.subarray(start, end);
  }
}

const typeMask = 0o170000;
const typeNames = new Map(
  Object.entries(modeTypes).map(([name, bits]) => [bits as number, name as InodeType]),
);

function blockCount(directory: InodePlace): number {
  return Math.ceil(directory.size / blockBytes);
}

function append(
  extents: DataExtent[],
  fileOffset: number,
  length: number,
  blobOffset: number | undefined,
): void {
  const last = extents.at(-1);
  const continued = last?.blobOffset === undefined ? undefined : last.blobOffset + last.length;
  if (last !== undefined && continued === blobOffset) last.length += length;
  else extents.push({ fileOffset, length, blobOffset });
}

function readUInt64(image: Buffer, at: number): number {
  return image.readUInt32LE(at + 4) * 2 ** 32 + image.readUInt32LE(at);
}

function corrupt(message: string): ClipError {
  return new ClipError("CORRUPT_EROFS", message);
}
