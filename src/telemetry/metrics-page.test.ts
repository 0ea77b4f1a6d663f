import assert from "node:assert/strict";
import { test } from "node:test";
import { Latencies } from "./latencies.ts";
import { MetricsPage } from "./metrics-page.ts";

void test("values are read from the state that the page is rendered for", async () => {
  const page = new MetricsPage<{ hits: number; layers: string[] }>();
  page.counter("hits_total", "Hits.", ({ hits }) => hits);
  page.gauge("layer_info", "Layers.", ({ layers }) =>
    layers.map((name) => ({ labels: { name }, value: 1 })),
  );
  const text = await page.render({ hits: 3, layers: ['a "b"\n\\'] });
  assert.equal(
    text,
    [
      "# HELP hits_total Hits.",
      "# TYPE hits_total counter",
      "hits_total 3",
      "",
      "# HELP layer_info Layers.",
      "# TYPE layer_info gauge",
      'layer_info{name="a \\"b\\"\\n\\\\"} 1',
      "",
    ].join("\n"),
  );
  assert.match(await page.render({ hits: 4, layers: [] }), /^hits_total 4$/m);
  assert.deepEqual(page.names, ["hits_total", "layer_info"]);
});

void test("durations are cumulative, in seconds", async () => {
  const page = new MetricsPage<Latencies>();
  page.histogram("wait_seconds", "Waits.", (latencies) => [{ labels: { to: "x" }, latencies }]);
  const latencies = new Latencies();
  for (const duration of [0.25, 3, 90_000]) latencies.add(duration);
  const lines = (await page.render(latencies)).split("\n");
  assert.ok(lines.includes("# TYPE wait_seconds histogram"));
  assert.ok(lines.includes('wait_seconds_bucket{to="x",le="0.0005"} 1'));
  assert.ok(lines.includes('wait_seconds_bucket{to="x",le="0.005"} 2'));
  assert.ok(lines.includes('wait_seconds_bucket{to="x",le="60"} 2'));
  assert.ok(lines.includes('wait_seconds_bucket{to="x",le="+Inf"} 3'));
  assert.ok(lines.includes('wait_seconds_sum{to="x"} 90.00325'));
  assert.ok(lines.includes('wait_seconds_count{to="x"} 3'));
});

void test("what every process tells is there when wanted", async () => {
  const page = new MetricsPage<object>();
  page.processMetrics();
  assert.match(await page.render({}), /^process_resident_memory_bytes \d+$/m);
});
