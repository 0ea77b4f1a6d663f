/** clip under a service manager that stores the FUSE session, so that all processes may die. */
import assert from "node:assert/strict";
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { parseMountTable } from "../src/os/mount-table.ts";
import { mountsBelow, Sandbox } from "./harness/sandbox.ts";
import { repositoryRoot, toolEnvironment } from "./harness/tools.ts";

const hasPython = spawnSync("python3", ["--version"]).status === 0;

let sandbox: Sandbox;
before(async () => {
  sandbox = await Sandbox.create();
});
after(() => sandbox.close());

/** A service manager, and what it has said. */
class Manager {
  readonly #child: ChildProcess;
  #said = "";

  constructor(directory: string, service: readonly string[]) {
    const program = path.join(import.meta.dirname, "faults", "service_manager.py");
    this.#child = spawn("python3", [program, path.join(directory, "notify"), ...service], {
      env: toolEnvironment(),
      stdio: ["pipe", "pipe", "inherit"],
    });
    this.#child.stdout?.on("data", (data) => (this.#said += String(data)));
  }

  /** Gives an order and waits until a line begins with `answer` that was not there before. */
  async order(order: string, answer: string): Promise<string> {
    const from = this.#said.length;
    this.#child.stdin?.write(`${order}\n`);
    for (let tries = 0; tries < 1000; tries++) {
      const line = this.#said
        .slice(from)
        .split("\n")
        .find((candidate) => candidate.startsWith(answer));
      if (line !== undefined) return line;
      await sleep(20);
    }
    throw new Error(`no ${answer} after ${order}: ${this.#said}`);
  }

  async close(): Promise<void> {
    this.#child.stdin?.end();
    if (this.#child.exitCode === null) await once(this.#child, "exit");
  }
}

test("the session goes on when all processes are killed", { skip: !hasPython }, async () => {
  const directory = sandbox.directory;
  const [root, session] = [path.join(directory, "root"), path.join(directory, "root", "f")];
  const manager = new Manager(directory, [
    ...[path.join(repositoryRoot, "bin", "clip"), "daemon", "--fd-store", "--log-level", "error"],
    ...["--root", root, "--state", path.join(directory, "state")],
    ...["--address", path.join(directory, "clip.sock")],
  ]);
  sandbox.onClose("service manager", () => manager.close());
  await manager.order("start", "notified READY=1");
  const device = await deviceAt(session);
  await manager.order("kill", "killed");
  const listing = spawn("ls", [session]);
  const listed = once(listing, "exit");
  assert.equal(await Promise.race([listed, sleep(300, "waiting")]), "waiting");
  await manager.order("start", "notified READY=1");
  assert.deepEqual(await listed, [0, null]);
  assert.equal(await deviceAt(session), device);

  assert.equal(await manager.order("stop", "stopped"), "stopped 0");
  assert.deepEqual(mountsBelow(directory), [session], "the next start takes it over");
  await manager.order("start", "notified READY=1");
  assert.equal(await deviceAt(session), device);
  assert.equal(await manager.order("stop", "stopped"), "stopped 0");
  spawnSync("umount", ["-l", session]);
});

async function deviceAt(mountpoint: string): Promise<string | undefined> {
  const table = parseMountTable(await readFile("/proc/self/mountinfo", "utf8"));
  return table.findLast((entry) => entry.mountpoint === mountpoint)?.device;
}
