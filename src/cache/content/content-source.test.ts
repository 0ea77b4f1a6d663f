import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isClipError } from "../../base/errors.ts";
import {
  bufferSource,
  exactChunks,
  rangeContentSource,
  type ContentSource,
} from "./content-source.ts";

const never = new AbortController().signal;

test("however a stream is cut, the chunks have the wished size and the same bytes", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.uint8Array({ maxLength: 50 }), { maxLength: 20 }),
      fc.integer({ min: 1, max: 70 }),
      async (pieces, chunkBytes) => {
        const bytes = Buffer.concat(pieces);
        const source: ContentSource = {
          size: bytes.length,
          async *stream() {
            for (const piece of pieces) yield await Promise.resolve(Buffer.from(piece));
          },
        };
        const chunks = await collect(exactChunks(source, chunkBytes, never));
        assert.equal(Buffer.concat(chunks).equals(bytes), true);
        assert.equal(chunks.length, Math.ceil(bytes.length / chunkBytes));
        assert.equal(
          chunks.slice(0, -1).every((chunk) => chunk.length === chunkBytes),
          true,
        );
      },
    ),
  );
});

test("bytes in memory and in a file give the same stream, as often as it is asked for", async () => {
  const bytes = Buffer.alloc(2_500_000, "abc");
  const file = rangeContentSource({
    size: bytes.length,
    read: (offset, length) => Promise.resolve(bytes.subarray(offset, offset + length)),
  });
  for (const source of [bufferSource(bytes), file, file]) {
    assert.equal(Buffer.concat(await collect(source.stream(never))).equals(bytes), true);
  }
  assert.deepEqual(await collect(bufferSource(Buffer.alloc(0)).stream(never)), []);
});

test("a stream that is longer or shorter than promised ends in an error", async () => {
  for (const size of [0, 9, 11, 1000]) {
    const source = { ...bufferSource(Buffer.alloc(10)), size };
    await assert.rejects(collect(exactChunks(source, 4, never)), (error) =>
      isClipError(error, "ARGUMENT_INVALID"),
    );
  }
});

async function collect(items: AsyncIterable<Buffer>): Promise<Buffer[]> {
  const collected: Buffer[] = [];
  for await (const item of items) collected.push(item);
  return collected;
}
