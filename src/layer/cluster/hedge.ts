/** How long the content cache may take until the registry is asked as well. */
import type { SourcePatience } from "../span-source.ts";

/** Answers that are looked back at. */
const recentMax = 64;
/** How many requests of the next tier a request earns, and how many may be saved up. */
const earned = 0.05;
const savedMax = 8;

/**
 * Twice what 95 of 100 recent answers took, within limits. Asking twice costs the registry bytes:
 * so at most one in twenty requests is sent twice early, the others wait for the upper limit.
 */
export class Hedge implements SourcePatience {
  readonly #msMin: number;
  readonly #msMax: number;
  readonly #recent: number[] = [];
  #at = 0;
  #allowance = 2;

  constructor(msMin: number, msMax: number) {
    this.#msMin = msMin;
    this.#msMax = Math.max(msMin, msMax);
  }

  /** An answer came after so long. */
  add(milliseconds: number): void {
    this.#recent[this.#at] = milliseconds;
    this.#at = (this.#at + 1) % recentMax;
    this.#allowance = Math.min(savedMax, this.#allowance + earned);
  }

  milliseconds(): number {
    if (this.#allowance < 1) return this.#msMax;
    const sorted = this.#recent.toSorted((a, b) => a - b);
    const usual = sorted[Math.ceil(sorted.length * 0.95) - 1] ?? 0;
    return Math.min(this.#msMax, Math.max(this.#msMin, 2 * usual));
  }

  isOverdue(waitedMs: number): boolean {
    return waitedMs >= this.#msMax;
  }

  spent(): void {
    this.#allowance = Math.max(0, this.#allowance - 1);
  }
}
