/** Layers from a registry that ignores Range: what is lost of them comes back only as a whole. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { digestKey } from "../src/base/digest.ts";
import type { LayerTarget } from "../src/layer/target.ts";
import { silentLog } from "../src/telemetry/log.ts";
import { run } from "./harness/command.ts";
import { startRegistry, type TestRegistry } from "./harness/registry.ts";
import { Sandbox } from "./harness/sandbox.ts";
import { openNode, type LayerNode, type NodeSettings } from "./layer-node.ts";
import { pushLayer } from "./layer-target.ts";

const MiB = 1024 * 1024;
const fileCount = 6;

let sandbox: Sandbox;
let registry: TestRegistry;
let undo: (() => Promise<void>)[] = [];
const sums = new Map<string, string>();

before(async () => {
  sandbox = await Sandbox.create();
  registry = await startRegistry(sandbox);
  registry.interfere(ignoreRanges);
});
afterEach(async () => {
  for (const step of undo.toReversed()) await step();
  undo = [];
});
after(() => sandbox?.close());

/** The repositories `whole-*` give no parts. */
const ignoreRanges: Parameters<TestRegistry["interfere"]>[0] = (request) => {
  if (request.url?.startsWith("/v2/whole-") === true) delete request.headers.range;
  return false;
};

/** Pushes a layer of six files of 2 MiB, with a published index. */
async function push(name: string): Promise<LayerTarget> {
  const source = await sandbox.subdirectory(`source-${name}`);
  for (let at = 0; at < fileCount; at++) {
    const file = join(source, `f${at}`);
    await writeFile(file, randomBytes(2 * MiB));
    sums.set(`${name}/f${at}`, (await run("sha256sum", [file])).slice(0, 64));
  }
  const tarFile = join(await sandbox.subdirectory(`image-${name}`), "layer.tar");
  await run("tar", ["-C", source, "--sort=name", "-cf", tarFile, "."]);
  return pushLayer(tarFile, { registry, name, spanBytes: MiB });
}

async function startNode(directory: string, settings: NodeSettings): Promise<LayerNode> {
  const node = await openNode(directory, { log: silentLog, ...settings });
  let ended: Promise<void> | undefined;
  const close = () => (ended ??= node.close());
  undo.push(close);
  return { ...node, close };
}

/** Reads the files of a layer, all at once, as other processes. */
async function readFiles(path: string, name: string): Promise<void> {
  await Promise.all(
    Array.from({ length: fileCount }, async (_, at) => {
      const sum = (await run("sha256sum", [join(path, `f${at}`)])).slice(0, 64);
      assert.equal(sum, sums.get(`${name}/f${at}`));
    }),
  );
}

function answersOf({ layerDigest }: LayerTarget, bytesMin: number) {
  return registry.requests.filter(
    ({ path, bytes }) => path.includes(layerDigest) && bytes >= bytesMin,
  );
}

for (const mode of ["erofs", "fuse"] as const) {
  describe(`with ${mode}, a layer that comes only as a whole`, () => {
    for (const [what, suffix] of [
      ["a power cut has lost that it is on disk", ".spans"],
      ["its file has been deleted", ""],
    ] as const) {
      test(`is pulled once more for all readers when ${what}`, async () => {
        const name = `whole-${mode}${suffix.replace(".", "-")}`;
        const target = await push(name);
        const directory = await sandbox.subdirectory(name);
        const first = await startNode(directory, { mode });
        const number = await first.layers.ensure(target);
        await readFiles((await first.layers.mount(number)).path, name);
        assert.equal(first.layers.counters.wholePulls, 1);
        await first.close();
        await rm(join(directory, "root/cache", digestKey(target.layerDigest) + suffix));

        const second = await startNode(directory, { mode });
        registry.reset();
        const { path } = await second.layers.mount(number);
        await readFiles(path, name);
        assert.equal(second.layers.counters.readErrors, 0);
        assert.equal(answersOf(target, target.compressedSize).length, 1, "it comes once");
        registry.reset();
        await second.close();

        const third = await startNode(directory, { mode });
        await readFiles((await third.layers.mount(number)).path, name);
        assert.equal(answersOf(target, MiB).length, 0, "it has been kept");
      });
    }

    test("can be read with little room on disk, and is not dropped for what comes in parts", async () => {
      const [name, other] = [`whole-room-${mode}`, `parts-room-${mode}`];
      const [target, cheap] = [await push(name), await push(other)];
      const diskLimits = { bytesMax: 20 * MiB, freeBytesMin: 0 };
      const directory = await sandbox.subdirectory(name);
      const node = await startNode(directory, { mode, diskLimits });
      const number = await node.layers.ensure(target);
      const { path } = await node.layers.mount(number);
      const otherPath = (await node.layers.mount(await node.layers.ensure(cheap))).path;
      await readFiles(otherPath, other);
      registry.reset();
      await readFiles(path, name);
      assert.equal(answersOf(target, MiB).length, 0);
      assert.equal(node.layers.counters.readErrors, 0);
      const { evicted } = node.layers.diskCache;
      assert.ok(evicted.spans + evicted.refused > 0, "there was no room for all");
    });
  });
}

test("a registry that no longer gives parts does not keep a layer from being read", async () => {
  const target = await push("changes");
  const node = await startNode(await sandbox.subdirectory("changes"), { mode: "erofs" });
  const number = await node.layers.ensure(target);
  const { path } = await node.layers.mount(number);
  registry.interfere((request) => {
    delete request.headers.range;
    return false;
  });
  try {
    await readFiles(path, "changes");
  } finally {
    registry.interfere(ignoreRanges);
  }
  assert.equal(node.layers.counters.readErrors, 0);
});
