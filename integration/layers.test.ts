/** Layers over the real kernel and a real registry, in both ways of mounting. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import {
  copyFile,
  mkdir,
  readdir,
  readFile,
  readlink,
  rm,
  symlink,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { digestKey, type Digest } from "../src/base/digest.ts";
import { run } from "./harness/command.ts";
import type { Compressor } from "./harness/image.ts";
import { startRegistry, type TestRegistry } from "./harness/registry.ts";
import { Sandbox } from "./harness/sandbox.ts";
import { until } from "./harness/until.ts";
import { sha256 } from "./indexed-layer.ts";
import { openNode, withNode, type LayerNode, type NodeSettings } from "./layer-node.ts";
import { pushLayer } from "./layer-target.ts";

const listing = join(import.meta.dirname, "tree-listing.ts");

let sandbox: Sandbox;
let registry: TestRegistry;
/** What is in the layer. */
let source: string;
let tarFile: string;

before(async () => {
  sandbox = await Sandbox.create();
  registry = await startRegistry(sandbox);
  source = await sandbox.subdirectory("source");
  await mkdir(join(source, "etc"));
  await writeFile(join(source, "etc/os-release"), "NAME=test\n");
  await symlink("os-release", join(source, "etc/link"));
  for (let at = 0; at < 300; at++) {
    const directory = join(source, `usr/d${at % 20}`);
    await mkdir(directory, { recursive: true });
    await writeFile(join(directory, `f${at}`), randomBytes(at * 37));
  }
  // Half of it compresses, so that compressed and uncompressed offsets differ.
  const large = Buffer.concat([randomBytes(12 << 20), Buffer.alloc(12 << 20, "text ")]);
  await writeFile(join(source, "usr/large"), large);
  tarFile = sandbox.path("layer.tar");
  await run("tar", ["-C", source, "--sort=name", "--format=pax", "-cf", tarFile, "."]);
});
after(() => sandbox?.close());

/** Pushes the layer under a name, with a published index or without. */
async function push(name: string, index: boolean, compressor: Compressor = "gzip -6") {
  const directory = await sandbox.subdirectory(`image-${name}`);
  const copy = join(directory, "layer.tar");
  await copyFile(tarFile, copy);
  return pushLayer(copy, { registry, name, compressor, ...(index && { spanBytes: 1 << 20 }) });
}

/** Runs `work` on a node of its own. */
async function onNode(
  name: string,
  settings: NodeSettings,
  work: (node: LayerNode, directory: string) => Promise<void>,
): Promise<void> {
  const directory = await sandbox.subdirectory(name);
  await withNode(directory, settings, (node) => work(node, directory));
}

/** Compares two trees as another process sees them: this one serves one and must not read it. */
async function assertSameTree(actual: string, expected: string): Promise<void> {
  const [found, wanted] = await Promise.all(
    [actual, expected].map(async (path) =>
      (await run(process.execPath, [listing, path])).split("\n"),
    ),
  );
  assert.deepEqual(
    found?.filter((line) => wanted?.includes(line) !== true).slice(0, 3),
    [],
    "lines that should not be there",
  );
  assert.equal(found?.length, wanted?.length);
}

async function mountsBelow(directory: string): Promise<string[]> {
  const table = await readFile("/proc/self/mountinfo", "utf8");
  return table.split("\n").filter((line) => line.includes(`${directory}/root/l/`));
}

