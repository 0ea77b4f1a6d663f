import assert from "node:assert/strict";
import { closeSync, openSync } from "node:fs";
import { test } from "node:test";
import { pino } from "pino";
import { silentLog } from "../telemetry/log.ts";
import { FuseThreads } from "./threads.ts";

function makeThreads(descriptor: number, log = silentLog): FuseThreads {
  return new FuseThreads({
    descriptor,
    count: 2,
    noOpen: false,
    onMessage: (message) => assert.fail(message.kind),
    isPending: () => false,
    onLost: (unique) => assert.fail(`request ${unique} was lost`),
    log,
  });
}

test("threads that die are replaced, and they end on request", async () => {
  // Reading a directory fails in a way that no connection does.
  const descriptor = openSync("/", "r");
  try {
    let deaths = 0;
    const enough = Promise.withResolvers<void>();
    const write = () => {
      if (++deaths === 4) enough.resolve();
    };
    const threads = makeThreads(descriptor, pino({ level: "error" }, { write }));
    threads.start();
    await enough.promise;
    assert.equal(await threads.stop(5000), true);
  } finally {
    closeSync(descriptor);
  }
});

test("threads that never ran need no end", async () => {
  const threads = makeThreads(-1);
  assert.equal(await threads.stop(1000), true);
  assert.ok(threads.counts().every((count) => count === 0));
});
