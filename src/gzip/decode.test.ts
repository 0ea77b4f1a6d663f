import assert from "node:assert/strict";
import { test } from "node:test";
import { deflateRawSync, gzipSync } from "node:zlib";
import fc from "fast-check";
import { isClipError } from "../base/errors.ts";
import { decodeSpan, decodeSpanSync } from "./decode.ts";
import type { SpanRequest } from "./decode.ts";
import { build, sample, spanRequests } from "./testing.ts";

const bytes = sample("mixed", 300_000);
// Members of which some are whole in a span, so that spans end and begin in others.
const compressed = Buffer.concat([
  gzipSync(bytes.subarray(0, 120_000), { memLevel: 3 }),
  gzipSync(bytes.subarray(120_000, 125_000)),
  gzipSync(Buffer.alloc(0)),
  gzipSync(bytes.subarray(125_000, 131_000)),
  gzipSync(bytes.subarray(131_000), { memLevel: 3 }),
]);
const { index } = build(compressed, 30_000);
const requests = spanRequests(compressed, index);

const isCorrupt = (error: unknown): boolean => isClipError(error, "CORRUPT_GZIP");

/** What both ways of decoding come to; they must agree. */
async function outcome(request: SpanRequest): Promise<Buffer | "corrupt"> {
  let synchronous: Buffer | "corrupt" = "corrupt";
  try {
    synchronous = decodeSpanSync(request);
  } catch (error) {
    assert.ok(isCorrupt(error), String(error));
  }
  try {
    const decoded = await decodeSpan(request);
    assert.deepEqual(decoded, synchronous);
  } catch (error) {
    assert.ok(isCorrupt(error), String(error));
    assert.equal(synchronous, "corrupt");
  }
  return synchronous;
}

test("all spans can be decoded at once, off the main thread", async () => {
  assert.ok(requests.length > 6);
  const decoded = await Promise.all(requests.map((request) => decodeSpan(request)));
  assert.ok(Buffer.concat(decoded).equals(bytes));
});

test("decoding changes neither the compressed bytes nor the window", async () => {
  for (const request of requests) {
    const before = structuredClone([request.compressed, request.window]);
    await decodeSpan(request);
    assert.ok(request.compressed.equals(before[0]!) && request.window.equals(before[1]!));
  }
});

test("a span cut short anywhere is an error", async () => {
  for (const request of [requests[1]!, requests[3]!, requests[4]!]) {
    const { length } = request.compressed;
    for (const end of [0, 1, 2, Math.floor(length / 2), length - 40]) {
      const cut = { ...request, compressed: request.compressed.subarray(0, end) };
      assert.equal(await outcome(cut), "corrupt", `${end} of ${length} bytes`);
    }
  }
});

test("a span that is longer than its compressed bytes yield is an error", async () => {
  for (const request of requests) {
    assert.equal(await outcome({ ...request, length: request.length + 1 }), "corrupt");
  }
});

test("a span that is shorter than its compressed bytes yield is an error", async () => {
  for (const request of requests) {
    assert.equal(await outcome({ ...request, length: request.length - 1 }), "corrupt");
  }
});

test("no more is decoded than was asked for", async () => {
  const bomb = deflateRawSync(sample("zeros", 50_000_000));
  const tooLarge = (error: unknown): boolean =>
    isClipError(error, "CORRUPT_GZIP") &&
    error.cause instanceof RangeError &&
    "code" in error.cause &&
    error.cause.code === "ERR_BUFFER_TOO_LARGE";
  for (const bombAt of [0, 1]) {
    const member = gzipSync(bytes.subarray(0, 100)).subarray(10);
    const compressed = bombAt === 0 ? bomb : Buffer.concat([member, gzipSync(bytes)]);
    const request = {
      compressed,
      checkpoint: { bitOffset: 0 },
      window: Buffer.alloc(0),
      length: 1000,
    };
    await assert.rejects(decodeSpan(request), tooLarge);
    assert.throws(() => decodeSpanSync(request), tooLarge);
  }
});

test("a checkpoint that cannot be is an error", async () => {
  const request = requests[1]!;
  for (const bitOffset of [-1, 8, 0.5, Number.NaN]) {
    assert.equal(await outcome({ ...request, checkpoint: { bitOffset } }), "corrupt");
  }
  for (const length of [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
    assert.equal(await outcome({ ...request, length }), "corrupt");
  }
  assert.equal(await outcome({ ...request, window: Buffer.alloc(32_769) }), "corrupt");
});

test("a missing window is an error where one is needed", async () => {
  const request = requests.find(({ window }) => window.length > 0)!;
  assert.equal(await outcome({ ...request, window: Buffer.alloc(0) }), "corrupt");
  assert.equal(await outcome({ ...request, window: request.window.subarray(1) }), "corrupt");
});

test("a flipped bit yields an error or as many bytes as were asked for", async () => {
  await fc.assert(
    fc.asyncProperty(fc.nat(), fc.nat(), async (span, bit) => {
      const request = requests[span % requests.length]!;
      const flipped = Buffer.from(request.compressed);
      flipped[(bit >> 3) % flipped.length]! ^= 1 << (bit & 7);
      const decoded = await outcome({ ...request, compressed: flipped });
      assert.ok(decoded === "corrupt" || decoded.length === request.length);
    }),
    { numRuns: 150 },
  );
});

test("garbage yields an error or as many bytes as were asked for", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.uint8Array({ maxLength: 3000 }),
      fc.integer({ min: 0, max: 7 }),
      fc.uint8Array({ maxLength: 200 }),
      fc.integer({ min: 1, max: 3000 }),
      async (compressed, bitOffset, window, length) => {
        const decoded = await outcome({
          compressed: Buffer.from(compressed),
          checkpoint: { bitOffset },
          window: Buffer.from(window),
          length,
        });
        assert.ok(decoded === "corrupt" || decoded.length === length);
      },
    ),
    { numRuns: 300 },
  );
});
