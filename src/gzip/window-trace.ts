/** Which bytes of the window before a checkpoint the output after it refers to. */
import { assert } from "../base/errors.ts";
import { allocateFixed, InflateStream, Z_NO_FLUSH } from "../os/zlib.ts";
import type { FixedMemory } from "../os/zlib.ts";
import { windowBytesMax } from "./checkpoint.ts";

// The two marks of a position in the window tell it, and differ by 1 to 128, so that a literal,
// which leaves the same byte in both outputs, is never taken for a copy.
const firstMarks = Buffer.alloc(windowBytesMax);
const secondMarks = Buffer.alloc(windowBytesMax);
for (let index = 0; index < windowBytesMax; index++) {
  firstMarks[index] = index & 0xff;
  secondMarks[index] = (index + (index >> 8) + 1) & 0xff;
}

/**
 * Decodes the first bytes after a checkpoint with two windows whose bytes tell their own
 * position. What a literal yields is the same in both, what is copied out of the window is not,
 * so that each byte of output shows where in the window it came from. Compared with what the
 * stream really decodes to, that also proves that decoding can restart at the checkpoint.
 *
 * Only the first {@link windowBytesMax} bytes after a checkpoint can refer to the window. One
 * object serves one checkpoint after the other.
 */
export class WindowTrace {
  readonly #first = new Probe(firstMarks);
  readonly #second = new Probe(secondMarks);
  readonly #window = Buffer.alloc(windowBytesMax);
  #sparse = Buffer.alloc(0);
  #lowestUsed = windowBytesMax;
  #compared = 0;

  /**
   * Starts at a checkpoint.
   * @param window the {@link windowBytesMax} bytes of output before it; copied
   * @param unusedBits how many high bits of `partialByte` belong to what follows the checkpoint
   */
  start(window: Buffer, unusedBits: number, partialByte: number): void {
    window.copy(this.#window);
    this.#sparse = Buffer.alloc(windowBytesMax);
    this.#lowestUsed = windowBytesMax;
    this.#compared = 0;
    this.#first.start(unusedBits, partialByte);
    this.#second.start(unusedBits, partialByte);
  }

  /** Takes the compressed bytes that follow the checkpoint or what {@link feed} took last. */
  feed(memory: FixedMemory, start: number, end: number): void {
    this.#first.feed(memory, start, end);
    this.#second.feed(memory, start, end);
  }

  /** Takes the output that follows the checkpoint or what {@link compare} took last. */
  compare(output: Buffer): void {
    const from = this.#compared;
    assert(
      this.#first.reaches(from + output.length) && this.#second.reaches(from + output.length),
      "decoding from a checkpoint yields as much as decoding from the start",
    );
    const count = Math.min(output.length, this.#first.produced - from);
    const first = this.#first.output.bytes;
    const second = this.#second.output.bytes;
    let unexplained = 0;
    for (let at = 0; at < count; at++) {
      const real = output[at]!;
      const low = first[from + at]!;
      const distance = (second[from + at]! - low) & 0xff;
      if (distance === 0) {
        unexplained |= low ^ real;
        continue;
      }
      const index = ((distance - 1) << 8) | low;
      unexplained |= this.#window[index]! ^ real;
      this.#sparse[index] = real;
      if (index < this.#lowestUsed) this.#lowestUsed = index;
    }
    assert(unexplained === 0, "decoding from a checkpoint yields the same as from the start");
    this.#compared = from + count;
  }

  /** The window as far as the output compared since {@link start} refers to it. */
  usedWindow(): Buffer {
    return Buffer.from(this.#sparse.subarray(this.#lowestUsed));
  }

  close(): void {
    this.#first.close();
    this.#second.close();
  }
}

/** Decodes the first bytes after a checkpoint with an invented window. */
class Probe {
  readonly output = allocateFixed(windowBytesMax);
  readonly #stream = new InflateStream("raw");
  readonly #window: Buffer;
  // The output is full, or the gzip member ended: nothing that follows refers to the window.
  #done = true;

  constructor(window: Buffer) {
    this.#window = window;
  }

  get produced(): number {
    return windowBytesMax - this.#stream.outputLeft;
  }

  /** Whether as many bytes were decoded as can refer to the window, or all that can. */
  reaches(count: number): boolean {
    return this.#done || this.produced >= count;
  }

  start(unusedBits: number, partialByte: number): void {
    this.#stream.reset();
    if (unusedBits > 0) this.#stream.prime(unusedBits, partialByte >> (8 - unusedBits));
    this.#stream.setDictionary(this.#window);
    this.#stream.setOutput(this.output, 0, windowBytesMax);
    this.#done = false;
  }

  feed(memory: FixedMemory, start: number, end: number): void {
    if (this.#done) return;
    this.#stream.setInput(memory, start, end);
    const outcome = this.#stream.run(Z_NO_FLUSH);
    this.#done = outcome === "end" || this.#stream.outputLeft === 0;
  }

  close(): void {
    this.#stream.close();
  }
}
