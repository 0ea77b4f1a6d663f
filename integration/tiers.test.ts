/** Several nodes, one content cache, one registry: who pays, who profits, and what may go wrong. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { mkdir, open, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { pino } from "pino";
import { digestKey } from "../src/base/digest.ts";
import type { ContentCache } from "../src/cache/content/content-cache.ts";
import { openContentCache, type MemberOptions } from "../src/cache/content/open.ts";
import type { ClusterOptions } from "../src/layer/cluster/cluster-options.ts";
import { sealIndex } from "../src/layer/cluster/sealed-index.ts";
import type { LayerTarget } from "../src/layer/target.ts";
import { s3Credentials, startS3, type TestServer } from "./content-cache-servers.ts";
import { killDaemon } from "./faults/daemon-faults.ts";
import { run } from "./harness/command.ts";
import { makeImage, makeLayer, pushImage, type ImageLayer } from "./harness/image.ts";
import { startRegistry, type TestRegistry } from "./harness/registry.ts";
import { Sandbox } from "./harness/sandbox.ts";
import { assertNothingLeft, mountModes, startStage } from "./harness/stage.ts";
import { wrongIndex } from "./indexed-layer.ts";
import { openNode, type LayerNode, type NodeSettings } from "./layer-node.ts";
import { targetOf } from "./layer-target.ts";

const fileCount = 12;
const fileBytes = 1 << 20;
const indexKeys = [randomBytes(32)];

let sandbox: Sandbox;
let registry: TestRegistry;
let target: LayerTarget;
let layer: ImageLayer;
let layerBytes: Buffer;
const sums = new Map<string, string>();
let undo: (() => Promise<void>)[] = [];
let names = 0;

before(async () => {
  sandbox = await Sandbox.create();
  registry = await startRegistry(sandbox);
  const source = await sandbox.subdirectory("source");
  for (let at = 0; at < fileCount; at++) {
    const bytes = randomBytes(fileBytes);
    await writeFile(path.join(source, `f${at}`), bytes);
    sums.set(`f${at}`, createHash("sha256").update(bytes).digest("hex"));
  }
  const tar = path.join(await sandbox.subdirectory("image"), "layer.tar");
  await run("tar", ["-C", source, "--sort=name", "-cf", tar, "."]);
  layerBytes = await readFile(tar);
  layer = await makeLayer(tar, "gzip -6");
  const image = makeImage([layer]);
  await pushImage(image, registry.host, "tiers");
  target = targetOf(image, registry, "tiers");
});
afterEach(async () => {
  for (const step of undo.toReversed()) await step();
  undo = [];
  registry.interfere(undefined);
});
after(() => sandbox?.close());

type LogLine = Record<string, unknown> & { msg: string };

interface TestNode extends LayerNode {
  lines: LogLine[];
  cache: ContentCache;
}

/** Starts a node that shares what it has through these caches. */
async function startNode(
  members: readonly MemberOptions[],
  {
    directory,
    sharing,
    ...settings
  }: NodeSettings & { directory?: string; sharing?: Partial<ClusterOptions> } = {},
): Promise<TestNode> {
  const cache = await openContentCache(members);
  const lines: LogLine[] = [];
  const write = (line: string) => void lines.push(JSON.parse(line) as LogLine);
  const node = await openNode(directory ?? (await sandbox.subdirectory(`node-${names++}`)), {
    log: pino({ level: "debug" }, { write }),
    cluster: {
      cache,
      members: members.map(({ kind, options }) => options.name ?? kind),
      keyDerivation: "layer-digest",
      indexKeys: [],
      store: true,
      hedgeMsMin: 50,
      hedgeMsMax: 2000,
      ...sharing,
    },
    ...settings,
  });
  let closed = false;
  const close = async () => {
    if (closed) return;
    closed = true;
    await node.close();
    await cache.close();
  };
  undo.push(close);
  return { ...node, lines, cache, close };
}

async function directoryCache(): Promise<MemberOptions & { path: string }> {
  const directory = await sandbox.subdirectory(`cache-${names++}`);
  return { kind: "directory", options: { path: directory }, path: directory };
}

