/** Damaged metadata images: read, and served to the kernel as a tree. */
import assert from "node:assert/strict";
import { ErofsReader } from "../../../src/erofs/reader.ts";
import { build, entry, file } from "../../../src/erofs/test-tree.ts";
import { makeLayer, makeState } from "../../../src/fuse/fixtures.ts";
import { nodeIdOf } from "../../../src/fuse/layer.ts";
import { attempt, magnitude, type FuzzTarget } from "../engine/target.ts";
import { assertAnswer } from "./fuse-oracle.ts";
import { requestsFor } from "./fuse-inputs.ts";

const codes = ["CORRUPT_EROFS"] as const;
const blockBytes = 512;
/** Inodes that are looked at in one image. */
const visitsMax = 12;
const layerNumber = 3;
const layer = makeLayer({ number: layerNumber, size: 2 ** 20, spanBytes: 2 ** 16, present: true });

/** Any bytes as an image: every answer is in its bounds and comes soon, whatever is in it. */
export const erofsReader: FuzzTarget = {
  bytesMax: 16 * 1024,
  dictionary: [Buffer.from("e2e1f5e0", "hex"), Buffer.from("ffffffff", "hex"), "user.", "file-1"],
  seeds: exampleImages,
  mend: (input) => {
    // A whole number of blocks, as the superblock says.
    const blocks = Math.ceil(input.length / blockBytes);
    const bytes = Buffer.concat([input], blocks * blockBytes);
    if (bytes.length >= 2048) bytes.writeUInt32LE(blocks, 1024 + 0x24);
    return bytes;
  },
  run(input) {
    const opened = attempt(codes, () => new ErofsReader(input));
    if ("failure" in opened) return opened.failure;
    const shape = new Set<string>();
    for (const nid of reachable(opened.value, input)) visit(opened.value, nid, shape);
    return [...shape].toSorted().join("; ");
  },
};

/** Inodes to look at: those that the root leads to, and one that nothing need lead to. */
function reachable(reader: ErofsReader, input: Buffer): Set<number> {
  const nids = new Set([reader.rootNid, input.length % 64, reader.inodes]);
  for (const nid of nids) {
    if (nids.size >= visitsMax) break;
    attempt(codes, () => {
      for (const child of reader.readdir(nid)) {
        if (nids.size < visitsMax) nids.add(child.nid);
      }
    });
  }
  return nids;
}

function visit(reader: ErofsReader, nid: number, shape: Set<string>): void {
  const look = (what: string, work: () => string): void => {
    const outcome = attempt(codes, work);
    shape.add(`${what} ${"failure" in outcome ? outcome.failure : outcome.value}`);
  };
  look("inode", () => reader.inode(nid).type);
  look("lookup", () => String(reader.lookup(nid, Buffer.from("file-30")) !== undefined));
  look("readdir", () => {
    const names = [...reader.readdir(nid)];
    assert.ok(names.length <= 10_000 && names.every(({ name }) => name.length <= 255));
    return String(magnitude(names.length));
  });
  look("readlink", () => String(magnitude(reader.readlink(nid).length)));
  look("xattrs", () => String(magnitude(reader.xattrs(nid).length)));
  look("extents", () => {
    const extents = reader.extents(nid, 0, 100_000);
    let end = 0;
    for (const { fileOffset, length, blobOffset } of extents) {
      assert.ok(fileOffset === end && length > 0);
      end += length;
      const start = blobOffset ?? 0;
      assert.ok(start >= 0 && start + length <= reader.blobSize);
    }
    return String(magnitude(extents.length));
  });
  const state = { ...makeState([{ layer, tree: reader }]), readLocal: () => true };
  for (const request of requestsFor(nodeIdOf(layerNumber, nid >>> 0))) assertAnswer(request, state);
}

function exampleImages(): Buffer[] {
  const xattrs = [{ name: Buffer.from("user.a"), value: Buffer.from("value") }];
  const small = build([
    file("f", 10, 1),
    entry("l", "symlink", { linkTarget: "target" }),
    entry("m", "symlink", { linkTarget: "t".repeat(1000) }),
    entry("c", "char", { deviceMajor: 1, deviceMinor: 3 }),
  ]);
  const large = build(
    [
      ...Array.from({ length: 60 }, (_, index) => file(`d/file-${index}`, 1000, index * 2)),
      entry("d/sub", "directory", { xattrs }),
      entry("s", "file", {
        size: 8192,
        extents: [{ fileOffset: 4096, archiveOffset: 512, length: 512 }],
      }),
    ],
    { blobSize: 512 * 300 },
  );
  return [small.image, large.image, build([]).image];
}
