/** As crash-points.test.ts: storing in a content cache, evicting, and publishing an index. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createReadStream, existsSync } from "node:fs";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { after, before, describe, test, type TestContext } from "node:test";
import type { Digest } from "../../src/base/digest.ts";
import { contentKey } from "../../src/cache/content/content-cache.ts";
import { askForStatus } from "../../src/cli/status.ts";
import type { NodeStatus } from "../../src/daemon/status.ts";
import { clip, clipProgram, type ClipSettings } from "../harness/clip.ts";
import { run } from "../harness/command.ts";
import { makeBase } from "../harness/fixtures.ts";
import { pushImage, type Image } from "../harness/image.ts";
import { startRegistry, type TestRegistry } from "../harness/registry.ts";
import { Sandbox } from "../harness/sandbox.ts";
import { assertNothingLeft, startStage, type Stage } from "../harness/stage.ts";
import { toolEnvironment } from "../harness/tools.ts";
import { canCrash, dieIn, nameOf, traceArguments, type CrashPoint } from "./crash-points.ts";
import { makeDataImage } from "./data-image.ts";

const MiB = 1024 * 1024;
const stores = "stores.db-wal";

const storePoints: CrashPoint[] = [
  { call: "pwrite64", nth: 1, file: stores },
  { call: "fsync", nth: 1, file: stores },
  { call: "link", nth: 1 },
  { call: "fsync", nth: 2, file: stores },
];
const evictionPoints: CrashPoint[] = [
  { call: "fallocate", nth: 1 },
  { call: "fallocate", nth: 2 },
  { call: "fdatasync", nth: 2 },
];
/** What is sent to the registry: three blobs, the manifest, and the tag of what refers to the image. */
const publishPoints: CrashPoint[] = [1, 2, 3, 4, 5].map((nth) => ({ call: "writev", nth }));

let sandbox: Sandbox;
let registry: TestRegistry;
let images = 0;

before(async () => {
  sandbox = await Sandbox.create();
  registry = await startRegistry(sandbox);
});
after(() => sandbox.close());

describe("nothing is lost when the daemon dies", { skip: !canCrash() }, () => {
  test("in a store", async (context) => {
    const cache = await sandbox.subdirectory("store");
    const caches = [{ kind: "directory", path: cache }];
    const stage = await start(context, "storing", {
      "": { content_cache: caches },
      layer: { background_fill: true, background_fill_delay_ms: 100 },
    });
    for (const point of storePoints) {
      await context.test(nameOf(point), async () => {
        const { reference, image } = await pushData(16);
        await dieIn(stage.clip, point, async () => {
          await pull(stage, reference);
          await untilStored(stage, cache, image);
        });
        await pull(stage, reference);
        await untilStored(stage, cache, image);
        await checkAll(stage, reference);
        await assertNothingLeft(stage);
      });
    }
  });

  test("in an eviction", async (context) => {
    const limits = { bytes_max: 64 * MiB, free_bytes_min: 0 };
    const stage = await start(context, "evicting", { cache: limits });
    for (const point of evictionPoints) {
      await context.test(nameOf(point), async () => {
        const { reference } = await pushData(400);
        await publish(reference);
        await pull(stage, reference);
        await dieIn(stage.clip, point, () => checkAll(stage, reference));
        await checkAll(stage, reference);
        const { diskCache } = await statusOf(stage);
        assert.ok(diskCache.bytes <= limits.bytes_max + MiB, `${diskCache.bytes} bytes on disk`);
        await assertNothingLeft(stage);
      });
    }
  });
});

test("an index that is published half can be published again", async (context) => {
  const stage = await start(context, "publishing", {});
  for (const point of publishPoints) {
    await context.test(nameOf(point), async () => {
      const { reference } = await pushData(16);
      const command = [clipProgram, ...publishArguments(reference)];
      const env = toolEnvironment();
      await assert.rejects(run("strace", [...traceArguments(point), ...command], { env }));
      await pull(stage, reference);
      await checkAll(stage, reference);
      await publish(reference);
      await assertNothingLeft(stage);
      await pull(stage, reference);
      await checkAll(stage, reference);
      await assertNothingLeft(stage);
    });
  }
});

async function start(context: TestContext, name: string, settings: ClipSettings): Promise<Stage> {
  const stage = await startStage(sandbox, {
    ...{ generation: "2", mode: "erofs", registry, name, settings },
  });
  context.after(async () => {
    await stage.containerd.close();
    await stage.clip.stop();
  });
  return stage;
}

async function pull({ containerd }: Stage, reference: string): Promise<void> {
  const flags = ["--plain-http", "--snapshotter", "clip"];
  await containerd.ctr(["image", "pull", ...flags, reference]);
}

/** A container checks every file. */
async function checkAll({ containerd }: Stage, reference: string): Promise<void> {
  const id = `crash-${process.pid}-${++images}`;
  const check = ["/bin/busybox", "sha256sum", "-c", "/data/sums"];
  await containerd.ctr(["run", "--rm", "--snapshotter", "clip", reference, id, ...check]);
}

/** An image whose last layer has so many files of 256 KiB. */
async function pushData(files: number): Promise<{ reference: string; image: Image }> {
  const name = `crash-${++images}`;
  const directory = await sandbox.subdirectory(name);
  const base = await makeBase(directory);
  const image = await makeDataImage(directory, base.layers, { files, fileBytes: 262_144 });
  return { reference: await pushImage(image, registry.host, `crash/${name}`), image };
}

function publishArguments(reference: string): string[] {
  return ["index", "create", reference, "--push", "--plain-http"];
}

async function publish(reference: string): Promise<void> {
  await clip(publishArguments(reference));
}

function statusOf(stage: Stage): Promise<NodeStatus> {
  return askForStatus(path.join(stage.clip.state, "metrics.sock"));
}

/** Waits until every layer is in the content cache, and compares it with its diffID. */
async function untilStored(stage: Stage, cache: string, { layers }: Image): Promise<void> {
  const deadline = Date.now() + 60_000;
  for (const { digest, diffId } of layers) {
    const file = path.join(cache, contentKey(digest as Digest, "layer"));
    while (!existsSync(file)) {
      assert.ok(Date.now() < deadline, `${file} is not stored:\n${stage.clip.log().slice(-4000)}`);
      await sleep(50);
    }
    assert.equal(await digestOf(file), diffId);
  }
}

async function digestOf(file: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(file), hash);
  return `sha256:${hash.digest("hex")}`;
}
