import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import { chainIds, digestOf, type Digest } from "../base/digest.ts";
import { isClipError } from "../base/errors.ts";
import { silentLog } from "../telemetry/log.ts";
import { ContainerdClient } from "./client.ts";
import { FakeContainerd } from "./fake-containerd.ts";
import { ImageResolver, type ImageResolverOptions } from "./image-resolver.ts";

const directory = mkdtempSync(join(tmpdir(), "clip-resolver-"));
after(() => rmSync(directory, { recursive: true, force: true }));
let sockets = 0;

async function start(context: TestContext, options: Partial<ImageResolverOptions> = {}) {
  const containerd = new FakeContainerd();
  const address = join(directory, `${sockets++}.sock`);
  await containerd.listen(address);
  const client = new ContainerdClient({ address, timeoutMs: 2_000 });
  context.after(() => {
    client.close();
    containerd.close();
  });
  const resolver = new ImageResolver({
    containerd: client,
    log: silentLog,
    listsKeptMs: 0,
    ...options,
  });
  const resolve = (
    chainId: Digest | undefined,
    labels: Record<string, string> = {},
    namespace = "default",
  ) => {
    assert.ok(chainId !== undefined);
    const request = { namespace, chainId, labels: new Map(Object.entries(labels)) };
    return resolver.resolve(request, new AbortController().signal);
  };
  return { containerd, resolver, resolve, client, address };
}

interface ImageOptions {
  namespace?: string;
  source?: Record<string, string>;
  mediaType?: string;
  /** Makes other blobs of the same content. */
  compression?: string;
}

/** Stores an image as containerd does before its first Prepare: manifest and config, no layers. */
function putImage(containerd: FakeContainerd, contents: string[], options: ImageOptions = {}) {
  const {
    namespace = "default",
    source = { localhost: "team/app" },
    mediaType = "application/vnd.oci.image.layer.v1.tar+gzip",
    compression = "",
  } = options;
  const diffIds = contents.map((content) => digestOf(Buffer.from(content)));
  const blobs = contents.map((content) => Buffer.from(`compressed${compression} ${content}`));
  const config = containerd.put(namespace, { rootfs: { type: "layers", diff_ids: diffIds } });
  const sources = Object.entries(source).map(([host, names]) => [
    `containerd.io/distribution.source.${host}`,
    names,
  ]);
  const manifest = containerd.put(
    namespace,
    {
      schemaVersion: 2,
      config: { digest: config },
      layers: blobs.map((blob) => ({ digest: digestOf(blob), size: blob.length, mediaType })),
    },
    { "containerd.io/gc.ref.content.config": config, ...Object.fromEntries(sources) },
  );
  return { manifest, blobs, chain: chainIds(diffIds), diffIds };
}

test("a chainID alone leads to the layers of its image", async (context) => {
  const { containerd, resolve } = await start(context);
  const image = putImage(containerd, ["a", "b"]);
  const found = await resolve(image.chain[1]);
  assert.ok(found !== undefined);
  assert.equal(found.position, 1);
  assert.deepEqual(found.chainIds, image.chain);
  assert.equal(found.contentIsLocal, false);
  assert.deepEqual(found.layers[1], {
    layerDigest: digestOf(image.blobs[1] ?? Buffer.alloc(0)),
    diffId: image.diffIds[1],
    compressedSize: image.blobs[1]?.length,
    mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
    manifestDigest: image.manifest,
    repositories: [{ host: "localhost", name: "team/app" }],
  });
  assert.equal(await resolve(digestOf(Buffer.from("unknown"))), undefined);
});

test("Docker's media types, and layers that are not gzip, are passed on as they are", async (context) => {
  const { containerd, resolve } = await start(context);
  for (const mediaType of [
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.v1.tar",
  ]) {
    const { chain } = putImage(containerd, [mediaType], { mediaType });
    assert.equal((await resolve(chain[0]))?.layers[0]?.mediaType, mediaType);
  }
});

test("of several images with the layer the newest is taken, and of its namespace alone", async (context) => {
  const { containerd, resolve } = await start(context);
  putImage(containerd, ["base", "old"]);
  const newer = putImage(containerd, ["base", "new"]);
  const elsewhere = putImage(containerd, ["base", "elsewhere"], { namespace: "k8s.io" });
  assert.equal((await resolve(newer.chain[0]))?.layers[0]?.manifestDigest, newer.manifest);
  assert.equal(
    (await resolve(newer.chain[0], {}, "k8s.io"))?.layers[0]?.manifestDigest,
    elsewhere.manifest,
  );
  assert.equal(await resolve(elsewhere.chain[1]), undefined);
});

test("labels say which image is meant, and which of the blobs with the same content", async (context) => {
  const { containerd, resolve } = await start(context);
  const one = putImage(containerd, ["base"]);
  const two = putImage(containerd, ["base"], { compression: " better" });
  putImage(containerd, ["base", "top"]);
  const byManifest = { "containerd.io/snapshot/cri.manifest-digest": two.manifest };
  assert.equal((await resolve(one.chain[0], byManifest))?.layers[0]?.manifestDigest, two.manifest);
  const [blob = Buffer.alloc(0)] = two.blobs;
  const byLayer = { "containerd.io/snapshot/cri.layer-digest": digestOf(blob) };
  assert.equal((await resolve(one.chain[0], byLayer))?.layers[0]?.layerDigest, digestOf(blob));
  const byNobody = { "containerd.io/snapshot/cri.layer-digest": "sha256:unheard-of" };
  assert.notEqual(await resolve(one.chain[0], byNobody), undefined);
});