async function s3Cache(
  secretAccessKey = s3Credentials.secretAccessKey,
): Promise<MemberOptions & { server: TestServer; path: string }> {
  const directory = await sandbox.subdirectory(`s3-${names++}`);
  const server = await startS3(directory);
  undo.push(() => server.service.stop());
  return { ...s3Member(server, secretAccessKey), server, path: path.join(directory, "data/clip") };
}

function s3Member(server: TestServer, secretAccessKey: string): MemberOptions {
  return {
    kind: "s3",
    options: {
      bucket: "clip",
      endpoint: `http://127.0.0.1:${server.port}`,
      pathStyle: true,
      credentials: { accessKeyId: s3Credentials.accessKeyId, secretAccessKey },
      attempts: 1,
    },
    limits: { callTimeoutMs: 1000 },
  };
}

async function until(condition: () => boolean | Promise<boolean>, what: string): Promise<void> {
  for (let tries = 0; !(await condition()); tries++) {
    if (tries === 400) assert.fail(`${what} took too long`);
    await sleep(50);
  }
}

/** Has a node pull the layer whole and share it. */
async function pay(node: TestNode): Promise<void> {
  await node.layers.ensure(target);
  assert.equal(node.layers.counters.wholePulls, 1);
  await untilStored(node);
}

function untilStored({ layers }: TestNode): Promise<void> {
  return until(() => layers.queues().stores === 0, "storing the layer");
}

async function mount({ layers }: TestNode): Promise<string> {
  return (await layers.mount(await layers.ensure(target))).path;
}

/** Reads files as another process, since this one serves them, and checks them. */
async function readFiles(directory: string, first = 0, end = fileCount): Promise<void> {
  for (let at = first; at < end; at++) {
    const sum = await run("sha256sum", [path.join(directory, `f${at}`)]);
    assert.equal(sum.slice(0, 64), sums.get(`f${at}`));
  }
}

function said({ lines }: TestNode, text: string): LogLine[] {
  return lines.filter(({ msg }) => msg.includes(text));
}

function tier({ layers }: TestNode, name = "content_cache") {
  return layers.counters.sources.get(name);
}

function layerFile(directory: string): string {
  return path.join(directory, `${digestKey(target.layerDigest)}.layer`);
}

/** Damages a file at each of its mebibytes. */
async function damage(file: string): Promise<void> {
  const handle = await open(file, "r+");
  const { size } = await handle.stat();
  for (let at = 70_000; at < size; at += 1 << 19) await handle.write("damaged", at);
  await handle.close();
}

for (const [kind, makeCache] of [
  ["a directory", directoryCache],
  ["s3", s3Cache],
] as const) {
  describe(`nodes that share ${kind}`, () => {
    test("the second node takes nothing of a layer from the registry", async () => {
      const cache = await makeCache();
      const first = await startNode([cache]);
      await pay(first);
      assert.equal(said(first, "storing decompressed layer").length, 1);
      const [stored] = said(first, "successfully stored decompressed layer");
      assert.equal(stored?.["layer"], target.layerDigest);
      assert.equal(stored?.["cacheKey"], digestKey(target.layerDigest));
      assert.equal(stored?.["bytes"], layerBytes.length);

      registry.reset();
      const second = await startNode([cache], { backgroundFillDelayMs: 60_000 });
      const directory = await mount(second);
      await readFiles(directory, 5, 6);
      assert.ok((tier(second)?.bytes ?? 0) < 6 << 20, "it is lazy");
      await readFiles(directory);
      assert.equal(second.layers.counters.wholePulls, 0);
      assert.ok(registry.blobBytes() <= 1, `${registry.blobBytes()} bytes of the registry`);
      const hit = said(second, "content cache hit")[0];
      for (const field of ["layer", "cacheKey", "offset", "length", "bytes", "durationMs"]) {
        assert.ok(hit?.[field] !== undefined, field);
      }
    });

    test("the cache dies in the middle and comes back", async () => {
      const cache = await makeCache();
      await pay(await startNode([cache]));
      const second = await startNode([cache], { backgroundFillDelayMs: 60_000 });
      const directory = await mount(second);
      await readFiles(directory, 0, 2);
      const revive = await kill(cache);
      await readFiles(directory, 2, 4);
      assert.ok((tier(second)?.errors ?? 0) > 0);
      assert.ok((tier(second, "registry")?.spans ?? 0) > 0);
      assert.ok(said(second, "a span could not be fetched").length > 0);
      await revive();
      await sleep(3000);
      const before = tier(second)?.spans ?? 0;
      await readFiles(directory, 8);
      assert.ok((tier(second)?.spans ?? 0) > before, "it is used again");
      assert.equal(second.layers.counters.readErrors, 0);
    });

    test("two nodes store the same layer at once", async () => {
      const cache = await makeCache();
      const nodes = await Promise.all([startNode([cache]), startNode([cache])]);
      await Promise.all(nodes.map((node) => node.layers.ensure(target)));
      await Promise.all(nodes.map(untilStored));
      for (const { layers } of nodes) {
        const { stored, alreadyStored, storeErrors } = layers.clusterCounters ?? assert.fail();
        assert.equal(stored + alreadyStored, layers.counters.wholePulls);
        assert.equal(storeErrors, 0);
      }
      assert.ok((await readFile(layerFile(cache.path))).equals(layerBytes));
    });
  });
}

