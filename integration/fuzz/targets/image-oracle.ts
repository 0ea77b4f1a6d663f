/** A metadata image shows the tree that its entries make. */
import assert from "node:assert/strict";
import { digestOf } from "../../../src/base/digest.ts";
import { ErofsReader } from "../../../src/erofs/reader.ts";
import {
  LayerTree,
  type Attributes,
  type DirectoryNode,
  type LeafNode,
} from "../../../src/erofs/tree.ts";
import { buildErofsImage } from "../../../src/erofs/writer.ts";
import { acceptedXattrs } from "../../../src/erofs/xattr.ts";
import type { TarEntry, Xattr } from "../../../src/tar/entry.ts";
import { attempt, magnitude } from "../engine/target.ts";

const diffId = digestOf(Buffer.alloc(0));
const buildCodes = ["CORRUPT_TAR", "LAYER_UNSUPPORTED", "LIMIT_EXCEEDED"] as const;

/**
 * Builds the image of these entries over a blob of `blobSize` bytes, reads it back and compares.
 * @returns how it went
 */
export function assertImage(entries: readonly TarEntry[], blobSize: number): string {
  const options = { blobSize, diffId, keepRuntimeDirectories: true };
  const built = attempt(buildCodes, () => buildErofsImage(entries, options));
  if ("failure" in built) return built.failure;
  const tree = new LayerTree();
  for (const entry of entries) tree.add(entry);
  tree.finish();
  const reader = new ErofsReader(built.value.image);
  const comparison = new Comparison(reader);
  comparison.directory(tree.root, reader.rootNid, tree.root.opaque);
  const { inodes, image, opaqueRoot } = built.value;
  return `${magnitude(inodes)} ${magnitude(image.length)} ${String(opaqueRoot)} ${comparison.shape}`;
}

class Comparison {
  readonly #reader: ErofsReader;
  readonly #leaves = new Map<LeafNode, number>();
  readonly #kinds = new Set<string>();

  constructor(reader: ErofsReader) {
    this.#reader = reader;
  }

  /** Which kinds of things there were. */
  get shape(): string {
    return [...this.#kinds].toSorted().join(",");
  }

  /** `isCovered`: whether it hides all that is below this layer, so that whiteouts are needless. */
  directory(directory: DirectoryNode, nid: number, isCovered: boolean): void {
    const reader = this.#reader;
    const inode = reader.inode(nid);
    assert.equal(inode.type, "directory");
    this.#attributes(directory.attributes, nid);
    const found = new Map(
      [...reader.readdir(nid)].map((entry) => [entry.name.toString("latin1"), entry.nid]),
    );
    const whiteouts = isCovered ? [] : directory.whiteouts.keys();
    const names = new Set([...directory.children.keys(), ...whiteouts, ".", ".."]);
    assert.deepEqual([...found.keys()].toSorted(), [...names].toSorted());
    for (const [name, child] of found) {
      assert.equal(reader.lookup(nid, Buffer.from(name, "latin1")), child, name);
      if (name === "." || name === "..") continue;
      const node = directory.children.get(name);
      if (node === undefined) this.#whiteout(child);
      else if (node.kind === "leaf") this.#leaf(node, child);
      else if (node.kind === "link") assert.fail("a link is left in the tree");
      else {
        const isOpaque = node.opaque || directory.whiteouts.has(name);
        this.directory(node, child, isCovered || isOpaque);
      }
    }
    if (directory.opaque) this.#kinds.add("opaque");
  }

  #whiteout(nid: number): void {
    const { type, device } = this.#reader.inode(nid);
    assert.deepEqual([type, device], ["char", 0]);
    this.#kinds.add("whiteout");
  }

  #leaf(node: LeafNode, nid: number): void {
    const seen = this.#leaves.get(node);
    if (seen !== undefined) return assert.equal(nid, seen, "a hard link is another file");
    this.#leaves.set(node, nid);
    const { entry, type } = node;
    const inode = this.#reader.inode(nid);
    assert.equal(inode.type, type);
    // Linux gives symbolic links no other permissions.
    this.#attributes(type === "symlink" ? { ...entry, mode: 0o777 } : entry, nid);
    this.#kinds.add(type);
    if (type === "symlink") assert.deepEqual(this.#reader.readlink(nid), entry.linkTarget);
    if (type === "file") this.#data(entry, nid);
    if (type === "char" || type === "block") {
      const minor = (inode.device & 0xff) | ((inode.device >>> 12) & ~0xff);
      const numbers = [(inode.device >>> 8) & 0xfff, minor];
      assert.deepEqual(numbers, [entry.deviceMajor, entry.deviceMinor]);
    }
  }

  #data(entry: TarEntry, nid: number): void {
    assert.equal(this.#reader.inode(nid).size, entry.size);
    const found = this.#reader.extents(nid).filter(({ blobOffset }) => blobOffset !== undefined);
    const expected: { fileOffset: number; blobOffset: number; length: number }[] = [];
    for (const { fileOffset, archiveOffset: blobOffset, length } of entry.extents) {
      const last = expected.at(-1);
      const isNext =
        last !== undefined &&
        last.fileOffset + last.length === fileOffset &&
        last.blobOffset + last.length === blobOffset;
      if (isNext) last.length += length;
      else expected.push({ fileOffset, length, blobOffset });
    }
    assert.deepEqual(found, expected);
    if (expected.length > 1) this.#kinds.add("sparse");
  }

  #attributes(attributes: Attributes, nid: number): void {
    const { type, mode, uid, gid, mtimeSeconds, mtimeNanoseconds } = this.#reader.inode(nid);
    assert.deepEqual(
      { mode: mode & 0o7777, uid, gid, mtimeSeconds, mtimeNanoseconds },
      {
        ...{ mode: attributes.mode, uid: attributes.uid, gid: attributes.gid },
        mtimeSeconds: attributes.mtimeSeconds,
        mtimeNanoseconds: attributes.mtimeNanoseconds,
      },
    );
    const marks = (xattrs: readonly Xattr[]): Xattr[] =>
      xattrs.filter(({ name }) => !name.toString().startsWith("trusted."));
    const expected = acceptedXattrs(type, attributes.xattrs);
    assert.deepEqual(marks(this.#reader.xattrs(nid)), expected);
    if (expected.length > 0) this.#kinds.add("xattrs");
  }
}
