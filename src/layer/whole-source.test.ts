import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { Semaphore } from "../base/concurrency.ts";
import { ClipError } from "../base/errors.ts";
import { DiskCache } from "../cache/disk-cache.ts";
import { silentLog } from "../telemetry/log.ts";
import { newLayerCounters } from "./counters.ts";
import { fakeLayer, FakeSource, type FakeLayer } from "./fakes.ts";
import { spanTableOf } from "./span-source.ts";
import { WholeSource } from "./whole-source.ts";

const base = await mkdtemp(join(tmpdir(), "clip-whole-"));
after(() => rm(base, { recursive: true, force: true }));

const spanCount = 10;
const spanBytes = 20_000;
const layer = fakeLayer(spanCount, spanBytes);
const never = new AbortController().signal;

async function setUp({ needed = true, bytesMax = 0 } = {}) {
  const limits = { bytesMax, freeBytesMin: 0 };
  const directory = await mkdtemp(join(base, "c-"));
  const cache = await DiskCache.open({ directory, limits, log: silentLog });
  // What is open may not go: then no room can be made.
  cache.setUsers({
    devices: () => new Set([layer.head.layerDigest]),
    unshared: () => new Set(),
    costly: () => new Set(),
    ifUnused: async () => false,
  });
  const file = await cache.openLayer(layer.head.layerDigest, spanTableOf(layer.head));
  const registry = new FakeSource(layer);
  const begun: number[] = [];
  const counters = newLayerCounters();
  const source = new WholeSource({
    ...{ head: layer.head, file, source: registry, counters, log: silentLog },
    isNeeded: async () => needed,
    onBegin: () => begun.push(1),
    pulls: new Semaphore(1),
  });
  const close = async () => {
    await source.close();
    await cache.close();
  };
  return { file, registry, source, counters, begun, close };
}

async function read(source: WholeSource, first: number, last: number, signal = never) {
  const pieces: Buffer[] = [];
  for await (const bytes of source.stream(first * spanBytes, (last + 1) * spanBytes, signal)) {
    pieces.push(bytes);
  }
  return Buffer.concat(pieces);
}

const right = (first: number, last: number, of: FakeLayer = layer) =>
  of.bytes.subarray(first * spanBytes, (last + 1) * spanBytes);

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 1));
}

void test("all readers share one pass, and what nobody asked for is kept as well", async () => {
  const { file, registry, source, counters, begun, close } = await setUp();
  registry.hold();
  const ranges = [
    [7, 9],
    [2, 2],
    [2, 3],
  ] as const;
  const reading = ranges.map(([first, last]) => read(source, first, last));
  await until(() => registry.running === 1);
  registry.release();
  for (const [at, bytes] of (await Promise.all(reading)).entries()) {
    const [first, last] = ranges[at] ?? assert.fail();
    assert.ok(bytes.equals(right(first, last)));
  }
  await until(() => counters.wholePulls === 1);
  assert.deepEqual(registry.requests, [{ start: 0, end: layer.bytes.length }]);
  assert.deepEqual(await file.read(0, layer.bytes.length), layer.bytes);
  assert.equal(begun.length, 1);
  await close();
});

void test("nothing is pulled where parts can be had", async () => {
  const { registry, source, close } = await setUp({ needed: false });
  assert.equal((await read(source, 0, 3)).length, 0);
  assert.equal(registry.requests.length, 0);
  await close();
});

void test("a pass ends where nothing is missing any more", async () => {
  const { file, registry, source, counters, close } = await setUp();
  for (let span = 4; span < spanCount; span++) await file.write(span, right(span, span));
  assert.ok((await read(source, 1, 1)).equals(right(1, 1)));
  await until(() => counters.wholePulls === 1);
  assert.ok((counters.sources.get("registry")?.spans ?? 0) < spanCount);
  assert.equal(registry.running, 0);
  await close();
});

void test("what has no room on disk is read all the same, and again with another pass", async () => {
  const { file, registry, source, counters, close } = await setUp({ bytesMax: 3 * spanBytes });
  for (let time = 1; time <= 2; time++) {
    assert.ok((await read(source, 5, 6)).equals(right(5, 6)));
    await until(() => counters.wholePulls === time);
  }
  assert.equal(registry.requests.length, 2);
  assert.equal(file.has(6), false);
  await close();
});

void test("a reader that gives up does not end the pass; a failure reaches all and is not kept", async () => {
  const { registry, source, counters, close } = await setUp();
  registry.hold();
  const reader = new AbortController();
  const left = read(source, 3, 3, reader.signal);
  const waiting = read(source, 4, 4);
  await until(() => registry.running === 1);
  reader.abort();
  await assert.rejects(left, { code: "ABORTED" });
  registry.failure = new ClipError("REGISTRY_UNAVAILABLE", "down");
  registry.release();
  await assert.rejects(waiting, { code: "REGISTRY_UNAVAILABLE" });
  assert.equal(counters.wholePullErrors, 1);
  registry.failure = undefined;
  assert.ok((await read(source, 4, 4)).equals(right(4, 4)));
  await close();
});

void test("wrong bytes reach nobody", async () => {
  const { file, registry, source, close } = await setUp();
  registry.damageSpan = 2;
  await assert.rejects(read(source, 2, 5), { code: "CORRUPT_LAYER" });
  assert.equal(file.has(1), true);
  assert.equal(file.has(2), false);
  await close();
});

void test("when the layer is closed whoever waits is told", async () => {
  const { registry, source, close } = await setUp();
  registry.hold();
  const waiting = read(source, 3, 3);
  waiting.catch(() => {});
  await until(() => registry.running === 1);
  await close();
  await assert.rejects(waiting);
  await assert.rejects(read(source, 3, 3), { code: "CLOSED" });
  assert.equal(registry.running, 0);
});
