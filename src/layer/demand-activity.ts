/** Knows whether anyone is waiting for a layer, so that background work can make way. */
import { setTimeout as sleep } from "node:timers/promises";

/** How long nobody must have waited before background work goes on. */
const quietMs = 25;
/** How long background work makes way at most: it must get on at some time. */
const patienceMs = 5_000;
/** The same for work that has not begun, and that takes as much of the processor as a pull. */
const calmMs = 1_000;
const calmPatienceMs = 60_000;

/** Counts what someone waits for: reads that have not been answered yet, and whole pulls. */
export class DemandActivity {
  #waiting = 0;
  #lastAt = -Infinity;

  /** A read or a pull begins; call what is returned when it has been answered. */
  enter(): () => void {
    this.#waiting++;
    return () => {
      this.#waiting--;
      this.#lastAt = performance.now();
    };
  }

  /**
   * Waits until nobody is waiting, or patience has come to an end.
   * @throws AbortError when the signal fires
   */
  quiet(signal: AbortSignal): Promise<void> {
    return this.#still(quietMs, patienceMs, signal);
  }

  /**
   * Waits until nobody has been waiting for a while: containers come up in bursts of pulls and reads.
   * @throws AbortError when the signal fires
   */
  calm(signal: AbortSignal): Promise<void> {
    return this.#still(calmMs, calmPatienceMs, signal);
  }

  async #still(forMs: number, atMostMs: number, signal: AbortSignal): Promise<void> {
    const deadline = performance.now() + atMostMs;
    for (;;) {
      const now = performance.now();
      if (now >= deadline || (this.#waiting === 0 && now - this.#lastAt >= forMs)) return;
      await sleep(forMs, undefined, { signal });
    }
  }
}
