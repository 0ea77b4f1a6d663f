import assert from "node:assert/strict";
import { test } from "node:test";
import { RecoveryPauses } from "./recovery-pauses.ts";

const minute = 60_000;

void test("a layer is tried again after a minute, then after twice as long, up to an hour", () => {
  let now = 5;
  const pauses = new RecoveryPauses(() => now);
  assert.ok(pauses.isOver(1));
  for (const minutes of [1, 2, 4, 8, 16, 32, 60, 60]) {
    pauses.failed(1);
    now += minutes * minute - 1;
    assert.ok(!pauses.isOver(1));
    assert.ok(pauses.isOver(2), "another layer has nothing to do with it");
    now++;
    assert.ok(pauses.isOver(1));
  }
});

void test("an attempt that helped is not repeated within a minute, and ends the longer pauses", () => {
  let now = 0;
  const pauses = new RecoveryPauses(() => now);
  for (let time = 0; time < 3; time++) pauses.failed(1);
  pauses.succeeded(1);
  assert.ok(!pauses.isOver(1));
  now = minute;
  assert.ok(pauses.isOver(1));
});
