/** The layers that a FUSE session is to serve, from before it is open. */
import type { FuseLayer } from "../fuse/session.ts";
import type { LayerSession } from "../layer/active-layers.ts";

/**
 * Takes layers before there is a session, so that the session can know all of them when it answers
 * its first request; passes them on afterwards.
 */
export class ServedLayers implements LayerSession {
  readonly #early = new Map<number, FuseLayer>();
  #session: LayerSession | undefined;

  /** The layers that have been added so far; for the session that is about to open. */
  early(): FuseLayer[] {
    return [...this.#early.values()];
  }

  /** Everything goes to this session from now on. It knows those of {@link ServedLayers.early}. */
  attach(session: LayerSession): void {
    this.#session = session;
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
