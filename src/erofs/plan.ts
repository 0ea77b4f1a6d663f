/** Decides where everything goes in an image before any of it is written. */
import type { TarEntry } from "../tar/entry.ts";
import { assert } from "../base/errors.ts";
import { chunksMax, mapFile, type FileData } from "./chunks.ts";
import { layOutDirents } from "./dirents.ts";
import {
  blockBytes,
  chunkIndexBytes,
  firstInodeOffset,
  inodeBytes,
  layoutChunks,
  layoutInline,
  layoutPlain,
  nidBytes,
  type InodeType,
} from "./format.ts";
import type { Attributes, DirectoryNode, LeafNode, Node } from "./tree.ts";
import { acceptedXattrs, encodeXattrs, opaqueXattr } from "./xattr.ts";

/** An inode and its place. */
export interface PlannedInode {
  type: InodeType;
  attributes: Attributes;
  /** Offset in the image. */
  offset: number;
  nlink: number;
  xattrs: Buffer;
  size: number;
  layout: number;
  /** Blocks in the data area that it takes, and the first of them, counted from the area's start. */
  dataBlocks: number;
  firstDataBlock: number;
  content: Content;
}

/** What an inode is about. */
export type Content =
  | { kind: "directory"; entries: PlannedEntry[] }
  | { kind: "symlink"; target: Buffer }
  | { kind: "file"; data: FileData }
  | { kind: "device"; major: number; minor: number }
  | { kind: "none" };

/** A name in a directory. */
export interface PlannedEntry {
  name: string;
  inode: PlannedInode;
}

/** All of an image. */
export interface Plan {
  /** In the order of their offsets, more or less; the root comes first. */
  inodes: PlannedInode[];
  /** Where the inodes end, in bytes. */
  inodesEnd: number;
  /** Blocks of the data area, which comes after. */
  dataBlocks: number;
}

/** Options of {@link planImage}. */
export interface PlanOptions {
  blobSize: number;
  /** Directories whose contents are left out. */
  emptied: ReadonlySet<DirectoryNode>;
  /** What to give to directories that no entry describes. */
  attributesOf: (directory: DirectoryNode) => Attributes;
}

/**
 * Gives every inode that can be reached from `root` its place: the inodes of one directory next to
 * each other and in order of their names, since whoever reads the one soon asks for the others.
 * @throws ClipError LAYER_UNSUPPORTED, LIMIT_EXCEEDED
 */
export function planImage(root: DirectoryNode, options: PlanOptions): Plan {
  return new Planner(options).plan(root);
}

/** A directory whose inode has its place, while its children have none yet. */
interface OpenDirectory {
  node: DirectoryNode;
  inode: PlannedInode;
  parent: PlannedInode;
  names: string[];
  /** Whether it or one above it hides all that is below this layer. */
  covered: boolean;
}

type InodeParts = Pick<PlannedInode, "type" | "attributes" | "content"> & {
  size?: number;
  layout?: number;
  dataBlocks?: number;
  /** Bytes right behind the inode and its attributes. */
  tailBytes?: number;
  xattrs?: Buffer;
};

const noBytes = Buffer.alloc(0);

class Planner {
  readonly #options: PlanOptions;
  readonly #inodes: PlannedInode[] = [];
  readonly #leaves = new Map<LeafNode, PlannedInode>();
  #end = firstInodeOffset;
  /** A place that was left free so that an inode need not cross blocks. */
  #gapStart = 0;
  #gapEnd = 0;
  #dataBlocks = 0;
  #chunksLeft = chunksMax;

  constructor(options: PlanOptions) {
    this.#options = options;
  }

  plan(root: DirectoryNode): Plan {
    const pending = [this.#openDirectory(root, undefined, root.opaque)];
    for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
      for (const subdirectory of this.#planChildren(next).toReversed()) pending.push(subdirectory);
    }
    return { inodes: this.#inodes, inodesEnd: this.#end, dataBlocks: this.#dataBlocks };
  }

  #openDirectory(
    node: DirectoryNode,
    parent: OpenDirectory | undefined,
    opaque: boolean,
  ): OpenDirectory {
    const covered = opaque || (parent?.covered ?? false);
    const names = [
      ".",
      "..",
      ...(this.#options.emptied.has(node) ? [] : visibleNames(node, covered)),
    ];
    names.sort();
    const attributes = this.#options.attributesOf(node);
    const xattrs = acceptedXattrs("directory", attributes.xattrs);
    // Overlayfs does not look at this mark on the root of a layer.
    if (opaque && parent !== undefined) xattrs.push(opaqueXattr);
    const encoded = encodeXattrs(xattrs);
    const { blocks, lastBytes } = layOutDirents(names);
    const isInline = fitsInline(encoded, lastBytes);
    const content = { kind: "directory" as const, entries: [] };
    const inode = this.#add({
      type: "directory",
      attributes,
      content,
      xattrs: encoded,
      size: (blocks - 1) * blockBytes + lastBytes,
      layout: isInline ? layoutInline : layoutPlain,
      dataBlocks: isInline ? blocks - 1 : blocks,
      tailBytes: isInline ? lastBytes : 0,
    });
    inode.nlink = 2;
    return { node, inode, parent: parent?.inode ?? inode, names, covered };
  }