for (const mode of ["erofs", "fuse"] as const) {
  describe(`layers mounted with ${mode}`, () => {
    test("a lazy layer equals the unpacked one, and little is fetched for little", async () => {
      const target = await push(`lazy-${mode}`, true);
      await onNode(`lazy-${mode}`, { mode }, async ({ layers, session }) => {
        registry.reset();
        const number = await layers.ensure(target);
        const { path, opaqueRoot } = await layers.mount(number);
        assert.equal(opaqueRoot, false);
        assert.equal(await run("cat", [join(path, "etc/os-release")]), "NAME=test");
        const bytes = registry.blobBytes();
        assert.ok(bytes < target.compressedSize * 0.1, `${bytes} of ${target.compressedSize}`);
        const before = session.requestCounts();
        await run("find", [path]);
        const after = session.requestCounts();
        if (mode === "erofs") assert.deepEqual(after, before, "metadata is the kernel's");
        await assertSameTree(path, source);
        const root = await layers.rootOf(number);
        const shown = await run("stat", ["-c", "%f %u %g", path]);
        assert.equal(shown, `${root.mode.toString(16)} ${root.uid} ${root.gid}`);
        assert.equal(layers.counters.readErrors, 0);
        assert.equal(
          await sha256(join(path, "usr/large")),
          await sha256(join(source, "usr/large")),
        );
      });
    });

    test("the background fill completes a layer, and new mounts use the local file", async () => {
      const target = await push(`fill-${mode}`, true);
      await onNode(`fill-${mode}`, { mode, backgroundFillDelayMs: 0 }, async (node) => {
        const { layers, session } = node;
        const number = await layers.ensure(target);
        const first = await layers.mount(number);
        await until(() => layers.counters.completed === 1, "the fill");
        assert.equal(await run("cat", [join(first.path, "etc/os-release")]), "NAME=test");
        const { path } = await layers.mount(number);
        assert.equal(path, first.path);
        const before = session.requestCounts()["READ"] ?? 0;
        registry.reset();
        await assertSameTree(path, source);
        assert.equal(registry.requests.length, 0);
        if (mode === "erofs") assert.equal(session.requestCounts()["READ"] ?? 0, before);
        const { bytes, inodes } = await layers.usage(number);
        assert.ok(bytes > 20 << 20 && inodes > 300, `${bytes} bytes, ${inodes} inodes`);
      });
    });

    test("a layer without an index is pulled whole, and its index kept", async () => {
      const target = await push(`whole-${mode}`, false, "pigz");
      await onNode(`whole-${mode}`, { mode }, async ({ layers, indexes }) => {
        const [number, again] = await Promise.all([layers.ensure(target), layers.ensure(target)]);
        assert.equal(number, again);
        assert.equal(layers.counters.wholePulls, 1);
        const { path } = await layers.mount(number);
        await assertSameTree(path, source);
        const index = await indexes.open(target.layerDigest);
        assert.ok(index !== undefined);
        await index.close();
      });
    });

    test("after a restart layers keep number and bytes, and dead mounts are replaced", async () => {
      const target = await push(`restart-${mode}`, true);
      const directory = await sandbox.subdirectory(`restart-${mode}`);
      const first = await openNode(directory, { mode });
      const number = await first.layers.ensure(target);
      await sha256(join((await first.layers.mount(number)).path, "usr/large"));
      await first.die();

      const second = await openNode(directory, { mode });
      try {
        assert.deepEqual(await mountsBelow(directory), [], "nothing can answer the old mount");
        assert.equal(await second.layers.ensure(target), number);
        const { path } = await second.layers.mount(number);
        registry.reset();
        assert.equal(
          await sha256(join(path, "usr/large")),
          await sha256(join(source, "usr/large")),
        );
        assert.ok(registry.blobBytes() < 2 << 20, "what was fetched before is still there");
        await assertSameTree(path, source);
      } finally {
        await second.close();
      }
    });

    test("releasing a layer leaves nothing but its index", async () => {
      const target = await push(`release-${mode}`, true);
      await onNode(`release-${mode}`, { mode }, async ({ layers, indexes }, directory) => {
        const number = await layers.ensure(target);
        const { path } = await layers.mount(number);
        await run("cat", [join(path, "etc/os-release")]);
        await indexes.settled();
        await layers.release(number);
        assert.deepEqual(await mountsBelow(directory), []);
        for (const place of ["cache", "meta", "l"]) {
          assert.deepEqual(await readdir(join(directory, "root", place)), [], place);
        }
        await assert.rejects(layers.mount(number), { code: "ARGUMENT_INVALID" });
        registry.reset();
        const next = await layers.ensure(target);
        assert.notEqual(next, number, "numbers are not used again");
        assert.equal(registry.requests.length, 0, "the kept index is enough");
      });
    });

    test("a layer that is asked for while it is being made ready is not let go", async () => {
      const target = await push(`wanted-${mode}`, true);
      await onNode(`wanted-${mode}`, { mode }, async ({ layers }) => {
        const number = await layers.ensure(target);
        const again = layers.ensure(target, new AbortController().signal);
        const released = layers.release(number);
        assert.equal(await again, number);
        await released;
        const { path } = await layers.mount(number);
        assert.equal(await run("cat", [join(path, "etc/os-release")]), "NAME=test");
      });
    });
  });
}

