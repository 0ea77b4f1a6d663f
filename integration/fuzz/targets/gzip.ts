/** gzip streams: the pass that builds an index, and spans that are decoded by an index that lies. */
import assert from "node:assert/strict";
import { isDeepStrictEqual } from "node:util";
import { crc32, gunzipSync, gzipSync, inflateRawSync } from "node:zlib";
import { decodeSpan, decodeSpanSync, type SpanRequest } from "../../../src/gzip/decode.ts";
import {
  build,
  gzipMember,
  sample,
  sampleKinds,
  spanRequests,
  type Built,
  type MemberHeader,
} from "../../../src/gzip/testing.ts";
import type { Random } from "../engine/random.ts";
import { attempt, attemptAsync, magnitude, type FuzzTarget } from "../engine/target.ts";

/** Any bytes as a gzip stream. What comes out is what zlib says, and every span decodes alone. */
export const gzipIndex: FuzzTarget = {
  bytesMax: 3000,
  dictionary: [
    Buffer.from("1f8b0800000000000003", "hex"),
    Buffer.from("000000ffff", "hex"),
    Buffer.from("0300", "hex"),
    Buffer.from("1f8b", "hex"),
  ],
  seeds: () => [gzipSync(Buffer.alloc(0)), gzipSync(sample("mixed", 3000), { level: 1 })],
  generate: (random) => {
    const parts = Array.from({ length: 1 + random.small(3) }, () => someMember(random));
    return Buffer.concat([...parts, Buffer.alloc(random.oneIn(4) ? random.below(600) : 0)]);
  },
  mend: mendTrailer,
  run(input) {
    const spanBytes = [1, 700, 20_000][input.length % 3] ?? 1;
    const chunkBytes = 1 + (crc32(input) % 97);
    const whole = attempt(["CORRUPT_GZIP"], () => build(input, spanBytes));
    const pieces = attempt(["CORRUPT_GZIP"], () => build(input, spanBytes, chunkBytes));
    const expected = gunzip(input);
    if ("failure" in whole) {
      assert.ok("failure" in pieces, "a stream fails in one piece but not in several");
      assert.ok(
        expected === undefined || whole.failure.includes("follows"),
        `zlib takes what is refused: ${whole.failure}`,
      );
      return whole.failure;
    }
    assert.ok("value" in pieces, "a stream fails in several pieces but not in one");
    assert.ok(isDeepStrictEqual(pieces.value, whole.value), "the pieces of a stream matter");
    assert.ok(expected?.equals(whole.value.output), "zlib says otherwise");
    return describeSpans(input, whole.value);
  },
};

/**
 * Parts of a stream, decoded as an index says that does not fit: 1 byte bit offset, 3 bytes length,
 * 2 bytes length of the window, the window, the compressed bytes.
 */
export const gzipSpan: FuzzTarget = {
  bytesMax: 4000,
  seeds: () =>
    [gzipSync(sample("mixed", 9000), { level: 3 }), someMembers()].flatMap((compressed) =>
      spanRequests(compressed, build(compressed, 500).index).map(encodeSpanRequest),
    ),
  run(input) {
    const request = decodeSpanRequest(input);
    const outcome = attempt(["CORRUPT_GZIP"], () => decodeSpanSync(request));
    if (crc32(input) % 16 === 0) return compareWithThreads(request, outcome);
    if ("failure" in outcome) return outcome.failure;
    assert.equal(outcome.value.length, request.length);
    return `${request.checkpoint.bitOffset} ${magnitude(request.length)} ${magnitude(request.window.length)}`;
  },
};

async function compareWithThreads(
  request: SpanRequest,
  outcome: ReturnType<typeof attempt<Buffer>>,
): Promise<string> {
  const inThread = await attemptAsync(["CORRUPT_GZIP"], () => decodeSpan(request));
  assert.ok(isDeepStrictEqual(inThread, outcome), "another thread decodes otherwise");
  return "compared";
}

