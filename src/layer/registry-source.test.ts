import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { pack } from "tar-stream";
import { ClipError } from "../base/errors.ts";
import { buildLayerIndex, type BuiltLayerIndex } from "../index/build.ts";
import type { Repository } from "../registry/reference.ts";
import { AlternateSource } from "./alternate-source.ts";
import { RegistrySource, type BlobPlace, type CompressedBlob } from "./registry-source.ts";

const never = new AbortController().signal;

/** A layer in several gzip members, as some compressors write it. */
async function makeLayer(
  level: number,
): Promise<{ tar: Buffer; gzip: Buffer; index: BuiltLayerIndex }> {
  const archive = pack();
  archive.entry({ name: "noise" }, noise);
  archive.entry({ name: "text" }, "some text that repeats. ".repeat(20_000));
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive) chunks.push(chunk as Buffer);
  const tar = Buffer.concat(chunks);
  const parts = [tar.subarray(0, 300_000), tar.subarray(300_000)];
  const gzip = Buffer.concat(parts.map((part) => gzipSync(part, { level })));
  return { tar, gzip, index: await buildLayerIndex(chunksOf(gzip), { spanBytes: 64 * 1024 }) };
}

const noise = randomBytes(500_000);
const layer = await makeLayer(6);
const other = await makeLayer(1);

async function* chunksOf(bytes: Buffer, size = 10_000) {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

function blobOf(gzip: Buffer, chunkBytes = 10_000): CompressedBlob {
  return {
    stream: (offset, length) => chunksOf(gzip.subarray(offset, offset + length), chunkBytes),
  };
}

const failing = (code: "REGISTRY_NOT_FOUND" | "SYSTEM_CALL"): CompressedBlob => ({
  async *stream() {
    yield Buffer.alloc(0);
    throw new ClipError(code, "no");
  },
});

function sourceOf(blobs: CompressedBlob[], found: Repository[] = [], from = layer): RegistrySource {
  const places: BlobPlace[] = blobs.map((blob, at) => ({
    repository: { host: `host${at}`, name: "x" },
    blob,
  }));
  return new RegistrySource({
    index: from.index.reader,
    places: () => places,
    onFound: (repository) => found.push(repository),
  });
}

async function read(source: Pick<RegistrySource, "stream">, start: number, end: number) {
  const pieces: Buffer[] = [];
  for await (const piece of source.stream(start, end, never)) pieces.push(piece);
  return Buffer.concat(pieces);
}

void test("any range of the layer comes out right, however the bytes arrive", async () => {
  const size = layer.tar.length;
  await fc.assert(
    fc.asyncProperty(
      fc.nat(size - 1),
      fc.integer({ min: 1, max: 400_000 }),
      fc.integer({ min: 1000, max: 200_000 }),
      async (start, length, chunkBytes) => {
        const end = Math.min(start + length, size);
        const bytes = await read(sourceOf([blobOf(layer.gzip, chunkBytes)]), start, end);
        assert.ok(bytes.equals(layer.tar.subarray(start, end)));
      },
    ),
    { numRuns: 40 },
  );
});

void test("the next repository goes on where one failed, and is remembered", async () => {
  const found: Repository[] = [];
  const half: CompressedBlob = {
    async *stream(offset, length) {
      yield* chunksOf(layer.gzip.subarray(offset, offset + length / 2));
      throw new ClipError("REGISTRY_UNAVAILABLE", "gone");
    },
  };
  const source = sourceOf([failing("REGISTRY_NOT_FOUND"), half, blobOf(layer.gzip)], found);
  assert.ok((await read(source, 0, layer.tar.length)).equals(layer.tar));
  assert.deepEqual(found, [{ host: "host2", name: "x" }]);
});

void test("when every repository fails the last failure is told", async () => {
  const source = sourceOf([failing("REGISTRY_NOT_FOUND"), failing("REGISTRY_NOT_FOUND")]);
  await assert.rejects(read(source, 0, 1000), { code: "REGISTRY_NOT_FOUND" });
  await assert.rejects(read(sourceOf([]), 0, 1000), { code: "REGISTRY_NOT_FOUND" });
  await assert.rejects(read(sourceOf([failing("SYSTEM_CALL"), blobOf(layer.gzip)]), 0, 1000), {
    code: "SYSTEM_CALL",
  });
});

void test("damaged compressed bytes end in an error or in wrong bytes, never in a crash", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.nat(layer.gzip.length - 1),
      fc.integer({ min: 1, max: 255 }),
      async (at, flip) => {
        const damaged = Buffer.from(layer.gzip);
        damaged[at] = (damaged[at] ?? 0) ^ flip;
        const source = sourceOf([blobOf(damaged)]);
        const outcome = await read(source, 0, layer.tar.length).catch((error: unknown) => error);
        if (outcome instanceof Buffer) assert.equal(outcome.length, layer.tar.length);
        else assert.ok(outcome instanceof ClipError && outcome.code === "CORRUPT_GZIP");
      },
    ),
    { numRuns: 30 },
  );
});

void test("the same layer compressed otherwise stands in, opened once when needed, and closed", async () => {
  let opened = 0;
  let closed = 0;
  const alternate = new AlternateSource({
    digests: () => [layer.index.head.layerDigest, other.index.head.layerDigest],
    open: async (digest) => {
      if (digest !== other.index.head.layerDigest) return undefined;
      opened++;
      const source = sourceOf([blobOf(other.gzip)], [], other);
      return { source, close: async () => void closed++ };
    },
  });
  assert.equal(opened, 0);
  const starts = layer.index.head.spans.map((span) => span.checkpoint.uncompressedOffset);
  const [start = 0, end = 0] = [starts[2], starts[5]];
  const both = await Promise.all([read(alternate, start, end), read(alternate, start, end)]);
  for (const bytes of both) assert.ok(bytes.equals(layer.tar.subarray(start, end)));
  assert.deepEqual([opened, closed], [1, 0]);
  await alternate.close();
  assert.equal(closed, 1);
  await assert.rejects(read(alternate, start, end), { code: "CLOSED" });
  const none = new AlternateSource({ digests: () => [], open: async () => undefined });
  await assert.rejects(read(none, 0, 10), { code: "REGISTRY_NOT_FOUND" });
});

void test("another blob that is being opened when the layer is closed is closed, too", async () => {
  const opening = Promise.withResolvers<void>();
  let closed = 0;
  const alternate = new AlternateSource({
    digests: () => [other.index.head.layerDigest],
    open: async (_, signal) => {
      await opening.promise;
      assert.ok(signal.aborted);
      return { source: sourceOf([]), close: async () => void closed++ };
    },
  });
  const reader = new AbortController();
  const reading = alternate.stream(0, 10, reader.signal).next();
  reader.abort();
  await assert.rejects(reading, { code: "ABORTED" });
  const closing = alternate.close();
  opening.resolve();
  await closing;
  assert.equal(closed, 1);
});