for (const [kind, content] of Object.entries({
  "of no bytes": Buffer.alloc(0),
  "of end blocks only": Buffer.alloc(10_240),
})) {
  for (const mode of ["erofs", "fuse"] as const) {
    test(`an empty layer ${kind} is an empty directory with ${mode}`, async () => {
      const name = `empty-${content.length}-${mode}`;
      const file = join(await sandbox.subdirectory(name), "layer.tar");
      await writeFile(file, content);
      const target = await pushLayer(file, { registry, name, compressor: "gzip -6" });
      await onNode(name, { mode, backgroundFillDelayMs: 0 }, async ({ layers }) => {
        const number = await layers.ensure(target);
        const { path } = await layers.mount(number);
        assert.equal(await run("ls", ["-A", path]), "");
      });
    });
  }
}

test("a mount of a complete layer survives a restart", async () => {
  const target = await push("adopt", false);
  const directory = await sandbox.subdirectory("adopt");
  const first = await openNode(directory, { mode: "erofs" });
  const number = await first.layers.ensure(target);
  await first.layers.mount(number);
  const mounts = await mountsBelow(directory);
  assert.equal(mounts.length, 1);
  await first.die();
  const second = await openNode(directory, { mode: "erofs" });
  try {
    const { path } = await second.layers.mount(number);
    assert.deepEqual(await mountsBelow(directory), mounts, "it is the same mount");
    await assertSameTree(path, source);
  } finally {
    await second.close();
  }
  assert.deepEqual(await mountsBelow(directory), []);
});

test("a layer that is made ready anew from another blob leaves nothing of the first on disk", async () => {
  const target = await push("first-blob", true);
  const other = await push("second-blob", true, "gzip -1");
  const directory = await sandbox.subdirectory("blobs");
  const first = await openNode(directory, { mode: "erofs" });
  const number = await first.layers.ensure(target);
  await sha256(join((await first.layers.mount(number)).path, "usr/large"));
  await first.close();
  const root = join(directory, "root");
  for (const place of ["index", "meta"]) await rm(join(root, place), { recursive: true });
  const second = await openNode(directory, { mode: "erofs" });
  try {
    assert.equal(await second.layers.ensure(other), number);
    await assertSameTree((await second.layers.mount(number)).path, source);
    for (const place of ["cache", "meta"]) {
      const names = await readdir(join(root, place));
      assert.ok(names.length > 0);
      assert.deepEqual(
        names.filter((name) => !name.startsWith(digestKey(other.layerDigest))),
        [],
        place,
      );
    }
  } finally {
    await second.close();
  }
});

test("nothing of other blobs stays open when a layer is let go", async () => {
  const target = await push("open-blob", true);
  const other = await push("open-other", true, "gzip -1");
  const directory = await sandbox.subdirectory("open");
  const node = await openNode(directory, { mode: "erofs" });
  try {
    const number = await node.layers.ensure(target);
    await node.layers.ensure(other);
    const { path } = await node.layers.mount(number);
    registry.interfere((request, response) => {
      if (request.url?.startsWith("/v2/open-blob/blobs/") !== true) return false;
      response.writeHead(404).end("{}");
      return true;
    });
    assert.equal(await sha256(join(path, "usr/large")), await sha256(join(source, "usr/large")));
    await node.indexes.settled();
    const index = join(directory, "root/index");
    assert.ok((await openBelow(index)).includes(join(index, digestKey(other.layerDigest))));
    await node.layers.release(number);
    assert.deepEqual(await openBelow(index), []);
  } finally {
    registry.interfere(undefined);
    await node.close();
  }
});

