import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import { describeError, isClipError } from "./errors.ts";
import { workerFailure } from "./worker-failure.ts";

async function failureOf(code: string): Promise<Error> {
  const resourceLimits = { maxOldGenerationSizeMb: 8 };
  const worker = new Worker(code, { eval: true, resourceLimits });
  const [error] = (await once(worker, "error")) as [unknown];
  return workerFailure(error, "this test");
}

test("a thread that runs out of memory has passed a limit", async () => {
  const failure = await failureOf("const all = []; for (;;) all.push(new Array(1000).fill(all));");
  assert.ok(isClipError(failure, "LIMIT_EXCEEDED"), describeError(failure));
  assert.match(failure.message, /^this test needs more memory/);
});

test("a thread that dies of anything else is a defect, and says of what", async () => {
  const failure = await failureOf("throw new Error('a slip');");
  assert.ok(!isClipError(failure));
  assert.equal(describeError(failure), "this test failed with its thread: a slip");
});
