/** A node is broken in many ways; `clip doctor` says how, puts it right, and containers run again. */
import assert from "node:assert/strict";
import { chmod, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { DatabaseSync } from "node:sqlite";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Report, ReportedFinding } from "../src/daemon/doctor/finding.ts";
import { daemonPid, isRunning, keeperPid, tryClip } from "./faults/daemon-faults.ts";
import { run } from "./harness/command.ts";
import { clip } from "./harness/clip.ts";
import { fixtures } from "./harness/fixtures.ts";
import { pushImage } from "./harness/image.ts";
import { startRegistry } from "./harness/registry.ts";
import { mountsBelow, Sandbox } from "./harness/sandbox.ts";
import { assertNothingLeft, startClipAgain, startStage, type Stage } from "./harness/stage.ts";

let sandbox: Sandbox;
let stage: Stage;
let image: string;
let containers = 0;

before(async () => {
  sandbox = await Sandbox.create();
  const registry = await startRegistry(sandbox);
  const kinds = fixtures.find(({ name }) => name === "kinds");
  assert.ok(kinds !== undefined);
  image = await pushImage(
    await kinds.make(await sandbox.subdirectory("kinds")),
    registry.host,
    "test/kinds",
  );
  await clip(["index", "create", image, "--push", "--plain-http"]);
  stage = await startStage(sandbox, { generation: "2", mode: "erofs", registry });
  await pull();
});

after(() => sandbox.close());

const snapshotter = ["--snapshotter", "clip"];

function pull(): Promise<string> {
  return stage.containerd.ctr(["image", "pull", "--plain-http", ...snapshotter, image]);
}

/** Forgets the image and pulls it again, as a finding says. */
async function pullAgain(): Promise<void> {
  await stage.containerd.ctr(["image", "rm", "--sync", image]);
  await pull();
}

/** Starts a container from the image, and has it read. */
async function containerRuns(): Promise<void> {
  const name = `doctor-${process.pid}-${++containers}`;
  const command = ["run", "--rm", ...snapshotter, image, name, "cat", "/srv/small"];
  assert.equal(await stage.containerd.ctr(command), "small");
}

/** A container that is up while `work` runs. */
async function withContainer(work: (name: string) => Promise<void>): Promise<void> {
  const name = `doctor-${process.pid}-${++containers}`;
  const { containerd } = stage;
  await containerd.ctr(["run", "-d", ...snapshotter, image, name, "/bin/busybox", "sleep", "9999"]);
  try {
    await work(name);
  } finally {
    await containerd.tryCtr(["task", "kill", "--signal", "SIGKILL", name]);
    await containerd.tryCtr(["task", "rm", "--force", name]);
    await containerd.tryCtr(["containers", "rm", name]);
  }
}

/** What the doctor says; what is only worth knowing is left out. */
async function doctor(...flags: string[]): Promise<{ report: Report; found: ReportedFinding[] }> {
  const { clip: daemon, containerd } = stage;
  const { status, stdout, stderr } = await tryClip([
    ...["doctor", "--json", "--config", daemon.configFile, "--root", daemon.root],
    ...["--state", daemon.state, "--address", daemon.address, "--containerd", containerd.address],
    ...flags,
  ]);
  const text = stdout.toString("utf8");
  assert.ok(text.startsWith("{"), stderr);
  const report: Report = JSON.parse(text);
  assert.equal(status, report.well ? 0 : 1, "the exit code is that of the report");
  const found = report.findings.filter(({ severity }) => severity !== "note");
  return { report, found };
}

/** Sees to it that exactly this is found, repaired, and not found again. */
async function findsAndRepairs(what: RegExp, where: RegExp): Promise<void> {
  const { found } = await doctor();
  assert.ok(found.length > 0, "something is found");
  for (const finding of found) {
    assert.match(finding.what, what);
    assert.match(finding.where, where);
  }
  const repaired = await doctor("--repair");
  assert.deepEqual(
    repaired.found.map(({ outcome, error }) => [outcome, error]),
    repaired.found.map(() => ["repaired", undefined]),
  );
  assert.deepEqual((await doctor()).found, []);
}

/** Breaks a node whose daemon is stopped, has it repaired, and starts it. */
async function whileStopped(
  breakIt: (root: string) => Promise<void>,
  what: RegExp,
  where: RegExp,
): Promise<void> {
  await stage.clip.stop();
  await breakIt(stage.clip.root);
  await findsAndRepairs(what, where);
  await startClipAgain(stage);
  await containerRuns();
}

async function only(directory: string, suffix = ""): Promise<string> {
  const names = (await readdir(directory)).filter((name) => name.endsWith(suffix));
  const [name] = names.toSorted();
  assert.ok(name !== undefined, `${directory} has something`);
  return path.join(directory, name);
}

