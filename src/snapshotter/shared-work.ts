/** Work that several callers wait for, and that ends early only when all of them have left. */
import { abortable } from "../base/concurrency.ts";
import { ClipError } from "../base/errors.ts";

interface Running<Value> {
  outcome: Promise<Value>;
  controller: AbortController;
  waiting: number;
}

/** One piece of work per key at a time. */
export class SharedWork<Value> {
  readonly #running = new Map<string, Running<Value>>();
  #closed = false;

  /**
   * The outcome of the work for `key` that is under way, or of `start`.
   * @throws ClipError ABORTED when `signal` fires, CLOSED after {@link close}
   */
  async run(
    key: string,
    signal: AbortSignal,
    start: (signal: AbortSignal) => Promise<Value>,
  ): Promise<Value> {
    if (this.#closed) throw new ClipError("CLOSED", "clip is stopping");
    const running = this.#running.get(key) ?? this.#start(key, start);
    running.waiting++;
    try {
      return await abortable(running.outcome, signal);
    } finally {
      running.waiting--;
      if (running.waiting === 0) this.#abandon(key, running);
    }
  }

  /** Aborts what is under way. */
  close(): void {
    this.#closed = true;
    for (const [key, running] of this.#running) this.#abandon(key, running);
  }

  #start(key: string, start: (signal: AbortSignal) => Promise<Value>): Running<Value> {
    const controller = new AbortController();
    const outcome = start(controller.signal);
    const running = { outcome, controller, waiting: 0 };
    this.#running.set(key, running);
    // Those who wait see the failure; when nobody does, nobody needs to.
    const forget = () => this.#forget(key, running);
    outcome.then(forget, forget);
    return running;
  }

  #abandon(key: string, running: Running<Value>): void {
    this.#forget(key, running);
    running.controller.abort();
  }

  // Work that was given up may outlive the one that took its place.
  #forget(key: string, running: Running<Value>): void {
    if (this.#running.get(key) === running) this.#running.delete(key);
  }
}
