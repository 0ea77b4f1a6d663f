import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf } from "../../base/digest.ts";
import { ClipError, isClipError } from "../../base/errors.ts";
import { contentKey, isContentKey, isWorthRetrying } from "./content-cache.ts";
import { contentCacheSuite } from "./testing/content-cache-suite.ts";
import { MemoryCache } from "./testing/memory-cache.ts";

const digest = digestOf(Buffer.alloc(0));

test("a key is the digest's key and a kind, and nothing else is", () => {
  const key = contentKey(digest, "index-1");
  assert.equal(key, `${digest.replace(":", "_")}.index-1`);
  assert.equal(isContentKey(key), true);
  for (const kind of ["", "Blob", "a/b", "..", "1", "a\n", "x".repeat(33)]) {
    assert.throws(
      () => contentKey(digest, kind),
      (error) => isClipError(error, "ARGUMENT_INVALID"),
    );
    assert.equal(isContentKey(`${digest.replace(":", "_")}.${kind}`), false, kind);
  }
});

test("faults that pass are worth another try, others are not", () => {
  for (const code of ["CACHE_UNAVAILABLE", "CACHE_FULL", "TIMEOUT"] as const) {
    assert.equal(isWorthRetrying(new ClipError(code, "")), true);
  }
  for (const code of ["CACHE_DENIED", "CACHE_PROTOCOL", "ABORTED", "CLOSED"] as const) {
    assert.equal(isWorthRetrying(new ClipError(code, "")), false);
  }
  assert.equal(isWorthRetrying(new Error("a defect")), false);
});

// The memory cache stands for all others in the tests of what wraps them: it must be honest.
const shared = new MemoryCache();
contentCacheSuite("memory", () => Promise.resolve(new MemoryCache("memory", shared.objects)), {
  chunkBytes: 262_144,
  largeBytes: 4_000_000,
});
