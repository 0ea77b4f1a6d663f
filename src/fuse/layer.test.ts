import assert from "node:assert/strict";
import { test } from "node:test";
import { isClipError } from "../base/errors.ts";
import { makeLayer } from "./fixtures.ts";
import { checkLayer, nodeIdOf, nodeOf, parseRootName, readIfPresent } from "./layer.ts";

test("nodeids and what they mean are each other's inverse", () => {
  for (const layer of [1, 2, 2 ** 20]) {
    for (const inode of [0, 36, 2 ** 32 - 1]) {
      assert.deepEqual(nodeOf(nodeIdOf(layer, inode)), { layer, inode });
    }
  }
  for (const nodeId of [0, 1, 2 ** 32 - 1, (2 ** 20 + 1) * 2 ** 32, Number.NaN]) {
    assert.equal(nodeOf(nodeId), undefined);
  }
});

test("only the canonical names of layers are recognised in the root", () => {
  const parse = (name: string): unknown => parseRootName(Buffer.from(name, "latin1"));
  assert.deepEqual(parse("7"), { layer: 7, tree: false });
  assert.deepEqual(parse("1048576.tree"), { layer: 1048576, tree: true });
  for (const name of ["", "0", "07", "1048577", "7.tre", "7.tree ", "-1", "7\n", "..", "x7"]) {
    assert.equal(parse(name), undefined, name);
  }
});

test("a layer that does not fit together is refused", () => {
  const good = makeLayer({ size: 1000, spanBytes: 300, present: true });
  checkLayer(good);
  checkLayer(makeLayer({ size: 0, spanBytes: 300, present: true }));
  const bad = [
    { ...good, number: 0 },
    { ...good, number: 2 ** 20 + 1 },
    { ...good, number: 1.5 },
    { ...good, size: 1001 },
    { ...good, size: -1 },
    { ...good, spanPresent: good.spanPresent.subarray(1) },
    { ...good, spanPresent: new Uint8Array(4) },
    { ...good, spanStarts: good.spanStarts.map((start, at) => (at === 2 ? 0 : start)) },
  ];
  for (const layer of bad) {
    assert.throws(
      () => checkLayer(layer),
      (error) => isClipError(error, "ARGUMENT_INVALID"),
    );
  }
});

test("bytes are read only if every span that they touch is present", () => {
  const layer = makeLayer({ size: 1000, spanBytes: 300, present: true });
  layer.spanPresent[1] = 0;
  const isRead = (offset: number, length: number): boolean =>
    readIfPresent(layer, offset, length, () => true);
  assert.equal(isRead(0, 300), true);
  assert.equal(isRead(0, 301), false);
  assert.equal(isRead(299, 1), true);
  assert.equal(isRead(300, 1), false);
  assert.equal(isRead(599, 2), false);
  assert.equal(isRead(600, 400), true);
  assert.equal(isRead(999, 1), true);
  assert.equal(
    readIfPresent(layer, 0, 300, () => false),
    false,
  );
});

test("bytes of a span that goes, or goes and returns, while it is read are not used", () => {
  for (const flag of [0, 2]) {
    const layer = makeLayer({ size: 1000, spanBytes: 300, present: true });
    const used = readIfPresent(layer, 250, 100, () => {
      layer.spanPresent[1] = flag;
      return true;
    });
    assert.equal(used, false);
  }
});
