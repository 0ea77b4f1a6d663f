/** One node's layers in this process, without containerd, for tests. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { openFuseSession, type FuseSession } from "../src/fuse/session.ts";
import { findLayerIndexes } from "../src/index/published.ts";
import { IndexStore } from "../src/index/store.ts";
import { Layers } from "../src/layer/layers.ts";
import type { LayersOptions } from "../src/layer/layers-options.ts";
import { chooseMountMode } from "../src/layer/mount-mode.ts";
import { RegistryClient } from "../src/registry/client.ts";
import { openLog } from "../src/telemetry/log.ts";

/** How a node differs from the usual one. */
export type NodeSettings = Partial<
  Pick<
    LayersOptions,
    | "backgroundFillDelayMs"
    | "memoryBytesMax"
    | "diskLimits"
    | "findIndexes"
    | "cluster"
    | "scrub"
    | "log"
  >
> & { mode?: LayersOptions["mode"] | "auto"; lookup?: boolean };

/** Layers with all that they need. */
export interface LayerNode {
  layers: Layers;
  session: FuseSession;
  registry: RegistryClient;
  indexes: IndexStore;
  /** Stops as a daemon stops that is asked to. */
  close(): Promise<void>;
  /** Stops the layers, and opens them anew as a daemon does that takes the session over. */
  takeOver(meanwhile: () => Promise<void>): Promise<Layers>;
  /** Stops as a daemon that dies: the mounts of the layers stay, the FUSE session ends. */
  die(): Promise<void>;
}

/** Opens a node below `directory`, which may have been one before. */
export async function openNode(directory: string, settings: NodeSettings = {}): Promise<LayerNode> {
  const { lookup = true, mode: wanted = "auto", log = openLog("error"), ...others } = settings;
  const root = join(directory, "root");
  const fuseMountpoint = join(directory, "fuse");
  await mkdir(root, { recursive: true });
  const mode = await chooseMountMode(wanted, root, log);
  const registry = new RegistryClient({
    dockerConfig: join(directory, "none.json"),
    retries: 1,
    log,
  });
  const indexes = new IndexStore({ directory: join(root, "index"), bytesMax: 1e9, log });
  await indexes.start();
  let layers: Layers | undefined;
  const session = await openFuseSession({
    mountpoint: fuseMountpoint,
    onRead: (request) => layers?.handleRead(request),
    log,
  });
  const options: LayersOptions = {
    ...{ root, session, fuseMountpoint, registry, indexes, mode, log },
    ...(lookup && {
      findIndexes: (repository, manifest, signal) =>
        findLayerIndexes(registry, repository, manifest, { log, signal }),
    }),
    ...others,
  };
  const opened = await Layers.open(options);
  let current = opened;
  layers = current;
  const stop = async (keepMounts: boolean) => {
    await current.close({ keepMounts });
    await session.close();
    await indexes.close();
    await registry.close();
  };
  return {
    ...{ layers: opened, session, registry, indexes },
    takeOver: async (meanwhile) => {
      const served = current.numbers();
      await current.close({ keepMounts: true });
      for (const number of served) session.removeLayer(number);
      await meanwhile();
      current = await Layers.open(options);
      layers = current;
      return current;
    },
    close: () => stop(false),
    die: () => stop(true),
  };
}

/** Does something with a node, and stops it. */
export async function withNode(
  directory: string,
  settings: NodeSettings,
  work: (node: LayerNode) => Promise<void>,
): Promise<void> {
  const node = await openNode(directory, settings);
  try {
    await work(node);
  } finally {
    await node.close();
  }
}
