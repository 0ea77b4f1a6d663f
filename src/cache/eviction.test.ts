import assert from "node:assert/strict";
import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import fc from "fast-check";
import { digestKey, digestOf, type Digest } from "../base/digest.ts";
import { silentLog } from "../telemetry/log.ts";
import { DiskCache, type DiskCacheOptions, type LayerUsers } from "./disk-cache.ts";
import type { LayerFile } from "./layer-file.ts";
import type { SpanTable } from "./span-map.ts";

const base = await mkdtemp(join(tmpdir(), "clip-evict-"));
after(() => rm(base, { recursive: true, force: true }));

const spanBytes = 16_384;
const spanCount = 40;
/** Room for 32 spans; at 30 the eviction begins, and it ends at 28. */
const bytesMax = 32 * spanBytes;
const limits = { bytesMax, freeBytesMin: 0 };

function spanTable(): SpanTable {
  const starts = new Float64Array(new SharedArrayBuffer((spanCount + 1) * 8));
  for (let at = 0; at <= spanCount; at++) starts[at] = at * spanBytes;
  return { starts, digest: digestOf(Buffer.from("table")) };
}

const named = (name: string): Digest => digestOf(Buffer.from(name));
const content = (span: number) => Buffer.alloc(spanBytes, span + 1);

async function newCache(options: Partial<DiskCacheOptions> = { limits }) {
  const directory = await mkdtemp(join(base, "d-"));
  const open = () => DiskCache.open({ directory, log: silentLog, ...options });
  return { directory, open, cache: await open() };
}

const openLayer = (cache: DiskCache, name: string) => cache.openLayer(named(name), spanTable());

async function write(file: LayerFile, first: number, last: number, usedAt: number) {
  for (let span = first; span <= last; span++) {
    await file.write(span, content(span));
    file.use.note(span, usedAt);
  }
}

const present = (file: LayerFile) => [...file.spanPresent.keys()].filter((span) => file.has(span));

const users = (more: Partial<LayerUsers>): LayerUsers => ({
  devices: () => new Set(),
  unshared: () => new Set(),
  costly: () => new Set(),
  ifUnused: async (_, remove) => {
    await remove();
    return true;
  },
  ...more,
});

