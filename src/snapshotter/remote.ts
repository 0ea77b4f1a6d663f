/**
 * containerd's handshake for remote snapshots: a Prepare that names a chainID is answered with
 * ALREADY_EXISTS once a committed snapshot stands for that chainID, and containerd fetches nothing.
 */
import { isDigest } from "../base/digest.ts";
import { ClipError, describeError, isClipError } from "../base/errors.ts";
import { SharedWork } from "../base/shared-work.ts";
import type { LayerTarget } from "../layer/target.ts";
import type { Log } from "../telemetry/log.ts";
import { PullsAhead } from "./pulls-ahead.ts";
import type { LayerResolver, RemoteLayers } from "./remote-layers.ts";
import { remoteLabel, type Labels } from "./snapshot.ts";
import type { SnapshotStore } from "./store.ts";

/** A Prepare that carries a ref. */
export interface RemotePrepare {
  namespace: string;
  /** "" for none. */
  parent: string;
  /** The chainID. */
  ref: string;
  labels: Labels;
}

/** Why a layer is unpacked by containerd instead: one word for metrics, or an error code. */
export type FallbackReason =
  | "ref_not_a_digest"
  | "parent_not_lazy"
  | "image_unknown"
  | "content_local"
  | "defect"
  | Lowercase<ClipError["code"]>;

/** How a Prepare with a ref ended. */
export type RemoteOutcome =
  { ready: true } | { ready: false; reason: FallbackReason; error?: unknown };

/** What {@link RemoteHandshake} works with. */
export interface RemoteOptions {
  store: SnapshotStore;
  layers: RemoteLayers;
  resolver: LayerResolver;
  log: Log;
}

/** Brings committed remote snapshots into being, one for each (parent, ref). */
export class RemoteHandshake {
  readonly #store: SnapshotStore;
  readonly #layers: RemoteLayers;
  readonly #resolver: LayerResolver;
  readonly #log: Log;
  readonly #work = new SharedWork<RemoteOutcome>();
  readonly #ahead: PullsAhead;
  // Layers that are ready, but not yet referred to by the snapshot that is being made.
  readonly #pinned = new Map<number, number>();
  // Layers that nothing referred to at the last sweep.
  #unused: ReadonlySet<number> = new Set();

  constructor({ store, layers, resolver, log }: RemoteOptions) {
    this.#store = store;
    this.#layers = layers;
    this.#ahead = new PullsAhead(layers);
    this.#resolver = resolver;
    this.#log = log;
  }

