/** Published indexes with an intact head of which the rest is wrong: what is read of their layers. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, open, readdir, rm, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { after, afterEach, before, describe, test } from "node:test";
import { pino } from "pino";
import { digestKey, digestOf } from "../src/base/digest.ts";
import type { LayerTarget } from "../src/layer/target.ts";
import { run } from "./harness/command.ts";
import { makeBase } from "./harness/fixtures.ts";
import { Sandbox } from "./harness/sandbox.ts";
import { assertNothingLeft, mountModes, startStage } from "./harness/stage.ts";
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
  layer.registry.interfere(undefined);
});
after(() => sandbox?.close());

interface TestNode extends LayerNode {
  /** How often the log says this. */
  said(text: string): number;
}

/** Opens a node that ends with the test. */
async function startNode(name: string, settings: NodeSettings): Promise<TestNode> {
  const lines: string[] = [];
  const log = pino({ level: "debug" }, { write: (line: string) => void lines.push(line) });
  const node = await openNode(await sandbox.subdirectory(name), { log, ...settings });
  let ended: Promise<void> | undefined;
  const close = () => (ended ??= node.close());
  undo.push(close);
  return { ...node, close, said: (wanted) => lines.filter((line) => line.includes(wanted)).length };
}

/** A container that has `small` and `large` of a mount open; reads them when it is told. */
function openReader(mount: string): { read: () => Promise<string> } {
  const script = `exec 3< ${mount}/small 4< ${mount}/large; read go; cat <&3; sha256sum <&4`;
  const process = spawn("sh", ["-c", script], { stdio: ["pipe", "pipe", "ignore"] });
  const exited = once(process, "exit");
  undo.push(async () => {
    process.stdin.end();
    await exited;
  });
  return {
    read: async () => {
      process.stdin.end("go\n");
      return text(process.stdout);
    },
  };
}

async function damagedWindows(): Promise<Buffer> {
  const { encoded, reader } = await rightIndex(layer);
  assert.ok(reader.sizes.windows > 0);
  return Buffer.from(encoded).fill(0xff, encoded.length - reader.sizes.windows);
}

/** The digests of all spans but the first. */
function damageSpans({ head, ...rest }: IndexParts): IndexParts {
  const spans = head.spans.map((span, at) =>
    at === 0 ? span : { ...span, digest: digestOf(Buffer.from(`${at}`)) },
  );
  return { ...rest, head: { ...head, spans } };
}

function withFile(name: string, change: Partial<IndexParts["entries"][number]>) {
  return ({ entries, ...rest }: IndexParts): IndexParts => ({
    ...rest,
    entries: entries.map((entry) =>
      entry.path.toString() === name ? { ...entry, ...change } : entry,
    ),
  });
}

const lyingMode = withFile("small", { mode: 0o4777 });
/** `small` shows the beginning of `large`. */
const lyingOffset = (parts: IndexParts): IndexParts => {
  const large = parts.entries.find(({ path }) => path.toString() === "large");
  const archiveOffset = large?.extents[0]?.archiveOffset ?? assert.fail();
  const extents = [{ fileOffset: 0, archiveOffset, length: 6 }];
  return withFile("small", { extents })(parts);
};
/** A file beyond the end of the layer. */
const brokenTable = withFile("small", {
  extents: [{ fileOffset: 0, archiveOffset: 2 ** 30, length: 6 }],
});

/** From now on whatever is asked of a blob is answered with other bytes. */
function ruin({ layerDigest, compressedSize }: LayerTarget): void {
  layer.registry.interfere((request, response) => {
    if (request.url?.endsWith(`/blobs/${layerDigest}`) !== true) return false;
    const [, from, to] = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "") ?? [];
    const [first, last] = [Number(from ?? 0), Number(to ?? compressedSize - 1)];
    response.writeHead(from === undefined ? 200 : 206, {
      "content-range": `bytes ${first}-${last}/${compressedSize}`,
      "content-length": last - first + 1,
    });
    response.end(Buffer.alloc(last - first + 1, 0xee));
    return true;
  });
}