test("a node that works is well, and so it is when it is stopped", async () => {
  await containerRuns();
  const running = await doctor();
  assert.deepEqual([running.found, running.report.running], [[], true]);
  await withContainer(async () => assert.deepEqual((await doctor()).found, []));
  await stage.clip.stop();
  const stopped = await doctor();
  assert.deepEqual([stopped.found, stopped.report.running], [[], false]);
  assert.deepEqual(stopped.report.checks, running.report.checks);
  await startClipAgain(stage);
  await containerRuns();
});

test("a daemon cannot start while its directories are examined, and the other way round", async () => {
  const { root } = stage.clip;
  const refused = await tryClip(["doctor", "--root", root, "--state", sandbox.path("none")]);
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /a clip daemon uses .* and does not answer/);
});

test("a configuration that is wrong is the one finding", async () => {
  const file = sandbox.path("wrong.toml");
  await writeFile(file, "[mount]\nmode = 1");
  const { status, stdout } = await tryClip(["doctor", "--config", file]);
  assert.equal(status, 1);
  assert.match(stdout.toString("utf8"), /^error: configuration: .*mount\.mode/);
});

describe("with a stopped daemon, it finds and repairs", () => {
  test("a damaged page of a database", () =>
    whileStopped(
      async (root) => {
        const file = path.join(root, "snapshots.db");
        const pages = await readFile(file);
        // An index: leaves of indexes begin with 10.
        const page = Array.from({ length: pages.length / 4096 }, (_, at) => at * 4096).find(
          (at) => at > 0 && pages[at] === 10 && pages.subarray(at, at + 4096).includes("remote/"),
        );
        assert.ok(page !== undefined);
        await writeFile(file, pages.fill(0xab, page, page + 4096));
      },
      /the database is damaged/,
      /snapshots\.db$/,
    ));

  test("directories that are left over", () =>
    whileStopped(
      async (root) => {
        await mkdir(path.join(root, "s", "987654"));
      },
      /belongs to no snapshot/,
      /\/s\/987654$/,
    ));

  test("a span map that is damaged", () =>
    whileStopped(
      async (root) => writeFile(await only(path.join(root, "cache"), ".spans"), "damaged"),
      /the span map is damaged/,
      /\/cache\/sha256_/,
    ));

  test("a file of a layer that has gone", () =>
    whileStopped(
      async (root) => {
        const map = await only(path.join(root, "cache"), ".spans");
        await rm(map.replace(/\.spans$/, ""));
      },
      /a span map without its layer/,
      /\/cache\/sha256_/,
    ));

  test("an index that is damaged", () =>
    whileStopped(
      async (root) => writeFile(await only(path.join(root, "index")), "damaged"),
      /the layer index is damaged/,
      /\/index\/sha256_/,
    ));

  test("a metadata image that is damaged, or missing", async () => {
    const what = /the metadata image is (damaged|missing)/;
    const where = /\/meta\/sha256_/;
    await whileStopped(
      async (root) => writeFile(await only(path.join(root, "meta")), "damaged"),
      what,
      where,
    );
    await whileStopped(async (root) => rm(await only(path.join(root, "meta"))), what, where);
  });

  test("files that belong to nothing", () =>
    whileStopped(
      (root) =>
        writeFile(path.join(root, "cache", `sha256_${"0".repeat(64)}`), "", { mode: 0o600 }),
      /belongs to no layer/,
      /\/cache\/sha256_0+$/,
    ));

  test("mounts that belong to nothing", async () => {
    await whileStopped(
      async (root) => {
        await mkdir(path.join(root, "l", "4711"));
        await run("mount", ["-t", "tmpfs", "none", path.join(root, "l", "4711")]);
        await run("mount", ["-t", "tmpfs", "-o", "mode=700", "none", path.join(root, "meta")]);
      },
      /a mount (of a layer that is not known|that does not belong here)|the metadata image is missing/,
      /\/l\/4711$|\/meta(\/sha256_.*)?$/,
    );
    assert.deepEqual(mountsBelow(path.join(stage.clip.root, "meta")), []);
  });

  test("directories that others can read", () =>
    whileStopped((root) => chmod(path.join(root, "index"), 0o755), /its mode is 755/, /\/index$/));

  test("what waits to be stored where there is no content cache", () =>
    whileStopped(
      async (root) => {
        const database = new DatabaseSync(path.join(root, "stores.db"));
        database.exec(
          `CREATE TABLE IF NOT EXISTS store (layer_digest TEXT PRIMARY KEY, diff_id TEXT NOT NULL,
             size INTEGER NOT NULL, replace INTEGER NOT NULL, queued_at INTEGER NOT NULL,
             due_at INTEGER NOT NULL, attempts INTEGER NOT NULL) STRICT, WITHOUT ROWID;
           CREATE INDEX store_due ON store (due_at); PRAGMA user_version = 1`,
        );
        const digest = `sha256:${"1".repeat(64)}`;
        database.prepare("INSERT INTO store VALUES (?, ?, 1, 0, 0, 0, 0)").run(digest, digest);
        database.close();
        await chmod(path.join(root, "stores.db"), 0o600);
      },
      /waits to be stored/,
      /^sha256:1+$/,
    ));

  test("the files of a container that have gone", async () => {
    await withContainer(async () => {
      await stage.clip.stop();
      const { root } = stage.clip;
      const [id] = await readdir(path.join(root, "w"));
      assert.ok(id !== undefined);
      await rm(path.join(root, "s", id), { recursive: true });
      await rm(path.join(root, "w", id), { recursive: true });
      await findsAndRepairs(/the (files|work directory) of the /, new RegExp(`/[sw]/${id}$`));
      await startClipAgain(stage);
      await containerRuns();
    });
  });
});

