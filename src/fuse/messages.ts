/** What the session and its FUSE threads tell each other, and the memory that they share. */
import type { MessagePort } from "node:worker_threads";
import type { FuseLayer } from "./layer.ts";
import { opcodeSlots } from "./opcodes.ts";
import type { HandedRead } from "./outcome.ts";
import { requestBytesMax } from "./protocol.ts";

/**
 * Told to a thread through its port. The thread blocks in read(2) and has no event loop: it polls
 * the port whenever it sees {@link SessionMemory.generation} changed.
 */
export type LayerMessage = { kind: "add"; layer: FuseLayer } | { kind: "remove"; number: number };

/** Told by a thread. */
export type ThreadMessage =
  /** INIT has been answered. */
  | { kind: "initialized"; minor: number }
  /** The session has to answer this READ. */
  | { kind: "read"; read: HandedRead }
  | { kind: "interrupt"; target: bigint; unique: bigint }
  /** A request could not be handled; it was answered with EIO. */
  | { kind: "fault"; opcode: number; message: string }
  /** The connection is over: unmounted or aborted. */
  | { kind: "ended" };

/** What a thread starts with (`workerData`). */
export interface ThreadStart {
  /** /dev/fuse, open in this process. */
  descriptor: number;
  port: MessagePort;
  layers: FuseLayer[];
  session: SharedArrayBuffer;
  thread: SharedArrayBuffer;
  noOpen: boolean;
  /** When the session began, in seconds since 1970. */
  startedSeconds: number;
}

/** Memory that the session shares with all its threads. */
export class SessionMemory {
  readonly buffer: SharedArrayBuffer;
  readonly #words: Int32Array;

  constructor(buffer = new SharedArrayBuffer(8)) {
    this.buffer = buffer;
    this.#words = new Int32Array(buffer);
  }

  /** Counts the changes of the set of layers. */
  get generation(): number {
    return Atomics.load(this.#words, 0);
  }

  /** Tells the threads to poll their ports; the messages have to be posted before. */
  advance(): void {
    Atomics.add(this.#words, 0, 1);
  }

  /** Whether threads shall end before they read another request. */
  get stopping(): boolean {
    return Atomics.load(this.#words, 1) !== 0;
  }

  stop(): void {
    Atomics.store(this.#words, 1, 1);
  }
}

const countsOffset = 8;
const requestOffset = countsOffset + 8 * opcodeSlots;
/** Where a request says how long it is, and which one it is (struct fuse_in_header). */
const uniqueOffset = requestOffset + 8;

/** Memory that the session shares with one thread; it outlives the thread, and so does its request. */
export class ThreadMemory {
  readonly buffer: SharedArrayBuffer;
  /** What the thread has read from the kernel. */
  readonly request: Buffer;
  readonly #inHand: BigUint64Array;
  // Doubles count to 2^53; only one thread writes, and an aligned 64-bit store does not tear on
  // the machines that clip runs on.
  readonly #counts: Float64Array;

  readonly #threadId: Int32Array;

  constructor(buffer = new SharedArrayBuffer(requestOffset + requestBytesMax)) {
    this.buffer = buffer;
    this.#threadId = new Int32Array(buffer, 0, 1);
    this.#counts = new Float64Array(buffer, countsOffset, opcodeSlots);
    this.request = Buffer.from(buffer, requestOffset, requestBytesMax);
    this.#inHand = new BigUint64Array(buffer, uniqueOffset, 1);
  }

  /** The kernel's number of the thread; 0 unless it reads requests. */
  get threadId(): number {
    return Atomics.load(this.#threadId, 0);
  }

  set threadId(threadId: number) {
    Atomics.store(this.#threadId, 0, threadId);
  }

  /**
   * The request that the thread has read and neither answered nor handed over; 0 if none. The kernel
   * itself puts the number there, so there is no moment at which it is lost.
   */
  get inHand(): bigint {
    return Atomics.load(this.#inHand, 0);
  }

  /** Nothing is in hand any more. */
  settle(): void {
    Atomics.store(this.#inHand, 0, 0n);
  }

  count(opcode: number): void {
    const slot = opcode < opcodeSlots ? opcode : 0;
    this.#counts[slot] = (this.#counts[slot] ?? 0) + 1;
  }

  /** How often each opcode was counted. */
  get counts(): readonly number[] {
    return [...this.#counts];
  }
}
