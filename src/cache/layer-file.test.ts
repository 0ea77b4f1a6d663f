import assert from "node:assert/strict";
import type { FileHandle } from "node:fs/promises";
import { test } from "node:test";
import fc from "fast-check";
import { digestOf } from "../base/digest.ts";
import { silentLog } from "../telemetry/log.ts";
import { LayerFile } from "./layer-file.ts";
import { spanMapHeaderBytes, spanMapStateOffset } from "./span-map.ts";

const spanBytes = 16;
const spanCount = 40;

/** A file on a disk that loses, at a crash, any part of what was not synced. */
class FragileFile {
  readonly content: Buffer;
  readonly durable: Buffer;
  #unsynced: { offset: number; bytes: Buffer }[] = [];
  #crashed = false;
  #size: number;

  constructor(size: number) {
    this.#size = size;
    this.content = Buffer.alloc(size);
    this.durable = Buffer.alloc(size);
  }

  async write(bytes: Uint8Array, from: number, length: number, offset: number) {
    await new Promise((resolve) => setImmediate(resolve));
    const written = Buffer.from(bytes.subarray(from, from + length));
    if (!this.#crashed) {
      written.copy(this.content, offset);
      this.#size = Math.max(this.#size, offset + length);
      this.#unsynced.push({ offset, bytes: written });
    }
    return { bytesWritten: length };
  }

