/** Building a layer index in a thread of its own. */
import { Worker } from "node:worker_threads";
import { abortable } from "../base/concurrency.ts";
import { ClipError } from "../base/errors.ts";
import {
  type BuildInput,
  type BuildOrder,
  type BuildOutput,
  unpackError,
} from "./build-messages.ts";
import type { LayerPassOptions } from "./layer-pass.ts";
import type { LayerHead } from "./model.ts";
import { type LayerIndexReader, openLayerIndex } from "./reader.ts";
import { bufferSource } from "./sources.ts";

/** How an index is built. */
export interface BuildOptions extends LayerPassOptions {
  /** Ends the build; the source must end with it. */
  signal?: AbortSignal | undefined;
  /** Told now and then how many compressed bytes have been taken so far. */
  onProgress?: ((compressedBytes: number) => void) | undefined;
}

/** An index that has just been built. */
export interface BuiltLayerIndex {
  head: LayerHead;
  /** The index as it is stored and published. */
  encoded: Buffer;
  /** Reads from `encoded`; needs no closing. */
  reader: LayerIndexReader;
}

const batchBytes = 1024 * 1024;
const batchesMax = 8;

/**
 * Builds the index of a gzip layer in one pass: decodes it, checks it, hashes it, lists its files,
 * and writes its uncompressed bytes to `outputPath` where one is given (sparse, with its full
 * length, not synced; the file must be new or hold bytes of this layer).
 *
 * @param source the compressed layer: in chunks, which are copied, or as a local file
 * @throws ClipError CORRUPT_GZIP, CORRUPT_TAR, CORRUPT_LAYER (a digest is not the expected one),
 *   LIMIT_EXCEEDED, DISK_FULL, ABORTED, and what the source throws
 */
export async function buildLayerIndex(
  source: AsyncIterable<Buffer> | { path: string },
  options: BuildOptions,
): Promise<BuiltLayerIndex> {
  const { signal, onProgress, ...pass } = options;
  if (signal?.aborted === true) {
    throw new ClipError("ABORTED", "the caller gave up", { cause: signal.reason });
  }
  const path = "path" in source ? { path: source.path } : {};
  const thread = new BuildThread({ ...pass, ...path }, onProgress);
  const giveUp = () => thread.stop();
  signal?.addEventListener("abort", giveUp, { once: true });
  try {
    if (!("path" in source)) await feed(thread, source, signal);
    const encoded = await thread.outcome;
    const reader = await openLayerIndex(bufferSource(encoded));
    return { head: reader.head, encoded, reader };
  } finally {
    signal?.removeEventListener("abort", giveUp);
    await thread.close();
  }
}

async function feed(
  thread: BuildThread,
  source: AsyncIterable<Buffer>,
  signal: AbortSignal | undefined,
): Promise<void> {
  const chunks = source[Symbol.asyncIterator]();
  let isOver = false;
  try {
    for (;;) {
      const next = await abortable(chunks.next(), signal);
      if (next.done === true) break;
      for (let at = 0; at < next.value.length;) at += await thread.add(next.value, at);
    }
    isOver = true;
    thread.end();
  } finally {
    // Not awaited: a source that hangs would keep its caller from giving up.
    if (!isOver) chunks.return?.().catch(() => {});
  }
}

/** The thread of one build. */
class BuildThread {
  /** The encoded index. */
  readonly outcome: Promise<Buffer>;
  readonly #worker: Worker;
  readonly #ended: Promise<unknown>;
  readonly #stop = new SharedArrayBuffer(4);
  readonly #free: ArrayBuffer[] = [];
  #batch: Uint8Array = new Uint8Array(0);
  #filled = 0;
  #allocated = 0;
  #taken = 0;
  #isOver = false;
  #wake: () => void = () => {};

  constructor(
    order: Omit<BuildOrder, "stop">,
    onProgress: ((compressedBytes: number) => void) | undefined,
  ) {
    this.#worker = new Worker(new URL("./build-worker.ts", import.meta.url), {
      workerData: { ...order, stop: this.#stop } satisfies BuildOrder,
    });
    this.#ended = new Promise((resolve) => this.#worker.once("exit", resolve));
    this.outcome = new Promise((resolve, reject) => {
      this.#worker.on("message", (output: BuildOutput) => {
        if (output.kind === "done") resolve(Buffer.from(output.encoded));
        else if (output.kind === "failed") reject(unpackError(output.error));
        else {
          if (output.bytes !== undefined) this.#free.push(output.bytes);
          this.#taken += output.compressedBytes;
          onProgress?.(this.#taken);
        }
        this.#isOver ||= output.kind !== "taken";
        this.#wake();
      });
      this.#worker.once("error", reject);
      this.#worker.once("exit", () => {
        reject(new Error("the build thread ended without an answer"));
        this.#isOver = true;
        this.#wake();
      });
    });
    // It is seen by whoever awaits the outcome; until then it must not count as unhandled.
    this.outcome.catch(() => {});
  }

  /**
   * Takes bytes of `chunk` from `at` on; waits while the thread has enough to do.
   * @returns how many it took
   * @throws what ended the build
   */
  async add(chunk: Buffer, at: number): Promise<number> {
    if (this.#batch.length === 0) this.#batch = new Uint8Array(await this.#buffer());
    const part = chunk.subarray(at, at + this.#batch.length - this.#filled);
    this.#batch.set(part, this.#filled);
    this.#filled += part.length;
    if (this.#filled === this.#batch.length) this.#send();
    return part.length;
  }

  /** Says that the layer is over. */
  end(): void {
    if (this.#filled > 0) this.#send();
    this.#post({ length: 0 });
  }

  /** Makes the build fail with ABORTED as soon as it looks. */
  stop(): void {
    Atomics.store(new Int32Array(this.#stop), 0, 1);
    // It may be waiting for input.
    this.#post({ length: 0 });
  }

  /** Ends the thread, and waits for that. */
  async close(): Promise<void> {
    if (!this.#isOver) this.stop();
    await this.#ended;
  }

  #send(): void {
    const bytes = this.#batch.buffer as ArrayBuffer;
    this.#post({ bytes, length: this.#filled }, [bytes]);
    this.#batch = new Uint8Array(0);
    this.#filled = 0;
  }

  #post(input: BuildInput, transfer: ArrayBuffer[] = []): void {
    this.#worker.postMessage(input, transfer);
  }

  async #buffer(): Promise<ArrayBuffer> {
    for (;;) {
      if (this.#isOver) await this.outcome;
      const free = this.#free.pop();
      if (free !== undefined) return free;
      if (this.#allocated < batchesMax) {
        this.#allocated++;
        return new ArrayBuffer(batchBytes);
      }
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }
}
