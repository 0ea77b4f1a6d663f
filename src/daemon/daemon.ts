/** The daemon's parts, wired together: what is started in which order, and stopped in reverse. */
import { join } from "node:path";
import type { Duplex } from "node:stream";
import type { Config } from "../config/schema.ts";
import { ContainerdClient } from "../containerd/client.ts";
import { ImageResolver } from "../containerd/image-resolver.ts";
import { attachConnection, openFuseSession, type FuseSession } from "../fuse/session.ts";
import { findLayerIndexes } from "../index/published.ts";
import { IndexStore } from "../index/store.ts";
import type { ClusterOptions } from "../layer/cluster/cluster-options.ts";
import { Layers } from "../layer/layers.ts";
import type { MountMode } from "../layer/mount-mode.ts";
import type { RegistryClient } from "../registry/client.ts";
import { createSnapshotterServer } from "../snapshotter/service.ts";
import { contentCacheNotConfigured } from "../telemetry/events.ts";
import type { Log } from "../telemetry/log.ts";
import { adminActions } from "./admin.ts";
import { CallCounters } from "./call-counters.ts";
import { openSharing } from "./content-cache.ts";
import { serveLiveLayers } from "./live-layers.ts";
import { openRegistry } from "./registry.ts";
import { ServedLayers } from "./served-layers.ts";
import { sessionMode } from "./session-mode.ts";
import { openTelemetry } from "./telemetry.ts";

/** What {@link startDaemon} takes. */
export interface DaemonOptions {
  /** Its directories exist, and have no symlinks in their paths. */
  config: Config;
  /** /dev/fuse: mounted by an earlier daemon whose session goes on, or not mounted yet. */
  device: number;
  /** Called when the FUSE session has ended, for whatever reason: there is nothing to serve then. */
  onEnd: () => void;
  log: Log;
}

/** A running daemon. */
export interface Daemon {
  /** How it mounts layers. */
  readonly mode: MountMode;
  /** Serves a client that has connected elsewhere. */
  accept(connection: Duplex): void;
  /**
   * Listens for clients itself.
   * @throws ClipError ARGUMENT_INVALID, SYSTEM_CALL
   */
  listen(): Promise<void>;
  /**
   * Stops serving and releases everything. Mounts end, unless they are kept for the next daemon:
   * then whoever reads waits for it.
   */
  close(options: { keepMounts: boolean }): Promise<void>;
}

/**
 * Starts everything.
 * @throws ClipError when a part cannot start, and those that had started are stopped again; CLOSED
 *   when the session of `device` has ended
 */
export async function startDaemon(options: DaemonOptions): Promise<Daemon> {
  const { config, log } = options;
  const { root } = config;
  const parts = new PartStack();
  try {
    const registry = openRegistry(config, log);
    parts.add(() => registry.close());
    const indexes = new IndexStore({
      directory: join(root, "index"),
      bytesMax: config.index.storeBytesMax,
      log,
    });
    await indexes.start();
    parts.add(() => indexes.close());

    const sharing = await openSharing(config, log);
    if (sharing === undefined) contentCacheNotConfigured(log);
    else parts.add(() => sharing.close());
    const cluster = sharing?.cluster;
    const { layers, session } = await openLayers(options, { registry, indexes, cluster }, parts);

    const containerd = new ContainerdClient({ address: config.containerd.address });
    parts.add(() => containerd.close());
    const resolver = new ImageResolver({
      containerd,
      log,
      registryHosts: config.registry.host.map(({ name }) => name),
      hostsDirectory: config.containerd.hostsDirectory,
    });
    const calls = new CallCounters();
    const { onCall, onFallback } = calls;
    const remote = { layers, resolver };
    const server = await createSnapshotterServer({ root, log, remote, onCall, onFallback });
    parts.add(() => server.close());
    await layers.releaseUnused(server.layersInUse());
    const contentCache = sharing && { contentCache: sharing.counters };
    const counted = { registry: registry.counters, calls, ...contentCache };
    const observed = { layers, session, snapshots: server, ...counted };
    const actions = adminActions({ config, layers, log });
    const telemetry = await openTelemetry({ config, parts: observed, actions, log });
    parts.add(() => telemetry.close());
    return {
      mode: layers.mode,
      accept: (connection) => server.accept(connection),
      listen: () => server.listen(config.address),
      close: ({ keepMounts }) => parts.close(keepMounts),
    };
  } catch (error) {
    // A session that goes on may be in use.
    await parts.close(true);
    throw error;
  }
}

