/** Hashing in a second thread, so that decoding need not wait for it. */
import { MessageChannel, receiveMessageOnPort, Worker } from "node:worker_threads";
import { createRing, ringOperations, RingWriter } from "./hash-ring.ts";
import type { HashOrder } from "./hash-worker.ts";
import type { LayerDigests, LayerHashes } from "./layer-hashes.ts";

// A thread that hashes nothing for so long has died.
const patienceMs = 120_000;

/**
 * Owns a thread that hashes one layer after the other. It has to be used from a thread that may
 * block. It ends with that thread.
 */
export class ThreadedHashes implements LayerHashes {
  readonly #writer: RingWriter;
  readonly #answered: Int32Array;
  readonly #channel = new MessageChannel();
  #answers = 0;

  constructor() {
    const ring = createRing();
    this.#writer = new RingWriter(ring, patienceMs);
    const answered = new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
    this.#answered = new Int32Array(answered);
    const port = this.#channel.port1;
    const order: HashOrder = { ring, answered, port };
    const worker = new Worker(new URL("./hash-worker.ts", import.meta.url), {
      workerData: order,
      transferList: [port],
    });
    worker.unref();
  }

  addCompressed(chunk: Uint8Array): void {
    this.#writer.put(ringOperations.compressed, chunk);
  }

  addUncompressed(chunk: Uint8Array): void {
    this.#writer.put(ringOperations.uncompressed, chunk);
  }

  endSpan(): void {
    this.#writer.put(ringOperations.endSpan);
  }

  /** The thread is ready for the next layer afterwards. */
  end(): LayerDigests {
    this.#writer.put(ringOperations.end);
    const outcome = Atomics.wait(this.#answered, 0, this.#answers++, patienceMs);
    const answer = receiveMessageOnPort(this.#channel.port2);
    if (answer === undefined) throw new Error(`the hashing thread does not answer: ${outcome}`);
    return answer.message as LayerDigests;
  }

  /** As {@link end}. */
  close(): void {
    this.#writer.put(ringOperations.close);
  }
}
