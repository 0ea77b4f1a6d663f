/** Small building blocks for concurrent work. */
import { ClipError } from "./errors.ts";

/**
 * Runs one piece of work per key however many ask for it at the same time; all get its outcome.
 * The work must not depend on one caller's abort signal, since others may be waiting for it.
 */
export class SingleFlight<Value> {
  readonly #running = new Map<string, Promise<Value>>();

  /** The outcome of the work that is under way for `key`, or of `work`, which is then started. */
  run(key: string, work: () => Promise<Value>): Promise<Value> {
    const running = this.#running.get(key);
    if (running !== undefined) return running;
    const started = work().finally(() => this.#running.delete(key));
    this.#running.set(key, started);
    return started;
  }

  /** How many keys are being worked on. */
  get size(): number {
    return this.#running.size;
  }
}

/** Lets at most `permits` pieces of work run at a time; the others wait in order. */
export class Semaphore {
  readonly #permits: number;
  #free: number;
  readonly #waiting = new Set<() => void>();

  constructor(permits: number) {
    this.#permits = permits;
    this.#free = permits;
  }

  /** How many pieces of work are under way. */
  get running(): number {
    return this.#permits - this.#free;
  }

  /** How many wait for their turn. */
  get waiting(): number {
    return this.#waiting.size;
  }

  /**
   * Runs `work` once a permit is free.
   * @throws ClipError ABORTED when `signal` fires before that; afterwards what `work` throws
   */
  async run<Value>(work: () => Promise<Value>, signal?: AbortSignal): Promise<Value> {
    await this.#turn(signal);
    try {
      return await work();
    } finally {
      this.#release();
    }
  }

  #release(): void {
    const [next] = this.#waiting;
    if (next === undefined) this.#free++;
    else next();
  }

  async #turn(signal: AbortSignal | undefined): Promise<void> {
    if (this.#free > 0) {
      this.#free--;
      return;
    }
    let take: () => void = () => {};
    const turn = new Promise<void>((resolve) => {
      take = () => {
        this.#waiting.delete(take);
        resolve();
      };
      this.#waiting.add(take);
    });
    try {
      await abortable(turn, signal);
    } catch (error) {
      // A turn that has been given just before is passed on.
      if (!this.#waiting.delete(take)) this.#release();
      throw error;
    }
  }
}

/**
 * Waits for `promise`, but no longer than `signal` allows.
 * @throws ClipError ABORTED when the signal fires first; the promise itself goes on.
 */
export async function abortable<Value>(
  promise: Promise<Value>,
  signal?: AbortSignal,
): Promise<Value> {
  if (signal === undefined) return promise;
  let onAbort: () => void = () => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () =>
      reject(new ClipError("ABORTED", "the caller gave up", { cause: signal.reason }));
    if (signal.aborted) onAbort();
    else signal.addEventListener("abort", onAbort, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
