/**
 * Every kind of content cache, and a chain of two, as the tier of real nodes: one node pulls an image
 * without a published index, another one reads it while the registry gives it no layer.
 */
import assert from "node:assert/strict";
import { copyFile, writeFile } from "node:fs/promises";
import { after, afterEach, before, describe, test } from "node:test";
import { digestKey, type Digest } from "../src/base/digest.ts";
import { contentKey } from "../src/cache/content/content-cache.ts";
import type { NodeStatus } from "../src/daemon/status.ts";
import {
  redisCommand,
  s3Credentials,
  startRedis,
  startRedisCluster,
  startS3,
  type RedisServer,
  type TestServer,
} from "./content-cache-servers.ts";
import { makeDataImage } from "./faults/data-image.ts";
import {
  checkAll,
  checkIn,
  execIn,
  pageOf,
  pull,
  startContainer,
  statusOf,
  untilStatus,
} from "./faults/fault-node.ts";
import { clip, type ClipSettings } from "./harness/clip.ts";
import { makeBase } from "./harness/fixtures.ts";
import { makeImage, makeLayer, pushImage, type Image, type ImageLayer } from "./harness/image.ts";
import { startRegistry, type TestRegistry } from "./harness/registry.ts";
import { Sandbox } from "./harness/sandbox.ts";
import { assertNothingLeft, startStage, type Stage } from "./harness/stage.ts";

const MiB = 1024 * 1024;
const fileBytes = 256 * 1024;
const fileCount = 32;
/** A layer and the index of it. */
const objectsOfLayer = 2;

/** An image whose last layer has files, and below it a small one that all images share. */
interface TestImage {
  reference: string;
  image: Image;
  data: ImageLayer;
}

let sandbox: Sandbox;
let registry: TestRegistry;
let base: Image;
let redis: TestServer;
/** Of all images. */
const layerDigests = new Set<string>();
let names = 0;

before(async () => {
  sandbox = await Sandbox.create();
  registry = await startRegistry(sandbox);
  base = await makeBase(await sandbox.subdirectory("base"));
  await writeFile(sandbox.path("secret"), s3Credentials.secretAccessKey);
  await writeFile(sandbox.path("keys"), `${"k".repeat(32)}\n`);
  redis = await startRedis(sandbox.path("redis"));
  sandbox.onClose("redis", () => redis.service.stop());
});
afterEach(() => {
  registry.interfere(undefined);
});
after(() => sandbox.close());

test("a node reads from a Redis server what another one has stored there", async () => {
  const [first, second] = await startNodes([redisMember([redis])]);
  await assertSharing(first, second);
  await stopNodes(first, second);
});

test("a node reads from a Redis cluster what another one has stored there", async () => {
  const servers = await startRedisCluster(sandbox.path("redis-cluster"));
  sandbox.onClose("redis cluster", async () => {
    await Promise.all(servers.map(({ service }) => service.stop()));
  });
  const member = { ...redisMember(servers.slice(0, 1)), cluster: true, chunk_bytes: 1 << 16 };
  const [first, second] = await startNodes([member]);
  await assertSharing(first, second);
  for (const { port } of servers) {
    assert.ok(Number(await redisCommand(port, ["dbsize"])) > 10, "all servers have a part");
  }
  await stopNodes(first, second);
});

