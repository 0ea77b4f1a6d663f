/** Threads of a daemon die, or need more memory than they get: the daemon and its readers go on. */
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { after, afterEach, before, describe } from "node:test";
import { makeImage, makeLayer, pushImage } from "../harness/image.ts";
import { startRegistry, type TestRegistry } from "../harness/registry.ts";
import { Sandbox } from "../harness/sandbox.ts";
import { assertNothingLeft, mountModes, startStage, type Stage } from "../harness/stage.ts";
import { tarOf } from "../harness/tar-writer.ts";
import { daemonPid } from "./daemon-faults.ts";
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
  untilIdle,
  untilLogged,
} from "./fault-node.ts";
import { inspectable, Inspector } from "./inspector.ts";

let images: Sandbox;
let registry: TestRegistry;

before(async () => {
  images = await Sandbox.create();
  registry = await startRegistry(images);
});
after(() => images.close());

/** Every next request fails in a way that nobody foresaw. */
const breakFuseThread =
  "Buffer.prototype.readUInt32LE = () => { throw new Error('broken by a test'); }";

/** An image whose layer has the same file again and again. */
async function pushManyEntries(count: number): Promise<string> {
  const name = freshName();
  const member = tarOf([{ name: "file", mtime: 0n }]).subarray(0, -1024);
  const tarFile = path.join(await images.subdirectory(name), "layer.tar");
  const entries = Buffer.alloc(member.length * count, member);
  await writeFile(tarFile, Buffer.concat([entries, Buffer.alloc(1024)]));
  const image = makeImage([await makeLayer(tarFile, "gzip -1")]);
  return pushImage(image, registry.host, `faults/${name}`);
}

for (const mode of mountModes) {
  describe(`with mounts of the kind ${mode}`, () => {
    let sandbox: Sandbox;
    let stage: Stage;

    before(async () => {
      sandbox = await Sandbox.create();
      const environment = inspectable;
      stage = await startStage(sandbox, { generation: "2", mode, registry, environment });
    });
    afterEach(() => assertNothingLeft(stage));
    after(() => sandbox.close());

    faultTest("fuse-thread-death", "others answer what they held, no reader notices", async () => {
      const reference = await pushData(images, registry);
      await pull(stage, reference);
      const id = await startContainer(stage, reference);
      const pid = daemonPid(stage.clip);
      const inspector = await Inspector.connect(stage.clip);
      const message = "a FUSE thread died, another takes its place";
      for (let times = 0; times < 3; times++) {
        const from = stage.clip.log().length;
        const reading = checkIn(stage, id);
        await inspector.runIn("] fuse", breakFuseThread);
        await dropCaches();
        await reading;
        await dropCaches();
        await checkIn(stage, id);
        await untilLogged(stage, message, from);
      }
      inspector.close();
      const { reads } = await statusOf(stage);
      assert.equal(reads.errors, 0);
      assert.equal(daemonPid(stage.clip), pid);
      await untilIdle(stage);
    });
  });
}

describe("threads of a whole pull", () => {
  let sandbox: Sandbox;
  let stage: Stage;
  let inspector: Inspector;

  before(async () => {
    sandbox = await Sandbox.create();
    const environment = inspectable;
    stage = await startStage(sandbox, { generation: "2", mode: "auto", registry, environment });
    // Of threads that are there before, it does not learn which ones they start.
    inspector = await Inspector.connect(stage.clip);
  });
  afterEach(async () => {
    registry.interfere(undefined);
    await assertNothingLeft(stage);
  });
  after(async () => {
    inspector.close();
    await sandbox.close();
  });

  const workers = {
    "index/build-worker.ts": "process.exit(7)",
    "index/hash-worker.ts": "Atomics.notify = () => { throw new Error('broken by a test'); }",
    "layer/meta-worker.ts": "process.exit(7)",
  };
  for (const [module, breakage] of Object.entries(workers)) {
    faultTest("worker-death", `${module} dies: containerd unpacks the layer`, async () => {
      const reference = await pushData(images, registry, { indexed: false });
      const pid = daemonPid(stage.clip);
      // A part of the layer is there, then the thread dies.
      const rest = Promise.withResolvers<void>();
      registry.interfere(async (request) => {
        const from = /^bytes=(\d+)-/.exec(request.headers.range ?? "")?.[1];
        if (Number(from ?? 0) > 1_000_000) await rest.promise;
        return false;
      });
      const pulling = pull(stage, reference);
      await inspector.runIn(module, breakage);
      rest.resolve();
      await pulling;
      await checkAll(stage, reference);
      assert.equal(daemonPid(stage.clip), pid);
      await checkNode(stage, images, registry);
    });
  }
});

describe("with little memory", () => {
  let sandbox: Sandbox;
  let stage: Stage;

  before(async () => {
    sandbox = await Sandbox.create();
    const environment = { NODE_OPTIONS: "--max-old-space-size=56" };
    stage = await startStage(sandbox, { generation: "2", mode: "auto", registry, environment });
  });
  afterEach(() => assertNothingLeft(stage));
  after(() => sandbox.close());

  faultTest(
    "worker-out-of-memory",
    "a layer of very many files is left to containerd",
    async () => {
      const reference = await pushManyEntries(150_000);
      const pid = daemonPid(stage.clip);
      await pull(stage, reference);
      await untilLogged(stage, "needs more memory than a thread may take");
      assert.equal((await statusOf(stage)).fallbacks["limit_exceeded"], 1);
      assert.equal(daemonPid(stage.clip), pid);
      await checkNode(stage, images, registry);
    },
  );
});
