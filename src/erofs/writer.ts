/** Writes the EROFS metadata image of a layer: names, attributes and places; the data stays in the tar. */
import type { Digest } from "../base/digest.ts";
import type { TarEntry } from "../tar/entry.ts";
import { digestBytes } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import type { FileData } from "./chunks.ts";
import { writeDirents } from "./dirents.ts";
import {
  blobDevice,
  blockBits,
  blockBytes,
  chunkIndex,
  chunkIndexBytes,
  chunkIndexes,
  deviceSlot,
  deviceSlotBytes,
  deviceSlotOffset,
  deviceTagBytes,
  direntTypes,
  featureCompat,
  featureIncompat,
  formatExtended,
  inode as field,
  inodeBytes,
  layoutInline,
  modeTypes,
  nidBytes,
  noBlock,
  superblock,
  superblockMagic,
  superblockOffset,
  xattrEntryBytes,
  xattrHeaderBytes,
} from "./format.ts";
import { chunkPadding, planImage, type Plan, type PlannedInode } from "./plan.ts";
import { LayerTree, path, type Attributes, type DirectoryNode } from "./tree.ts";

export type { Attributes } from "./tree.ts";

/** Options of {@link buildErofsImage}. */
export interface ErofsImageOptions {
  /** Bytes of the layer blob, the uncompressed tar. */
  blobSize: number;
  /** Names the blob in the device table, and gives the file system its UUID. */
  diffId: Digest;
  /** Whether to keep what the layer has in `/proc`, `/sys` and `/dev`. Default: left out. */
  keepRuntimeDirectories?: boolean;
  /**
   * Attributes for a directory that the layer has things in, but does not describe: those that it
   * has in the layers below, which overlayfs would not show through. Default, and where this
   * returns nothing: mode 0755, root, time 0.
   */
  directoryAttributes?: (path: Buffer) => Attributes | undefined;
}

/** What {@link buildErofsImage} makes. */
export interface ErofsImage {
  /** To be mounted with the blob as its one extra device. */
  image: Buffer;
  /**
   * Whether the layer hides everything below it (`.wh..wh..opq` in its root). Overlayfs does not
   * look at the mark there: whoever stacks the layers leaves out the ones below.
   */
  opaqueRoot: boolean;
  inodes: number;
  /** Directories that no entry describes, but for the root. */
  impliedDirectories: Buffer[];
}

/**
 * Unpacks the entries of a layer (the last of a name counts, hard links share an inode, whiteouts
 * become what overlayfs takes for them) and writes the tree as an EROFS image of metadata, with the
 * data of files as places in the layer blob. The same input gives the same image.
 *
 * Of a directory that a whiteout names, and that the layer has too, overlayfs sees nothing of the
 * layers below. Attributes of the name space `trusted.` are left out: they are the administrator's.
 * @throws ClipError CORRUPT_TAR for entries that cannot be unpacked, LAYER_UNSUPPORTED for files
 *   that cannot be mapped to blocks, LIMIT_EXCEEDED for what the format cannot hold.
 */
export function buildErofsImage(
  entries: Iterable<TarEntry>,
  options: ErofsImageOptions,
): ErofsImage {
  const tree = new LayerTree();
  for (const entry of entries) tree.add(entry);
  tree.finish();
  const { root } = tree;
  const implied: Buffer[] = [];
  // Of directories that are implied: one below the other, each path is the one before and a name.
  const paths = new Map<DirectoryNode, string>();
  const plan = planImage(root, {
    blobSize: options.blobSize,
    emptied: options.keepRuntimeDirectories === true ? new Set() : runtimeDirectories(root),
    attributesOf: (directory) => {
      if (!directory.implied || directory === root) return directory.attributes;
      const { parent, name } = directory;
      const above = paths.get(parent);
      const text = above === undefined ? path(parent, name) : `${above}/${name}`;
      paths.set(directory, text);
      const directoryPath = Buffer.from(text, "latin1");
      implied.push(directoryPath);
      return options.directoryAttributes?.(directoryPath) ?? directory.attributes;
    },
  });
  return {
    image: writeImage(plan, options),
    opaqueRoot: root.opaque,
    inodes: plan.inodes.length,
    impliedDirectories: implied,
  };
}

function runtimeDirectories(root: DirectoryNode): Set<DirectoryNode> {
  const found = new Set<DirectoryNode>();
  for (const name of ["proc", "sys", "dev"]) {
    const node = root.children.get(name);
    if (node?.kind === "directory") found.add(node);
  }
  return found;
}

function writeImage(plan: Plan, { blobSize, diffId }: ErofsImageOptions): Buffer {
  const dataStart = Math.ceil(plan.inodesEnd / blockBytes);
  const blocks = dataStart + plan.dataBlocks;
  const blobBlocks = Math.ceil(blobSize / blockBytes);
  if (blocks + blobBlocks >= noBlock) {
    throw new ClipError("LIMIT_EXCEEDED", "a layer has more blocks than EROFS can address", {
      context: { value: blocks + blobBlocks, limit: noBlock },
    });
  }
  const image = Buffer.alloc(blocks * blockBytes);
  for (const [number, inode] of plan.inodes.entries()) {
    writeInode(image, inode, number + 1, dataStart, blocks);
  }
  writeSuperblock(image, plan);
  const slot = deviceSlotOffset;
  image.write(diffId, slot + deviceSlot.tag, deviceTagBytes, "latin1");
  image.writeUInt32LE(blobBlocks, slot + deviceSlot.blocks);
  image.writeUInt32LE(blocks, slot + deviceSlot.unifiedBlock);
  digestBytes(diffId).copy(image, superblockOffset + superblock.uuid, 0, 16);
  return image;
}