describe("nodes that share a Redis before a bucket", () => {
  let first: Stage;
  let second: Stage;
  let near: RedisServer;

  before(async () => {
    near = await startRedis(sandbox.path("near"));
    const s3 = await startS3(await sandbox.subdirectory("s3"));
    sandbox.onClose("near and s3", async () => {
      await Promise.all([near.service.stop(), s3.service.stop()]);
    });
    const breaker = { breaker_failures: 2, breaker_open_ms: 100, breaker_open_ms_max: 300 };
    [first, second] = await startNodes([
      { ...redisMember([near]), ...breaker, object_bytes_max: 10 * MiB },
      s3Member(s3),
    ]);
  });
  after(() => stopNodes(first, second));

  test("have a small layer in both, and a large one in the bucket alone", async () => {
    const large = await pushData(2 * fileCount);
    await pull(first, large.reference);
    await untilStored(first);
    const stored = await statusOf(first);
    assert.equal(calls(stored, "redis", "store", "stored"), 2 * objectsOfLayer - 1);
    assert.equal(calls(stored, "s3", "store", "stored"), 2 * objectsOfLayer);
    const [baseLayer = assert.fail()] = base.layers;
    assert.equal(await redisCommand(near.port, ["exists", redisKey(baseLayer)]), "1");
    assert.equal(await redisCommand(near.port, ["exists", redisKey(large.data)]), "0");

    denyLayers();
    await pull(second, large.reference);
    await checkAll(second, large.reference);
    const read = await statusOf(second);
    assertAllShared(read);
    assert.ok(calls(read, "redis", "read", "hit") > objectsOfLayer, "the small layer, the indexes");
    assert.ok(calls(read, "redis", "read", "miss") > 0);
    assert.ok((await bytesRead(second, "redis")) < large.data.uncompressedSize / 2);
    assert.ok((await bytesRead(second, "s3")) >= 2 * fileCount * fileBytes);
  });

  test("go on with the bucket when the Redis dies, and use it again when it is back", async () => {
    const [before, during] = [await pushData(fileCount), await pushData(fileCount)];
    await pull(first, before.reference);
    await untilStored(first);
    denyLayers();
    await pull(second, before.reference);
    const container = await startContainer(second, before.reference);
    const s3Hits = calls(await statusOf(second), "s3", "read", "hit");
    await checkFirst(second, container, 4);
    const healthy = await statusOf(second);
    assert.equal(calls(healthy, "s3", "read", "hit"), s3Hits, "the Redis has it");

    await near.service.stop("SIGKILL");
    await checkIn(second, container);
    const failing = await statusOf(second);
    assertAllShared(failing);
    assert.ok(calls(failing, "redis", "read", "error") > 0);
    assert.ok(calls(failing, "s3", "read", "hit") > s3Hits);

    registry.interfere(undefined);
    await pull(first, during.reference);
    const inBucket = calls(await statusOf(first), "s3", "store", "stored") + objectsOfLayer;
    await untilStatus(
      first,
      "the bucket has what the Redis cannot take",
      (status) => calls(status, "s3", "store", "stored") >= inBucket,
    );
    denyLayers();
    await pull(second, during.reference);
    const late = await startContainer(second, during.reference);
    await checkFirst(second, late, 4);
    const [failed] = logged(second, "ContentCache fails or is slow - it is left alone for a while");
    assert.equal(failed?.["cache"], "redis");
    assert.match(String(failed["error"]), /ECONNREFUSED/);

    near = await near.again();
    await untilStored(first);
    const redisHits = calls(await statusOf(second), "redis", "read", "hit");
    await checkIn(second, late);
    const revived = await statusOf(second);
    assertAllShared(revived);
    assert.ok(calls(revived, "redis", "read", "hit") > redisHits, "the Redis is used again");
    assert.equal(logged(second, "ContentCache answers again")[0]?.["cache"], "redis");
  });
});

describe("nodes that name layers by what they unpack to", () => {
  test("share the bytes of a layer that was compressed in two ways", async () => {
    const member = { ...redisMember([redis]), prefix: "by-diffid:" };
    const [first, second] = await startNodes([member], { key_derivation: "diffid" });
    const one = await pushData(fileCount);
    const other = await pushCompressedAnew(one);
    assert.equal(other.data.diffId, one.data.diffId);
    assert.notEqual(other.data.digest, one.data.digest);
    await clip(["index", "create", other.reference, "--push", "--plain-http"]);
    await pull(first, one.reference);
    await untilStored(first);

    denyLayers();
    await pull(second, other.reference);
    await checkAll(second, other.reference);
    assertAllShared(await statusOf(second));
    assert.ok((await bytesRead(second, "redis")) >= fileCount * fileBytes);
    const hits = logged(second, "content cache hit - range read from remote");
    const ofOther = hits.filter(({ layer }) => layer === other.data.digest);
    assert.ok(ofOther.length > 0);
    for (const { cacheKey } of ofOther)
      assert.equal(cacheKey, digestKey(one.data.diffId as Digest));
    await stopNodes(first, second);
  });
});

/** Starts two nodes with nothing on their disks that share these caches. */
async function startNodes(
  members: readonly Readonly<Record<string, unknown>>[],
  sharing: ClipSettings[string] = {},
): Promise<[Stage, Stage]> {
  const start = () =>
    startStage(sandbox, {
      ...{ generation: "2", mode: "auto", name: `node-${names++}`, registry },
      settings: {
        "": { content_cache: members },
        sharing: { index_key_file: sandbox.path("keys"), ...sharing },
      },
    });
  return Promise.all([start(), start()]);
}

/** Ends nodes that have left nothing behind. */
async function stopNodes(...nodes: readonly Stage[]): Promise<void> {
  for (const stage of nodes) {
    await assertNothingLeft(stage);
    await stage.containerd.close();
    await stage.clip.stop();
  }
}

function redisMember(servers: readonly TestServer[]) {
  return { kind: "redis", nodes: servers.map(({ port }) => `127.0.0.1:${port}`) };
}

function s3Member({ port }: TestServer) {
  return {
    ...{ kind: "s3", bucket: "clip", endpoint: `http://127.0.0.1:${port}`, path_style: true },
    access_key_id: s3Credentials.accessKeyId,
    secret_access_key_file: sandbox.path("secret"),
  };
}

/** Where Redis has a layer. */
function redisKey({ digest }: ImageLayer): string {
  return `clip:${contentKey(digest as Digest, "layer")}`;
}

