/** A daemon dies while one of its threads waits for its own FUSE session, as mount(2) does. */
import assert from "node:assert/strict";
import { existsSync, globSync, readFileSync } from "node:fs";
import { afterEach, beforeEach, before, after, describe } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { startRegistry, type TestRegistry } from "../harness/registry.ts";
import { Sandbox } from "../harness/sandbox.ts";
import { assertNothingLeft, startClipAgain, startStage, type Stage } from "../harness/stage.ts";
import { daemonPid, keeperPid, untilServed } from "./daemon-faults.ts";
import { faultTest } from "./fault-kinds.ts";
import { checkAll, pull, pushData } from "./fault-node.ts";
import { inspectable, Inspector } from "./inspector.ts";

/** The thread takes the next request and never answers it. */
const hang = "Buffer.prototype.readUInt32LE = () => { for (;;); }";

describe("a thread hangs in a mount that nobody answers", () => {
  let images: Sandbox;
  let registry: TestRegistry;
  let sandbox: Sandbox;
  let stage: Stage;

  before(async () => {
    images = await Sandbox.create();
    registry = await startRegistry(images);
  });
  beforeEach(async () => {
    sandbox = await Sandbox.create();
    stage = await startStage(sandbox, {
      ...{ generation: "2", mode: "erofs", registry, environment: inspectable },
      settings: { fuse: { threads: 1 } },
    });
  });
  afterEach(async () => {
    await assertNothingLeft(stage);
    await sandbox.close();
  });
  after(() => images.close());

  /** Has a pull get so far. */
  async function hangInPull(reference: string): Promise<void> {
    const inspector = await Inspector.connect(stage.clip);
    await inspector.runIn("] fuse", hang);
    inspector.close();
    void pull(stage, reference).catch(() => {});
    await untilWaiting(daemonPid(stage.clip));
  }

  faultTest("death-in-mount", "another daemon answers it", async () => {
    const reference = await pushData(images, registry);
    const pid = daemonPid(stage.clip);
    await hangInPull(reference);
    process.kill(pid, "SIGKILL");
    await untilServed(stage.clip, pid);
    await untilGone(pid);
    await pull(stage, reference);
    await checkAll(stage, reference);
  });

  faultTest("death-in-mount", "the next keeper gives it up when the keeper dies, too", async () => {
    const reference = await pushData(images, registry);
    const pid = daemonPid(stage.clip);
    await hangInPull(reference);
    const keeper = keeperPid(stage.clip);
    process.kill(keeper, "SIGSTOP");
    process.kill(pid, "SIGKILL");
    process.kill(keeper, "SIGKILL");
    await startClipAgain(stage);
    await untilGone(pid);
    await pull(stage, reference);
    await checkAll(stage, reference);
  });
});

/** Waits until a thread of a process waits for an answer of FUSE. */
async function untilWaiting(pid: number): Promise<void> {
  const waits = (file: string): boolean => {
    try {
      return readFileSync(file, "latin1") === "request_wait_answer";
    } catch {
      return false;
    }
  };
  for (let tries = 0; !globSync(`/proc/${pid}/task/*/wchan`).some(waits); tries++) {
    assert.ok(tries < 1000, "no thread waits");
    await sleep(10);
  }
}

async function untilGone(pid: number): Promise<void> {
  for (let tries = 0; existsSync(`/proc/${pid}`); tries++) {
    assert.ok(tries < 1000, "the process does not end");
    await sleep(10);
  }
}
