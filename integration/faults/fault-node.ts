/** A node to which faults happen, and images of files with known checksums for it. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import http from "node:http";
import path from "node:path";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import type { NodeStatus } from "../../src/daemon/status.ts";
import { clip } from "../harness/clip.ts";
import type { CommandResult } from "../harness/command.ts";
import { makeBase } from "../harness/fixtures.ts";
import { pushImage } from "../harness/image.ts";
import type { TestRegistry } from "../harness/registry.ts";
import type { Sandbox } from "../harness/sandbox.ts";
import type { Stage } from "../harness/stage.ts";
import { makeDataImage, type DataSize } from "./data-image.ts";

/** Twelve MiB, which is more than a page cache keeps unasked. */
const dataSize: DataSize = { files: 48, fileBytes: 262_144 };

let count = 0;

/** A name that nothing on this machine has had; runc knows the containers of all tests. */
export function freshName(): string {
  return `fault-${process.pid}-${++count}`;
}

/** Pushes an image of files with other contents than any before. */
export async function pushData(
  sandbox: Sandbox,
  registry: TestRegistry,
  { indexed = true, size = dataSize } = {},
): Promise<string> {
  const name = freshName();
  const directory = await sandbox.subdirectory(name);
  const image = await makeDataImage(directory, (await makeBase(directory)).layers, size);
  const reference = await pushImage(image, registry.host, `faults/${name}`);
  if (indexed) await clip(["index", "create", reference, "--push", "--plain-http"]);
  return reference;
}

const snapshotter = ["--snapshotter", "clip"];

/** Pulls an image; a failure is a result. */
export function tryPull({ containerd }: Stage, reference: string): Promise<CommandResult> {
  return containerd.tryCtr(["image", "pull", "--plain-http", ...snapshotter, reference]);
}

/** Pulls an image. */
export async function pull(stage: Stage, reference: string): Promise<void> {
  const { status, stderr } = await tryPull(stage, reference);
  assert.equal(status, 0, stderr);
}

/** A container that is up: what it does from now on needs nothing of the daemon but bytes. */
export async function startContainer({ containerd }: Stage, reference: string): Promise<string> {
  const id = freshName();
  const command = ["/bin/busybox", "sleep", "1000000"];
  await containerd.ctr(["run", "-d", ...snapshotter, reference, id, ...command]);
  return id;
}

/** Runs a shell script in a container that is up; a failure is a result. */
export function execIn({ containerd }: Stage, id: string, script: string): Promise<CommandResult> {
  const exec = ["task", "exec", "--exec-id", freshName(), id];
  return containerd.tryCtr([...exec, "/bin/busybox", "sh", "-c", script], { timeoutMs: 60_000 });
}

/** Has a container check every file; fails unless all bytes are right. */
export async function checkIn(stage: Stage, id: string): Promise<void> {
  const result = await execIn(
    stage,
    id,
    "busybox sha256sum -c /data/sums 2>&1 | busybox grep -vc OK",
  );
  assert.equal(String(result.stdout).trim(), "0", `${result.stdout.toString()} ${result.stderr}`);
}

/** A new container checks every file. */
export async function checkAll({ containerd }: Stage, reference: string): Promise<void> {
  const check = ["/bin/busybox", "sha256sum", "-c", "/data/sums"];
  await containerd.ctr(["run", "--rm", ...snapshotter, reference, freshName(), ...check]);
}

/** Pulls an image that nobody knows, and checks it: the node is well. */
export async function checkNode(stage: Stage, sandbox: Sandbox, registry: TestRegistry) {
  const reference = await pushData(sandbox, registry, { size: { files: 4, fileBytes: 100_000 } });
  await pull(stage, reference);
  await checkAll(stage, reference);
}

/** Forgets what the kernel has of all files, so that they are asked for again. */
export async function dropCaches(): Promise<void> {
  await writeFile("/proc/sys/vm/drop_caches", "1");
}

/** What the daemon says of itself. */
export async function statusOf(stage: Stage): Promise<NodeStatus> {
  return JSON.parse(await pageOf(stage, "/status")) as NodeStatus;
}

/** A page of the daemon: `/status` or `/metrics`. */
export async function pageOf(stage: Stage, page: string): Promise<string> {
  const socketPath = path.join(stage.clip.state, "metrics.sock");
  const request = http.get({ socketPath, path: page });
  const [response] = (await once(request, "response")) as [http.IncomingMessage];
  return text(response);
}

/** Waits until the daemon's state is as it should be. */
export async function untilStatus(
  stage: Stage,
  what: string,
  condition: (status: NodeStatus) => boolean,
): Promise<void> {
  await until(what, async () => condition(await statusOf(stage)));
}

/** Waits until the daemon has logged a message after the first `from` characters of its log. */
export async function untilLogged(stage: Stage, message: string, from = 0): Promise<void> {
  await until(message, async () => stage.clip.log().slice(from).includes(message));
}

/** Waits until something holds. */
export async function until(what: string, condition: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 40_000;
  while (!(await condition())) {
    assert.ok(performance.now() < deadline, `waited in vain: ${what}`);
    await sleep(100);
  }
}

/** Waits until nobody waits for bytes, and nothing is in memory for anybody. */
export async function untilIdle(stage: Stage): Promise<void> {
  await untilStatus(stage, "nothing is under way", isIdle);
}

function isIdle({ reads, queues }: NodeStatus): boolean {
  return reads.waiting === 0 && queues.memoryBytes === 0;
}
