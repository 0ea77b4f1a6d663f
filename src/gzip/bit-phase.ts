/** Deflate blocks without output, which bring a decoder into the middle of a byte. */

/**
 * `compressed`, whose first `bitOffset` bits belong to something else, as a deflate stream of its
 * own: the bits to skip become the end of blocks that yield nothing. The bits that follow stay
 * where they are in their bytes, which matters since stored blocks are aligned to bytes
 * (RFC 1951, section 3.2.4).
 */
export function alignToBlock(compressed: Buffer, bitOffset: number): Buffer {
  if (bitOffset === 0) return compressed;
  const preface = prefaces[bitOffset]!;
  const aligned = Buffer.allocUnsafe(preface.length - 1 + compressed.length);
  aligned.set(preface);
  aligned.set(compressed, preface.length - 1);
  const keptMask = (0xff << bitOffset) & 0xff;
  aligned[preface.length - 1] = preface.at(-1)! | (compressed[0]! & keptMask);
  return aligned;
}

class BitWriter {
  readonly #bytes: number[] = [];
  length = 0;

  /** Writes the low `count` bits of `value`, the lowest first. */
  write(value: number, count: number): void {
    for (let bit = 0; bit < count; bit++, this.length++) {
      if (this.length % 8 === 0) this.#bytes.push(0);
      if ((value >> bit) & 1) this.#bytes[this.#bytes.length - 1]! |= 1 << (this.length % 8);
    }
  }

  toBuffer(): Buffer {
    return Buffer.from(this.#bytes);
  }
}

// For each bit offset, blocks whose bits, modulo 8, are as many.
const prefaces = Array.from({ length: 8 }, (_, bitOffset) => {
  const bits = new BitWriter();
  if (bitOffset % 2 === 1) writeEmptyDynamicBlock(bits);
  while (bits.length % 8 !== bitOffset) writeEmptyFixedBlock(bits);
  return bits.toBuffer();
});

// 10 bits: not the last block, fixed codes, end of block.
function writeEmptyFixedBlock(bits: BitWriter): void {
  bits.write(0, 1);
  bits.write(1, 2);
  bits.write(0, 7);
}

// 93 bits, which is odd. Its only code is the one bit that means end of block.
function writeEmptyDynamicBlock(bits: BitWriter): void {
  bits.write(0, 1);
  bits.write(2, 2);
  bits.write(0, 5); // 257 literal and length codes
  bits.write(0, 5); // 1 distance code
  bits.write(18 - 4, 4); // lengths of 18 codes of code lengths
  // The code lengths 1, 0 and 18 ("11 to 138 zeros") get the codes 0, 10 and 11; RFC 1951 gives
  // the order in which their lengths stand. Codes are written from their highest bit.
  const lengths = new Map([
    [1, 1],
    [0, 2],
    [18, 2],
  ]);
  for (const code of [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1]) {
    bits.write(lengths.get(code) ?? 0, 3);
  }
  const writeZeros = (count: number): void => {
    bits.write(0b11, 2);
    bits.write(count - 11, 7);
  };
  writeZeros(138); // the 256 literals have no code
  writeZeros(118);
  bits.write(0, 1); // end of block: a code of one bit
  bits.write(0b01, 2); // no distance code
  bits.write(0, 1); // end of block
}
