/** The daemon dies in front of every kind of step that changes what is on disk: nothing is lost. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { clip } from "../harness/clip.ts";
import { makeBase } from "../harness/fixtures.ts";
import { pushImage } from "../harness/image.ts";
import { startRegistry, type TestRegistry } from "../harness/registry.ts";
import { Sandbox } from "../harness/sandbox.ts";
import { assertNothingLeft, startStage, type Stage } from "../harness/stage.ts";
import { canCrash, dieIn, nameOf, type CrashPoint } from "./crash-points.ts";
import { makeDataImage } from "./data-image.ts";
import { SnapshotsClient } from "./snapshots-client.ts";

const snapshots = "snapshots.db-wal";
const layers = "layers.db-wal";

/**
 * Points in each operation, as strace shows them. It counts calls by thread: further ones are chosen
 * where a single thread makes them.
 */
const points: Record<string, CrashPoint[]> = {
  Prepare: [
    { call: "mkdir", nth: 1 },
    { call: "pwrite64", nth: 1, file: snapshots },
    { call: "pwrite64", nth: 2, file: snapshots },
    { call: "pwrite64", nth: 5, file: snapshots },
    { call: "pwrite64", nth: 6, file: snapshots },
    { call: "fsync", nth: 1, file: snapshots },
  ],
  Commit: [
    { call: "pwrite64", nth: 1, file: snapshots },
    { call: "pwrite64", nth: 4, file: snapshots },
    { call: "fsync", nth: 1, file: snapshots },
  ],
  Remove: [
    { call: "pwrite64", nth: 1, file: snapshots },
    { call: "fsync", nth: 1, file: snapshots },
    { call: "rename", nth: 1 },
    { call: "rmdir", nth: 1 },
  ],
  "lazy pull": [
    { call: "pwrite64", nth: 1 },
    { call: "fsync", nth: 1 },
    { call: "fsync", nth: 3 },
    { call: "rename", nth: 1 },
    { call: "pwrite64", nth: 1, file: layers },
    { call: "pwrite64", nth: 7, file: layers },
    { call: "fsync", nth: 1, file: layers },
    { call: "fsync", nth: 2, file: layers },
    { call: "ftruncate", nth: 1 },
    { call: "mount", nth: 1 },
    { call: "pwrite64", nth: 1, file: snapshots },
    { call: "fsync", nth: 1, file: snapshots },
    { call: "fsync", nth: 2, file: snapshots },
  ],
  "whole pull": [
    { call: "fsync", nth: 1 },
    { call: "rename", nth: 1 },
    { call: "fsync", nth: 1, file: layers },
    { call: "mount", nth: 1 },
    { call: "fsync", nth: 1, file: snapshots },
  ],
  "span write": [
    { call: "pwrite64", nth: 1 },
    { call: "pwrite64", nth: 3 },
    { call: "fdatasync", nth: 1 },
  ],
};

let sandbox: Sandbox;
let registry: TestRegistry;
let stage: Stage;
let images = 0;

before(async () => {
  sandbox = await Sandbox.create();
  registry = await startRegistry(sandbox);
  stage = await startStage(sandbox, { generation: "2", mode: "erofs", registry });
});
after(() => sandbox.close());

async function withClient(work: (client: SnapshotsClient) => Promise<void>): Promise<void> {
  const client = new SnapshotsClient(stage.clip.address);
  try {
    await work(client);
  } finally {
    client.close();
  }
}

const operations: Record<string, (point: CrashPoint) => Promise<void>> = {
  async Prepare(point) {
    let promised = false;
    await withClient(async (client) => {
      promised = await dieIn(stage.clip, point, () => client.prepare("new"));
    });
    await withClient(async (client) => {
      if (!(await client.exists("new"))) {
        assert.ok(!promised, "what was promised is there");
        await client.prepare("new");
      }
      await client.mounts("new");
      await client.remove("new");
    });
  },
  async Commit(point) {
    await withClient((client) => client.prepare("active"));
    let promised = false;
    await withClient(async (client) => {
      promised = await dieIn(stage.clip, point, () => client.commit("active", "done"));
    });
    await withClient(async (client) => {
      const done = await client.exists("done");
      assert.equal(await client.exists("active"), !done, "it is one or the other");
      if (!done) assert.ok(!promised, "what was promised is done");
      if (!done) await client.commit("active", "done");
      await client.prepare("above", "done");
      await client.remove("above");
      await client.remove("done");
    });
  },
  async Remove(point) {
    await withClient((client) => client.prepare("old"));
    let promised = false;
    await withClient(async (client) => {
      promised = await dieIn(stage.clip, point, () => client.remove("old"));
    });
    await withClient(async (client) => {
      if (!(await client.exists("old"))) return;
      assert.ok(!promised, "what was promised is gone");
      await client.mounts("old");
      await client.remove("old");
    });
  },
  async "lazy pull"(point) {
    await dieInPull(point, true);
  },
  async "whole pull"(point) {
    await dieInPull(point, false);
  },
  async "span write"(point) {
    const reference = await pushData(true);
    await stage.containerd.ctr(pull(reference));
    await dieIn(stage.clip, point, () => checkAll(reference));
    await checkAll(reference);
  },
};

async function dieInPull(point: CrashPoint, indexed: boolean): Promise<void> {
  const reference = await pushData(indexed);
  await dieIn(stage.clip, point, () => stage.containerd.ctr(pull(reference)));
  await stage.containerd.ctr(pull(reference));
  await checkAll(reference);
}

function pull(reference: string): string[] {
  return ["image", "pull", "--plain-http", "--snapshotter", "clip", reference];
}

/** A container checks every file. */
async function checkAll(reference: string): Promise<void> {
  const id = `crash-${process.pid}-${++images}`;
  const check = ["/bin/busybox", "sha256sum", "-c", "/data/sums"];
  await stage.containerd.ctr(["run", "--rm", "--snapshotter", "clip", reference, id, ...check]);
}

async function pushData(indexed: boolean): Promise<string> {
  const name = `crash-${++images}`;
  const directory = await sandbox.subdirectory(name);
  const base = await makeBase(directory);
  const size = { files: 16, fileBytes: 262_144 };
  const image = await makeDataImage(directory, base.layers, size);
  const reference = await pushImage(image, registry.host, `crash/${name}`);
  if (indexed) await clip(["index", "create", reference, "--push", "--plain-http"]);
  return reference;
}

describe("nothing is lost when the daemon dies", { skip: !canCrash() }, () => {
  for (const [operation, crashPoints] of Object.entries(points)) {
    for (const point of crashPoints) {
      test(`in ${operation}, ${nameOf(point)}`, async () => {
        await operations[operation]?.(point);
        await assertNothingLeft(stage);
      });
    }
  }
});
