/**
 * zlib's streaming inflate with what Node's own binding leaves out: stopping at deflate block
 * boundaries (Z_BLOCK), the bit position, and starting in the middle of a byte (inflatePrime).
 * It is the zlib inside the Node binary; where that exports no symbols, the system's libz.so.1.
 */
import koffi from "koffi";
import { ClipError } from "../base/errors.ts";

/** zlib.h: decode as much as there is input and room for output. */
export const Z_NO_FLUSH = 0;
/** zlib.h: the same, but stop at the next block boundary. */
export const Z_BLOCK = 5;

/** What one run came to. */
export type InflateOutcome = "progress" | "end";

/** Memory whose address does not change for as long as the object is referenced. */
export interface FixedMemory {
  readonly bytes: Buffer;
  readonly address: bigint;
}

/** Memory that native code may keep a pointer to; zero-filled. */
export function allocateFixed(size: number): FixedMemory {
  // A buffer of its own: V8 never moves the backing store of one that lies outside its heap.
  const bytes = Buffer.from(new ArrayBuffer(size));
  return { bytes, address: koffi.address(bytes) };
}

// The offsets in z_stream (zlib.h) of LP64 systems.
const NEXT_IN = 0;
const AVAIL_IN = 8;
const NEXT_OUT = 24;
const AVAIL_OUT = 32;
const MSG = 48;
const DATA_TYPE = 88;
const STREAM_SIZE = 112;

// What zlib adds to the number of unused bits in data_type.
const UNUSED_BITS_MASK = 63;
const IN_LAST_BLOCK = 64;
const AT_BLOCK_BOUNDARY = 128;

// Return codes (zlib.h).
const Z_OK = 0;
const Z_STREAM_END = 1;
const Z_DATA_ERROR = -3;
const Z_BUF_ERROR = -5;

const calls = bindCalls();

/**
 * One inflate stream. Input and output are places in {@link FixedMemory} that the caller keeps
 * referenced for as long as the stream may use them. Whoever creates it closes it.
 */
export class InflateStream {
  readonly #stream = allocateFixed(STREAM_SIZE);
  readonly #fields = new DataView(this.#stream.bytes.buffer);
  #closed = false;

  /** @param format gzip: header, checksum and length are checked; raw: deflate data alone */
  constructor(format: "gzip" | "raw") {
    const windowBits = 15;
    const code = calls.inflateInit2(
      this.#stream.bytes,
      format === "gzip" ? windowBits + 16 : -windowBits,
      calls.version,
      STREAM_SIZE,
    );
    if (code !== Z_OK) throw new Error(`inflateInit2 answered ${code}`);
  }

  /** Bytes of input that are not consumed. */
  get inputLeft(): number {
    return this.#fields.getUint32(AVAIL_IN, true);
  }

  /** Bytes of room for output that are left. */
  get outputLeft(): number {
    return this.#fields.getUint32(AVAIL_OUT, true);
  }

  /** How many high bits of the last consumed byte are not decoded yet; below 8 at a boundary. */
  get unusedBits(): number {
    return this.#fields.getInt32(DATA_TYPE, true) & UNUSED_BITS_MASK;
  }

