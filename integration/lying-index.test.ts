/** Published indexes that lie in a way that only the diffID finds: whom they mislead, how long. */
import assert from "node:assert/strict";
import { readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { silentLog } from "../src/telemetry/log.ts";
import { run } from "./harness/command.ts";
import { Sandbox } from "./harness/sandbox.ts";
import { until } from "./harness/until.ts";
import {
  makeIndexedLayer,
  rightIndex,
  sha256,
  wrongIndex,
  type IndexedLayer,
  type IndexParts,
} from "./indexed-layer.ts";
import { openNode, type LayerNode, type NodeSettings } from "./layer-node.ts";

let sandbox: Sandbox;
let layer: IndexedLayer;

before(async () => {
  sandbox = await Sandbox.create();
  layer = await makeIndexedLayer(sandbox);
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

/** Has a span show, once more, what the one before it shows. */
function repeatSpan({ head, entries, windows }: IndexParts): IndexParts {
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
  const uncompressedSize = head.uncompressedSize + longer;
  const repeated = windows.with(at, windows[at - 1] ?? Buffer.alloc(0));
  return { head: { ...head, uncompressedSize, spans }, entries, windows: repeated };
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
      const target = await layer.push(`lie-${mode}`, [await wrongIndex(layer, repeatSpan)]);
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
      assert.equal(await sha256(join(anew, "large")), layer.large);
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
      layer.registry.reset();
      assert.equal(
        await sha256(join((await second.layers.mount(number)).path, "large")),
        layer.large,
      );
      assert.equal(layer.registry.blobBytes(), 0);
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
      assert.equal(await sha256(join(last, "large")), layer.large);
      assert.equal(second.layers.counters.mismatches, 0);
      await second.close();
    });

    test("gives way to an older one that does not", async () => {
      const { encoded } = await rightIndex(layer);
      const lie = await wrongIndex(layer, repeatSpan);
      const target = await layer.push(`older-${mode}`, [encoded, lie]);
      const node = await startNode(await sandbox.subdirectory(`older-${mode}`), settings);
      const number = await node.layers.ensure(target);
      const { path } = await node.layers.mount(number);
      const anew = await mountAnew(node, number, path);
      assert.equal(await sha256(join(anew, "large")), layer.large);
      await until(() => node.layers.counters.completed === 1, "the fill");
      assert.equal(node.layers.counters.wholePulls, 0);
      await node.close();
    });
  });
}
