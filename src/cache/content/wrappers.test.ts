import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { ClipError, isClipError } from "../../base/errors.ts";
import { CacheCounters } from "./cache-counters.ts";
import type { ContentCache } from "./content-cache.ts";
import { bufferSource } from "./content-source.ts";
import { orAborted } from "./operations.ts";
import {
  contentCacheSuite,
  freshKey,
  oddSource,
  testBytes,
} from "./testing/content-cache-suite.ts";
import { MemoryCache } from "./testing/memory-cache.ts";
import { withCircuitBreaker, type BreakerChange } from "./with-circuit-breaker.ts";
import { withConcurrency } from "./with-concurrency.ts";
import { withMetrics, type CacheEvent } from "./with-metrics.ts";
import { withTimeout } from "./with-timeout.ts";

const forever = new Promise<never>(() => {});
const breakerLimits = { failures: 3, slowMs: 100, openMs: 1_000, openMsMax: 3_000 };

const shared = new MemoryCache("memory");
contentCacheSuite(
  "everything around memory",
  () => {
    const timed = withTimeout(new MemoryCache("memory", shared.objects), {
      callMs: 60_000,
      readBytesPerSecondMin: 1_000_000,
      storeStallMs: 60_000,
    });
    const guarded = withCircuitBreaker(timed, { ...breakerLimits, slowMs: 60_000 });
    const limited = withConcurrency(guarded, { reads: 2, stores: 4, waiting: 100 });
    return Promise.resolve(withMetrics(limited, () => {}));
  },
  { chunkBytes: 262_144, largeBytes: 1_000_000 },
);

describe("time limits", () => {
  const limits = { callMs: 5, readBytesPerSecondMin: 1_000_000, storeStallMs: 20 };

  test("a cache that does not answer is given up on", async () => {
    const memory = new MemoryCache();
    memory.before = () => forever;
    const cache = withTimeout(memory, limits);
    for (const call of [
      () => cache.read(freshKey(), 0, Buffer.alloc(1)),
      () => cache.has(freshKey()),
      () => cache.remove(freshKey()),
      () => cache.store(freshKey(), bufferSource(testBytes(10))),
    ]) {
      await assert.rejects(call(), (error) => isClipError(error, "TIMEOUT"));
    }
  });

  test("a long store is no slow one as long as it takes bytes", async () => {
    const memory = new MemoryCache();
    const cache = withTimeout(memory, { ...limits, storeStallMs: 500 });
    const key = freshKey();
    const pause = () =>
      new Promise<void>((resolve) => {
        setTimeout(resolve, 60);
      });
    assert.equal(await cache.store(key, oddSource(testBytes(800_000), pause)), "stored");
    const hanging = oddSource(testBytes(800_000), (offset) => (offset > 0 ? forever : undefined));
    const impatient = withTimeout(memory, limits);
    await assert.rejects(impatient.store(freshKey(), hanging), (error) =>
      isClipError(error, "TIMEOUT"),
    );
  });
});

describe("limited concurrency", () => {
  test("no more calls than allowed are under way, and all are answered", async () => {
    const memory = new MemoryCache();
    let running = 0;
    let most = 0;
    memory.before = async () => {
      most = Math.max(most, ++running);
      await new Promise(setImmediate);
      running--;
    };
    const cache = withConcurrency(memory, { reads: 3, stores: 1, waiting: 100 });
    await Promise.all(Array.from({ length: 20 }, () => cache.has(freshKey())));
    assert.equal(most, 3);
    most = 0;
    await Promise.all(Array.from({ length: 5 }, () => cache.remove(freshKey())));
    assert.equal(most, 1);
  });

  test("who gives up while waiting leaves at once, and who comes too late is refused", async () => {
    const memory = new MemoryCache();
    const controller = new AbortController();
    memory.before = (_, signal) => orAborted(forever, signal);
    const cache = withConcurrency(memory, { reads: 1, stores: 1, waiting: 1 });
    const stuck = cache.has(freshKey(), { signal: controller.signal });
    const waiter = new AbortController();
    const waiting = cache.has(freshKey(), { signal: waiter.signal });
    await assert.rejects(cache.has(freshKey()), (error) => isClipError(error, "CACHE_UNAVAILABLE"));
    waiter.abort();
    await assert.rejects(waiting, (error) => isClipError(error, "ABORTED"));
    controller.abort();
    await assert.rejects(stuck, (error) => isClipError(error, "ABORTED"));
    memory.before = () => Promise.resolve();
    await new Promise(setImmediate);
    assert.equal(await cache.has(freshKey()), undefined);
    assert.deepEqual(memory.calls, ["has", "has"], "the waiter that left was never let in");
  });
});

