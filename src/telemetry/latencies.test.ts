import assert from "node:assert/strict";
import { test } from "node:test";
import { Latencies, quantileOf, totalOf } from "./latencies.ts";

void test("a duration belongs to the first class whose bound it does not exceed", () => {
  const latencies = new Latencies();
  for (const duration of [0, 0.5, 0.6, 1, 60_000, 60_001]) latencies.add(duration);
  assert.deepEqual(latencies.counts.slice(0, 3), [2, 2, 0]);
  assert.deepEqual(latencies.counts.slice(-2), [1, 1]);
  assert.equal(latencies.counts.length, latencies.boundsMs.length + 1);
  assert.equal(totalOf(latencies), 6);
  assert.equal(latencies.milliseconds, 120_003.1);
});

void test("a quantile is the bound of the class it lies in", () => {
  const latencies = new Latencies();
  assert.equal(quantileOf(latencies, 0.5), undefined);
  for (let at = 0; at < 9; at++) latencies.add(4);
  latencies.add(1e9);
  assert.equal(quantileOf(latencies, 0.5), 5);
  assert.equal(quantileOf(latencies, 0.9), 5);
  assert.equal(quantileOf(latencies, 0.99), Infinity);
});
