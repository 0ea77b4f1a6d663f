/**
 * The durable span map of a layer: which spans its cache file holds.
 *
 * On disk: 64 bytes of header (magic, version, span count, layer size, sha256 of the span table,
 * state), then one byte a span, 1 where the span is there. Single bytes, so that a write torn by a
 * crash still leaves a subset of true claims.
 */
import { digestBytes, digestFromBytes, type Digest } from "../base/digest.ts";

/** Where the spans of a layer begin, and what tells this division from any other. */
export interface SpanTable {
  /** Uncompressed offset of each span, then the size of the layer; over shared memory. */
  starts: Float64Array;
  /** sha256 over the offsets and digests of all spans: a map of another table is worthless. */
  digest: Digest;
}

/** Index of the span that holds the byte at `offset`; the last one for what lies behind. */
export function spanAt(starts: Float64Array, offset: number): number {
  let low = 0;
  let high = starts.length - 2;
  while (low < high) {
    const middle = (low + high + 1) >>> 1;
    if ((starts[middle] ?? 0) <= offset) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** What a span map says apart from the spans. */
export interface SpanMapHeader {
  spanCount: number;
  /** Bytes of the uncompressed layer. */
  size: number;
  tableDigest: Digest;
  /** Every span is there and the whole file has matched its diffID. */
  complete: boolean;
}

/** Bytes before the first span's byte. */
export const spanMapHeaderBytes = 64;
/** Where in the header the state stands, so that it can be changed alone. */
export const spanMapStateOffset = 56;

const magic = Buffer.from("clipspan", "latin1");
const version = 1;
const stateComplete = 1;

/** Encodes the header of a span map. */
export function encodeSpanMapHeader(header: SpanMapHeader): Buffer {
  const bytes = Buffer.alloc(spanMapHeaderBytes);
  magic.copy(bytes, 0);
  bytes.writeUInt32LE(version, 8);
  bytes.writeUInt32LE(header.spanCount, 12);
  bytes.writeBigUInt64LE(BigInt(header.size), 16);
  digestBytes(header.tableDigest).copy(bytes, 24);
  bytes[spanMapStateOffset] = header.complete ? stateComplete : 0;
  return bytes;
}

/** Decodes a whole span map; undefined when it is none, of another version, or of a wrong length. */
export function decodeSpanMap(
  bytes: Buffer,
): { header: SpanMapHeader; present: Uint8Array } | undefined {
  if (bytes.length < spanMapHeaderBytes) return undefined;
  if (!bytes.subarray(0, 8).equals(magic) || bytes.readUInt32LE(8) !== version) return undefined;
  const spanCount = bytes.readUInt32LE(12);
  const size = Number(bytes.readBigUInt64LE(16));
  if (bytes.length !== spanMapHeaderBytes + spanCount || !Number.isSafeInteger(size)) {
    return undefined;
  }
  const header = {
    spanCount,
    size,
    tableDigest: digestFromBytes(bytes.subarray(24, 56)),
    complete: bytes[spanMapStateOffset] === stateComplete,
  };
  return { header, present: bytes.subarray(spanMapHeaderBytes) };
}