describe("metrics", () => {
  test("each call is told with its outcome, bytes and place", async () => {
    const events: CacheEvent[] = [];
    const counters = new CacheCounters();
    const memory = new MemoryCache();
    const cache = withMetrics(memory, (event) => {
      events.push(event);
      counters.observe(event);
    });
    const key = freshKey();
    await cache.read(key, 7, Buffer.alloc(10));
    await cache.store(key, bufferSource(testBytes(1000)));
    await cache.store(key, bufferSource(testBytes(1000)));
    await cache.read(key, 7, Buffer.alloc(10));
    await cache.has(key);
    await cache.remove(key);
    await assert.rejects(cache.has(key, { signal: AbortSignal.abort() }));
    memory.before = () => Promise.reject(new ClipError("CACHE_DENIED", "no"));
    await assert.rejects(cache.has(key));
    memory.before = () =>
      Promise.reject(new ClipError("CACHE_UNAVAILABLE", "no", { context: { skipped: true } }));
    await assert.rejects(cache.has(key));
    assert.deepEqual(
      events.map(({ operation, outcome, bytes }) => `${operation} ${outcome} ${bytes}`),
      [
        "read miss 0",
        "store stored 1000",
        "store present 0",
        "read hit 10",
        "has hit 0",
        "remove done 0",
        "has aborted 0",
        "has error 0",
        "has skipped 0",
      ],
    );
    assert.deepEqual([events[0]?.offset, events[1]?.offset], [7, undefined]);
    assert.equal(isClipError(events[7]?.error, "CACHE_DENIED"), true);
    const hits = counters
      .counts()
      .find(({ outcome, operation }) => outcome === "hit" && operation === "read");
    assert.deepEqual([hits?.calls, hits?.bytes], [1, 10]);
    assert.equal(
      hits?.latencies.reduce((sum, calls) => sum + calls),
      1,
    );
  });

  test("latencies fall into their classes, the slowest into the last", () => {
    const counters = new CacheCounters();
    const event = { cache: "c", operation: "has", outcome: "hit", key: "k", bytes: 0 } as const;
    for (const milliseconds of [0, 0.5, 0.6, 1e9]) counters.observe({ ...event, milliseconds });
    const latencies = counters.counts()[0]?.latencies;
    assert.deepEqual([latencies?.[0], latencies?.[1], latencies?.at(-1)], [2, 1, 1]);
    assert.equal(latencies?.length, counters.latencyBoundsMs.length + 1);
  });
});

