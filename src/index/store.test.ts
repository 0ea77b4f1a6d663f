import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { type Digest, digestKey, digestOf } from "../base/digest.ts";
import { isClipError } from "../base/errors.ts";
import type { RangeSource } from "../base/range.ts";
import { silentLog } from "../telemetry/log.ts";
import { encodeLayerIndex } from "./format.ts";
import type { PublishedIndex } from "./published.ts";
import { openLayerIndex } from "./reader.ts";
import { bufferSource } from "./sources.ts";
import { IndexStore } from "./store.ts";

const root = mkdtempSync(join(tmpdir(), "clip-store-"));
after(() => rmSync(root, { recursive: true, force: true }));

let stores = 0;
async function newStore(bytesMax = 1e9): Promise<{ store: IndexStore; directory: string }> {
  const directory = join(root, String(stores++));
  const store = new IndexStore({ directory, bytesMax, log: silentLog });
  await store.start();
  return { store, directory };
}

function makeIndex(name: string, window = name): { layerDigest: Digest; encoded: Buffer } {
  const layerDigest = digestOf(Buffer.from(name));
  const span = {
    checkpoint: { compressedOffset: 10, bitOffset: 0, uncompressedOffset: 0 },
    length: 512,
    compressedEnd: 20,
    digest: layerDigest,
  };
  const head = {
    layerDigest,
    diffId: layerDigest,
    compressedSize: 28,
    uncompressedSize: 512,
    spans: [span],
  };
  const encoded = encodeLayerIndex({ head, entries: [], windows: [Buffer.from(window.repeat(9))] });
  return { layerDigest, encoded };
}

/** A published index that counts its reads. */
async function publish(encoded: Buffer): Promise<PublishedIndex & { reads: string[] }> {
  const { sizes } = await openLayerIndex(bufferSource(encoded));
  const reads: string[] = [];
  const whole = bufferSource(encoded);
  const source: RangeSource = {
    size: encoded.length,
    read: (offset, length) => {
      reads.push(`${offset}+${length}`);
      return whole.read(offset, length);
    },
  };
  return {
    digest: digestOf(encoded),
    size: encoded.length,
    headDigest: digestOf(encoded.subarray(0, sizes.head)),
    prefixBytes: sizes.total - sizes.windows,
    source,
    reads,
  };
}

test("what is put is there, also for the next process; what is not put is not", async () => {
  const { store, directory } = await newStore();
  const { layerDigest, encoded } = makeIndex("a");
  assert.equal(await store.open(layerDigest), undefined);
  await store.put(layerDigest, encoded);
  writeFileSync(join(directory, "half.new"), "x");
  const next = new IndexStore({ directory, bytesMax: 1e9, log: silentLog });
  await next.start();
  assert.deepEqual(readdirSync(directory), [digestKey(layerDigest)]);
  assert.deepEqual(await next.list(), [layerDigest]);
  const reader = await next.open(layerDigest);
  assert.equal(reader?.head.layerDigest, layerDigest);
  assert.deepEqual(await reader?.readWindow(0), Buffer.from("aaaaaaaaa"));
  await next.remove(layerDigest);
  assert.deepEqual(await reader?.readEntries(), []);
  await reader?.close();
  assert.equal(await next.open(layerDigest), undefined);
});

test("a damaged index, or that of another layer, is removed when it is opened", async () => {
  const { store, directory } = await newStore();
  const { layerDigest, encoded } = makeIndex("a");
  for (const bytes of [encoded.subarray(0, -1), Buffer.from("?"), makeIndex("b").encoded]) {
    await store.put(layerDigest, bytes);
    assert.equal(await store.open(layerDigest), undefined);
    assert.deepEqual(readdirSync(directory), []);
  }
});

test("when there is too much, what was not used for longest goes", async () => {
  const indexes = ["a", "b", "c"].map((name) => makeIndex(name));
  const [a, b, c] = indexes as [(typeof indexes)[0], (typeof indexes)[0], (typeof indexes)[0]];
  const { store, directory } = await newStore(a.encoded.length + b.encoded.length);
  await store.put(a.layerDigest, a.encoded);
  await store.put(b.layerDigest, b.encoded);
  utimesSync(join(directory, digestKey(a.layerDigest)), 1000, 1000);
  utimesSync(join(directory, digestKey(b.layerDigest)), 2000, 2000);
  await (await store.open(a.layerDigest))?.close();
  await store.put(c.layerDigest, c.encoded);
  assert.deepEqual((await store.list()).sort(), [a.layerDigest, c.layerDigest].sort());
});

test("a published index is open after one request, and is then fetched whole into the store", async () => {
  const { store } = await newStore();
  const { layerDigest, encoded } = makeIndex("a");
  const published = await publish(encoded);
  const reader = await store.adopt(layerDigest, [published]);
  assert.deepEqual(await reader.readEntries(), []);
  assert.deepEqual(await reader.readWindow(0), Buffer.from("aaaaaaaaa"));
  await store.settled();
  const rest = `${published.prefixBytes}+${encoded.length - published.prefixBytes}`;
  assert.deepEqual(published.reads.toSpliced(1, published.reads.length, rest), [
    `0+${published.prefixBytes}`,
    rest,
  ]);
  const before = published.reads.length;
  assert.deepEqual(await reader.readWindow(0), Buffer.from("aaaaaaaaa"));
  assert.equal(published.reads.length, before, "windows come from the store now");
  await reader.close();
  const kept = await store.open(layerDigest);
  assert.deepEqual(await kept?.readWindow(0), Buffer.from("aaaaaaaaa"));
  await kept?.close();
});

test("of several published indexes the first sound one is taken", async () => {
  const { store } = await newStore();
  const { layerDigest, encoded } = makeIndex("a");
  const good = await publish(encoded);
  const wrongHead = { ...good, headDigest: digestOf(Buffer.from("?")) };
  const otherLayer = await publish(makeIndex("b").encoded);
  const reader = await store.adopt(layerDigest, [wrongHead, otherLayer, good]);
  assert.equal(reader.head.layerDigest, layerDigest);
  await reader.close();
  await assert.rejects(store.adopt(layerDigest, [wrongHead]), (error) =>
    isClipError(error, "CORRUPT_INDEX"),
  );
  await store.close();
});

test("a published index that does not match its digest as a whole is not kept", async () => {
  const { store } = await newStore();
  const { layerDigest, encoded } = makeIndex("a");
  const published = { ...(await publish(encoded)), digest: digestOf(Buffer.from("?")) };
  const reader = await store.adopt(layerDigest, [published]);
  await store.settled();
  assert.deepEqual(await store.list(), []);
  await reader.close();
});

test("a published index that is on its way does not come after one that is put, or removed", async () => {
  const { store } = await newStore();
  const { layerDigest, encoded } = makeIndex("a", "wrong");
  const { encoded: right } = makeIndex("a");
  const published = await publish(encoded);
  for (const isPut of [true, false]) {
    const gate = Promise.withResolvers<void>();
    const whole = published.source;
    const source: RangeSource = {
      size: whole.size,
      read: async (offset, length, signal) => {
        if (offset > 0) await gate.promise;
        return whole.read(offset, length, signal);
      },
    };
    const reader = await store.adopt(layerDigest, [{ ...published, source }]);
    const done = isPut ? store.put(layerDigest, right) : store.remove(layerDigest);
    gate.resolve();
    await done;
    await store.settled();
    assert.deepEqual(await store.encoded(layerDigest), isPut ? right : undefined);
    await reader.close();
  }
});
