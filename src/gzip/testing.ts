/** What the tests of this folder share: input of every kind, and the check that all of it decodes. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { crc32, deflateRawSync } from "node:zlib";
import type { ZlibOptions } from "node:zlib";
import type { TestContext } from "node:test";
import { GzipIndexBuilder } from "./build.ts";
import { windowBytesMax } from "./checkpoint.ts";
import type { GzipIndex, IndexedCheckpoint } from "./checkpoint.ts";
import { decodeSpanSync } from "./decode.ts";
import type { SpanRequest } from "./decode.ts";

export type SampleKind = "text" | "random" | "zeros" | "mixed";
export const sampleKinds: SampleKind[] = ["text", "random", "zeros", "mixed"];

/** The same bytes for the same arguments. */
export function sample(kind: SampleKind, length: number, seed = 1): Buffer {
  const bytes = Buffer.alloc(length);
  const random = randomNumbers(seed);
  if (kind === "zeros") return bytes;
  const words = Array.from({ length: 400 }, () =>
    Buffer.from(Array.from({ length: 2 + (random() % 9) }, () => 97 + (random() % 26))),
  );
  for (let at = 0; at < length;) {
    const choice = kind === "mixed" ? random() % 40 : kind === "text" ? 0 : 39;
    if (choice < 38) {
      const word = words[(random() % 20) * (random() % 20)]!;
      at += word.copy(bytes, at) + 1;
    } else if (choice === 38) {
      at += random() % 5000;
    } else {
      const end = Math.min(length, at + 1 + (random() % 3000));
      while (at < end) bytes[at++] = random();
    }
  }
  return bytes;
}

/** Pseudo-random integers from 0 to 2^24 - 1. */
function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state >>> 8;
  };
}

/** Optional fields of a gzip header (RFC 1952, section 2.3). */
export interface MemberHeader {
  extra?: Buffer;
  name?: string;
  comment?: string;
  headerChecksum?: boolean;
}

/** One gzip member around `deflated`, or around `bytes` deflated as the options say. */
export function gzipMember(
  bytes: Buffer,
  options: ZlibOptions = {},
  header: MemberHeader = {},
  deflated: Buffer = deflateRawSync(bytes, options),
): Buffer {
  const { extra, name, comment, headerChecksum = false } = header;
  const flags =
    (headerChecksum ? 2 : 0) +
    (extra === undefined ? 0 : 4) +
    (name === undefined ? 0 : 8) +
    (comment === undefined ? 0 : 16);
  const parts: Buffer[] = [Buffer.from([0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 255])];
  if (extra !== undefined) parts.push(Buffer.from([extra.length & 255, extra.length >> 8]), extra);
  if (name !== undefined) parts.push(Buffer.from(`${name}\0`, "latin1"));
  if (comment !== undefined) parts.push(Buffer.from(`${comment}\0`, "latin1"));
  if (headerChecksum) {
    const checksum = crc32(Buffer.concat(parts)) & 0xffff;
    parts.push(Buffer.from([checksum & 255, checksum >> 8]));
  }
  const trailer = Buffer.alloc(8);
  trailer.writeUInt32LE(crc32(bytes), 0);
  trailer.writeUInt32LE(bytes.length, 4);
  return Buffer.concat([...parts, deflated, trailer]);
}

export interface Built {
  index: GzipIndex;
  output: Buffer;
}

/**
 * The index and the output of a gzip stream that is written in chunks of `chunkBytes`.
 * Fails if chunks and spans are not reported in order.
 */
export function build(compressed: Buffer, spanBytes: number, chunkBytes = 100_000): Built {
  const output: Buffer[] = [];
  const spans: IndexedCheckpoint[] = [];
  let position = 0;
  const builder = new GzipIndexBuilder({
    spanBytes,
    onOutput: (chunk) => {
      output.push(Buffer.from(chunk));
      position += chunk.length;
    },
    onSpan: (span) => {
      spans.push(span);
      assert.equal(span.uncompressedOffset + span.length, position, "all output of the span came");
    },
  });
  try {
    for (let at = 0; at < compressed.length; at += chunkBytes) {
      builder.write(Buffer.from(compressed.subarray(at, at + chunkBytes)));
    }
    const index = { ...builder.end(), checkpoints: spans };
    return { index, output: Buffer.concat(output) };
  } finally {
    builder.close();
  }
}

/** The pieces of `compressed` that decode to the spans of its index. */
export function spanRequests(compressed: Buffer, index: GzipIndex): SpanRequest[] {
  return index.checkpoints.map((checkpoint) => ({
    compressed: compressed.subarray(checkpoint.compressedOffset, checkpoint.compressedEnd),
    checkpoint,
    window: checkpoint.window,
    length: checkpoint.length,
  }));
}

/** Builds the index of `compressed` and decodes every span; all of it must be `expected`. */
export function assertRestartable(
  compressed: Buffer,
  expected: Buffer,
  spanBytes: number,
  chunkBytes?: number,
): GzipIndex {
  const { index, output } = build(compressed, spanBytes, chunkBytes);
  assert.ok(output.equals(expected), "the output is right");
  assert.equal(index.uncompressedSize, expected.length);
  assert.equal(index.compressedSize, compressed.length);
  let position = 0;
  for (const [number, request] of spanRequests(compressed, index).entries()) {
    const { uncompressedOffset, length, bitOffset, window } = index.checkpoints[number]!;
    assert.equal(uncompressedOffset, position);
    assert.ok(bitOffset >= 0 && bitOffset <= 7 && window.length <= windowBytesMax);
    const last = number === index.checkpoints.length - 1;
    assert.ok(last ? length > 0 : length >= spanBytes, `span ${number} has ${length} bytes`);
    position += length;
    const decoded = decodeSpanSync(request);
    assert.ok(decoded.equals(expected.subarray(uncompressedOffset, position)), `span ${number}`);
  }
  assert.equal(position, expected.length);
  return index;
}

/**
 * What a command-line tool makes of `input`, or undefined (and the test is marked as skipped)
 * where it is not installed. In CI it has to be.
 */
export function runTool(
  context: TestContext,
  command: string,
  options: string[],
  input: Buffer,
): Buffer | undefined {
  const result = spawnSync(command, options, { input, maxBuffer: 1 << 26, timeout: 60_000 });
  const missing = result.error !== undefined && "code" in result.error;
  if (missing && process.env["CI"] === undefined) {
    context.skip(`${command} is not installed`);
    return undefined;
  }
  assert.equal(result.error, undefined);
  assert.equal(result.status, 0, `${command} ${options.join(" ")}: ${String(result.stderr)}`);
  return result.stdout;
}
