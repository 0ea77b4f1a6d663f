/** Places in a gzip stream where decoding can restart, and what is between them. */

/** How far back a deflate stream may refer (RFC 1951, section 2). */
export const windowBytesMax = 32 * 1024;

/**
 * A place where decoding can restart: a deflate block boundary (RFC 1951) or the start of a gzip
 * member's deflate data (RFC 1952).
 */
export interface Checkpoint {
  /** Offset of the byte that holds the next bit to decode, in the compressed stream. */
  compressedOffset: number;
  /** How many low bits of that byte belong to what precedes the checkpoint: 0 to 7. */
  bitOffset: number;
  /** Offset of the next byte to come out, in the uncompressed stream. */
  uncompressedOffset: number;
}

/** A checkpoint and all that is needed to decode from it to the next one. */
export interface IndexedCheckpoint extends Checkpoint {
  /** Uncompressed bytes up to the next checkpoint or the end: at least 1. */
  length: number;
  /**
   * End (exclusive) of the compressed bytes that yield these bytes: where the next checkpoint
   * is, or the end of the last gzip member.
   */
  compressedEnd: number;
  /**
   * The output before the checkpoint as far as the bytes up to the next one refer to it: it ends
   * at the checkpoint, begins with the first byte that is referred to (at most
   * {@link windowBytesMax} before the checkpoint), and bytes that are not referred to are zero.
   * Empty when decoding needs nothing of what came before.
   */
  window: Buffer;
}

/**
 * Where decoding of a gzip stream can restart, in order. The same stream has the same index,
 * whatever the chunks in which it was read.
 */
export interface GzipIndex {
  /** The first one is at uncompressed offset 0; none when nothing comes out of the stream. */
  checkpoints: IndexedCheckpoint[];
  /** Bytes of the gzip stream, trailing zeros included. */
  compressedSize: number;
  /** Bytes that come out of it. */
  uncompressedSize: number;
}
