import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { setImmediate as immediate, setTimeout as sleep } from "node:timers/promises";
import { inspect } from "node:util";
import { isClipError } from "../src/base/errors.ts";
import { bufferSource } from "../src/cache/content/content-source.ts";
import { openRedisCache, type RedisCacheOptions } from "../src/cache/content/redis-cache.ts";
import {
  contentCacheSuite,
  freshKey,
  oddSource,
  readAll,
  testBytes,
} from "../src/cache/content/testing/content-cache-suite.ts";
import {
  redisCommand,
  startRedis,
  startRedisCluster,
  type TestServer,
} from "./content-cache-servers.ts";

const MiB = 1024 * 1024;
const directory = mkdtempSync(path.join(tmpdir(), "clip-redis-"));
after(() => rmSync(directory, { recursive: true, force: true }));

describe("against a real Redis server", () => {
  let server: TestServer;
  before(async () => {
    server = await startRedis(path.join(directory, "single"));
  });
  after(() => server.service.stop("SIGKILL"));

  const open = (options: Partial<RedisCacheOptions> = {}) =>
    openRedisCache({ nodes: [{ host: "127.0.0.1", port: server.port }], ...options });
  const keys = async (pattern: string) => {
    const reply = await redisCommand(server.port, ["keys", pattern]);
    return reply === "" ? [] : reply.split("\n");
  };

  contentCacheSuite("redis", () => open({ chunkBytes: 256 * 1024 }), {
    chunkBytes: 256 * 1024,
    largeBytes: 64 * MiB,
  });

  test("nothing is left of objects that were removed, or never became complete", async () => {
    // The suite before this one has left no object but the empty one of its last test.
    await redisCommand(server.port, ["flushall"]);
    const cache = await open({ chunkBytes: MiB });
    const key = freshKey();
    await cache.store(key, bufferSource(testBytes(5 * MiB)));
    assert.equal((await keys("*")).length, 6);
    await cache.store(key, bufferSource(testBytes(3 * MiB)), { replace: true });
    assert.equal((await keys("*")).length, 4);
    await cache.remove(key);
    const failing = oddSource(testBytes(5 * MiB), (offset) => {
      if (offset > 3 * MiB) throw new Error("no more");
    });
    await assert.rejects(cache.store(freshKey(), failing), /no more/);
    assert.deepEqual(await keys("*"), []);
    await cache.close();
  });

  test("an object that has lost a part is missed, and can be stored again", async () => {
    const [cache, other] = await Promise.all([open(), open()]);
    const key = freshKey();
    const bytes = testBytes(5 * MiB);
    await cache.store(key, bufferSource(bytes));
    assert.equal((await readAll(cache, key))?.equals(bytes), true);
    const [part] = await keys(`*${key}:*:2`);
    assert.notEqual(part, undefined);
    await redisCommand(server.port, ["del", part ?? ""]);
    assert.notEqual(await cache.read(key, 0, Buffer.alloc(10)), undefined, "other parts are there");
    assert.equal(await cache.read(key, 2 * MiB - 5, Buffer.alloc(10)), undefined);
    assert.equal(await other.has(key), undefined);
    assert.deepEqual(await keys(`*${key}*`), []);
    assert.equal(await other.store(key, bufferSource(bytes)), "stored");
    assert.equal((await readAll(cache, key))?.equals(bytes), true);
    await Promise.all([cache.close(), other.close()]);
  });

  test("a value of somebody else under a key is not taken for an object", async () => {
    const cache = await open();
    for (const value of ["hello", "{}", '{"version":1,"size":-1,"chunkBytes":1,"upload":"x"}']) {
      const key = freshKey();
      await redisCommand(server.port, ["set", `clip:${key}`, value]);
      await assert.rejects(cache.read(key, 0, Buffer.alloc(1)), (error) =>
        isClipError(error, "CACHE_PROTOCOL"),
      );
      await cache.remove(key);
      assert.equal(await cache.has(key), undefined);
    }
    const key = freshKey();
    await redisCommand(server.port, ["lpush", `clip:${key}`, "list"]);
    await assert.rejects(cache.has(key), (error) => isClipError(error, "CACHE_PROTOCOL"));
    await cache.close();
  });

  test("objects expire where that is wished, their parts not before them", async () => {
    const cache = await open({ ttlSeconds: 100 });
    const key = freshKey();
    await cache.store(key, bufferSource(testBytes(2 * MiB)));
    const life = async (name: string) => Number(await redisCommand(server.port, ["ttl", name]));
    const parts = await keys(`*${key}:*`);
    assert.equal(parts.length, 2);
    const ofManifest = await life(`clip:${key}`);
    assert.equal(ofManifest > 90 && ofManifest <= 100, true);
    for (const part of parts) assert.equal((await life(part)) > ofManifest, true);
    await cache.close();
  });

  test("a store waits for the one that has the lock, and takes over when that one dies", async () => {
    const cache = await open();
    const key = freshKey();
    await redisCommand(server.port, ["set", `clip:${key}:lock`, "someone", "px", "1000"]);
    assert.equal(await cache.store(key, bufferSource(testBytes(10))), "stored");
    assert.deepEqual(await keys(`*${key}:lock`), []);
    await cache.close();
  });

  test("a store that waits for the lock can be aborted", async () => {
    const cache = await open();
    const key = freshKey();
    await redisCommand(server.port, ["set", `clip:${key}:lock`, "someone"]);
    const controller = new AbortController();
    const storing = cache.store(key, bufferSource(testBytes(10)), { signal: controller.signal });
    await sleep(50);
    controller.abort();
    await assert.rejects(storing, (error) => isClipError(error, "ABORTED"));
    await cache.close();
  });
});

