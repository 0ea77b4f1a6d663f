import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { Semaphore } from "../base/concurrency.ts";
import { ClipError } from "../base/errors.ts";
import { DiskCache } from "../cache/disk-cache.ts";
import { readIfPresent } from "../fuse/layer.ts";
import type { FuseLayer } from "../fuse/session.ts";
import { encodeLayerIndex } from "../index/format.ts";
import { openLayerIndex } from "../index/reader.ts";
import { bufferSource } from "../index/sources.ts";
import { silentLog } from "../telemetry/log.ts";
import { ActiveLayers } from "./active-layers.ts";
import { ByteBudget } from "./byte-budget.ts";
import { newLayerCounters } from "./counters.ts";
import { DemandActivity } from "./demand-activity.ts";
import { fakeLayer } from "./fakes.ts";
import { LayerRecords } from "./records.ts";
import { spanTableOf } from "./span-source.ts";

const base = await mkdtemp(join(tmpdir(), "clip-active-"));
after(() => rm(base, { recursive: true, force: true }));

const { head, bytes } = fakeLayer(4, 5000);
const { layerDigest, diffId } = head;

/** One layer, complete on disk, and what a FUSE thread knows of it. */
async function setUp() {
  const directory = await mkdtemp(join(base, "d-"));
  const cache = await DiskCache.open({ directory: join(directory, "cache"), log: silentLog });
  const pull = await cache.beginPull(layerDigest, head.compressedSize);
  await writeFile(pull.path, bytes);
  await cache.adoptComplete(layerDigest, spanTableOf(head));
  await pull.end();
  const records = LayerRecords.open(join(directory, "layers.db"));
  const target = {
    ...{ layerDigest, diffId, compressedSize: head.compressedSize },
    mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
    manifestDigest: layerDigest,
    repositories: [],
  };
  const layer = { diffId, layerDigest, size: bytes.length, opaqueRoot: false, inodes: 1 };
  const number = records.put(target, { ...layer, ranges: true });
  const record = records.byNumber(number) ?? assert.fail();
  const shown = new Map<number, FuseLayer>();
  const show = (one: FuseLayer) => void shown.set(one.number, one);
  const active = new ActiveLayers({
    session: {
      addLayer: show,
      replaceLayer: show,
      removeLayer: (gone) => void shown.delete(gone),
    },
    registry: {
      has: () => Promise.resolve(false),
      blob: () => assert.fail("no repository is known"),
    },
    ...{ cache, records, budget: new ByteBudget(1e9), activity: new DemandActivity() },
    ...{ counters: newLayerCounters(), pulls: new Semaphore(1), log: silentLog },
    loadImage: () => Promise.resolve(undefined),
    reopen: () => assert.fail("nothing is read"),
    recover: () => Promise.resolve(undefined),
    onLost: () => {},
    openAlternate: () => Promise.resolve(undefined),
  });
  const index = () => {
    const windows = head.spans.map(() => Buffer.alloc(0));
    return openLayerIndex(bufferSource(encodeLayerIndex({ head, entries: [], windows })));
  };
  const close = async () => {
    await active.close();
    await cache.close();
    records.close();
  };
  const threadView = () => shown.get(number) ?? assert.fail("the layer is not shown");
  return { active, cache, record, threadView, index, close };
}

/** Whether a thread that knows the layer like that would answer a read by itself. */
function answers(layer: FuseLayer): boolean {
  return readIfPresent(layer, 0, layer.size, () => true);
}

test("what threads know of a complete layer is void once its file may be another one", async () => {
  const { active, cache, record, threadView, index, close } = await setUp();
  await active.addComplete(record, cache.dataPath(layerDigest));
  const before = threadView();
  assert.equal(answers(before), true);
  // Nothing is claimed of the file any more, so an empty one takes its place.
  await cache.disown(layerDigest);
  const blob = await active.addPartial(record, await index());
  assert.deepEqual(await readFile(before.dataPath), Buffer.alloc(bytes.length));
  assert.equal(blob.file.has(0), false);
  assert.equal(answers(before), false);
  await close();
});

test("what threads know of a layer is void while it is suspended, and right afterwards", async () => {
  const { active, record, threadView, index, close } = await setUp();
  await active.addPartial(record, await index());
  const before = threadView();
  assert.equal(answers(before), true);
  const kept = (await active.suspend(record.number)) ?? assert.fail();
  assert.equal(answers(before), false);
  await active.addPartial(record, kept);
  assert.equal(answers(before), false);
  assert.equal(answers(threadView()), true);
  await close();
});

test("a layer that is suspended goes on although its file did not close well", async () => {
  const { active, record, threadView, index, close } = await setUp();
  const { file } = await active.addPartial(record, await index());
  const closeFile = file.close.bind(file);
  file.close = async () => {
    await closeFile();
    throw new ClipError("SYSTEM_CALL", "EIO of close(2)");
  };
  const kept = (await active.suspend(record.number)) ?? assert.fail("the index is lost");
  const blob = await active.addPartial(record, kept);
  assert.deepEqual(Buffer.concat(await blob.read(0, bytes.length)), bytes);
  assert.equal(answers(threadView()), true);
  await close();
});

test("what has to be had again is read by nobody before", async () => {
  const { active, cache, record, threadView, close } = await setUp();
  await active.addMissing(record, cache.dataPath(layerDigest));
  assert.equal(answers(threadView()), false);
  await close();
});
