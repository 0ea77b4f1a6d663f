/** What layers are used for, as the disk cache has to know it. */
import type { Digest } from "../base/digest.ts";
import type { KeyedQueue } from "../base/keyed-queue.ts";
import type { LayerUsers } from "../cache/disk-cache.ts";
import type { ActiveLayers } from "./active-layers.ts";
import type { ClusterTier } from "./cluster/cluster-tier.ts";
import type { LayerMounts } from "./layer-mounts.ts";
import type { LayerRecord, LayerRecords } from "./records.ts";

/** Who knows it. */
export interface CacheUsersSources {
  records: LayerRecords;
  mounts: LayerMounts;
  active: ActiveLayers;
  /** Absent: layers are not shared with other nodes. */
  cluster?: ClusterTier;
  /** What is being done with a layer, by diffID. */
  queue: KeyedQueue;
}

/** Answers from what is known of the layers now. */
export function cacheUsers({
  records,
  mounts,
  active,
  queue,
  cluster,
}: CacheUsersSources): LayerUsers {
  const digestsOf = (isWanted: (record: LayerRecord) => boolean): Set<Digest> =>
    new Set(records.all().flatMap((one) => (isWanted(one) ? one.layerDigest : [])));
  return {
    devices: () => {
      const numbers = new Set(mounts.localDevices());
      return digestsOf(({ number }) => numbers.has(number));
    },
    unshared: () => cluster?.waitingToBeStored() ?? new Set(),
    costly: () => digestsOf(({ ranges }) => !ranges),
    ifUnused: async (layerDigest, remove) => {
      const known = records.all().find((record) => record.layerDigest === layerDigest);
      // One that is not known is being made ready; one that is busy is wanted.
      if (known === undefined || queue.isBusy(known.diffId)) return false;
      return queue.run(known.diffId, async () => {
        const isMounted = (await mounts.current(known.number)) !== undefined;
        if (isMounted || active.has(known.number)) return false;
        await remove();
        return true;
      });
    },
  };
}
