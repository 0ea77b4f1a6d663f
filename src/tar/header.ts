/**
 * One 512-byte header block of a tar archive: POSIX ustar (IEEE Std 1003.1, "pax"), GNU tar's own
 * format, star's, and that of Version 7 Unix.
 */
import { corrupt, exceeded } from "./failure.ts";

/** Bytes of a block: headers are one, data is padded to a multiple. */
export const blockBytes = 512;

/** What a header block says; names are views of the block. */
export interface TarHeader {
  /** With the prefix, where the format has one. */
  name: Buffer;
  linkName: Buffer;
  /** The byte that tells the kind of entry. */
  typeFlag: number;
  mode: number;
  uid: number;
  gid: number;
  /** Bytes of data that follow in the archive. */
  size: number;
  /** Whole seconds since 1970. */
  mtime: number;
}

/** Device numbers of a header block, meaningful only for devices. */
export interface DeviceNumbers {
  major: number;
  minor: number;
}

/** Whether the block is all zeros, as the two that end an archive are. */
export function isZeroBlock(block: Buffer): boolean {
  return block.equals(zeroBlock);
}

/**
 * Reads a header block.
 * @throws ClipError CORRUPT_TAR when the checksum or a number is wrong.
 */
export function parseHeader(block: Buffer): TarHeader {
  verifyChecksum(block);
  return {
    name: fullName(block),
    linkName: block[157] === 0 ? noBytes : field(block, 157, 100),
    typeFlag: block[156] ?? 0,
    mode: parseNumber(block, 100, 8, "mode"),
    uid: parseNumber(block, 108, 8, "user id"),
    gid: parseNumber(block, 116, 8, "group id"),
    size: parseNumber(block, 124, 12, "size"),
    mtime: parseNumber(block, 136, 12, "modification time"),
  };
}

/**
 * The device numbers of a header block.
 * @throws ClipError CORRUPT_TAR when they are not numbers.
 */
export function parseDeviceNumbers(block: Buffer): DeviceNumbers {
  return {
    major: parseNumber(block, 329, 8, "device number"),
    minor: parseNumber(block, 337, 8, "device number"),
  };
}

/**
 * A number in a header: octal digits between spaces and NULs, or, with the first bit set, a
 * big-endian two's complement number (GNU and star).
 * @throws ClipError CORRUPT_TAR for other bytes, LIMIT_EXCEEDED beyond ±2^53.
 */
export function parseNumber(block: Buffer, offset: number, length: number, what: string): number {
  const end = offset + length;
  return ((block[offset] ?? 0) & 0x80) === 0
    ? parseOctal(block, offset, end, what)
    : parseBinary(block, offset, end, what);
}

const zeroBlock = Buffer.alloc(blockBytes);
const noBytes = Buffer.alloc(0);
const magic = Buffer.from("ustar");
const space = 0x20;

function verifyChecksum(block: Buffer): void {
  let unsigned = 8 * space;
  let high = 0;
  for (let at = 0; at < blockBytes; at++) {
    if (at === 148) at += 8;
    const byte = block[at] ?? 0;
    unsigned += byte;
    high += byte >> 7;
  }
  const stated = parseNumber(block, 148, 8, "checksum");
  // Some old tars summed signed bytes.
  if (stated !== unsigned && stated !== unsigned - 256 * high) {
    throw corrupt("the checksum of a tar header is wrong");
  }
}

function fullName(block: Buffer): Buffer {
  const name = field(block, 0, 100);
  const prefix = prefixOf(block);
  return prefix.length === 0 ? name : Buffer.concat([prefix, Buffer.from("/"), name]);
}

function prefixOf(block: Buffer): Buffer {
  if (block.compare(magic, 0, magic.length, 257, 262) !== 0) return noBytes;
  // The magic is followed by a NUL in POSIX archives and by a space in GNU's.
  if (block[262] === space) return gnuPrefix(block);
  if (block[345] === 0) return noBytes;
  const isStar = block.toString("latin1", 508, 512) === "tar\0";
  return field(block, 345, isStar ? 131 : 155);
}

// GNU headers have times in place of the prefix. But the tar writer of Go before 1.8 put a prefix
// into headers that it marked as GNU, and images of that time still exist.
function gnuPrefix(block: Buffer): Buffer {
  if (block[345] === 0 && block[357] === 0) return noBytes;
  try {
    if (block[345] !== 0) parseNumber(block, 345, 12, "access time");
    if (block[357] !== 0) parseNumber(block, 357, 12, "change time");
    return noBytes;
  } catch {
    const prefix = field(block, 345, 155);
    return prefix.every((byte) => byte < 0x80) ? prefix : noBytes;
  }
}

function field(block: Buffer, offset: number, length: number): Buffer {
  const nul = block.indexOf(0, offset);
  const end = nul === -1 || nul > offset + length ? offset + length : nul;
  return block.subarray(offset, end);
}

function parseOctal(block: Buffer, offset: number, end: number, what: string): number {
  let at = offset;
  let last = end;
  while (at < last && isPadding(block[at])) at++;
  while (at < last && isPadding(block[last - 1])) last--;
  let value = 0;
  for (; at < last; at++) {
    const byte = block[at] ?? 0;
    // What follows a NUL is no part of the number.
    if (byte === 0) break;
    if (byte < 0x30 || byte > 0x37) throw corrupt(`the ${what} in a tar header is not a number`);
    value = value * 8 + (byte - 0x30);
  }
  return value;
}

function isPadding(byte: number | undefined): boolean {
  return byte === space || byte === 0;
}

function parseBinary(block: Buffer, offset: number, end: number, what: string): number {
  const negative = ((block[offset] ?? 0) & 0x40) !== 0;
  const invert = negative ? 0xff : 0;
  let value = ((block[offset] ?? 0) ^ invert) & 0x7f;
  for (let at = offset + 1; at < end; at++) {
    value = value * 256 + ((block[at] ?? 0) ^ invert);
    if (value > Number.MAX_SAFE_INTEGER) throw exceeded(`the ${what}`, value, 2 ** 53);
  }
  return negative ? -1 - value : value;
}
