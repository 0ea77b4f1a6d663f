/** Much at once: thousands of snapshots, hundreds of calls and readers, hundreds of layers. */
import assert from "node:assert/strict";
import { status } from "@grpc/grpc-js";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Semaphore } from "../../src/base/concurrency.ts";
import { overlayLayersMax } from "../../src/base/limits.ts";
import { ClipDaemon } from "../harness/clip.ts";
import { run } from "../harness/command.ts";
import { startRegistry, type TestRegistry } from "../harness/registry.ts";
import { Sandbox } from "../harness/sandbox.ts";
import { assertNothingLeft, startStage, type Stage } from "../harness/stage.ts";
import {
  checkAll,
  dropCaches,
  execIn,
  pull,
  pushData,
  startContainer,
  statusOf,
  untilIdle,
} from "./fault-node.ts";
import { residentMb } from "./memory.ts";
import { SnapshotsClient } from "./snapshots-client.ts";

const chains = 30;
const chainLength = 100;
const preparesAtOnce = 500;
const readersAtOnce = 200;
/** Longest time for a call that asks for what is in memory, whatever else is going on. */
const answerMs = 2_000;
const residentMbMax = 400;

let sandbox: Sandbox;
let registry: TestRegistry;
let stage: Stage;

before(async () => {
  sandbox = await Sandbox.create();
  registry = await startRegistry(sandbox);
  stage = await startStage(sandbox, { generation: "2", mode: "auto", registry });
});
after(() => sandbox.close());

/** Does work with a client of its own. */
async function withClient(
  { address }: ClipDaemon,
  work: (client: SnapshotsClient) => Promise<void>,
): Promise<void> {
  const client = new SnapshotsClient(address);
  try {
    return await work(client);
  } finally {
    client.close();
  }
}

/** A stack of committed snapshots; the name of the topmost. */
async function makeChain(client: SnapshotsClient, name: string, length: number): Promise<string> {
  let parent = "";
  for (let count = 0; count < length; count++) {
    await client.prepare(`${name}-active`, parent);
    await client.commit(`${name}-active`, `${name}-${count}`);
    parent = `${name}-${count}`;
  }
  return parent;
}

/** Mounts directories over each other as containerd does: by names relative to what they are in. */
async function mountAll(lowers: readonly string[]): Promise<void> {
  const target = await sandbox.subdirectory("merged");
  const names = lowers.map((lower) => path.basename(lower));
  const options = `lowerdir=${names.join(":")},index=off`;
  const cwd = path.dirname(lowers[0] ?? "/");
  await run("mount", ["-t", "overlay", "overlay", "-o", options, target], { cwd });
  await run("umount", [target]);
}

function numbers(count: number): number[] {
  return Array.from({ length: count }, (_, number) => number);
}

describe("thousands of snapshots", () => {
  let alone: ClipDaemon;

  // containerd would remove what it has not made itself.
  before(async () => {
    const containerdAddress = sandbox.path("none.sock");
    alone = await ClipDaemon.start(sandbox, { name: "alone", containerdAddress });
  });
  after(() => alone.stop());

  test("are made, listed and measured", async () => {
    await withClient(alone, async (client) => {
      const names = numbers(chains).map((number) => `chain${number}`);
      await Promise.all(names.map((name) => makeChain(client, name, chainLength)));
      assert.equal((await client.list()).length, chains * chainLength);
      for (const name of names) {
        assert.ok(await client.exists(`${name}-${chainLength - 1}`));
        assert.equal(await client.usage(`${name}-0`), 1);
      }
      const lowers = await client.view("view", `chain0-${chainLength - 1}`);
      assert.equal(lowers.length, chainLength);
      await client.remove("view");
      assert.ok(residentMb(alone) <= residentMbMax);
    });
  });

  test("in one stack end where overlayfs ends, with an error that says so", async () => {
    await withClient(alone, async (client) => {
      const top = await makeChain(client, "deep", overlayLayersMax);
      const lowers = await client.view("most", top);
      assert.equal(lowers.length, overlayLayersMax);
      await mountAll(lowers);
      await client.prepare("one-more", top);
      await client.commit("one-more", "too-deep");
      const refused = {
        code: status.FAILED_PRECONDITION,
        details: /501 layers are more than overlayfs takes .*at most 500/,
      };
      await assert.rejects(client.prepare("active", "too-deep"), refused);
      await assert.rejects(client.view("view", "too-deep"), refused);
    });
  });
});

