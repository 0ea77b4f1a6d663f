import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { test } from "node:test";
import { attempt, run, Service } from "./command.ts";
import { mountsBelow, Sandbox } from "./sandbox.ts";
import { toolEnvironment } from "./tools.ts";

test("a sandbox undoes what it was told to, the last first, and is gone", async () => {
  const sandbox = await Sandbox.create();
  const order: string[] = [];
  for (const name of ["first", "second"]) {
    sandbox.onClose(name, async () => {
      order.push(name);
      await Promise.resolve();
    });
  }
  await sandbox.close();
  assert.deepEqual(order, ["second", "first"]);
  assert.ok(!existsSync(sandbox.directory));
});

test("a mount and a process that were left are named, and ended all the same", async () => {
  const sandbox = await Sandbox.create();
  const mountpoint = await sandbox.subdirectory("mount point");
  await run("mount", ["-t", "tmpfs", "tmpfs", mountpoint]);
  const service = await Service.start({
    name: "sleeper",
    command: "tail",
    args: ["-f", sandbox.path("log")],
    env: toolEnvironment(),
    logFile: sandbox.path("log"),
    isReady: () => true,
  });
  await assert.rejects(sandbox.close(), /left: mount .*mount point; left: process \d+ tail -f/);
  assert.deepEqual(mountsBelow(sandbox.directory), []);
  await service.stop();
  assert.ok(!existsSync(sandbox.directory));
});

test("a cleanup that fails is told, and the others are done", async () => {
  const sandbox = await Sandbox.create();
  let done = false;
  sandbox.onClose("good", async () => {
    done = await Promise.resolve(true);
  });
  sandbox.onClose("bad", () => Promise.reject(new Error("no")));
  await assert.rejects(sandbox.close(), /bad: Error: no/);
  assert.ok(done);
});

test("a command that takes too long is killed, and one that fails says what it said", async () => {
  await assert.rejects(run("sleep", ["100"], { timeoutMs: 100 }), /took over 100 ms/);
  await assert.rejects(run("sh", ["-c", "echo out; echo err >&2; exit 3"]), /with 3:\nout\s+err/);
  assert.equal((await attempt("false", [])).status, 1);
});
