/** A source of an index that can be replaced by a better one while it is being read. */
import type { IndexSource } from "./reader.ts";

/** Reads from one source, and from another one with the same content once there is one. */
export class SwitchingSource implements IndexSource {
  readonly size: number;
  #source: IndexSource;
  #closed = false;

  constructor(source: IndexSource) {
    this.size = source.size;
    this.#source = source;
  }

  read(offset: number, length: number, signal?: AbortSignal): Promise<Buffer> {
    return this.#source.read(offset, length, signal);
  }

  /** Takes over `source`, and closes it with this one; at once, if this one is closed already. */
  async switchTo(source: IndexSource): Promise<void> {
    if (this.#closed) {
      await source.close?.();
      return;
    }
    // What reads from the one before goes on: nothing that is replaced here needs closing.
    this.#source = source;
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#source.close?.();
  }
}
