/** Hashing in a second thread, so that decoding need not wait for it. */
import { MessageChannel, receiveMessageOnPort, Worker } from "node:worker_threads";
import { createRing, ringOperations, RingWriter } from "./hash-ring.ts";
import type { HashOrder } from "./hash-worker.ts";
import type { LayerDigests, LayerHashes } from "./layer-hashes.ts";

/**
 * Owns a thread that hashes one layer after the other. It has to be used from a thread that may
 * block. It ends with that thread.
 */
export class ThreadedHashes implements LayerHashes {
  readonly #writer: RingWriter;
  readonly #answered: Int32Array;
  readonly #channel = new MessageChannel();
  #answers = 0;
  #broken = false;

  constructor() {
    const ring = createRing();
    this.#writer = new RingWriter(ring);
    const answered = new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
    this.#answered = new Int32Array(answered);
    const port = this.#channel.port1;
    const order: HashOrder = { ring, answered, port };
    const worker = new Worker(new URL("./hash-worker.ts", import.meta.url), {
      workerData: order,
      transferList: [port],
    });
    // It is told to whoever waits for it; between two layers it is noticed here.
    worker.on("error", () => (this.#broken = true));
    worker.on("exit", () => (this.#broken = true));
    worker.unref();
  }

  /** The thread has died: another one of these is needed. */
  get broken(): boolean {
    return this.#broken;
  }

  addCompressed(chunk: Uint8Array): void {
    this.#alive(() => this.#writer.put(ringOperations.compressed, chunk));
  }

  addUncompressed(chunk: Uint8Array): void {
    this.#alive(() => this.#writer.put(ringOperations.uncompressed, chunk));
  }

  endSpan(): void {
    this.#alive(() => this.#writer.put(ringOperations.endSpan));
  }

  /** The thread is ready for the next layer afterwards. */
  end(): LayerDigests {
    this.#alive(() => {
      this.#writer.put(ringOperations.end);
      this.#writer.wait(this.#answered, 0, this.#answers++);
    });
    const answer = receiveMessageOnPort(this.#channel.port2);
    if (answer === undefined) throw new Error("the hashing thread does not answer");
    return answer.message as LayerDigests;
  }

  /** As {@link end}. */
  close(): void {
    if (!this.#broken) this.#alive(() => this.#writer.put(ringOperations.close));
  }

  #alive(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.#broken = true;
      throw error;
    }
  }
}
