/** All that telemetry tells of a node, read in one go. */
import type { CacheCount } from "../cache/content/cache-counters.ts";
import type { ClusterCounters } from "../layer/cluster/cluster-options.ts";
import type { DiskCacheState } from "../cache/evictor.ts";
import type { LayerCounters } from "../layer/counters.ts";
import type { LayerQueues, LayerStatus } from "../layer/layer-status.ts";
import type { HostCounts } from "../registry/registry-counters.ts";
import type { SnapshotCounts } from "../snapshotter/snapshotter.ts";
import type { CallCount } from "./call-counters.ts";

/** The parts of the daemon that know something. */
export interface NodeParts {
  layers: {
    mode: "erofs" | "fuse";
    counters: LayerCounters;
    /** Undefined where layers are not shared. */
    clusterCounters?: ClusterCounters | undefined;
    queues(): LayerQueues;
    diskCache: DiskCacheState;
    status(): Promise<LayerStatus[]>;
  };
  session: { requestCounts(): Record<string, number>; pendingReads: number };
  snapshots: { snapshotCounts(): SnapshotCounts };
  calls: { calls: CallCount[]; fallbacks: ReadonlyMap<string, number> };
  registry: { hosts: ReadonlyMap<string, HostCounts> };
  /** Counts of the content caches; absent when none is configured. */
  contentCache?: { latencyBoundsMs: readonly number[]; counts(): CacheCount[] };
}

/** How it stands with a node. The counters in it go on counting. */
export interface NodeState {
  mode: "erofs" | "fuse";
  layers: LayerStatus[];
  queues: LayerQueues;
  diskCache: DiskCacheState;
  counters: LayerCounters;
  cluster: ClusterCounters | undefined;
  snapshots: SnapshotCounts;
  /** FUSE requests by opcode. */
  fuseRequests: Record<string, number>;
  /** Reads that wait for bytes. */
  readsWaiting: number;
  calls: CallCount[];
  fallbacks: ReadonlyMap<string, number>;
  /** What was asked of registries, by host. */
  registryHosts: ReadonlyMap<string, HostCounts>;
  /** Calls of content caches; undefined when none is configured. */
  contentCache: { latencyBoundsMs: readonly number[]; counts: CacheCount[] } | undefined;
}

/** Asks the parts. */
export async function readNodeState(parts: NodeParts): Promise<NodeState> {
  const { layers, session, snapshots, calls, registry, contentCache } = parts;
  const status = await layers.status();
  return {
    mode: layers.mode,
    layers: status,
    queues: layers.queues(),
    diskCache: layers.diskCache,
    counters: layers.counters,
    cluster: layers.clusterCounters,
    snapshots: snapshots.snapshotCounts(),
    fuseRequests: session.requestCounts(),
    readsWaiting: session.pendingReads,
    calls: calls.calls,
    fallbacks: calls.fallbacks,
    registryHosts: registry.hosts,
    contentCache: contentCache && {
      latencyBoundsMs: contentCache.latencyBoundsMs,
      counts: contentCache.counts(),
    },
  };
}

/**
 * Reads that FUSE threads answered with what is on disk, and all of them. Reads of complete layers
 * that the kernel serves from the local file are not seen by anyone.
 */
export function diskReads({ fuseRequests, counters }: NodeState): { local: number; all: number } {
  const all = fuseRequests["READ"] ?? 0;
  // A read can be handed over in several parts.
  return { local: Math.max(0, all - counters.reads), all };
}
