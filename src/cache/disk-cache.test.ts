import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import fc from "fast-check";
import { digestKey, digestOf, type Digest } from "../base/digest.ts";
import { silentLog } from "../telemetry/log.ts";
import { DiskCache } from "./disk-cache.ts";
import { decodeSpanMap, encodeSpanMapHeader, type SpanTable } from "./span-map.ts";

const base = await mkdtemp(join(tmpdir(), "clip-cache-"));
after(() => rm(base, { recursive: true, force: true }));

const layer = digestOf(Buffer.from("layer"));
const spanBytes = 4096;

function spanTable(spanCount: number, name = "table"): SpanTable {
  const starts = new Float64Array(new SharedArrayBuffer((spanCount + 1) * 8));
  for (let at = 0; at <= spanCount; at++) starts[at] = at * spanBytes;
  return { starts, digest: digestOf(Buffer.from(name)) };
}

const content = (span: number) => Buffer.alloc(spanBytes, span + 1);

async function newCache(): Promise<{ directory: string; cache: DiskCache }> {
  const directory = await mkdtemp(join(base, "d-"));
  return { directory, cache: await DiskCache.open({ directory, log: silentLog }) };
}

void test("spans survive closing and reopening, and only those", async () => {
  const { directory, cache } = await newCache();
  const file = await cache.openLayer(layer, spanTable(8));
  await file.write(1, content(1));
  await file.write(6, content(6));
  await cache.close();

  const again = await DiskCache.open({ directory, log: silentLog });
  const reopened = await again.openLayer(layer, spanTable(8));
  assert.deepEqual([...reopened.spanPresent], [0, 1, 0, 0, 0, 0, 1, 0]);
  assert.deepEqual(await reopened.read(6 * spanBytes, spanBytes), content(6));
  await again.close();
});

void test("a process that dies before the flush loses claims, not truth", async () => {
  const { directory, cache } = await newCache();
  const file = await cache.openLayer(layer, spanTable(8));
  await file.write(2, content(2));
  await file.flush();
  await file.write(5, content(5));

  const next = await DiskCache.open({ directory, log: silentLog });
  const reopened = await next.openLayer(layer, spanTable(8));
  assert.deepEqual([...reopened.spanPresent], [0, 0, 1, 0, 0, 0, 0, 0]);
  await next.close();
  await cache.close();
});

void test("random writes and reopens keep exactly what was written", async () => {
  const spanCount = 12;
  await fc.assert(
    fc.asyncProperty(
      fc.array(
        fc.oneof(
          { weight: 5, arbitrary: fc.nat(spanCount - 1) },
          { weight: 1, arbitrary: fc.constant("reopen" as const) },
        ),
        { maxLength: 30 },
      ),
      async (operations) => {
        const { directory, cache } = await newCache();
        let current = cache;
        let file = await current.openLayer(layer, spanTable(spanCount));
        const written = new Set<number>();
        for (const what of operations) {
          if (what === "reopen") {
            await current.close();
            current = await DiskCache.open({ directory, log: silentLog });
            file = await current.openLayer(layer, spanTable(spanCount));
          } else {
            await file.write(what, content(what));
            written.add(what);
          }
        }
        for (let span = 0; span < spanCount; span++) {
          assert.equal(file.has(span), written.has(span));
          if (!written.has(span)) continue;
          assert.deepEqual(await file.read(span * spanBytes, spanBytes), content(span));
        }
        await current.close();
      },
    ),
    { numRuns: 25 },
  );
});

void test("another span table, another size or a damaged map start the layer afresh", async () => {
  const { directory, cache } = await newCache();
  const path = join(directory, digestKey(layer));
  const present = async (table: SpanTable) => {
    const file = await cache.openLayer(layer, table);
    const found = file.spanPresent.reduce((sum, one) => sum + one, 0);
    await file.write(0, content(0));
    await cache.closeLayer(layer);
    return found;
  };
  assert.equal(await present(spanTable(8)), 0);
  assert.equal(await present(spanTable(8)), 1);
  assert.equal(await present(spanTable(8, "other")), 0);
  assert.equal(await present(spanTable(9, "other")), 0);
  await truncate(path, 100);
  assert.equal(await present(spanTable(9, "other")), 0);
  await writeFile(`${path}.spans`, Buffer.alloc(64 + 9, 7));
  assert.equal(await present(spanTable(9, "other")), 0);
  assert.equal(await present(spanTable(9, "other")), 1);
  await cache.close();
});

void test("completeness is durable and makes every span present", async () => {
  const { directory, cache } = await newCache();
  const file = await cache.openLayer(layer, spanTable(3));
  for (let span = 0; span < 3; span++) await file.write(span, content(span));
  assert.equal(file.complete, false);
  await file.markComplete();
  await cache.close();
  const next = await DiskCache.open({ directory, log: silentLog });
  assert.equal((await next.openLayer(layer, spanTable(3))).complete, true);
  await next.close();
});

void test("a whole pull becomes a complete layer, at once and durably", async () => {
  const { directory, cache } = await newCache();
  const pull = await cache.beginPull(layer, spanBytes);
  await writeFile(pull.path, content(0));
  await truncate(pull.path, 4 * spanBytes);
  await cache.adoptComplete(layer, spanTable(4));
  await pull.end();
  assert.equal(await cache.completePath(layer, 4 * spanBytes), join(directory, digestKey(layer)));
  await cache.close();

  const next = await DiskCache.open({ directory, log: silentLog });
  assert.equal(await next.completePath(layer, 4 * spanBytes), join(directory, digestKey(layer)));
  assert.equal(await next.completePath(layer, 5 * spanBytes), undefined);
  const file = await next.openLayer(layer, spanTable(4));
  assert.equal(file.complete, true);
  assert.deepEqual(await file.read(0, spanBytes), content(0));
  assert.deepEqual(await file.read(3 * spanBytes, spanBytes), Buffer.alloc(spanBytes));
  await next.close();
});

