/** `clip cache verify` over a whole node whose disk has changed what it holds. */
import assert from "node:assert/strict";
import { open, stat } from "node:fs/promises";
import path from "node:path";
import { after, before, test } from "node:test";
import { digestKey } from "../../src/base/digest.ts";
import type { NodeStatus } from "../../src/daemon/status.ts";
import type { LayerCheck } from "../../src/layer/verify-cache.ts";
import { fixtures } from "../harness/fixtures.ts";
import { pushImage } from "../harness/image.ts";
import { startRegistry } from "../harness/registry.ts";
import { Sandbox } from "../harness/sandbox.ts";
import { startStage, type Stage } from "../harness/stage.ts";
import { tryClip } from "./daemon-faults.ts";
import { dropCaches } from "./fault-node.ts";

let sandbox: Sandbox;
let stage: Stage;
let image: string;

before(async () => {
  sandbox = await Sandbox.create();
  const registry = await startRegistry(sandbox);
  const kinds = fixtures.find(({ name }) => name === "kinds");
  assert.ok(kinds !== undefined);
  const made = await kinds.make(await sandbox.subdirectory("kinds"));
  image = await pushImage(made, registry.host, "test/kinds");
  stage = await startStage(sandbox, { generation: "2", mode: "erofs", registry });
});
after(() => sandbox?.close());

async function status(): Promise<NodeStatus> {
  return JSON.parse((await ask(["status", "--json"])).stdout) as NodeStatus;
}

async function ask(command: string[]): Promise<{ status: number; stdout: string }> {
  const answer = await tryClip([...command, "--state", stage.clip.state]);
  return { status: answer.status ?? -1, stdout: answer.stdout.toString() };
}

async function rot(): Promise<void> {
  for (const { layerDigest } of (await status()).layers) {
    const file = path.join(stage.clip.root, "cache", digestKey(layerDigest));
    const data = await open(file, "r+");
    const { buffer } = await data.read(Buffer.alloc(1), 0, 1, 600);
    await data.write(Uint8Array.of((buffer[0] ?? 0) ^ 1), 0, 1, 600);
    await data.sync();
    await data.close();
    assert.ok((await stat(file)).size > 600);
  }
}

void test("damage is found, told and repaired, and containers read the right bytes", async () => {
  const { containerd } = stage;
  const container = async (name: string) => {
    const flags = ["run", "--rm", "--snapshotter", "clip", image, name];
    return containerd.ctr([...flags, "cat", "/srv/small"]);
  };
  await containerd.ctr(["image", "pull", "--plain-http", "--snapshotter", "clip", image]);
  await container("verify-1");
  // Without a published index they are pulled whole.
  assert.deepEqual(
    new Set((await status()).layers.map(({ state }) => state)),
    new Set(["complete"]),
  );
  const clean = await ask(["cache", "verify"]);
  assert.equal(clean.status, 0);
  assert.match(clean.stdout, /everything on disk is right/);

  await rot();
  const repaired = await ask(["cache", "verify", "--repair", "--json"]);
  const checks = JSON.parse(repaired.stdout) as LayerCheck[];
  assert.equal(repaired.status, 0, repaired.stdout);
  assert.ok(checks.length > 0);
  for (const check of checks) assert.deepEqual([check.damaged, check.repaired], [1, 1]);
  await dropCaches();
  assert.match(await container("verify-2"), /^(small)?$/);
  const { damage, layers } = await status();
  assert.equal(damage.damagedSpans, checks.length);
  assert.ok(layers.every(({ state }) => state === "complete"));
  assert.match((await ask(["status"])).stdout, /damage +\d+ spans and 0 metadata images/);

  const [first] = checks;
  const one = await ask(["cache", "verify", first?.layerDigest ?? "none"]);
  assert.equal(one.status, 0);
  const unknown = await ask(["cache", "verify", `sha256:${"0".repeat(64)}`]);
  assert.equal(unknown.status, 1);
});
