import assert from "node:assert/strict";
import { test } from "node:test";
import { abortable, Semaphore, SingleFlight } from "./concurrency.ts";
import { isClipError } from "./errors.ts";

test("single flight runs the work once for all who ask meanwhile, and again afterwards", async () => {
  const flight = new SingleFlight<number>();
  let runs = 0;
  const work = async () => {
    await new Promise(setImmediate);
    return ++runs;
  };
  assert.deepEqual(await Promise.all([flight.run("a", work), flight.run("a", work)]), [1, 1]);
  assert.equal(await flight.run("a", work), 2);
  assert.equal(flight.size, 0);
});

test("single flight forgets work that failed", async () => {
  const flight = new SingleFlight<number>();
  await assert.rejects(flight.run("a", () => Promise.reject(new Error("no"))));
  assert.equal(await flight.run("a", () => Promise.resolve(1)), 1);
});

test("a semaphore never lets more in than it has permits, and everybody gets in", async () => {
  const semaphore = new Semaphore(3);
  let running = 0;
  let most = 0;
  const outcomes = await Promise.allSettled(
    Array.from({ length: 20 }, (_, index) =>
      semaphore.run(async () => {
        most = Math.max(most, ++running);
        await new Promise(setImmediate);
        running--;
        if (index % 5 === 0) throw new Error("a failure gives its permit back");
      }),
    ),
  );
  assert.equal(most, 3);
  assert.equal(outcomes.length, 20);
  assert.equal(await semaphore.run(() => Promise.resolve("free")), "free");
});

test("an aborted wait ends with ABORTED and leaves no listener behind", async () => {
  const controller = new AbortController();
  const wait = abortable(new Promise<never>(() => {}), controller.signal);
  controller.abort();
  await assert.rejects(wait, (error) => isClipError(error, "ABORTED"));
  await assert.rejects(abortable(new Promise<never>(() => {}), controller.signal), (error) =>
    isClipError(error, "ABORTED"),
  );
  assert.equal(await abortable(Promise.resolve(1), new AbortController().signal), 1);
});
