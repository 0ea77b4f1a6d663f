/** What `/status` answers: the node in a form for programs, which `clip status` prints. */
import { version } from "../base/version.ts";
import type { DiskCacheState } from "../cache/evictor.ts";
import type { LayerQueues, LayerStatus } from "../layer/layer-status.ts";
import type { SnapshotCounts } from "../snapshotter/snapshotter.ts";
import { quantileOf } from "../telemetry/latencies.ts";
import { diskReads, type NodeState } from "./node-state.ts";

/** What came from one tier. */
export interface TierStatus {
  /** Reads that were answered from disk, or spans that were fetched. */
  hits: number;
  /** Uncompressed bytes of these spans; null where nobody counts them. */
  bytes: number | null;
  errors: number;
  /** Spans that did not match their digest. */
  corrupt: number;
  /** Half of the fetches had their first span by then; null when there was none. */
  medianMs: number | null;
}

/** Shares between 0 and 1; null while nothing was asked for. */
export interface HitRatio {
  /** Of all reads, those that needed nothing but the disk. */
  disk: number | null;
  /** Of all spans that were fetched, those that a content cache gave; null without any. */
  contentCache: number | null;
  /** Of all reads, those that needed no registry, if each of the others wanted one span. */
  all: number | null;
}

/** What had gone bad on this node's disk. */
export interface DamageStatus {
  /** Spans that readers asked for and the disk did not give. */
  unreadableSpans: number;
  /** Bytes that were compared with their digests. */
  checkedBytes: number;
  /** What was found wrong by that, and what of it was put right at once. */
  damagedSpans: number;
  repairedSpans: number;
  damagedImages: number;
  repairedImages: number;
}

/** A node at one moment. Counts are since the daemon started. */
export interface NodeStatus {
  version: string;
  node: string;
  pid: number;
  /** RFC 3339. */
  startedAt: string;
  uptimeSeconds: number;
  mode: "erofs" | "fuse";
  root: string;
  address: string;
  snapshots: SnapshotCounts;
  layers: LayerStatus[];
  tiers: Record<string, TierStatus>;
  hitRatio: HitRatio;
  reads: { all: number; handed: number; waiting: number; errors: number; medianMs: number | null };
  wholePulls: { done: number; failed: number; compressedBytes: number };
  fallbacks: Record<string, number>;
  queues: LayerQueues;
  /** Layers and their span maps on disk. */
  diskCache: DiskCacheState;
  damage: DamageStatus;
  /** Calls of content caches by cache, operation and outcome; null when none is configured. */
  contentCache: { cache: string; operation: string; outcome: string; calls: number }[] | null;
}

/** Name of the tier of all content caches. */
const contentCacheTier = "content_cache";

/** What the status of a node says besides its state. */
export interface NodePlace {
  root: string;
  address: string;
}

/** The status of a node. */
export function nodeStatus(state: NodeState, { root, address }: NodePlace): NodeStatus {
  const { counters, contentCache } = state;
  const uptimeSeconds = process.uptime();
  return {
    version,
    node: process.version,
    pid: process.pid,
    startedAt: new Date(Date.now() - uptimeSeconds * 1000).toISOString(),
    uptimeSeconds: Math.round(uptimeSeconds),
    mode: state.mode,
    root,
    address,
    snapshots: state.snapshots,
    layers: state.layers,
    tiers: tiersOf(state),
    hitRatio: hitRatioOf(state),
    reads: {
      all: diskReads(state).all,
      handed: counters.reads,
      waiting: state.readsWaiting,
      errors: counters.readErrors,
      medianMs: finite(quantileOf(counters.readLatencies, 0.5)),
    },
    wholePulls: {
      done: counters.wholePulls,
      failed: counters.wholePullErrors,
      compressedBytes: counters.wholePullBytes,
    },
    fallbacks: Object.fromEntries(state.fallbacks),
    queues: state.queues,
    diskCache: state.diskCache,
    damage: damageOf(counters),
    contentCache:
      contentCache?.counts.map(({ cache, operation, outcome, calls }) => ({
        cache,
        operation,
        outcome,
        calls,
      })) ?? null,
  };
}

function damageOf(counters: NodeState["counters"]): DamageStatus {
  const { unreadableSpans, checkedBytes } = counters;
  const { damagedSpans, repairedSpans, damagedImages, repairedImages } = counters;
  return {
    ...{ unreadableSpans, checkedBytes, damagedSpans },
    ...{ repairedSpans, damagedImages, repairedImages },
  };
}

function tiersOf(state: NodeState): Record<string, TierStatus> {
  const tiers: Record<string, TierStatus> = {
    disk: { hits: diskReads(state).local, bytes: null, errors: 0, corrupt: 0, medianMs: null },
  };
  for (const [name, { spans, bytes, errors, corrupt, latencies }] of state.counters.sources) {
    const medianMs = finite(quantileOf(latencies, 0.5));
    tiers[name] = { hits: spans, bytes, errors, corrupt, medianMs };
  }
  return tiers;
}

function hitRatioOf(state: NodeState): HitRatio {
  const reads = diskReads(state);
  const disk = ratio(reads.local, reads.all);
  let fetched = 0;
  for (const { spans } of state.counters.sources.values()) fetched += spans;
  const cached = state.counters.sources.get(contentCacheTier)?.spans ?? 0;
  const contentCache = state.contentCache === undefined ? null : ratio(cached, fetched);
  const handed = reads.all - reads.local;
  const all =
    disk === null ? contentCache : (reads.local + handed * (contentCache ?? 0)) / reads.all;
  return { disk, contentCache, all };
}

function ratio(part: number, whole: number): number | null {
  return whole === 0 ? null : part / whole;
}

// JSON knows no Infinity.
function finite(value: number | undefined): number | null {
  return value === undefined || !Number.isFinite(value) ? null : value;
}
