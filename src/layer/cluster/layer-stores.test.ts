import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { pino } from "pino";
import { digestKey } from "../../base/digest.ts";
import { ClipError } from "../../base/errors.ts";
import { chainOf } from "../../cache/content/chain.ts";
import type { ContentCache } from "../../cache/content/content-cache.ts";
import { MemoryCache } from "../../cache/content/testing/memory-cache.ts";
import { encodeLayerIndex } from "../../index/format.ts";
import { IndexStore } from "../../index/store.ts";
import { silentLog } from "../../telemetry/log.ts";
import { DemandActivity } from "../demand-activity.ts";
import { fakeLayer } from "../fakes.ts";
import { LayerRecords } from "../records.ts";
import { TrustedIndexes } from "../trusted-indexes.ts";
import { LayerStores } from "./layer-stores.ts";
import { SharedObjects } from "./shared-objects.ts";
import { StoreQueue } from "./store-queue.ts";

const base = await mkdtemp(join(tmpdir(), "clip-layer-stores-"));
after(() => rm(base, { recursive: true, force: true }));

const fake = fakeLayer(4, 50_000);
const { layerDigest, diffId, uncompressedSize } = fake.head;
const layer = { layerDigest, diffId, size: uncompressedSize };
/** A layer and its index. */
const objectsOfLayer = 2;

/** `shared` takes the place of the cache in memory. */
async function setUp(shared?: ContentCache) {
  const directory = await mkdtemp(join(base, "d-"));
  const kept = new IndexStore({ directory: join(directory, "i"), bytesMax: 1e9, log: silentLog });
  await kept.start();
  const windows = fake.head.spans.map(() => Buffer.alloc(0));
  await kept.put(layerDigest, encodeLayerIndex({ head: fake.head, entries: [], windows }));
  const records = LayerRecords.open(join(directory, "layers.db"));
  const indexes = new TrustedIndexes({ indexes: kept, records, log: silentLog });
  const file = join(directory, "layer");
  await writeFile(file, fake.bytes);
  const cache = new MemoryCache();
  const objects = new SharedObjects({ keyDerivation: "layer-digest", members: ["memory"] });
  const counters = {
    ...{ indexes: 0, indexesRefused: 0, quarantined: 0, repaired: 0 },
    ...{ stored: 0, alreadyStored: 0, storeErrors: 0, storesDropped: 0 },
  };
  const state: { path: string | undefined; known: boolean } = { path: file, known: true };
  const activity = new DemandActivity();
  const lines: Record<string, unknown>[] = [];
  const write = (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>);
  const queue = () => StoreQueue.open(join(directory, "stores.db"), 10);
  const open = () =>
    new LayerStores({
      queue: queue(),
      ...{ objects, indexes, activity, counters, indexKey: undefined },
      cache: shared ?? cache,
      layers: {
        all: () => (state.known ? [layer] : []),
        completePath: async () => state.path,
      },
      bytesPerSecond: undefined,
      log: pino({ level: "debug", base: null, timestamp: false }, { write }),
      backoffMsMin: 5,
    });
  return { cache, objects, counters, state, activity, lines, file, kept, indexes, queue, open };
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await sleep(5);
}

test("a layer and its index are stored, with a line for each step", async () => {
  const { cache, objects, counters, lines, file, open } = await setUp();
  const stores = open();
  stores.add(layer, false);
  await until(() => stores.length === 0);
  assert.ok(cache.objects.get(objects.layerKey(layer))?.equals(fake.bytes));
  assert.ok(cache.objects.has(objects.indexKey(layerDigest)));
  assert.equal(counters.stored, 1);
  const named = { layer: layerDigest, cacheKey: digestKey(layerDigest) };
  const bytes = uncompressedSize;
  const done =
    "successfully stored decompressed layer in ContentCache - available for cluster range reads";
  const durationMs = lines[2]?.["durationMs"];
  assert.equal(typeof durationMs, "number");
  assert.deepEqual(lines, [
    { level: 30, ...named, bytes, msg: "storing decompressed layer in ContentCache (async)" },
    { level: 20, ...named, path: file, msg: "store of decompressed layer started" },
    { level: 30, ...named, bytes, durationMs, stored: true, msg: done },
  ]);
  stores.add(layer, false);
  await until(() => stores.length === 0);
  assert.equal(counters.alreadyStored, 1);
  await stores.close();
});

test("a store that fails is tried again until it succeeds", async () => {
  const { cache, counters, lines, open } = await setUp();
  let failures = 3 * objectsOfLayer;
  cache.before = async (operation) => {
    if (operation === "store" && failures-- > 0) throw new ClipError("CACHE_UNAVAILABLE", "down");
  };
  const stores = open();
  stores.add(layer, false);
  await until(() => counters.stored === 1);
  assert.equal(counters.storeErrors, 3);
  const failed = lines.filter(({ msg }) => String(msg).startsWith("FAILED"));
  assert.equal(failed.length, 3);
  for (const { level, layer: digest, cacheKey, bytes, durationMs, error, retryMs } of failed) {
    assert.deepEqual([level, digest, cacheKey], [50, layerDigest, digestKey(layerDigest)]);
    assert.deepEqual([bytes, typeof durationMs, error], [uncompressedSize, "number", "down"]);
    assert.ok(Number(retryMs) > 0);
  }
  await stores.close();
});

