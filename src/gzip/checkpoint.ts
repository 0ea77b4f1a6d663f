/** Places in a gzip stream where decoding can restart. */

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
