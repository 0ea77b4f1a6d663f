import assert from "node:assert/strict";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { isClipError } from "../../base/errors.ts";
import { bufferSource } from "./content-source.ts";
import { openDirectoryCache } from "./directory-cache.ts";
import { fileError } from "./directory-failure.ts";
import {
  contentCacheSuite,
  freshKey,
  oddSource,
  testBytes,
} from "./testing/content-cache-suite.ts";

const MiB = 1024 * 1024;
const directory = mkdtempSync(join(tmpdir(), "clip-directory-cache-"));
after(() => rmSync(directory, { recursive: true, force: true }));

contentCacheSuite("directory", () => Promise.resolve(openDirectoryCache({ path: directory })), {
  chunkBytes: MiB,
  largeBytes: 64 * MiB,
});

test("stores that failed leave no file behind", async () => {
  const path = join(directory, "clean");
  mkdirSync(path);
  const cache = openDirectoryCache({ path });
  const failing = oddSource(testBytes(3 * MiB), (offset) => {
    if (offset > MiB) throw new Error("no more");
  });
  await assert.rejects(cache.store(freshKey(), failing), /no more/);
  const key = freshKey();
  await cache.store(key, bufferSource(testBytes(10)));
  assert.deepEqual(readdirSync(path).sort(), [".incoming", key]);
  assert.deepEqual(readdirSync(join(path, ".incoming")), []);
  await cache.close();
});

test("what a dead node left behind goes with the first store, what a live one writes stays", async () => {
  const path = join(directory, "stale");
  mkdirSync(join(path, ".incoming"), { recursive: true });
  const [old, young] = ["old", "young"].map((name) => join(path, ".incoming", name)) as [
    string,
    string,
  ];
  writeFileSync(old, "");
  writeFileSync(young, "");
  const twoDaysAgo = Date.now() / 1000 - 2 * 86_400;
  utimesSync(old, twoDaysAgo, twoDaysAgo);
  const cache = openDirectoryCache({ path });
  await cache.store(freshKey(), bufferSource(Buffer.alloc(1)));
  assert.deepEqual([existsSync(old), existsSync(young)], [false, true]);
  await cache.close();
});

test("a directory that is not there is a fault, not a miss", async () => {
  const cache = openDirectoryCache({ path: join(directory, "unmounted") });
  for (const call of [
    () => cache.read(freshKey(), 0, Buffer.alloc(1)),
    () => cache.has(freshKey()),
    () => cache.store(freshKey(), bufferSource(Buffer.alloc(1))),
  ]) {
    await assert.rejects(call(), (error) => isClipError(error, "CACHE_UNAVAILABLE"));
  }
  assert.equal(existsSync(join(directory, "unmounted")), false);
  await cache.close();
});

test("something else than a file in the place of an object is told apart from a miss", async () => {
  const cache = openDirectoryCache({ path: directory });
  const key = freshKey();
  mkdirSync(join(directory, key));
  for (const call of [() => cache.read(key, 0, Buffer.alloc(1)), () => cache.has(key)]) {
    await assert.rejects(call(), (error) => isClipError(error, "CACHE_PROTOCOL"));
  }
  await cache.close();
});

test("errors of the file system say whether to try later, make room or ask for permission", () => {
  for (const [system, expected] of [
    ["ENOSPC", "CACHE_FULL"],
    ["EDQUOT", "CACHE_FULL"],
    ["EACCES", "CACHE_DENIED"],
    ["EROFS", "CACHE_DENIED"],
    ["EIO", "CACHE_UNAVAILABLE"],
    ["ESTALE", "CACHE_UNAVAILABLE"],
    ["ETIMEDOUT", "CACHE_UNAVAILABLE"],
  ] as const) {
    const error = Object.assign(new Error(system), { code: system });
    assert.equal(fileError("directory", "write", error).code, expected, system);
  }
});
