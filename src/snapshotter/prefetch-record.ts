/** Remembers which pulls of images have been seen, so that each starts its prefetches once. */

const imagesMax = 1024;

/** A Prepare of a layer is the first of a pull unless the one before it was of a lower layer. */
export class PrefetchRecord {
  readonly #positions = new Map<string, number>();

  /** Whether a Prepare of the layer at `position` begins a pull of the image; notes it down. */
  isNew(image: string, position: number): boolean {
    const last = this.#positions.get(image);
    this.#positions.delete(image);
    this.#positions.set(image, position);
    if (this.#positions.size > imagesMax) {
      const [oldest] = this.#positions.keys();
      if (oldest !== undefined) this.#positions.delete(oldest);
    }
    return last === undefined || position <= last;
  }
}
