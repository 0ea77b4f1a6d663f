import assert from "node:assert/strict";
import { test } from "node:test";
import { constants, deflateRawSync, gzipSync } from "node:zlib";
import fc from "fast-check";
import { isClipError } from "../base/errors.ts";
import { GzipIndexBuilder } from "./build.ts";
import { windowBytesMax } from "./checkpoint.ts";
import { assertRestartable, build, gzipMember, sample, sampleKinds } from "./testing.ts";

const { Z_FIXED, Z_HUFFMAN_ONLY, Z_RLE, Z_FILTERED, Z_SYNC_FLUSH, Z_FULL_FLUSH } = constants;
const spanBytes = 40_000;
const mixed = sample("mixed", 400_000);

test("every level restarts at every checkpoint, stored blocks included", () => {
  for (let level = 0; level <= 9; level++) {
    const index = assertRestartable(gzipSync(mixed, { level }), mixed, spanBytes);
    assert.ok(index.checkpoints.length > 2, `level ${level}`);
  }
});

test("every strategy restarts at every checkpoint", () => {
  for (const strategy of [Z_FIXED, Z_HUFFMAN_ONLY, Z_RLE, Z_FILTERED]) {
    const index = assertRestartable(gzipSync(mixed, { strategy }), mixed, spanBytes);
    assert.ok(index.checkpoints.length > 2, `strategy ${strategy}`);
  }
});

test("checkpoints that nobody takes one by one come with the index", () => {
  const compressed = gzipSync(mixed);
  const builder = new GzipIndexBuilder({ spanBytes: 20_000, onOutput: () => {} });
  builder.write(compressed);
  assert.deepEqual(builder.end(), assertRestartable(compressed, mixed, 20_000));
});

test("checkpoints come at every bit of a byte", () => {
  const index = assertRestartable(gzipSync(mixed, { memLevel: 1 }), mixed, 1);
  const offsets = new Set(index.checkpoints.map((checkpoint) => checkpoint.bitOffset));
  assert.equal(offsets.size, 8);
});

test("the spacing decides how many checkpoints there are", () => {
  const compressed = gzipSync(mixed, { memLevel: 1 });
  const { checkpoints: close } = assertRestartable(compressed, mixed, 10_000);
  const { checkpoints: wide } = assertRestartable(compressed, mixed, 100_000);
  assert.ok(close.length > 20 && close.length <= 40);
  assert.ok(wide.length >= 3 && wide.length <= 4);
});

test("a block larger than the spacing is one span", () => {
  const zeros = sample("zeros", 2_000_000);
  const { checkpoints } = assertRestartable(gzipSync(zeros), zeros, 64_000);
  assert.equal(checkpoints[0]?.length, zeros.length);
});

test("a large span goes through the output memory many times", () => {
  const bytes = sample("text", 3_000_000);
  assertRestartable(gzipSync(bytes), bytes, 700_000);
});

test("concatenated members are one stream", () => {
  const parts = [5, 100_000, 1, 70_000, 30_000].map((size, seed) => sample("mixed", size, seed));
  const compressed = Buffer.concat(parts.map((part) => gzipSync(part)));
  assertRestartable(compressed, Buffer.concat(parts), 20_000);
});

test("a span reaches over hundreds of tiny members", () => {
  const parts = Array.from({ length: 600 }, (_, seed) => sample("text", seed % 90, seed));
  const compressed = Buffer.concat(parts.map((part) => gzipSync(part)));
  const index = assertRestartable(compressed, Buffer.concat(parts), 8_000);
  assert.ok(index.checkpoints.length > 2);
});

test("a checkpoint at the start of a member needs no window", () => {
  const parts = Array.from({ length: 9 }, (_, seed) => sample("text", 20_000, seed));
  const compressed = Buffer.concat(parts.map((part) => gzipSync(part)));
  const { checkpoints } = assertRestartable(compressed, Buffer.concat(parts), 20_000);
  assert.equal(checkpoints.length, 9);
  for (const { window } of checkpoints) assert.equal(window.length, 0);
});

test("members without output come anywhere", () => {
  const empty = gzipSync(Buffer.alloc(0));
  const text = sample("text", 30_000);
  const member = gzipSync(text);
  const compressed = Buffer.concat([empty, empty, member, empty, member, empty, empty]);
  for (const spanBytes of [1, 30_000, 45_000, 1_000_000]) {
    assertRestartable(compressed, Buffer.concat([text, text]), spanBytes);
  }
});

test("a stream of which nothing comes out has no checkpoint", () => {
  const { index, output } = build(gzipSync(Buffer.alloc(0)), spanBytes);
  assert.deepEqual(index, { checkpoints: [], compressedSize: 20, uncompressedSize: 0 });
  assert.equal(output.length, 0);
});

test("no checkpoint lies at the end of the output", () => {
  const text = sample("text", 50_000);
  const flushed = Buffer.concat([
    deflateRawSync(text, { finishFlush: Z_SYNC_FLUSH }),
    deflateRawSync(Buffer.alloc(0)),
  ]);
  const index = assertRestartable(gzipMember(text, {}, {}, flushed), text, text.length);
  assert.equal(index.checkpoints.length, 1);
});

