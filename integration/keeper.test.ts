/** The daemon dies, is replaced, loses its keeper: whoever reads or pulls does not lose anything. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { findMount } from "../src/os/mount-table.ts";
import {
  daemonPid,
  isRunning,
  keeperPid,
  killDaemon,
  tryClip,
  untilServed,
} from "./faults/daemon-faults.ts";
import { makeDataImage } from "./faults/data-image.ts";
import { dropCaches } from "./faults/fault-node.ts";
import { clip, ClipDaemon } from "./harness/clip.ts";
import { makeBase } from "./harness/fixtures.ts";
import { pushImage } from "./harness/image.ts";
import { startRegistry, type TestRegistry } from "./harness/registry.ts";
import { mountsBelow, Sandbox } from "./harness/sandbox.ts";
import { assertNothingLeft, mountModes, startStage, type Stage } from "./harness/stage.ts";

const READERS = 8;
const DATA = { files: 96, fileBytes: 262_144 };

let images: Sandbox;
let registry: TestRegistry;

before(async () => {
  images = await Sandbox.create();
  registry = await startRegistry(images);
});
after(() => images.close());

/** Pushes an image that nobody has read yet, with its index. */
async function pushData(name: string, indexed = true): Promise<string> {
  const base = await makeBase(await images.subdirectory(name));
  const image = await makeDataImage(images.path(name), base.layers, DATA);
  const reference = await pushImage(image, registry.host, `keeper/${name}`);
  if (indexed) await clip(["index", "create", reference, "--push", "--plain-http"]);
  return reference;
}

const snapshotter = ["--snapshotter", "clip"];

function pull({ containerd }: Stage, reference: string): Promise<string> {
  return containerd.ctr(["image", "pull", "--plain-http", ...snapshotter, reference]);
}

/** runc keeps containers of all tests in one place. */
function containerName(number: number): string {
  return `keeper-${process.pid}-${number}`;
}

/** Eight containers that are up; what they do does not depend on the daemon's services any more. */
async function startContainers({ containerd }: Stage, reference: string): Promise<void> {
  for (let number = 0; number < READERS; number++) {
    const command = ["/bin/busybox", "sleep", "1000000"];
    await containerd.ctr([
      "run",
      "-d",
      ...snapshotter,
      reference,
      containerName(number),
      ...command,
    ]);
  }
}

/** In each container every file is checked twice, and what is wrong is said. */
function readAll({ containerd }: Stage): Promise<string[]> {
  const check = "busybox sha256sum -c /data/sums 2>&1 | busybox grep -v ': OK$'";
  const script = `${check}; ${check}; echo done`;
  return Promise.all(
    Array.from({ length: READERS }, (_, number) =>
      containerd.ctr(
        [
          "task",
          "exec",
          "--exec-id",
          "read",
          containerName(number),
          "/bin/busybox",
          "sh",
          "-c",
          script,
        ],
        { timeoutMs: 120_000 },
      ),
    ),
  );
}

/** Has the readers read, as often as it takes to disturb them at least three times. */
async function readDuring(stage: Stage, disturb: () => Promise<void>): Promise<void> {
  for (let times = 0; times < 3;) {
    const reading = readAll(stage);
    times += await during(reading, disturb);
    assert.deepEqual(await reading, Array(READERS).fill("done"));
  }
}

/** Does something again and again until the readers have ended; returns how often. */
async function during(reading: Promise<unknown>, disturb: () => Promise<void>): Promise<number> {
  const read = reading.then(() => true);
  let times = 0;
  for (;;) {
    if (await Promise.race([read, sleep(300 + 700 * Math.random(), false)])) return times;
    // Warm data, too, is to be asked for.
    await dropCaches();
    await disturb();
    times++;
  }
}

for (const mode of mountModes) {
  describe(`with mounts of the kind ${mode}`, () => {
    let sandbox: Sandbox;
    let stage: Stage;

    before(async () => {
      sandbox = await Sandbox.create();
      stage = await startStage(sandbox, { generation: "2", mode, registry });
    });
    afterEach(() => assertNothingLeft(stage));
    after(() => sandbox.close());

    test("no reader notices that the daemon is killed again and again", async () => {
      const reference = await pushData(`killed-${mode}`);
      await pull(stage, reference);
      await startContainers(stage, reference);
      await readDuring(stage, () => killDaemon(stage.clip));
    });

    test("no reader notices that the daemon is replaced again and again", async () => {
      const reference = await pushData(`replaced-${mode}`);
      await pull(stage, reference);
      await startContainers(stage, reference);
      await readDuring(stage, async () => {
        const before = daemonPid(stage.clip);
        const said = await clip(["upgrade", "--state", stage.clip.state]);
        assert.match(said, /^process \d+ serves in place of \d+$/);
        assert.ok(!isRunning(before));
      });
    });

    test("a pull during which the daemon dies can be repeated", async () => {
      const reference = await pushData(`pulled-${mode}`, false);
      for (const afterMs of [20, 80, 160, 320]) {
        const pulling = stage.containerd.tryCtr([
          ...["image", "pull", "--plain-http", ...snapshotter, reference],
        ]);
        await sleep(afterMs);
        await killDaemon(stage.clip);
        await pulling;
      }
      await pull(stage, reference);
      await startContainers(stage, reference);
      assert.deepEqual(await readAll(stage), Array(READERS).fill("done"));
    });

    test("readers go on when the keeper is killed, and when another takes over", async () => {
      const reference = await pushData(`orphaned-${mode}`);
      await pull(stage, reference);
      await startContainers(stage, reference);
      const orphan = daemonPid(stage.clip);
      const reading = readAll(stage);
      process.kill(keeperPid(stage.clip), "SIGKILL");
      await sleep(200);
      assert.ok(isRunning(orphan), "the daemon goes on");
      await stage.clip.start();
      await untilServed(stage.clip, orphan);
      assert.ok(!isRunning(orphan), "another one has taken its place");
      assert.deepEqual(await reading, Array(READERS).fill("done"));
      await stage.containerd.ctr([
        "run",
        "--rm",
        ...snapshotter,
        reference,
        `new-${process.pid}`,
        "/bin/true",
      ]);
    });
  });
}

