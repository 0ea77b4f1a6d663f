import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf } from "../base/digest.ts";
import { ClipError, type ErrorCode } from "../base/errors.ts";
import { silentLog } from "../telemetry/log.ts";
import { repositoriesWithBlob, type LayerRegistry } from "./places.ts";
import type { LayerTarget } from "./target.ts";

const never = new AbortController().signal;

/** Hosts by what they answer when they are asked for the blob. */
async function ask(hosts: Record<string, boolean | ErrorCode>): Promise<string[]> {
  const registry: LayerRegistry = {
    has: async ({ host }) => {
      const answer = hosts[host] ?? false;
      if (typeof answer === "boolean") return answer;
      throw new ClipError(answer, host);
    },
    blob: () => assert.fail("nothing is to be read"),
  };
  const target: LayerTarget = {
    layerDigest: digestOf(Buffer.from("blob")),
    diffId: digestOf(Buffer.from("layer")),
    manifestDigest: digestOf(Buffer.from("manifest")),
    compressedSize: 10,
    mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
    repositories: Object.keys(hosts).map((host) => ({ host, name: "app" })),
  };
  const found = await repositoriesWithBlob(registry, target, never, silentLog);
  return found.map(({ host }) => host);
}

void test("the first repository that has the blob comes first, the others stay", async () => {
  assert.deepEqual(await ask({ a: false, b: true, c: true }), ["b", "a", "c"]);
  assert.deepEqual(await ask({ a: "REGISTRY_UNAVAILABLE", b: true }), ["b", "a"]);
});

void test("a single one is not asked", async () => {
  assert.deepEqual(await ask({ a: "REGISTRY_DENIED" }), ["a"]);
});

void test("of those that failed the one that refused is told of, else the first", async () => {
  const down = "REGISTRY_UNAVAILABLE";
  await assert.rejects(ask({ a: down, b: "REGISTRY_DENIED", c: down }), { message: "b" });
  await assert.rejects(ask({ a: false, b: down, c: "REGISTRY_PROTOCOL" }), { message: "b" });
  await assert.rejects(ask({ a: false, b: false }), { code: "REGISTRY_NOT_FOUND" });
});
