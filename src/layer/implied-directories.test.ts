import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { ErofsReader } from "../erofs/reader.ts";
import { build, entry } from "../erofs/test-tree.ts";
import type { TarEntry } from "../tar/entry.ts";
import { differingDirectory, joinPaths, splitPaths } from "./implied-directories.ts";

const directory = (path: string, rest: Partial<Omit<TarEntry, "linkTarget">> = {}) =>
  entry(path, "directory", rest);

/** What is found to differ for a layer of these entries over layers of those, topmost first. */
async function differing(layer: TarEntry[], ...below: TarEntry[][]): Promise<string | undefined> {
  const { impliedDirectories } = build(layer);
  const path = await differingDirectory(impliedDirectories, images(below));
  return path?.toString();
}

async function* images(layers: TarEntry[][]): AsyncGenerator<ErofsReader> {
  for (const entries of layers) yield build(entries).reader;
}

const inTmp = [entry("tmp/x", "file")];

test("a directory without an entry differs where a layer below gives it mode, owner or attributes", async () => {
  const xattrs = [{ name: Buffer.from("user.a"), value: Buffer.from("b") }];
  for (const rest of [{ mode: 0o1777 }, { uid: 1 }, { gid: 1 }, { xattrs }]) {
    assert.equal(await differing(inTmp, [directory("tmp", rest)]), "tmp");
    assert.equal(await differing([entry("a/b/c/x", "file")], [directory("a/b", rest)]), "a/b");
    assert.equal(
      await differing([directory("tmp"), ...inTmp], [directory("tmp", rest)]),
      undefined,
    );
  }
});

test("a directory without an entry is as it should be where those below are by default", async () => {
  assert.equal(await differing(inTmp), undefined);
  assert.equal(await differing(inTmp, []), undefined);
  assert.equal(await differing(inTmp, [directory("tmp")]), undefined);
  assert.equal(await differing(inTmp, inTmp), undefined);
  assert.equal(await differing(inTmp, [directory("tm", { mode: 0 })]), undefined);
});

test("the topmost layer that has the directory counts", async () => {
  const open = [directory("tmp", { mode: 0o1777 })];
  assert.equal(await differing(inTmp, [directory("tmp")], open), undefined);
  assert.equal(await differing(inTmp, open, [directory("tmp")]), "tmp");
  assert.equal(await differing(inTmp, [directory("etc")], open), "tmp");
});

test("what was removed or replaced hides the directories below it, an opaque one does not count", async () => {
  const open = [directory("tmp", { mode: 0o1777 })];
  assert.equal(await differing(inTmp, [entry(".wh.tmp", "file")], open), undefined);
  assert.equal(await differing(inTmp, [entry("tmp", "file")], open), undefined);
  const opaque = [directory("tmp"), entry("tmp/.wh..wh..opq", "file")];
  assert.equal(await differing(inTmp, opaque, open), undefined);
  assert.equal(await differing(inTmp, [entry(".wh..wh..opq", "file")], open), "tmp");
});

test("a symbolic link below is not followed: containerd decides", async () => {
  const link = [entry("tmp", "symlink", { linkTarget: "var/tmp" })];
  assert.equal(await differing(inTmp, link), "tmp");
});

test("no image is read where nothing is missing, and none below the one that decides", async () => {
  let read = 0;
  async function* counted() {
    for (const entries of [[directory("tmp")], [directory("tmp")]]) {
      read++;
      yield build(entries).reader;
    }
  }
  assert.equal(await differingDirectory([], counted()), undefined);
  assert.equal(read, 0);
  assert.equal(await differingDirectory([Buffer.from("tmp")], counted()), undefined);
  assert.equal(read, 1);
});

test("paths come out as they went in", () => {
  const byte = fc.integer({ min: 1, max: 255 });
  const path = fc.array(byte, { minLength: 1 }).map((bytes) => Buffer.from(bytes));
  fc.assert(
    fc.property(fc.array(path), (paths) => {
      assert.deepEqual(splitPaths(joinPaths(paths)), paths);
    }),
  );
});
