/** When each span of a layer was last used, as far as that can be told for nothing. */

/**
 * Readers mark a span, which costs them one byte in memory that they share; now and then the marks
 * are turned into a time. So a time is the one at which a use was noticed, a little after the use.
 */
export class SpanUse {
  /** Non-zero where a span has been read since the last {@link collect}; over shared memory. */
  readonly marks: Uint8Array;
  readonly #usedAt: Float64Array;

  /** @param since when all spans were last used, in milliseconds since 1970 */
  constructor(spanCount: number, since: number) {
    this.marks = new Uint8Array(new SharedArrayBuffer(spanCount));
    this.#usedAt = new Float64Array(spanCount).fill(since);
  }

  /** The spans `first` to `last` are being used. */
  mark(first: number, last = first): void {
    this.marks.fill(1, first, last + 1);
  }

  /** A span was used at `now`. */
  note(span: number, now: number): void {
    this.#usedAt[span] = now;
  }

  /** When a span was last used, as of the last {@link collect}. */
  usedAt(span: number): number {
    return this.#usedAt[span] ?? 0;
  }

  /** Takes every span that is marked as used at `now`. */
  collect(now: number): void {
    for (let span = 0; span < this.marks.length; span++) {
      if (this.marks[span] === 0) continue;
      // A mark set between these lines is lost; its span is as new as it can be anyway.
      this.marks[span] = 0;
      this.#usedAt[span] = now;
    }
  }
}
