/** The threads that build layer indexes, seen from the thread that wants them. */
import { Worker } from "node:worker_threads";
import { workerFailure } from "../base/worker-failure.ts";
import {
  type BuildInput,
  type BuildOrder,
  type BuildOutput,
  packError,
  unpackError,
} from "./build-messages.ts";

const batchBytes = 1024 * 1024;
const batchesMax = 8;
const idleThreadsMax = 2;
const idleMs = 5_000;

// A thread takes longer to start than a small layer to index, and layers come in bunches: threads
// that have nothing to do are kept for a moment. They keep no process from ending.
const idleThreads: BuildThread[] = [];

/** A thread that works on one build at a time. */
export class BuildThread {
  readonly #worker: Worker;
  #onOutput: (output: BuildOutput) => void = () => {};
  #isDead = false;
  #idleTimer: NodeJS.Timeout | undefined;

  private constructor() {
    this.#worker = new Worker(new URL("./build-worker.ts", import.meta.url));
    this.#worker.on("message", (output: BuildOutput) => this.#onOutput(output));
    const die = (error: unknown) => {
      this.#isDead = true;
      this.#leaveIdle();
      this.#onOutput({ kind: "failed", error: packError(error) });
    };
    this.#worker.once("error", (error) => die(workerFailure(error, "indexing a layer")));
    this.#worker.once("exit", () => die(new Error("the build thread has ended")));
  }

  /** An idle thread, or a new one. */
  static take(): BuildThread {
    const thread = idleThreads.pop() ?? new BuildThread();
    clearTimeout(thread.#idleTimer);
    thread.#worker.ref();
    return thread;
  }

  /** Begins a build. The thread is to be {@link release}d when that has been answered. */
  begin(order: BuildOrder, onOutput: (output: BuildOutput) => void): void {
    this.#onOutput = onOutput;
    this.post({ kind: "begin", order });
  }

  post(input: BuildInput, transfer: ArrayBuffer[] = []): void {
    this.#worker.postMessage(input, transfer);
  }

  /** Gives the thread back. */
  release(): void {
    this.#onOutput = () => {};
    this.#worker.unref();
    if (this.#isDead) return;
    idleThreads.push(this);
    const end = () => {
      this.#leaveIdle();
      void this.#worker.terminate();
    };
    this.#idleTimer = setTimeout(end, idleMs).unref();
    if (idleThreads.length > idleThreadsMax) end();
  }

  #leaveIdle(): void {
    clearTimeout(this.#idleTimer);
    const position = idleThreads.indexOf(this);
    if (position >= 0) idleThreads.splice(position, 1);
  }
}

/** One build, from its order to its answer. */
export class Build {
  /** The encoded index, or why there is none. */
  readonly outcome: Promise<Buffer>;
  readonly #thread: BuildThread;
  readonly #stop: Int32Array;
  readonly #free: ArrayBuffer[] = [];
  #batch: Uint8Array = new Uint8Array(0);
  #filled = 0;
  #allocated = 0;
  #isOver = false;
  #wake: () => void = () => {};

  constructor(
    order: Omit<BuildOrder, "stop">,
    onProgress: ((compressedBytes: number) => void) | undefined,
  ) {
    const stop = new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
    this.#stop = new Int32Array(stop);
    this.#thread = BuildThread.take();
    this.outcome = new Promise((resolve, reject) => {
      let taken = 0;
      this.#thread.begin({ ...order, stop }, (output) => {
        if (output.kind === "taken") {
          if (output.bytes !== undefined) this.#free.push(output.bytes);
          onProgress?.((taken += output.compressedBytes));
        } else {
          this.#isOver = true;
          if (output.kind === "done") resolve(Buffer.from(output.encoded));
          else reject(unpackError(output.error));
        }
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
    this.#thread.post({ kind: "end" });
  }

  /** Makes the build fail with ABORTED as soon as it looks, unless it has been answered. */
  stop(): void {
    Atomics.store(this.#stop, 0, 1);
    // It may be waiting for input.
    if (!this.#isOver) this.#thread.post({ kind: "end" });
  }

  /** Ends the build if it goes on, and waits for that. */
  async close(): Promise<void> {
    if (!this.#isOver) this.stop();
    await this.outcome.catch(() => {});
    this.#thread.release();
  }

  #send(): void {
    const bytes = this.#batch.buffer as ArrayBuffer;
    this.#thread.post({ kind: "bytes", bytes, length: this.#filled }, [bytes]);
    this.#batch = new Uint8Array(0);
    this.#filled = 0;
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