/** Writes other bytes to a file of a node. */
async function damage(name: string, file: string, offset: number, length: number): Promise<void> {
  const opened = await open(sandbox.path(name, "root", file), "r+");
  await opened.write(Buffer.alloc(length, 0xaa), 0, length, offset);
  await opened.sync();
  await opened.close();
}

const damages = {
  windows: damagedWindows,
  "span digests": () => wrongIndex(layer, damageSpans),
};
const lies = {
  "the mode of a file": lyingMode,
  "where the bytes of a file are": lyingOffset,
};

for (const mode of mountModes) {
  describe(`with ${mode}`, () => {
    for (const [what, makeIndex] of Object.entries(damages)) {
      const name = `${mode}-${what.replace(" ", "-")}`;

      test(`an index with damaged ${what} costs a whole pull; who reads waits, and reads on`, async () => {
        const target = await layer.push(name, [await makeIndex()]);
        const node = await startNode(name, { mode });
        const number = await node.layers.ensure(target);
        assert.equal(node.layers.counters.wholePulls, 0);
        const { path } = await node.layers.mount(number);
        const container = openReader(path);
        const readers = Array.from({ length: 4 }, () => sha256(join(path, "large")));
        assert.deepEqual(new Set(await Promise.all(readers)), new Set([layer.large]));
        assert.equal(await container.read(), `small\n${layer.large}  -\n`);
        const { counters } = node.layers;
        assert.equal(counters.recoveries, 1);
        assert.equal(counters.wholePulls, 1);
        assert.equal(counters.readErrors, 0);
        assert.equal(counters.recoveryErrors + counters.mismatches, 0);
        assert.equal(node.said("pulled whole, and goes on"), 1);
        assert.equal(await node.layers.ensure(target), number);
        assert.equal(
          await sha256(join((await node.layers.mount(number)).path, "large")),
          layer.large,
        );

        // It is not asked for once more by whoever wants the layer next.
        await node.layers.releaseUnused([]);
        layer.registry.reset();
        const again = await node.layers.ensure(target);
        assert.equal(
          await sha256(join((await node.layers.mount(again)).path, "large")),
          layer.large,
        );
        assert.equal(counters.recoveries, 1);
      });

      test(`an index with damaged ${what} is found out by the background fill`, async () => {
        const target = await layer.push(`${name}-fill`, [await makeIndex()]);
        const node = await startNode(`${name}-fill`, { mode, backgroundFillDelayMs: 100 });
        const number = await node.layers.ensure(target);
        const { path } = await node.layers.mount(number);
        const container = openReader(path);
        await until(() => node.layers.counters.recoveries === 1, "the recovery");
        assert.equal(await container.read(), `small\n${layer.large}  -\n`);
        assert.equal(node.layers.counters.wholePulls, 1);
        assert.equal(node.layers.counters.readErrors, 0);
      });
    }

    for (const [what, change] of Object.entries(lies)) {
      const name = `${mode}-${what.replaceAll(" ", "-")}`;

      test(`an index that lies about ${what} alone is found out by the background fill`, async () => {
        const target = await layer.push(name, [await wrongIndex(layer, change)]);
        const node = await startNode(name, { mode, backgroundFillDelayMs: 100 });
        const number = await node.layers.ensure(target);
        const { path } = await node.layers.mount(number);
        let anew = path;
        await until(async () => (anew = (await node.layers.mount(number)).path) !== path, "it");
        assert.equal(await run("cat", [join(anew, "small")]), "small");
        assert.equal(await run("stat", ["-c", "%a", join(anew, "small")]), "644");
        assert.equal(await sha256(join(anew, "large")), layer.large);
        assert.equal(node.layers.counters.mismatches, 1);
        assert.equal(node.said("the files of the layer are not what its index says"), 1);
      });

      test(`a damaged index that lies about ${what} fails its mount, and is right in the next`, async () => {
        const wrong = (parts: IndexParts) => change(damageSpans(parts));
        const target = await layer.push(`${name}-damaged`, [await wrongIndex(layer, wrong)]);
        const node = await startNode(`${name}-damaged`, { mode });
        const number = await node.layers.ensure(target);
        const { path } = await node.layers.mount(number);
        await assert.rejects(sha256(join(path, "large")));
        await until(async () => (await node.layers.mount(number)).path !== path, "letting it go");
        const { path: anew } = await node.layers.mount(number);
        assert.equal(await run("cat", [join(anew, "small")]), "small");
        assert.equal(await run("stat", ["-c", "%a", join(anew, "small")]), "644");
        assert.equal(await sha256(join(anew, "large")), layer.large);
        assert.equal(node.layers.counters.wholePulls, 1);
        assert.equal(node.layers.counters.mismatches, 1);
        assert.equal(node.layers.counters.recoveries, 0);
      });
    }

    test("an index without a file table that can be used gives way to a whole pull", async () => {
      const name = `${mode}-table`;
      const target = await layer.push(name, [await wrongIndex(layer, brokenTable)]);
      const node = await startNode(name, { mode });
      const { path } = await node.layers.mount(await node.layers.ensure(target));
      assert.equal(await run("cat", [join(path, "small")]), "small");
      assert.equal(await sha256(join(path, "large")), layer.large);
      assert.equal(node.layers.counters.wholePulls, 1);
      assert.equal(node.said("the file table of a layer index is of no use"), 1);
    });

    test("a layer that cannot be recovered fails its reads, is not pulled for each, and may come back", async () => {
      const name = `${mode}-gone`;
      const target = await layer.push(name, [(await rightIndex(layer)).encoded]);
      const node = await startNode(name, { mode });
      const { path } = await node.layers.mount(await node.layers.ensure(target));
      await node.indexes.settled();
      ruin(target);
      const { counters } = node.layers;
      await assert.rejects(sha256(join(path, "large")));
      assert.ok(counters.readErrors > 0);
      assert.ok(node.said("a read of a layer failed") > 0);
      assert.equal(counters.recoveryErrors, 1);
      assert.equal(counters.wholePullErrors, 1);
      await assert.rejects(sha256(join(path, "large")));
      assert.equal(counters.wholePullErrors, 1, "it is not tried again at once");
      layer.registry.interfere(undefined);
      assert.equal(await sha256(join(path, "large")), layer.large);
      assert.equal(counters.wholePulls, 0, "its index was right");
    });

    test("who is killed while the layer is pulled whole ends at once; the pull goes on", async () => {
      const name = `${mode}-killed`;
      const target = await layer.push(name, [await damagedWindows()]);
      const node = await startNode(name, { mode });
      const { path } = await node.layers.mount(await node.layers.ensure(target));
      const gate = Promise.withResolvers<void>();
      undo.push(async () => gate.resolve());
      layer.registry.interfere(async (request) => {
        const isPull = node.said("it is pulled whole") > 0;
        if (isPull && request.url?.includes("/blobs/") === true) await gate.promise;
        return false;
      });
      const reader = spawn("sh", ["-c", `exec sha256sum ${join(path, "large")}`]);
      const exited = once(reader, "exit");
      await until(() => node.said("it is pulled whole") > 0, "the failure");
      reader.kill("SIGKILL");
      await exited;
      assert.equal(node.layers.counters.recoveries, 0);
      gate.resolve();
      assert.equal(await sha256(join(path, "large")), layer.large);
      assert.equal(node.layers.counters.recoveries, 1);
      assert.equal(node.layers.counters.wholePulls, 1);
    });

    test("containers read a layer with a damaged index, and the log tells of it", async () => {
      const name = `${mode}-containers`;
      const base = await makeBase(await sandbox.subdirectory(`${name}-base`));
      const wrong = await wrongIndex(layer, damageSpans);
      await layer.push(name, [wrong], { below: base.layers });
      const { registry } = layer;
      const stage = await startStage(sandbox, { generation: "2", mode, name, registry });
      undo.push(() => stage.clip.stop());
      undo.push(() => stage.containerd.close());
      undo.push(() => assertNothingLeft(stage));
      const ctr = (...args: string[]) => stage.containerd.ctr(args);
      const image = `${registry.host}/${name}:latest`;
      await ctr("image", "pull", "--plain-http", "--snapshotter", "clip", image);
      await ctr("run", "-d", "--snapshotter", "clip", image, "one", "sleep", "1000");
      const sums = ["1", "2"].map((id) =>
        ctr("task", "exec", "--exec-id", id, "one", "md5sum", "/large"),
      );
      const expected = (await run("md5sum", [sandbox.path("source", "large")])).slice(0, 32);
      for (const sum of await Promise.all(sums)) assert.equal(sum.slice(0, 32), expected);
      assert.equal(await ctr("task", "exec", "--exec-id", "3", "one", "cat", "/small"), "small");
      assert.match(stage.clip.log(), /a layer with a wrong index was pulled whole, and goes on/);
    });

    test("a layer whose blob is ruined goes on with another blob, under its number", async () => {
      const name = `${mode}-other`;
      const target = await layer.push(name, [(await rightIndex(layer)).encoded]);
      const other = await layer.push(`${name}-blob`, [], { blob: layer.other });
      const node = await startNode(name, { mode });
      const number = await node.layers.ensure(target);
      assert.equal(await node.layers.ensure(other), number);
      const { path } = await node.layers.mount(number);
      const container = openReader(path);
      ruin(target);
      assert.equal(await container.read(), `small\n${layer.large}  -\n`);
      assert.equal(node.layers.counters.recoveries, 1);
      assert.equal(node.layers.counters.wholePulls, 1);
      const [status] = await node.layers.status();
      assert.equal(status?.layerDigest, other.layerDigest);
      const { path: local } = await node.layers.mount(number);
      assert.equal(await sha256(join(local, "large")), layer.large);
    });

    test("a layer that has lost its index, and whose blob is ruined, is made ready of another", async () => {
      const name = `${mode}-lost`;
      const target = await layer.push(name, [(await rightIndex(layer)).encoded]);
      const other = await layer.push(`${name}-blob`, [], { blob: layer.other });
      const first = await startNode(name, { mode });
      const number = await first.layers.ensure(target);
      await first.layers.ensure(other);
      await first.layers.mount(number);
      await first.close();
      await rm(sandbox.path(name, "root/index"), { recursive: true });
      ruin(target);
      const second = await startNode(name, { mode, lookup: false });
      const { path } = await second.layers.mount(number);
      assert.equal(await run("cat", [join(path, "small")]), "small");
      assert.equal(await sha256(join(path, "large")), layer.large);
    });
  });
}

