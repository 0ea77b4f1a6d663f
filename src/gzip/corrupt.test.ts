import assert from "node:assert/strict";
import { test } from "node:test";
import { crc32, deflateRawSync, gzipSync } from "node:zlib";
import fc from "fast-check";
import { isClipError } from "../base/errors.ts";
import { GzipIndexBuilder } from "./build.ts";
import { build, gzipMember, sample, spanRequests } from "./testing.ts";
import { decodeSpanSync } from "./decode.ts";

// RFC 1951: a copy of 258 bytes takes no less than two bits.
const expansionMax = 258 * 4;

/** The output that came before a failure, or all of it. */
function attempt(compressed: Buffer, spanBytes = 500): { output: Buffer; failed: boolean } {
  const chunks: Buffer[] = [];
  let produced = 0;
  const builder = new GzipIndexBuilder({
    spanBytes,
    onOutput: (chunk) => {
      produced += chunk.length;
      assert.ok(produced <= compressed.length * expansionMax, "the output is bounded");
      chunks.push(Buffer.from(chunk));
    },
  });
  try {
    builder.write(compressed);
    builder.end();
    return { output: Buffer.concat(chunks), failed: false };
  } catch (error) {
    assert.ok(isClipError(error, "CORRUPT_GZIP"), String(error));
    assert.equal(typeof error.context["compressedOffset"], "number");
    return { output: Buffer.concat(chunks), failed: true };
  }
}

function assertCorrupt(compressed: Buffer, message: RegExp): void {
  assert.throws(
    () => build(compressed, 500),
    (error) => isClipError(error, "CORRUPT_GZIP") && message.test(error.message),
  );
}

const text = sample("text", 3_000);
const first = gzipMember(text, { memLevel: 1 }, { name: "layer.tar", headerChecksum: true });
const second = gzipMember(sample("mixed", 700), { level: 0 }, { extra: Buffer.alloc(5) });
const two = Buffer.concat([first, second]);
const whole = Buffer.concat([text, sample("mixed", 700)]);

test("a stream that is cut short anywhere but after a member is an error", () => {
  for (let end = 0; end < two.length; end++) {
    const { output, failed } = attempt(two.subarray(0, end));
    assert.equal(failed, end !== first.length, `${end} of ${two.length} bytes`);
    assert.ok(whole.subarray(0, output.length).equals(output), "no wrong byte comes out");
  }
});

test("an empty file is not a gzip stream", () => {
  assertCorrupt(Buffer.alloc(0), /cut short/);
});

test("a flipped bit is an error, or changes nothing", () => {
  const places = [...two.keys()].filter((at) => at < 60 || at % 7 === 0 || at > two.length - 20);
  let harmless = 0;
  for (const at of places) {
    for (let bit = 0; bit < 8; bit++) {
      const flipped = Buffer.from(two);
      flipped[at]! ^= 1 << bit;
      const { output, failed } = attempt(flipped);
      assert.ok(failed || output.equals(whole), `byte ${at}, bit ${bit}`);
      if (!failed) harmless++;
    }
  }
  // Times and names of the second header, which has no checksum.
  assert.ok(harmless > 8 && harmless < 120, `${harmless}`);
});

test("what cannot be true is said", () => {
  const deflated = deflateRawSync(text);
  const member = gzipMember(text);
  const change = (offset: number, value: number): Buffer => {
    const changed = Buffer.from(member);
    changed[offset < 0 ? changed.length + offset : offset] = value;
    return changed;
  };
  assertCorrupt(change(1, 0x8c), /incorrect header check/);
  assertCorrupt(change(2, 7), /unknown compression method/);
  assertCorrupt(change(3, 0x20), /unknown header flags/);
  assertCorrupt(change(-1, 1), /incorrect length check/);
  assertCorrupt(change(-5, member.at(-5)! ^ 1), /incorrect data check/);
  assertCorrupt(
    gzipMember(text, {}, {}, Buffer.concat([Buffer.from([7]), deflated])),
    /block type/,
  );
  const wrongHeaderChecksum = Buffer.from(first);
  wrongHeaderChecksum[10]! ^= 1;
  assertCorrupt(wrongHeaderChecksum, /header crc mismatch/);
});

test("a reference to what was before the member is an error", () => {
  const dictionary = sample("text", 5_000, 3);
  const bytes = Buffer.from(dictionary.subarray(100, 4_000));
  const referring = gzipMember(bytes, {}, {}, deflateRawSync(bytes, { dictionary }));
  assertCorrupt(referring, /distance too far back/);
  assertCorrupt(Buffer.concat([gzipSync(dictionary), referring]), /distance too far back/);
});

test("a length or checksum is told from that of other members", () => {
  const swapped = Buffer.concat([first.subarray(0, -8), second.subarray(-8), second]);
  assertCorrupt(swapped, /incorrect data check/);
  assert.notEqual(crc32(text), crc32(whole));
});

test("what follows the last member is an error if it is neither a member nor zeros", () => {
  assertCorrupt(Buffer.concat([two, Buffer.from("garbage")]), /incorrect header check/);
  assertCorrupt(Buffer.concat([two, Buffer.alloc(9), Buffer.from([1])]), /something follows/);
  assertCorrupt(Buffer.concat([two, Buffer.alloc(9), first]), /something follows/);
  assertCorrupt(Buffer.concat([Buffer.alloc(9), two]), /incorrect header check/);
});

test("other formats are errors", () => {
  for (const magic of ["28b52ffd", "425a6839", "fd377a58", "504b0304", "789c", "7573746172"]) {
    const compressed = Buffer.concat([Buffer.from(magic, "hex"), sample("random", 5_000)]);
    assertCorrupt(compressed, /incorrect header check/);
  }
});

test("garbage ends with an error, and output in proportion to the input", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 4000 }), fc.boolean(), (garbage, stored) => {
      const header = first.subarray(0, 22);
      const block = Buffer.from(stored ? [1, garbage.length & 255, garbage.length >> 8] : []);
      const { failed } = attempt(Buffer.concat([header, block, garbage]));
      assert.ok(failed);
    }),
    { numRuns: 300 },
  );
});

test("bytes that are changed, removed or repeated are an error, or the spans say the same", () => {
  const bytes = sample("mixed", 40_000);
  const compressed = gzipSync(bytes, { memLevel: 2 });
  fc.assert(
    fc.property(
      fc.nat(compressed.length),
      fc.nat(40),
      fc.uint8Array({ maxLength: 40 }),
      (at, removed, inserted) => {
        const changed = Buffer.concat([
          compressed.subarray(0, at),
          inserted,
          compressed.subarray(at + removed),
        ]);
        const { output, failed } = attempt(changed);
        if (failed) return;
        assert.ok(output.equals(bytes));
        const { index } = build(changed, 5_000);
        const spans = spanRequests(changed, index).map((request) => decodeSpanSync(request));
        assert.ok(Buffer.concat(spans).equals(bytes));
      },
    ),
    { numRuns: 200 },
  );
});
