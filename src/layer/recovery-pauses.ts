/** How long layers are left alone after they were had anew, or could not be. */

/** After an attempt that helped, and after the first one that did not; each more doubles it. */
const pauseMsMin = 60_000;
const pauseMsMax = 60 * 60_000;

/** Remembers the last attempt for each layer, by its number. */
export class RecoveryPauses {
  readonly #now: () => number;
  readonly #pauses = new Map<number, { until: number; pauseMs: number }>();

  /** @param now Milliseconds on a clock that nobody sets. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Whether an attempt may be made. */
  isOver(number: number): boolean {
    const pause = this.#pauses.get(number);
    return pause === undefined || this.#now() >= pause.until;
  }

  /** An attempt has helped. */
  succeeded(number: number): void {
    this.#set(number, pauseMsMin);
  }

  /** An attempt has failed. */
  failed(number: number): void {
    const before = this.#pauses.get(number)?.pauseMs ?? pauseMsMin / 2;
    this.#set(number, Math.min(2 * before, pauseMsMax));
  }

  #set(number: number, pauseMs: number): void {
    this.#pauses.set(number, { until: this.#now() + pauseMs, pauseMs });
  }
}
