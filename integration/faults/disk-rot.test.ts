/** A disk that changes, loses or does not give what was written to it. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdir, open, readdir, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { digestKey } from "../../src/base/digest.ts";
import type { LayerTarget } from "../../src/layer/target.ts";
import { openLog, silentLog } from "../../src/telemetry/log.ts";
import { run } from "../harness/command.ts";
import { startRegistry, type TestRegistry } from "../harness/registry.ts";
import { Sandbox } from "../harness/sandbox.ts";
import { until } from "../harness/until.ts";
import { withNode, type LayerNode, type NodeSettings } from "../layer-node.ts";
import { contentOf, pushRandomLayers } from "../layer-target.ts";
import { faultTest } from "./fault-kinds.ts";
import { dropCaches } from "./fault-node.ts";

const MiB = 1 << 20;
const layerBytes = 24 * MiB;
const spanBytes = MiB / 2;
const never = new AbortController().signal;
/** Damage is what these tests make: only a defect is worth a line. */
const log = process.env["CLIP_TEST_LOG"] === undefined ? silentLog : openLog("debug");

let sandbox: Sandbox;
let registry: TestRegistry;
let indexed: LayerTarget;
let plain: LayerTarget;
/** sha256 over every file of the layer, in order. */
let content: string;

before(async () => {
  sandbox = await Sandbox.create();
  registry = await startRegistry(sandbox);
  const size = { bytes: layerBytes, files: 12, spanBytes };
  ({ indexed, plain, content } = await pushRandomLayers(sandbox, registry, size));
});
after(() => sandbox?.close());

async function onNode(
  directory: string,
  settings: NodeSettings,
  work: (node: LayerNode) => Promise<void>,
): Promise<void> {
  await withNode(directory, { log, ...settings }, work);
}

/** Forgets what the kernel has of all files, also of those that are not on disk yet. */
async function dropAll(): Promise<void> {
  await run("sync", []);
  await dropCaches();
}

function cacheFile(directory: string, { layerDigest }: LayerTarget): string {
  return join(directory, "root/cache", digestKey(layerDigest));
}

/** Flips a bit at each of these places. */
async function rot(path: string, offsets: readonly number[]): Promise<void> {
  const file = await open(path, "r+");
  for (const offset of offsets) {
    const { buffer } = await file.read(Buffer.alloc(1), 0, 1, offset);
    await file.write(Uint8Array.of((buffer[0] ?? 0) ^ 0x40), 0, 1, offset);
  }
  await file.sync();
  await file.close();
}

/** Places in three spans, far from their ends, the middle one twice. */
const places = [3 * MiB, 10 * MiB + 77, 10 * MiB + 5000, 20 * MiB + 1];

