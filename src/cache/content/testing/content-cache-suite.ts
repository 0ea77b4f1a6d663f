/** What every content cache must do, whatever is behind it. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { after, before, describe, test } from "node:test";
import { digestOf } from "../../../base/digest.ts";
import { isClipError } from "../../../base/errors.ts";
import { contentKey, type ContentCache, type ContentKey } from "../content-cache.ts";
import { bufferSource, type ContentSource } from "../content-source.ts";

/** A key that no other test has. */
export function freshKey(kind = "blob"): ContentKey {
  return contentKey(digestOf(randomBytes(16)), kind);
}

/** Bytes of which any two ranges differ. */
export function testBytes(length: number): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  const block = createHash("sha512").update(String(length)).digest();
  for (let offset = 0; offset < length; offset += 64) {
    block.writeUInt32LE(offset / 64);
    block.copy(bytes, offset);
  }
  return bytes;
}

/** A source that yields pieces of odd sizes and calls `onPiece` before each. */
export function oddSource(
  bytes: Buffer,
  onPiece: (offset: number) => void | Promise<void> = () => {},
): ContentSource {
  return {
    size: bytes.length,
    async *stream() {
      for (let offset = 0; offset < bytes.length; offset += 77_777) {
        await onPiece(offset);
        yield bytes.subarray(offset, offset + 77_777);
      }
    },
  };
}

/** All of an object, read in one piece. */
export async function readAll(cache: ContentCache, key: ContentKey): Promise<Buffer | undefined> {
  const info = await cache.has(key);
  if (info === undefined) return undefined;
  const target = Buffer.alloc(info.size, 0xee);
  return (await cache.read(key, 0, target)) === undefined ? undefined : target;
}

/**
 * Registers the suite. `create` opens one more client of the same storage; `chunkBytes` is the size
 * in which it cuts objects, and `largeBytes` that of the largest object stored.
 */