  /**
   * Makes sure that there is a committed snapshot for (parent, ref), or says why there cannot be.
   * @throws ClipError ABORTED, and what the store finds wrong with the parent
   */
  async prepare(request: RemotePrepare, signal: AbortSignal): Promise<RemoteOutcome> {
    const { parent, ref } = request;
    if (this.#isThere(request) && (await this.#stays(request))) return { ready: true };
    // The client has begun to fetch all the layers above the first one that it had to unpack.
    if (parent !== "" && this.#store.get(parent).layer === undefined) {
      return { ready: false, reason: "parent_not_lazy" };
    }
    const key = JSON.stringify([parent, ref]);
    return this.#work.run(key, (shared) => this.#establish(request, shared), signal);
  }

  /**
   * Gives back layers that have been made ready for longer than from the sweep before to this one,
   * and that no snapshot has come to refer to: their pull was given up.
   */
  sweep(): void {
    // A pull that takes long needs the upper layers in the end.
    const unused =
      this.#work.size > 0 ? [] : this.#layers.numbers().filter((layer) => !this.#isUsed(layer));
    for (const layer of unused) if (this.#unused.has(layer)) this.releaseUnused(layer);
    this.#unused = new Set(unused);
  }

  /** To be told that a snapshot that referred to `layer` is gone. */
  releaseUnused(layer: number): void {
    if (!this.#isUsed(layer)) this.#layers.release(layer);
  }

  /** Gives up what is under way, and waits for it to end. */
  async close(): Promise<void> {
    await this.#work.close();
  }

  #isThere({ parent, ref }: RemotePrepare): boolean {
    return this.#store.findRemote(parent, ref) !== undefined;
  }

  /** Whether it still is when what is being written is on disk. */
  async #stays(request: RemotePrepare): Promise<boolean> {
    await this.#store.settled();
    return this.#isThere(request);
  }

  async #establish(request: RemotePrepare, signal: AbortSignal): Promise<RemoteOutcome> {
    // A call before this one may have finished meanwhile.
    if (this.#isThere(request) && (await this.#stays(request))) return { ready: true };
    let layer: number | FallbackReason;
    try {
      layer = await this.#readyLayer(request, signal);
    } catch (error) {
      // Nobody waits any more, or clip is stopping: that is no reason to let containerd unpack.
      if (signal.aborted)
        throw new ClipError("ABORTED", "the Prepare was given up", { cause: error });
      return { ready: false, reason: reasonOf(error), error };
    }
    if (typeof layer !== "number") return { ready: false, reason: layer };
    try {
      await this.#store.createRemote({
        parent: request.parent,
        ref: request.ref,
        labels: new Map([...request.labels, [remoteLabel, "clip"]]),
        layer,
      });
      return { ready: true };
    } finally {
      this.#unpin(layer);
    }
  }

  /** The number of the mounted layer, pinned; or why there is none. */
  async #readyLayer(
    { namespace, parent, ref, labels }: RemotePrepare,
    signal: AbortSignal,
  ): Promise<number | FallbackReason> {
    if (!isDigest(ref)) return "ref_not_a_digest";
    const image = await this.#resolver.resolve({ namespace, chainId: ref, labels }, signal);
    const target = image?.layers[image.position];
    if (image === undefined || target === undefined) return "image_unknown";
    const { manifestDigest } = target;
    if (image.contentIsLocal) {
      this.#giveUpAhead(manifestDigest);
      return "content_local";
    }
    this.#ahead.note(manifestDigest, image.position, image.layers);
    try {
      return await this.#mountedLayer(target, parent, signal);
    } catch (error) {
      // The client unpacks this layer and those above it.
      if (!signal.aborted) this.#giveUpAhead(manifestDigest);
      throw error;
    }
  }

  async #mountedLayer(target: LayerTarget, parent: string, signal: AbortSignal): Promise<number> {
    const layer = await this.#layers.ensure(target, signal);
    this.#pinned.set(layer, (this.#pinned.get(layer) ?? 0) + 1);
    try {
      await this.#layers.checkOver(layer, this.#layersFrom(parent));
      const { path } = await this.#layers.mount(layer);
      signal.throwIfAborted();
      this.#log.debug({ layer: target.layerDigest, number: layer, path }, "layer is mounted");
      return layer;
    } catch (error) {
      this.#unpin(layer);
      throw error;
    }
  }

  #giveUpAhead(manifest: string): void {
    for (const layer of this.#ahead.giveUp(manifest)) this.releaseUnused(layer);
  }

  /** The layers of a snapshot and those below it, the topmost first. */
  #layersFrom(name: string): number[] {
    if (name === "") return [];
    const snapshot = this.#store.get(name);
    return [snapshot, ...this.#store.ancestors(snapshot)].flatMap(({ layer }) => layer ?? []);
  }

  #isUsed(layer: number): boolean {
    return this.#store.layerReferences(layer) > 0 || this.#pinned.has(layer);
  }

  #unpin(layer: number): void {
    const pins = (this.#pinned.get(layer) ?? 0) - 1;
    if (pins > 0) this.#pinned.set(layer, pins);
    else this.#pinned.delete(layer);
    this.releaseUnused(layer);
  }
}

function reasonOf(error: unknown): FallbackReason {
  return isClipError(error) ? (error.code.toLowerCase() as Lowercase<ClipError["code"]>) : "defect";
}

/** The line that tells why a layer is not served on demand. */
export function describeFallback(outcome: Extract<RemoteOutcome, { ready: false }>): string {
  return "error" in outcome ? describeError(outcome.error) : outcome.reason.replaceAll("_", " ");
}
