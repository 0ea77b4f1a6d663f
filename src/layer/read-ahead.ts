/** Notices sequential readers of a layer blob and says how far to fetch ahead of them. */

const KiB = 1024;
const MiB = 1024 * KiB;

/** Parallel readers of one layer that are told apart. */
const streamsMax = 16;
/** How far a read may be off the place where the last one ended: readahead arrives out of order. */
const slackBytes = MiB;
/** What a reader must have read in a row before anything is fetched ahead of it. */
const provenBytes = 2 * MiB;
const windowBytesMin = MiB;
const windowBytesMax = 16 * MiB;

interface Stream {
  /** Where the next read is expected to begin. */
  next: number;
  /** Up to where has been fetched ahead. */
  ahead: number;
  /** Bytes read in a row. */
  run: number;
  window: number;
}

/**
 * Follows the reads of one layer. Only reads that miss are seen: what has been fetched ahead is
 * answered without it, so a reader that turns up at the end of its window is taken to have read it.
 */
export class ReadAhead {
  /** Most recently used last. */
  readonly #streams: Stream[] = [];

  /**
   * Takes note of a read that missed.
   * @returns up to which offset to fetch ahead; `offset + length` when nothing is to be fetched
   */
  note(offset: number, length: number): number {
    const end = offset + length;
    const stream = this.#streamAt(offset);
    stream.run += length;
    stream.next = Math.max(stream.next, end);
    if (stream.run < provenBytes) return end;
    stream.window = Math.min(Math.max(stream.window * 2, windowBytesMin), windowBytesMax);
    stream.ahead = Math.max(stream.ahead, stream.next + stream.window);
    return stream.ahead;
  }

  #streamAt(offset: number): Stream {
    const at = this.#streams.findIndex(
      (stream) =>
        offset >= stream.next - slackBytes &&
        offset <= Math.max(stream.next, stream.ahead) + slackBytes,
    );
    const found = this.#streams[at] ?? { next: offset, ahead: 0, run: 0, window: 0 };
    if (at >= 0) this.#streams.splice(at, 1);
    this.#streams.push(found);
    if (this.#streams.length > streamsMax) this.#streams.shift();
    return found;
  }
}
