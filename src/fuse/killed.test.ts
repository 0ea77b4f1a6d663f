import assert from "node:assert/strict";
import { test } from "node:test";
import { hasKillPending, isBeingKilled } from "./killed.ts";

test("a pending SIGKILL is seen for the thread and for the process", () => {
  const status = (thread: string, shared: string): string =>
    `Name:\tcat\nThreads:\t1\nSigPnd:\t${thread}\nShdPnd:\t${shared}\nSigBlk:\t0000000000000100\n`;
  const none = "0000000000000000";
  const kill = "0000000000000100";
  const others = "fffffffffffffeff";
  assert.equal(hasKillPending(status(none, none)), false);
  assert.equal(hasKillPending(status(others, others)), false);
  assert.equal(hasKillPending(status(kill, none)), true);
  assert.equal(hasKillPending(status(none, kill)), true);
});

test("this process is not being killed; one that cannot be seen counts as killed", async () => {
  assert.equal(await isBeingKilled(process.pid), false);
  assert.equal(await isBeingKilled(0), true);
  assert.equal(await isBeingKilled(2 ** 30), true);
});
