/** Published indexes that lie in a way that only the diffID finds: whom they mislead, how long. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import type { Digest } from "../src/base/digest.ts";
import { buildLayerIndex } from "../src/index/build.ts";
import { encodeLayerIndex } from "../src/index/format.ts";
import { publishLayerIndexes } from "../src/index/published.ts";
import type { LayerTarget } from "../src/layer/target.ts";
import { RegistryClient } from "../src/registry/client.ts";
import { silentLog } from "../src/telemetry/log.ts";
import { run } from "./harness/command.ts";
import { makeImage, makeLayer, pushImage, type ImageLayer } from "./harness/image.ts";
import { startRegistry, type TestRegistry } from "./harness/registry.ts";
import { Sandbox } from "./harness/sandbox.ts";
import { openNode, type LayerNode, type NodeSettings } from "./layer-node.ts";

const spanBytes = 256 * 1024;

let sandbox: Sandbox;
let registry: TestRegistry;
let layer: ImageLayer;
let large: string;

before(async () => {
  sandbox = await Sandbox.create();
  registry = await startRegistry(sandbox);
  const source = await sandbox.subdirectory("source");
  // Half of it compresses, so that spans differ in their length.
  const bytes = Array.from({ length: 8 }, (_, at) => [
    randomBytes(512 * 1024),
    Buffer.alloc(512 * 1024, `text ${at} `),
  ]).flat();
  await writeFile(join(source, "large"), Buffer.concat(bytes));
  await writeFile(join(source, "small"), "small\n");
  const tarFile = join(await sandbox.subdirectory("image"), "layer.tar");
  await run("tar", ["-C", source, "--sort=name", "-cf", tarFile, "."]);
  layer = await makeLayer(tarFile);
  large = await sha256(join(source, "large"));
});
let undo: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const step of undo.toReversed()) await step();
  undo = [];
});
after(() => sandbox?.close());

/** Opens a node that ends with the test at the latest. */
async function startNode(directory: string, settings: NodeSettings): Promise<LayerNode> {
  const node = await openNode(directory, settings);
  let ended: Promise<void> | undefined;
  const close = () => (ended ??= node.close());
  undo.push(close);
  return { ...node, close, die: () => (ended ??= node.die()) };
}

async function sha256(path: string): Promise<string> {
  return (await run("sha256sum", [path])).slice(0, 64);
}

async function until(condition: () => boolean | Promise<boolean>, what: string): Promise<void> {
  for (let tries = 0; !(await condition()); tries++) {
    if (tries === 600) assert.fail(`${what} took too long`);
    await sleep(50);
  }
}

/** Pushes the layer under a name with these indexes, the oldest first. */
async function push(name: string, indexes: readonly ("true" | "lie")[]): Promise<LayerTarget> {
  const image = makeImage([layer]);
  await pushImage(image, registry.host, name);
  const client = new RegistryClient({ dockerConfig: "/nonexistent", log: silentLog });
  const repository = { host: registry.host, name };
  for (const kind of indexes) {
    const { encoded } = kind === "lie" ? { encoded: await lyingIndex() } : await trueIndex();
    const manifest = await client.manifest(repository, image.digest);
    const layerDigest = layer.digest as Digest;
    await publishLayerIndexes(client, repository, manifest, [{ layerDigest, encoded }]);
    await sleep(5); // The time of creation tells which is newer.
  }
  await client.close();
  return {
    layerDigest: layer.digest as Digest,
    diffId: layer.diffId as Digest,
    compressedSize: layer.size,
    mediaType: layer.mediaType,
    manifestDigest: image.digest as Digest,
    repositories: [repository],
  };
}

function trueIndex() {
  return buildLayerIndex({ path: layer.blobFile }, { spanBytes });
}

