/** The snapshots of one clip: what containerd's Snapshots service offers, without the gRPC. */
import { join } from "node:path";
import { abortable } from "../base/concurrency.ts";
import { ClipError, describeError } from "../base/errors.ts";
import type { RootAttributes } from "../layer/layers-options.ts";
import type { Log } from "../telemetry/log.ts";
import { createRoot, SnapshotDirectories } from "./directories.ts";
import { UsageMeter } from "./disk-usage.ts";
import { updatedLabels } from "./field-mask.ts";
import { parseFilters } from "./filters.ts";
import { mountOf, type LowerDirectory, type Mount, type UpperDirectories } from "./mounts.ts";
import type { LayerResolver, RemoteLayers } from "./remote-layers.ts";
import { describeFallback, RemoteHandshake, type FallbackReason } from "./remote.ts";
import {
  hasDirectories,
  refLabel,
  type Labels,
  type Snapshot,
  type SnapshotUsage,
} from "./snapshot.ts";
import { SnapshotStore, type CommitRequest } from "./store.ts";

/** What {@link Snapshotter.open} takes. */
export interface SnapshotterOptions {
  /** Directory below which everything is kept; lower directories of layers should be there too. */
  root: string;
  log: Log;
  /** Without it every snapshot is an ordinary one. */
  remote?: { layers: RemoteLayers; resolver: LayerResolver };
  /** Told of each layer that is left to containerd to unpack, though it asked for a remote one. */
  onFallback?: (reason: FallbackReason) => void;
}

/** How many snapshots there are of each kind; those that are layers served on demand are apart. */
export type SnapshotCounts = Record<Snapshot["kind"] | "remote", number>;

/** What a new snapshot is to be. */
export interface PrepareRequest {
  key: string;
  /** "" for none. */
  parent: string;
  labels: Labels;
  /** containerd's namespace, as far as the call itself told. */
  namespace: string | undefined;
}

/** How long the usage of a snapshot that is being written may be out of date. */
const usageKeptMs = 10_000;

/** How often layers are looked for that were made ready in vain. */
const sweepMs = 10 * 60_000;

/** Reasons that are as things should be, and the one that is clip's own fault. */
const fallbackLevels: Partial<Record<FallbackReason, "info" | "error">> = {
  content_local: "info",
  parent_not_lazy: "info",
  defect: "error",
};

/** Snapshots, and the mounts they are used by. */
export class Snapshotter {
  readonly #store: SnapshotStore;
  readonly #directories: SnapshotDirectories;
  readonly #layers: RemoteLayers | undefined;
  readonly #handshake: RemoteHandshake | undefined;
  readonly #meter = new UsageMeter(usageKeptMs);
  readonly #log: Log;
  readonly #onFallback: (reason: FallbackReason) => void;
  readonly #sweeping: NodeJS.Timeout;

  private constructor(
    { remote, log, onFallback }: SnapshotterOptions,
    store: SnapshotStore,
    directories: SnapshotDirectories,
  ) {
    this.#store = store;
    this.#directories = directories;
    this.#layers = remote?.layers;
    this.#handshake = remote && new RemoteHandshake({ ...remote, store, log });
    this.#log = log;
    this.#onFallback = onFallback ?? (() => {});
    this.#sweeping = setInterval(() => this.#handshake?.sweep(), sweepMs).unref();
  }

  /** Opens the snapshots below `root`, and begins to delete what belongs to none of them. */
  static async open(options: SnapshotterOptions): Promise<Snapshotter> {
    await createRoot(options.root);
    const store = SnapshotStore.open(join(options.root, "snapshots.db"));
    const directories = new SnapshotDirectories(options.root, options.log);
    try {
      await directories.open(new Set(store.all().map(({ id }) => id)));
    } catch (error) {
      store.close();
      throw error;
    }
    return new Snapshotter(options, store, directories);
  }

  /** Numbers of the layers that snapshots refer to. */
  layersInUse(): number[] {
    return this.#store.layers();
  }