/** Makes a cache unreachable; what is returned brings it back. */
async function kill(cache: { path: string; server?: TestServer }): Promise<() => Promise<void>> {
  const { server } = cache;
  if (server === undefined) {
    await run("mv", [cache.path, `${cache.path}.gone`]);
    return async () => void (await run("mv", [`${cache.path}.gone`, cache.path]));
  }
  await server.service.stop();
  return async () => {
    const again = await startS3(path.dirname(path.dirname(cache.path)), server.port);
    undo.push(() => again.service.stop());
  };
}

describe("a node of a cluster with a key", () => {
  const sharing = { indexKeys };

  test("needs no registry at all", async () => {
    const cache = await directoryCache();
    await pay(await startNode([cache], { sharing }));
    await registry.stop();
    try {
      const second = await startNode([cache], { sharing });
      await readFiles(await mount(second));
      assert.ok(said(second, "the layer is ready")[0]?.["origin"] === "signed index");
    } finally {
      await registry.start();
    }
  });

  test("does not use an index that is not signed, and replaces it", async () => {
    const cache = await directoryCache();
    await pay(await startNode([cache]));
    const second = await startNode([cache], { sharing });
    await pay(second);
    assert.equal(second.layers.clusterCounters?.indexesRefused, 1);
    await readFiles(await mount(second));
    const third = await startNode([cache], { sharing });
    await readFiles(await mount(third));
    assert.equal(third.layers.counters.wholePulls, 0);
  });
});

