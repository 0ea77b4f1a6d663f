import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { fakeNode } from "./fake-node.ts";
import { createMetricsPage } from "./metrics.ts";
import { readNodeState } from "./node-state.ts";

async function render(parts = fakeNode()): Promise<string[]> {
  return (await createMetricsPage().render(await readNodeState(parts))).split("\n");
}

void test("the node's numbers are in the page", async () => {
  const lines = await render();
  for (const line of [
    'clip_grpc_call_duration_seconds_count{method="Prepare",code="ALREADY_EXISTS"} 2',
    'clip_grpc_call_duration_seconds_sum{method="Prepare",code="ALREADY_EXISTS"} 0.015',
    'clip_fallbacks_total{reason="image_unknown"} 2',
    'clip_snapshots{kind="remote"} 5',
    'clip_fuse_requests_total{opcode="READ"} 100',
    "clip_local_reads_total 80",
    "clip_reads_waiting 4",
    'clip_wanted_spans_total{found="missing"} 18',
    'clip_tier_spans_total{tier="registry"} 15',
    'clip_tier_bytes_total{tier="content_cache"} 5242880',
    'clip_tier_corrupt_spans_total{tier="registry"} 2',
    'clip_tier_first_span_seconds_bucket{tier="registry",le="0.05"} 1',
    'clip_registry_answers_total{host="r.io",status="206"} 9',
    'clip_registry_bytes_total{host="r.io"} 7340032',
    'clip_registry_faults_total{host="r.io",fault="slow"} 2',
    'clip_layers{state="lazy"} 1',
    'clip_layers{state="complete"} 1',
    "clip_layer_bytes 41000000",
    "clip_layer_local_bytes 5000000",
    "clip_disk_cache_bytes 5008192",
    "clip_whole_pull_bytes_total 5000000",
    'clip_whole_pulls{state="waiting"} 3',
    'clip_content_cache_call_duration_seconds_bucket{cache="redis",operation="read",outcome="hit",le="0.01"} 4',
    'clip_content_cache_bytes_total{cache="redis",operation="read",outcome="hit"} 5242880',
  ]) {
    assert.ok(lines.includes(line), line);
  }
});

void test("a node without content caches says nothing of them", async () => {
  const { contentCache: _, ...parts } = fakeNode();
  const lines = await render(parts);
  assert.ok(lines.includes("# TYPE clip_content_cache_bytes_total counter"));
  assert.ok(!lines.some((line) => line.startsWith("clip_content_cache_bytes_total{")));
});

void test("names are as Prometheus wants them", async () => {
  const lines = await render();
  for (const line of lines) {
    const [, name, type] = /^# TYPE (clip_\S+) (\S+)$/.exec(line) ?? [];
    if (name === undefined) continue;
    assert.equal(name.endsWith("_total"), type === "counter", name);
    assert.equal(name.endsWith("_seconds"), type === "histogram", name);
  }
  const sample = /^[a-zA-Z_:][a-zA-Z0-9_:]*(\{[a-z_]+="[^"\n]*"(,[a-z_]+="[^"\n]*")*\})? \S+$/;
  for (const line of lines) {
    if (line !== "" && !line.startsWith("#")) assert.match(line, sample);
  }
});

void test("docs/metrics.md has a line for each metric, and for no other", async () => {
  const text = await readFile(new URL("../../docs/metrics.md", import.meta.url), "utf8");
  const told = [...text.matchAll(/^\| `(clip_[a-z_]+)` +\| (?:counter|gauge|histogram) /gm)].map(
    ([, name]) => name,
  );
  assert.equal(told.length, new Set(told).size);
  const names = createMetricsPage().names.filter((name) => name.startsWith("clip_"));
  assert.deepEqual(new Set(told), new Set(names));
});