export function contentCacheSuite(
  name: string,
  create: () => Promise<ContentCache>,
  { chunkBytes, largeBytes }: { chunkBytes: number; largeBytes: number },
): void {
  describe(`${name} as a content cache`, () => {
    let cache: ContentCache;
    let other: ContentCache;
    before(async () => {
      cache = await create();
      other = await create();
    });
    after(async () => {
      await Promise.all([cache.close(), other.close()]);
    });

    const sizes = [0, 1, chunkBytes - 1, chunkBytes, chunkBytes + 1, 2 * chunkBytes, largeBytes];
    for (const size of sizes) {
      test(`${size} bytes come back as they were stored, to another client too`, async () => {
        const key = freshKey();
        const bytes = testBytes(size);
        assert.equal(await cache.store(key, oddSource(bytes)), "stored");
        assert.deepEqual(await other.has(key), { from: other.name, size });
        const read = await readAll(other, key);
        assert.equal(read !== undefined && bytes.equals(read), true);
        await cache.remove(key);
      });
    }

    test("any range inside an object can be read", async () => {
      const key = freshKey();
      const bytes = testBytes(3 * chunkBytes + 5);
      await cache.store(key, oddSource(bytes));
      const ranges = [
        [0, 1],
        [bytes.length - 1, 1],
        [chunkBytes - 1, 2],
        [chunkBytes, chunkBytes],
        [5, 3 * chunkBytes],
        [17, 4096],
        [bytes.length, 0],
        [3, 0],
      ] as const;
      await Promise.all(
        ranges.map(async ([offset, length]) => {
          const target = Buffer.alloc(length);
          assert.deepEqual(await other.read(key, offset, target), { from: other.name });
          assert.equal(target.equals(bytes.subarray(offset, offset + length)), true);
        }),
      );
      await cache.remove(key);
    });

    test("a range that ends past the object is an error, not a short read", async () => {
      const key = freshKey();
      await cache.store(key, bufferSource(testBytes(1000)));
      for (const [offset, length] of [
        [0, 1001],
        [999, 2],
        [1000, 1],
        [5000, 10],
        [1001, 0],
      ] as const) {
        await assert.rejects(cache.read(key, offset, Buffer.alloc(length)), (error) =>
          isClipError(error, "CACHE_PROTOCOL"),
        );
      }
      for (const offset of [-1, 0.5, 2 ** 53, Number.NaN]) {
        await assert.rejects(cache.read(key, offset, Buffer.alloc(1)), (error) =>
          isClipError(error, "ARGUMENT_INVALID"),
        );
      }
      await cache.remove(key);
    });

    test("what was never stored is missed, and removing it is no error", async () => {
      const key = freshKey();
      assert.equal(await cache.read(key, 0, Buffer.alloc(1)), undefined);
      assert.equal(await cache.read(key, 0, Buffer.alloc(0)), undefined);
      assert.equal(await cache.has(key), undefined);
      await cache.remove(key);
    });

    test("what was removed is missed by all, and can be stored again", async () => {
      const key = freshKey();
      const bytes = testBytes(chunkBytes + 1);
      await cache.store(key, bufferSource(bytes));
      assert.notEqual(await other.read(key, 0, Buffer.alloc(10)), undefined);
      await cache.remove(key);
      assert.equal(await cache.has(key), undefined);
      assert.equal(await other.read(key, 0, Buffer.alloc(10)), undefined);
      assert.equal(await other.store(key, bufferSource(bytes)), "stored");
      assert.equal((await readAll(cache, key))?.equals(bytes), true);
      await cache.remove(key);
    });

    test("kinds of one digest are different objects", async () => {
      const digest = digestOf(randomBytes(16));
      const [blob, index] = [contentKey(digest, "blob"), contentKey(digest, "index-1")];
      await cache.store(blob, bufferSource(Buffer.from("blob")));
      assert.equal(await cache.has(index), undefined);
      await cache.store(index, bufferSource(Buffer.from("the index")));
      await cache.remove(blob);
      assert.equal((await readAll(cache, index))?.toString(), "the index");
      await cache.remove(index);
    });

    test("an object that is there is kept, unless it is to be replaced", async () => {
      const key = freshKey();
      const [first, second] = [testBytes(chunkBytes + 1), testBytes(2 * chunkBytes)];
      await cache.store(key, bufferSource(first));
      assert.equal(await other.store(key, bufferSource(second)), "present");
      assert.equal((await readAll(cache, key))?.equals(first), true);
      assert.equal(await other.store(key, bufferSource(second), { replace: true }), "stored");
      assert.equal((await readAll(cache, key))?.equals(second), true);
      assert.equal((await readAll(other, key))?.equals(second), true);
      await cache.remove(key);
    });

    test("clients that store a key at the same time all succeed, and there is one object", async () => {
      const key = freshKey();
      const bytes = testBytes(3 * chunkBytes);
      const outcomes = await Promise.all(
        [cache, other, cache, other].map((client) => client.store(key, oddSource(bytes))),
      );
      assert.equal(outcomes.includes("stored"), true);
      assert.equal(outcomes.includes("refused"), false);
      assert.equal((await readAll(cache, key))?.equals(bytes), true);
      await cache.remove(key);
      assert.equal(await other.has(key), undefined);
    });

    test("a store that is aborted leaves nothing visible, and the next one succeeds", async () => {
      const key = freshKey();
      const bytes = testBytes(3 * chunkBytes);
      const controller = new AbortController();
      const source = oddSource(bytes, (offset) => {
        if (offset > 2 * chunkBytes) controller.abort();
      });
      await assert.rejects(cache.store(key, source, { signal: controller.signal }), (error) =>
        isClipError(error, "ABORTED"),
      );
      assert.equal(await cache.has(key), undefined);
      assert.equal(await other.read(key, 0, Buffer.alloc(1)), undefined);
      assert.equal(await other.store(key, bufferSource(bytes)), "stored");
      await cache.remove(key);
    });

    test("a source that hangs does not keep an aborted store from ending", async () => {
      const key = freshKey();
      const controller = new AbortController();
      const source = oddSource(testBytes(2 * chunkBytes), async (offset) => {
        if (offset === 0) return;
        setImmediate(() => controller.abort());
        await new Promise(() => {});
      });
      await assert.rejects(cache.store(key, source, { signal: controller.signal }), (error) =>
        isClipError(error, "ABORTED"),
      );
      assert.equal(await cache.has(key), undefined);
    });

    test("a source that fails, or lies about its size, stores nothing", async () => {
      const key = freshKey();
      const bytes = testBytes(2 * chunkBytes);
      const failing = oddSource(bytes, (offset) => {
        if (offset > chunkBytes) throw new Error("the disk is gone");
      });
      await assert.rejects(cache.store(key, failing), /the disk is gone/);
      for (const size of [bytes.length - 1, bytes.length + 1, 0]) {
        await assert.rejects(cache.store(key, { ...oddSource(bytes), size }), (error) =>
          isClipError(error, "ARGUMENT_INVALID"),
        );
      }
      assert.equal(await cache.has(key), undefined);
      assert.equal(await other.has(key), undefined);
    });

    test("a call that is aborted beforehand ends as such", async () => {
      const signal = AbortSignal.abort();
      const key = freshKey();
      for (const call of [
        () => cache.read(key, 0, Buffer.alloc(1), { signal }),
        () => cache.store(key, bufferSource(Buffer.alloc(1)), { signal }),
        () => cache.has(key, { signal }),
        () => cache.remove(key, { signal }),
      ]) {
        await assert.rejects(call(), (error) => isClipError(error, "ABORTED"));
      }
    });

    test("a read that is aborted under way never writes to its buffer again", async () => {
      const key = freshKey();
      const bytes = testBytes(3 * chunkBytes);
      await cache.store(key, bufferSource(bytes));
      const controller = new AbortController();
      const target = Buffer.alloc(bytes.length);
      const reading = cache.read(key, 0, target, { signal: controller.signal });
      setImmediate(() => controller.abort());
      const outcome = await reading.catch((error: unknown) => error);
      target.fill(7);
      await cache.read(key, 0, Buffer.alloc(bytes.length));
      // A machine this fast may have answered first.
      if (outcome instanceof Error) assert.equal(isClipError(outcome, "ABORTED"), true);
      assert.equal(
        target.every((byte) => byte === 7),
        true,
      );
      await cache.remove(key);
    });

    test("after the end every call is refused", async () => {
      const closed = await create();
      await closed.store(freshKey(), bufferSource(Buffer.alloc(0)));
      await closed.close();
      await assert.rejects(closed.has(freshKey()), (error) => isClipError(error, "CLOSED"));
      await assert.rejects(closed.store(freshKey(), bufferSource(Buffer.alloc(1))), (error) =>
        isClipError(error, "CLOSED"),
      );
      await closed.close();
    });

    test("closing ends a store that is under way", async () => {
      const closing = await create();
      const key = freshKey();
      let begun = () => {};
      const started = new Promise<void>((resolve) => {
        begun = resolve;
      });
      const source = oddSource(testBytes(2 * chunkBytes), async (offset) => {
        if (offset < chunkBytes) return;
        begun();
        await new Promise(() => {});
      });
      const storing = assert.rejects(closing.store(key, source), (error) =>
        isClipError(error, "CLOSED"),
      );
      await started;
      await closing.close();
      await storing;
      assert.equal(await cache.has(key), undefined);
    });
  });
}
