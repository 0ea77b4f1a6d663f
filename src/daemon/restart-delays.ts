/** How long to wait before a daemon that died is started again. */

/**
 * A daemon that served this long was well: what kills it now is something new. One that a request
 * kills dies sooner, since that is sent again as soon as the next one serves.
 */
const wellAfterMs = 100;
const firstMs = 100;
const longestMs = 5_000;

/** Nothing at first, then more and more as long as daemons die soon after their start. */
export class RestartDelays {
  #nextMs = 0;

  /** The delay after a daemon that served for `servedMs`. */
  next(servedMs: number): number {
    if (servedMs >= wellAfterMs) this.#nextMs = 0;
    const delayMs = this.#nextMs;
    this.#nextMs = delayMs === 0 ? firstMs : Math.min(2 * delayMs, longestMs);
    return delayMs;
  }
}
