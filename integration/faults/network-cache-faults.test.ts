/** A container reads while the content cache or the registry fails: with one of them it never learns. */
import assert from "node:assert/strict";
import { readFile, rename, writeFile } from "node:fs/promises";
import path from "node:path";
import { after, afterEach, before } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Digest } from "../../src/base/digest.ts";
import { contentKey } from "../../src/cache/content/content-cache.ts";
import { rangeContentSource } from "../../src/cache/content/content-source.ts";
import { openS3Cache } from "../../src/cache/content/s3-cache.ts";
import { fileSource } from "../../src/index/sources.ts";
import { s3Credentials, startS3 } from "../content-cache-servers.ts";
import type { ContainerReader } from "./container-reader.ts";
import { faultTest, type FaultKind } from "./fault-kinds.ts";
import { FaultProxy, type Answer, type Exchange, type Filter } from "./fault-proxy.ts";
import * as faults from "./http-faults.ts";
import { assertReads, NetworkStage, type DataLayer, type KnownFile } from "./network-stage.ts";

const layerCount = 8;
const filesPerLayer = 8;
/** Tries until a cache that was left alone is used again. */
const triesMax = 25;

let stage: NetworkStage;
let cache: FaultProxy;
let objects: string;
let layers: DataLayer[];
let reader: ContainerReader;
let fresh: KnownFile[];
/** For each fault of bytes one: a copy that was wrong is not read again for a while. */
let spoilt: DataLayer[];
const undo: (() => Promise<void>)[] = [];

const reads: Filter = ({ method }) => method === "GET";

before(async () => {
  stage = await NetworkStage.open();
  const directory = await stage.sandbox.subdirectory("s3");
  const server = await startS3(directory);
  stage.sandbox.onClose("s3", () => server.service.stop());
  objects = path.join(directory, "data", "clip");
  cache = await FaultProxy.open(stage.sandbox, { target: server.port, filter: reads });
  const makeLayers = (name: string, count: number) =>
    Promise.all(
      Array.from({ length: count }, (_, at) => stage.makeDataLayer(`${name}${at}`, filesPerLayer)),
    );
  layers = await makeLayers("d", layerCount);
  spoilt = await makeLayers("s", 2);
  await stage.push("faults", [...layers, ...spoilt]);
  await storeAll(server.port);
  const secret = stage.sandbox.path("secret");
  await writeFile(secret, s3Credentials.secretAccessKey);
  await stage.startNode({
    "": {
      content_cache: [
        {
          ...{ kind: "s3", bucket: "clip", endpoint: `http://127.0.0.1:${cache.port}` },
          ...{ path_style: true, access_key_id: s3Credentials.accessKeyId },
          ...{ secret_access_key_file: secret, call_timeout_ms: 700, connect_timeout_ms: 500 },
          ...{ breaker_failures: 3, breaker_open_ms: 100, breaker_open_ms_max: 300 },
        },
      ],
    },
    sharing: { store: false, hedge_ms_max: 300 },
  });
  await stage.publishIndexes("faults");
  reader = await stage.startReader(await stage.pull("faults"));
  fresh = Array.from({ length: filesPerLayer }, (_, at) =>
    layers.flatMap(({ files }) => files[at] ?? []),
  ).flat();
  await untilUsed();
});
afterEach(async () => {
  for (const step of undo.splice(0)) await step();
  await cache.recover();
  await stage.registry.recover();
});
after(async () => {
  await reader?.close();
  await stage?.close();
});

/** Puts the layers into the cache, as another node would. */
async function storeAll(port: number): Promise<void> {
  const direct = await openS3Cache({
    ...{ bucket: "clip", endpoint: `http://127.0.0.1:${port}`, pathStyle: true },
    credentials: s3Credentials,
  });
  for (const { layer } of [...layers, ...spoilt]) {
    const source = await fileSource(layer.tarFile);
    assert.ok(source !== undefined);
    const key = contentKey(layer.digest as Digest, "layer");
    await direct.store(key, rangeContentSource(source));
    await source.close?.();
  }
  await direct.close();
}

/** A file that nobody has read. */
function takeFresh(from = fresh): KnownFile {
  const file = from.shift();
  assert.ok(file !== undefined, "there are files left");
  return file;
}

const cachedSpans = () => stage.metric(/^clip_tier_spans_total\{tier="content_cache"\}/);
const failedReads = () => stage.metric(/^clip_handed_read_errors_total/);

/** Reads until something comes from the cache. */
async function untilUsed(): Promise<void> {
  const before = await cachedSpans();
  for (let tries = 0; ; tries++) {
    assert.ok(tries < triesMax, "the content cache is used");
    await assertReads(reader, takeFresh());
    if ((await cachedSpans()) > before) return;
    // A cache that has failed is left alone for a while.
    await sleep(400);
  }
}

