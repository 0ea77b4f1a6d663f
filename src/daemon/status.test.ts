import assert from "node:assert/strict";
import { test } from "node:test";
import { newLayerCounters } from "../layer/counters.ts";
import { fakeNode } from "./fake-node.ts";
import { readNodeState } from "./node-state.ts";
import { nodeStatus } from "./status.ts";

const place = { root: "/var/lib/clip", address: "/run/clip.sock" };

void test("the status of a node", async () => {
  const status = nodeStatus(await readNodeState(fakeNode()), place);
  assert.equal(status.root, "/var/lib/clip");
  assert.equal(status.pid, process.pid);
  assert.deepEqual(status.tiers, {
    disk: { hits: 80, bytes: null, errors: 0, corrupt: 0, medianMs: null },
    registry: { hits: 15, bytes: 15_728_640, errors: 1, corrupt: 2, medianMs: 50 },
    content_cache: { hits: 5, bytes: 5_242_880, errors: 0, corrupt: 0, medianMs: 5 },
  });
  assert.deepEqual(status.hitRatio, { disk: 0.8, contentCache: 0.25, all: 0.85 });
  assert.deepEqual(status.fallbacks, { image_unknown: 2 });
  assert.deepEqual(status.contentCache, [
    { cache: "redis", operation: "read", outcome: "hit", calls: 5 },
  ]);
  assert.deepEqual(JSON.parse(JSON.stringify(status)), status);
});

void test("a node that has done nothing has no ratios", async () => {
  const parts = fakeNode();
  const fresh = {
    ...parts,
    layers: { ...parts.layers, counters: newLayerCounters() },
    session: { requestCounts: () => ({}), pendingReads: 0 },
  };
  const status = nodeStatus(await readNodeState(fresh), place);
  assert.deepEqual(status.hitRatio, { disk: null, contentCache: null, all: null });
  assert.equal(status.reads.medianMs, null);
});

void test("a read that was handed over in parts does not make the ratio negative", async () => {
  const parts = fakeNode();
  const few = { ...parts, session: { requestCounts: () => ({ READ: 10 }), pendingReads: 0 } };
  assert.equal(nodeStatus(await readNodeState(few), place).hitRatio.disk, 0);
});