for (const mode of ["erofs", "fuse"] as const) {
  describe(`with ${mode}`, () => {
    faultTest("disk-rot", "spans of a lazy layer are found and served no more", async () => {
      const directory = await sandbox.subdirectory(`lazy-${mode}`);
      await onNode(directory, { mode }, async ({ layers }) => {
        const { path } = await layers.mount(await layers.ensure(indexed));
        assert.equal(await contentOf(path), content);
        await rot(cacheFile(directory, indexed), places);
        const [check] = await layers.verifyCache({ repair: false, signal: never });
        assert.equal(check?.damaged, 3);
        assert.equal(check?.repaired, 0);
        assert.equal(check?.image, "right");
        await dropAll();
        assert.equal(await contentOf(path), content);
        const [again] = await layers.verifyCache({ repair: false, signal: never });
        assert.equal(again?.damaged, 0);
        assert.ok((again?.bytes ?? 0) >= layerBytes - MiB);
        assert.equal(layers.counters.damagedSpans, 3);
      });
    });

    for (const kept of ["whose index is kept", "whose index has gone"]) {
      faultTest(
        "disk-rot",
        `a complete layer ${kept} is written right again, while it is mounted`,
        async () => {
          const isKept = kept === "whose index is kept";
          const directory = await sandbox.subdirectory(`complete-${mode}-${isKept}`);
          // Nothing of the index is in the memory of the next one.
          await onNode(directory, { mode }, async ({ layers }) => {
            await layers.ensure(plain);
          });
          await onNode(directory, { mode }, async ({ layers, indexes }) => {
            const { path } = await layers.mount(await layers.ensure(plain));
            await indexes.settled();
            assert.equal(await contentOf(path), content);
            if (!isKept) await indexes.remove(plain.layerDigest);
            const file = cacheFile(directory, plain);
            await rot(file, places);
            const options = { layer: plain.layerDigest, repair: true, signal: never };
            const [check] = await layers.verifyCache(options);
            assert.equal(check?.damaged, isKept || mode === "fuse" ? 3 : 1);
            assert.equal(check?.repaired, check?.damaged);
            const bytes = await readFile(file);
            assert.equal(
              `sha256:${createHash("sha256").update(bytes).digest("hex")}`,
              plain.diffId,
            );
            await dropAll();
            assert.equal(await contentOf(path), content);
            assert.equal((await layers.status())[0]?.state, "complete");
            assert.equal((await layers.verifyCache(options))[0]?.damaged, 0);
          });
        },
      );
    }

    faultTest("layer-file-truncated", "whoever has it mounted reads it right", async () => {
      const directory = await sandbox.subdirectory(`short-${mode}`);
      await onNode(directory, { mode }, async ({ layers }) => {
        const { path } = await layers.mount(await layers.ensure(indexed));
        assert.equal(await contentOf(path), content);
        await truncate(cacheFile(directory, indexed), 5 * MiB);
        await dropAll();
        assert.equal(await contentOf(path), content);
        assert.ok(layers.counters.unreadableSpans > 0);
        assert.equal(layers.counters.readErrors, 0);
        await dropAll();
        assert.equal(await contentOf(path), content);
      });
    });

    faultTest("disk-read-error", "no reader notices", async () => {
      const directory = await sandbox.subdirectory(`failing-${mode}`);
      const cache = join(directory, "root/cache");
      const disk = await failingDisk(`failing-${mode}.ext4`, cache);
      await onNode(directory, { mode }, async ({ layers }) => {
        const { path } = await layers.mount(await layers.ensure(indexed));
        assert.equal(await contentOf(path), content);
        await run("sync", []);
        await disk.fail(cacheFile(directory, indexed));
        await dropAll();
        await assert.rejects(run("cat", [cacheFile(directory, indexed)]), "the disk fails");
        assert.equal(await contentOf(path), content);
        assert.ok(layers.counters.unreadableSpans > 0);
        assert.equal(layers.counters.readErrors, 0);
        await dropAll();
        assert.equal(await contentOf(path), content);
        const [check] = await layers.verifyCache({ repair: false, signal: never });
        assert.ok((check?.spans ?? 0) > 0);
        await dropAll();
        assert.equal(await contentOf(path), content);
        assert.equal(layers.counters.readErrors, 0);
      });
    });

    faultTest(
      "metadata-image-damaged",
      "it is made anew, from the archive and from the index",
      async () => {
        const directory = await sandbox.subdirectory(`image-${mode}`);
        await onNode(directory, { mode }, async ({ layers }) => {
          for (const target of [plain, indexed]) {
            const { path } = await layers.mount(await layers.ensure(target));
            const meta = join(directory, "root/meta");
            const name = (await readdir(meta)).find((one) =>
              one.startsWith(digestKey(target.layerDigest)),
            );
            const image = join(meta, name ?? "none");
            const right = await readFile(image);
            await rot(image, [1500]);
            const options = { layer: target.layerDigest, repair: true, signal: never };
            const [check] = await layers.verifyCache(options);
            assert.equal(check?.image, "repaired");
            assert.deepEqual(await readFile(image), right);
            await dropAll();
            assert.equal(await contentOf(path), content);
            assert.equal((await layers.verifyCache(options))[0]?.image, "right");
          }
        });
      },
    );

    test("layers are checked and repaired by themselves now and then", async () => {
      const directory = await sandbox.subdirectory(`scrub-${mode}`);
      await onNode(directory, { mode }, async ({ layers }) => {
        const { path } = await layers.mount(await layers.ensure(plain));
        assert.equal(await contentOf(path), content);
      });
      await rot(cacheFile(directory, plain), places);
      const scrub = { intervalMs: 1, bytesPerSecond: 1000 * MiB };
      await onNode(directory, { mode, scrub }, async ({ layers }) => {
        const { path } = await layers.mount(await layers.ensure(plain));
        await until(() => layers.counters.repairedSpans >= 1, "the scrubber");
        await dropAll();
        assert.equal(await contentOf(path), content);
        assert.equal(layers.counters.damagedSpans, layers.counters.repairedSpans);
      });
    });
  });
}

