import assert from "node:assert/strict";
import { closeSync, openSync } from "node:fs";
import { test } from "node:test";
import { silentLog } from "../telemetry/log.ts";
import { FuseThreads } from "./threads.ts";

function makeThreads(descriptor: number, onLost: (unique: bigint) => void): FuseThreads {
  return new FuseThreads({
    descriptor,
    count: 2,
    noOpen: false,
    onMessage: (message) => assert.fail(message.kind),
    onLost,
    log: silentLog,
  });
}

test("threads that die are replaced, what they held is reported, and they end on request", async () => {
  // Reading a directory fails in a way that no connection does.
  const descriptor = openSync("/", "r");
  try {
    const lost: bigint[] = [];
    const enough = Promise.withResolvers<void>();
    const threads = makeThreads(descriptor, (unique) => {
      if (lost.push(unique) === 4) enough.resolve();
    });
    threads.start();
    await enough.promise;
    assert.deepEqual(lost, [0n, 0n, 0n, 0n]);
    assert.equal(await threads.stop(5000), true);
  } finally {
    closeSync(descriptor);
  }
});

test("threads that never ran need no end", async () => {
  const threads = makeThreads(-1, () => assert.fail("a thread died"));
  assert.equal(await threads.stop(1000), true);
  assert.ok(threads.counts().every((count) => count === 0));
});