  /** Whether the last run with Z_BLOCK stopped after the stream's header or at a block's end. */
  get atBlockBoundary(): boolean {
    return (this.#fields.getInt32(DATA_TYPE, true) & AT_BLOCK_BOUNDARY) !== 0;
  }

  /** Whether it stopped where a block begins: at a boundary, but not at the last block's end. */
  get atBlockStart(): boolean {
    const lastBlock = (this.#fields.getInt32(DATA_TYPE, true) & IN_LAST_BLOCK) !== 0;
    return this.atBlockBoundary && !lastBlock;
  }

  setInput(memory: FixedMemory, start: number, end: number): void {
    this.#fields.setBigUint64(NEXT_IN, memory.address + BigInt(start), true);
    this.#fields.setUint32(AVAIL_IN, end - start, true);
  }

  setOutput(memory: FixedMemory, start: number, end: number): void {
    this.#fields.setBigUint64(NEXT_OUT, memory.address + BigInt(start), true);
    this.#fields.setUint32(AVAIL_OUT, end - start, true);
  }

  /**
   * Decodes from the input to the output until one of them is used up, the stream ends or, with
   * Z_BLOCK, a block boundary is reached.
   * @returns "end" after the end of the stream, which leaves what follows it in the input
   * @throws ClipError CORRUPT_GZIP
   */
  run(flush: typeof Z_NO_FLUSH | typeof Z_BLOCK): InflateOutcome {
    const code = calls.inflate(this.#stream.bytes, flush);
    // Z_BUF_ERROR says that nothing could be done for want of input or room.
    if (code === Z_OK || code === Z_BUF_ERROR) return "progress";
    if (code === Z_STREAM_END) return "end";
    if (code === Z_DATA_ERROR) throw new ClipError("CORRUPT_GZIP", this.#message());
    return this.#fail("inflate", code);
  }

  /** Forgets everything and starts anew with the same format. */
  reset(): void {
    this.#check("inflateReset", calls.inflateReset(this.#stream.bytes));
  }

  /** Puts the low `count` bits of `value` before the input; only right after a reset. */
  prime(count: number, value: number): void {
    this.#check("inflatePrime", calls.inflatePrime(this.#stream.bytes, count, value));
  }

  /** Takes `dictionary` for the output that came before; raw streams only. */
  setDictionary(dictionary: Buffer): void {
    this.#check(
      "inflateSetDictionary",
      calls.inflateSetDictionary(this.#stream.bytes, dictionary, dictionary.length),
    );
  }

  /** Frees zlib's memory. Nothing else may be called afterwards. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    calls.inflateEnd(this.#stream.bytes);
  }

  #check(call: string, code: number): void {
    if (code !== Z_OK) this.#fail(call, code);
  }

  #fail(call: string, code: number): never {
    // A closed stream has no state any more, which zlib notices.
    if (this.#closed) throw new ClipError("CLOSED", "the inflate stream is closed");
    throw new Error(`${call} answered ${code}`);
  }

  #message(): string {
    const address = this.#fields.getBigUint64(MSG, true);
    return address === 0n ? "invalid deflate data" : koffi.decode.string(address);
  }
}

interface ZlibCalls {
  version: string;
  inflateInit2(stream: Buffer, windowBits: number, version: string, streamSize: number): number;
  inflate(stream: Buffer, flush: number): number;
  inflateReset(stream: Buffer): number;
  inflatePrime(stream: Buffer, count: number, value: number): number;
  inflateSetDictionary(stream: Buffer, dictionary: Buffer, length: number): number;
  inflateEnd(stream: Buffer): number;
}

function bindCalls(): ZlibCalls {
  try {
    return bindFrom(null);
  } catch {
    return bindFrom("libz.so.1");
  }
}

function bindFrom(library: string | null): ZlibCalls {
  // deep: its own symbols go before those of the same name elsewhere in the process.
  const zlib = koffi.load(library, { deep: library !== null });
  const zlibVersion = zlib.func("const char *zlibVersion()") as unknown as () => string;
  const bind = (declaration: string): never => zlib.func(declaration) as never;
  return {
    version: zlibVersion(),
    inflateInit2: bind(
      "int inflateInit2_(void *stream, int windowBits, const char *version, int streamSize)",
    ),
    inflate: bind("int inflate(void *stream, int flush)"),
    inflateReset: bind("int inflateReset(void *stream)"),
    inflatePrime: bind("int inflatePrime(void *stream, int count, int value)"),
    inflateSetDictionary: bind(
      "int inflateSetDictionary(void *stream, const void *dictionary, unsigned int length)",
    ),
    inflateEnd: bind("int inflateEnd(void *stream)"),
  };
}