describe("hundreds of calls at once", () => {
  test("are all answered", async () => {
    const clients = numbers(20).map(() => new SnapshotsClient(stage.clip.address));
    const keys = numbers(preparesAtOnce).map((number) => `namespace${number % 5}/${number}/key`);
    const clientOf = (at: number) => clients[at % clients.length] ?? assert.fail();
    await Promise.all(keys.map((key, at) => clientOf(at).prepare(key)));
    const mounted = await Promise.all(keys.map((key, at) => clientOf(at).exists(key)));
    assert.ok(mounted.every(Boolean));
    await Promise.all(keys.map((key, at) => clientOf(at).remove(key)));
    for (const client of clients) client.close();
    await assertNothingLeft(stage);
  });

  test("of the same image and of others, in several namespaces, are pulls that work", async () => {
    const references = await Promise.all(numbers(4).map(() => pushData(sandbox, registry)));
    const { containerd } = stage;
    const pulls = numbers(6).flatMap((namespace) =>
      references.map((reference) => ({ namespace: `space${namespace}`, reference })),
    );
    const few = new Semaphore(12);
    await Promise.all(
      pulls.map(({ namespace, reference }) =>
        few.run(() =>
          containerd.ctr([
            ...["-n", namespace, "image", "pull", "--plain-http", "--snapshotter", "clip"],
            reference,
          ]),
        ),
      ),
    );
    for (const reference of references) {
      await pull(stage, reference);
      await checkAll(stage, reference);
    }
    const { fallbacks } = await statusOf(stage);
    assert.deepEqual(fallbacks, {});
    await assertNothingLeft(stage);
  });
});

describe("hundreds of readers at once", () => {
  test("read right, within the memory that they may take, and calls are answered", async () => {
    const size = { files: readersAtOnce, fileBytes: 524_288 };
    const reference = await pushData(sandbox, registry, { size });
    await pull(stage, reference);
    const id = await startContainer(stage, reference);
    await dropCaches();
    const each =
      "busybox grep /data/$i'$' /data/sums | busybox sha256sum -c > /dev/null || echo $i";
    const script = `for i in $(busybox seq 0 ${readersAtOnce - 1}); do (${each}) & done; wait`;
    const reading = execIn(stage, id, script);
    const over = reading.then(() => true);
    let [resident, memory, slowest] = [0, 0, 0];
    await withClient(stage.clip, async (client) => {
      while (!(await Promise.race([over, sleep(50, false)]))) {
        const began = performance.now();
        assert.equal(await client.exists("nothing"), false);
        slowest = Math.max(slowest, performance.now() - began);
        resident = Math.max(resident, residentMb(stage.clip));
        const { memoryBytes, memoryBytesMax } = (await statusOf(stage)).queues;
        memory = Math.max(memory, memoryBytes / memoryBytesMax);
      }
    });
    const { status: exit, stdout, stderr } = await reading;
    assert.deepEqual([exit, stdout.toString()], [0, ""], stderr);
    assert.ok(resident <= residentMbMax, `${resident} MiB`);
    assert.ok(memory <= 1, `${memory} of the memory for spans`);
    assert.ok(slowest <= answerMs, `a call took ${slowest} ms`);
    await untilIdle(stage);
    assert.equal((await statusOf(stage)).reads.errors, 0);
    await assertNothingLeft(stage);
  });
});
