import assert from "node:assert/strict";
import { mkdtemp, rm, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import fc from "fast-check";
import { ClipError } from "../base/errors.ts";
import { DiskCache } from "../cache/disk-cache.ts";
import { silentLog } from "../telemetry/log.ts";
import { ByteBudget } from "./byte-budget.ts";
import { newLayerCounters } from "./counters.ts";
import { DemandActivity } from "./demand-activity.ts";
import { FakeSource, fakeLayer, type FakeLayer } from "./fakes.ts";
import { LayerBlob } from "./layer-blob.ts";
import { spanTableOf } from "./span-source.ts";

const base = await mkdtemp(join(tmpdir(), "clip-layer-"));
after(() => rm(base, { recursive: true, force: true }));

async function openBlob(
  layer: FakeLayer,
  sources: FakeSource[] = [new FakeSource(layer)],
  budget = new ByteBudget(64 * 1024 * 1024),
) {
  const directory = await mkdtemp(join(base, "d-"));
  const cache = await DiskCache.open({ directory, log: silentLog });
  const file = await cache.openLayer(layer.head.layerDigest, spanTableOf(layer.head));
  const counters = newLayerCounters();
  const blob = new LayerBlob({
    head: layer.head,
    file,
    sources,
    budget,
    counters,
    log: silentLog,
    activity: new DemandActivity(),
  });
  const close = async () => {
    await blob.close();
    await cache.close();
  };
  return { blob, file, counters, close, source: sources[0] ?? assert.fail() };
}

const joined = (pieces: Buffer[]) => Buffer.concat(pieces);

void test("any reads in any order give the bytes of the layer", async () => {
  const layer = fakeLayer(20, 1000);
  const { blob, close } = await openBlob(layer);
  const reads = fc.array(fc.tuple(fc.nat(21_000), fc.nat(5000)), { minLength: 1, maxLength: 8 });
  await fc.assert(
    fc.asyncProperty(reads, async (ranges) => {
      const results = await Promise.all(
        ranges.map(async ([offset, length]) => joined(await blob.read(offset, length))),
      );
      for (const [at, [offset, length]] of ranges.entries()) {
        assert.deepEqual(results[at], layer.bytes.subarray(offset, offset + length));
      }
    }),
    { numRuns: 40 },
  );
  await close();
});

void test("many readers of one span cause one fetch", async () => {
  const layer = fakeLayer(8, 1000);
  const { blob, source, counters, close } = await openBlob(layer);
  source.hold();
  const reads = Array.from({ length: 10 }, () => blob.read(3100, 50));
  source.release();
  for (const pieces of await Promise.all(reads)) {
    assert.deepEqual(joined(pieces), layer.bytes.subarray(3100, 3150));
  }
  assert.deepEqual(source.requests, [{ start: 3000, end: 4000 }]);
  assert.equal(counters.spanMisses, 1);
  assert.equal(counters.spanJoins, 9);
  await close();
});

void test("neighbouring missing spans are one range, and present ones are not fetched again", async () => {
  const layer = fakeLayer(8, 1000);
  const { blob, source, file, close } = await openBlob(layer);
  await blob.read(4200, 10);
  await file.flush();
  await blob.read(1500, 5000);
  assert.deepEqual(source.requests, [
    { start: 4000, end: 5000 },
    { start: 1000, end: 4000 },
    { start: 5000, end: 7000 },
  ]);
  await close();
});

void test("a span is answered from memory although the disk is full", async () => {
  const layer = fakeLayer(4, 1000);
  const { blob, file, counters, close } = await openBlob(layer);
  file.write = () => Promise.reject(new ClipError("DISK_FULL", "full"));
  assert.deepEqual(joined(await blob.read(0, 4000)), layer.bytes);
  while (blob.isFetching(3)) await new Promise((resolve) => setImmediate(resolve));
  assert.equal(counters.writeErrors, 4);
  assert.equal(file.has(0), false);
  await close();
});

void test("wrong bytes are never seen: the next source is asked", async () => {
  const layer = fakeLayer(4, 1000);
  const bad = new FakeSource(layer, "cache");
  bad.damageSpan = 2;
  const good = new FakeSource(layer, "registry");
  const { blob, counters, close } = await openBlob(layer, [bad, good]);
  assert.deepEqual(joined(await blob.read(0, 4000)), layer.bytes);
  assert.equal(counters.sources.get("cache")?.corrupt, 1);
  assert.equal(counters.sources.get("cache")?.spans, 2);
  // What had arrived before the wrong span is not fetched again.
  assert.deepEqual(good.requests, [{ start: 2000, end: 4000 }]);
  await close();
});

void test("a source that was wrong is asked once more, then the read fails, then it may recover", async () => {
  const layer = fakeLayer(4, 1000);
  const { blob, source, close } = await openBlob(layer);
  source.damageSpan = 1;
  await assert.rejects(blob.read(1000, 10), { code: "CORRUPT_LAYER" });
  assert.equal(source.requests.length, 2);
  source.damageSpan = undefined;
  assert.deepEqual(joined(await blob.read(1000, 10)), layer.bytes.subarray(1000, 1010));
  await close();
});

void test("a source that ends too early or fails is a failure, not short data", async () => {
  const layer = fakeLayer(4, 1000);
  const { blob, source, close } = await openBlob(layer);
  source.endAt = 2500;
  await assert.rejects(blob.read(0, 4000), { code: "CORRUPT_LAYER" });
  source.endAt = undefined;
  source.failure = new ClipError("REGISTRY_UNAVAILABLE", "down");
  await assert.rejects(blob.read(3000, 10), { code: "REGISTRY_UNAVAILABLE" });
  assert.deepEqual(joined(await blob.read(0, 10)), layer.bytes.subarray(0, 10));
  await close();
});

void test("a reader that gives up does not disturb the others", async () => {
  const layer = fakeLayer(4, 1000);
  const { blob, source, close } = await openBlob(layer);
  source.hold();
  const abort = new AbortController();
  const leaving = blob.read(0, 100, abort.signal);
  const staying = blob.read(0, 100);
  abort.abort();
  await assert.rejects(leaving, { code: "ABORTED" });
  source.release();
  assert.deepEqual(joined(await staying), layer.bytes.subarray(0, 100));
  assert.equal(source.requests.length, 1);
  await close();
});

void test("of the fetches that nobody waits for, only a few go on", async () => {
  const layer = fakeLayer(40, 1000);
  const { blob, source, close } = await openBlob(layer);
  source.hold();
  for (let span = 0; span < 40; span += 2) {
    const abort = new AbortController();
    const read = blob.read(span * 1000, 10, abort.signal);
    await new Promise((resolve) => setImmediate(resolve));
    abort.abort();
    await assert.rejects(read, { code: "ABORTED" });
  }
  assert.ok(source.running <= 4, `${source.running} still running`);
  source.release();
  assert.deepEqual(joined(await blob.read(0, 100)), layer.bytes.subarray(0, 100));
  await close();
});

void test("memory for fetches is bounded", async () => {
  const layer = fakeLayer(64, 1000);
  const budget = new ByteBudget(8000);
  const { blob, source, close } = await openBlob(layer, undefined, budget);
  const reads = [];
  for (let span = 0; span < 64; span += 2) reads.push(blob.read(span * 1000, 1000));
  const results = await Promise.all(reads);
  for (const [at, pieces] of results.entries()) {
    assert.deepEqual(joined(pieces), layer.bytes.subarray(at * 2000, at * 2000 + 1000));
  }
  assert.ok(source.runningMax <= 8, `${source.runningMax} at once`);
  await close();
  assert.equal(budget.used, 0);
});

void test("small reads fetch nothing ahead, a sequential reader has ever more fetched ahead", async () => {
  const MiB = 1024 * 1024;
  const layer = fakeLayer(64, MiB);
  const { blob, file, counters, close } = await openBlob(layer);
  for (const offset of [50, 20, 40, 10]) await blob.read(offset * MiB, 4096);
  assert.equal(counters.prefetchedSpans, 0);

  let missesWhileReading = 0;
  for (let offset = 0; offset < 64 * MiB; offset += MiB) {
    await file.flush();
    // FUSE threads answer what is present; only misses come here.
    if (file.has(offset / MiB)) continue;
    missesWhileReading++;
    await blob.read(offset, MiB);
    const isFetching = () => layer.head.spans.some((_, span) => blob.isFetching(span));
    while (isFetching()) await new Promise((resolve) => setImmediate(resolve));
  }
  assert.ok(missesWhileReading < 20, `${missesWhileReading} misses`);
  assert.ok(counters.prefetchedSpans > 40);
  await close();
});

void test("closing gives up what is on its way", async () => {
  const layer = fakeLayer(4, 1000);
  const { blob, source, close } = await openBlob(layer);
  source.hold();
  const read = blob.read(0, 100);
  const failing = assert.rejects(read);
  await close();
  await failing;
  assert.equal(source.running, 0);
});

void test("a condemned layer gives nothing", async () => {
  const layer = fakeLayer(4, 1000);
  const { blob, close } = await openBlob(layer);
  await blob.read(0, 4000);
  blob.condemn(new ClipError("CORRUPT_LAYER", "not what it claims"));
  await assert.rejects(blob.read(0, 10), { code: "CORRUPT_LAYER" });
  await close();
});

void test("a file that was cut short costs readers nothing, however many there are", async () => {
  const layer = fakeLayer(20, 1000);
  const { blob, file, counters, close } = await openBlob(layer);
  assert.deepEqual(joined(await blob.read(0, 20_000)), layer.bytes);
  await blob.restore([...file.spanPresent.keys()], new AbortController().signal);
  await file.flush();
  await truncate(file.path, 4500);
  const reads = Array.from({ length: 30 }, (_, at) => [at * 600, 3000] as const);
  const results = await Promise.all(reads.map(([offset, length]) => blob.read(offset, length)));
  for (const [at, [offset, length]] of reads.entries()) {
    assert.deepEqual(joined(results[at] ?? []), layer.bytes.subarray(offset, offset + length));
  }
  assert.ok(counters.unreadableSpans >= 15);
  await close();
});

void test("spans that were given up are fetched and kept; those that cannot be had are left", async () => {
  const layer = fakeLayer(6, 1000);
  const { blob, file, close, source } = await openBlob(layer);
  const signal = new AbortController().signal;
  assert.equal(await blob.restore([1, 2, 4], signal), 3);
  assert.deepEqual([...file.spanPresent], [0, 1, 1, 0, 1, 0]);
  source.failure = new ClipError("REGISTRY_UNAVAILABLE", "the registry is away");
  await file.drop([2]);
  assert.equal(await blob.restore([1, 2], signal), 1);
  await close();
});

void test("once no source answers for a span that was given up, the rest is not asked for", async () => {
  const layer = fakeLayer(6, 1000);
  const cache = new FakeSource(layer, "cache");
  const registry = new FakeSource(layer, "registry");
  const { blob, file, close } = await openBlob(layer, [cache, registry]);
  const signal = new AbortController().signal;
  cache.failure = new ClipError("CACHE_UNAVAILABLE", "the cache is away");
  registry.failure = new ClipError("REGISTRY_UNAVAILABLE", "the registry is away");
  assert.equal(await blob.restore([0, 1, 2, 3], signal), 0);
  assert.deepEqual([cache.requests.length, registry.requests.length], [1, 1]);
  cache.failure = undefined;
  assert.equal(await blob.restore([0, 1, 2, 3], signal), 4);

  // Wrong bytes say nothing of the other spans.
  await file.drop([0, 1, 2, 3]);
  cache.failure = new ClipError("CACHE_UNAVAILABLE", "the cache is away");
  registry.failure = undefined;
  registry.damageSpan = 1;
  assert.equal(await blob.restore([0, 1, 2, 3], signal), 3);
  await close();
});

void test("once some spans that were given up have come wrong, the rest is not asked for", async () => {
  const layer = fakeLayer(8, 1000);
  // What comes is that of another layer.
  const source = new FakeSource(fakeLayer(8, 1000, "other"));
  const { blob, close } = await openBlob(layer, [source]);
  const spans = layer.head.spans.map((_, span) => span);
  assert.equal(await blob.restore(spans, new AbortController().signal), 0);
  assert.deepEqual(new Set(source.requests.map(({ start }) => start)), new Set([0, 1000, 2000]));
  await close();
});
