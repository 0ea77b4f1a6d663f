import assert from "node:assert/strict";
import { test } from "node:test";
import { ByteBudget } from "./byte-budget.ts";

const never = new AbortController().signal;

void test("it grants in order and never more than there is", async () => {
  const budget = new ByteBudget(100);
  const order: string[] = [];
  const first = await budget.acquire(80, never);
  const second = budget.acquire(50, never).then((release) => (order.push("second"), release));
  const third = budget.acquire(10, never).then((release) => (order.push("third"), release));
  assert.equal(budget.used, 80);
  first();
  first();
  const release = await second;
  (await third)();
  assert.deepEqual(order, ["second", "third"]);
  assert.equal(budget.used, 50);
  release();
  assert.equal(budget.used, 0);
});

void test("more than the whole budget is granted alone", async () => {
  const budget = new ByteBudget(100);
  const small = await budget.acquire(1, never);
  const large = budget.acquire(500, never);
  const after = budget.acquire(1, never);
  small();
  const release = await large;
  assert.equal(budget.used, 500);
  release();
  (await after)();
});

void test("who gives up while waiting does not block the next", async () => {
  const budget = new ByteBudget(100);
  const held = await budget.acquire(60, never);
  const abort = new AbortController();
  const leaving = budget.acquire(100, abort.signal);
  const next = budget.acquire(40, never);
  abort.abort();
  await assert.rejects(leaving, { code: "ABORTED" });
  (await next)();
  held();
  await assert.rejects(
    budget.acquire(1000, AbortSignal.abort()).then(() => budget.acquire(1, AbortSignal.abort())),
    {
      code: "ABORTED",
    },
  );
});

void test("room for what is not urgent ends at half of the budget", async () => {
  const budget = new ByteBudget(100);
  assert.equal(budget.hasRoom(50), true);
  const release = await budget.acquire(30, never);
  assert.equal(budget.hasRoom(20), true);
  assert.equal(budget.hasRoom(21), false);
  release();
});
