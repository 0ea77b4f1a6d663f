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

test("whoever gives up waiting for a permit leaves the queue, and the others keep their turns", async () => {
  const semaphore = new Semaphore(1);
  const gate = Promise.withResolvers<void>();
  const first = semaphore.run(() => gate.promise);
  const controller = new AbortController();
  const order: string[] = [];
  const work = (name: string) => async () => void order.push(name);
  const second = semaphore.run(work("second"), controller.signal);
  const third = semaphore.run(work("third"));
  assert.equal(semaphore.waiting, 2);
  controller.abort();
  await assert.rejects(second, (error) => isClipError(error, "ABORTED"));
  assert.equal(semaphore.waiting, 1);
  gate.resolve();
  await Promise.all([first, third]);
  assert.deepEqual(order, ["third"]);
  assert.equal(semaphore.running, 0);
});

test("a permit that is given at the moment of giving up goes to the next", async () => {
  const semaphore = new Semaphore(1);
  const gate = Promise.withResolvers<void>();
  const first = semaphore.run(() => gate.promise);
  const controller = new AbortController();
  const second = semaphore.run(() => Promise.resolve("second"), controller.signal);
  const third = semaphore.run(() => Promise.resolve("third"));
  gate.resolve();
  await first;
  controller.abort();
  await Promise.allSettled([second]);
  assert.equal(await third, "third");
  assert.equal(semaphore.running, 0);
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
