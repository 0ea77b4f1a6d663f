/** What a cluster of nodes with a content cache promises, on three nodes. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { after, before, describe, test } from "node:test";
import { makeBase } from "../harness/fixtures.ts";
import { makeImage, makeLayer, type Image } from "../harness/image.ts";
import { Sandbox } from "../harness/sandbox.ts";
import { startClipAgain } from "../harness/stage.ts";
import { tarOf } from "../harness/tar-writer.ts";
import {
  Cluster,
  compressedBytes,
  statusOf,
  stopNode,
  uncompressedBytes,
  untilStored,
  type ClusterNode,
} from "./cluster.ts";

const MiB = 1024 * 1024;

describe("a cluster whose nodes share a content cache", () => {
  let sandbox: Sandbox;
  let image: Image;
  let cluster: Cluster;
  let first: ClusterNode;
  let second: ClusterNode;

  before(async () => {
    sandbox = await Sandbox.create();
    image = await makeLargeImage(sandbox);
    cluster = await Cluster.start(sandbox, image);
    first = await cluster.addNode("a", { delayMs: 5 });
    second = await cluster.addNode("b", { delayMs: 5 });
  });

  after(() => sandbox.close());

  test("its first node pulls the image once, and stores it for the others", async () => {
    const { output } = await cluster.start(first);
    assert.match(output, /clip test/);
    await untilStored(first);
    const { registry, cache } = cluster.traffic(first);
    const ratio = registry.received / compressedBytes(image);
    assert.ok(ratio >= 1 && ratio < 1.05, `${ratio} images came from the registry`);
    assert.ok(cache.sent >= uncompressedBytes(image), "all layers went to the cache");
  });

  test("its second node takes a little from the cache, and no layer from the registry", async () => {
    const { output } = await cluster.start(second);
    assert.match(output, /clip test/);
    const { registry, cache } = cluster.traffic(second);
    const layers = registry.requests.filter(
      ({ method, path }) =>
        method === "GET" && image.layers.some(({ digest }) => path.endsWith(digest)),
    );
    assert.deepEqual(layers, []);
    const ratio = (registry.received + cache.received) / uncompressedBytes(image);
    assert.ok(ratio < 0.1, `${ratio} of the image came over the network`);
    const { tiers, wholePulls, fallbacks } = await statusOf(second);
    assert.ok((tiers["content_cache"]?.hits ?? 0) > 0);
    assert.equal(wholePulls.done, 0);
    assert.deepEqual(fallbacks, {});
  });

  test("a node whose layers are complete asks nobody when it starts the image again, after a restart too", async () => {
    await first.stage.clip.stop();
    await startClipAgain(first.stage);
    cluster.resetTraffic(first);
    const { output } = await cluster.start(first);
    assert.match(output, /clip test/);
    const { registry, cache } = cluster.traffic(first);
    assert.deepEqual(cache.requests, []);
    assert.deepEqual(
      registry.requests.filter(({ userAgent }) => !userAgent.startsWith("containerd/")),
      [],
    );
    assert.ok(registry.received < 64 * 1024, `${registry.received} bytes came from the registry`);
  });

  test("its nodes together take one image from the registry", async () => {
    const third = await cluster.addNode("c", { delayMs: 5 });
    const { output } = await cluster.start(third);
    assert.match(output, /clip test/);
    const received = [second, third].map((node) => cluster.traffic(node).registry.received);
    for (const bytes of received) assert.ok(bytes < 0.05 * compressedBytes(image));
    await stopNode(third);
  });
});

/** A base that runs, and a layer above it that no container reads. */
async function makeLargeImage(sandbox: Sandbox): Promise<Image> {
  const directory = await sandbox.subdirectory("image");
  const base = await makeBase(directory);
  const tarFile = sandbox.path("image", "large.tar");
  await writeFile(
    tarFile,
    tarOf([
      { name: "data/", type: "directory", mode: 0o755 },
      { name: "data/random", data: randomBytes(24 * MiB) },
      { name: "data/zeros", data: Buffer.alloc(24 * MiB) },
    ]),
  );
  return makeImage([...base.layers, await makeLayer(tarFile, "gzip -1")]);
}