function describeSpans(input: Buffer, { index, output }: Built): string {
  const bits = new Set(index.checkpoints.map(({ bitOffset }) => bitOffset));
  for (const [number, request] of spanRequests(input, index).entries()) {
    const start = index.checkpoints[number]?.uncompressedOffset ?? 0;
    const wanted = output.subarray(start, start + request.length);
    assert.ok(decodeSpanSync(request).equals(wanted), `span ${number} is another one`);
  }
  return `${magnitude(index.checkpoints.length)} spans, ${magnitude(output.length)}, ${bits.size}`;
}

/** What zlib makes of it; nothing when it refuses. */
function gunzip(input: Buffer): Buffer | undefined {
  try {
    return gunzipSync(input);
  } catch {
    return undefined;
  }
}

function someMember(random: Random): Buffer {
  // Now and then more than the memory that output goes through.
  const isLarge = random.oneIn(30);
  const kind = isLarge ? "zeros" : random.pick(sampleKinds);
  const bytes = sample(kind, isLarge ? 700_000 : random.small(8000), random.word());
  const options = {
    level: random.below(10),
    strategy: random.below(5),
    memLevel: 1 + random.below(9),
    windowBits: 9 + random.below(7),
  };
  const header: MemberHeader = { headerChecksum: random.oneIn(3) };
  if (random.oneIn(3)) header.name = "layer.tar";
  if (random.oneIn(3)) header.comment = "x".repeat(random.below(100));
  if (random.oneIn(3)) header.extra = random.bytes(random.below(100));
  return gzipMember(bytes, options, header);
}

function someMembers(): Buffer {
  const parts = Array.from({ length: 5 }, (_, seed) => sample("text", 400, seed));
  return Buffer.concat(parts.map((part) => gzipSync(part)));
}

/** Puts the right checksum and length behind the first member's deflate data. */
function mendTrailer(input: Buffer): Buffer {
  const start = headerEnd(input);
  try {
    const answer: unknown = inflateRawSync(input.subarray(start), { info: true });
    const { buffer, engine } = answer as { buffer: Buffer; engine: { bytesWritten: number } };
    const end = start + engine.bytesWritten;
    const trailer = Buffer.alloc(8);
    trailer.writeUInt32LE(crc32(buffer), 0);
    trailer.writeUInt32LE(buffer.length % 2 ** 32, 4);
    return Buffer.concat([input.subarray(0, end), trailer, input.subarray(end + 8)]);
  } catch {
    return input;
  }
}

/** RFC 1952, section 2.3. */
function headerEnd(input: Buffer): number {
  const flags = input[3] ?? 0;
  let at = 10;
  if ((flags & 4) !== 0) at += 2 + (input[at] ?? 0) + (input[at + 1] ?? 0) * 256;
  for (const flag of [8, 16]) {
    if ((flags & flag) !== 0) at = input.indexOf(0, at) + 1;
  }
  return (flags & 2) !== 0 ? at + 2 : at;
}

function encodeSpanRequest({ checkpoint, length, window, compressed }: SpanRequest): Buffer {
  const head = Buffer.alloc(6);
  head[0] = checkpoint.bitOffset;
  head.writeUIntLE(length, 1, 3);
  // Only the end of a large window fits into an input.
  const kept = window.subarray(Math.max(0, window.length - 1000));
  head.writeUInt16LE(kept.length, 4);
  return Buffer.concat([head, kept, compressed]);
}

function decodeSpanRequest(input: Buffer): SpanRequest {
  const head = Buffer.concat([input.subarray(0, 6)], 6);
  const windowEnd = 6 + head.readUInt16LE(4);
  return {
    checkpoint: { bitOffset: head[0] ?? 0 },
    length: head.readUIntLE(1, 3),
    window: input.subarray(6, windowEnd),
    compressed: input.subarray(windowEnd),
  };
}
