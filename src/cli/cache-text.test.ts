import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf } from "../base/digest.ts";
import type { LayerCheck } from "../layer/verify-cache.ts";
import { formatChecks, isWell } from "./cache-text.ts";

const right: LayerCheck = {
  number: 1,
  layerDigest: digestOf(Buffer.from("layer")),
  spans: 20,
  bytes: 20 * 1024 * 1024,
  damaged: 0,
  repaired: 0,
  image: "right",
};

void test("a layer that is right is said to be so", () => {
  const text = formatChecks([right, { ...right, image: "missing" }]);
  assert.match(text, /^[0-9a-f]{12}  20\.0 MiB  20     0        0         right$/m);
  assert.match(text, /everything on disk is right/);
  assert.ok(isWell([right]) && isWell([]));
});

void test("damage that was repaired is no failure, and any other is", () => {
  const repaired = { ...right, damaged: 3, repaired: 3, image: "repaired" } as const;
  assert.ok(isWell([right, repaired]));
  assert.match(formatChecks([repaired]), /found in 3 spans and 1 metadata images, and repaired/);
  const left = { ...right, damaged: 3, repaired: 1 };
  assert.ok(!isWell([right, left]));
  assert.match(formatChecks([right, left]), /3 spans.*; 2 spans are not on disk any more/);
  assert.ok(!isWell([{ ...right, image: "damaged" }]));
});
