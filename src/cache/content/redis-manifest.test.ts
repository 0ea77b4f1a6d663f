import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  chunkCount,
  chunkLength,
  chunkRanges,
  decodeManifest,
  encodeManifest,
} from "./redis-manifest.ts";

const manifests = fc.record(
  {
    size: fc.nat({ max: 100_000 }),
    chunkBytes: fc.integer({ min: 1, max: 5_000 }),
    upload: fc.stringMatching(/^[0-9a-f]{16}$/),
  },
  { noNullPrototype: true },
);

test("a manifest survives its bytes", () => {
  fc.assert(
    fc.property(manifests, (manifest) => {
      assert.deepEqual(decodeManifest(encodeManifest(manifest)), manifest);
    }),
  );
});

test("what is no manifest is none, whatever it is", () => {
  const good = { version: 1, size: 1, chunkBytes: 1, upload: "0123456789abcdef" };
  assert.notEqual(decodeManifest(Buffer.from(JSON.stringify(good))), undefined);
  for (const change of [
    { version: 2 },
    { size: -1 },
    { size: 0.5 },
    { size: 2 ** 53 },
    { size: "1" },
    { chunkBytes: 0 },
    { chunkBytes: 2 ** 40 },
    { upload: "../" },
    { more: true },
  ]) {
    const bytes = Buffer.from(JSON.stringify({ ...good, ...change }));
    assert.equal(decodeManifest(bytes), undefined, JSON.stringify(change));
  }
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 2000 }), (bytes) => {
      assert.equal(decodeManifest(Buffer.from(bytes)), undefined);
    }),
  );
  fc.assert(
    fc.property(fc.json(), (text) => {
      assert.equal(decodeManifest(Buffer.from(text)), undefined);
    }),
  );
});

test("the parts of chunks make up the range, in order and inside their chunks", () => {
  fc.assert(
    fc.property(manifests, fc.nat(), fc.nat(), (manifest, a, b) => {
      const offset = a % (manifest.size + 1);
      const length = Math.min(b % 20_000, manifest.size - offset);
      let at = 0;
      for (const part of chunkRanges(manifest, offset, length)) {
        assert.equal(part.at, at);
        assert.equal(part.index * manifest.chunkBytes + part.start, offset + at);
        assert.equal(part.length > 0, true);
        assert.equal(part.start + part.length <= chunkLength(manifest, part.index), true);
        assert.equal(part.index < chunkCount(manifest), true);
        at += part.length;
      }
      assert.equal(at, length);
    }),
  );
});