/** Waits for the eviction that is under way. */
async function evicted(cache: DiskCache): Promise<void> {
  for (let tries = 0; cache.state.evicted.bytes === 0; tries++) {
    if (tries === 2000) assert.fail("nothing is evicted");
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  await cache.close();
}

void test("spans go in the order of their last use, over all layers that are open", async () => {
  const { cache } = await newCache();
  const a = await openLayer(cache, "a");
  const b = await openLayer(cache, "b");
  await write(a, 0, 13, 2000);
  await write(b, 0, 13, 1000);
  // A reader elsewhere has left its mark on what is oldest.
  b.use.marks[0] = 1;
  b.use.note(0, 1);
  await a.write(20, content(20));
  await b.write(spanCount - 1, content(spanCount - 1));
  await evicted(cache);
  assert.equal(present(a).length, 15);
  assert.equal(b.has(0), true);
  const left = present(b).filter((span) => span > 0 && span < 14);
  assert.ok(left.length < 13);
  assert.equal(b.has(spanCount - 1), true);
});

void test("layers that nobody has open go before any span of those that are", async () => {
  const { cache, directory } = await newCache();
  const used = await openLayer(cache, "used");
  await write(used, 0, 9, 1);
  for (const name of ["first", "second"]) {
    const file = await openLayer(cache, name);
    await write(file, 0, 8, Date.now());
    await cache.closeLayer(named(name));
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  cache.noteUse(named("first"));
  await write(used, 10, 12, 1);
  await evicted(cache);
  assert.equal(present(used).length, 13);
  assert.equal(cache.state.evicted.layers, 1);
  await stat(join(directory, digestKey(named("first"))));
  await assert.rejects(stat(join(directory, digestKey(named("second")))), { code: "ENOENT" });
});

void test("what is still to be shared goes after what is not, and before what is costly", async () => {
  const { cache, directory } = await newCache();
  const unshared = [named("unshared"), named("unshared and closed")];
  cache.setUsers(
    users({ unshared: () => new Set(unshared), costly: () => new Set([named("costly")]) }),
  );
  const costly = await openLayer(cache, "costly");
  await write(costly, 0, 5, 1);
  const waiting = await openLayer(cache, "unshared");
  await write(waiting, 0, 5, 1000);
  const closed = await openLayer(cache, "unshared and closed");
  await write(closed, 0, 5, 1);
  await cache.closeLayer(named("unshared and closed"));
  const file = await openLayer(cache, "ordinary");
  await write(file, 0, 11, 2000);
  while (cache.state.evicted.bytes === 0) await sleep(1);
  assert.ok(present(file).length < 12);
  assert.equal(cache.state.evicted.layers, 0, "nothing else has gone");
  assert.equal(present(waiting).length, 6);

  // Where nothing else is left it does go, as a whole first.
  await write(costly, 6, 19, 1);
  while (cache.state.evicted.layers === 0) await sleep(1);
  await assert.rejects(stat(join(directory, digestKey(named("unshared and closed")))));
  assert.deepEqual(present(file), []);
  assert.equal(present(costly).length, 20);
  await cache.close();
});

void test("what comes back only as a whole goes after all else, open or not", async () => {
  const { cache, directory } = await newCache();
  const costly = [named("costly"), named("costly and closed")];
  cache.setUsers(users({ costly: () => new Set(costly) }));
  const precious = await openLayer(cache, "costly");
  await write(precious, 0, 5, 1);
  const closed = await openLayer(cache, "costly and closed");
  await write(closed, 0, 5, 1);
  await cache.closeLayer(named("costly and closed"));
  const file = await openLayer(cache, "cheap");
  await write(file, 0, 20, 2000);
  await evicted(cache);
  assert.equal(present(precious).length, 6);
  await stat(join(directory, digestKey(named("costly and closed"))));
  assert.ok(present(file).length < 21);
});

void test("what comes back only as a whole goes when nothing else is left", async () => {
  const { cache, directory } = await newCache();
  cache.setUsers(users({ costly: () => new Set([named("open"), named("closed")]) }));
  const closed = await openLayer(cache, "closed");
  await write(closed, 0, 1, 1);
  await cache.closeLayer(named("closed"));
  const file = await openLayer(cache, "open");
  await write(file, 0, spanCount - 1, 1);
  await evicted(cache);
  assert.equal(cache.state.evicted.layers, 1);
  await assert.rejects(stat(join(directory, digestKey(named("closed")))), { code: "ENOENT" });
  assert.ok(present(file).length < spanCount);
});

void test("what is in use otherwise stays, and what does not fit is refused", async () => {
  const { cache } = await newCache();
  const device = named("device");
  cache.setUsers(users({ devices: () => new Set([device]), ifUnused: async () => false }));
  const closed = await openLayer(cache, "closed");
  await write(closed, 0, 9, 1);
  await cache.closeLayer(named("closed"));
  const file = await cache.openLayer(device, spanTable());
  await assert.rejects(write(file, 0, 30, 1), { code: "DISK_FULL" });
  const { bytes, evicted } = cache.state;
  assert.ok(bytes <= bytesMax && bytes > bytesMax - 2 * spanBytes, `${bytes} bytes`);
  assert.deepEqual([evicted.spans, evicted.layers, evicted.refused], [0, 0, 1]);
  await cache.close();
});

void test("a whole pull that cannot fit is refused before it begins, or stopped", async () => {
  const { cache } = await newCache();
  const layer = named("pulled");
  await assert.rejects(cache.beginPull(layer, bytesMax + 1), { code: "DISK_FULL" });
  const pull = await cache.beginPull(layer, spanBytes);
  await writeFile(pull.path, Buffer.alloc(bytesMax + spanBytes, 1));
  await new Promise((resolve) => pull.signal.addEventListener("abort", resolve, { once: true }));
  assert.throws(() => pull.signal.throwIfAborted(), { code: "DISK_FULL" });
  await pull.end();
  await assert.rejects(stat(pull.path), { code: "ENOENT" });
  await cache.close();
});

void test("so much stays free on the file system as is asked for", async () => {
  const freeBytesMin = 16 * spanBytes;
  let cache: DiskCache | undefined;
  const freeBytes = async () => 32 * spanBytes - (cache?.state.bytes ?? 0);
  const opened = await newCache({ limits: { bytesMax: 0, freeBytesMin }, freeBytes });
  cache = opened.cache;
  const file = await openLayer(cache, "a");
  await write(file, 0, spanCount - 1, 1);
  await cache.close();
  assert.ok(cache.state.evicted.spans > spanCount - 17);
  assert.ok((await freeBytes()) >= freeBytesMin);
});

void test("blocks of spans that a crash left unclaimed are freed when the layer is opened", async () => {
  const { cache, open } = await newCache({});
  const file = await openLayer(cache, "a");
  await write(file, 0, 4, 1);
  await file.flush();
  await write(file, 10, 30, 1);
  // Another run opens the layer as if this one had ended here.
  const next = await open();
  const reopened = await openLayer(next, "a");
  assert.deepEqual(present(reopened), [0, 1, 2, 3, 4]);
  assert.ok((await next.bytesOnDisk(named("a"))) <= 6 * spanBytes);
  assert.deepEqual(await reopened.read(2 * spanBytes, spanBytes), content(2));
  await next.close();
  await cache.close();
});

void test("whatever is done, the limit is kept and what is there is right", async () => {
  const names = ["a", "b", "c"];
  const name = fc.constantFrom(...names);
  const operation = fc.oneof(
    { weight: 8, arbitrary: fc.record({ name, write: fc.nat(spanCount - 1) }) },
    { weight: 4, arbitrary: fc.record({ name, read: fc.nat(spanCount - 1) }) },
    { weight: 1, arbitrary: fc.record({ name, close: fc.constant(true) }) },
  );
  await fc.assert(
    fc.asyncProperty(fc.array(operation, { maxLength: 150, size: "max" }), async (operations) => {
      const { cache, open, directory } = await newCache();
      const files = new Map<string, LayerFile>();
      const fileOf = async (of: string) => {
        const file = files.get(of) ?? (await openLayer(cache, of));
        files.set(of, file);
        return file;
      };
      for (const what of operations) {
        if ("close" in what) {
          await cache.closeLayer(named(what.name));
          files.delete(what.name);
          continue;
        }
        const file = await fileOf(what.name);
        if ("write" in what) await file.write(what.write, content(what.write));
        else if (file.has(what.read)) {
          const bytes = await file.read(what.read * spanBytes, spanBytes);
          assert.deepEqual(bytes, content(what.read));
        }
      }
      await cache.close();
      // A span map is always written: without it a layer could not be opened.
      assert.ok(cache.state.bytes <= bytesMax + names.length * 4096, `${cache.state.bytes} bytes`);
      const next = await open();
      for (const one of names) {
        const file = await openLayer(next, one);
        for (const span of present(file)) {
          assert.deepEqual(await file.read(span * spanBytes, spanBytes), content(span));
        }
      }
      await next.close();
      await rm(directory, { recursive: true });
    }),
    { numRuns: 25, endOnFailure: true },
  );
});