describe("a circuit breaker", () => {
  function guarded() {
    const memory = new MemoryCache();
    const clock = { now: 0 };
    const changes: BreakerChange[] = [];
    const cache = withCircuitBreaker(memory, {
      ...breakerLimits,
      now: () => clock.now,
      onChange: (change) => changes.push(change),
    });
    return { memory, clock, cache, changes };
  }
  const down = () => Promise.reject(new ClipError("CACHE_UNAVAILABLE", "down"));
  const up = () => Promise.resolve();
  const ask = (cache: ContentCache) => cache.has(freshKey());
  const fails = (cache: ContentCache) =>
    assert.rejects(ask(cache), (error) => isClipError(error, "CACHE_UNAVAILABLE"));

  test("opens after failures in a row, and then asks nothing", async () => {
    const { memory, cache, changes } = guarded();
    memory.before = down;
    for (let call = 0; call < 3; call++) await fails(cache);
    assert.equal(memory.calls.length, 3);
    await assert.rejects(ask(cache), (error) => {
      assert.equal(isClipError(error) && error.context["skipped"], true);
      return true;
    });
    await assert.rejects(cache.store(freshKey(), bufferSource(testBytes(1))), (error) =>
      isClipError(error, "CACHE_UNAVAILABLE"),
    );
    assert.equal(memory.calls.length, 3);
    assert.deepEqual(
      changes.map(({ state }) => state),
      ["open"],
    );
  });

  test("lets a read through that insists, and closes when it succeeds", async () => {
    const { memory, cache, changes } = guarded();
    memory.before = down;
    for (let call = 0; call < 3; call++) await fails(cache);
    const read = (insist: boolean) => cache.read(freshKey(), 0, Buffer.alloc(1), { insist });
    await assert.rejects(read(true), (error) => isClipError(error, "CACHE_UNAVAILABLE"));
    assert.equal(memory.calls.length, 4);
    memory.before = up;
    await assert.rejects(read(false), (error) => isClipError(error, "CACHE_UNAVAILABLE"));
    assert.equal(await read(true), undefined);
    assert.deepEqual(
      changes.map(({ state }) => state),
      ["open", "closed"],
    );
  });

  test("stays closed while successes, misses and faults of other kinds come between", async () => {
    const { memory, cache, changes } = guarded();
    for (let round = 0; round < 4; round++) {
      memory.before = down;
      await fails(cache);
      await fails(cache);
      memory.before = up;
      assert.equal(await ask(cache), undefined);
    }
    memory.before = () => Promise.reject(new ClipError("CACHE_PROTOCOL", "odd"));
    for (let call = 0; call < 5; call++) await assert.rejects(ask(cache));
    assert.deepEqual(changes, []);
  });

  test("lets one probe through when the time is up, and closes when it succeeds", async () => {
    const { memory, clock, cache, changes } = guarded();
    memory.before = down;
    for (let call = 0; call < 3; call++) await fails(cache);
    clock.now = 1_000;
    let release = () => {};
    memory.before = () =>
      new Promise((resolve) => {
        release = resolve;
      });
    const probe = ask(cache);
    await fails(cache);
    assert.equal(memory.calls.length, 4, "only the probe was let through");
    release();
    await probe;
    memory.before = up;
    assert.equal(await ask(cache), undefined);
    assert.deepEqual(
      changes.map(({ state }) => state),
      ["open", "closed"],
    );
  });

  test("waits twice as long after a vain probe, up to a limit, and is told as open but once", async () => {
    const { memory, clock, cache, changes } = guarded();
    memory.before = down;
    for (let call = 0; call < 3; call++) await fails(cache);
    for (const wait of [1_000, 2_000, 3_000, 3_000]) {
      const before = memory.calls.length;
      clock.now += wait - 1;
      await fails(cache);
      assert.equal(memory.calls.length, before);
      clock.now += 1;
      await fails(cache);
      assert.equal(memory.calls.length, before + 1);
    }
    assert.equal(changes.length, 1);
  });

  test("a probe that its caller gave up on decides nothing", async () => {
    const { memory, clock, cache } = guarded();
    memory.before = down;
    for (let call = 0; call < 3; call++) await fails(cache);
    clock.now = 1_000;
    await assert.rejects(cache.has(freshKey(), { signal: AbortSignal.abort() }));
    memory.before = up;
    assert.equal(await ask(cache), undefined);
  });

  test("a store is preceded by a question when the cache has failed", async () => {
    const { memory, clock, cache } = guarded();
    memory.before = down;
    for (let call = 0; call < 3; call++) await fails(cache);
    clock.now = 1_000;
    memory.before = up;
    memory.calls.length = 0;
    assert.equal(await cache.store(freshKey(), bufferSource(testBytes(1))), "stored");
    assert.deepEqual(memory.calls, ["has", "store"]);
  });

  test("slow answers count as failures, large reads may take longer", async () => {
    const { memory, clock, cache, changes } = guarded();
    const key = freshKey();
    await memory.store(key, bufferSource(testBytes(9_000_000)));
    memory.before = () => {
      clock.now += 150;
      return Promise.resolve();
    };
    const large = Buffer.alloc(9_000_000);
    for (let call = 0; call < 3; call++) await cache.read(key, 0, large);
    assert.deepEqual(changes, []);
    for (let call = 0; call < 3; call++) await cache.read(key, 0, Buffer.alloc(10));
    assert.deepEqual(changes, [{ cache: "memory", state: "open" }]);
  });
});
