import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf } from "../base/digest.ts";
import { isClipError } from "../base/errors.ts";
import { newClient, startServer } from "./fake-server.ts";
import { mediaTypes } from "./manifest.ts";

const manifest = Buffer.from('{"a":"manifest"}');
const name = "team/app";

test("an answer that breaks in the middle is asked for again", async () => {
  const server = await startServer((_, response) => {
    response.writeHead(200, {
      "content-type": mediaTypes.ociManifest,
      "content-length": manifest.length,
    });
    if (server.requests.length > 1) response.end(manifest);
    else response.write(manifest.subarray(0, 5), () => response.destroy());
  });
  const { host } = server;
  const found = await newClient().manifest({ host, name }, digestOf(manifest));
  assert.deepEqual(found.bytes, manifest);
  assert.equal(server.requests.length, 2);
});

test("one that breaks each time is a registry that cannot be reached", async () => {
  const server = await startServer((_, response) => {
    response.writeHead(200, { "content-length": 100 });
    response.write("x", () => response.destroy());
  });
  const client = newClient({ retries: 1 });
  const repository = { host: server.host, name };
  for (const asked of [
    () => client.manifest(repository, "latest"),
    () => client.smallBlob(repository, digestOf(manifest)),
    () => client.referrers(repository, digestOf(manifest), "x"),
  ]) {
    await assert.rejects(asked(), (error) => isClipError(error, "REGISTRY_UNAVAILABLE"));
  }
});