test("a member of a chain that is down does not keep a layer from the others", async () => {
  const near = new MemoryCache("near");
  const far = new MemoryCache("far");
  near.before = () => Promise.reject(new ClipError("CACHE_UNAVAILABLE", "down"));
  const { objects, counters, open } = await setUp(chainOf([{ cache: near }, { cache: far }]));
  const stores = open();
  stores.add(layer, false);
  await until(() => counters.storeErrors === 2);
  assert.ok(far.objects.get(objects.layerKey(layer))?.equals(fake.bytes));
  assert.ok(far.objects.has(objects.indexKey(layerDigest)));
  assert.equal(stores.length, 1);
  near.before = () => Promise.resolve();
  await until(() => stores.length === 0);
  assert.equal(near.objects.size, objectsOfLayer);
  assert.equal(counters.stored, 1);
  await stores.close();
});

test("what is put in place of a wrong layer is uploaded once to each member, whoever fails", async () => {
  const near = new MemoryCache("near");
  const far = new MemoryCache("far");
  const { objects, counters, open } = await setUp(chainOf([{ cache: near }, { cache: far }]));
  const keys = [objects.layerKey(layer), objects.indexKey(layerDigest)];
  for (const cache of [near, far]) {
    for (const key of keys) cache.objects.set(key, Buffer.from("wrong"));
  }
  far.before = () => Promise.reject(new ClipError("CACHE_UNAVAILABLE", "down"));
  const stores = open();
  stores.add(layer, true);
  await until(() => counters.storeErrors === 1);
  const uploaded = keys.map((key) => near.objects.get(key));
  await until(() => counters.storeErrors === 3);
  for (const [at, key] of keys.entries()) assert.equal(near.objects.get(key), uploaded[at]);
  const layerKey = keys[0] ?? assert.fail();
  // It has gone wrong again since.
  near.objects.set(layerKey, Buffer.from("wrong"));
  stores.add(layer, true);
  await until(() => near.objects.get(layerKey)?.equals(fake.bytes) === true);
  far.before = () => Promise.resolve();
  await until(() => stores.length === 0);
  assert.ok(far.objects.get(layerKey)?.equals(fake.bytes));
  assert.deepEqual([counters.stored, counters.repaired, counters.alreadyStored], [1, 1, 0]);
  await stores.close();
});

test("an index that has lied is not stored", async () => {
  const { cache, counters, kept, indexes, open } = await setUp();
  const reader = (await indexes.open(layerDigest)) ?? assert.fail();
  await reader.close();
  const encoded = await indexes.encoded(layerDigest);
  await indexes.distrust(reader);
  // As whoever had it from somewhere before that may keep it after.
  await kept.put(layerDigest, encoded ?? assert.fail());
  const stores = open();
  stores.add(layer, false);
  await until(() => stores.length === 0);
  assert.equal(counters.storesDropped, 1);
  assert.equal(cache.objects.size, 0);
  await stores.close();
});

test("what was being stored when it stopped is stored by the next run", async () => {
  const { cache, objects, counters, open } = await setUp();
  const begun = Promise.withResolvers<void>();
  cache.before = async (_, signal) => {
    begun.resolve();
    await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
  };
  const stores = open();
  stores.add(layer, false);
  await begun.promise;
  await stores.close();
  assert.equal(cache.objects.size, 0);
  cache.before = () => Promise.resolve();
  const again = open();
  again.start();
  await until(() => counters.stored === 1);
  assert.ok(cache.objects.has(objects.layerKey(layer)));
  await again.close();
});

test("a layer that became complete when a crash cut it off is stored by the next run, once", async () => {
  const { cache, objects, counters, queue, open } = await setUp();
  const stores = open();
  stores.start();
  await until(() => counters.stored === 1);
  assert.ok(cache.objects.has(objects.layerKey(layer)));
  await stores.close();
  const settled = queue();
  assert.deepEqual(settled.unsettled([layer]), []);
  assert.deepEqual(settled.unsettled([]), []);
  assert.deepEqual(settled.unsettled([layer]), [layer], "it has gone and come again");
  settled.close();
});

test("a layer that the cluster had is not stored by the next run", async () => {
  const { queue, open } = await setUp();
  const stores = open();
  stores.settle(layer);
  await stores.close();
  const settled = queue();
  assert.deepEqual(settled.unsettled([layer]), []);
  settled.close();
});

test("a layer that has changed on disk is not stored", async () => {
  const { cache, objects, counters, lines, file, open } = await setUp();
  const punched = Buffer.from(fake.bytes).fill(0, 120_000, 125_000);
  await writeFile(file, punched);
  const stores = open();
  stores.add(layer, false);
  await until(() => stores.length === 0);
  assert.equal(cache.objects.has(objects.layerKey(layer)), false);
  assert.equal(counters.storesDropped, 1);
  assert.ok(lines.some(({ msg }) => msg === "a layer will not be stored"));
  await stores.close();
});

test("a layer that is not complete is waited for, one that is gone is not", async () => {
  const { counters, state, file, open } = await setUp();
  state.path = undefined;
  const stores = open();
  stores.add(layer, false);
  await sleep(30);
  assert.equal(stores.length, 1);
  state.path = file;
  await until(() => counters.stored === 1);
  Object.assign(state, { path: undefined, known: false });
  stores.add(layer, false);
  await until(() => stores.length === 0);
  assert.equal(counters.storesDropped, 1);
  await stores.close();
});

test("a layer that was queued before the clock was set back is stored all the same", async () => {
  const { counters, queue, open } = await setUp();
  const tenYears = 10 * 365 * 24 * 3600 * 1000;
  const before = queue();
  before.add(layer, false, Date.now() + tenYears);
  before.close();
  const stores = open();
  stores.start();
  await until(() => counters.stored === 1);
  await stores.close();
});

test("nothing is uploaded while a reader waits", async () => {
  const { counters, activity, open } = await setUp();
  const leave = activity.enter();
  const stores = open();
  stores.add(layer, false);
  await sleep(150);
  assert.equal(counters.stored, 0);
  leave();
  await until(() => counters.stored === 1);
  await stores.close();
});
