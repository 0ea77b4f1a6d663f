import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { DemandActivity } from "./demand-activity.ts";

const { signal } = new AbortController();

test("background work goes on when nobody is waiting", async () => {
  const activity = new DemandActivity();
  await activity.quiet(signal);
  await activity.calm(signal);
});

test("background work begins only some time after the last one was answered", async () => {
  const activity = new DemandActivity();
  const leave = activity.enter();
  let began = false;
  const calm = activity.calm(signal).then(() => (began = true));
  await sleep(1_500);
  leave();
  // What was short is over; what takes long waits for more of the same.
  await activity.quiet(signal);
  assert.equal(began, false);
  await calm;
});

test("who waits for others can be stopped", async () => {
  const activity = new DemandActivity();
  activity.enter();
  await assert.rejects(activity.calm(AbortSignal.timeout(10)), { name: "AbortError" });
});
