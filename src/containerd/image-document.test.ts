import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { digestOf } from "../base/digest.ts";
import { isClipError } from "../base/errors.ts";
import { describeLayers, parseManifest } from "./image-document.ts";
import { nanosecondsFromTimestamp, timestampFromNanoseconds } from "./protos.ts";

const digest = digestOf(Buffer.from("x"));

test("any JSON is either an image or refused", () => {
  const value = fc.oneof(fc.constant(digest), fc.constant(5), fc.jsonValue({ maxDepth: 2 }));
  const layer = fc.oneof(fc.record({ digest: value, size: value, mediaType: value }), value);
  const manifest = fc.record({
    config: fc.oneof(fc.constant({ digest }), value),
    layers: fc.oneof(fc.array(layer, { maxLength: 3 }), value),
  });
  const config = fc.record({
    rootfs: fc.oneof(
      fc.record({ diff_ids: fc.oneof(fc.array(value, { maxLength: 3 }), value) }),
      value,
    ),
  });
  fc.assert(
    fc.property(manifest, config, (manifestValue, configValue) => {
      try {
        const parsed = parseManifest(Buffer.from(JSON.stringify(manifestValue)));
        const layers = describeLayers(parsed, Buffer.from(JSON.stringify(configValue)));
        assert.equal(layers.length, parsed.layers.length);
      } catch (error) {
        if (!isClipError(error, "LAYER_UNSUPPORTED")) throw error;
      }
    }),
    { numRuns: 1000 },
  );
});

test("times survive the way through a Timestamp, also before 1970", () => {
  assert.deepEqual(timestampFromNanoseconds(-1n), { seconds: "-1", nanos: 999_999_999 });
  fc.assert(
    fc.property(fc.bigInt(-(2n ** 62n), 2n ** 62n), (nanoseconds) => {
      const timestamp = timestampFromNanoseconds(nanoseconds);
      assert.equal(nanosecondsFromTimestamp(timestamp), nanoseconds);
      assert.ok(timestamp.nanos >= 0 && timestamp.nanos < 1e9);
    }),
    { numRuns: 200 },
  );
  assert.equal(nanosecondsFromTimestamp(null), 0n);
});