describe("a content cache", () => {
  test("with wrong bytes is found out and repaired", async () => {
    const cache = await directoryCache();
    await pay(await startNode([cache]));
    await damage(layerFile(cache.path));
    const second = await startNode([cache], { backgroundFillDelayMs: 500 });
    await readFiles(await mount(second));
    assert.ok((tier(second)?.corrupt ?? 0) > 0);
    assert.equal(second.layers.clusterCounters?.quarantined, 1);
    assert.equal(said(second, "wrong bytes of a layer").length, 1);
    await until(() => second.layers.clusterCounters?.repaired === 1, "the repair");
    assert.ok((await readFile(layerFile(cache.path))).equals(layerBytes));
    assert.equal(second.layers.counters.readErrors, 0);
  });

  test("that has lost the end of a layer is found out", async () => {
    const cache = await directoryCache();
    await pay(await startNode([cache]));
    await run("truncate", ["-s", "3000000", layerFile(cache.path)]);
    const second = await startNode([cache], { backgroundFillDelayMs: 60_000 });
    await readFiles(await mount(second));
    assert.equal(second.layers.clusterCounters?.quarantined, 1);
    assert.equal(second.layers.counters.readErrors, 0);
  });

  test("that loses its keys is a miss", async () => {
    const cache = await directoryCache();
    await pay(await startNode([cache]));
    const second = await startNode([cache], { backgroundFillDelayMs: 60_000 });
    const directory = await mount(second);
    await readFiles(directory, 0, 2);
    await rm(layerFile(cache.path));
    await readFiles(directory, 2);
    assert.ok((tier(second)?.misses ?? 0) > 0);
    assert.equal(tier(second)?.errors, 0);
    assert.ok(said(second, "content cache miss - will decompress from OCI").length > 0);
  });

  test("that is slow is overtaken by the registry", async () => {
    const cache = await directoryCache();
    await pay(await startNode([cache]));
    const slow = await openContentCache([cache]);
    const read = slow.read.bind(slow);
    let delayMs = 0;
    slow.read = async (key, offset, bytes, options = {}) => {
      await sleep(delayMs, undefined, options.signal && { signal: options.signal });
      return read(key, offset, bytes, options);
    };
    const sharing = { cache: slow, hedgeMsMax: 200 };
    const second = await startNode([cache], { backgroundFillDelayMs: 60_000, sharing });
    const directory = await mount(second);
    delayMs = 20_000;
    await readFiles(directory, 0, 2);
    assert.ok((tier(second, "registry")?.spans ?? 0) > 0);
    assert.equal(second.layers.counters.readErrors, 0);
    await second.close();
    await slow.close();
  });

  test("that is full keeps nobody from anything", async () => {
    const cache = await directoryCache();
    await run("mount", ["-t", "tmpfs", "-o", "size=4m", "tmpfs", cache.path]);
    undo.push(async () => void (await run("umount", [cache.path])));
    const first = await startNode([cache]);
    await readFiles(await mount(first));
    await until(() => said(first, "FAILED to store layer").length > 0, "the failure");
    const [failed] = said(first, "FAILED to store layer");
    assert.match(String(failed?.["error"]), /full|space/i);
    assert.ok(Number(failed?.["retryMs"]) > 0, "it is tried again");
    assert.ok((first.layers.clusterCounters?.storeErrors ?? 0) > 0);
    const names = await readdir(path.join(cache.path, ".incoming"));
    assert.deepEqual(names, [], "nothing partial is left");
    await first.close();
  });

  test("that refuses the credentials is passed over", async () => {
    const good = await s3Cache();
    await pay(await startNode([good]));
    const bad = s3Member(good.server, "not the secret");
    const second = await startNode([bad]);
    await readFiles(await mount(second));
    await until(() => said(second, "FAILED to store layer").length > 0, "the failure");
    assert.ok(!JSON.stringify(second.lines).includes("not the secret"));
    assert.equal(second.layers.counters.wholePulls, 1);
    assert.equal(second.layers.counters.readErrors, 0);
  });

  test("gets what a node had to store when it stopped", async () => {
    const cache = await directoryCache();
    const directory = await sandbox.subdirectory(`node-${names++}`);
    const sharing = { storeBytesPerSecond: 1 << 20 };
    const first = await startNode([cache], { directory, sharing });
    await mount(first);
    await until(() => said(first, "store of decompressed layer started").length > 0, "the start");
    await first.close();
    await assert.rejects(stat(layerFile(cache.path)), { code: "ENOENT" });
    const again = await startNode([cache], { directory });
    await untilStored(again);
    assert.ok((await readFile(layerFile(cache.path))).equals(layerBytes));
  });

  test("with an index that lies misleads a node for no longer than it takes to fill it", async () => {
    const cache = await directoryCache();
    const forger = await sandbox.subdirectory(`forger-${names++}`);
    await pay(await startNode([cache], { directory: forger }));
    await forge(cache.path);
    const directory = await sandbox.subdirectory(`node-${names++}`);
    const settings = { directory, backgroundFillDelayMs: 100 };
    const second = await startNode([cache], settings);
    const number = await second.layers.ensure(target);
    const { path: misled } = await second.layers.mount(number);
    await until(() => second.layers.counters.mismatches === 1, "finding out");
    await until(async () => (await readdir(cache.path)).length === 2, "removing the index");
    let right = misled;
    await until(async () => {
      right = (await second.layers.mount(number)).path;
      return right !== misled;
    }, "letting the layer go");
    await readFiles(right);
    assert.equal(second.layers.counters.wholePulls, 1);
    assert.equal(await mount(second), right);

    // The forger comes again, to a node that has nothing any more but its memory.
    await second.close();
    await forge(cache.path);
    await rm(path.join(directory, "root/index"), { recursive: true });
    const third = await startNode([cache], settings);
    await third.layers.releaseUnused([]);
    await readFiles(await mount(third));
    assert.equal(said(third, "an index that has lied").length, 1);
    assert.equal(third.layers.counters.wholePulls, 1);
    assert.equal(third.layers.counters.mismatches, 0);
  });
});