test("mounts of processes that were all killed are taken away", async () => {
  await containerRuns();
  const [keeper, daemon] = [keeperPid(stage.clip), daemonPid(stage.clip)];
  process.kill(keeper, "SIGSTOP");
  process.kill(daemon, "SIGKILL");
  process.kill(keeper, "SIGKILL");
  while (isRunning(keeper) || isRunning(daemon)) await sleep(10);
  assert.ok(stage.clip.mounts().length > 0, "mounts are left");
  await findsAndRepairs(/a FUSE session that has ended|nobody serves any more/, /\/f$|\/l\/\d+$/);
  assert.deepEqual(stage.clip.mounts(), []);
  await startClipAgain(stage);
  await containerRuns();
});

describe("with a running daemon, it finds", () => {
  test("a layer below a container that is not mounted any more, and mounts it", async () => {
    await withContainer(async () => {
      const mounts = stage.clip.mounts().filter((mountpoint) => /\/l\/\d+$/.test(mountpoint));
      for (const mountpoint of mounts) await run("umount", ["-l", mountpoint]);
      const { report } = await doctor();
      assert.ok(report.findings.some(({ what }) => /not mounted/.test(what)));
      const repaired = (await doctor("--repair")).report.findings;
      assert.ok(repaired.every(({ outcome }) => outcome === "repaired"));
      assert.deepEqual(stage.clip.mounts().toSorted().slice(1), mounts.toSorted());
      assert.deepEqual((await doctor()).report.findings, []);
    });
  });

  test("a mount that belongs to nothing, and unmounts it", async () => {
    const stray = path.join(stage.clip.root, "cache");
    await run("mount", ["--bind", stray, stray]);
    await findsAndRepairs(/a mount that does not belong here/, /\/cache$/);
    await containerRuns();
  });

  test("a damaged index, and deletes it", async () => {
    await writeFile(await only(path.join(stage.clip.root, "index")), "damaged");
    await findsAndRepairs(/the layer index is damaged/, /\/index\/sha256_/);
    await containerRuns();
  });

  test("images and containers whose snapshots were lost, and says what to do", async () => {
    await withContainer(async (name) => {
      await stage.clip.stop();
      await rm(path.join(stage.clip.root, "snapshots.db"));
      await startClipAgain(stage);
      const { found } = await doctor("--repair");
      const told = found.map(({ what, where, advice }) => `${what} ${where} ${advice}`).join("\n");
      assert.match(told, new RegExp(`of a container is lost default/${name} .*containers rm`));
      assert.match(told, /of an image is lost default\/sha256:.* .*images rm/);
    });
    await stage.containerd.ctr(["image", "rm", "--sync", image]);
    await stage.containerd.prune();
    await pull();
    await containerRuns();
    assert.deepEqual((await doctor()).found, []);
  });

  test("layers that nothing is known of any more, and says what to do", async () => {
    await stage.clip.stop();
    await rm(path.join(stage.clip.root, "layers.db"));
    await startClipAgain(stage);
    const { found } = await doctor("--repair");
    assert.match(found[0]?.what ?? "", /of which nothing is known any more/);
    assert.match(found[0]?.advice ?? "", /Remove the images/);
    await pullAgain();
    await containerRuns();
    assert.deepEqual((await doctor()).found, []);
  });

  test("a containerd that is told another address", async () => {
    const { clip: daemon, containerd } = stage;
    const other = await tryClip([
      ...["doctor", "--json", "--root", sandbox.path("other"), "--state", sandbox.path("other")],
      ...["--address", sandbox.path("other.sock"), "--containerd", containerd.address],
    ]);
    const report: Report = JSON.parse(other.stdout.toString("utf8"));
    const [found] = report.findings.filter(({ check }) => check === "containerd");
    assert.match(found?.what ?? "", new RegExp(`has the address ${daemon.address} instead of`));
    assert.ok(!report.well);
  });
});

test("in the end nothing is left", () => assertNothingLeft(stage));
