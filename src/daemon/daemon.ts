/** The daemon's parts, wired together: what is started in which order, and stopped in reverse. */
import { closeSync, mkdirSync, openSync, realpathSync } from "node:fs";
import { join } from "node:path";
import { ClipError } from "../base/errors.ts";
import type { Config } from "../config/schema.ts";
import { ContainerdClient } from "../containerd/client.ts";
import { ImageResolver } from "../containerd/image-resolver.ts";
import { openFuseSession } from "../fuse/session.ts";
import { findLayerIndexes } from "../index/published.ts";
import { IndexStore } from "../index/store.ts";
import { Layers } from "../layer/layers.ts";
import { tryLock } from "../os/libc.ts";
import type { RegistryClient } from "../registry/client.ts";
import { createSnapshotterServer } from "../snapshotter/service.ts";
import type { Log } from "../telemetry/log.ts";
import { openRegistry } from "./registry.ts";

/** A running daemon. */
export interface Daemon {
  /** Stops serving, ends the mounts that it serves, and releases everything. */
  close(): Promise<void>;
}

/**
 * Starts everything; containerd may call as soon as this returns.
 * @throws ClipError when a part cannot start; those that had started are stopped again
 */
export async function startDaemon(config: Config, log: Log): Promise<Daemon> {
  const parts = new PartStack();
  try {
    const root = makeDirectory(config.root, 0o711);
    makeDirectory(config.state, 0o711);
    parts.add(lockRoot(root));

    const registry = openRegistry(config, log);
    parts.add(() => registry.close());
    const indexes = new IndexStore({
      directory: join(root, "index"),
      bytesMax: config.index.storeBytesMax,
      log,
    });
    await indexes.start();
    parts.add(() => indexes.close());

    const layers = await openLayers(config, root, registry, indexes, parts, log);

    const containerd = new ContainerdClient({ address: config.containerd.address });
    parts.add(() => containerd.close());
    const resolver = new ImageResolver({
      containerd,
      log,
      registryHosts: config.registry.host.map(({ name }) => name),
      hostsDirectory: config.containerd.hostsDirectory,
    });
    const server = await createSnapshotterServer({ root, log, remote: { layers, resolver } });
    parts.add(() => server.close());
    await layers.releaseUnused(server.layersInUse());
    await server.listen(config.address);
    log.info({ address: config.address, root, mode: layers.mode }, "clip is ready");
  } catch (error) {
    await parts.close();
    throw error;
  }
  return { close: () => parts.close() };
}

async function openLayers(
  config: Config,
  root: string,
  registry: RegistryClient,
  indexes: IndexStore,
  parts: PartStack,
  log: Log,
): Promise<Layers> {
  const fuseMountpoint = join(root, "f");
  // The session serves layers, and the layers answer its reads: one has to come first.
  let layers: Layers | undefined;
  const session = await openFuseSession({
    mountpoint: fuseMountpoint,
    threads: config.fuse.threads,
    readAheadKilobytes: config.fuse.readAheadKb,
    onRead: (request) => layers?.handleRead(request),
    onEnd: () => log.fatal("the FUSE mount has ended: layers that are not complete cannot be read"),
    log,
  });
  parts.add(() => session.close());
  const { backgroundFill, backgroundFillDelayMs } = config.layer;
  layers = await Layers.open({
    root,
    session,
    fuseMountpoint,
    registry,
    indexes,
    ...(config.index.lookup
      ? {
          findIndexes: (repository, manifestDigest, signal) =>
            findLayerIndexes(registry, repository, manifestDigest, { log, signal }),
        }
      : {}),
    mode: config.mount.mode,
    keepRuntimeDirectories: config.mount.keepRuntimeDirectories,
    readAheadKilobytes: config.fuse.readAheadKb,
    spanBytes: config.layer.spanBytes,
    ...(backgroundFill ? { backgroundFillDelayMs } : {}),
    concurrentPulls: config.layer.concurrentPulls,
    pullConnections: config.layer.pullConnections,
    log,
  });
  const opened = layers;
  parts.add(() => opened.close());
  return opened;
}

function makeDirectory(path: string, mode: number): string {
  try {
    mkdirSync(path, { recursive: true, mode });
    return realpathSync(path);
  } catch (error) {
    throw new ClipError("CONFIG_INVALID", `cannot use the directory ${path}`, { cause: error });
  }
}

/** Makes this process the only one that works on `root`; the lock goes with the process. */
function lockRoot(root: string): () => void {
  const path = join(root, "lock");
  const fd = openSync(path, "w", 0o600);
  if (tryLock(fd)) return () => closeSync(fd);
  closeSync(fd);
  throw new ClipError("CONFIG_INVALID", `another clip daemon uses ${root}`, {
    hint: "stop it, or give this one a root and a state directory of its own",
  });
}

/** What has been started, and how each part is stopped: the last one first. */
class PartStack {
  readonly #stops: (() => unknown)[] = [];

  add(stop: () => unknown): void {
    this.#stops.push(stop);
  }

  /** Stops all parts, also when one of them fails to. */
  async close(): Promise<void> {
    const failures: unknown[] = [];
    for (let stop = this.#stops.pop(); stop !== undefined; stop = this.#stops.pop()) {
      try {
        await stop();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw new AggregateError(failures, "parts did not stop cleanly");
  }
}