/** Has the first node pull a fresh image and store it, and the second one read all of it. */
async function assertSharing(first: Stage, second: Stage): Promise<void> {
  const image = await pushData(fileCount);
  await pull(first, image.reference);
  await untilStored(first);
  const stored = await statusOf(first);
  assert.equal(stored.wholePulls.done, image.image.layers.length);
  const objects = image.image.layers.length * objectsOfLayer;
  assert.equal(calls(stored, "redis", "store", "stored"), objects);

  denyLayers();
  await pull(second, image.reference);
  const container = await startContainer(second, image.reference);
  await checkFirst(second, container, 1);
  const some = await bytesRead(second, "redis");
  assert.ok(some < image.data.uncompressedSize / 2, `${some} bytes for one file`);
  await checkIn(second, container);
  const read = await statusOf(second);
  assertAllShared(read);
  assert.ok((await bytesRead(second, "redis")) >= fileCount * fileBytes);
  assert.equal(calls(read, "redis", "read", "error"), 0);
  assertRangesLogged(second, image.data);
}

/** Has a container check some files. */
async function checkFirst(stage: Stage, container: string, files: number): Promise<void> {
  const script = `busybox head -n ${files} /data/sums | busybox sha256sum -c`;
  const { status, stdout, stderr } = await execIn(stage, container, script);
  assert.equal(status, 0, `${stdout.toString()} ${stderr}`);
}

/** The node has no byte of a layer from elsewhere, and no read failed. */
function assertAllShared({ tiers, wholePulls, reads, fallbacks }: NodeStatus): void {
  assert.ok((tiers["content_cache"]?.hits ?? 0) > 0);
  assert.equal(tiers["registry"]?.hits ?? 0, 0);
  assert.equal(wholePulls.done + wholePulls.failed, 0);
  assert.equal(reads.errors, 0);
  assert.deepEqual(fallbacks, {});
}

/** The log tells of every range that was asked for, and of what came. */
function assertRangesLogged(node: Stage, { digest }: ImageLayer): void {
  const ofLayer = (message: string) =>
    logged(node, message).filter(({ layer }) => layer === digest);
  const tried = ofLayer("trying ContentCache range read");
  const hits = ofLayer("content cache hit - range read from remote");
  assert.ok(hits.length > 0);
  for (const { cacheKey, offset, length, bytes, durationMs } of hits) {
    assert.equal(cacheKey, digestKey(digest as Digest));
    assert.equal(bytes, length);
    assert.equal(typeof durationMs, "number");
    assert.ok(tried.some((line) => line["offset"] === offset && line["length"] === length));
  }
}

/** Lines of a node's log with this message. */
function logged(stage: Stage, message: string): Record<string, unknown>[] {
  const lines = stage.clip.log().split("\n");
  return lines
    .filter((line) => line.includes(message))
    .map((line): Record<string, unknown> => JSON.parse(line));
}

function calls(status: NodeStatus, cache: string, operation: string, outcome: string): number {
  const count = status.contentCache?.find(
    (one) => one.cache === cache && one.operation === operation && one.outcome === outcome,
  );
  return count?.calls ?? 0;
}

/** What a node has read from a cache. */
async function bytesRead(stage: Stage, cache: string): Promise<number> {
  const page = await pageOf(stage, "/metrics");
  const labels = `{cache="${cache}",operation="read",outcome="hit"}`;
  const [, value] = page.split(`clip_content_cache_bytes_total${labels} `);
  return Number.parseInt(value ?? "0", 10);
}

/** Waits until a node has stored in the content cache what it has to. */
function untilStored(stage: Stage): Promise<void> {
  return untilStatus(stage, "all is stored", ({ queues }) => queues.stores === 0);
}

/** The registry gives no layer any more, but says that it could. */
function denyLayers(): void {
  const isProbe = (range: string | undefined) => range === "bytes=0-0";
  registry.interfere(({ url = "", method, headers }, response) => {
    const isLayer = [...layerDigests].some((digest) => url.endsWith(digest));
    if (!isLayer || method !== "GET" || isProbe(headers.range)) return false;
    response.writeHead(403).end();
    return true;
  });
}

/** Pushes an image that nobody knows, without an index. */
async function pushData(files: number): Promise<TestImage> {
  const directory = await sandbox.subdirectory(`image-${names++}`);
  return push(await makeDataImage(directory, base.layers, { files, fileBytes }));
}

/** Pushes the same image with its last layer compressed in another way. */
async function pushCompressedAnew({ image, data }: TestImage): Promise<TestImage> {
  const tarFile = `${data.tarFile}.anew`;
  await copyFile(data.tarFile, tarFile);
  const layer = await makeLayer(tarFile, "gzip -1");
  return push(makeImage([...image.layers.slice(0, -1), layer]));
}

async function push(image: Image): Promise<TestImage> {
  for (const { digest } of image.layers) layerDigests.add(digest);
  const reference = await pushImage(image, registry.host, `members/${names++}`);
  return { reference, image, data: image.layers.at(-1) ?? assert.fail() };
}