  #planChildren(directory: OpenDirectory): OpenDirectory[] {
    const { node, inode, parent, names, covered } = directory;
    if (inode.content.kind !== "directory") return [];
    const { entries } = inode.content;
    const subdirectories: OpenDirectory[] = [];
    for (const name of names) {
      if (name === "." || name === "..") {
        entries.push({ name, inode: name === "." ? inode : parent });
        continue;
      }
      const child = node.children.get(name);
      if (child?.kind === "directory") {
        const opaque = child.opaque || node.whiteouts.has(name);
        const subdirectory = this.#openDirectory(child, directory, opaque && !covered);
        subdirectories.push(subdirectory);
        entries.push({ name, inode: subdirectory.inode });
        inode.nlink++;
      } else {
        entries.push({ name, inode: this.#leafOrWhiteout(node, name, child) });
      }
    }
    return subdirectories;
  }

  #leafOrWhiteout(parent: DirectoryNode, name: string, child: Node | undefined): PlannedInode {
    if (child?.kind === "leaf") {
      const leaf = this.#leaves.get(child) ?? this.#leaf(child);
      leaf.nlink++;
      return leaf;
    }
    const entry = parent.whiteouts.get(name);
    assert(entry !== undefined, "a name leads to a file, a directory or a whiteout");
    const whiteout = this.#add({
      type: "char",
      attributes: { ...entry, mode: 0, xattrs: [] },
      content: { kind: "device", major: 0, minor: 0 },
    });
    whiteout.nlink = 1;
    return whiteout;
  }

  #leaf(node: LeafNode): PlannedInode {
    const inode = this.#add(this.#leafParts(node));
    this.#leaves.set(node, inode);
    return inode;
  }

  #leafParts({ type, entry }: LeafNode): InodeParts {
    const xattrs = encodeXattrs(acceptedXattrs(type, entry.xattrs));
    const common = { type, attributes: entry, xattrs };
    switch (type) {
      case "file":
        return { ...common, ...this.#fileParts(entry, xattrs) };
      case "symlink": {
        const target = entry.linkTarget;
        const isInline = fitsInline(xattrs, target.length);
        return {
          ...common,
          // Linux gives symbolic links no other permissions.
          attributes: { ...entry, mode: 0o777 },
          content: { kind: "symlink", target },
          size: target.length,
          layout: isInline ? layoutInline : layoutPlain,
          dataBlocks: isInline ? 0 : Math.ceil(target.length / blockBytes),
          tailBytes: isInline ? target.length : 0,
        };
      }
      case "char":
      case "block": {
        const { deviceMajor: major, deviceMinor: minor } = entry;
        return { ...common, content: { kind: "device", major, minor } };
      }
      case "fifo":
      default:
        return { ...common, content: { kind: "none" } };
    }
  }

  #fileParts(entry: TarEntry, xattrs: Buffer): Omit<InodeParts, "type" | "attributes"> {
    const data = mapFile(entry.size, entry.extents, this.#options.blobSize, this.#chunksLeft);
    const content = { kind: "file" as const, data };
    if (data.kind !== "chunks") return { content, size: entry.size };
    this.#chunksLeft -= data.blocks.length;
    const padding = chunkPadding(xattrs);
    const tailBytes = padding + data.blocks.length * chunkIndexBytes;
    return { content, size: entry.size, layout: layoutChunks, tailBytes };
  }

  #add(parts: InodeParts): PlannedInode {
    const { type, attributes, content, size = 0, layout = layoutPlain } = parts;
    const { dataBlocks = 0, tailBytes = 0, xattrs = noBytes } = parts;
    const bytes = inodeBytes + xattrs.length + tailBytes;
    const inode = {
      type,
      attributes,
      content,
      offset: this.#place(bytes, layout === layoutInline ? bytes : inodeBytes),
      nlink: 0,
      xattrs,
      size,
      layout,
      dataBlocks,
      firstDataBlock: this.#dataBlocks,
    };
    this.#dataBlocks += dataBlocks;
    this.#inodes.push(inode);
    return inode;
  }

  /** A place for `bytes`, the first `together` of which are not to cross the end of a block. */
  #place(bytes: number, together: number): number {
    if (bytes <= this.#gapEnd - this.#gapStart) {
      const offset = this.#gapStart;
      this.#gapStart += rounded(bytes);
      return offset;
    }
    const room = blockBytes - (this.#end % blockBytes);
    if (together > room) {
      this.#gapStart = this.#end;
      this.#end += room;
      this.#gapEnd = this.#end;
    }
    const offset = this.#end;
    this.#end += rounded(bytes);
    return offset;
  }
}

/** Bytes between an inode's attributes and its chunk indexes, which are aligned to 8. */
export function chunkPadding(xattrs: Buffer): number {
  return (8 - (xattrs.length % 8)) % 8;
}

function fitsInline(xattrs: Buffer, tailBytes: number): boolean {
  return inodeBytes + xattrs.length + tailBytes <= blockBytes;
}

function rounded(bytes: number): number {
  return Math.ceil(bytes / nidBytes) * nidBytes;
}

// Where nothing of the layers below can be seen a whiteout has nothing to hide, and overlayfs
// would list it.
function* visibleNames(node: DirectoryNode, covered: boolean): Generator<string> {
  yield* node.children.keys();
  if (covered) return;
  for (const name of node.whiteouts.keys()) if (!node.children.has(name)) yield name;
}
