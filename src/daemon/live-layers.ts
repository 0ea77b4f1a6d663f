/** Layers that containers may be using, as far as snapshots tell. */
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { describeError } from "../base/errors.ts";
import { SnapshotStore } from "../snapshotter/store.ts";
import type { Log } from "../telemetry/log.ts";

/** Longest time for what is not on disk any more; the session has to go on for all the others. */
const lostMs = 5_000;

/** What is needed of the layers. */
export interface MountableLayers {
  mount(number: number): Promise<unknown>;
}

/**
 * Serves the layers below all snapshots that are in use. For sessions with directory trees: nothing
 * in the kernel's tables tells which trees are in use.
 */
export async function serveLiveLayers(
  root: string,
  layers: MountableLayers,
  log: Log,
): Promise<void> {
  const served = [...liveLayers(root)].map(async (number) => {
    try {
      await layers.mount(number);
    } catch (error) {
      log.error({ number, error: describeError(error) }, "a layer in use cannot be served");
    }
  });
  const abort = new AbortController();
  const deadline = delay(lostMs, undefined, { signal: abort.signal }).catch(() => {});
  await Promise.race([Promise.all(served), deadline]);
  abort.abort();
}

/** Numbers of the layers below active snapshots and views. */
function liveLayers(root: string): Set<number> {
  const store = SnapshotStore.open(join(root, "snapshots.db"));
  try {
    const inUse = store.all().filter(({ kind }) => kind !== "committed");
    const below = inUse.flatMap((snapshot) => store.ancestors(snapshot));
    return new Set(below.flatMap(({ layer }) => (layer === undefined ? [] : [layer])));
  } finally {
    store.close();
  }
}
