/** A limit on the bytes that are in memory for layers that are being fetched. */
import { ClipError } from "../base/errors.ts";

/** Gives bytes back to the budget they came from; calling it again does nothing. */
export type Release = () => void;

interface Waiter {
  bytes: number;
  grant(): void;
}

/**
 * Hands out bytes in the order in which they are asked for. A request that is larger than the whole
 * budget is granted once nothing else is out, so that it only has to wait.
 */
export class ByteBudget {
  readonly limit: number;
  #used = 0;
  readonly #waiting: Waiter[] = [];

  constructor(limit: number) {
    this.limit = limit;
  }

  /** Bytes that are out. */
  get used(): number {
    return this.#used;
  }

  /**
   * Waits until `bytes` can be had.
   * @throws ClipError ABORTED when the signal fires first
   */
  async acquire(bytes: number, signal: AbortSignal): Promise<Release> {
    if (this.#waiting.length === 0 && this.#fits(bytes)) return this.#take(bytes);
    return new Promise((resolve, reject) => {
      const waiter: Waiter = {
        bytes,
        grant: () => {
          signal.removeEventListener("abort", onAbort);
          resolve(this.#take(bytes));
        },
      };
      const onAbort = () => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
        reject(new ClipError("ABORTED", "the fetch was given up", { cause: signal.reason }));
        this.#grantWaiting();
      };
      if (signal.aborted) {
        reject(new ClipError("ABORTED", "the fetch was given up", { cause: signal.reason }));
        return;
      }
      signal.addEventListener("abort", onAbort, { once: true });
      this.#waiting.push(waiter);
    });
  }

  /** Whether `bytes` could be had at once, with half of the budget left for more urgent work. */
  hasRoom(bytes: number): boolean {
    return this.#waiting.length === 0 && this.#used + bytes <= this.limit / 2;
  }

  #fits(bytes: number): boolean {
    return this.#used === 0 || this.#used + bytes <= this.limit;
  }

  #take(bytes: number): Release {
    this.#used += bytes;
    let released = false;
    return () => {
      if (released) return;
      released = true;
      this.#used -= bytes;
      this.#grantWaiting();
    };
  }

  #grantWaiting(): void {
    for (;;) {
      const next = this.#waiting[0];
      if (next === undefined || !this.#fits(next.bytes)) return;
      this.#waiting.shift();
      next.grant();
    }
  }
}
