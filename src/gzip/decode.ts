/** The bytes between two checkpoints, decoded with Node's own zlib. */
import { promisify } from "node:util";
import { constants, gunzip, gunzipSync, inflateRaw, inflateRawSync } from "node:zlib";
import type { ZlibOptions } from "node:zlib";
import { ClipError } from "../base/errors.ts";
import { alignToBlock } from "./bit-phase.ts";
import { windowBytesMax } from "./checkpoint.ts";
import type { Checkpoint } from "./checkpoint.ts";

/** What one span is decoded from. */
export interface SpanRequest {
  /** The compressed bytes from the checkpoint's compressed offset to the span's compressed end. */
  compressed: Buffer;
  checkpoint: Pick<Checkpoint, "bitOffset">;
  /** As the index has it; not changed. */
  window: Buffer;
  /** Uncompressed bytes of the span; as much memory is allocated. */
  length: number;
}

/**
 * Decodes a span on a thread of libuv's pool. A span may end one gzip member and begin others.
 * That these are the right bytes only the span's digest can tell.
 * @returns exactly `length` bytes
 * @throws ClipError CORRUPT_GZIP
 */
export async function decodeSpan(request: SpanRequest): Promise<Buffer> {
  const head = firstMember(request);
  const first = asInflated(await inflateRawAsync(head.compressed, head.options).catch(rethrow));
  const tail = furtherMembers(request, head, first);
  if (tail === undefined) return exactly(request, first.buffer);
  const further = await gunzipAsync(tail.compressed, tail.options).catch(rethrow);
  return exactly(request, first.buffer, further);
}

/** The same on the calling thread. */
export function decodeSpanSync(request: SpanRequest): Buffer {
  try {
    const head = firstMember(request);
    const first = asInflated(inflateRawSync(head.compressed, head.options));
    const tail = furtherMembers(request, head, first);
    if (tail === undefined) return exactly(request, first.buffer);
    return exactly(request, first.buffer, gunzipSync(tail.compressed, tail.options));
  } catch (error) {
    return rethrow(error);
  }
}

/** What zlib answers when it is asked for `info`. */
interface Inflated {
  buffer: Buffer;
  engine: { bytesWritten: number };
}

interface Part {
  compressed: Buffer;
  options: ZlibOptions;
}

// CRC-32 and length (RFC 1952, section 2.3.1).
const memberTrailerBytes = 8;

const inflateRawAsync = promisify<Buffer, ZlibOptions, unknown>(inflateRaw);
const gunzipAsync = promisify<Buffer, ZlibOptions, Buffer>(gunzip);

// With the option `info` zlib's answer is this, which its declared types leave out.
function asInflated(answer: unknown): Inflated {
  return answer as Inflated;
}

// Deflate data up to the end of the span or of the member.
function firstMember({ compressed, checkpoint, window, length }: SpanRequest): Part {
  const { bitOffset } = checkpoint;
  const plausible =
    Number.isInteger(bitOffset) &&
    bitOffset >= 0 &&
    bitOffset <= 7 &&
    Number.isSafeInteger(length) &&
    length > 0 &&
    compressed.length > 0 &&
    window.length <= windowBytesMax;
  if (!plausible) throw new ClipError("CORRUPT_GZIP", "no checkpoint looks like this");
  const options = { ...outputOf(length), info: true };
  return {
    compressed: alignToBlock(compressed, bitOffset),
    options: window.length === 0 ? options : { ...options, dictionary: window },
  };
}

// Whole members and the beginning of a last one, if the first one does not fill the span.
function furtherMembers({ length }: SpanRequest, head: Part, first: Inflated): Part | undefined {
  const missing = length - first.buffer.length;
  const compressed = head.compressed.subarray(first.engine.bytesWritten + memberTrailerBytes);
  if (missing === 0 || compressed.length === 0) return undefined;
  return { compressed, options: outputOf(missing) };
}

// One byte more than is allowed makes room for one chunk, and for seeing what is too much.
function outputOf(length: number): ZlibOptions {
  return {
    chunkSize: Math.max(length + 1, constants.Z_MIN_CHUNK),
    maxOutputLength: length,
    finishFlush: constants.Z_SYNC_FLUSH,
  };
}

function exactly({ length }: SpanRequest, ...parts: Buffer[]): Buffer {
  const bytes = parts.length === 1 ? parts[0]! : Buffer.concat(parts);
  if (bytes.length === length) return bytes;
  throw new ClipError("CORRUPT_GZIP", `a span of ${length} bytes ends after ${bytes.length}`);
}

function rethrow(error: unknown): never {
  if (error instanceof ClipError) throw error;
  throw new ClipError("CORRUPT_GZIP", "a span cannot be decoded", { cause: error });
}
