/** A node that is made up for tests of what telemetry tells of it. */
import { status } from "@grpc/grpc-js";
import { digestOf } from "../base/digest.ts";
import { newLayerCounters, sourceCounters } from "../layer/counters.ts";
import type { LayerStatus } from "../layer/layer-status.ts";
import { CallCounters } from "./call-counters.ts";
import type { NodeParts } from "./node-state.ts";

/** A layer of `size` bytes of which `localBytes` are there. */
export function fakeLayerStatus(number: number, size: number, localBytes: number): LayerStatus {
  return {
    number,
    layerDigest: digestOf(Buffer.from(`blob ${number}`)),
    diffId: digestOf(Buffer.from(`layer ${number}`)),
    state: localBytes === size ? "complete" : "lazy",
    size,
    localBytes,
    diskBytes: localBytes + 4096,
  };
}

/** A node that has done a little of everything. */
export function fakeNode(): NodeParts {
  const calls = new CallCounters();
  calls.onCall("Prepare", status.ALREADY_EXISTS, 12);
  calls.onCall("Prepare", status.ALREADY_EXISTS, 3);
  calls.onCall("Stat", status.OK, 0.1);
  calls.onFallback("image_unknown");
  calls.onFallback("image_unknown");
  const counters = newLayerCounters();
  Object.assign(counters, { reads: 20, readBytes: 80_000, spanHits: 2, spanMisses: 18 });
  Object.assign(counters, { wholePulls: 1, wholePullBytes: 5_000_000, completed: 1 });
  counters.readLatencies.add(7);
  const registry = sourceCounters(counters, "registry");
  Object.assign(registry, { fetches: 10, spans: 15, bytes: 15_728_640, errors: 1, corrupt: 2 });
  registry.latencies.add(40);
  const cache = sourceCounters(counters, "content_cache");
  Object.assign(cache, { fetches: 3, spans: 5, bytes: 5_242_880 });
  cache.latencies.add(3);
  return {
    layers: {
      mode: "erofs",
      counters,
      queues: () => ({
        fill: 2,
        pullsRunning: 1,
        pullsWaiting: 3,
        stores: 0,
        memoryBytes: 1_048_576,
        memoryBytesMax: 134_217_728,
      }),
      diskCache: {
        bytes: 5_000_000,
        bytesMax: 100_000_000,
        freeBytesMin: 536_870_912,
        evicted: { spans: 7, bytes: 7_340_032, layers: 1, refused: 2 },
      },
      status: async () => [fakeLayerStatus(1, 40_000_000, 4_000_000), fakeLayerStatus(2, 1e6, 1e6)],
    },
    session: { requestCounts: () => ({ READ: 100, LOOKUP: 3 }), pendingReads: 4 },
    snapshots: { snapshotCounts: () => ({ active: 1, view: 0, committed: 2, remote: 5 }) },
    calls,
    registry: {
      hosts: new Map([
        [
          "r.io",
          { answers: new Map([[206, 9]]), faults: new Map([["slow", 2]]), bytes: 7_340_032 },
        ],
      ]),
    },
    contentCache: {
      latencyBoundsMs: [1, 10],
      counts: () => [
        {
          cache: "redis",
          operation: "read",
          outcome: "hit",
          calls: 5,
          bytes: 5_242_880,
          milliseconds: 25,
          latencies: [1, 3, 1],
        },
      ],
    },
  };
}
