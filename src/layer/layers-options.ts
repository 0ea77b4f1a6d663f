/** What the layers of a node are opened with. */
import type { DiskLimits } from "../cache/disk-space.ts";
import type { IndexStore } from "../index/store.ts";
import type { Log } from "../telemetry/log.ts";
import type { LayerSession } from "./active-layers.ts";
import type { ScrubSettings } from "./cache-upkeep.ts";
import type { ClusterOptions } from "./cluster/cluster-options.ts";
import type { FindLayerIndexes } from "./index-lookup.ts";
import type { MountMode } from "./mount-mode.ts";
import type { LayerRegistry } from "./places.ts";

/** What `Layers` is opened with. */
export interface LayersOptions {
  /** Everything is kept below it. Absolute, without symlinks, not on overlayfs. */
  root: string;
  /**
   * The mounted FUSE session; its reads go to `Layers.handleRead`. Nobody need serve it yet
   * when the layers are opened.
   */
  session: LayerSession;
  /** Where it is mounted. Absolute, without symlinks. */
  fuseMountpoint: string;
  registry: LayerRegistry;
  /** Started. */
  indexes: IndexStore;
  /** Lists published indexes; absent: they are not looked for. */
  findIndexes?: FindLayerIndexes;
  /** The content cache; absent: layers are not shared with other nodes. */
  cluster?: ClusterOptions;
  mode: MountMode;
  /** Keep what a layer has below /proc, /sys and /dev. Default: false. */
  keepRuntimeDirectories?: boolean;
  /** How far the kernel reads ahead in a file of a layer, in KiB. Default: 1024. */
  readAheadKilobytes?: number;
  /** Uncompressed bytes between two checkpoints of an index that is built here. Default: 1 MiB. */
  spanBytes?: number;
  /** How long after its first mount a layer is completed; absent: it is not. */
  backgroundFillDelayMs?: number;
  /** Most uncompressed bytes a second of that; absent: unlimited. */
  backgroundFillBytesPerSecond?: number;
  /** Layers that are pulled whole at the same time. Default: 3. */
  concurrentPulls?: number;
  /** Connections of one whole pull. Default: 4. */
  pullConnections?: number;
  /** What the disk cache may take. Default: all that the disk has. */
  diskLimits?: DiskLimits;
  /** When what is on disk is checked by itself. Default: never. */
  scrub?: ScrubSettings;
  /** Most bytes in memory for spans on their way. Default: 128 MiB. */
  memoryBytesMax?: number;
  log: Log;
}

/** A layer that is mounted. */
export interface MountedLayer {
  path: string;
  /** It hides everything below it. */
  opaqueRoot: boolean;
}

/** What a directory is like; the file type in the mode does not matter. */
export interface RootAttributes {
  mode: number;
  uid: number;
  gid: number;
}
