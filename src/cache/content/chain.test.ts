import assert from "node:assert/strict";
import { test } from "node:test";
import { ClipError, isClipError, type ErrorCode } from "../../base/errors.ts";
import { chainOf } from "./chain.ts";
import { bufferSource } from "./content-source.ts";
import { contentCacheSuite, freshKey, readAll, testBytes } from "./testing/content-cache-suite.ts";
import { MemoryCache } from "./testing/memory-cache.ts";

const bytes = testBytes(1000);

function failing(code: ErrorCode) {
  return () => Promise.reject(new ClipError(code, `${code} on purpose`));
}

function pair() {
  const [near, far] = [new MemoryCache("near"), new MemoryCache("far")];
  return { near, far, chain: chainOf([{ cache: near, objectBytesMax: 2000 }, { cache: far }]) };
}

// A chain of one is a cache like any other.
const shared = new MemoryCache("memory");
contentCacheSuite(
  "chain of one",
  () => {
    const chain = chainOf([{ cache: new MemoryCache("memory", shared.objects) }]);
    return Promise.resolve(chain);
  },
  { chunkBytes: 262_144, largeBytes: 1_000_000 },
);

test("members are asked in order, and only until one has it", async () => {
  const { near, far, chain } = pair();
  const key = freshKey();
  await far.store(key, bufferSource(bytes));
  assert.deepEqual(await chain.read(key, 5, Buffer.alloc(10)), { from: "far" });
  assert.deepEqual(await chain.has(key), { from: "far", size: 1000 });
  await near.store(key, bufferSource(bytes));
  far.calls.length = 0;
  assert.deepEqual(await chain.read(key, 5, Buffer.alloc(10)), { from: "near" });
  assert.deepEqual(far.calls, []);
});

test("a member that fails is passed over, and its fault is told only if nobody has it", async () => {
  for (const code of ["CACHE_UNAVAILABLE", "CACHE_DENIED", "CACHE_PROTOCOL", "TIMEOUT"] as const) {
    const { near, far, chain } = pair();
    near.before = failing(code);
    const key = freshKey();
    await assert.rejects(chain.read(key, 0, Buffer.alloc(1)), (error) => isClipError(error, code));
    await assert.rejects(chain.has(key), (error) => isClipError(error, code));
    await far.store(key, bufferSource(bytes));
    assert.deepEqual(await chain.read(key, 0, Buffer.alloc(1)), { from: "far" });
    assert.equal((await chain.has(key))?.from, "far");
  }
});

test("of several faults the one that may pass is told, with the others as its cause", async () => {
  const { near, far, chain } = pair();
  near.before = failing("CACHE_DENIED");
  far.before = failing("CACHE_UNAVAILABLE");
  await assert.rejects(chain.read(freshKey(), 0, Buffer.alloc(1)), (error) => {
    assert.equal(isClipError(error, "CACHE_UNAVAILABLE"), true);
    assert.equal(error instanceof Error && error.message.includes("CACHE_DENIED"), true);
    return true;
  });
});

test("a caller that gives up, or errs, is not taken for a fault of the first member", async () => {
  const { near, far, chain } = pair();
  near.before = failing("ABORTED");
  await assert.rejects(chain.read(freshKey(), 0, Buffer.alloc(1)), (error) =>
    isClipError(error, "ABORTED"),
  );
  near.before = () => Promise.resolve();
  await assert.rejects(chain.read(freshKey(), -1, Buffer.alloc(1)), (error) =>
    isClipError(error, "ARGUMENT_INVALID"),
  );
  assert.deepEqual(far.calls, []);
});

test("a copy that is known to be bad is not asked for, and can be removed alone", async () => {
  const { near, far, chain } = pair();
  const key = freshKey();
  await chain.store(key, bufferSource(bytes));
  const hit = await chain.read(key, 0, Buffer.alloc(10), { except: ["near"] });
  assert.deepEqual(hit, { from: "far" });
  assert.equal(await chain.read(key, 0, Buffer.alloc(1), { except: ["near", "far"] }), undefined);
  await chain.remove(key, { only: "near" });
  assert.equal(near.objects.has(key), false);
  assert.equal(far.objects.has(key), true);
  await chain.remove(key);
  assert.equal(far.objects.has(key), false);
});

test("a store goes to all that take it, and says what became of it", async () => {
  const { near, far, chain } = pair();
  const [small, large] = [freshKey(), freshKey()];
  assert.equal(await chain.store(small, bufferSource(bytes)), "stored");
  assert.equal((await readAll(near, small))?.equals(bytes), true);
  assert.equal((await readAll(far, small))?.equals(bytes), true);
  assert.equal(await chain.store(small, bufferSource(bytes)), "present");
  await near.remove(small);
  assert.equal(await chain.store(small, bufferSource(bytes)), "stored");
  assert.equal(await chain.store(large, bufferSource(testBytes(2001))), "stored");
  assert.equal(near.objects.has(large), false);
  const picky = chainOf([
    { cache: near, objectBytesMax: 10 },
    { cache: far, readOnly: true },
  ]);
  assert.equal(await picky.store(freshKey(), bufferSource(bytes)), "refused");
  await picky.remove(large);
  assert.equal(far.objects.has(large), true, "nothing is removed from what is only read");
});

test("a member that cannot store does not keep the next one from it, and the fault is told", async () => {
  const { near, far, chain } = pair();
  near.before = failing("CACHE_FULL");
  const key = freshKey();
  await assert.rejects(chain.store(key, bufferSource(bytes)), (error) =>
    isClipError(error, "CACHE_FULL"),
  );
  assert.equal(far.objects.has(key), true);
  near.before = () => Promise.resolve();
  assert.equal(await chain.store(key, bufferSource(bytes)), "stored");
  assert.equal(near.objects.has(key), true);
});

test("a source that fails is not read again for the next member", async () => {
  const { far, chain } = pair();
  const source = { ...bufferSource(bytes), size: 999 };
  await assert.rejects(chain.store(freshKey(), source), (error) =>
    isClipError(error, "ARGUMENT_INVALID"),
  );
  assert.deepEqual(far.calls, []);
});

test("two members of one name, or none, make no chain", () => {
  const cache = new MemoryCache("same");
  for (const members of [[], [{ cache }, { cache: new MemoryCache("same") }]]) {
    assert.throws(
      () => chainOf(members),
      (error) => isClipError(error, "ARGUMENT_INVALID"),
    );
  }
});
