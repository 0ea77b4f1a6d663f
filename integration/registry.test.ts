/** The registry client against Debian's docker-registry. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { digestOf } from "../src/base/digest.ts";
import { isClipError } from "../src/base/errors.ts";
import { RegistryClient } from "../src/registry/client.ts";
import { mediaTypes } from "../src/registry/manifest.ts";
import { silentLog } from "../src/telemetry/log.ts";
import { type RunningRegistry, startRegistry } from "./registry-process.ts";

// htpasswd entry of user "someone", password "secret" (bcrypt, as docker-registry wants it).
const htpasswd = "someone:$2y$05$U41y.WBNwXKUMcL6us9ImetrlRZnAm32aJEWXTZ14iNLUZ2y70D1q\n";

let directory: string;
let open: RunningRegistry;
let guarded: RunningRegistry;

before(async () => {
  directory = await mkdtemp(join(tmpdir(), "clip-registry-"));
  open = await startRegistry({ directory: join(directory, "open") });
  guarded = await startRegistry({ directory: join(directory, "guarded"), htpasswd });
});
after(async () => {
  await open?.stop();
  await guarded?.stop();
  await rm(directory, { recursive: true, force: true });
});

function client(dockerConfig: string): RegistryClient {
  return new RegistryClient({ dockerConfig, log: silentLog });
}

test("what is pushed comes back, whole, in ranges and in parallel", async () => {
  const registry = client(join(directory, "none.json"));
  const repository = { host: open.host, name: "team/app" };
  const bytes = randomBytes(5_000_001);
  const digest = await registry.pushBlob(repository, bytes);
  assert.equal(digest, digestOf(bytes));
  assert.equal(await registry.has(repository, digest), true);
  assert.equal(await registry.has(repository, digestOf(Buffer.from("?"))), false);

  const blob = registry.blob(repository, digest, bytes.length);
  assert.equal(await blob.supportsRanges(), true);
  assert.deepEqual(await blob.read(4_000_000, 1_000_001), bytes.subarray(4_000_000));
  const chunks: Buffer[] = [];
  for await (const chunk of blob.parallelStream({ connections: 3, chunkBytes: 700_000 })) {
    chunks.push(Buffer.from(chunk));
  }
  assert.equal(digestOf(Buffer.concat(chunks)), digest);
  await registry.close();
});

test("a manifest that refers to another is found by the tag scheme", async () => {
  const registry = client(join(directory, "none.json"));
  const repository = { host: open.host, name: "team/referred" };
  const empty = Buffer.from("{}");
  const config = {
    mediaType: mediaTypes.empty,
    digest: await registry.pushBlob(repository, empty),
    size: empty.length,
  };
  const image = Buffer.from(
    JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociManifest, config, layers: [] }),
  );
  const manifest = { bytes: image, mediaType: mediaTypes.ociManifest };
  const subject = await registry.pushManifest(repository, { ...manifest, tag: "1" });
  const resolved = await registry.resolve({ repository, tag: "1" });
  assert.deepEqual(resolved, { ...manifest, digest: subject });
  assert.deepEqual(await registry.referrers(repository, subject, "text/a"), []);

  const referrer = (artifactType: string) => ({
    bytes: Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: mediaTypes.ociManifest,
        artifactType,
        config,
        layers: [],
        subject: { mediaType: mediaTypes.ociManifest, digest: subject, size: image.length },
      }),
    ),
    mediaType: mediaTypes.ociManifest,
    refersTo: { subject, artifactType },
  });
  const [first, second] = await Promise.all([
    registry.pushManifest(repository, referrer("text/a")),
    registry.pushManifest(repository, referrer("text/b")),
  ]);
  for (const [type, digest] of [["text/a", first] as const, ["text/b", second] as const]) {
    const found = await registry.referrers(repository, subject, type);
    assert.deepEqual(
      found.map((descriptor) => descriptor.digest),
      [digest],
    );
  }
  await registry.close();
});

test("basic authentication: denied without credentials, and with wrong ones until they are corrected", async () => {
  const config = join(directory, "docker.json");
  const write = (password: string) => {
    const auth = Buffer.from(`someone:${password}`).toString("base64");
    return writeFile(config, JSON.stringify({ auths: { [guarded.host]: { auth } } }));
  };
  const registry = client(config);
  const repository = { host: guarded.host, name: "team/app" };
  const denied = (error: unknown) => isClipError(error, "REGISTRY_DENIED");
  await assert.rejects(registry.pushBlob(repository, Buffer.from("x")), denied);
  await write("wrong");
  await assert.rejects(registry.pushBlob(repository, Buffer.from("x")), (error) => {
    assert.ok(!String(error).includes("wrong"));
    return denied(error);
  });
  await write("secret");
  const digest = await registry.pushBlob(repository, Buffer.from("x"));
  assert.deepEqual(await registry.blob(repository, digest, 1).read(0, 1), Buffer.from("x"));
  await registry.close();
});
