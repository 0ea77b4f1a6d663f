/** The disk of a node is full, has no more inodes, or is read-only: nothing is lost. */
import assert from "node:assert/strict";
import { status } from "@grpc/grpc-js";
import { mkdir } from "node:fs/promises";
import { after, afterEach, before, describe } from "node:test";
import { startRegistry, type TestRegistry } from "../harness/registry.ts";
import { Sandbox } from "../harness/sandbox.ts";
import { SmallDisk, type SmallDiskOptions } from "../harness/small-disk.ts";
import {
  assertNothingLeft,
  mountModes,
  startClipAgain,
  startStage,
  type MountMode,
  type Stage,
  type StageOptions,
} from "../harness/stage.ts";
import { daemonPid, killDaemon } from "./daemon-faults.ts";
import { faultTest } from "./fault-kinds.ts";
import {
  checkAll,
  checkIn,
  checkNode,
  dropCaches,
  freshName,
  pull,
  pushData,
  startContainer,
  statusOf,
  tryPull,
  untilLogged,
  untilStatus,
} from "./fault-node.ts";
import { SnapshotsClient } from "./snapshots-client.ts";

const MiB = 1 << 20;

let sandbox: Sandbox;
let registry: TestRegistry;
let stage: Stage | undefined;

before(async () => {
  sandbox = await Sandbox.create();
  registry = await startRegistry(sandbox);
});
afterEach(async () => {
  if (stage !== undefined) await assertNothingLeft(stage);
  await stage?.containerd.close();
  await stage?.clip.stop();
  stage = undefined;
});
after(() => sandbox.close());

/** A node whose root is on a disk of its own. */
async function startOnDisk(
  mode: MountMode,
  options: SmallDiskOptions,
  settings: StageOptions["settings"] = {},
): Promise<{ stage: Stage; disk: SmallDisk }> {
  const name = freshName();
  const disk = await SmallDisk.make(sandbox, `${name}-clip/root`, options);
  const cache = { free_bytes_min: 0 };
  stage = await startStage(sandbox, {
    ...{ generation: "2", mode, registry, name },
    settings: { cache, ...settings },
  });
  return { stage, disk };
}

/** The failure of a call, which has to fail. */
async function failureOf(call: Promise<unknown>): Promise<{ code: number; details: string }> {
  return call.then(
    () => assert.fail("the call succeeds"),
    (error: unknown) => error as { code: number; details: string },
  );
}

for (const mode of mountModes) {
  describe(`with mounts of the kind ${mode}`, () => {
    faultTest(
      "disk-full-while-filling",
      "containers read on, and the layer is completed when there is room",
      async () => {
        const { disk, ...node } = await startOnDisk(
          mode,
          { bytes: 64 * MiB },
          { layer: { background_fill: true, background_fill_delay_ms: 2000 } },
        );
        const reference = await pushData(sandbox, registry);
        await pull(node.stage, reference);
        const id = await startContainer(node.stage, reference);
        await disk.fill();
        await untilLogged(node.stage, "a layer could not be filled");
        for (let times = 0; times < 2; times++) {
          await checkIn(node.stage, id);
          await dropCaches();
        }
        await disk.free();
        await untilLogged(node.stage, "the layer is complete");
        await checkIn(node.stage, id);
      },
    );

    faultTest(
      "disk-full-while-writing-metadata",
      "calls fail and say why, nothing that was promised is lost",
      async () => {
        const { disk, ...node } = await startOnDisk(mode, { bytes: 64 * MiB });
        const { clip } = node.stage;
        const [known, plain, lazy] = [
          await pushData(sandbox, registry),
          await pushData(sandbox, registry, { indexed: false }),
          await pushData(sandbox, registry),
        ];
        await pull(node.stage, known);
        const id = await startContainer(node.stage, known);
        const pid = daemonPid(clip);
        let client = new SnapshotsClient(clip.address);
        for (const key of ["kept", "done", "removed"]) await client.prepare(key);
        await disk.fill();
        // The last blocks.
        while (
          await client.prepare(freshName()).then(
            () => true,
            () => false,
          )
        );
        for (let times = 0; times < 20; times++) {
          const { code, details } = await failureOf(client.prepare(`full-${times}`));
          assert.equal(code, status.RESOURCE_EXHAUSTED, details);
          assert.match(details, /full|no room/);
        }
        // To make room must not need room.
        await client.remove("removed");
        await client.commit("done", "committed");
        client.close();
        await checkIn(node.stage, id);
        assert.equal(daemonPid(clip), pid, "no daemon has died");

        await killDaemon(clip);
        await dropCaches();
        await checkIn(node.stage, id);
        client = new SnapshotsClient(clip.address);
        const found = ["kept", "committed", "removed"].map((key) => client.exists(key));
        assert.deepEqual(await Promise.all(found), [true, true, false]);
        client.close();
        for (const reference of [plain, lazy]) {
          const { status: exit, stderr } = await tryPull(node.stage, reference);
          // The daemon may have found room for what little a lazy layer needs.
          if (exit !== 0) assert.match(stderr, /full|no room|no space/);
        }
        await disk.free();
        for (const reference of [plain, lazy]) {
          await pull(node.stage, reference);
          await checkAll(node.stage, reference);
        }
      },
    );
  });
}

