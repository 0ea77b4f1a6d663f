import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { digestOf } from "../../base/digest.ts";
import { isClipError } from "../../base/errors.ts";
import { indexOffset, isVouchedFor, readSeal, sealedBytesMin, sealIndex } from "./sealed-index.ts";

const layer = digestOf(Buffer.from("layer"));
const key = Buffer.alloc(32, 1);
const encoded = Buffer.alloc(100_000, "index");

test("what was sealed is read, and its beginning can be read without knowing its size", () => {
  for (const length of [0, 1, sealedBytesMin - indexOffset, 100_000]) {
    const index = encoded.subarray(0, length);
    const sealed = sealIndex(layer, index, key);
    assert.ok(sealed.length >= sealedBytesMin);
    const { end, mac } = readSeal(sealed.subarray(0, sealedBytesMin));
    assert.deepEqual(sealed.subarray(indexOffset, end), index);
    assert.equal(isVouchedFor(layer, index, mac, [Buffer.alloc(32, 2), key]), true);
  }
});

test("only a key of the cluster vouches, for one index of one layer", () => {
  const { mac } = readSeal(sealIndex(layer, encoded, key));
  assert.equal(isVouchedFor(layer, encoded, mac, []), false);
  assert.equal(isVouchedFor(layer, encoded, mac, [Buffer.alloc(32, 2)]), false);
  assert.equal(isVouchedFor(digestOf(Buffer.from("other")), encoded, mac, [key]), false);
  assert.equal(isVouchedFor(layer, encoded.subarray(1), mac, [key]), false);
  const unsigned = readSeal(sealIndex(layer, encoded, undefined));
  assert.equal(isVouchedFor(layer, encoded, unsigned.mac, [key]), false);
});

test("any bytes are a seal or an error, never a crash", () => {
  const sealed = sealIndex(layer, encoded.subarray(0, 10), key).subarray(0, 200);
  const damaged = fc.array(fc.tuple(fc.nat(60), fc.nat(255)), { maxLength: 4 }).map((changes) => {
    const copy = Buffer.from(sealed);
    for (const [at, byte] of changes) copy[at] = byte;
    return copy;
  });
  const arbitrary = fc.uint8Array({ maxLength: 100 }).map((bytes) => Buffer.from(bytes));
  fc.assert(
    fc.property(fc.oneof(arbitrary, damaged), (bytes) => {
      try {
        assert.ok(readSeal(bytes).end >= indexOffset);
      } catch (error) {
        assert.ok(isClipError(error, "CORRUPT_INDEX") || isClipError(error, "LIMIT_EXCEEDED"));
      }
    }),
  );
});
