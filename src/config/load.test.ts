import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import fc from "fast-check";
import { isClipError } from "../base/errors.ts";
import { contentCacheSchema } from "./content-cache.ts";
import { formatConfig, loadConfig, parseConfig } from "./load.ts";

test("an empty file gives the defaults", () => {
  const config = parseConfig("", "test");
  assert.equal(config.root, "/var/lib/clip-snapshotter");
  assert.equal(config.mount.mode, "auto");
  assert.deepEqual(config.registry.host, []);
});

test("config/clip.toml shows every key with its default", async () => {
  const text = await readFile(new URL("../../config/clip.toml", import.meta.url), "utf8");
  const shown = parseConfig(text.replace(/^#(?=\S+ = |\[)/gm, ""), "config/clip.toml");
  const { dockerConfig, host, ...registry } = shown.registry;
  assert.equal(dockerConfig, "/root/.docker/config.json");
  assert.deepEqual(Object.keys(host[0] ?? {}), [
    "name",
    "plainHttp",
    "skipVerify",
    "caFile",
    "mirrors",
  ]);
  assert.equal(shown.metrics.address, "127.0.0.1:9123");
  assert.deepEqual(
    shown.contentCache.map(({ kind }) => kind),
    ["directory", "redis", "s3"],
  );
  const { storeBytesPerSecondMax, indexKeyFile, ...sharing } = shown.sharing;
  assert.equal(storeBytesPerSecondMax, 50_000_000);
  assert.equal(indexKeyFile, "/etc/clip-snapshotter/index.key");
  const optional = { metrics: {}, registry: { ...registry, host: [] }, contentCache: [], sharing };
  const defaults = { ...shown, ...optional };
  assert.deepEqual(defaults, parseConfig("", "test"));
});

test("flags override the file", () => {
  const config = parseConfig('root = "/a"\n[mount]\nmode = "fuse"', "test", {
    root: "/b",
    containerd: "/c.sock",
  });
  assert.equal(config.root, "/b");
  assert.equal(config.mount.mode, "fuse");
  assert.equal(config.containerd.address, "/c.sock");
});

test("every key of content caches is shown in config/clip.toml", async () => {
  const text = await readFile(new URL("../../config/clip.toml", import.meta.url), "utf8");
  const { contentCache } = parseConfig(text.replace(/^#(?=\S+ = |\[)/gm, ""), "config/clip.toml");
  const common = Object.keys(contentCache.find(({ kind }) => kind === "directory") ?? {});
  for (const schema of contentCacheSchema.options) {
    const shown = contentCache.find(({ kind }) => kind === schema.entries.kind.literal) ?? {};
    const all = new Set([...Object.keys(shown), ...common]);
    for (const key of Object.keys(schema.entries)) assert.ok(all.has(key), key);
  }
});

test("the shown configuration reads back as itself", () => {
  const config = parseConfig('[[registry.host]]\nname = "a:5000"\nplain_http = true', "test");
  assert.deepEqual(parseConfig(formatConfig(config), "test"), config);
});

for (const [what, text, message] of [
  ["a wrong type", "root = 5", /root/],
  ["a relative path", 'root = "x"', /absolute/],
  ["an unknown key", "[mount]\nmodus = 1", /mount\.modus/],
  ["a value out of range", "[fuse]\nthreads = 0", /fuse\.threads/],
  [
    "a key of a registry host",
    '[[registry.host]]\nname = "a"\nplain_http = 1',
    /host\.0\.plain_http/,
  ],
  ["a content cache of no kind", "[[content_cache]]\nkind = 'tape'", /content_cache\.0\.kind/],
  ["a directory without a path", "[[content_cache]]\nkind = 'directory'", /content_cache\.0\.path/],
  [
    "a key of another kind",
    "[[content_cache]]\nkind = 'directory'\npath = '/a'\nbucket = 'b'",
    /content_cache\.0\.bucket/,
  ],
  ["no TOML", "root = ", /not TOML/],
] as const) {
  test(`${what} is refused with the key in the message`, () => {
    assert.throws(
      () => parseConfig(text, "test.toml"),
      (error) => isClipError(error, "CONFIG_INVALID") && message.test(error.message),
    );
  });
}

test("a file that is not there is refused", async () => {
  await assert.rejects(
    loadConfig("/nonexistent/clip.toml", {}),
    (error) => isClipError(error, "CONFIG_INVALID") && error.message.includes("/nonexistent/"),
  );
});

test("any text gives a configuration or CONFIG_INVALID", () => {
  const lines = fc.constantFrom(
    "[mount]",
    "mode = ",
    "root",
    '"/x"',
    "[[registry.host]]",
    "\n",
    "=",
    "1",
    "[",
    "{",
  );
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.array(lines).map((parts) => parts.join(" ")),
      ),
      (text) => {
        try {
          parseConfig(text, "test");
        } catch (error) {
          assert.ok(isClipError(error, "CONFIG_INVALID"), String(error));
        }
      },
    ),
  );
});
