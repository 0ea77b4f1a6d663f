/** What is made ready ahead of the Prepares of a pull, so that it can be given up with the pull. */
import type { LayerTarget } from "../layer/target.ts";
import type { RemoteLayers } from "./remote-layers.ts";

const pullsMax = 1024;

/** A pull of an image. */
interface Pull {
  /** Position of the layer of which the latest Prepare was. */
  position: number;
  controller: AbortController;
  /** Layers that are ready. */
  ready: Set<number>;
}

/** The pulls of images, by the digest of the manifest; see the module. */
export class PullsAhead {
  readonly #layers: Pick<RemoteLayers, "prefetch">;
  readonly #pulls = new Map<string, Pull>();

  constructor(layers: Pick<RemoteLayers, "prefetch">) {
    this.#layers = layers;
  }

  /**
   * Takes note of a Prepare of the layer at `position`. The first of a pull starts what it and the
   * layers above it need; it is the first unless the one before it was of a lower layer.
   */
  note(manifest: string, position: number, layers: readonly LayerTarget[]): void {
    const known = this.#pulls.get(manifest);
    this.#pulls.delete(manifest);
    const isFirst = known === undefined || position <= known.position;
    const pull =
      known !== undefined && !isFirst
        ? known
        : { position, controller: new AbortController(), ready: new Set<number>() };
    pull.position = position;
    this.#pulls.set(manifest, pull);
    const [oldest] = this.#pulls.keys();
    if (this.#pulls.size > pullsMax && oldest !== undefined) this.#pulls.delete(oldest);
    if (isFirst) for (const layer of layers.slice(position)) void this.#start(layer, pull);
  }

  /**
   * The image is unpacked by the client: what is still being made ready for it is given up.
   * @returns layers that are ready and that no other pull has asked for
   */
  giveUp(manifest: string): number[] {
    const pull = this.#pulls.get(manifest);
    if (pull === undefined) return [];
    this.#pulls.delete(manifest);
    pull.controller.abort();
    const others = [...this.#pulls.values()];
    return [...pull.ready].filter((layer) => !others.some(({ ready }) => ready.has(layer)));
  }

  async #start(layer: LayerTarget, { controller: { signal }, ready }: Pull): Promise<void> {
    const number = await this.#layers.prefetch(layer, signal);
    if (number !== undefined) ready.add(number);
  }
}
