/** Work on the same thing, one piece after the other. */

/** Runs pieces of work with the same key in the order in which they come, others side by side. */
export class KeyedQueue {
  readonly #tails = new Map<string, Promise<unknown>>();

  /** Runs `work` once everything before it under this key has ended, well or not. */
  run<Value>(key: string, work: () => Promise<Value>): Promise<Value> {
    const before = this.#tails.get(key) ?? Promise.resolve();
    const mine = before.then(work);
    const tail = mine
      .catch(() => {})
      .finally(() => {
        if (this.#tails.get(key) === tail) this.#tails.delete(key);
      });
    this.#tails.set(key, tail);
    return mine;
  }

  /** Whether anything under this key is being done or waits. */
  isBusy(key: string): boolean {
    return this.#tails.has(key);
  }

  /** Waits until nothing is left to do. */
  async idle(): Promise<void> {
    while (this.#tails.size > 0) await Promise.all(this.#tails.values());
  }
}
