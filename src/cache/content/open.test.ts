import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { isClipError } from "../../base/errors.ts";
import { bufferSource } from "./content-source.ts";
import { openContentCache, type MemberOptions } from "./open.ts";
import { freshKey, readAll, testBytes } from "./testing/content-cache-suite.ts";
import type { CacheEvent } from "./with-metrics.ts";
import type { BreakerChange } from "./with-circuit-breaker.ts";

const directory = mkdtempSync(join(tmpdir(), "clip-open-cache-"));
after(() => rmSync(directory, { recursive: true, force: true }));

function member(name: string, limits: MemberOptions["limits"] = {}): MemberOptions {
  return { kind: "directory", options: { name, path: join(directory, name) }, limits };
}

test("a chain is opened from its description, each member with its limits and observed", async () => {
  mkdirSync(join(directory, "near"));
  mkdirSync(join(directory, "far"));
  const events: CacheEvent[] = [];
  const cache = await openContentCache([member("near", { objectBytesMax: 10 }), member("far")], {
    onEvent: (event) => events.push(event),
  });
  const key = freshKey();
  const bytes = testBytes(100);
  assert.equal(await cache.store(key, bufferSource(bytes)), "stored");
  assert.equal((await readAll(cache, key))?.equals(bytes), true);
  assert.deepEqual(
    events.map(({ cache, operation, outcome }) => `${cache} ${operation} ${outcome}`),
    ["far store stored", "near has miss", "far has hit", "near read miss", "far read hit"],
  );
  await cache.close();
  await assert.rejects(cache.has(key), (error) => isClipError(error, "CLOSED"));
});

test("a member that fails is left alone, which is told", async () => {
  const changes: BreakerChange[] = [];
  const cache = await openContentCache([member("gone", { breakerFailures: 2 })], {
    onBreaker: (change) => changes.push(change),
  });
  for (let call = 0; call < 3; call++) await assert.rejects(cache.has(freshKey()));
  assert.deepEqual(
    changes.map(({ cache, state, error }) => [cache, state, error?.code]),
    [["gone", "open", "CACHE_UNAVAILABLE"]],
  );
  await cache.close();
});

test("clients of servers are opened without asking them anything", async () => {
  // Nothing listens on the discard port.
  const cache = await openContentCache([
    { kind: "redis", options: { nodes: [{ host: "127.0.0.1", port: 9 }] } },
    {
      kind: "s3",
      options: {
        bucket: "clip",
        endpoint: "http://127.0.0.1:9",
        credentials: { accessKeyId: "a", secretAccessKey: "b" },
        attempts: 1,
      },
    },
  ]);
  assert.equal(cache.name, "redis+s3");
  await assert.rejects(cache.has(freshKey()), (error) => isClipError(error, "CACHE_UNAVAILABLE"));
  await cache.close();
});
