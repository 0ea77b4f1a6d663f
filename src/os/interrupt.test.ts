import assert from "node:assert/strict";
import { test } from "node:test";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { execFileSync } from "node:child_process";
import { tmpdir } from "node:os";
import path from "node:path";
import { Worker } from "node:worker_threads";
import { enableInterrupts, interruptThread } from "./interrupt.ts";

test("a worker that blocks in read(2) is interrupted", async (context) => {
  const directory = await mkdtemp(path.join(tmpdir(), "clip-interrupt-"));
  context.after(() => rm(directory, { recursive: true }));
  const fifo = path.join(directory, "fifo");
  execFileSync("mkfifo", [fifo]);
  // Open for reading and writing: nobody ever writes, so a read never returns.
  const descriptor = openSync(fifo, "r+");
  context.after(() => closeSync(descriptor));
  enableInterrupts();
  const worker = new Worker(
    `const { parentPort, workerData } = require("node:worker_threads");
     import(workerData.module).then(({ currentThreadId }) => {
       parentPort.postMessage(currentThreadId());
       try { require("node:fs").readSync(workerData.descriptor, Buffer.alloc(1)); }
       catch (error) { parentPort.postMessage(error.code); }
     });`,
    {
      eval: true,
      workerData: { descriptor, module: new URL("interrupt.ts", import.meta.url).href },
    },
  );
  const [threadId] = (await once(worker, "message")) as [number];
  const noticed = once(worker, "message");
  const interrupting = setInterval(() => interruptThread(threadId), 5);
  context.after(() => clearInterval(interrupting));
  assert.deepEqual(await noticed, ["EINTR"]);
});
