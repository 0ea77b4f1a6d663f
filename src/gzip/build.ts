/** One pass over a gzip stream that yields its output and the places where decoding can restart. */
import { assert, ClipError, isClipError } from "../base/errors.ts";
import { layerBytesMax } from "../base/limits.ts";
import { allocateFixed, InflateStream, Z_BLOCK, Z_NO_FLUSH } from "../os/zlib.ts";
import { windowBytesMax } from "./checkpoint.ts";
import type { Checkpoint, GzipIndex, IndexedCheckpoint } from "./checkpoint.ts";
import { WindowTrace } from "./window-trace.ts";

export interface GzipIndexOptions {
  /**
   * Least uncompressed bytes between two checkpoints. The next one is set at the first block
   * boundary after that, so a larger block makes a longer span.
   */
  spanBytes: number;
  /**
   * Takes the output in order. `chunk` is only valid during the call: its memory is used again.
   * A checkpoint is always on the boundary of two chunks. Until the end nothing says that these
   * are the right bytes: a member's checksum comes last.
   */
  onOutput: (chunk: Buffer) => void;
  /**
   * Takes each checkpoint, after the last output that belongs to it and before any that follows;
   * the index that {@link GzipIndexBuilder.end} returns has none then.
   */
  onSpan?: (checkpoint: IndexedCheckpoint) => void;
}

// Small enough to stay in a core's second-level cache while the consumer reads it.
const outputBytes = 256 * 1024;
const inputBytes = 64 * 1024;

/**
 * Decodes a gzip stream (RFC 1952) of any number of members that comes in chunks of any size,
 * synchronously. Header, checksum and length of every member are checked.
 *
 * Zeros may follow the last member, as with GNU gzip. Anything else there is CORRUPT_GZIP, as it
 * is for Go's compress/gzip, with which containerd unpacks; GNU gzip only warns.
 *
 * Whoever creates one calls {@link end} or {@link close}. After a failure it is closed.
 */
export class GzipIndexBuilder {
  readonly #options: GzipIndexOptions;
  readonly #stream = new InflateStream("gzip");
  readonly #trace = new WindowTrace();
  #position: "in member" | "after member" | "in padding" = "in member";
  #closed = false;

  readonly #input = allocateFixed(inputBytes);
  #inputLength = 0;
  // Offset of the first byte of #input in the compressed stream.
  #inputOffset = 0;

  // The last output of the round before is kept in front, as the window of a checkpoint.
  readonly #output = allocateFixed(windowBytesMax + outputBytes);
  #outputEnd = windowBytesMax;
  #emittedEnd = windowBytesMax;

  #produced = 0;
  // Where the last complete member ends in the compressed stream.
  #memberEnd = 0;
  #checkpoint: Checkpoint | undefined;
  readonly #checkpoints: IndexedCheckpoint[] = [];

  constructor(options: GzipIndexOptions) {
    assert(options.spanBytes > 0, "a span has a length");
    this.#options = options;
  }

