/** What the fuzzing threads are told, and what they tell. */

/** One target, for a while. */
export interface FuzzOrder {
  /** URL of the module that exports `targets`. */
  registry: string;
  target: string;
  seed: number;
  executions: number;
  corpus: Uint8Array[];
  shared: SharedArrayBuffer;
}

/** A finding, or the end. */
export type FuzzAnswer =
  | { kind: "finding"; problem: string; input: Uint8Array }
  | { kind: "done"; executions: number; behaviours: number; fresh: Uint8Array[] };

/** Longest input of any target. */
const inputBytesMax = 256 * 1024;
const headerWords = 3;
const headerBytes = headerWords * Int32Array.BYTES_PER_ELEMENT;

/**
 * What a thread is doing, readable by others even when it hangs or has died: how many inputs it has
 * begun, and the one that it is trying.
 */
export class Progress {
  readonly shared: SharedArrayBuffer;
  readonly #words: Int32Array;
  readonly #input: Uint8Array;

  constructor(shared = new SharedArrayBuffer(headerBytes + inputBytesMax)) {
    this.shared = shared;
    this.#words = new Int32Array(shared, 0, headerWords);
    this.#input = new Uint8Array(shared, headerBytes);
  }

  get executions(): number {
    return Atomics.load(this.#words, 1);
  }

  get isStopped(): boolean {
    return Atomics.load(this.#words, 0) !== 0;
  }

  /** Asks the thread to end with the input that it is trying. */
  stop(): void {
    Atomics.store(this.#words, 0, 1);
  }

  /** The input that is being tried. */
  input(): Buffer {
    return Buffer.from(this.#input.slice(0, Atomics.load(this.#words, 2)));
  }

  /** Says that an input is tried now. */
  begin(input: Uint8Array): void {
    const length = Math.min(input.length, inputBytesMax);
    this.#input.set(length === input.length ? input : input.subarray(0, length));
    Atomics.store(this.#words, 2, length);
    Atomics.add(this.#words, 1, 1);
  }
}
