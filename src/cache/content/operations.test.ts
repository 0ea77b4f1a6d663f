import assert from "node:assert/strict";
import { test } from "node:test";
import { ClipError, isClipError } from "../../base/errors.ts";
import { forEachParallel, Operations, orAborted, withDeadline } from "./operations.ts";

const forever = new Promise<never>(() => {});

function* upTo(count: number): Generator<number, void, undefined> {
  for (let number = 0; number < count; number++) yield number;
}

test("a deadline ends a wait that heeds nothing, and tells the work about it", async () => {
  let heard: AbortSignal | undefined;
  const waiting = withDeadline("the answer", 5, [], (signal) => {
    heard = signal;
    return forever;
  });
  await assert.rejects(waiting, (error) => isClipError(error, "TIMEOUT"));
  assert.equal(heard?.aborted, true);
});

test("any of the signals ends the wait, with its reason where that is an error of clip", async () => {
  const [first, second] = [new AbortController(), new AbortController()];
  const wait = () =>
    withDeadline("it", 60_000, [undefined, first.signal, second.signal], () => forever);
  const waiting = wait();
  second.abort(new ClipError("CLOSED", "the end"));
  await assert.rejects(waiting, (error) => isClipError(error, "CLOSED"));
  await assert.rejects(wait(), (error) => isClipError(error, "CLOSED"));
  first.abort("nobody cares");
  await assert.rejects(wait(), (error) => isClipError(error, "ABORTED"));
  await assert.rejects(orAborted(forever, first.signal), (error) => isClipError(error, "ABORTED"));
});

test("work that fails after its deadline disturbs nobody", async () => {
  const { promise, reject } = Promise.withResolvers<void>();
  await assert.rejects(
    withDeadline("it", 1, [], () => promise),
    (error) => isClipError(error, "TIMEOUT"),
  );
  reject(new Error("too late"));
  await new Promise(setImmediate);
});

test("closing aborts what runs and waits for its end; afterwards nothing begins", async () => {
  const operations = new Operations("test");
  let ended = false;
  const running = operations.run(undefined, async (signal) => {
    await orAborted(forever, signal).catch(() => {});
    await new Promise(setImmediate);
    ended = true;
  });
  await operations.close();
  assert.equal(ended, true);
  await running;
  await assert.rejects(
    operations.run(undefined, () => Promise.resolve(1)),
    (error) => isClipError(error, "CLOSED"),
  );
});

test("detached work goes on when its caller has left, and closing waits for it", async () => {
  const operations = new Operations("test");
  const controller = new AbortController();
  let cleaned = false;
  const running = operations.runDetached(controller.signal, async (signal) => {
    await orAborted(forever, signal).catch(() => {});
    await new Promise((resolve) => {
      setTimeout(resolve, 5);
    });
    cleaned = true;
  });
  controller.abort();
  await assert.rejects(running, (error) => isClipError(error, "ABORTED"));
  assert.equal(cleaned, false);
  await operations.close();
  assert.equal(cleaned, true);
});

test("work on many items keeps to its number at a time and sees each item once", async () => {
  const seen: number[] = [];
  let running = 0;
  let most = 0;
  await forEachParallel(upTo(20), 3, new AbortController().signal, async (item, index) => {
    most = Math.max(most, ++running);
    await new Promise(setImmediate);
    seen.push(item);
    assert.equal(item, index);
    running--;
  });
  assert.equal(most, 3);
  assert.deepEqual(
    seen.sort((a, b) => a - b),
    [...upTo(20)],
  );
});

test("the first failure stops the rest, and is thrown when all that ran has ended", async () => {
  let begun = 0;
  let running = 0;
  const working = forEachParallel(
    upTo(100),
    4,
    new AbortController().signal,
    async (item, _, signal) => {
      begun++;
      running++;
      try {
        if (item === 5) throw new Error("five");
        await new Promise(setImmediate);
        if (item > 5) await orAborted(forever, signal);
      } finally {
        running--;
      }
    },
  );
  await assert.rejects(working, /five/);
  assert.equal(running, 0);
  assert.equal(begun < 12, true);
});
