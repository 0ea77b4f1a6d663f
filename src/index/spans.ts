/** The spans of a layer index and the windows of their checkpoints. */
import { crc32 } from "node:zlib";
import { digestBytes, digestFromBytes } from "../base/digest.ts";
import { windowBytesMax } from "../gzip/checkpoint.ts";
import { check, checkLimit } from "./failure.ts";
import { decompress, type PackedWindow } from "./compression.ts";
import { narrow, spansCodec, type SpansMessage } from "./messages.ts";
import type { LayerHead, Span } from "./model.ts";

/** Compressed bytes of a span beyond twice its length: deflate needs few, readers hold all. */
const compressedSlackBytes = 4 * 1024 * 1024;

/** Where a window stands in the section of the windows, and how. */
export interface StoredWindow {
  offset: number;
  length: number;
  encoding: number;
  checksum: number;
}

/** The encoded spans, and the section with their windows. */
export function encodeSpans(
  spans: readonly Span[],
  windows: readonly PackedWindow[],
): { spans: Buffer; windows: Buffer } {
  let before = 0;
  const compressedSteps = spans.map(({ checkpoint: { compressedOffset } }) => {
    const step = compressedOffset - before;
    before = compressedOffset;
    return step;
  });
  const message: SpansMessage = {
    compressedSteps,
    bitOffsets: Buffer.from(spans.map(({ checkpoint }) => checkpoint.bitOffset)),
    lengths: spans.map(({ length }) => length),
    compressedLengths: spans.map(
      ({ compressedEnd, checkpoint }) => compressedEnd - checkpoint.compressedOffset,
    ),
    digests: Buffer.concat(spans.map(({ digest }) => digestBytes(digest))),
    windowStoredLengths: windows.map(({ bytes }) => bytes.length),
    windowEncodings: Buffer.from(windows.map(({ encoding }) => encoding)),
    windowChecksums: windows.map(({ checksum }) => checksum),
  };
  return {
    spans: spansCodec.encode(message),
    windows: Buffer.concat(windows.map(({ bytes }) => bytes)),
  };
}

/**
 * The spans of a layer of these sizes, which they cover without gaps, and where their windows are
 * in a section of `windowBytes`.
 * @throws ClipError CORRUPT_INDEX, LIMIT_EXCEEDED
 */
export function decodeSpans(
  bytes: Buffer,
  sizes: Pick<LayerHead, "compressedSize" | "uncompressedSize">,
  windowBytes: number,
): { spans: Span[]; windows: StoredWindow[] } {
  const message = spansCodec.decode(bytes);
  const count = message.lengths.length;
  for (const column of [
    message.compressedSteps,
    message.bitOffsets,
    message.compressedLengths,
    message.windowStoredLengths,
    message.windowEncodings,
    message.windowChecksums,
  ]) {
    check(column.length === count, "the columns of the spans differ in length");
  }
  check(message.digests.length === count * 32, "there is not one digest for each span");
  const spans: Span[] = [];
  const windows: StoredWindow[] = [];
  let compressedOffset = 0;
  let uncompressedOffset = 0;
  let windowOffset = 0;
  for (let index = 0; index < count; index++) {
    const length = narrow(message.lengths[index]);
    const bitOffset = message.bitOffsets[index] ?? 8;
    compressedOffset += narrow(message.compressedSteps[index]);
    const compressedLength = narrow(message.compressedLengths[index]);
    const compressedLengthMax = 2 * length + compressedSlackBytes;
    checkLimit(compressedLength, compressedLengthMax, "the compressed length of a span");
    check(length > 0 && compressedLength > 0, "a span is empty");
    const compressedEnd = compressedOffset + compressedLength;
    check(compressedEnd <= sizes.compressedSize, "a span ends beyond the compressed layer");
    check(bitOffset < 8, "a bit offset is larger than 7");
    spans.push({
      checkpoint: { compressedOffset, bitOffset, uncompressedOffset },
      length,
      compressedEnd,
      digest: digestFromBytes(message.digests.subarray(index * 32, (index + 1) * 32)),
    });
    uncompressedOffset += length;
    check(uncompressedOffset <= sizes.uncompressedSize, "a span ends beyond the layer");
    const stored = message.windowStoredLengths[index] ?? 0;
    checkLimit(stored, windowBytesMax, "the length of a window");
    windows.push({
      offset: windowOffset,
      length: stored,
      encoding: message.windowEncodings[index] ?? 0,
      checksum: message.windowChecksums[index] ?? 0,
    });
    windowOffset += stored;
  }
  check(uncompressedOffset === sizes.uncompressedSize, "the spans do not cover the layer");
  check(windowOffset === windowBytes, "the windows do not fill their section");
  return { spans, windows };
}

/**
 * The window that stands in the index as `bytes`.
 * @throws ClipError CORRUPT_INDEX
 */
export function decodeWindow(bytes: Buffer, { encoding, checksum }: StoredWindow): Buffer {
  const window = decompress(bytes, encoding, windowBytesMax);
  check(crc32(window) === checksum, "a window does not match its checksum");
  return window;
}
