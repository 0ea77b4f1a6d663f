/** The data files of layers as one FUSE thread reads them. */
import { closeSync, openSync, readSync } from "node:fs";
import type { FuseLayer } from "./layer.ts";

/** How many data files a thread keeps open. */
const openFilesMax = 256;

/**
 * Keeps data files open, the most recently used ones. Every thread has its own descriptors, so
 * that none is closed, and its number used for another file, while another thread reads from it.
 */
export class DataFiles {
  // In order of use: a Map iterates in order of insertion.
  readonly #descriptors = new Map<number, number>();

  /** Fills `target` from `offset` of the layer's data file; false if that did not work. */
  read(layer: FuseLayer, offset: number, target: Buffer): boolean {
    try {
      const descriptor = this.#open(layer);
      let done = 0;
      while (done < target.length) {
        const read = readSync(descriptor, target, done, target.length - done, offset + done);
        if (read === 0) return false;
        done += read;
      }
      return true;
    } catch {
      // The owner of the layer gets the request instead, finds the same, and knows what to do.
      this.close(layer.number);
      return false;
    }
  }

  /** Closes the file of a layer. */
  close(number: number): void {
    const descriptor = this.#descriptors.get(number);
    if (descriptor === undefined) return;
    this.#descriptors.delete(number);
    closeSync(descriptor);
  }

  #open(layer: FuseLayer): number {
    const { number } = layer;
    const known = this.#descriptors.get(number);
    if (known !== undefined) {
      this.#descriptors.delete(number);
      this.#descriptors.set(number, known);
      return known;
    }
    for (const oldest of this.#descriptors.keys()) {
      if (this.#descriptors.size < openFilesMax) break;
      this.close(oldest);
    }
    const descriptor = openSync(layer.dataPath, "r");
    this.#descriptors.set(number, descriptor);
    return descriptor;
  }
}