describe("against a real Redis cluster of three nodes", () => {
  let nodes: TestServer[];
  before(async () => {
    nodes = await startRedisCluster(path.join(directory, "cluster"));
  });
  after(() => Promise.all(nodes.map(({ service }) => service.stop("SIGKILL"))));

  const open = () =>
    openRedisCache({
      nodes: nodes.map(({ port }) => ({ host: "127.0.0.1", port })),
      cluster: true,
      chunkBytes: 256 * 1024,
      commandTimeoutMs: 2_000,
    });

  contentCacheSuite("redis cluster", open, { chunkBytes: 256 * 1024, largeBytes: 64 * MiB });

  test("the parts of an object lie on all nodes, and a dead one fails only its own", async () => {
    const cache = await open();
    const key = freshKey();
    const bytes = testBytes(32 * MiB);
    await cache.store(key, bufferSource(bytes));
    for (const { port } of nodes) {
      const held = Number(await redisCommand(port, ["dbsize"]));
      assert.equal(held > 20, true, `only ${held} of 129 on one node`);
    }
    await nodes[2]?.service.stop("SIGKILL");
    const outcomes = await Promise.all(
      Array.from({ length: 128 }, (_, index) =>
        cache.read(key, index * 256 * 1024, Buffer.alloc(10)).catch((error: unknown) => error),
      ),
    );
    const failed = outcomes.filter((outcome) => outcome instanceof Error);
    assert.equal(failed.length > 0, true);
    for (const error of failed) {
      const typed = isClipError(error, "CACHE_UNAVAILABLE") || isClipError(error, "TIMEOUT");
      assert.equal(typed, true, inspect(error));
    }
    await cache.close();
  });
});

