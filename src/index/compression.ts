/** Compression of the parts of a layer index. */
import {
  constants,
  crc32,
  deflateRawSync,
  inflateRawSync,
  zstdCompressSync,
  zstdDecompressSync,
} from "node:zlib";
import { corruptIndex } from "./failure.ts";

/** How bytes stand in the index; the numbers are those of the schema. */
export const encodings = { stored: 0, deflate: 1, zstd: 2 } as const;

/** Bytes as they stand in the index. */
export interface Packed {
  bytes: Buffer;
  encoding: number;
}

const zstdLevel = 9;

/** A section: compressed where that makes it smaller. */
export function packSection(bytes: Buffer): Packed {
  const params = { [constants.ZSTD_c_compressionLevel]: zstdLevel };
  return smaller(bytes, { bytes: zstdCompressSync(bytes, { params }), encoding: encodings.zstd });
}

/** A window as it stands in the index. */
export interface PackedWindow extends Packed {
  /** CRC-32 of the window. */
  checksum: number;
}

/** A window: too short for anything but deflate to pay. */
export function packWindow(window: Buffer): PackedWindow {
  const deflated = deflateRawSync(window, { level: 6 });
  const packed = smaller(window, { bytes: deflated, encoding: encodings.deflate });
  // A copy: zlib's answer keeps a much larger buffer in memory.
  return { ...packed, bytes: Buffer.from(packed.bytes), checksum: crc32(window) };
}

/**
 * What was packed: exactly `length` bytes.
 * @throws ClipError CORRUPT_INDEX
 */
export function unpack({ bytes, encoding }: Packed, length: number): Buffer {
  const unpacked = decompress(bytes, encoding, length);
  if (unpacked.length !== length) throw corruptIndex("a part has another length than stated");
  return unpacked;
}

/**
 * What was packed: at most `lengthMax` bytes.
 * @throws ClipError CORRUPT_INDEX
 */
export function decompress(bytes: Buffer, encoding: number, lengthMax: number): Buffer {
  // zlib wants room for one byte at least.
  const limit = { maxOutputLength: Math.max(lengthMax, 1) };
  try {
    switch (encoding) {
      case encodings.stored:
        return bytes;
      case encodings.deflate:
        return inflateRawSync(bytes, limit);
      case encodings.zstd:
        return zstdDecompressSync(bytes, limit);
      default:
        throw corruptIndex(`unknown encoding ${encoding}`);
    }
  } catch (error) {
    throw corruptIndex("a part cannot be decompressed", error);
  }
}

function smaller(plain: Buffer, packed: Packed): Packed {
  return packed.bytes.length < plain.length ? packed : { bytes: plain, encoding: encodings.stored };
}