  async datasync() {
    const syncing = this.#unsynced;
    // A sync takes longer than a write, so that code which does not wait for it is found out.
    for (let tick = 0; tick < 4; tick++) await new Promise((resolve) => setImmediate(resolve));
    if (this.#crashed) return;
    for (const { offset, bytes } of syncing) bytes.copy(this.durable, offset);
    this.#unsynced = this.#unsynced.filter((write) => !syncing.includes(write));
  }

  /** What is punched may be gone from the disk at once, or not: the crash decides. */
  async punch(offset: number, length: number) {
    await new Promise((resolve) => setImmediate(resolve));
    if (this.#crashed) return;
    const bytes = Buffer.alloc(length);
    bytes.copy(this.content, offset);
    this.#unsynced.push({ offset, bytes });
  }

  async read(target: Buffer, at: number, length: number, offset: number) {
    await new Promise((resolve) => setImmediate(resolve));
    const end = Math.min(offset + length, this.#size);
    return { bytesRead: end <= offset ? 0 : this.content.copy(target, at, offset, end) };
  }

  get size(): number {
    return this.#size;
  }

  /** What is behind the new end is gone, and reads as zeros once the file has grown again. */
  cutShort(size: number) {
    this.content.fill(0, size);
    this.#size = size;
  }

  /** The power goes: of the writes that were not synced, `survives` says which bytes landed. */
  crash(survives: () => boolean) {
    this.#crashed = true;
    for (const { offset, bytes } of this.#unsynced) {
      for (const [at, byte] of bytes.entries()) if (survives()) this.durable[offset + at] = byte;
    }
  }
}

function openFragile() {
  const data = new FragileFile(spanCount * spanBytes);
  const map = new FragileFile(spanMapHeaderBytes + spanCount);
  const starts = new Float64Array(spanCount + 1).map((_, at) => at * spanBytes);
  const file = new LayerFile({
    dataPath: "data",
    mapPath: "map",
    data: data as unknown as FileHandle,
    map: map as unknown as FileHandle,
    table: { starts, digest: digestOf(Buffer.from("table")) },
    present: new Uint8Array(new SharedArrayBuffer(spanCount)),
    complete: false,
    sizeNow: () => data.size,
    punch: (offset, length) => data.punch(offset, length),
    usedAt: 0,
    log: silentLog,
  });
  return { data, map, file };
}

const pause = fc.record({ ticks: fc.integer({ min: 1, max: 12 }) });

async function ticks(count: number) {
  for (let tick = 0; tick < count; tick++) await new Promise((resolve) => setImmediate(resolve));
}

const spanContent = (span: number) => Buffer.alloc(spanBytes, span + 1);

void test("after a crash at any moment the map claims no span whose bytes are not there", async () => {
  const operation = fc.oneof(
    { weight: 6, arbitrary: fc.nat(spanCount - 1) },
    { weight: 1, arbitrary: fc.constant("flush" as const) },
    { weight: 3, arbitrary: pause },
    {
      weight: 2,
      arbitrary: fc.array(fc.nat(spanCount - 1), { minLength: 1, maxLength: 12, size: "max" }),
    },
  );
  await fc.assert(
    fc.asyncProperty(
      fc.array(operation, { maxLength: 120, size: "max" }),
      fc.infiniteStream(fc.boolean()),
      async (operations, luck) => {
        const { data, map, file } = openFragile();
        for (const what of operations) {
          if (what === "flush") void file.flush();
          else if (typeof what === "object" && "ticks" in what) await ticks(what.ticks);
          else if (Array.isArray(what)) void file.evict(what);
          else void file.write(what, spanContent(what));
        }
        data.crash(() => luck.next().value === true);
        map.crash(() => luck.next().value === true);
        for (let span = 0; span < spanCount; span++) {
          if (map.durable[spanMapHeaderBytes + span] !== 1) continue;
          const start = span * spanBytes;
          assert.deepEqual(data.durable.subarray(start, start + spanBytes), spanContent(span));
        }
      },
    ),
    { numRuns: 200 },
  );
});

void test("what was flushed is claimed", async () => {
  const { map, file } = openFragile();
  await file.write(3, spanContent(3));
  await file.write(17, spanContent(17));
  await file.flush();
  const claims = [...map.durable.subarray(spanMapHeaderBytes).entries()];
  assert.deepEqual(
    claims.filter(([, claimed]) => claimed === 1).map(([span]) => span),
    [3, 17],
  );
});

void test("a span is visible only when its bytes can be read", async () => {
  const { data, file } = openFragile();
  const writing = file.write(5, spanContent(5));
  assert.equal(file.has(5), false);
  await writing;
  assert.equal(file.has(5), true);
  assert.deepEqual(data.content.subarray(5 * spanBytes, 6 * spanBytes), spanContent(5));
});

void test("a full disk leaves the span out and is a typed error", async () => {
  const { data, file } = openFragile();
  data.write = () => Promise.reject(Object.assign(new Error("no space"), { code: "ENOSPC" }));
  await assert.rejects(file.write(2, spanContent(2)), { code: "DISK_FULL" });
  assert.equal(file.has(2), false);
});

void test("spans whose sync failed are given up", async () => {
  const { data, map, file } = openFragile();
  await file.write(2, spanContent(2));
  data.datasync = () => Promise.reject(Object.assign(new Error("disk fault"), { code: "EIO" }));
  await assert.rejects(file.flush(), { code: "EIO" });
  assert.equal(file.has(2), false);
  assert.equal(map.durable[spanMapHeaderBytes + 2], 0);
});

void test("reads, writes and evictions in any order give right bytes, and free what went", async () => {
  const span = fc.nat(spanCount - 1);
  const operation = fc.oneof(
    { weight: 4, arbitrary: fc.record({ write: span }) },
    { weight: 4, arbitrary: fc.record({ read: span }) },
    { weight: 2, arbitrary: fc.record({ evict: fc.array(span, { maxLength: 12, size: "max" }) }) },
    { weight: 3, arbitrary: pause },
  );
  await fc.assert(
    fc.asyncProperty(fc.array(operation, { maxLength: 120, size: "max" }), async (operations) => {
      const { data, map, file } = openFragile();
      const running: Promise<unknown>[] = [];
      const readSpan = async (at: number) => {
        if (!file.has(at)) return;
        assert.deepEqual(await file.read(at * spanBytes, spanBytes), spanContent(at));
      };
      for (const what of operations) {
        if ("ticks" in what) await ticks(what.ticks);
        else if ("write" in what) running.push(file.write(what.write, spanContent(what.write)));
        else if ("read" in what) running.push(readSpan(what.read));
        else running.push(file.evict(what.evict));
      }
      await Promise.all(running);
      await file.flush();
      for (let at = 0; at < spanCount; at++) {
        const bytes = file.has(at) ? spanContent(at) : Buffer.alloc(spanBytes);
        assert.deepEqual(data.content.subarray(at * spanBytes, (at + 1) * spanBytes), bytes);
        assert.equal(map.durable[spanMapHeaderBytes + at], file.has(at) ? 1 : 0);
      }
    }),
    { numRuns: 200 },
  );
});

void test("a span that is being read, or whose file is held, stays", async () => {
  const { file } = openFragile();
  for (const span of [1, 2, 3]) await file.write(span, spanContent(span));
  const reading = file.read(spanBytes + 4, spanBytes);
  assert.deepEqual(await file.evict([1, 2, 3]), { spans: 1, bytes: spanBytes });
  assert.deepEqual(
    [1, 2, 3].map((span) => file.has(span)),
    [true, true, false],
  );
  assert.deepEqual(
    await reading,
    Buffer.concat([spanContent(1), spanContent(2)]).subarray(4, spanBytes + 4),
  );
  const release = file.hold();
  assert.equal((await file.evict([1])).spans, 0);
  release();
  assert.equal((await file.evict([1])).spans, 1);
});

void test("a layer with a hole is not complete any more, and cannot become it", async () => {
  const { map, file } = openFragile();
  for (let span = 0; span < spanCount; span++) await file.write(span, spanContent(span));
  await file.markComplete();
  await file.evict([7]);
  assert.equal(file.complete, false);
  assert.equal(map.durable[spanMapStateOffset], 0);
  await assert.rejects(file.markComplete(), { code: "DISK_FULL" });
});

void test("dropped spans are neither present nor claimed", async () => {
  const { map, file } = openFragile();
  for (let span = 0; span < spanCount; span++) await file.write(span, spanContent(span));
  await file.markComplete();
  assert.equal(file.complete, true);
  await file.drop([4, 9]);
  assert.equal(file.complete, false);
  assert.equal(file.has(4), false);
  assert.equal(map.durable[spanMapHeaderBytes + 9], 0);
  assert.equal(map.durable[spanMapHeaderBytes + 10], 1);
});

void test("a span that goes while the layer becomes complete is not claimed by that", async () => {
  for (let delay = 0; delay < 24; delay++) {
    const { file, map } = openFragile();
    for (let span = 0; span < spanCount; span++) await file.write(span, spanContent(span));
    const completing = file.markComplete();
    await ticks(delay);
    await Promise.allSettled([completing, file.drop([7])]);
    assert.equal(file.complete, false);
    assert.equal(map.durable[spanMapStateOffset], 0);
    assert.equal(map.durable[spanMapHeaderBytes + 7], 0);
  }
});

void test("what a file has lost at its end is not read as zeros once it has grown again", async () => {
  const { file, data, map } = openFragile();
  const all = Array.from({ length: spanCount }, (_, span) => span);
  for (const span of all) await file.write(span, spanContent(span));
  await file.flush();
  data.cutShort(10 * spanBytes + 1);
  await file.drop([30]);
  await file.write(30, spanContent(30));
  assert.deepEqual(
    all.filter((span) => file.has(span)),
    [...all.slice(0, 10), 30],
  );
  await file.flush();
  const claims = [...map.durable.subarray(spanMapHeaderBytes)];
  assert.deepEqual(
    all.filter((span) => claims[span] === 1),
    [...all.slice(0, 10), 30],
  );
  await file.write(20, spanContent(20));
  assert.deepEqual(await file.read(30 * spanBytes, spanBytes), spanContent(30));
});

void test("what was given up while it was being read is not given to the reader", async () => {
  const { file } = openFragile();
  await file.write(3, spanContent(3));
  const read = file.read(3 * spanBytes, spanBytes);
  await file.drop([3]);
  assert.equal(await read, undefined);
});