faultTest(
  "disk-full-while-storing",
  "the layer is stored when the content cache has room",
  async () => {
    const shared = await SmallDisk.make(sandbox, freshName(), { bytes: 32 * MiB });
    const directory = `${shared.directory}/cache`;
    await mkdir(directory);
    await shared.fill();
    const content_cache = [{ kind: "directory", path: directory }];
    stage = await startStage(sandbox, {
      ...{ generation: "2", mode: "auto", registry, name: freshName() },
      settings: {
        "": { content_cache },
        layer: { background_fill: true, background_fill_delay_ms: 100 },
      },
    });
    const reference = await pushData(sandbox, registry, { indexed: false });
    await pull(stage, reference);
    await checkAll(stage, reference);
    await untilStatus(stage, "a store failed", ({ contentCache }) =>
      (contentCache ?? []).some(
        ({ operation, outcome }) => operation === "store" && outcome === "error",
      ),
    );
    const { queues } = await statusOf(stage);
    assert.ok(queues.stores > 0, "it is to be stored later");
    await shared.free();
    // Whoever asks for the layer again has it stored at once.
    await stage.containerd.ctr(["image", "rm", "--sync", reference]);
    await pull(stage, reference);
    await untilStatus(stage, "everything is stored", (node) => node.queues.stores === 0);
    await checkAll(stage, reference);
  },
);

faultTest(
  "disk-full-while-storing",
  "a node that cannot keep its queue goes on without sharing",
  async () => {
    const directory = await sandbox.subdirectory(freshName());
    const content_cache = [{ kind: "directory", path: directory }];
    const { disk, ...node } = await startOnDisk(
      "auto",
      { bytes: 64 * MiB },
      {
        "": { content_cache },
        layer: { background_fill: true, background_fill_delay_ms: 2000 },
      },
    );
    const reference = await pushData(sandbox, registry);
    await pull(node.stage, reference);
    const id = await startContainer(node.stage, reference);
    await checkIn(node.stage, id);
    const pid = daemonPid(node.stage.clip);
    await disk.fill();
    await untilLogged(node.stage, "the layer is complete");
    await checkIn(node.stage, id);
    assert.equal(daemonPid(node.stage.clip), pid);
    await disk.free();
    await checkNode(node.stage, sandbox, registry);
  },
);

faultTest("inodes-exhausted", "it is as with a full disk", async () => {
  const { disk, ...node } = await startOnDisk("auto", { bytes: 64 * MiB, inodes: 512 });
  const reference = await pushData(sandbox, registry);
  await pull(node.stage, reference);
  const id = await startContainer(node.stage, reference);
  await disk.fillInodes();
  const client = new SnapshotsClient(node.stage.clip.address);
  const { code, details } = await failureOf(client.prepare("full"));
  assert.equal(code, status.RESOURCE_EXHAUSTED, details);
  assert.match(details, /full/);
  client.close();
  const other = await pushData(sandbox, registry);
  assert.notEqual((await tryPull(node.stage, other)).status, 0);
  await checkIn(node.stage, id);
  await disk.free();
  await pull(node.stage, other);
  await checkAll(node.stage, other);
});

faultTest("root-read-only", "containers read on, and all is well after a repair", async () => {
  const { disk, ...node } = await startOnDisk("auto", { bytes: 64 * MiB });
  const { clip, containerd } = node.stage;
  const reference = await pushData(sandbox, registry);
  await pull(node.stage, reference);
  const id = await startContainer(node.stage, reference);
  const pid = daemonPid(clip);
  await disk.fail();
  const client = new SnapshotsClient(clip.address);
  const { code, details } = await failureOf(client.prepare("read-only"));
  assert.equal(code, status.INTERNAL, details);
  assert.match(details, /read-only|cannot be read or written/);
  client.close();
  for (let times = 0; times < 2; times++) {
    await checkIn(node.stage, id);
    await dropCaches();
  }
  assert.equal(daemonPid(clip), pid);
  await containerd.stop();
  await containerd.start();
  await containerd.ctr(["task", "kill", "--signal", "SIGKILL", id]);
  await containerd.tryCtr(["task", "rm", "--force", id]);
  await clip.stop();
  await disk.repair();
  await startClipAgain(node.stage);
  await checkAll(node.stage, reference);
});
