/** Layers made so that little in them makes much of the tree. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { isClipError } from "../base/errors.ts";
import { build, entry, file } from "./test-tree.ts";

const exceeds = (error: unknown): boolean => isClipError(error, "LIMIT_EXCEEDED");

test("links cannot lead deeper than a path can", () => {
  const deep = "d/".repeat(1000).slice(0, -1);
  const entries = [
    entry("x", "symlink", { linkTarget: deep }),
    // From within the deepest directory the same link leads as deep again.
    entry(`${deep}/x`, "hardlink", { linkTarget: "x" }),
    entry("x/x/x", "hardlink", { linkTarget: "x" }),
    file("x/x/x/f", 1, 1),
  ];
  assert.throws(() => build(entries), exceeds);
});

test("links cannot make directories with names that no directory can have", () => {
  const through = (linkTarget: string) => () =>
    build([entry("x", "symlink", { linkTarget }), file("x/f", 1, 1)]);
  assert.throws(through("n".repeat(256)), exceeds);
  assert.throws(through("a\0b"), (error) => isClipError(error, "CORRUPT_TAR"));
  assert.equal(through("n".repeat(255))().inodes, 4);
});

test("links cannot make directories without end", () => {
  const deep = "d/".repeat(2000).slice(0, -1);
  const entries = [
    entry("x", "symlink", { linkTarget: deep }),
    ...Array.from({ length: 1000 }, (_, at) => [
      entry(`${at}/x`, "hardlink", { linkTarget: "x" }),
      file(`${at}/x/f`, 1, 1),
    ]).flat(),
  ];
  assert.throws(() => build(entries), exceeds);
});

test("as many directories as real layers imply are no trouble", () => {
  const entries = Array.from({ length: 50_000 }, (_, at) =>
    file(`usr/lib/module-${at}/file`, 1, 1),
  );
  assert.equal(build(entries).inodes, 3 + 2 * entries.length);
});