  /**
   * Takes the next compressed bytes; what comes out of them is reported before it returns, but
   * for the last {@link outputBytes} at most.
   * @throws ClipError CORRUPT_GZIP, LIMIT_EXCEEDED, and whatever the callbacks throw
   */
  write(chunk: Buffer): void {
    this.#guard(() => {
      for (let start = 0; start < chunk.length; start += inputBytes) {
        this.#take(chunk.subarray(start, start + inputBytes));
        while (this.#step());
      }
    });
  }

  /**
   * Says that there are no more compressed bytes, reports the rest and frees all memory.
   * @throws ClipError CORRUPT_GZIP if the stream is not complete, and whatever the callbacks throw
   */
  end(): GzipIndex {
    return this.#guard(() => {
      if (this.#position === "in member") throw corrupt("the gzip stream is cut short");
      this.#closeSpan(this.#memberEnd);
      this.close();
      return {
        checkpoints: this.#checkpoints,
        compressedSize: this.#inputOffset + this.#inputLength,
        uncompressedSize: this.#produced,
      };
    });
  }

  /** Frees all memory; for a stream that is given up. */
  close(): void {
    this.#closed = true;
    this.#stream.close();
    this.#trace.close();
  }

  #guard<T>(work: () => T): T {
    if (this.#closed) throw new ClipError("CLOSED", "the gzip stream is closed");
    try {
      return work();
    } catch (error) {
      this.close();
      if (!isClipError(error, "CORRUPT_GZIP")) throw error;
      const [compressedOffset, uncompressedOffset] = [this.#consumed(), this.#produced];
      throw new ClipError("CORRUPT_GZIP", `${error.message} near byte ${compressedOffset}`, {
        cause: error.cause,
        context: { compressedOffset, uncompressedOffset },
      });
    }
  }

  #take(chunk: Buffer): void {
    this.#inputOffset += this.#inputLength;
    // Copied, since zlib keeps a pointer to it between calls; these are the compressed bytes, and
    // they are few.
    chunk.copy(this.#input.bytes);
    this.#inputLength = chunk.length;
    this.#stream.setInput(this.#input, 0, chunk.length);
    this.#trace.feed(this.#input, 0, chunk.length);
  }

  // Goes on by one call of zlib at most; false when the input is used up.
  #step(): boolean {
    if (this.#position === "in member") return this.#inflate();
    if (this.#position === "after member") return this.#startMember();
    return this.#skipPadding();
  }

  #inflate(): boolean {
    const stream = this.#stream;
    // zlib is asked to stop at blocks only where a checkpoint is due: some blocks are tiny. That
    // begins one byte early, since zlib may pass boundaries when its room is just used up.
    const beforeDue = Math.max(0, this.#untilDue() - 1);
    const stopAtBlocks = beforeDue === 0;
    const roomEnd = this.#output.bytes.length;
    const end = stopAtBlocks ? roomEnd : Math.min(roomEnd, this.#outputEnd + beforeDue);
    const inputBefore = stream.inputLeft;

    stream.setOutput(this.#output, this.#outputEnd, end);
    const outcome = stream.run(stopAtBlocks ? Z_BLOCK : Z_NO_FLUSH);
    const outputLeft = stream.outputLeft;
    const grown = end - outputLeft - this.#outputEnd;
    this.#grow(grown);
    if (this.#outputEnd === roomEnd) this.#emit();

    if (outcome === "end") {
      this.#position = "after member";
      this.#memberEnd = this.#consumed();
      return true;
    }
    if (stream.atBlockStart && this.#untilDue() === 0) this.#setCheckpoint();
    const { inputLeft } = stream;
    assert(
      grown > 0 || inputLeft < inputBefore || inputLeft === 0 || stream.atBlockBoundary,
      "zlib goes on as long as it has input and room",
    );
    return inputLeft > 0 || outputLeft === 0;
  }

  /** Bytes of output until the next checkpoint is due. */
  #untilDue(): number {
    if (this.#checkpoint === undefined) return 0;
    const { uncompressedOffset } = this.#checkpoint;
    return Math.max(0, uncompressedOffset + this.#options.spanBytes - this.#produced);
  }

  #grow(count: number): void {
    if (count === 0) return;
    this.#outputEnd += count;
    this.#produced += count;
    if (this.#produced > layerBytesMax) {
      throw new ClipError("LIMIT_EXCEEDED", `more than ${layerBytesMax} bytes come out of a gzip`);
    }
  }

  #emit(): void {
    const chunk = this.#output.bytes.subarray(this.#emittedEnd, this.#outputEnd);
    if (chunk.length === 0) return;
    this.#emittedEnd = this.#outputEnd;
    this.#trace.compare(chunk);
    this.#options.onOutput(chunk);
    if (this.#outputEnd < this.#output.bytes.length) return;
    this.#output.bytes.copyWithin(0, this.#outputEnd - windowBytesMax);
    this.#outputEnd = windowBytesMax;
    this.#emittedEnd = windowBytesMax;
  }

  #setCheckpoint(): void {
    const { inputLeft, unusedBits } = this.#stream;
    const consumed = this.#consumed();
    this.#closeSpan(consumed);
    this.#checkpoint = {
      compressedOffset: unusedBits === 0 ? consumed : consumed - 1,
      bitOffset: unusedBits === 0 ? 0 : 8 - unusedBits,
      uncompressedOffset: this.#produced,
    };
    // zlib never holds back a boundary until there is more input: it took a byte of this input.
    const next = this.#inputLength - inputLeft;
    assert(next > 0, "a boundary is found when its last bit is there");
    const window = this.#output.bytes.subarray(this.#outputEnd - windowBytesMax, this.#outputEnd);
    this.#trace.start(window, unusedBits, this.#input.bytes[next - 1]!);
    this.#trace.feed(this.#input, next, this.#inputLength);
  }

  #closeSpan(compressedEnd: number): void {
    this.#emit();
    if (this.#checkpoint === undefined) return;
    const length = this.#produced - this.#checkpoint.uncompressedOffset;
    if (length === 0) return;
    const window = this.#trace.usedWindow();
    const indexed = { ...this.#checkpoint, length, compressedEnd, window };
    const { onSpan } = this.#options;
    // Windows are large: whoever takes them decides how they are kept.
    if (onSpan === undefined) this.#checkpoints.push(indexed);
    else onSpan(indexed);
  }

  #startMember(): boolean {
    if (this.#stream.inputLeft === 0) return false;
    if (this.#input.bytes[this.#inputLength - this.#stream.inputLeft] === 0) {
      this.#position = "in padding";
      return true;
    }
    this.#position = "in member";
    this.#stream.reset();
    return true;
  }

  #skipPadding(): boolean {
    const start = this.#inputLength - this.#stream.inputLeft;
    for (let at = start; at < this.#inputLength; at++) {
      if (this.#input.bytes[at] !== 0) throw corrupt("something follows the gzip stream");
    }
    this.#stream.setInput(this.#input, this.#inputLength, this.#inputLength);
    return false;
  }

  #consumed(): number {
    return this.#inputOffset + this.#inputLength - this.#stream.inputLeft;
  }
}

function corrupt(message: string): ClipError {
  return new ClipError("CORRUPT_GZIP", message);
}
