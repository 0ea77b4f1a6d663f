import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { isClipError } from "../base/errors.ts";
import { digestOf } from "../base/digest.ts";
import { contentKey } from "../cache/content/content-cache.ts";
import { parseConfig } from "../config/load.ts";
import { silentLog } from "../telemetry/log.ts";
import { openSharing } from "./content-cache.ts";

const directory = await mkdtemp(join(tmpdir(), "clip-sharing-"));
after(() => rm(directory, { recursive: true, force: true }));

function open(toml: string) {
  return openSharing(parseConfig(toml, "test"), silentLog);
}

async function file(name: string, text: string): Promise<string> {
  await writeFile(join(directory, name), text);
  return join(directory, name);
}

const shared = () => `[[content_cache]]\nkind = "directory"\npath = "${directory}"\n`;

test("without a content cache nothing is shared", async () => {
  assert.equal(await open("[sharing]\nstore = false"), undefined);
});

test("what is configured is opened, and its calls are counted", async () => {
  const keys = await file("keys", `${"a".repeat(40)}\n\n${"b".repeat(32)}\n`);
  const sharing = await open(`${shared()}[sharing]\nindex_key_file = "${keys}"\nhedge_ms_min = 9`);
  const { cluster, counters } = sharing ?? assert.fail();
  assert.deepEqual(
    cluster.indexKeys.map((key) => key.length),
    [40, 32],
  );
  assert.deepEqual(cluster.members, ["directory"]);
  assert.equal(cluster.hedgeMsMin, 9);
  assert.equal("storeBytesPerSecond" in cluster, false);
  const key = contentKey(digestOf(Buffer.alloc(0)), "layer");
  assert.equal(await cluster.cache.has(key), undefined);
  assert.deepEqual(
    counters
      .counts()
      .map(({ cache, operation, outcome, calls }) => [cache, operation, outcome, calls]),
    [["directory", "has", "miss", 1]],
  );
  await sharing?.close();
});

test("servers are not asked anything at the start", async () => {
  const secret = await file("secret", "secret\n");
  const sharing = await open(`
    [[content_cache]]
    kind = "redis"
    nodes = ["[::1]:9", "127.0.0.1:9"]
    password_file = "${secret}"
    [[content_cache]]
    kind = "s3"
    name = "far"
    bucket = "clip"
    endpoint = "http://127.0.0.1:9"
    access_key_id = "me"
    secret_access_key_file = "${secret}"
  `);
  assert.deepEqual(sharing?.cluster.members, ["redis", "far"]);
  await sharing?.close();
});

for (const [what, toml, message] of [
  ["two caches of one name", () => shared() + shared(), /same name/],
  [
    "a key file that is not there",
    () => `${shared()}[sharing]\nindex_key_file = "/none"`,
    /\/none/,
  ],
  [
    "half of fixed credentials",
    () => `[[content_cache]]\nkind = "s3"\nbucket = "b"\naccess_key_id = "me"`,
    /belong together/,
  ],
] as const) {
  test(`${what} is refused`, async () => {
    await assert.rejects(
      open(toml()),
      (error) => isClipError(error, "CONFIG_INVALID") && message.test(error.message),
    );
  });
}

test("a key that is too short is refused, and not shown", async () => {
  const keys = await file("short", "too short\n");
  await assert.rejects(
    open(`${shared()}[sharing]\nindex_key_file = "${keys}"`),
    (error) => isClipError(error, "CONFIG_INVALID") && !error.message.includes("too short"),
  );
});
