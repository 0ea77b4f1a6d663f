/** What a daemon may do, and who may get at what it keeps. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { lstatSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { after, before, test } from "node:test";
import { daemonPid, keeperPid, killDaemon, tryClip } from "./faults/daemon-faults.ts";
import { clip } from "./harness/clip.ts";
import { fixtures } from "./harness/fixtures.ts";
import { pushImage } from "./harness/image.ts";
import { startRegistry } from "./harness/registry.ts";
import { Sandbox } from "./harness/sandbox.ts";
import { startStage, type Stage } from "./harness/stage.ts";

/** CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SYS_PTRACE, SYS_ADMIN. */
const kept = [0, 1, 3, 4, 19, 21].reduce((set, number) => set | (1n << BigInt(number)), 0n);

let sandbox: Sandbox;
let stage: Stage;

before(async () => {
  sandbox = await Sandbox.create();
  const registry = await startRegistry(sandbox);
  const kinds = fixtures.find(({ name }) => name === "kinds");
  assert.ok(kinds !== undefined);
  const made = await kinds.make(await sandbox.subdirectory("kinds"));
  const image = await pushImage(made, registry.host, "test/kinds");
  await clip(["index", "create", image, "--push", "--plain-http"]);
  stage = await startStage(sandbox, { generation: "2", mode: "auto", registry });
  const { containerd } = stage;
  await containerd.ctr(["image", "pull", "--plain-http", "--snapshotter", "clip", image]);
  await containerd.ctr([
    "run",
    "-d",
    "--snapshotter",
    "clip",
    image,
    `s${process.pid}`,
    "sleep",
    "9",
  ]);
});
after(() => sandbox.close());

/** Fields of /proc/PID/task/TID/status of all threads of a process. */
function threads(pid: number): Map<string, string>[] {
  return readdirSync(`/proc/${pid}/task`).map((thread) => {
    const status = readFileSync(`/proc/${pid}/task/${thread}/status`, "latin1");
    return new Map(
      status.split("\n").map((line) => {
        const [name = "", value = ""] = line.split(":\t");
        return [name, value.trim()];
      }),
    );
  });
}

function assertLimited(pid: number): void {
  const all = threads(pid);
  assert.ok(all.length > 1);
  for (const thread of all) {
    for (const set of ["CapPrm", "CapEff", "CapBnd"]) {
      assert.equal(BigInt(`0x${thread.get(set)}`), kept, `${set} of ${thread.get("Name")}`);
    }
    assert.equal(thread.get("NoNewPrivs"), "1");
  }
}

test("no thread of keeper or daemon has more capabilities than it needs, or can get more", async () => {
  assertLimited(keeperPid(stage.clip));
  assertLimited(daemonPid(stage.clip));
  await killDaemon(stage.clip);
  assertLimited(daemonPid(stage.clip));
});

/** Everything below a directory but what belongs to containers and layers. */
function* own(directory: string): Generator<string> {
  yield directory;
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    const file = path.join(directory, entry.name);
    const isOthers = directory === stage.clip.root && /^[lswf]$/.test(entry.name);
    if (entry.isDirectory() && !isOthers) yield* own(file);
    // The mount is not to be touched: only that it cannot be reached by others matters.
    else if (entry.name !== "f") yield file;
  }
}

test("nobody else can read, write or list anything below root and state", () => {
  const { root, state, address } = stage.clip;
  let files = 0;
  for (const file of [...own(root), ...own(state), address]) {
    const found = lstatSync(file);
    const mode = found.mode & 0o777;
    const most = file === root || file === state ? 0o711 : found.isDirectory() ? 0o700 : 0o600;
    assert.equal(mode & ~most, 0, `${file} has the mode ${mode.toString(8)}`);
    assert.equal(found.uid, 0, file);
    files++;
  }
  assert.ok(files > 15, `${files} were looked at`);
});

test("nobody else can connect to the sockets", () => {
  const { state, address } = stage.clip;
  for (const socket of [address, path.join(state, "metrics.sock")]) {
    const program = `
      process.setgroups([]); process.setgid(65534); process.setuid(65534);
      require("node:net").connect(process.argv[1])
        .on("connect", () => console.log("connected"))
        .on("error", ({ code }) => console.log(code))
        .on("close", () => process.exit());`;
    const { stdout } = spawnSync(process.execPath, ["-e", program, socket], { encoding: "utf8" });
    assert.equal(stdout, "EACCES\n");
  }
});

test("a configuration with a password in it is refused, and does not show it", async () => {
  const file = sandbox.path("secret.toml");
  const { writeFile } = await import("node:fs/promises");
  await writeFile(
    file,
    '[[registry.host]]\nname = "a"\nmirrors = ["https://user:hunter2@mirror.example.com"]',
  );
  const { status, stdout, stderr } = await tryClip(["config", "show", "--config", file]);
  assert.equal(status, 1);
  assert.match(stderr, /registry\.host\.0\.mirrors\.0/);
  assert.doesNotMatch(stderr + stdout.toString("utf8"), /hunter2/);
});

test("the unit for systemd allows what the daemon keeps, and no more", () => {
  const unit = readFileSync(
    path.join(import.meta.dirname, "..", "config", "clip-snapshotter.service"),
    "utf8",
  );
  const [, names = ""] = /^CapabilityBoundingSet=(.*)$/m.exec(unit) ?? [];
  assert.deepEqual(names.split(" ").toSorted(), [
    ...["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SYS_ADMIN"],
    "CAP_SYS_PTRACE",
  ]);
  // Each of these would give the unit mounts of its own, which containers do not see.
  const own =
    /^(PrivateMounts|PrivateTmp|PrivateDevices|ProtectSystem|ProtectHome|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths|ProtectKernelTunables|ProtectKernelModules|ProtectKernelLogs|ProtectControlGroups|ProtectProc|ProcSubset|BindPaths|RootDirectory|TemporaryFileSystem|MountFlags|DynamicUser|PrivateUsers|MountAPIVFS|StateDirectory)=/m;
  assert.doesNotMatch(unit, own);
});
