/**
 * A layer index as the content cache holds it: a header that says how long the index is and carries
 * a MAC of it, the index, and zeros up to a length that every such object has at least, so that its
 * beginning can be read without knowing its size.
 */
import { createHmac, timingSafeEqual } from "node:crypto";
import { digestBytes, type Digest } from "../../base/digest.ts";
import { ClipError } from "../../base/errors.ts";
import { sharedIndexBytesMax } from "../../base/limits.ts";

/** Bytes that every object has. Whoever reads as many gets small indexes in one request. */
export const sealedBytesMin = 64 * 1024;

const magic = Buffer.from("clipseal");
const version = 1;
/** magic, version (u32), length of the index (u64), MAC (32 bytes; zeros: none). */
const macOffset = 20;
const macBytes = 32;
const headerBytes = macOffset + macBytes;

/** What the header says. */
export interface Seal {
  /** Where the index ends in the object; it begins at {@link indexOffset}. */
  end: number;
  mac: Buffer;
}

/** Where the index begins in the object. */
export const indexOffset = headerBytes;

/** Puts an encoded index into the form in which it is shared; signed if there is a key. */
export function sealIndex(layerDigest: Digest, encoded: Buffer, key: Buffer | undefined): Buffer {
  const bytes = Buffer.alloc(Math.max(sealedBytesMin, headerBytes + encoded.length));
  magic.copy(bytes);
  bytes.writeUInt32LE(version, 8);
  bytes.writeBigUInt64LE(BigInt(encoded.length), 12);
  if (key !== undefined) macOf(layerDigest, encoded, key).copy(bytes, macOffset);
  encoded.copy(bytes, headerBytes);
  return bytes;
}

/**
 * Reads the header at the beginning of `bytes`.
 * @throws ClipError CORRUPT_INDEX, LIMIT_EXCEEDED
 */
export function readSeal(bytes: Buffer): Seal {
  const known =
    bytes.length >= headerBytes &&
    bytes.subarray(0, magic.length).equals(magic) &&
    bytes.readUInt32LE(8) === version;
  if (!known) throw new ClipError("CORRUPT_INDEX", "what the content cache has is no layer index");
  const length = bytes.readBigUInt64LE(12);
  if (length > BigInt(sharedIndexBytesMax)) {
    throw new ClipError("LIMIT_EXCEEDED", `a shared layer index of ${length} bytes`);
  }
  return {
    end: headerBytes + Number(length),
    mac: Buffer.from(bytes.subarray(macOffset, headerBytes)),
  };
}

/** Whether `mac` vouches, with one of the keys, for the index of this layer. */
export function isVouchedFor(
  layerDigest: Digest,
  encoded: Buffer,
  mac: Buffer,
  keys: readonly Buffer[],
): boolean {
  return keys.some((key) => timingSafeEqual(macOf(layerDigest, encoded, key), mac));
}

function macOf(layerDigest: Digest, encoded: Buffer, key: Buffer): Buffer {
  return createHmac("sha256", key)
    .update("clip layer index 1\0")
    .update(digestBytes(layerDigest))
    .update(encoded)
    .digest();
}
