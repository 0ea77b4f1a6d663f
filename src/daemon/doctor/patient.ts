/** What is examined: a node, with or without a daemon that serves it. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import type { Config } from "../../config/schema.ts";
import { StoreQueue, type QueuedStore } from "../../layer/cluster/store-queue.ts";
import { LayerRecords, type LayerRecord, type MountRecord } from "../../layer/records.ts";
import { readMountTable, type MountEntry } from "../../os/mount-table.ts";
import type { Snapshot } from "../../snapshotter/snapshot.ts";
import { SnapshotStore } from "../../snapshotter/store.ts";
import type { Log } from "../../telemetry/log.ts";

/** What only a daemon that serves can do. */
export interface LiveNode {
  mode: "erofs" | "fuse";
  /** Mounts a layer if it is not mounted. */
  mount(layer: number): Promise<unknown>;
}

/** A node. */
export interface Patient {
  config: Config;
  /** Absent: no daemon serves the root, and none can begin to. */
  live?: LiveNode;
  log: Log;
  signal: AbortSignal;
}

/** What the databases and the kernel say of a node. */
export interface NodeView {
  snapshots: Snapshot[];
  layers: LayerRecord[];
  /** Numbers that layers had before; snapshots may still name them. */
  formerNumbers: ReadonlySet<number>;
  /** How layers were last mounted, by number. */
  mountRecords: ReadonlyMap<number, MountRecord>;
  stores: QueuedStore[];
  mountTable: MountEntry[];
}

/** The databases below a root. */
export const databases = {
  snapshots: "snapshots.db",
  layers: "layers.db",
  stores: "stores.db",
  scrub: "scrub.db",
} as const;

/**
 * Reads all there is. The daemon may be using the databases at the same time.
 * @throws when a database cannot be read
 */
export async function readNodeView({ config: { root } }: Patient): Promise<NodeView> {
  const snapshots = read(
    root,
    databases.snapshots,
    (path) => SnapshotStore.open(path),
    (store) => store.all(),
  );
  const records = read(
    root,
    databases.layers,
    (path) => LayerRecords.open(path),
    (opened) => {
      const layers = opened.all();
      const mounts = layers.flatMap(({ number }) => {
        const mount = opened.mountOf(number);
        return mount === undefined ? [] : [[number, mount] as const];
      });
      const formerNumbers = new Set(opened.formerNumbers());
      return { layers, formerNumbers, mounts: new Map(mounts) };
    },
  );
  return {
    snapshots: snapshots ?? [],
    layers: records?.layers ?? [],
    formerNumbers: records?.formerNumbers ?? new Set<number>(),
    mountRecords: records?.mounts ?? new Map<number, MountRecord>(),
    stores: read(root, databases.stores, openQueue, (queue) => queue.all()) ?? [],
    mountTable: await readMountTable(),
  };
}

/** Opens the queue of what is to be stored, without a limit of its own. */
export function openQueue(path: string): StoreQueue {
  return StoreQueue.open(path, Number.MAX_SAFE_INTEGER);
}

// One that is not there must not be made.
function read<Opened extends { close(): void }, Value>(
  root: string,
  name: string,
  open: (path: string) => Opened,
  use: (opened: Opened) => Value,
): Value | undefined {
  const path = join(root, name);
  if (!existsSync(path)) return undefined;
  const opened = open(path);
  try {
    return use(opened);
  } finally {
    opened.close();
  }
}