/** Where layers come from. */
interface LayerSources {
  registry: RegistryClient;
  indexes: IndexStore;
  cluster: ClusterOptions | undefined;
}

/** Layers, and the FUSE session that serves them: from its first request on it knows all of them. */
async function openLayers(
  { config, device, onEnd, log }: DaemonOptions,
  { registry, indexes, cluster }: LayerSources,
  parts: PartStack,
): Promise<{ layers: Layers; session: FuseSession }> {
  const { root, state } = config;
  const fuseMountpoint = join(root, "f");
  const { fresh } = await attachConnection(fuseMountpoint, device);
  const mode = await sessionMode({ root, state, wanted: config.mount.mode, fresh, log });
  const served = new ServedLayers();
  const { backgroundFill, backgroundFillDelayMs } = config.layer;
  const { scrubIntervalMs, scrubBytesPerSecondMax } = config.cache;
  const layers = await Layers.open({
    root,
    session: served,
    fuseMountpoint,
    registry,
    indexes,
    ...(config.index.lookup
      ? {
          findIndexes: (repository, manifestDigest, signal) =>
            findLayerIndexes(registry, repository, manifestDigest, { log, signal }),
        }
      : {}),
    ...(cluster === undefined ? {} : { cluster }),
    mode,
    keepRuntimeDirectories: config.mount.keepRuntimeDirectories,
    readAheadKilobytes: config.fuse.readAheadKb,
    spanBytes: config.layer.spanBytes,
    ...(backgroundFill ? { backgroundFillDelayMs } : {}),
    concurrentPulls: config.layer.concurrentPulls,
    pullConnections: config.layer.pullConnections,
    diskLimits: config.cache,
    ...(scrubIntervalMs === 0
      ? {}
      : { scrub: { intervalMs: scrubIntervalMs, bytesPerSecond: scrubBytesPerSecondMax } }),
    log,
  });
  let session: FuseSession | undefined;
  parts.add(async (keepMounts) => {
    // Reads that are under way must not fail for want of a layer if another daemon is to answer.
    if (keepMounts) await session?.detach();
    await layers.close({ keepMounts });
    if (!keepMounts) await session?.close();
  });
  if (mode === "fuse" && !fresh) await serveLiveLayers(root, layers, log);
  session = await openFuseSession({
    mountpoint: fuseMountpoint,
    resume: { descriptor: device, fresh },
    layers: served.early(),
    threads: config.fuse.threads,
    readAheadKilobytes: config.fuse.readAheadKb,
    // Not with EROFS: the kernel would cache the blobs besides the files.
    noOpen: mode === "fuse",
    onRead: (request) => layers.handleRead(request),
    onEnd,
    log,
  });
  served.attach(session);
  return { layers, session };
}

/** What has been started, and how each part is stopped: the last one first. */
class PartStack {
  readonly #stops: ((keepMounts: boolean) => unknown)[] = [];

  add(stop: (keepMounts: boolean) => unknown): void {
    this.#stops.push(stop);
  }

  /** Stops all parts, also when one of them fails to. */
  async close(keepMounts: boolean): Promise<void> {
    const failures: unknown[] = [];
    for (let stop = this.#stops.pop(); stop !== undefined; stop = this.#stops.pop()) {
      try {
        await stop(keepMounts);
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw new AggregateError(failures, "parts did not stop cleanly");
  }
}
