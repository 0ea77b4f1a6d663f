/** The layers that a FUSE session is to serve, from before it is open. */
import type { FuseLayer } from "../fuse/session.ts";
import type { LayerSession } from "../layer/active-layers.ts";

/**
 * Takes layers before there is a session, so that the session can know all of them when it answers
 * its first request; passes them on afterwards.
 */
export class ServedLayers implements LayerSession {
  readonly #early = new Map<number, FuseLayer>();
  /** What {@link ServedLayers.early} has told. */
  #told: ReadonlyMap<number, FuseLayer> = new Map();
  #session: LayerSession | undefined;

  /** The layers that have been added so far; for the session that is about to open. */
  early(): FuseLayer[] {
    this.#told = new Map(this.#early);
    return [...this.#early.values()];
  }

  /**
   * Everything goes to this session from now on, and so does what has changed since
   * {@link ServedLayers.early}, whose layers it knows.
   */
  attach(session: LayerSession): void {
    this.#session = session;
    for (const number of this.#told.keys()) {
      if (!this.#early.has(number)) session.removeLayer(number);
    }
    for (const [number, layer] of this.#early) {
      if (!this.#told.has(number)) session.addLayer(layer);
      else if (this.#told.get(number) !== layer) session.replaceLayer(layer);
    }
    this.#early.clear();
  }

  addLayer(layer: FuseLayer): void {
    if (this.#session === undefined) this.#early.set(layer.number, layer);
    else this.#session.addLayer(layer);
  }

  replaceLayer(layer: FuseLayer): void {
    if (this.#session === undefined) this.#early.set(layer.number, layer);
    else this.#session.replaceLayer(layer);
  }

  removeLayer(number: number): void {
    if (this.#session === undefined) this.#early.delete(number);
    else this.#session.removeLayer(number);
  }
}