/** Files below a directory that this process has open. */
async function openBelow(directory: string): Promise<string[]> {
  const names = await readdir("/proc/self/fd");
  const paths = names.map((name) => readlink(`/proc/self/fd/${name}`).catch(() => ""));
  return (await Promise.all(paths)).filter((path) => path.startsWith(directory));
}

test("when a registry has lost a layer, another repository and another blob stand in", async () => {
  const target = await push("lost", true);
  const copy = { ...(await push("copy", false)), layerDigest: target.layerDigest };
  const other = await push("other", true, "gzip -1");
  assert.notEqual(other.layerDigest, target.layerDigest);
  await onNode("lost", { mode: "erofs" }, async ({ layers }) => {
    const number = await layers.ensure(target);
    assert.equal(await layers.ensure({ ...target, repositories: copy.repositories }), number);
    assert.equal(await layers.ensure(other), number, "the same diffID is the same layer");
    const { path } = await layers.mount(number);
    const gone = new Set(["lost"]);
    registry.interfere((request, response) => {
      const [, , name] = (request.url ?? "").split("/");
      if (!gone.has(name ?? "")) return false;
      response.writeHead(404).end("{}");
      return true;
    });
    try {
      assert.equal(await run("cat", [join(path, "etc/os-release")]), "NAME=test");
      gone.add("copy");
      assert.equal(await sha256(join(path, "usr/large")), await sha256(join(source, "usr/large")));
      assert.ok((layers.counters.sources.get("alternate")?.spans ?? 0) > 0);
      gone.add("other");
      await assert.rejects(run("sh", ["-c", `cat ${path}/usr/d*/* > /dev/null`]));
    } finally {
      registry.interfere(undefined);
    }
    await assertSameTree(path, source);
  });
});

test("bytes that the registry damages never reach a reader", async () => {
  const target = await push("damaged", true);
  await onNode("damaged", { mode: "erofs" }, async ({ layers }) => {
    const number = await layers.ensure(target);
    const { path } = await layers.mount(number);
    registry.interfere((request, response) => {
      const [, first, last] = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "") ?? [];
      if (first === undefined || last === undefined) return false;
      const bytes = randomBytes(Number(last) - Number(first) + 1);
      const range = `bytes ${first}-${last}/${target.compressedSize}`;
      response.writeHead(206, { "content-range": range, "content-length": bytes.length });
      response.end(bytes);
      return true;
    });
    await assert.rejects(run("cat", [join(path, "usr/large")]));
    registry.interfere(undefined);
    assert.equal(await sha256(join(path, "usr/large")), await sha256(join(source, "usr/large")));
    assert.ok((layers.counters.sources.get("registry")?.corrupt ?? 0) > 0);
  });
});

test("a whole pull that is given up by everyone stops, and layers of other kinds are refused", async () => {
  const target = await push("given-up", false);
  await onNode("given-up", { mode: "erofs" }, async ({ layers }, directory) => {
    const held = Promise.withResolvers<void>();
    registry.interfere(async () => {
      await held.promise;
      return false;
    });
    const abort = new AbortController();
    const waiting = layers.ensure(target, abort.signal);
    abort.abort();
    await assert.rejects(waiting, { code: "ABORTED" });
    held.resolve();
    registry.interfere(undefined);
    assert.deepEqual(await readdir(join(directory, "root/cache")), []);
    await assert.rejects(
      layers.ensure({ ...target, mediaType: "application/vnd.oci.image.layer.v1.tar+zstd" }),
      { code: "LAYER_UNSUPPORTED" },
    );
    await assert.rejects(
      layers.ensure({ ...target, diffId: `sha256:${"0".repeat(64)}` as Digest }),
      { code: "CORRUPT_LAYER" },
    );
    assert.deepEqual(await readdir(join(directory, "root/cache")), []);
    const digest = createHash("sha256").update("nothing").digest("hex");
    await assert.rejects(
      layers.ensure({
        ...target,
        layerDigest: `sha256:${digest}` as Digest,
        diffId: `sha256:${digest}` as Digest,
      }),
      { code: "REGISTRY_NOT_FOUND" },
    );
  });
});