  /** How many snapshots there are. */
  counts(): SnapshotCounts {
    const counts = { active: 0, view: 0, committed: 0, remote: 0 };
    for (const { kind, layer } of this.#store.all())
      counts[layer === undefined ? kind : "remote"]++;
    return counts;
  }

  /**
   * A new active snapshot, to be written to. When the request carries a ref, and the layer it
   * stands for can be served on demand, there is a committed remote snapshot instead.
   * @throws ClipError SNAPSHOT_EXISTS also for that, SNAPSHOT_NOT_FOUND, ARGUMENT_INVALID
   */
  async prepare(request: PrepareRequest, signal: AbortSignal): Promise<Mount> {
    this.#store.checkCreate(request.key, request.parent);
    await this.#tryRemote(request, signal);
    return this.#create("active", request, signal);
  }

  /** A new read-only snapshot. @throws ClipError SNAPSHOT_EXISTS, SNAPSHOT_NOT_FOUND, ARGUMENT_INVALID */
  async view(request: PrepareRequest, signal: AbortSignal): Promise<Mount> {
    this.#store.checkCreate(request.key, request.parent);
    return this.#create("view", request, signal);
  }

  /** How to mount an active or view snapshot. @throws ClipError SNAPSHOT_NOT_FOUND, SNAPSHOT_PRECONDITION */
  async mounts(key: string, signal: AbortSignal): Promise<Mount> {
    const snapshot = this.#store.get(key);
    if (snapshot.kind === "committed") {
      throw new ClipError("SNAPSHOT_PRECONDITION", `snapshot ${JSON.stringify(key)} is committed`);
    }
    const lowers = await this.#lowers(this.#store.ancestors(snapshot), signal);
    const own = hasDirectories(snapshot) ? this.#directories.of(snapshot.id) : undefined;
    return mountOf({ own, readOnly: snapshot.kind === "view", lowers });
  }

  /** As {@link SnapshotStore.commit}. What it takes up is measured afterwards. */
  async commit(request: CommitRequest): Promise<void> {
    const committed = await this.#store.commit(request);
    this.#meter.forget(this.#directories.of(committed.id).upper);
    this.#measureCommitted(committed).catch((error: unknown) => {
      this.#log.debug({ id: committed.id, error: describeError(error) }, "usage is not known yet");
    });
  }

  /**
   * Forgets a snapshot; its files are deleted later.
   * @throws ClipError SNAPSHOT_NOT_FOUND, SNAPSHOT_PRECONDITION
   */
  async remove(key: string): Promise<void> {
    const snapshot = await this.#store.remove(key);
    if (snapshot.layer !== undefined) this.#handshake?.releaseUnused(snapshot.layer);
    if (hasDirectories(snapshot)) this.#discard(snapshot.id);
  }

  /** @throws ClipError SNAPSHOT_NOT_FOUND */
  stat(key: string): Snapshot {
    return this.#store.get(key);
  }

  /** Changes labels, as {@link updatedLabels} does. @throws ClipError SNAPSHOT_NOT_FOUND, ARGUMENT_INVALID */
  async update(name: string, labels: Labels, paths: readonly string[]): Promise<Snapshot> {
    const current = this.#store.get(name).labels;
    return this.#store.setLabels(name, updatedLabels(current, labels, paths));
  }

  /** The snapshots that one of the filters accepts, as they are now. @throws ClipError ARGUMENT_INVALID */
  list(filters: readonly string[]): Snapshot[] {
    const { matches, lookup } = parseFilters(filters);
    const candidates =
      lookup === undefined ? this.#store.all() : this.#store.findByRef(lookup.parent, lookup.ref);
    return candidates.filter(matches);
  }

  /** What a snapshot takes up by itself. @throws ClipError SNAPSHOT_NOT_FOUND */
  async usage(key: string, signal: AbortSignal): Promise<SnapshotUsage> {
    const snapshot = this.#store.get(key);
    if (snapshot.usage !== undefined) return snapshot.usage;
    if (snapshot.layer !== undefined) {
      const usage = this.#layers?.usage(snapshot.layer);
      return usage === undefined ? { bytes: 0, inodes: 0 } : abortable(usage, signal);
    }
    if (snapshot.kind === "view") return { bytes: 0, inodes: 0 };
    const measured =
      snapshot.kind === "committed"
        ? this.#measureCommitted(snapshot)
        : this.#meter.measure(this.#directories.of(snapshot.id).upper);
    return abortable(measured, signal);
  }

  /** Waits until the files of removed snapshots are gone. */
  async cleanup(signal: AbortSignal): Promise<void> {
    await abortable(this.#directories.drain(), signal);
  }

  /** Stops what runs in the background and closes the table. No call may be open any more. */
  async close(): Promise<void> {
    clearInterval(this.#sweeping);
    await this.#handshake?.close();
    this.#meter.close();
    await this.#directories.close();
    this.#store.close();
  }

  async #tryRemote(request: PrepareRequest, signal: AbortSignal): Promise<void> {
    const ref = request.labels.get(refLabel);
    if (ref === undefined || this.#handshake === undefined) return;
    const namespace = namespaceOf(request);
    const { parent, labels } = request;
    const outcome = await this.#handshake.prepare({ namespace, parent, ref, labels }, signal);
    if (outcome.ready) throw new ClipError("SNAPSHOT_EXISTS", `layer ${ref} is ready`);
    const { reason } = outcome;
    const fields = { namespace, chainId: ref, reason, error: describeFallback(outcome) };
    this.#log[fallbackLevels[reason] ?? "warn"](fields, "layer is left to containerd to unpack");
    this.#onFallback(reason);
  }

  async #create(
    kind: "active" | "view",
    { key, parent, labels }: PrepareRequest,
    signal: AbortSignal,
  ): Promise<Mount> {
    const below = parent === "" ? undefined : this.#store.get(parent);
    const lowers = below
      ? await this.#lowers([below, ...this.#store.ancestors(below)], signal)
      : [];
    const id = this.#store.allocateId();
    const withDirectories = hasDirectories({ kind, parent, layer: undefined });
    try {
      let own: UpperDirectories | undefined;
      if (withDirectories) {
        own = await this.#directories.create(id, await this.#rootOf(below, signal));
      }
      const mount = mountOf({ own, readOnly: kind === "view", lowers });
      if (signal.aborted) throw new ClipError("ABORTED", "the caller gave up");
      await this.#store.create({ id, key, kind, parent, labels });
      return mount;
    } catch (error) {
      if (withDirectories) this.#discard(id);
      throw error;
    }
  }

  /** What the root of a committed snapshot is like. */
  async #rootOf(
    snapshot: Snapshot | undefined,
    signal: AbortSignal,
  ): Promise<RootAttributes | undefined> {
    if (snapshot === undefined) return undefined;
    const { id, layer } = snapshot;
    if (layer === undefined) return this.#directories.rootOf(id);
    return this.#layers && abortable(this.#layers.rootOf(layer), signal);
  }

  /** The directories of committed snapshots, with layers mounted that are served on demand. */
  #lowers(snapshots: readonly Snapshot[], signal: AbortSignal): Promise<LowerDirectory[]> {
    const lowers = Promise.all(
      snapshots.map(async ({ id, layer }) => {
        if (layer === undefined) return { path: this.#directories.of(id).upper, opaqueRoot: false };
        if (this.#layers !== undefined) return this.#layers.mount(layer);
        throw new ClipError("SNAPSHOT_PRECONDITION", `layer ${layer} needs remote layers`, {
          hint: "clip was started without what serves layers on demand.",
        });
      }),
    );
    return abortable(lowers, signal);
  }

  async #measureCommitted(snapshot: Snapshot): Promise<SnapshotUsage> {
    const { upper } = this.#directories.of(snapshot.id);
    const usage = await this.#meter.measure(upper);
    this.#meter.forget(upper);
    await this.#store.setUsage(snapshot, usage);
    return usage;
  }

  #discard(id: number): void {
    this.#meter.forget(this.#directories.of(id).upper);
    this.#directories.discard(id).catch((error: unknown) => {
      // Whatever belongs to no snapshot is discarded again at the next start.
      this.#log.warn({ id, error: describeError(error) }, "cannot discard a snapshot's files yet");
    });
  }
}

/**
 * containerd's namespace. It is the first part of the keys that containerd makes, and not every
 * containerd tells it otherwise.
 */
function namespaceOf({ key, namespace }: PrepareRequest): string {
  return /^([A-Za-z0-9][A-Za-z0-9_.-]*)\/\d+\//.exec(key)?.[1] ?? namespace ?? "default";
}