void test("a whole pull that was not recorded yet is no layer after a crash", async () => {
  const { directory, cache } = await newCache();
  const file = await cache.openLayer(layer, spanTable(4));
  for (let span = 0; span < 4; span++) await file.write(span, content(span));
  await file.markComplete();
  await cache.close();
  // What a crash between the renaming and the record leaves.
  await rm(join(directory, `${digestKey(layer)}.spans`));
  const next = await DiskCache.open({ directory, log: silentLog });
  assert.equal(await next.completePath(layer, 4 * spanBytes), undefined);
  const fresh = await next.openLayer(layer, spanTable(4));
  assert.ok(fresh.spanPresent.every((one) => one === 0));
  await next.close();
});

void test("usage counts blocks on disk, not the length of the sparse file", async () => {
  const { cache } = await newCache();
  const file = await cache.openLayer(layer, spanTable(1000));
  await file.write(500, content(500));
  await file.flush();
  const bytes = await cache.bytesOnDisk(layer);
  assert.ok(bytes >= spanBytes && bytes < 20 * spanBytes, `${bytes} bytes`);
  await cache.close();
});

void test("removing a layer leaves nothing, and a sweep removes strangers", async () => {
  const { directory, cache } = await newCache();
  const other: Digest = digestOf(Buffer.from("other"));
  await cache.openLayer(layer, spanTable(2));
  await cache.openLayer(other, spanTable(2));
  await writeFile(join(directory, "sha256_0.pull"), "rest");
  await cache.sweep([other, layer]);
  assert.equal((await readdir(directory)).length, 4);
  await cache.removeLayer(layer);
  assert.deepEqual((await readdir(directory)).sort(), [
    digestKey(other),
    `${digestKey(other)}.spans`,
  ]);
  await cache.closeLayer(other);
  await cache.removeLayer(other);
  assert.deepEqual(await readdir(directory), []);
  await cache.close();
});

void test("a layer is opened by one owner at a time", async () => {
  const { cache } = await newCache();
  await cache.openLayer(layer, spanTable(2));
  await assert.rejects(cache.openLayer(layer, spanTable(2)), { code: "ARGUMENT_INVALID" });
  await cache.close();
});

void test("decoding a span map never throws", () => {
  const header = encodeSpanMapHeader({
    spanCount: 3,
    size: 100,
    tableDigest: digestOf(Buffer.alloc(0)),
    complete: false,
  });
  const whole = Buffer.concat([header, Buffer.from([1, 0, 1])]);
  assert.deepEqual([...(decodeSpanMap(whole)?.present ?? [])], [1, 0, 1]);
  fc.assert(
    fc.property(fc.nat(whole.length - 1), fc.nat(255), fc.nat(80), (at, value, length) => {
      const damaged = Buffer.from(whole);
      damaged[at] = value;
      decodeSpanMap(damaged.subarray(0, length));
      decodeSpanMap(damaged);
    }),
  );
});

void test("a file that the kernel may read by itself is neither replaced nor punched", async () => {
  const { directory, cache } = await newCache();
  const file = await cache.openLayer(layer, spanTable(64));
  for (let span = 0; span < 64; span++) await file.write(span, content(span));
  await file.drop(Array.from({ length: 60 }, (_, span) => span));
  const path = file.path;
  await cache.close();
  const before = await readFile(path);

  const users = {
    devices: () => new Set([layer]),
    unshared: () => new Set<Digest>(),
    costly: () => new Set<Digest>(),
    ifUnused: async () => false,
  };
  const again = await DiskCache.open({ directory, log: silentLog });
  again.setUsers(users);
  const reopened = await again.openLayer(layer, spanTable(64));
  assert.ok(reopened.has(62) && !reopened.has(3));
  assert.deepEqual(await readFile(path), before, "what is not claimed may be read all the same");
  await again.closeLayer(layer);

  const { ino } = await stat(path);
  await truncate(path, 10 * spanBytes);
  const shortened = await again.openLayer(layer, spanTable(64));
  assert.ok(!shortened.spanPresent.some((flag) => flag !== 0), "nothing of it is claimed");
  assert.deepEqual(
    { ino: (await stat(path)).ino, size: (await stat(path)).size },
    { ino, size: 64 * spanBytes },
  );
  await shortened.write(5, content(5));
  assert.deepEqual(await shortened.read(5 * spanBytes, spanBytes), content(5));
  await again.close();
});

void test("what is disowned is claimed no more, and none of its bytes has changed", async () => {
  const { cache } = await newCache();
  const file = await cache.openLayer(layer, spanTable(2));
  for (const span of [0, 1]) await file.write(span, content(span));
  assert.equal(await cache.claims(layer), undefined, "an open layer knows by itself");
  await cache.closeLayer(layer);
  assert.deepEqual([...((await cache.claims(layer))?.present ?? [])], [1, 1]);
  await cache.disown(layer);
  assert.equal(await cache.claims(layer), undefined);
  assert.deepEqual(await readFile(file.path), Buffer.concat([content(0), content(1)]));
  await cache.close();
});
