/** Knows whether anyone is waiting for a read, so that background work can make way. */
import { setTimeout as sleep } from "node:timers/promises";

/** How long nobody must have waited before background work goes on. */
const quietMs = 25;
/** How long background work makes way at most: it must get on at some time. */
const patienceMs = 5_000;

/** Counts the reads of all layers that have not been answered yet. */
export class DemandActivity {
  #reads = 0;
  #lastAt = -Infinity;

  /** A read begins; call what is returned when it has been answered. */
  enter(): () => void {
    this.#reads++;
    return () => {
      this.#reads--;
      this.#lastAt = performance.now();
    };
  }

  /**
   * Waits until nobody is waiting, or patience has come to an end.
   * @throws AbortError when the signal fires
   */
  async quiet(signal: AbortSignal): Promise<void> {
    const deadline = performance.now() + patienceMs;
    for (;;) {
      const now = performance.now();
      if (now >= deadline || (this.#reads === 0 && now - this.#lastAt >= quietMs)) return;
      await sleep(quietMs, undefined, { signal });
    }
  }
}
