import assert from "node:assert/strict";
import { constants } from "node:os";
import { test } from "node:test";
import { hasFatalSignalPending, isBeingKilled } from "./killed.ts";

test("a pending signal that will end the process is seen", () => {
  const bit = (signal: NodeJS.Signals): bigint => 1n << BigInt(constants.signals[signal] - 1);
  const isSeen = (masks: Partial<Record<"SigPnd" | "ShdPnd" | "SigBlk" | "SigCgt", bigint>>) => {
    const all = { SigPnd: 0n, ShdPnd: 0n, SigBlk: 0n, SigIgn: 0n, SigCgt: 0n, ...masks };
    const lines = Object.entries(all).map(
      ([name, mask]) => `${name}:\t${mask.toString(16).padStart(16, "0")}\n`,
    );
    return hasFatalSignalPending(`Name:\tcat\n${lines.join("")}CapInh:\t0000000000000000\n`);
  };
  assert.equal(isSeen({}), false);
  assert.equal(isSeen({ SigPnd: bit("SIGKILL") }), true);
  assert.equal(isSeen({ ShdPnd: bit("SIGTERM") }), true);
  assert.equal(isSeen({ ShdPnd: bit("SIGTERM"), SigCgt: bit("SIGTERM") }), false);
  assert.equal(isSeen({ ShdPnd: bit("SIGQUIT"), SigBlk: bit("SIGQUIT") }), false);
  assert.equal(isSeen({ ShdPnd: bit("SIGCHLD") | bit("SIGWINCH") | bit("SIGTSTP") }), false);
});

test("this process is not being killed; one that cannot be seen counts as killed", async () => {
  assert.equal(await isBeingKilled(process.pid), false);
  assert.equal(await isBeingKilled(0), true);
  assert.equal(await isBeingKilled(2 ** 30), true);
});