function writeSuperblock(image: Buffer, plan: Plan): void {
  const at = superblockOffset;
  const [root] = plan.inodes;
  image.writeUInt32LE(superblockMagic, at + superblock.magic);
  image.writeUInt32LE(featureCompat, at + superblock.featureCompat);
  image.writeUInt8(blockBits, at + superblock.blockBits);
  image.writeUInt16LE(nidOf(root as PlannedInode), at + superblock.rootNid);
  image.writeUInt32LE(plan.inodes.length, at + superblock.inodes);
  image.writeUInt32LE(image.length / blockBytes, at + superblock.blocks);
  image.writeUInt32LE(featureIncompat, at + superblock.featureIncompat);
  image.writeUInt16LE(1, at + superblock.extraDevices);
  image.writeUInt16LE(deviceSlotOffset / deviceSlotBytes, at + superblock.deviceTableSlot);
}

function writeInode(
  image: Buffer,
  inode: PlannedInode,
  number: number,
  dataStart: number,
  blobStart: number,
): void {
  const { offset: at, attributes, xattrs } = inode;
  const firstBlock = dataStart + inode.firstDataBlock;
  image.writeUInt16LE(formatExtended | (inode.layout << 1), at + field.format);
  image.writeUInt16LE(xattrCount(xattrs), at + field.xattrCount);
  image.writeUInt16LE(modeTypes[inode.type] | attributes.mode, at + field.mode);
  writeUInt64(image, inode.size, at + field.size);
  image.writeUInt32LE(unionOf(inode, firstBlock, blobStart), at + field.union);
  image.writeUInt32LE(number, at + field.number);
  image.writeUInt32LE(attributes.uid, at + field.uid);
  image.writeUInt32LE(attributes.gid, at + field.gid);
  writeUInt64(image, attributes.mtimeSeconds, at + field.mtime);
  image.writeUInt32LE(attributes.mtimeNanoseconds, at + field.mtimeNanoseconds);
  image.writeUInt32LE(inode.nlink, at + field.nlink);
  xattrs.copy(image, at + inodeBytes);
  writeContent(image, inode, firstBlock);
}

function writeContent(image: Buffer, inode: PlannedInode, firstBlock: number): void {
  const { content } = inode;
  const tail = inode.offset + inodeBytes + inode.xattrs.length;
  if (content.kind === "directory") {
    const entries = content.entries.map(({ name, inode: child }) => {
      return { name, nid: nidOf(child), type: direntTypes[child.type] };
    });
    writeDirents(image, entries, (block) =>
      block < inode.dataBlocks ? (firstBlock + block) * blockBytes : tail,
    );
  } else if (content.kind === "symlink") {
    content.target.copy(image, inode.layout === layoutInline ? tail : firstBlock * blockBytes);
  } else if (content.kind === "file" && content.data.kind === "chunks") {
    writeChunks(image, content.data.blocks, tail + chunkPadding(inode.xattrs));
  }
}

function writeChunks(image: Buffer, blocks: Uint32Array, start: number): void {
  let at = start;
  for (const block of blocks) {
    image.writeUInt16LE(block === noBlock ? 0 : blobDevice, at + chunkIndex.device);
    image.writeUInt32LE(block, at + chunkIndex.block);
    at += chunkIndexBytes;
  }
}

function unionOf({ content }: PlannedInode, firstBlock: number, blobStart: number): number {
  if (content.kind === "file") return unionOfFile(content.data, blobStart);
  if (content.kind === "device") return encodeDevice(content.major, content.minor);
  return content.kind === "none" ? 0 : firstBlock;
}

function unionOfFile(data: FileData, blobStart: number): number {
  if (data.kind === "empty") return noBlock;
  return data.kind === "contiguous" ? blobStart + data.block : data.chunkBits | chunkIndexes;
}

/** Device numbers as Linux packs them into 32 bits (`new_encode_dev`). */
function encodeDevice(major: number, minor: number): number {
  return ((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) >>> 0;
}

function xattrCount(xattrs: Buffer): number {
  return xattrs.length === 0 ? 0 : 1 + (xattrs.length - xattrHeaderBytes) / xattrEntryBytes;
}

function nidOf(inode: PlannedInode): number {
  return inode.offset / nidBytes;
}

/** A whole number in 64 bits, negative ones as two's complement. */
function writeUInt64(image: Buffer, value: number, offset: number): void {
  const high = Math.floor(value / 2 ** 32);
  image.writeUInt32LE(value - high * 2 ** 32, offset);
  image.writeInt32LE(high, offset + 4);
}
