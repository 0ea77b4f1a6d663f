import assert from "node:assert/strict";
import { test } from "node:test";
import { fakeLayerStatus, fakeNode } from "../daemon/fake-node.ts";
import { readNodeState } from "../daemon/node-state.ts";
import { nodeStatus } from "../daemon/status.ts";
import { formatDuration, formatStatus } from "./status-text.ts";

async function printed(parts = fakeNode()): Promise<string> {
  const status = nodeStatus(await readNodeState(parts), { root: "/r", address: "/a" });
  return formatStatus(status);
}

void test("a person sees layers, tiers and what is going on", async () => {
  const text = await printed();
  const { layerDigest } = fakeLayerStatus(1, 2, 1);
  assert.match(text, /^clip +\d+\.\d+\.\d+, process \d+, up /m);
  assert.match(text, /^snapshots +1 active, 0 view, 2 committed, 5 layers served on demand$/m);
  const short = layerDigest.slice(7, 19);
  assert.match(text, new RegExp(`^${short} +lazy +10\\.0 % +38\\.1 MiB +3\\.8 MiB$`, "m"));
  assert.match(text, /^2 layers +12\.2 % /m);
  assert.match(text, /^registry +15 +15\.0 MiB +1 +2 +<= 50 ms$/m);
  assert.match(text, /^content cache +5 +5\.0 MiB/m);
  assert.match(text, /^hit ratio +85\.0 % \(disk 80\.0 % of reads, content cache 25\.0 % of/m);
  assert.match(text, /^fallbacks +2 image unknown$/m);
  assert.match(text, /^redis +read +hit +5$/m);
});

void test("a layer of which one byte is missing is not shown as all there", async () => {
  const parts = fakeNode();
  const status = async () => [fakeLayerStatus(1, 1e9, 1e9 - 1)];
  const text = await printed({ ...parts, layers: { ...parts.layers, status } });
  assert.match(text, /lazy +99\.9 %/);
});

void test("durations have their two largest units", () => {
  assert.equal(formatDuration(0.4), "0 s");
  assert.equal(formatDuration(59.9), "59 s");
  assert.equal(formatDuration(125), "2 min 5 s");
  assert.equal(formatDuration(90_000), "1 d 1 h");
});
