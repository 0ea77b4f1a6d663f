/** A disk cache that is smaller than what is read through it. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import type { LayerTarget } from "../src/layer/target.ts";
import { run } from "./harness/command.ts";
import { startRegistry, type TestRegistry } from "./harness/registry.ts";
import { Sandbox } from "./harness/sandbox.ts";
import { SmallDisk } from "./harness/small-disk.ts";
import { dropCaches } from "./faults/fault-node.ts";
import { openNode, withNode } from "./layer-node.ts";
import { contentOf, pushRandomLayers } from "./layer-target.ts";

const MiB = 1 << 20;
const layerBytes = 64 * MiB;
const spanBytes = MiB / 2;

let sandbox: Sandbox;
let registry: TestRegistry;
let indexed: LayerTarget;
let plain: LayerTarget;
/** sha256 over every file of the layer, in order. */
let content: string;

before(async () => {
  sandbox = await Sandbox.create();
  registry = await startRegistry(sandbox);
  const size = { bytes: layerBytes, files: 32, spanBytes };
  ({ indexed, plain, content } = await pushRandomLayers(sandbox, registry, size));
});
after(() => sandbox?.close());

async function diskBytes(directory: string): Promise<number> {
  const output = await run("du", ["-s", "--block-size=1", join(directory, "root/cache")]);
  return Number.parseInt(output, 10);
}

for (const mode of ["erofs", "fuse"] as const) {
  describe(`layers mounted with ${mode}, larger than their room on disk`, () => {
    test("read right however often and by however many, and the limit is kept", async () => {
      const directory = await sandbox.subdirectory(`limit-${mode}`);
      const diskLimits = { bytesMax: 16 * MiB, freeBytesMin: 0 };
      await withNode(directory, { mode, diskLimits }, async ({ layers }) => {
        const number = await layers.ensure(indexed);
        const { path } = await layers.mount(number);
        assert.equal(await contentOf(path), content);
        await dropCaches();
        const readers = [contentOf(path), contentOf(path), contentOf(path)];
        assert.deepEqual(await Promise.all(readers), [content, content, content]);
        const { evicted } = layers.diskCache;
        assert.ok(evicted.spans > 96, `${evicted.spans} spans were evicted`);
        const onDisk = await diskBytes(directory);
        assert.ok(onDisk <= diskLimits.bytesMax + MiB, `${onDisk} bytes on disk`);
        const { bytes } = await layers.usage(number);
        assert.ok(bytes <= diskLimits.bytesMax + 2 * MiB, `${bytes} bytes used`);
        assert.equal(layers.counters.readErrors, 0);
      });
    });

    test("read right when the disk itself is full", async () => {
      const directory = (await SmallDisk.make(sandbox, `full-${mode}`, { bytes: 48 * MiB }))
        .directory;
      await withNode(directory, { mode }, async ({ layers }) => {
        const { path } = await layers.mount(await layers.ensure(indexed));
        assert.equal(await contentOf(path), content);
        await dropCaches();
        assert.deepEqual(await Promise.all([contentOf(path), contentOf(path)]), [content, content]);
        assert.ok(layers.diskCache.evicted.spans > 0);
        assert.equal(layers.counters.readErrors, 0);
      });
    });

    test("leave so much free as is asked for", async () => {
      const directory = (await SmallDisk.make(sandbox, `floor-${mode}`, { bytes: 64 * MiB }))
        .directory;
      const diskLimits = { bytesMax: 0, freeBytesMin: 24 * MiB };
      await withNode(directory, { mode, diskLimits }, async ({ layers }) => {
        const { path } = await layers.mount(await layers.ensure(indexed));
        assert.equal(await contentOf(path), content);
        assert.ok(layers.diskCache.evicted.spans > 0);
        const free = await run("df", ["--output=avail", "--block-size=1", directory]);
        assert.ok(Number(free.split("\n")[1]) >= diskLimits.freeBytesMin - MiB, free);
      });
    });

    test("are as they were after the daemon has died", async () => {
      const directory = await sandbox.subdirectory(`died-${mode}`);
      const settings = { mode, diskLimits: { bytesMax: 16 * MiB, freeBytesMin: 0 } };
      const node = await openNode(directory, settings);
      const { path } = await node.layers.mount(await node.layers.ensure(indexed));
      assert.equal(await contentOf(path), content);
      await node.die();
      await dropCaches();
      await withNode(directory, settings, async ({ layers }) => {
        const mounted = await layers.mount(await layers.ensure(indexed));
        assert.equal(await contentOf(mounted.path), content);
      });
    });

    test("are not pulled whole", async () => {
      const directory = await sandbox.subdirectory(`pull-${mode}`);
      const diskLimits = { bytesMax: 40 * MiB, freeBytesMin: 0 };
      await withNode(directory, { mode, diskLimits }, async ({ layers }) => {
        await assert.rejects(layers.ensure(plain), { code: "DISK_FULL" });
        assert.ok((await diskBytes(directory)) < MiB);
        assert.equal(layers.diskCache.evicted.refused, 1);
      });
    });

    test("make room for others when nobody uses them any more", async () => {
      const directory = await sandbox.subdirectory(`unused-${mode}`);
      await withNode(directory, { mode }, async ({ layers }) => {
        await layers.ensure(plain);
        assert.ok((await diskBytes(directory)) >= layerBytes - MiB);
      });
      const diskLimits = { bytesMax: 70 * MiB, freeBytesMin: 0 };
      await withNode(directory, { mode, diskLimits }, async ({ layers }) => {
        const { path } = await layers.mount(await layers.ensure(indexed));
        assert.equal(await contentOf(path), content);
        assert.equal(layers.diskCache.evicted.layers, 1);
        assert.ok((await diskBytes(directory)) <= diskLimits.bytesMax);
        // It comes back like any other.
        const other = await layers.mount(await layers.ensure(plain));
        assert.equal(await contentOf(other.path), content);
      });
    });
  });
}