const troubles = /^clip_tier_(errors|misses|corrupt_spans)_total\{tier="content_cache"\}/;

/** A fault of the content cache that readers do not see, and after which it is used again. */
function unseen(
  kind: FaultKind,
  what: string,
  provoke: () => unknown,
  log: RegExp,
  files: () => KnownFile[] = () => fresh,
): void {
  faultTest(kind, what, async () => {
    const logged = stage.node.clip.log().length;
    const failed = await failedReads();
    const counted = await stage.metric(troubles);
    await provoke();
    // Of a slow cache something is seen only when it has had its time.
    const isSeen = async (): Promise<boolean> =>
      log.test(stage.node.clip.log().slice(logged)) && (await stage.metric(troubles)) > counted;
    for (let tries = 0; tries < 2 || (tries < 5 && !(await isSeen())); tries++) {
      await assertReads(reader, takeFresh(files()));
    }
    assert.equal(await failedReads(), failed);
    assert.match(stage.node.clip.log().slice(logged), log);
    assert.ok((await stage.metric(troubles)) > counted, "it is counted");
    await recover();
    await untilUsed();
  });
}

async function recover(): Promise<void> {
  for (const step of undo.splice(0)) await step();
  await cache.recover();
}

const provoke = (answer: Answer) => () => cache.provoke(answer);
const failure = /a content cache failed|a span could not be fetched|range.read/;

unseen("cache-down", "nobody listens", () => cache.refuse(), /ECONNREFUSED/);
unseen("cache-black-hole", "connections hang", () => cache.swallow(), failure);
unseen("cache-silent-body", "nothing comes after the head", provoke(faults.silentBody), failure);
unseen("cache-trickle", "a byte comes now and then", provoke(faults.trickle(100)), failure);
const slowDown = "<Error><Code>SlowDown</Code><Message>less</Message></Error>";
unseen(
  "cache-throttled",
  "it asks to slow down",
  provoke(faults.answer(503, {}, slowDown)),
  failure,
);
unseen("cache-denied", "it refuses", provoke(faults.answer(403)), /CACHE_DENIED/);
unseen("cache-reset", "connections are reset", provoke(faults.reset), failure);
unseen("cache-truncated", "bodies end too early", provoke(faults.truncated), /fewer bytes/);
unseen("cache-ignores-range", "it sends whole objects", provoke(sendWhole), /no range/);
unseen("cache-wrong-range", "it sends another range", provoke(faults.wrongRange), /another range/);
unseen("cache-lost-object", "it has lost the layers", () => lose(), /./);
unseen(
  "cache-bit-flips",
  "some bits are wrong",
  provoke(faults.bitFlips),
  /the content cache has wrong bytes of a layer/,
  () => spoilt[0]?.files ?? [],
);
unseen(
  "cache-other-bytes",
  "other bytes are sent",
  provoke(faults.otherBytes),
  /the content cache has wrong bytes of a layer/,
  () => spoilt[1]?.files ?? [],
);

/** A request is signed: without its range the server would refuse it. */
async function sendWhole({ request, response }: Exchange): Promise<void> {
  const { pathname } = new URL(request.url, "http://cache");
  response.writeHead(200).end(await readFile(path.join(objects, path.basename(pathname))));
}

async function lose(): Promise<void> {
  await rename(objects, `${objects}.lost`);
  undo.push(() => rename(`${objects}.lost`, objects));
}

const registryFaults: [FaultKind, string, () => unknown][] = [
  ["registry-down", "nobody listens", () => stage.registry.refuse()],
  ["registry-black-hole", "connections hang", () => stage.registry.swallow()],
  ["registry-trickle", "a byte comes now and then", () => fail(faults.trickle(200))],
  ["registry-bit-flips", "some bits are wrong", () => fail(faults.bitFlips)],
  ["registry-lost-blob", "it has lost the layers", () => fail(faults.answer(404))],
];
const fail = (answer: Answer) => stage.registry.provoke(answer);
for (const [kind, what, provokeIt] of registryFaults) {
  faultTest(kind, `${what}, which the content cache makes up for`, async () => {
    const failed = await failedReads();
    await provokeIt();
    for (let at = 0; at < 2; at++) await assertReads(reader, takeFresh());
    assert.equal(await failedReads(), failed);
  });
}

faultTest("registry-down", "the content cache fails, too, and comes back alone", async () => {
  await stage.registry.refuse();
  await cache.refuse();
  const files = [takeFresh(), takeFresh(), takeFresh()];
  for (const file of files) assert.ok("failure" in (await reader.read(file.name)));
  await cache.recover();
  // The breaker of the cache is open, but there is nobody else to ask.
  for (const file of files) await assertReads(reader, file);
});