for (const mode of mountModes) {
  test(`an index in the cache with wrong digests costs one ${mode} node a whole pull, and is replaced`, async () => {
    const cache = await directoryCache();
    await pay(await startNode([cache]));
    const wrong = await wrongIndex({ layer }, ({ head, ...rest }) => {
      const spans = head.spans.map((span) => ({ ...span, digest: target.diffId }));
      return { ...rest, head: { ...head, spans } };
    });
    const shared = path.join(cache.path, `${digestKey(target.layerDigest)}.index-1`);
    const sealed = sealIndex(target.layerDigest, wrong, undefined);
    await writeFile(shared, sealed);
    const settings = { mode, backgroundFillDelayMs: 600_000 };
    const second = await startNode([cache], settings);
    await readFiles(await mount(second));
    const { counters } = second.layers;
    assert.deepEqual([counters.recoveries, counters.wholePulls, counters.readErrors], [1, 1, 0]);
    await untilStored(second);
    assert.ok(!(await readFile(shared)).equals(sealed));
    const third = await startNode([cache], settings);
    await readFiles(await mount(third));
    assert.equal(third.layers.counters.recoveries, 0);
    assert.equal(third.layers.counters.wholePulls, 0);
  });
}

test("a daemon that is killed during a store completes it when it is there again", async () => {
  const cache = await directoryCache();
  const stage = await startStage(sandbox, {
    mode: "auto",
    name: "killed",
    generation: "2",
    registry,
    settings: {
      "": { content_cache: [{ kind: "directory", path: cache.path }] },
      sharing: { store_bytes_per_second_max: 4 << 20 },
    },
  });
  undo.push(() => stage.clip.stop());
  undo.push(() => stage.containerd.close());
  undo.push(() => assertNothingLeft(stage));
  const name = `${registry.host}/tiers:latest`;
  await stage.containerd.ctr(["image", "pull", "--plain-http", "--snapshotter", "clip", name]);
  const count = (text: string) => stage.clip.log().split(text).length - 1;
  await until(() => count("store of decompressed layer started") === 1, "the start of the store");
  await sleep(1_000);
  await killDaemon(stage.clip);
  assert.equal(count("successfully stored"), 0, "it was killed during the store");
  await until(() => count("successfully stored") === 1, "the store");
  assert.ok((await readFile(layerFile(cache.path))).equals(layerBytes));
});

/** Puts another layer, and an index that fits it, in the place of the right ones. */
async function forge(directory: string): Promise<void> {
  const other = path.join(await sandbox.subdirectory(`forged-${names++}`), "layer.tar");
  const copy = Buffer.from(layerBytes);
  copy.write("forged", 100_000);
  await mkdir(path.dirname(other), { recursive: true });
  await writeFile(other, copy);
  const forged = await makeLayer(other, "gzip -6");
  const { layerDigest, diffId, compressedSize } = target;
  const lie = await wrongIndex({ layer: forged }, ({ head, ...rest }) => ({
    ...rest,
    head: { ...head, layerDigest, diffId, compressedSize },
  }));
  const key = digestKey(layerDigest);
  const sealed = sealIndex(layerDigest, lie, undefined);
  await writeFile(path.join(directory, `${key}.index-1`), sealed);
  await writeFile(layerFile(directory), copy);
}
