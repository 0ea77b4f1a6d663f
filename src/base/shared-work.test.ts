import assert from "node:assert/strict";
import { test } from "node:test";
import { KeyedQueue } from "./keyed-queue.ts";
import { SharedWork } from "./shared-work.ts";

void test("all who ask at the same time get the outcome of one piece of work", async () => {
  const shared = new SharedWork<number>();
  let runs = 0;
  const work = async () => ++runs;
  assert.deepEqual(await Promise.all([shared.run("a", work), shared.run("a", work)]), [1, 1]);
  assert.equal(await shared.run("a", work), 2);
});

void test("work is given up when the last who waits has left, not before", async () => {
  const shared = new SharedWork<string>();
  let given: AbortSignal | undefined;
  const gate = Promise.withResolvers<string>();
  const work = (signal: AbortSignal) => ((given = signal), gate.promise);
  const [first, second] = [new AbortController(), new AbortController()];
  const one = shared.run("a", work, first.signal);
  const two = shared.run("a", work, second.signal);
  first.abort();
  await assert.rejects(one, { code: "ABORTED" });
  assert.equal(given?.aborted, false);
  second.abort();
  await assert.rejects(two, { code: "ABORTED" });
  assert.equal(given?.aborted, true);
  // The work that was given up has not ended yet, but whoever comes now gets work of his own.
  assert.equal(await shared.run("a", async () => "new"), "new");
  gate.resolve("old");
});

void test("closing gives everything up and accepts nothing more", async () => {
  const shared = new SharedWork<void>();
  const waiting = shared.run(
    "a",
    (signal) =>
      new Promise((_, reject) => signal.addEventListener("abort", () => reject(new Error("gone")))),
  );
  const failing = assert.rejects(waiting, /gone/);
  await shared.close();
  await failing;
  await assert.rejects(
    shared.run("a", async () => {}),
    { code: "CLOSED" },
  );
});

void test("a queue runs one piece of work per key at a time, in order, also after failures", async () => {
  const queue = new KeyedQueue();
  const log: string[] = [];
  const gate = Promise.withResolvers<void>();
  const first = queue.run("a", async () => {
    await gate.promise;
    log.push("a1");
    throw new Error("failed");
  });
  const second = queue.run("a", async () => log.push("a2"));
  await queue.run("b", async () => log.push("b"));
  assert.deepEqual(log, ["b"]);
  gate.resolve();
  await assert.rejects(first, /failed/);
  await second;
  await queue.idle();
  assert.deepEqual(log, ["b", "a1", "a2"]);
});
