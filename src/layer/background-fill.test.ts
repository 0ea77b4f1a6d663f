import assert from "node:assert/strict";
import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { digestOf } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import { DiskCache } from "../cache/disk-cache.ts";
import { silentLog } from "../telemetry/log.ts";
import { BackgroundFill } from "./background-fill.ts";
import { ByteBudget } from "./byte-budget.ts";
import { newLayerCounters } from "./counters.ts";
import { DemandActivity } from "./demand-activity.ts";
import { FakeSource, fakeLayer, type FakeLayer } from "./fakes.ts";
import { LayerBlob } from "./layer-blob.ts";
import { spanTableOf } from "./span-source.ts";

const base = await mkdtemp(join(tmpdir(), "clip-fill-"));
after(() => rm(base, { recursive: true, force: true }));

async function setUp(layer: FakeLayer, { bytesPerSecond }: { bytesPerSecond?: number } = {}) {
  const directory = await mkdtemp(join(base, "d-"));
  const cache = await DiskCache.open({ directory, log: silentLog });
  const file = await cache.openLayer(layer.head.layerDigest, spanTableOf(layer.head));
  const counters = newLayerCounters();
  const activity = new DemandActivity();
  const source = new FakeSource(layer);
  const blob = new LayerBlob({
    head: layer.head,
    file,
    sources: [source],
    budget: new ByteBudget(1e9),
    counters,
    activity,
    log: silentLog,
  });
  const mismatched: LayerBlob[] = [];
  const fill = new BackgroundFill({
    diskRoom: () => Infinity,
    delayMs: 0,
    ...(bytesPerSecond === undefined ? {} : { bytesPerSecond }),
    activity,
    counters,
    log: silentLog,
    verify: async ({ file }) => {
      const digest = digestOf((await file.read(0, file.size)) ?? assert.fail());
      return { digest, image: "right" };
    },
    onMismatch: (wrong) => mismatched.push(wrong),
  });
  const close = async () => {
    await fill.close();
    await blob.close();
    await cache.close();
  };
  return { blob, file, counters, activity, source, fill, mismatched, close };
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await sleep(5);
}

void test("a layer is completed and recorded as such", async () => {
  const layer = fakeLayer(50, 1000);
  const { blob, file, counters, fill, close } = await setUp(layer);
  await blob.read(10_500, 10);
  fill.schedule(blob);
  fill.schedule(blob);
  await until(() => file.complete);
  assert.equal(counters.completed, 1);
  assert.equal(counters.filledSpans, 49);
  assert.deepEqual(await file.read(0, 50_000), layer.bytes);
  await close();
});

void test("it makes way for readers", async () => {
  const layer = fakeLayer(50, 1000);
  const { blob, file, activity, source, fill, close } = await setUp(layer);
  const leave = activity.enter();
  fill.schedule(blob);
  await sleep(60);
  assert.equal(source.requests.length, 0);
  leave();
  await until(() => file.complete);
  await close();
});

void test("an index that lies about the diffID leaves nothing behind and is reported", async () => {
  const layer = fakeLayer(10, 1000);
  layer.head.diffId = digestOf(Buffer.from("something else"));
  const { blob, file, counters, fill, mismatched, close } = await setUp(layer);
  fill.schedule(blob);
  await until(() => mismatched.length === 1);
  assert.equal(counters.mismatches, 1);
  assert.equal(file.complete, false);
  assert.ok(file.spanPresent.every((one) => one === 0));
  await close();
});

void test("spans that changed on disk are fetched again", async () => {
  const layer = fakeLayer(10, 1000);
  const { blob, file, counters, fill, mismatched, close } = await setUp(layer);
  await blob.read(0, 10_000);
  await until(() => file.spanPresent.every((one) => one > 0));
  const data = await open(file.path, "r+");
  await data.write(Buffer.from("rot"), 0, 3, 4321);
  await data.close();
  fill.schedule(blob);
  await until(() => file.complete);
  assert.equal(counters.mismatches, 1);
  assert.equal(mismatched.length, 0);
  assert.deepEqual(await file.read(0, 10_000), layer.bytes);
  await close();
});

void test("it waits and tries again when the source fails", async () => {
  const layer = fakeLayer(10, 1000);
  const { blob, file, source, fill, close } = await setUp(layer);
  source.failure = new ClipError("REGISTRY_UNAVAILABLE", "down");
  fill.schedule(blob);
  await until(() => source.requests.length > 0);
  source.failure = undefined;
  await until(() => file.complete);
  await close();
});

void test("a full disk ends the fill instead of fetching what cannot be kept", async () => {
  const layer = fakeLayer(64, 1024 * 1024);
  const { blob, file, source, counters, fill, close } = await setUp(layer);
  file.write = () => Promise.reject(new ClipError("DISK_FULL", "full"));
  fill.schedule(blob);
  await until(() => counters.writeErrors > 0 && source.running === 0);
  await sleep(50);
  assert.ok(source.requests.length <= 3, `${source.requests.length} fetches`);
  await close();
});

void test("a limit on its bytes holds it back", async () => {
  const layer = fakeLayer(32, 1024 * 1024);
  const { blob, file, source, fill, close } = await setUp(layer, { bytesPerSecond: 4 * 2 ** 20 });
  fill.schedule(blob);
  await until(() => source.requests.length > 0);
  await sleep(100);
  assert.equal(source.requests.length, 1);
  assert.equal(file.complete, false);
  await close();
});

void test("cancelling stops the work on a layer", async () => {
  const layer = fakeLayer(10, 1000);
  const { blob, file, source, fill, close } = await setUp(layer);
  source.hold();
  fill.schedule(blob);
  await until(() => source.running > 0);
  await fill.cancel(blob);
  source.release();
  await sleep(30);
  assert.equal(file.complete, false);
  await close();
});