for (const mode of mountModes) {
  for (const state of ["complete", "lazy"] as const) {
    test(`with ${mode}, a ${state} layer is mounted whose kept index and metadata image are of no use`, async () => {
      const name = `${mode}-${state}-kept`;
      const target = await layer.push(name, [(await rightIndex(layer)).encoded]);
      const first = await startNode(name, { mode, lookup: state === "lazy" });
      const number = await first.layers.ensure(target);
      await first.indexes.settled();
      const kept = (await first.indexes.open(target.layerDigest)) ?? assert.fail();
      const { head, spans, files } = kept.sizes;
      await kept.close();
      await first.close();
      await damage(name, join("index", digestKey(target.layerDigest)), head + spans, files);
      await rm(sandbox.path(name, "root/meta"), { recursive: true });
      const second = await startNode(name, { mode });
      if (state === "complete") ruin(target);
      const { path } = await second.layers.mount(number);
      assert.equal(await run("cat", [join(path, "small")]), "small");
      assert.equal(await sha256(join(path, "large")), layer.large);
      assert.equal(second.layers.counters.wholePulls, 0);
    });
  }
}

test("a layer whose index has gone does not keep others from being served, and is read once it is there", async () => {
  const name = "resumed";
  const target = await layer.push(name, [(await rightIndex(layer)).encoded]);
  const node = await startNode(name, { mode: "erofs" });
  const { path } = await node.layers.mount(await node.layers.ensure(target));
  await node.indexes.settled();
  const gate = Promise.withResolvers<void>();
  undo.push(async () => gate.resolve());
  let requests = 0;
  const layers = await node.takeOver(async () => {
    await node.indexes.remove(target.layerDigest);
    layer.registry.interfere(async () => {
      requests++;
      await gate.promise;
      return false;
    });
  });
  const sum = sha256(join(path, "large"));
  await until(() => requests > 0, "the read");
  gate.resolve();
  assert.equal(await sum, layer.large);
  assert.equal(layers.counters.readErrors, 0);
});

