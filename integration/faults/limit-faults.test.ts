/** A daemon runs out of descriptors, and its clock jumps: it goes on, and all is well afterwards. */
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { after, afterEach, before, describe } from "node:test";
import { run } from "../harness/command.ts";
import { startRegistry, type TestRegistry } from "../harness/registry.ts";
import { Sandbox } from "../harness/sandbox.ts";
import { assertNothingLeft, mountModes, startStage, type Stage } from "../harness/stage.ts";
import { toolsRoot } from "../harness/tools.ts";
import { daemonPid, killDaemon } from "./daemon-faults.ts";
import { faultTest } from "./fault-kinds.ts";
import {
  checkIn,
  checkNode,
  dropCaches,
  execIn,
  pull,
  pushData,
  startContainer,
  statusOf,
  tryPull,
  until,
  untilIdle,
  untilLogged,
} from "./fault-node.ts";
import { SnapshotsClient } from "./snapshots-client.ts";

let images: Sandbox;
let registry: TestRegistry;

before(async () => {
  images = await Sandbox.create();
  registry = await startRegistry(images);
});
after(() => images.close());

/** Limits the descriptors of a process to those that it has, and so many more. */
async function limitDescriptors(pid: number, more: number): Promise<() => Promise<void>> {
  const set = (soft: number) => run("prlimit", ["--pid", String(pid), `--nofile=${soft}:`]);
  const output = await run("prlimit", [
    "--pid",
    String(pid),
    "--nofile",
    "-o",
    "SOFT",
    "--noheadings",
  ]);
  const open = readdirSync(`/proc/${pid}/fd`).map(Number);
  await set(Math.max(...open) + 1 + more);
  return async () => {
    await set(Number(output));
  };
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

    faultTest("out-of-descriptors", "nothing dies, and all is well afterwards", async () => {
      const [reference, other] = [
        await pushData(images, registry),
        await pushData(images, registry),
      ];
      await pull(stage, reference);
      const id = await startContainer(stage, reference);
      assert.equal((await execIn(stage, id, "busybox cat /data/0 > /dev/null")).status, 0);
      await untilIdle(stage);
      const pid = daemonPid(stage.clip);
      const raise = await limitDescriptors(pid, 0);
      await dropCaches();
      // What is here is read with what is open; what is not fails at worst, and not for ever.
      assert.equal((await execIn(stage, id, "busybox cat /data/0 > /dev/null")).status, 0);
      const cold = execIn(stage, id, "busybox cat /data/30 > /dev/null");
      const pulled = await tryPull(stage, other);
      await cold;
      // Whoever connects now is served later.
      const client = new SnapshotsClient(stage.clip.address);
      const served = client.exists("nothing");
      await raise();
      assert.equal(await served, false);
      client.close();
      assert.equal(daemonPid(stage.clip), pid);
      await checkIn(stage, id);
      if (pulled.status !== 0) await pull(stage, other);
      await checkNode(stage, images, registry);
    });
  });
}

describe("with a clock of its own", () => {
  let sandbox: Sandbox;
  let stage: Stage;

  async function setClock(offset: string): Promise<void> {
    await writeFile(sandbox.path("clock"), offset);
  }

  /** The year, as the daemon sees it. */
  async function yearOfDaemon(): Promise<number> {
    return new Date((await statusOf(stage)).startedAt).getFullYear();
  }

  before(async () => {
    sandbox = await Sandbox.create();
    await setClock("+0");
    const environment = {
      LD_PRELOAD: path.join(toolsRoot, "lib", "libfaketimeMT.so.1"),
      FAKETIME_TIMESTAMP_FILE: sandbox.path("clock"),
      FAKETIME_CACHE_DURATION: "1",
      FAKETIME_DONT_FAKE_MONOTONIC: "1",
    };
    const layer = { background_fill: true, background_fill_delay_ms: 500 };
    const settings = { layer, registry: { retries: 1 } };
    stage = await startStage(sandbox, {
      generation: "2",
      mode: "auto",
      registry,
      environment,
      settings,
    });
  });
  afterEach(() => assertNothingLeft(stage));
  after(() => sandbox.close());

  for (const [offset, years] of [
    ["+3h", 0],
    ["+10y", 10],
    ["-10y", -10],
  ] as const) {
    faultTest(
      "clock-jump",
      `by ${offset} while containers read and layers are filled`,
      async () => {
        const reference = await pushData(images, registry);
        await pull(stage, reference);
        const id = await startContainer(stage, reference);
        assert.equal((await execIn(stage, id, "busybox cat /data/0 > /dev/null")).status, 0);
        const from = stage.clip.log().length;
        await setClock(offset);
        const year = new Date().getFullYear() + years;
        await until(
          "the clock has jumped",
          async () => Math.abs((await yearOfDaemon()) - year) < 2,
        );
        await checkIn(stage, id);
        await checkNode(stage, images, registry);
        await untilLogged(stage, "the layer is complete", from);
        // A daemon that starts then finds what was written at another time.
        await killDaemon(stage.clip);
        await dropCaches();
        await checkIn(stage, id);
        // And back, while a registry that failed is given a rest.
        registry.interfere((request, response) => {
          if (request.headers.range === undefined) return false;
          response.writeHead(503).end();
          return true;
        });
        const next = await pushData(images, registry, { indexed: false });
        await tryPull(stage, next);
        await setClock("+0");
        registry.interfere(undefined);
        await checkNode(stage, images, registry);
        await checkIn(stage, id);
      },
    );
  }
});