/** An index that has a span show, once more, what the one before it shows. */
async function lyingIndex(): Promise<Buffer> {
  const { head, reader } = await trueIndex();
  const windows = await Promise.all(head.spans.map((_, at) => reader.readWindow(at)));
  const at = head.spans.findIndex(
    ({ length }, span) => span > 0 && length <= (head.spans[span - 1]?.length ?? 0),
  );
  const [before, lie] = [head.spans[at - 1], head.spans[at]];
  assert.ok(before !== undefined && lie !== undefined);
  const longer = before.length - lie.length;
  const spans = head.spans.map((span, index) => {
    const { checkpoint } = index === at ? before : span;
    const shift = index > at ? longer : 0;
    const uncompressedOffset = span.checkpoint.uncompressedOffset + shift;
    return { ...(index === at ? before : span), checkpoint: { ...checkpoint, uncompressedOffset } };
  });
  windows[at] = windows[at - 1] ?? Buffer.alloc(0);
  const uncompressedSize = head.uncompressedSize + longer;
  const entries = await reader.readEntries();
  return encodeLayerIndex({ head: { ...head, uncompressedSize, spans }, entries, windows });
}

/** Mounts the layer until that is somewhere else than before; where. */
async function mountAnew({ layers }: LayerNode, number: number, old: string): Promise<string> {
  let path = old;
  await until(async () => (path = (await layers.mount(number)).path) !== old, "finding out");
  return path;
}

for (const mode of ["erofs", "fuse"] as const) {
  describe(`with ${mode}, an index that lies`, () => {
    const settings = { mode, backgroundFillDelayMs: 100, log: silentLog };

    test("is found out; the number of the layer goes on to lead to it, old mounts fail", async () => {
      const target = await push(`lie-${mode}`, ["lie"]);
      const directory = await sandbox.subdirectory(`lie-${mode}`);
      const first = await startNode(directory, settings);
      const number = await first.layers.ensure(target);
      const { path } = await first.layers.mount(number);
      // A container that has the layer open, and reads on later.
      const reader = run("sh", [
        "-c",
        `exec 3< ${path}/small; until [ -e ${directory}/go ]; do sleep 0.1; done; cat <&3`,
      ]);
      reader.catch(() => {});
      undo.push(() => writeFile(join(directory, "go"), ""));
      const anew = await mountAnew(first, number, path);
      assert.equal(await sha256(join(anew, "large")), large);
      await writeFile(join(directory, "go"), "");
      await assert.rejects(reader);
      assert.equal(first.layers.counters.mismatches, 1);
      assert.equal(first.layers.counters.wholePulls, 1);
      const other = await first.layers.ensure(target);
      assert.notEqual(other, number);
      assert.equal((await first.layers.mount(other)).path, anew);
      assert.ok((await first.layers.usage(number)).bytes > 0);
      await first.layers.checkOver(number, [number]);

      await first.die();
      const second = await startNode(directory, settings);
      registry.reset();
      assert.equal(await sha256(join((await second.layers.mount(number)).path, "large")), large);
      assert.equal(registry.blobBytes(), 0);
      // Lose all that was made after the index had lied, besides that it has.
      await second.layers.releaseUnused([number]);
      assert.equal(await second.layers.ensure(target), other, "its former number is in use");
      await second.layers.releaseUnused([]);
      assert.deepEqual(second.layers.numbers(), []);
      assert.deepEqual(await readdir(join(directory, "root/cache")), []);
      await assert.rejects(second.layers.mount(number), { code: "ARGUMENT_INVALID" });
      await rm(join(directory, "root/index"), { recursive: true });
      await second.indexes.start();
      const again = await second.layers.ensure(target);
      assert.equal(second.layers.counters.wholePulls, 1, "it is not believed again");
      const { path: last } = await second.layers.mount(again);
      assert.equal(await sha256(join(last, "large")), large);
      assert.equal(second.layers.counters.mismatches, 0);
      await second.close();
    });

    test("gives way to an older one that does not", async () => {
      const target = await push(`older-${mode}`, ["true", "lie"]);
      const node = await startNode(await sandbox.subdirectory(`older-${mode}`), settings);
      const number = await node.layers.ensure(target);
      const { path } = await node.layers.mount(number);
      const anew = await mountAnew(node, number, path);
      assert.equal(await sha256(join(anew, "large")), large);
      await until(() => node.layers.counters.completed === 1, "the fill");
      assert.equal(node.layers.counters.wholePulls, 0);
      await node.close();
    });
  });
}