test("a mounted layer that could not be served is served again by the next mount", async () => {
  const name = "served-again";
  const target = await layer.push(name, [(await rightIndex(layer)).encoded]);
  const node = await startNode(name, { mode: "erofs" });
  const number = await node.layers.ensure(target);
  const { path } = await node.layers.mount(number);
  await node.indexes.settled();
  const file = sandbox.path(name, "root/cache", digestKey(target.layerDigest));
  const layers = await node.takeOver(async () => {
    await rm(file);
    await mkdir(file);
  });
  assert.equal(node.said("a mounted layer cannot be served"), 1);
  await rmdir(file);
  assert.equal((await layers.mount(number)).path, path);
  assert.equal(await sha256(join(path, "large")), layer.large);
});

test("a read of a layer that is being let go does not bring it back", async () => {
  const name = "let-go";
  const target = await layer.push(name, []);
  const first = await startNode(name, { mode: "fuse" });
  const number = await first.layers.ensure(target);
  await first.close();
  const { layers, indexes } = await startNode(name, { mode: "fuse" });
  const encoded = await indexes.encoded(target.layerDigest);
  await indexes.remove(target.layerDigest);
  await layers.mount(number);
  await indexes.put(target.layerDigest, encoded ?? assert.fail());
  const released = layers.release(number);
  const { signal } = new AbortController();
  await new Promise<void>((resolve, reject) => {
    const reply = () => reject(new Error("the layer has gone"));
    const fail = () => resolve();
    layers.handleRead({ layer: number, offset: 0, length: 1, unique: 0n, signal, reply, fail });
  });
  await released;
  assert.deepEqual(await readdir(sandbox.path(name, "root/cache")), []);
});

