import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { isClipError } from "../src/base/errors.ts";
import { bufferSource } from "../src/cache/content/content-source.ts";
import { openDirectoryCache } from "../src/cache/content/directory-cache.ts";
import { freshKey, readAll, testBytes } from "../src/cache/content/testing/content-cache-suite.ts";
import { run } from "./harness/command.ts";

const MiB = 1024 * 1024;
const directory = mkdtempSync(path.join(tmpdir(), "clip-shared-"));
after(() => rmSync(directory, { recursive: true, force: true }));

const program = fileURLToPath(import.meta.resolve("./content-cache-store.ts"));
const store = (target: string, key: string, ...rest: number[]) =>
  [program, target, key, ...rest.map(String)] as const;

test("processes that store one object at the same time leave one whole object", async () => {
  const shared = path.join(directory, "several");
  mkdirSync(shared);
  const key = freshKey();
  const outcomes = await Promise.all(
    Array.from({ length: 4 }, () => run(process.execPath, store(shared, key, 20 * MiB))),
  );
  assert.deepEqual(outcomes.sort(), ["present", "present", "present", "stored"]);
  const cache = openDirectoryCache({ path: shared });
  assert.equal((await readAll(cache, key))?.equals(testBytes(20 * MiB)), true);
  assert.deepEqual(readdirSync(path.join(shared, ".incoming")), []);
  await cache.close();
});

test("a process that is killed in the middle of a store leaves nothing visible", async () => {
  const shared = path.join(directory, "killed");
  mkdirSync(shared);
  const key = freshKey();
  const child = spawn(process.execPath, store(shared, key, 20 * MiB, 10 * MiB), {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await once(child.stdout, "data");
  child.kill("SIGKILL");
  await once(child, "exit");
  const cache = openDirectoryCache({ path: shared });
  assert.equal(await cache.has(key), undefined);
  assert.equal(readdirSync(path.join(shared, ".incoming")).length, 1);
  assert.equal(await cache.store(key, bufferSource(testBytes(20 * MiB))), "stored");
  assert.equal((await readAll(cache, key))?.equals(testBytes(20 * MiB)), true);
  await cache.close();
});

test("a file system without room says so, keeps nothing of the store, and serves on", async () => {
  const small = path.join(directory, "small");
  mkdirSync(small);
  await run("mount", ["-t", "tmpfs", "-o", "size=8m", "clip-test", small]);
  try {
    const cache = openDirectoryCache({ path: small });
    const [kept, refused] = [freshKey(), freshKey()];
    await cache.store(kept, bufferSource(testBytes(2 * MiB)));
    await assert.rejects(cache.store(refused, bufferSource(testBytes(16 * MiB))), (error) =>
      isClipError(error, "CACHE_FULL"),
    );
    assert.equal(await cache.has(refused), undefined);
    assert.deepEqual(readdirSync(path.join(small, ".incoming")), []);
    assert.equal((await readAll(cache, kept))?.equals(testBytes(2 * MiB)), true);
    await cache.close();
  } finally {
    await run("umount", [small]);
  }
});

test("a file system that is only read refuses stores for good", async () => {
  const fixed = path.join(directory, "fixed");
  mkdirSync(fixed);
  await run("mount", ["-t", "tmpfs", "-o", "size=8m", "clip-test", fixed]);
  try {
    const cache = openDirectoryCache({ path: fixed });
    const key = freshKey();
    await cache.store(key, bufferSource(testBytes(10)));
    await run("mount", ["-o", "remount,ro", fixed]);
    await assert.rejects(cache.store(freshKey(), bufferSource(testBytes(10))), (error) =>
      isClipError(error, "CACHE_DENIED"),
    );
    assert.equal((await readAll(cache, key))?.equals(testBytes(10)), true);
    await cache.close();
  } finally {
    await run("umount", [fixed]);
  }
});
