import assert from "node:assert/strict";
import dns from "node:dns";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, before, describe, mock, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { inspect } from "node:util";
import { isClipError } from "../src/base/errors.ts";
import { bufferSource } from "../src/cache/content/content-source.ts";
import { openS3Cache, type S3CacheOptions } from "../src/cache/content/s3-cache.ts";
import {
  contentCacheSuite,
  freshKey,
  oddSource,
  readAll,
  testBytes,
} from "../src/cache/content/testing/content-cache-suite.ts";
import { run } from "./harness/command.ts";
import { s3Credentials, startS3, type TestServer } from "./content-cache-servers.ts";

const MiB = 1024 * 1024;
const directory = mkdtempSync(path.join(tmpdir(), "clip-s3-"));
let server: TestServer;

before(async () => {
  // Few resolvers know the names below localhost (RFC 6761 §6.3).
  const lookup = dns.lookup;
  mock.method(dns, "lookup", ((name: string, ...rest: unknown[]) => {
    Reflect.apply(lookup, dns, [name.endsWith(".localhost") ? "localhost" : name, ...rest]);
  }) as typeof lookup);
  server = await startS3(directory);
});
after(async () => {
  await server.service.stop("SIGKILL");
  rmSync(directory, { recursive: true, force: true });
});

function open(options: Partial<S3CacheOptions> = {}) {
  return openS3Cache({
    bucket: "clip",
    endpoint: `http://localhost:${server.port}`,
    pathStyle: true,
    credentials: s3Credentials,
    partBytes: 5 * MiB,
    attempts: 1,
    ...options,
  });
}