test("with erofs, the file that the kernel reads is put right from a blob that comes lazily", async () => {
  const name = "device-other";
  const target = await layer.push(name, []);
  const { encoded } = await rightIndex({ layer: layer.other });
  const other = await layer.push(`${name}-blob`, [encoded], { blob: layer.other });
  const first = await startNode(name, { mode: "erofs" });
  const number = await first.layers.ensure(target);
  assert.equal(await first.layers.ensure(other), number);
  await first.close();
  await rm(sandbox.path(name, "root/index"), { recursive: true });
  const { layers } = await startNode(name, { mode: "erofs" });
  const { path } = await layers.mount(number);
  await damage(name, join("cache", digestKey(target.layerDigest)), 1 << 20, 2 << 20);
  ruin(target);
  const { signal } = new AbortController();
  const [check] = await layers.verifyCache({ repair: true, signal });
  assert.deepEqual([check?.damaged, check?.repaired], [1, 1]);
  assert.equal((await layers.status())[0]?.layerDigest, other.layerDigest);
  assert.equal(await sha256(join(path, "large")), layer.large);
});

test("with erofs, the file that the kernel reads is put right although the kept index is damaged", async () => {
  const name = "device";
  const { encoded, reader } = await rightIndex(layer);
  const target = await layer.push(name, [encoded]);
  const node = await startNode(name, { mode: "erofs", backgroundFillDelayMs: 100 });
  const number = await node.layers.ensure(target);
  const { path } = await node.layers.mount(number);
  await until(() => node.layers.counters.completed === 1, "the fill");
  await node.layers.mount(number);
  const key = digestKey(target.layerDigest);
  const { total, windows } = reader.sizes;
  await damage(name, join("index", key), total - windows, windows);
  await damage(name, join("cache", key), 1 << 20, 2 << 20);
  const { signal } = new AbortController();
  const [check] = await node.layers.verifyCache({ repair: true, signal });
  assert.ok(check !== undefined && check.damaged > check.repaired, "the index is of no use");
  await until(() => node.layers.counters.recoveries === 1, "the recovery");
  assert.equal(await sha256(join(path, "large")), layer.large);
});
