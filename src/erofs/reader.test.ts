import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { ClipError, isClipError } from "../base/errors.ts";
import { ErofsReader } from "./reader.ts";
import { build, entry, file, list, nidOf } from "./test-tree.ts";

test("a large directory is found, listed in order and can be gone through in parts", () => {
  const names = Array.from({ length: 5000 }, (_, index) =>
    `${(index * 7919) % 5000}`.padStart(1 + (index % 200), "n"),
  );
  const unique = [...new Set(names), "!", "-", ".a", "..", "."].filter(
    (name) => !/^\.\.?$/.test(name),
  );
  const { reader } = build([
    ...unique.map((name, index) => file(`d/${name}`, 1, index + 1)),
    entry("e", "directory"),
  ]);
  const nid = nidOf(reader, "d");
  const whole = [...reader.readdir(nid)];
  const sorted = [...unique, ".", ".."].sort((a, b) =>
    Buffer.compare(Buffer.from(a), Buffer.from(b)),
  );
  assert.deepEqual(
    whole.map(({ name }) => name.toString()),
    sorted,
  );
  for (const { name, nid: child } of whole) assert.equal(reader.lookup(nid, name), child);
  for (const name of ["", "zzz", "n", "!!", "\0", "~"]) {
    assert.equal(reader.lookup(nid, Buffer.from(name)), undefined, name);
  }
  for (const at of [0, 1, 38, 39, 40, 2500, whole.length - 1]) {
    const rest = [...reader.readdir(nid, whole[at]?.cookie)];
    assert.deepEqual(rest, whole.slice(at + 1), `after entry ${at}`);
  }
  assert.equal(reader.lookup(nid, Buffer.from("..")), reader.rootNid);
  assert.equal(reader.lookup(nid, Buffer.from(".")), nid);
  assert.deepEqual([...reader.readdir(nid, 2 ** 53)], []);
  assert.deepEqual([...reader.readdir(nid, -1)], []);
});

test("names are bytes, and compared as bytes", () => {
  const names = ["80", "ff", "7f", "c3a4", "0a", "2d"].map((hex) => Buffer.from(hex, "hex"));
  const { reader } = build(names.map((name, index) => file(name, 1, index + 1)));
  const listed = [...reader.readdir(reader.rootNid)].map(({ name }) => name.toString("hex"));
  assert.deepEqual(listed, ["0a", "2d", "2e", "2e2e", "7f", "80", "c3a4", "ff"]);
  for (const name of names) assert.notEqual(reader.lookup(reader.rootNid, name), undefined);
});

test("an image can lie in memory that threads share", () => {
  const { image } = build([file("d/f", 1, 1)]);
  const shared = new SharedArrayBuffer(image.length);
  image.copy(Buffer.from(shared));
  const reader = new ErofsReader(Buffer.from(shared));
  assert.deepEqual([...list(reader).keys()], ["", "d", "d/f"]);
});

test("what is no image is refused", () => {
  const { image } = build([file("f", 1, 1)]);
  const damaged = (at: number, value: number) => {
    const copy = Buffer.from(image);
    copy.writeUInt8(value, at);
    return copy;
  };
  const cases = {
    nothing: Buffer.alloc(0),
    zeros: Buffer.alloc(4096),
    "cut short": image.subarray(0, image.length - 512),
    "another magic": damaged(1024, 0),
    "another block size": damaged(1024 + 0x0c, 12),
    "another feature": damaged(1024 + 0x50, 0x0d),
    "no root": damaged(1024 + 0x0e, 0xff),
  };
  for (const [what, bytes] of Object.entries(cases)) {
    assert.throws(
      () => new ErofsReader(bytes),
      (error) => isClipError(error, "CORRUPT_EROFS"),
      what,
    );
  }
});

test("an inode that is none, or of another type, is an error", () => {
  const { reader } = build([file("f", 1, 1)]);
  const f = nidOf(reader, "f");
  for (const act of [
    () => reader.inode(0),
    () => reader.inode(2 ** 40),
    () => reader.inode(-1),
    () => reader.inode(40.5),
    () => reader.inode(Number.NaN),
    () => reader.readlink(f),
    () => reader.lookup(f, Buffer.from("x")),
    () => [...reader.readdir(f)],
    () => reader.extents(reader.rootNid),
  ]) {
    assert.throws(act, (error) => isClipError(error, "CORRUPT_EROFS"), act.toString());
  }
});

test("damaged images give answers or CORRUPT_EROFS, and nothing else", () => {
  const { image } = build(
    [
      ...Array.from({ length: 60 }, (_, index) => file(`d/file-${index}`, 1000, index * 2)),
      entry("d/sub", "directory", {
        xattrs: [{ name: Buffer.from("user.a"), value: Buffer.from("value") }],
      }),
      entry("l", "symlink", { linkTarget: "target" }),
      entry("m", "symlink", { linkTarget: "t".repeat(1000) }),
      entry("s", "file", {
        size: 8192,
        extents: [{ fileOffset: 4096, archiveOffset: 512, length: 512 }],
      }),
      {
        ...file("x", 10, 1),
        xattrs: [{ name: Buffer.from("security.b"), value: Buffer.alloc(40) }],
      },
    ],
    { blobSize: 512 * 300 },
  );
  const change = fc.record({
    at: fc.integer({ min: 1024, max: image.length - 1 }),
    byte: fc.nat(255),
  });
  fc.assert(
    fc.property(fc.array(change, { minLength: 1, maxLength: 10 }), (changes) => {
      const bytes = Buffer.from(image);
      for (const { at, byte } of changes) bytes[at] = byte;
      let reader: ErofsReader;
      try {
        reader = new ErofsReader(bytes);
      } catch (error) {
        return assert.ok(isClipError(error, "CORRUPT_EROFS"), String(error));
      }
      for (let nid = 0; nid < image.length / 32; nid++) useEverything(reader, nid);
    }),
    { numRuns: 200 },
  );
});

function useEverything(reader: ErofsReader, nid: number): void {
  const acts = [
    () => void reader.inode(nid),
    () => void reader.lookup(nid, Buffer.from("file-30")),
    () => {
      const names = [...reader.readdir(nid)];
      assert.ok(names.length < 10_000);
    },
    () => void reader.readlink(nid),
    () => void reader.xattrs(nid),
    () => {
      for (const { blobOffset, length } of reader.extents(nid, 0, 100_000)) {
        assert.ok(blobOffset === undefined || blobOffset + length <= reader.blobSize);
      }
    },
  ];
  for (const act of acts) {
    try {
      act();
    } catch (error) {
      if (!(error instanceof ClipError) || error.code !== "CORRUPT_EROFS") throw error;
    }
  }
}