test("repositories come from labels, other images, the hosts directory and the configuration", async (context) => {
  const hostsDirectory = join(directory, "certs.d");
  for (const name of ["localhost:7000", "localhost_7001_", "_default", "other:1"]) {
    mkdirSync(join(hostsDirectory, name), { recursive: true });
  }
  const options = { hostsDirectory, registryHosts: ["localhost:8000"] };
  const { containerd, resolve } = await start(context, options);
  const { chain } = putImage(containerd, ["a"], { source: { localhost: "team/app,mirror/app" } });
  containerd
    .namespace("k8s.io")
    .images.push(
      { name: "localhost:6000/team/app:1", target: { digest: "sha256:0" } },
      { name: "localhost:6001/unrelated:1", target: { digest: "sha256:0" } },
      { name: "sha256:0123", target: { digest: "sha256:0" } },
    );
  const labels = { "containerd.io/snapshot/cri.image-ref": "localhost:5000/team/app:2" };
  const found = await resolve(chain[0], labels);
  assert.deepEqual(
    found?.layers[0]?.repositories.map(({ host, name }) => `${host}/${name}`),
    ["5000", "6000"]
      .map((port) => `localhost:${port}/team/app`)
      .concat(
        ["6000", "6001", "8000", "7000", "7001"]
          .flatMap((port) => [`localhost:${port}/team/app`, `localhost:${port}/mirror/app`])
          .filter((name) => name !== "localhost:6000/team/app"),
        ["localhost/team/app", "localhost/mirror/app"],
      ),
  );
});

test("content is local when no layer from the wanted one upwards would be fetched", async (context) => {
  const { containerd, resolve } = await start(context);
  const { chain, blobs } = putImage(containerd, ["a", "b", "c"]);
  const local = async (at: number) => (await resolve(chain[at]))?.contentIsLocal;
  containerd.put("default", blobs[1] ?? Buffer.alloc(0));
  assert.deepEqual([await local(0), await local(1), await local(2)], [false, false, false]);
  containerd.put("default", blobs[2] ?? Buffer.alloc(0));
  assert.deepEqual([await local(0), await local(1), await local(2)], [false, true, true]);
});

test("documents that make no sense are passed over", async (context) => {
  const { containerd, resolve } = await start(context);
  const good = putImage(containerd, ["a"]);
  const label = { "containerd.io/gc.ref.content.config": "sha256:0" };
  const config = containerd.put("default", { rootfs: { diff_ids: [] } });
  const layers = [{ digest: digestOf(Buffer.from("x")), size: 1, mediaType: "x" }];
  for (const document of [
    Buffer.from("not JSON"),
    Buffer.from("[]"),
    { config: null, layers },
    { config: { digest: "sha512:0" }, layers },
    { config: { digest: config }, layers },
    { config: { digest: config }, layers: [{ ...layers[0], size: -1 }] },
    { config: { digest: config }, layers: [{ ...layers[0], size: 2 ** 60 }] },
    { config: { digest: digestOf(Buffer.from("absent")) }, layers },
  ]) {
    containerd.put("default", document, label);
  }
  assert.equal((await resolve(good.chain[0]))?.layers.length, 1);
});

test("documents are read once, and lists are kept for a moment but not beyond a miss", async (context) => {
  const { containerd, resolve } = await start(context, { listsKeptMs: 60_000 });
  const first = putImage(containerd, ["a", "b", "c"]);
  for (const chainId of first.chain) await resolve(chainId);
  const count = (method: string) => containerd.calls.filter((call) => call.endsWith(method)).length;
  assert.equal(count("Content.Read"), 2);
  assert.equal(count("Content.List"), 1);
  assert.equal(count("Namespaces.List"), 1);
  const second = putImage(containerd, ["d"]);
  assert.notEqual(await resolve(second.chain[0]), undefined);
  assert.equal(count("Content.Read"), 4);
});

test("a containerd that is away, or says nothing, is an error that comes soon, and is got over", async (context) => {
  const { containerd, resolve, client, resolver, address } = await start(context);
  const unavailable = (error: unknown) => isClipError(error, "CONTAINERD_UNAVAILABLE");
  const { chain } = putImage(containerd, ["a"]);
  containerd.silent = true;
  const impatient = new ContainerdClient({ address, timeoutMs: 50 });
  context.after(() => impatient.close());
  await assert.rejects(impatient.listContent("default", []), unavailable);
  await assert.rejects(impatient.namespaces(), unavailable);
  const controller = new AbortController();
  const [chainId] = chain;
  assert.ok(chainId !== undefined);
  const aborted = resolver.resolve(
    { namespace: "default", chainId, labels: new Map() },
    controller.signal,
  );
  controller.abort();
  await assert.rejects(aborted, (error) => isClipError(error, "ABORTED"));
  const given = client.contentInfo("default", chainId, controller.signal);
  await assert.rejects(given, (error) => isClipError(error, "ABORTED"));
  containerd.silent = false;
  const absent = new ContainerdClient({ address: join(directory, "absent.sock"), timeoutMs: 200 });
  context.after(() => absent.close());
  await assert.rejects(absent.listContent("default", []), unavailable);
  assert.notEqual(await resolve(chainId), undefined);
});

test("a blob larger than asked for is refused, one that is not there is said to be missing", async (context) => {
  const { containerd, client } = await start(context);
  const digest = containerd.put("default", Buffer.alloc(1000));
  assert.equal((await client.readContent("default", digest, 1000)).length, 1000);
  await assert.rejects(client.readContent("default", digest, 999), (error) =>
    isClipError(error, "LIMIT_EXCEEDED"),
  );
  await assert.rejects(client.readContent("other", digest, 999), (error) =>
    isClipError(error, "IMAGE_NOT_FOUND"),
  );
  assert.equal(await client.contentInfo("other", digest), undefined);
});
