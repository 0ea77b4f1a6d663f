import assert from "node:assert/strict";
import { test } from "node:test";
import { RestartDelays } from "./restart-delays.ts";

test("the first restart is immediate, those after it wait longer and longer, up to five seconds", () => {
  const delays = new RestartDelays();
  const waits = Array.from({ length: 9 }, () => delays.next(10));
  assert.deepEqual(waits, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
});

test("after a daemon that served for a while the next restart is immediate again", () => {
  const delays = new RestartDelays();
  for (let time = 0; time < 5; time++) delays.next(10);
  assert.equal(delays.next(2_000), 0);
  assert.equal(delays.next(10), 100);
});
