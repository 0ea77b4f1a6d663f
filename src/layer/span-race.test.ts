import assert from "node:assert/strict";
import { test } from "node:test";
import { ClipError, isClipError } from "../base/errors.ts";
import { silentLog } from "../telemetry/log.ts";
import { newLayerCounters, sourceCounters } from "./counters.ts";
import { FakeSource, fakeLayer } from "./fakes.ts";
import { raceSpans } from "./span-race.ts";
import type { SpanSource } from "./span-source.ts";

const layer = fakeLayer(6, 100_000);

function setUp(sources: readonly SpanSource[]) {
  const counters = newLayerCounters();
  const controller = new AbortController();
  const { signal } = controller;
  const race = async (first = 0, last = 5) => {
    const { head } = layer;
    const log = silentLog;
    const spans: Buffer[] = [];
    for await (const bytes of raceSpans({ head, first, last, sources, signal, counters, log })) {
      spans.push(bytes);
    }
    return Buffer.concat(spans);
  };
  return { counters, controller, race };
}

/** A source whose patience ends at once. */
function impatient(name: string, isOverdue = false): FakeSource & SpanSource & { spent: number } {
  const source = Object.assign(new FakeSource(layer, name), { spent: 0 });
  return Object.assign(source, {
    patience: {
      milliseconds: () => 0,
      spent: () => void source.spent++,
      isOverdue: () => isOverdue,
    },
  });
}

test("a source that keeps silent is joined by the next one, and the first answer counts", async () => {
  const near = impatient("near");
  const far = new FakeSource(layer, "far");
  near.hold();
  const { race, counters } = setUp([near, far]);
  assert.ok((await race()).equals(layer.bytes));
  assert.equal(near.running, 0, "the one that lost has ended");
  assert.equal(near.spent, 1);
  assert.deepEqual(far.requests, [{ start: 0, end: 600_000 }]);
  assert.equal(sourceCounters(counters, "near").errors, 0);
  assert.equal(sourceCounters(counters, "far").spans, 6);
});

test("a source that has had its time and lost to another one has failed", async () => {
  const near = impatient("near", true);
  near.hold();
  const { race, counters } = setUp([near, new FakeSource(layer, "far")]);
  assert.ok((await race()).equals(layer.bytes));
  assert.equal(sourceCounters(counters, "near").errors, 1);
  assert.ok(isClipError(near.abortReason, "TIMEOUT"));
});

test("when every source has failed, those that were left alone are asked all the same", async () => {
  const insistent = new FakeSource(layer, "near");
  const near = Object.assign(new FakeSource(layer, "near"), {
    mayEndEarly: true,
    lastResort: insistent,
  });
  near.endAt = 0;
  const far = new FakeSource(layer, "far");
  const { race } = setUp([near, far]);
  assert.ok((await race()).equals(layer.bytes));
  assert.equal(insistent.requests.length, 0, "somebody else had it");
  far.failure = new ClipError("REGISTRY_UNAVAILABLE", "down");
  assert.ok((await race()).equals(layer.bytes));
  assert.equal(insistent.requests.length, 1);
});

test("a source that was only slow wins when the next one fails", async () => {
  const near = impatient("near");
  const far = new FakeSource(layer, "far");
  near.hold();
  far.failure = new ClipError("REGISTRY_UNAVAILABLE", "down");
  const { race } = setUp([near, far]);
  const racing = race();
  while (far.requests.length === 0) await new Promise((resolve) => setImmediate(resolve));
  near.release();
  assert.ok((await racing).equals(layer.bytes));
});

test("a source that does not have the rest is followed by the next one, without an error", async () => {
  const near = Object.assign(new FakeSource(layer, "near"), { mayEndEarly: true });
  const far = new FakeSource(layer, "far");
  near.endAt = 200_000;
  const { race, counters } = setUp([near, far]);
  assert.ok((await race()).equals(layer.bytes));
  assert.deepEqual(far.requests, [{ start: 200_000, end: 600_000 }]);
  const { misses, errors, corrupt } = sourceCounters(counters, "near");
  assert.deepEqual({ misses, errors, corrupt }, { misses: 1, errors: 0, corrupt: 0 });
});

test("a source learns which span was wrong", async () => {
  const wrong: number[] = [];
  const near = Object.assign(new FakeSource(layer, "near"), {
    onWrong: (start: number) => void wrong.push(start),
  });
  near.damageSpan = 2;
  const { race, counters } = setUp([near, new FakeSource(layer, "far")]);
  assert.ok((await race()).equals(layer.bytes));
  assert.deepEqual(wrong, [200_000]);
  assert.equal(sourceCounters(counters, "near").corrupt, 1);
});

test("wrong bytes are told of, also where others fail after them in other ways", async () => {
  const [insistent, near, far] = ["near", "near", "far"].map((name) => {
    const source = new FakeSource(layer, name);
    source.failure = new ClipError("CACHE_UNAVAILABLE", "down");
    return source;
  });
  assert.ok(insistent && near && far);
  far.failure = undefined;
  far.damageSpan = 1;
  const last = new FakeSource(layer, "last");
  last.failure = new ClipError("REGISTRY_UNAVAILABLE", "down");
  const { race } = setUp([Object.assign(near, { lastResort: insistent }), far, last]);
  await assert.rejects(race(), (error) => isClipError(error, "CORRUPT_LAYER"));
  assert.deepEqual(
    [near, far, last, insistent].map(({ requests }) => requests.length),
    [1, 2, 1, 1],
  );
});

test("when all fail the last failure is told; when it is given up everything ends", async () => {
  const only = new FakeSource(layer);
  only.failure = new ClipError("REGISTRY_DENIED", "no");
  const failing = setUp([only]);
  await assert.rejects(failing.race(), (error) => isClipError(error, "REGISTRY_DENIED"));

  const held = new FakeSource(layer);
  held.hold();
  const { race, controller } = setUp([held]);
  const racing = race();
  controller.abort();
  await assert.rejects(racing);
  assert.equal(held.running, 0);
});
