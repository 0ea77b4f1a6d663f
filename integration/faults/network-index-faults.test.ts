/** Images are pulled whose published indexes cannot be had, or are not what they seem. */
import assert from "node:assert/strict";
import { after, afterEach, before } from "node:test";
import { createImageIndex } from "../../src/index/create.ts";
import { publishLayerIndexes } from "../../src/index/published.ts";
import { RegistryClient } from "../../src/registry/client.ts";
import { silentLog } from "../../src/telemetry/log.ts";
import { faultTest, type FaultKind } from "./fault-kinds.ts";
import type { Answer, Filter } from "./fault-proxy.ts";
import * as faults from "./http-faults.ts";
import { assertReads, blobs, NetworkStage, type DataLayer } from "./network-stage.ts";

let stage: NetworkStage;
let registry: RegistryClient;
let names = 0;

before(async () => {
  stage = await NetworkStage.open();
  await stage.startNode();
  registry = new RegistryClient({ log: silentLog });
});
afterEach(() => stage.registry.recover());
after(async () => {
  await registry?.close();
  await stage?.close();
});

/** An image that nobody has pulled, with indexes in the registry. */
async function makeImage(): Promise<{ name: string; data: DataLayer }> {
  const name = `index-${names++}`;
  const data = await stage.makeDataLayer(name, 3);
  await stage.push(name, [data]);
  return { name, data };
}

function createIndexes(name: string, push: boolean) {
  const repository = { host: `127.0.0.1:${stage.registryPort}`, name };
  const reference = { repository, tag: "latest" };
  return createImageIndex({ reference, registry, spanBytes: 65_536, push });
}

/** Pulls it and reads all of it. */
async function assertPulls(name: string, { layer, files }: DataLayer, log: RegExp): Promise<void> {
  const logged = stage.node.clip.log().length;
  const reader = await stage.startReader(await stage.pull(name));
  try {
    for (const file of files) await assertReads(reader, file);
  } finally {
    await reader.close();
  }
  const text = stage.node.clip.log().slice(logged);
  assert.match(text, log);
  const ready = text.split("\n").filter((line) => line.includes('"msg":"the layer is ready"'));
  const own = ready.find((line) => line.includes(layer.digest)) ?? "";
  assert.match(own, /"origin":"whole pull"/);
}

function damaged(kind: FaultKind, what: string, answer: Answer): void {
  faultTest(kind, `${what}; the layer is pulled whole`, async () => {
    const { name, data } = await makeImage();
    const { layers } = await createIndexes(name, true);
    const ofLayers = layers.map(({ layerDigest }) => layerDigest);
    const isIndex: Filter = (request) =>
      blobs(request) && !ofLayers.some((digest) => request.url.includes(digest));
    const provocation = stage.registry.provoke(answer, isIndex);
    await assertPulls(name, data, /a published index is of no use/);
    assert.ok(provocation.count > 0, "the fault was provoked");
  });
}

// The configuration of an image is such a blob, too: what is wrong must not keep it from containerd.
const ofIndexes =
  (answer: Answer): Answer =>
  (exchange) =>
    exchange.request.headers["user-agent"]?.startsWith("clip/") === true
      ? answer(exchange)
      : faults.untouched(exchange);

damaged("index-corrupt", "some bits are wrong from its beginning on", ofIndexes(faults.bitFlips));
damaged("index-truncated", "it ends too early", ofIndexes(faults.truncated));

faultTest("index-of-another-layer", "the layer is pulled whole", async () => {
  const { name, data } = await makeImage();
  const { manifest, layers } = await createIndexes(name, false);
  const [base, own] = layers;
  assert.ok(base !== undefined && "encoded" in base && own !== undefined);
  const repository = { host: `127.0.0.1:${stage.registryPort}`, name };
  const index = { layerDigest: own.layerDigest, encoded: base.encoded };
  await publishLayerIndexes(registry, repository, manifest, [index]);
  await assertPulls(name, data, /it is of another layer/);
});

const lookUps: Filter = ({ url }) => /\/referrers\/|\/manifests\/sha256-/.test(url);
for (const [what, answer] of [
  ["the registry fails", faults.answer(503)],
  ["the registry keeps silent", faults.silent],
] as const) {
  faultTest("index-lookup-failed", `${what}; the layer is pulled whole`, async () => {
    const { name, data } = await makeImage();
    await createIndexes(name, true);
    const provocation = stage.registry.provoke(answer, lookUps);
    await assertPulls(name, data, /a repository could not be asked for layer indexes/);
    assert.ok(provocation.count > 0, "the fault was provoked");
  });
}
