/**
 * A ring of memory through which one thread hands bytes to another one that hashes them. Both
 * block while they wait: neither has anything else to do.
 */

import { existsSync } from "node:fs";

/** What a slot of the ring says. */
export const ringOperations = { compressed: 0, uncompressed: 1, endSpan: 2, end: 3, close: 4 };

const slotBytes = 256 * 1024;
const slots = 32;
// Positions in the control words: slots filled and slots emptied so far, the number of the thread
// that empties them, then two words a slot.
const filled = 0;
const emptied = 1;
const reader = 2;
const slotWords = 3;
/** How often whoever waits looks whether the other side still lives. */
const lookMs = 1_000;
/** Longest time in which the other side does nothing. */
const patienceMs = 60_000;

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
  #position = 0;

  constructor({ control, data }: RingMemory) {
    this.#control = new Int32Array(control);
    this.#data = new Uint8Array(data);
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

  /**
   * Blocks while a word has this value.
   * @throws Error when the other side has died
   */
  wait(words: Int32Array, position: number, value: number): void {
    const deadline = performance.now() + patienceMs;
    while (Atomics.wait(words, position, value, lookMs) === "timed-out") {
      if (performance.now() > deadline || !this.#readerLives()) {
        throw new Error("the hashing thread has died");
      }
    }
  }

  #waitForRoom(): void {
    for (;;) {
      const done = Atomics.load(this.#control, emptied);
      if (this.#position - done < slots) return;
      this.wait(this.#control, emptied, done);
    }
  }

  // While this side blocks it does not get the event of the other's end.
  #readerLives(): boolean {
    const threadId = Atomics.load(this.#control, reader);
    // It may not have begun yet.
    return threadId === 0 || existsSync(`/proc/self/task/${threadId}`);
  }
}

/** Takes bytes out of a ring, for ever; `threadId` is the kernel's number of the calling thread. */
export function readRing(
  { control, data }: RingMemory,
  threadId: number,
  take: (operation: number, bytes: Uint8Array) => void,
): never {
  const words = new Int32Array(control);
  const bytes = new Uint8Array(data);
  Atomics.store(words, reader, threadId);
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
