/** The FUSE threads, as the main thread sees them. */
import { setTimeout as delay } from "node:timers/promises";
import { MessageChannel, Worker, type MessagePort } from "node:worker_threads";
import { describeError } from "../base/errors.ts";
import { enableInterrupts, interruptThread } from "../os/interrupt.ts";
import type { Log } from "../telemetry/log.ts";
import type { FuseLayer } from "./layer.ts";
import { SessionMemory, ThreadMemory, type LayerMessage, type ThreadMessage } from "./messages.ts";

/** What {@link FuseThreads} needs. */
export interface FuseThreadsOptions {
  /** /dev/fuse, open in this process. */
  descriptor: number;
  count: number;
  noOpen: boolean;
  onMessage(message: ThreadMessage): void;
  /** Whether this request was handed over and has not been answered. */
  isPending(unique: bigint): boolean;
  /** Two threads died of this request, one after the other. Must answer it; must not throw. */
  onLost(unique: bigint): void;
  log: Log;
}

interface Slot {
  readonly memory: ThreadMemory;
  port: MessagePort | undefined;
  /** Whether a thread runs, or is about to run again. */
  running: boolean;
}

/** How long a thread that died stays dead, so that one that always dies does no harm. */
const restartMilliseconds = 100;
/** How often threads that are to end are interrupted. */
const interruptMilliseconds = 2;

/** Starts, restarts and ends the FUSE threads, and tells them the layers. */
export class FuseThreads {
  readonly #options: FuseThreadsOptions;
  readonly #session = new SessionMemory();
  readonly #layers = new Map<number, FuseLayer>();
  readonly #slots: Slot[];
  readonly #startedSeconds = Math.floor(Date.now() / 1000);
  #over = false;

  constructor(options: FuseThreadsOptions) {
    this.#options = options;
    this.#slots = Array.from({ length: options.count }, () => ({
      memory: new ThreadMemory(),
      port: undefined,
      running: false,
    }));
  }

  /** Starts the threads. The connection must have been made: reading earlier fails. */
  start(): void {
    enableInterrupts();
    for (const slot of this.#slots) void this.#run(slot);
  }

  hasLayer(number: number): boolean {
    return this.#layers.has(number);
  }

  /** From the next request on every thread serves the layer, in place of one of the same number. */
  addLayer(layer: FuseLayer): void {
    this.#layers.set(layer.number, layer);
    this.#tell({ kind: "add", layer });
  }

  /** From the next request on no thread knows the layer. */
  removeLayer(number: number): void {
    if (this.#layers.delete(number)) this.#tell({ kind: "remove", number });
  }

  /** How often each opcode was counted, over all threads. */
  counts(): number[] {
    return this.#slots
      .map(({ memory }) => memory.counts)
      .reduce<number[]>((sums, counts) => counts.map((count, at) => count + (sums[at] ?? 0)), []);
  }

  /**
   * Ends the threads; each settles what it has in its hand first.
   * @returns whether all have ended within `milliseconds`
   */
  async stop(milliseconds: number): Promise<boolean> {
    this.#session.stop();
    const deadline = performance.now() + milliseconds;
    while (this.#slots.some(({ running }) => running) && performance.now() < deadline) {
      this.#interrupt();
      await delay(interruptMilliseconds);
    }
    return !this.#slots.some(({ running }) => running);
  }

  /**
   * Does the same while the process exits. Without it the process could not end: it would wait
   * for a read(2) that nothing interrupts.
   */
  stopNow(milliseconds: number): void {
    this.#session.stop();
    const sleeper = new Int32Array(new SharedArrayBuffer(4));
    const deadline = performance.now() + milliseconds;
    while (this.#slots.some(({ memory }) => memory.threadId !== 0)) {
      if (performance.now() > deadline) return;
      this.#interrupt();
      Atomics.wait(sleeper, 0, 0, interruptMilliseconds);
    }
  }

  #interrupt(): void {
    for (const { memory } of this.#slots) {
      const { threadId } = memory;
      if (threadId !== 0) interruptThread(threadId);
    }
  }

  /** Runs one thread, again and again, until it ends on its own accord. */
  async #run(slot: Slot): Promise<void> {
    slot.running = true;
    let lost = 0n;
    while (!this.#over && !this.#session.stopping) {
      const failure = await this.#runOnce(slot);
      slot.memory.threadId = 0;
      if (failure === undefined) continue;
      this.#options.log.error({ error: failure }, "a FUSE thread died, another takes its place");
      lost = this.#takeFrom(slot, lost);
      await delay(restartMilliseconds);
    }
    slot.running = false;
  }

  /**
   * Leaves what a thread had in its hand when it died to the next one, unless it was handed over, or
   * is what the thread before died of: `lost`.
   * @returns the request that the next thread begins with; 0 if none
   */
  #takeFrom({ memory }: Slot, lost: bigint): bigint {
    const { inHand } = memory;
    if (inHand === 0n) return 0n;
    if (inHand !== lost && !this.#options.isPending(inHand)) return inHand;
    memory.settle();
    if (inHand === lost) this.#options.onLost(inHand);
    return 0n;
  }

  /** Runs one thread; returns why it died, or undefined if it ended as it should. */
  async #runOnce(slot: Slot): Promise<string | undefined> {
    const { port1, port2 } = new MessageChannel();
    const { descriptor, noOpen } = this.#options;
    const worker = new Worker(new URL("thread.ts", import.meta.url), {
      name: "fuse",
      workerData: {
        descriptor,
        noOpen,
        port: port2,
        layers: [...this.#layers.values()],
        session: this.#session.buffer,
        thread: slot.memory.buffer,
        startedSeconds: this.#startedSeconds,
      },
      transferList: [port2],
    });
    slot.port = port1;
    let failure: string | undefined;
    worker.on("message", (message: ThreadMessage) => {
      if (message.kind === "ended") this.#over = true;
      this.#options.onMessage(message);
    });
    worker.on("error", (error) => (failure = describeError(error)));
    const code = await new Promise<number>((resolve) => worker.once("exit", resolve));
    port1.close();
    slot.port = undefined;
    return failure ?? (code === 0 ? undefined : `exit code ${code}`);
  }

  #tell(message: LayerMessage): void {
    for (const { port } of this.#slots) port?.postMessage(message);
    this.#session.advance();
  }
}
