import assert from "node:assert/strict";
import { test } from "node:test";
import { pino } from "pino";
import { digestKey } from "../../base/digest.ts";
import { ClipError, isClipError } from "../../base/errors.ts";
import { chainOf } from "../../cache/content/chain.ts";
import { cacheError } from "../../cache/content/failure.ts";
import { MemoryCache } from "../../cache/content/testing/memory-cache.ts";
import { fakeLayer } from "../fakes.ts";
import { CachedSource } from "./cached-source.ts";
import { Hedge } from "./hedge.ts";
import { SharedObjects } from "./shared-objects.ts";

const MiB = 1024 * 1024;
const layer = fakeLayer(10, MiB);
const { signal } = new AbortController();

function setUp(caches: MemoryCache[] = [new MemoryCache()]) {
  const clock = { now: 0 };
  const members = caches.map(({ name }) => name);
  const now = () => clock.now;
  const objects = new SharedObjects({ keyDerivation: "layer-digest", members, now });
  const key = objects.layerKey(layer.head);
  for (const { objects: stored } of caches) stored.set(key, Buffer.from(layer.bytes));
  const wrong: string[] = [];
  const lines: Record<string, unknown>[] = [];
  const write = (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>);
  const source = new CachedSource({
    head: layer.head,
    cache: chainOf(caches.map((cache) => ({ cache }))),
    objects,
    hedge: new Hedge(50, 2000),
    log: pino({ level: "debug", base: null, timestamp: false }, { write }),
    onWrong: (_, from) => {
      wrong.push(from);
      objects.quarantine(key, from);
    },
  });
  const read = async (start: number, end: number) => {
    const pieces: Buffer[] = [];
    for await (const piece of source.stream(start, end, signal)) pieces.push(piece);
    return Buffer.concat(pieces);
  };
  const cache = caches[0] ?? assert.fail();
  return { source, read, cache, objects, key, wrong, lines, clock };
}

test("neighbouring spans come in few requests, in order", async () => {
  const { read, cache } = setUp();
  assert.ok((await read(0, 10 * MiB)).equals(layer.bytes));
  assert.equal(cache.calls.length, 5);
  assert.ok((await read(3 * MiB, 4 * MiB)).equals(layer.bytes.subarray(3 * MiB, 4 * MiB)));
  assert.equal(cache.calls.length, 6);
});

test("what is not there ends the stream, and is not asked for again for a while", async () => {
  const { read, cache, key, clock } = setUp();
  cache.objects.delete(key);
  assert.equal((await read(0, 2 * MiB)).length, 0);
  const asked = cache.calls.length;
  await read(0, 2 * MiB);
  assert.equal(cache.calls.length, asked);
  cache.objects.set(key, layer.bytes);
  clock.now += 60_000;
  assert.equal((await read(0, 2 * MiB)).length, 2 * MiB);
});

test("an error is passed on, a cache that is left alone is a miss", async () => {
  const { read, cache } = setUp();
  cache.before = () => Promise.reject(new ClipError("CACHE_DENIED", "no"));
  await assert.rejects(read(0, MiB), (error) => isClipError(error, "CACHE_DENIED"));
  const skipped = cacheError("CACHE_UNAVAILABLE", "m", "skipped", { context: { skipped: true } });
  cache.before = () => Promise.reject(skipped);
  assert.equal((await read(0, MiB)).length, 0);
});

test("each range that is asked for has a line, and so has what came of it", async () => {
  const { read, cache, key, lines } = setUp();
  await read(2 * MiB, 3 * MiB);
  cache.before = () => Promise.reject(new ClipError("CACHE_DENIED", "no entry"));
  await assert.rejects(read(2 * MiB, 3 * MiB));
  cache.before = () => Promise.resolve();
  cache.objects.delete(key);
  await read(2 * MiB, 3 * MiB);
  const { layerDigest } = layer.head;
  const range = {
    ...{ level: 20, layer: layerDigest, cacheKey: digestKey(layerDigest) },
    ...{ offset: 2 * MiB, length: MiB },
  };
  const durationMs = "number";
  const tried = { ...range, msg: "trying ContentCache range read" };
  const missed = { ...range, durationMs, msg: "content cache miss - will decompress from OCI" };
  const hit = {
    ...{ ...range, bytes: MiB, durationMs },
    msg: "content cache hit - range read from remote",
  };
  for (const line of lines) {
    if ("durationMs" in line) line["durationMs"] = typeof line["durationMs"];
  }
  assert.deepEqual(lines, [tried, hit, tried, { ...missed, error: "no entry" }, tried, missed]);
});

test("a copy that is wrong is not read again, the next cache's is", async () => {
  const near = new MemoryCache("near");
  const far = new MemoryCache("far");
  const { source, read, wrong, clock } = setUp([near, far]);
  await read(0, 4 * MiB);
  source.onWrong(MiB);
  assert.deepEqual(wrong, ["near"]);
  near.calls.length = 0;
  await read(0, MiB);
  assert.equal(near.calls.length, 0);
  assert.equal(far.calls.length, 1);
  source.onWrong(0);
  assert.equal((await read(0, MiB)).length, 0, "no copy is left");
  clock.now += 10 * 60_000;
  assert.equal((await read(0, MiB)).length, MiB, "somebody may have repaired it");
});

test("a copy that is too short is wrong", async () => {
  const { read, cache, key, wrong } = setUp();
  cache.objects.set(key, layer.bytes.subarray(0, 5 * MiB));
  await assert.rejects(read(4 * MiB, 8 * MiB), (error) => isClipError(error, "CACHE_PROTOCOL"));
  assert.deepEqual([...new Set(wrong)], [cache.name]);
});

test("a reader that leaves ends the requests", async () => {
  const { source, cache } = setUp();
  let running = 0;
  cache.before = async (_, aborted) => {
    running++;
    if (running > 1) await new Promise((resolve) => aborted.addEventListener("abort", resolve));
    running--;
  };
  for await (const piece of source.stream(0, 10 * MiB, signal)) {
    assert.ok(piece.length > 0);
    break;
  }
  assert.equal(running, 0);
});

test("patience is twice the usual time, within limits, and little is asked twice", () => {
  const hedge = new Hedge(50, 2000);
  assert.equal(hedge.milliseconds(), 50, "nothing is known");
  for (let at = 0; at < 64; at++) hedge.add(at < 62 ? 100 : 900);
  assert.equal(hedge.milliseconds(), 200, "few are slow");
  for (let at = 0; at < 64; at++) hedge.add(5_000);
  assert.equal(hedge.milliseconds(), 2000, "there is an end");
  for (let at = 0; at < 64; at++) hedge.add(100);
  hedge.spent();
  for (let at = 0; at < 20; at++) hedge.spent();
  assert.equal(hedge.milliseconds(), 2000, "too much has been asked twice");
  for (let at = 0; at < 20; at++) hedge.add(100);
  assert.ok(hedge.milliseconds() < 2000, "it is earned again");
});