describe("against Redis servers in trouble", () => {
  const servers: TestServer[] = [];
  after(() => Promise.all(servers.map(({ service }) => service.stop("SIGKILL"))));
  const start = async (name: string, args: readonly string[] = [], port?: number) => {
    const server = await startRedis(path.join(directory, name), args, port);
    servers.push(server);
    return server;
  };
  const open = (port: number, options: Partial<RedisCacheOptions> = {}) =>
    openRedisCache({ nodes: [{ host: "127.0.0.1", port }], ...options });

  test("wrong or missing passwords are said to be that, without the password", async () => {
    const { port } = await start("password", ["--requirepass", "right-password"]);
    const nobody = { username: "nobody", password: "wrong-password" };
    for (const options of [{ password: "wrong-password" }, {}, nobody]) {
      const cache = await open(port, options);
      for (const call of [
        () => cache.read(freshKey(), 0, Buffer.alloc(1)),
        () => cache.store(freshKey(), bufferSource(testBytes(10))),
        () => cache.has(freshKey()),
      ]) {
        await assert.rejects(call(), (error) => {
          assert.equal(isClipError(error, "CACHE_DENIED"), true, inspect(error));
          assert.equal(inspect(error, { depth: 9, showHidden: true }).includes("wrong-"), false);
          return true;
        });
      }
      await cache.close();
    }
    const cache = await open(port, { password: "right-password" });
    assert.equal(await cache.has(freshKey()), undefined);
    await cache.close();
  });

  test("a server whose memory is full says so, and keeps nothing of the store", async () => {
    const { port } = await start("full", ["--maxmemory", "8mb"]);
    const cache = await open(port);
    const key = freshKey();
    await assert.rejects(cache.store(key, bufferSource(testBytes(32 * MiB))), (error) =>
      isClipError(error, "CACHE_FULL"),
    );
    assert.equal(await cache.has(key), undefined);
    assert.equal(await redisCommand(port, ["dbsize"]), "0");
    await cache.close();
  });

  test("a server that evicts while it is stored to says so, or has it all", async () => {
    const args = ["--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru"];
    const { port } = await start("evicting", args);
    const cache = await open(port);
    const key = freshKey();
    await assert.rejects(cache.store(key, bufferSource(testBytes(32 * MiB))), (error) =>
      isClipError(error, "CACHE_FULL"),
    );
    assert.equal(await cache.has(key), undefined);
    await cache.close();
  });

  test("a server that dies in the middle of reads fails them, and serves again when it is back", async () => {
    const mortal = await start("mortal");
    const cache = await open(mortal.port);
    const key = freshKey();
    const bytes = testBytes(64 * MiB);
    await cache.store(key, bufferSource(bytes));
    const reads = Array.from({ length: 5 }, () => cache.read(key, 0, Buffer.alloc(bytes.length)));
    const reading = Promise.allSettled(reads);
    await mortal.service.stop("SIGKILL");
    const failed = (await reading).filter((outcome) => outcome.status === "rejected");
    assert.equal(failed.length > 0, true);
    for (const { reason } of failed) {
      assert.equal(isClipError(reason, "CACHE_UNAVAILABLE"), true, inspect(reason));
    }
    await assert.rejects(cache.has(key), (error) => isClipError(error, "CACHE_UNAVAILABLE"));
    await start("mortal", [], mortal.port);
    assert.equal(await cache.read(key, 0, Buffer.alloc(10), { insist: true }), undefined);
    assert.equal(await cache.store(key, bufferSource(bytes)), "stored");
    assert.equal((await readAll(cache, key))?.equals(bytes), true);
    await cache.close();
  });

  test("a server that is frozen runs into the deadline, and an abort does not wait for it", async () => {
    const frozen = await start("frozen");
    const cache = await open(frozen.port, { commandTimeoutMs: 300 });
    const key = freshKey();
    await cache.store(key, bufferSource(testBytes(MiB)));
    process.kill(frozen.service.pid, "SIGSTOP");
    await assert.rejects(
      cache.read(key, 0, Buffer.alloc(MiB)),
      (error) => isClipError(error, "TIMEOUT") || isClipError(error, "CACHE_UNAVAILABLE"),
    );
    const controller = new AbortController();
    const reading = cache.read(key, 0, Buffer.alloc(MiB), { signal: controller.signal });
    setImmediate(() => controller.abort());
    await assert.rejects(reading, (error) => isClipError(error, "ABORTED"));
    process.kill(frozen.service.pid, "SIGCONT");
    let read: Buffer | undefined;
    for (let attempt = 0; attempt < 50 && read === undefined; attempt++) {
      read = await readAll(cache, key).catch(() => undefined);
    }
    assert.notEqual(read, undefined);
    await cache.close();
  });

  test("a store to a server that dies fails, and succeeds when it is tried again", async () => {
    const mortal = await start("dying");
    const cache = await open(mortal.port);
    const key = freshKey();
    const bytes = testBytes(16 * MiB);
    const source = oddSource(bytes, async (offset) => {
      if (offset > 8 * MiB && mortal.service.running) await mortal.service.stop("SIGKILL");
    });
    await assert.rejects(cache.store(key, source), (error) =>
      isClipError(error, "CACHE_UNAVAILABLE"),
    );
    await start("dying", [], mortal.port);
    assert.equal(await cache.store(key, bufferSource(bytes)), "stored");
    await cache.close();
  });

  for (const cluster of [false, true]) {
    const what = cluster ? "a cluster" : "a server";
    test(`a read does not wait for ${what} that is gone, until it is back`, async () => {
      let nodes = cluster
        ? await startRedisCluster(path.join(directory, "gone-cluster"))
        : [await start("gone-server")];
      servers.push(...nodes);
      const addresses = nodes.map(({ port }) => ({ host: "127.0.0.1", port }));
      const cache = await openRedisCache({ nodes: addresses, cluster, commandTimeoutMs: 60_000 });
      const read = (options = {}) => cache.read(freshKey(), 0, Buffer.alloc(1), options);
      assert.equal(await read(), undefined);
      await Promise.all(nodes.map(({ service }) => service.stop("SIGKILL")));
      const isGone = (error: unknown) => isClipError(error, "CACHE_UNAVAILABLE");
      await assert.rejects(read(), isGone);
      await assert.rejects(read({ insist: true }), isGone, "it waits for one more attempt");
      const refused = await Promise.race([read().catch((error: unknown) => error), immediate()]);
      assert.ok(isGone(refused), inspect(refused));
      nodes = await Promise.all(nodes.map((node) => node.again()));
      servers.push(...nodes);
      let answer: unknown = "none";
      for (let tries = 0; answer !== undefined && tries < 200; tries++) {
        await sleep(50);
        answer = await read().catch((error: unknown) => error);
      }
      assert.equal(answer, undefined, inspect(answer));
      await cache.close();
    });
  }

  test("nobody there is a fault, not a miss", async () => {
    const gone = await start("gone");
    await gone.service.stop("SIGKILL");
    for (const cluster of [false, true]) {
      const cache = await open(gone.port, { cluster, commandTimeoutMs: 2_000 });
      await assert.rejects(
        cache.has(freshKey()),
        (error) => isClipError(error, "CACHE_UNAVAILABLE") || isClipError(error, "TIMEOUT"),
      );
      await cache.close();
    }
  });
});