test("every header field is skipped, in every member", () => {
  const text = sample("text", 60_000);
  const extra = sample("random", 65_535);
  for (const header of [
    { name: "layer.tar" },
    { comment: "a comment" },
    { extra: Buffer.alloc(0) },
    { extra, name: "layer.tar", comment: "a comment", headerChecksum: true },
  ]) {
    const member = gzipMember(text, {}, header);
    for (const chunkBytes of [7, 50_000]) {
      assertRestartable(
        Buffer.concat([member, member]),
        Buffer.concat([text, text]),
        50_000,
        chunkBytes,
      );
    }
  }
});

test("zeros may follow the last member", () => {
  const compressed = Buffer.concat([gzipSync(mixed), Buffer.alloc(100_000)]);
  assertRestartable(compressed, mixed, spanBytes);
  assertRestartable(compressed, mixed, spanBytes, 1_000);
});

test("the chunks of the input may have any size", () => {
  const bytes = sample("mixed", 60_000);
  const compressed = gzipSync(bytes, { memLevel: 2 });
  const whole = assertRestartable(compressed, bytes, 5_000, compressed.length);
  for (const chunkBytes of [1, 2, 3, 1021]) {
    assert.deepEqual(assertRestartable(compressed, bytes, 5_000, chunkBytes), whole);
  }
});

test("input without output in the middle is no obstacle", () => {
  const text = sample("text", 60_000);
  const half = deflateRawSync(text.subarray(0, 30_000), { finishFlush: Z_SYNC_FLUSH });
  const emptyStoredBlocks = Buffer.from("000000ffff".repeat(40_000), "hex");
  const deflated = Buffer.concat([half, emptyStoredBlocks, deflateRawSync(text.subarray(30_000))]);
  const index = assertRestartable(gzipMember(text, {}, {}, deflated), text, 30_000);
  assert.equal(index.checkpoints.length, 2);
});

test("a window holds nothing that its span does not refer to", () => {
  const compressed = gzipSync(mixed);
  const { checkpoints } = assertRestartable(compressed, mixed, spanBytes);
  let kept = 0;
  for (const { window, uncompressedOffset } of checkpoints) {
    const real = mixed.subarray(uncompressedOffset - window.length, uncompressedOffset);
    for (const [at, byte] of window.entries()) {
      if (byte === 0) continue;
      kept++;
      assert.equal(byte, real[at]);
    }
  }
  assert.ok(kept > 100 && kept < (checkpoints.length * windowBytesMax) / 2, `${kept} bytes`);
});

test("blocks that refer to nothing before them need no window", () => {
  const parts = Array.from({ length: 6 }, (_, seed) => sample("text", 30_000, seed));
  const deflated = Buffer.concat([
    ...parts.map((part) => deflateRawSync(part, { finishFlush: Z_FULL_FLUSH })),
    deflateRawSync(Buffer.alloc(0)),
  ]);
  const bytes = Buffer.concat(parts);
  const { checkpoints } = assertRestartable(gzipMember(bytes, {}, {}, deflated), bytes, 30_000);
  assert.equal(checkpoints.length, 6);
  for (const { window } of checkpoints) assert.equal(window.length, 0);
});

test("a failure of the consumer ends the pass", () => {
  const builder = new GzipIndexBuilder({
    spanBytes,
    onOutput: () => {
      throw new Error("full");
    },
  });
  assert.throws(() => builder.write(gzipSync(mixed)), /full/);
  assert.throws(
    () => builder.write(gzipSync(mixed)),
    (error) => isClipError(error, "CLOSED"),
  );
});

test("nothing can be written once it is closed, not even by the consumer", () => {
  const closed = new GzipIndexBuilder({ spanBytes, onOutput: () => {} });
  closed.close();
  closed.close();
  assert.throws(
    () => closed.write(gzipSync(mixed)),
    (error) => isClipError(error, "CLOSED"),
  );
  assert.throws(
    () => closed.end(),
    (error) => isClipError(error, "CLOSED"),
  );

  const closing = new GzipIndexBuilder({ spanBytes, onOutput: () => closing.close() });
  assert.throws(
    () => closing.write(gzipSync(mixed)),
    (error) => isClipError(error, "CLOSED"),
  );
});

test("any bytes, compressed in any way, in any chunks, restart at every checkpoint", () => {
  const member = fc.record({
    kind: fc.constantFrom(...sampleKinds),
    length: fc.integer({ min: 0, max: 120_000 }),
    seed: fc.nat(),
    level: fc.integer({ min: 0, max: 9 }),
    strategy: fc.integer({ min: 0, max: 4 }),
    memLevel: fc.integer({ min: 1, max: 9 }),
    windowBits: fc.integer({ min: 9, max: 15 }),
  });
  fc.assert(
    fc.property(
      fc.array(member, { minLength: 1, maxLength: 3 }),
      fc.integer({ min: 1_000, max: 100_000 }),
      fc.integer({ min: 100, max: 100_000 }),
      fc.constantFrom(0, 1, 1000),
      (members, spanBytes, chunkBytes, padding) => {
        const parts = members.map(({ kind, length, seed }) => sample(kind, length, seed));
        const gzips = members.map((options, number) => gzipSync(parts[number]!, options));
        const compressed = Buffer.concat([...gzips, Buffer.alloc(padding)]);
        const index = assertRestartable(compressed, Buffer.concat(parts), spanBytes, chunkBytes);
        assert.deepEqual(build(compressed, spanBytes, 7_919).index, index);
      },
    ),
    { numRuns: 60 },
  );
});
