/** Layer indexes made, published and found again by way of Debian's docker-registry. */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { gzipSync } from "node:zlib";
import { pack } from "tar-stream";
import { type Digest, digestOf } from "../src/base/digest.ts";
import { isClipError } from "../src/base/errors.ts";
import { createImageIndex } from "../src/index/create.ts";
import { findLayerIndexes } from "../src/index/published.ts";
import { IndexStore } from "../src/index/store.ts";
import { RegistryClient } from "../src/registry/client.ts";
import { mediaTypes } from "../src/registry/manifest.ts";
import { silentLog as log } from "../src/telemetry/log.ts";
import { type RunningRegistry, startRegistry } from "./registry-process.ts";

let directory: string;
let server: RunningRegistry;
let registry: RegistryClient;

before(async () => {
  directory = await mkdtemp(join(tmpdir(), "clip-index-"));
  server = await startRegistry({ directory: join(directory, "registry") });
  registry = new RegistryClient({ dockerConfig: join(directory, "none.json"), log });
});
after(async () => {
  await registry?.close();
  await server?.stop();
  await rm(directory, { recursive: true, force: true });
});

async function makeTar(name: string): Promise<Buffer> {
  const archive = pack();
  archive.entry({ name }, `${name}\n`.repeat(10_000));
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

async function push(name: string, bytes: Buffer, mediaType: string) {
  const digest = await registry.pushBlob({ host: server.host, name }, bytes);
  return { mediaType, digest, size: bytes.length };
}

/** Pushes an image of two platforms; the first has a gzip layer and a plain one. */
async function pushImage(name: string): Promise<{ layer: Digest; plain: Digest }> {
  const repository = { host: server.host, name };
  const [tar, other] = [await makeTar("file"), await makeTar("other")];
  const layers = [
    await push(name, gzipSync(tar), "application/vnd.oci.image.layer.v1.tar+gzip"),
    await push(name, other, "application/vnd.oci.image.layer.v1.tar"),
  ] as const;
  const manifests = [];
  for (const architecture of ["amd64", "riscv64"]) {
    const diffIds = [digestOf(tar), digestOf(other)];
    const config = Buffer.from(
      JSON.stringify({ architecture, os: "linux", rootfs: { type: "layers", diff_ids: diffIds } }),
    );
    const mediaType = mediaTypes.ociManifest;
    const bytes = Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType,
        config: await push(name, config, "application/vnd.oci.image.config.v1+json"),
        layers,
      }),
    );
    const digest = await registry.pushManifest(repository, { bytes, mediaType });
    const platform = { os: "linux", architecture };
    manifests.push({ mediaType, digest, size: bytes.length, platform });
  }
  const mediaType = mediaTypes.ociIndex;
  const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType, manifests }));
  await registry.pushManifest(repository, { bytes, mediaType, tag: "1" });
  return { layer: layers[0].digest, plain: layers[1].digest };
}

test("an index is made for each gzip layer of a platform, published, found and adopted", async () => {
  const repository = { host: server.host, name: "team/indexed" };
  const { layer, plain } = await pushImage(repository.name);
  const reference = { repository, tag: "1" };
  const options = { reference, registry, platform: "linux/riscv64", spanBytes: 65_536 };
  const progress: number[] = [];
  const created = await createImageIndex({
    ...options,
    push: true,
    onProgress: ({ compressedBytes }) => progress.push(compressedBytes),
  });
  assert.deepEqual(
    created.layers.map(({ layerDigest }) => layerDigest),
    [layer, plain],
  );
  assert.ok(created.layers[0] !== undefined && "encoded" in created.layers[0]);
  assert.ok(created.layers[1] !== undefined && "skipped" in created.layers[1]);
  assert.ok(progress.length > 0);

  const found = await findLayerIndexes(registry, repository, created.manifest.digest, { log });
  assert.deepEqual([...found.keys()], [layer]);
  const store = new IndexStore({ directory: join(directory, "store"), bytesMax: 1e9, log });
  await store.start();
  const reader = await store.adopt(layer, found.get(layer) ?? []);
  const entries = await reader.readEntries();
  assert.deepEqual(
    entries.map(({ path }) => path.toString()),
    ["file"],
  );
  await store.settled();
  assert.deepEqual(await store.list(), [layer]);
  await reader.close();
  await store.close();
});

test("the newest of several published indexes comes first", async () => {
  const repository = { host: server.host, name: "team/again" };
  const { layer } = await pushImage(repository.name);
  const options = { reference: { repository, tag: "1" }, registry, platform: "linux/amd64" };
  await createImageIndex({ ...options, spanBytes: 32_768, push: true });
  const second = await createImageIndex({ ...options, spanBytes: 65_536, push: true });
  const { digest } = second.manifest;
  const found = (await findLayerIndexes(registry, repository, digest, { log })).get(layer) ?? [];
  assert.equal(found.length, 2);
  const newest = second.layers[0];
  assert.ok(newest !== undefined && "encoded" in newest);
  assert.equal(found[0]?.digest, digestOf(newest.encoded));
});

test("an image without an index has none, and a platform that is not there is named", async () => {
  const repository = { host: server.host, name: "team/plain" };
  await pushImage(repository.name);
  const reference = { repository, tag: "1" };
  const { digest } = await registry.resolve(reference);
  assert.equal((await findLayerIndexes(registry, repository, digest, { log })).size, 0);
  await assert.rejects(
    createImageIndex({ reference, registry, platform: "linux/s390x", spanBytes: 65_536 }),
    (error) => isClipError(error, "IMAGE_NOT_FOUND") && /riscv64/.test(error.hint ?? ""),
  );
});
