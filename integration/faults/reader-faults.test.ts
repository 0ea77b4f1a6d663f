/** Readers, containers, containerd and the FUSE mount go away in the middle of reads. */
import assert from "node:assert/strict";
import path from "node:path";
import { after, afterEach, before, describe } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { run } from "../harness/command.ts";
import { lines } from "../harness/containerd.ts";
import { startRegistry, type TestRegistry } from "../harness/registry.ts";
import { Sandbox } from "../harness/sandbox.ts";
import { assertNothingLeft, mountModes, startStage, type Stage } from "../harness/stage.ts";
import { isRunning } from "./daemon-faults.ts";
import { faultTest } from "./fault-kinds.ts";
import {
  checkAll,
  checkIn,
  checkNode,
  dropCaches,
  execIn,
  pull,
  pushData,
  startContainer,
  tryPull,
  until,
  untilIdle,
  untilStatus,
} from "./fault-node.ts";

let images: Sandbox;
let registry: TestRegistry;

before(async () => {
  images = await Sandbox.create();
  registry = await startRegistry(images);
});
after(() => images.close());

let release = () => {};

/** Until {@link release} the registry takes requests for parts of layers and does not answer. */
function hold(): void {
  const held = Promise.withResolvers<void>();
  registry.interfere(async (request) => {
    if (request.headers.range !== undefined) await held.promise;
    return false;
  });
  release = () => {
    registry.interfere(undefined);
    held.resolve();
  };
}

/** The processes in a container. */
async function processesIn({ containerd }: Stage, id: string): Promise<number[]> {
  const [, ...processes] = lines(await containerd.ctr(["task", "ps", id]));
  return processes.map((line) => Number.parseInt(line, 10));
}

/** A process in a container that reads a file which the registry does not give; its number. */
async function stuckReader(stage: Stage, id: string, file: string) {
  const before = await processesIn(stage, id);
  const ended = execIn(stage, id, `exec busybox cat ${file} > /dev/null`);
  let pid = 0;
  await until("a reader starts", async () => {
    const found = (await processesIn(stage, id)).find((one) => !before.includes(one));
    pid = found ?? 0;
    return found !== undefined;
  });
  await untilStatus(stage, "the reader waits", ({ reads }) => reads.waiting > 0);
  return { pid, ended };
}

for (const mode of mountModes) {
  describe(`with mounts of the kind ${mode}`, () => {
    let sandbox: Sandbox;
    let stage: Stage;

    before(async () => {
      sandbox = await Sandbox.create();
      stage = await startStage(sandbox, { generation: "2", mode, registry });
    });
    afterEach(async () => {
      release();
      await assertNothingLeft(stage);
    });
    after(() => sandbox.close());

    faultTest("reader-killed", "it dies at once, the others go on", async () => {
      const reference = await pushData(images, registry);
      await pull(stage, reference);
      const id = await startContainer(stage, reference);
      assert.equal((await execIn(stage, id, "busybox cat /data/0 > /dev/null")).status, 0);
      hold();
      const first = await stuckReader(stage, id, "/data/20");
      const second = await stuckReader(stage, id, "/data/40");
      process.kill(first.pid, "SIGKILL");
      await first.ended;
      assert.ok(!isRunning(first.pid));
      assert.ok(isRunning(second.pid));
      // What is here can be read while others wait.
      await dropCaches();
      assert.equal((await execIn(stage, id, "busybox cat /data/0 > /dev/null")).status, 0);
      release();
      assert.equal((await second.ended).status, 0);
      await untilIdle(stage);
      await checkIn(stage, id);
    });

    faultTest(
      "reader-killed",
      "nothing is left of those that wait for a registry that does not answer",
      async () => {
        const reference = await pushData(images, registry);
        await pull(stage, reference);
        const id = await startContainer(stage, reference);
        hold();
        const readers = [];
        for (const file of ["/data/8", "/data/24", "/data/40"]) {
          readers.push(await stuckReader(stage, id, file));
        }
        for (const { pid } of readers) process.kill(pid, "SIGKILL");
        await Promise.all(readers.map(({ ended }) => ended));
        release();
        await untilIdle(stage);
        await checkIn(stage, id);
      },
    );

    faultTest("container-killed", "it goes at once, and its image with it", async () => {
      const reference = await pushData(images, registry);
      await pull(stage, reference);
      const id = await startContainer(stage, reference);
      hold();
      const { ended } = await stuckReader(stage, id, "/data/33");
      const { containerd } = stage;
      await containerd.ctr(["task", "kill", "--signal", "SIGKILL", "--all", id]);
      await ended;
      await containerd.ctr(["task", "rm", "--force", id]);
      await containerd.ctr(["container", "rm", id]);
      await containerd.ctr(["image", "rm", "--sync", reference]);
      await untilStatus(stage, "the layers are gone", ({ layers }) => layers.length === 0);
      release();
      await untilIdle(stage);
      await checkNode(stage, images, registry);
    });

    faultTest("containerd-restart", "readers go on, and pulls can be repeated", async () => {
      const [reference, other] = [
        await pushData(images, registry),
        await pushData(images, registry),
      ];
      await pull(stage, reference);
      const id = await startContainer(stage, reference);
      const script = "busybox sha256sum -c /data/sums > /checked; echo $? > /status";
      await execIn(stage, id, `(sleep 1; ${script}) > /dev/null 2>&1 < /dev/null &`);
      const pulling = tryPull(stage, other);
      await sleep(100);
      await stage.containerd.stop("SIGKILL");
      await pulling;
      await stage.containerd.start();
      await pull(stage, other);
      await checkAll(stage, other);
      const status = async () => String((await execIn(stage, id, "cat /status")).stdout).trim();
      await until("the reader has ended", async () => (await status()) !== "");
      assert.equal(await status(), "0");
      await checkIn(stage, id);
    });

    faultTest("fuse-mount-taken-away", "containers go on, and others start", async () => {
      const reference = await pushData(images, registry);
      await pull(stage, reference);
      const id = await startContainer(stage, reference);
      assert.equal((await execIn(stage, id, "busybox cat /data/0 > /dev/null")).status, 0);
      const mountpoint = path.join(stage.clip.root, "f");
      await run("umount", ["-l", mountpoint]);
      await checkIn(stage, id);
      await until("it is mounted again", async () => stage.clip.mounts().includes(mountpoint));
      await checkNode(stage, images, registry);
      await checkIn(stage, id);
    });
  });
}
