/**
 * A ring of memory through which one thread hands bytes to another one that hashes them. Both
 * block while they wait: neither has anything else to do.
 */

/** What a slot of the ring says. */
export const ringOperations = { compressed: 0, uncompressed: 1, endSpan: 2, end: 3, close: 4 };

const slotBytes = 256 * 1024;
const slots = 32;
// Positions in the control words: slots filled and slots emptied so far, then two words a slot.
const filled = 0;
const emptied = 1;
const slotWords = 2;

/** The memory of a ring. */
export interface RingMemory {
  control: SharedArrayBuffer;
  data: SharedArrayBuffer;
}

export function createRing(): RingMemory {
  return {
    control: new SharedArrayBuffer((slotWords + 2 * slots) * Int32Array.BYTES_PER_ELEMENT),
    data: new SharedArrayBuffer(slots * slotBytes),
  };
}

/** Puts bytes into a ring. */
export class RingWriter {
  readonly #control: Int32Array;
  readonly #data: Uint8Array;
  readonly #patienceMs: number;
  #position = 0;

  /** `patienceMs` is how long the other side may take to empty a slot. */
  constructor({ control, data }: RingMemory, patienceMs: number) {
    this.#control = new Int32Array(control);
    this.#data = new Uint8Array(data);
    this.#patienceMs = patienceMs;
  }

  /**
   * Hands over an operation with its bytes, in as many slots as they need.
   * @throws Error when the other side has died
   */
  put(operation: number, bytes: Uint8Array = new Uint8Array(0)): void {
    let at = 0;
    do {
      const part = bytes.subarray(at, at + slotBytes);
      this.#waitForRoom();
      const slot = this.#position % slots;
      this.#data.set(part, slot * slotBytes);
      this.#control[slotWords + 2 * slot] = operation;
      this.#control[slotWords + 2 * slot + 1] = part.length;
      Atomics.store(this.#control, filled, ++this.#position);
      Atomics.notify(this.#control, filled);
      at += part.length;
    } while (at < bytes.length);
  }

  #waitForRoom(): void {
    for (;;) {
      const done = Atomics.load(this.#control, emptied);
      if (this.#position - done < slots) return;
      const outcome = Atomics.wait(this.#control, emptied, done, this.#patienceMs);
      if (outcome === "timed-out") throw new Error("the hashing thread does not answer");
    }
  }
}

/** Takes bytes out of a ring, for ever. */
export function readRing(
  { control, data }: RingMemory,
  take: (operation: number, bytes: Uint8Array) => void,
): never {
  const words = new Int32Array(control);
  const bytes = new Uint8Array(data);
  for (let position = 0; ; position++) {
    while (Atomics.load(words, filled) === position) Atomics.wait(words, filled, position);
    const slot = position % slots;
    const start = slot * slotBytes;
    const length = words[slotWords + 2 * slot + 1] ?? 0;
    take(words[slotWords + 2 * slot] ?? 0, bytes.subarray(start, start + length));
    Atomics.store(words, emptied, position + 1);
    Atomics.notify(words, emptied);
  }
}