describe("against a real S3 server", () => {
  contentCacheSuite("s3", () => open(), { chunkBytes: 5 * MiB, largeBytes: 64 * MiB });
  contentCacheSuite(
    "s3 with virtual-host addresses, a prefix and no conditional puts",
    () => open({ pathStyle: false, prefix: "some/prefix/", conditionalPut: false }),
    { chunkBytes: 5 * MiB, largeBytes: 6 * MiB },
  );

  test("objects lie under prefix and key", async () => {
    const cache = await open({ prefix: "layers/" });
    const key = freshKey();
    await cache.store(key, bufferSource(Buffer.from("here")));
    assert.equal(readFileSync(path.join(directory, "data/clip/layers", key), "utf8"), "here");
    await cache.close();
  });

  test("an upload that ends early leaves no parts on the server", async () => {
    mkdirSync(path.join(directory, "data/abandoned"));
    const cache = await open({ bucket: "abandoned" });
    const failing = oddSource(testBytes(20 * MiB), (offset) => {
      if (offset > 12 * MiB) throw new Error("no more");
    });
    await assert.rejects(cache.store(freshKey(), failing), /no more/);
    const controller = new AbortController();
    const aborting = oddSource(testBytes(20 * MiB), (offset) => {
      if (offset > 12 * MiB) controller.abort();
    });
    await assert.rejects(
      cache.store(freshKey(), aborting, { signal: controller.signal }),
      (error) => isClipError(error, "ABORTED"),
    );
    // The server keeps a directory for each object, and in it one for each upload.
    const uploads = path.join(directory, "data/abandoned/.sgwtmp/multipart");
    const left = () =>
      readdirSync(uploads, { recursive: true, encoding: "utf8" }).filter((entry) =>
        entry.includes(path.sep),
      );
    // What was on its way when the caller gave up is cleaned up behind it.
    for (let waited = 0; waited < 200 && left().length > 0; waited++) await sleep(50);
    assert.deepEqual(left(), []);
    await cache.close();
  });

  test("credentials come from the environment where none are given", async (context) => {
    const { AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY } = process.env;
    context.after(() => {
      restore("AWS_ACCESS_KEY_ID", AWS_ACCESS_KEY_ID);
      restore("AWS_SECRET_ACCESS_KEY", AWS_SECRET_ACCESS_KEY);
    });
    process.env["AWS_ACCESS_KEY_ID"] = s3Credentials.accessKeyId;
    process.env["AWS_SECRET_ACCESS_KEY"] = s3Credentials.secretAccessKey;
    const cache = await openS3Cache({
      bucket: "clip",
      endpoint: `http://127.0.0.1:${server.port}`,
      pathStyle: true,
    });
    assert.equal(await cache.has(freshKey()), undefined);
    await cache.close();
  });

  test("wrong credentials and a missing bucket are said to be that, without the secret", async () => {
    const wrong = { accessKeyId: "clip-test", secretAccessKey: "not-this-one" };
    const unknown = { accessKeyId: "nobody", secretAccessKey: "not-this-one" };
    for (const options of [{ credentials: wrong }, { credentials: unknown }, { bucket: "none" }]) {
      const cache = await open(options);
      for (const call of [
        () => cache.read(freshKey(), 0, Buffer.alloc(1)),
        () => cache.store(freshKey(), bufferSource(testBytes(MiB))),
        () => cache.store(freshKey(), bufferSource(testBytes(6 * MiB))),
      ]) {
        await assert.rejects(call(), (error) => {
          assert.equal(isClipError(error, "CACHE_DENIED"), true, inspect(error));
          assert.equal(inspect(error, { depth: 9, showHidden: true }).includes("not-this"), false);
          return true;
        });
      }
      await cache.close();
    }
  });

  test("two nodes that complete an upload at once end with one object", async () => {
    const [a, b] = await Promise.all([open(), open()]);
    const key = freshKey();
    const bytes = testBytes(11 * MiB);
    // Both wait before their last piece until the other is there as well.
    let waiting = 0;
    let release = () => {};
    const both = new Promise<void>((resolve) => {
      release = resolve;
    });
    const source = oddSource(bytes, async (offset) => {
      if (offset + 77_777 < bytes.length) return;
      if (++waiting === 2) release();
      await both;
    });
    const outcomes = await Promise.all([a.store(key, source), b.store(key, source)]);
    assert.deepEqual(outcomes.sort(), ["present", "stored"]);
    assert.equal((await readAll(a, key))?.equals(bytes), true);
    await Promise.all([a.close(), b.close()]);
  });

  test("a server that dies in the middle of reads fails them, and serves again when it is back", async () => {
    const mortal = await startS3(path.join(directory, "mortal"));
    const cache = await open({ endpoint: `http://127.0.0.1:${mortal.port}` });
    const key = freshKey();
    const bytes = testBytes(64 * MiB);
    await cache.store(key, bufferSource(bytes));
    const target = Buffer.alloc(bytes.length);
    const reads = Array.from({ length: 4 }, () => cache.read(key, 0, Buffer.alloc(bytes.length)));
    const reading = Promise.allSettled([...reads, cache.read(key, 0, target)]);
    await mortal.service.stop("SIGKILL");
    for (const outcome of await reading) {
      if (outcome.status === "fulfilled") continue;
      assert.equal(isClipError(outcome.reason, "CACHE_UNAVAILABLE"), true, inspect(outcome.reason));
    }
    await assert.rejects(cache.has(key), (error) => isClipError(error, "CACHE_UNAVAILABLE"));
    const again = await startS3(path.join(directory, "mortal"), mortal.port);
    assert.equal((await readAll(cache, key))?.equals(bytes), true);
    await cache.close();
    await again.service.stop("SIGKILL");
  });

  test("a server whose disk is full fails the store, keeps nothing of it, and serves on", async () => {
    const small = path.join(directory, "small");
    mkdirSync(small);
    await run("mount", ["-t", "tmpfs", "-o", "size=24m", "clip-test", small]);
    const full = await startS3(small);
    try {
      const cache = await open({ endpoint: `http://127.0.0.1:${full.port}` });
      const [kept, refused] = [freshKey(), freshKey()];
      await cache.store(kept, bufferSource(testBytes(2 * MiB)));
      await assert.rejects(cache.store(refused, bufferSource(testBytes(40 * MiB))), (error) => {
        // What a server says about its disk differs from server to server.
        const codes = ["CACHE_FULL", "CACHE_UNAVAILABLE"];
        return isClipError(error) && codes.includes(error.code);
      });
      assert.equal(await cache.has(refused), undefined);
      assert.equal((await readAll(cache, kept))?.equals(testBytes(2 * MiB)), true);
      assert.equal(await cache.store(refused, bufferSource(testBytes(6 * MiB))), "stored");
      await cache.close();
    } finally {
      await full.service.stop("SIGKILL");
      await run("umount", [small]);
    }
  });

  test("a server that is frozen runs into the deadline, and an abort does not wait for it", async () => {
    const frozen = await startS3(path.join(directory, "frozen"));
    const cache = await open({
      endpoint: `http://127.0.0.1:${frozen.port}`,
      requestTimeoutMs: 300,
    });
    const key = freshKey();
    await cache.store(key, bufferSource(testBytes(MiB)));
    process.kill(frozen.service.pid, "SIGSTOP");
    await assert.rejects(cache.read(key, 0, Buffer.alloc(MiB)), (error) =>
      isClipError(error, "TIMEOUT"),
    );
    const controller = new AbortController();
    const reading = cache.read(key, 0, Buffer.alloc(MiB), { signal: controller.signal });
    setImmediate(() => controller.abort());
    await assert.rejects(reading, (error) => isClipError(error, "ABORTED"));
    process.kill(frozen.service.pid, "SIGCONT");
    assert.notEqual(await readAll(cache, key), undefined);
    await cache.close();
    await frozen.service.stop("SIGKILL");
  });
});

function restore(name: string, value: string | undefined): void {
  if (value === undefined) delete process.env[name];
  else process.env[name] = value;
}
