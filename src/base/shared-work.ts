/** Work that several callers wait for, and that is given up when the last of them has left. */
import { abortable } from "./concurrency.ts";
import { ClipError } from "./errors.ts";

interface Work<Value> {
  promise: Promise<Value>;
  controller: AbortController;
  waiters: number;
}

/** Runs one piece of work per key however many ask for it; see the module. */
export class SharedWork<Value> {
  readonly #running = new Map<string, Work<Value>>();
  #closed = false;

  /**
   * The outcome of the work that is under way for `key`, or of `work`, which is then started. The
   * signal that `work` gets fires when nobody waits any longer.
   * @throws ClipError ABORTED when the caller's own signal fires first
   */
  async run(
    key: string,
    work: (signal: AbortSignal) => Promise<Value>,
    signal?: AbortSignal,
  ): Promise<Value> {
    if (this.#closed) throw new ClipError("CLOSED", "clip is stopping");
    const shared = this.#running.get(key) ?? this.#start(key, work);
    shared.waiters++;
    try {
      return await abortable(shared.promise, signal);
    } finally {
      shared.waiters--;
      if (shared.waiters === 0) {
        // Whoever comes now starts anew instead of joining work that is being given up.
        if (this.#running.get(key) === shared) this.#running.delete(key);
        shared.controller.abort();
      }
    }
  }

  /** How many pieces of work are under way. */
  get size(): number {
    return this.#running.size;
  }

  /** Gives everything up and waits for it to end. */
  async close(): Promise<void> {
    this.#closed = true;
    const running = [...this.#running.values()];
    for (const { controller } of running) controller.abort();
    await Promise.allSettled(running.map(({ promise }) => promise));
  }

  #start(key: string, work: (signal: AbortSignal) => Promise<Value>): Work<Value> {
    const controller = new AbortController();
    const shared: Work<Value> = { promise: work(controller.signal), controller, waiters: 0 };
    // The last waiter may have left before it fails.
    shared.promise
      .catch(() => {})
      .finally(() => {
        if (this.#running.get(key) === shared) this.#running.delete(key);
      });
    this.#running.set(key, shared);
    return shared;
  }
}