test("a complete layer without an index that loses bytes is had again by whoever reads it", async () => {
  const directory = await sandbox.subdirectory("recovered");
  await onNode(directory, { mode: "fuse" }, async ({ layers, indexes }) => {
    await layers.ensure(plain);
    await indexes.settled();
  });
  await onNode(directory, { mode: "fuse" }, async ({ layers, indexes }) => {
    await indexes.remove(plain.layerDigest);
    const number = await layers.ensure(plain);
    const { path } = await layers.mount(number);
    await truncate(cacheFile(directory, plain), 5 * MiB);
    await dropAll();
    assert.equal(await contentOf(path), content);
    assert.equal(layers.counters.readErrors, 0);
  });
});

test("what has gone bad is an error while no one has it, and right again when someone does", async () => {
  const directory = await sandbox.subdirectory("no-tier");
  await onNode(directory, { mode: "fuse" }, async ({ layers }) => {
    const { path } = await layers.mount(await layers.ensure(indexed));
    assert.equal(await contentOf(path), content);
    await rot(cacheFile(directory, indexed), places);
    registry.interfere((_, response) => {
      response.writeHead(503).end();
      return true;
    });
    try {
      const [check] = await layers.verifyCache({ repair: true, signal: never });
      assert.equal(check?.damaged, 3);
      assert.equal(check?.repaired, 0);
      await dropAll();
      await assert.rejects(run("sh", ["-c", `cat ${path}/f* > /dev/null`]));
    } finally {
      registry.interfere(undefined);
    }
    assert.equal(await contentOf(path), content);
  });
});

/** A file system in a file, mounted at `directory`, that can begin to fail. */
async function failingDisk(name: string, directory: string) {
  const image = sandbox.path(name);
  await writeFile(image, "");
  await truncate(image, 160 * MiB);
  // All that is not the contents of files lies before them.
  const layout = ["-O", "^has_journal", "-E", "packed_meta_blocks=1"];
  await run("mkfs.ext4", ["-q", "-m", "0", ...layout, image]);
  await mkdir(directory, { recursive: true });
  await run("mount", ["-o", "loop", image, directory]);
  sandbox.onClose(name, async () => {
    await run("umount", [directory]);
  });
  return {
    /** From now on nothing is read or written beyond the middle of what a file takes. */
    async fail(path: string): Promise<void> {
      const extents = await run("filefrag", ["-v", "-b1024", path]);
      const starts = [...extents.matchAll(/^\s*\d+:\s+\d+\.\.\s*\d+:\s+(\d+)\.\.\s*(\d+):/gm)];
      const first = Math.min(...starts.map((match) => Number(match[1])));
      const last = Math.max(...starts.map((match) => Number(match[2])));
      assert.ok(Number.isFinite(first) && last > first, extents);
      await truncate(image, Math.floor((first + last) / 8) * 4096);
      const device = (await run("losetup", ["-j", image])).split(":")[0] ?? "";
      await run("losetup", ["-c", device]);
    },
  };
}