describe("the keeper", () => {
  let sandbox: Sandbox;

  before(async () => {
    sandbox = await Sandbox.create();
  });
  after(() => sandbox.close());

  function start(name: string, settings = {}): Promise<ClipDaemon> {
    const containerdAddress = sandbox.path("containerd.sock");
    return ClipDaemon.start(sandbox, { name, containerdAddress, settings });
  }

  test("ends with an error when the daemon cannot start", async () => {
    const directory = await sandbox.subdirectory("wrong");
    const flags = [
      "--root",
      path.join(directory, "root"),
      "--state",
      path.join(directory, "state"),
    ];
    const wrong = await tryClip(["daemon", ...flags, "--mount-mode", "wrong"]);
    assert.equal(wrong.status, 1);
    assert.match(wrong.stderr, /mount\.mode/);
    const address = path.join(directory, "x".repeat(120));
    const unusable = await tryClip(["daemon", ...flags, "--address", address]);
    assert.equal(unusable.status, 1);
    assert.match(unusable.stderr, /cannot be a socket/);
    await writeFile(path.join(directory, "root", "snapshots.db"), "this is no database");
    const damaged = await tryClip(["daemon", ...flags, "--address", path.join(directory, "s")]);
    assert.equal(damaged.status, 1);
    assert.match(damaged.stderr, /the daemon could not start/);
    assert.deepEqual(mountsBelow(directory), []);
  });

  test("keeps a second one away from its root", async () => {
    const first = await start("first");
    const pid = daemonPid(first);
    const session = (await findMount(path.join(first.root, "f")))?.device;
    const flags = ["--root", first.root, "--state", first.state, "--address", first.address];
    const second = await tryClip(["daemon", ...flags]);
    assert.equal(second.status, 1);
    assert.match(second.stderr, /another clip daemon uses/);
    assert.deepEqual([daemonPid(first), keeperPid(first)], [pid, first.pid]);
    assert.equal((await findMount(path.join(first.root, "f")))?.device, session);
    await clip(["upgrade", "--state", first.state]);
    await first.stop();
  });

  test("leaves nothing when it is told to stop, also right after the daemon has died", async () => {
    const daemon = await start("stopped");
    process.kill(daemonPid(daemon), "SIGKILL");
    await daemon.stop();
    assert.deepEqual(daemon.mounts(), []);
    assert.ok(!isRunning(daemonPid(daemon)));
  });

  test("takes away a mount that processes have left which are all dead", async () => {
    const daemon = await start("stale");
    const [keeper, served] = [keeperPid(daemon), daemonPid(daemon)];
    process.kill(keeper, "SIGSTOP");
    process.kill(served, "SIGKILL");
    process.kill(keeper, "SIGKILL");
    await sleep(100);
    assert.equal(daemon.mounts().length, 1, "the mount is still there");
    await daemon.start();
    assert.equal(daemon.mounts().length, 1);
    await daemon.stop();
    assert.deepEqual(daemon.mounts(), []);
  });

  test("begins a new session when somebody takes the mount away", async () => {
    const daemon = await start("unmounted");
    const pid = daemonPid(daemon);
    spawn("umount", ["-l", path.join(daemon.root, "f")]);
    await untilServed(daemon, pid);
    assert.deepEqual(daemon.mounts(), [path.join(daemon.root, "f")]);
    await daemon.stop();
  });

  test("goes on with the old daemon when a new one cannot be loaded", async () => {
    const daemon = await start("upgraded");
    const pid = daemonPid(daemon);
    await writeFile(daemon.configFile, "this is no configuration");
    process.kill(keeperPid(daemon), "SIGHUP");
    while (!daemon.log().includes("the current one stays")) await sleep(20);
    assert.ok(isRunning(pid));
    assert.equal(daemonPid(daemon), pid);
    await daemon.stop();
  });
});
