import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import fc from "fast-check";
import { digestOf } from "../base/digest.ts";
import { isClipError } from "../base/errors.ts";
import { windowBytesMax } from "../gzip/checkpoint.ts";
import type { EntryType, TarEntry } from "../tar/entry.ts";
import { encodeLayerIndex } from "./format.ts";
import type { LayerIndex } from "./model.ts";
import { openLayerIndex } from "./reader.ts";
import { bufferSource } from "./sources.ts";

const name = fc
  .uint8Array({ minLength: 1, maxLength: 12 })
  .map((bytes) => Buffer.from(bytes.map((byte) => (byte === 0 || byte === 0x2f ? 0x78 : byte))))
  .filter((bytes) => !/^\.\.?$/.test(bytes.toString("latin1")));
const path = fc
  .array(name, { maxLength: 4 })
  .map((names) => Buffer.from(names.map((part) => part.toString("latin1")).join("/"), "latin1"));
const attribute = fc.record(
  { name, value: fc.uint8Array({ maxLength: 20 }).map((bytes) => Buffer.from(bytes)) },
  { noNullPrototype: true },
);
const type = fc.constantFrom<EntryType>(
  "file",
  "directory",
  "symlink",
  "hardlink",
  "char",
  "block",
  "fifo",
);

interface Shape {
  entry: Omit<TarEntry, "size" | "extents">;
  runs: { hole: number; length: number; misaligned: boolean }[];
  tail: number;
}

const shape: fc.Arbitrary<Shape> = fc.record({
  entry: fc
    .record({
      path,
      type,
      mode: fc.nat(0o7777),
      uid: fc.nat(2 ** 32 - 2),
      gid: fc.nat(2 ** 32 - 2),
      mtimeSeconds: fc.integer({ min: -(2 ** 40), max: 2 ** 40 }),
      mtimeNanoseconds: fc.nat(999_999_999),
      linkTarget: path,
      deviceMajor: fc.nat(4095),
      deviceMinor: fc.nat(2 ** 20 - 1),
      xattrs: fc.array(attribute, { maxLength: 3 }),
    })
    .map((entry) => ({
      ...entry,
      linkTarget: linkTargetOf(entry),
      ...(entry.type === "char" || entry.type === "block"
        ? {}
        : { deviceMajor: 0, deviceMinor: 0 }),
    })),
  runs: fc.array(
    fc.record({
      hole: fc.nat(5000),
      length: fc.integer({ min: 1, max: 9000 }),
      misaligned: fc.boolean(),
    }),
    { maxLength: 3 },
  ),
  tail: fc.nat(2 ** 34),
});

const layerIndex: fc.Arbitrary<LayerIndex> = fc
  .record({
    shapes: fc.array(shape, { maxLength: 25 }),
    spans: fc.array(
      fc.record({
        length: fc.integer({ min: 1, max: 2 ** 21 }),
        bitOffset: fc.nat(7),
        compressed: fc.integer({ min: 1, max: 2 ** 21 }),
        window: fc.oneof(
          fc.constant(Buffer.alloc(0)),
          fc
            .uint8Array({ minLength: 1, maxLength: 100 })
            .map((bytes) => Buffer.concat([bytes, Buffer.alloc(2000)])),
        ),
      }),
      { minLength: 1, maxLength: 10 },
    ),
  })
  .map(({ shapes, spans }) => {
    const entries = place(shapes);
    const needed =
      512 +
      Math.max(
        0,
        ...entries.flatMap(({ extents }) => extents.map((e) => e.archiveOffset + e.length)),
      );
    let compressedOffset = 10;
    let uncompressedOffset = 0;
    const head = {
      layerDigest: digestOf(Buffer.from("layer")),
      diffId: digestOf(Buffer.from("tar")),
      compressedSize: 0,
      uncompressedSize: 0,
      spans: spans.map(({ length, bitOffset, compressed }, index) => {
        const all =
          index === spans.length - 1 ? Math.max(length, needed - uncompressedOffset) : length;
        const checkpoint = { compressedOffset, bitOffset, uncompressedOffset };
        compressedOffset += compressed;
        uncompressedOffset += all;
        return {
          checkpoint,
          length: all,
          compressedEnd: compressedOffset + 1,
          digest: digestOf(Buffer.from([index])),
        };
      }),
    };
    head.compressedSize = compressedOffset + 8;
    head.uncompressedSize = uncompressedOffset;
    return { head, entries, windows: spans.map(({ window }) => window) };
  });

function linkTargetOf({ type, linkTarget }: Shape["entry"]): Buffer {
  // A symbolic link has a target.
  if (type === "symlink" && linkTarget.length === 0) return Buffer.from("x");
  return type === "symlink" || type === "hardlink" ? linkTarget : Buffer.alloc(0);
}

function place(shapes: readonly Shape[]): TarEntry[] {
  let archiveEnd = 0;
  return shapes.map(({ entry, runs, tail }) => {
    const extents: TarEntry["extents"] = [];
    let fileEnd = 0;
    for (const { hole, length, misaligned } of entry.type === "file" ? runs : []) {
      const archiveOffset = misaligned ? archiveEnd : Math.ceil(archiveEnd / 512) * 512 + 512;
      extents.push({ fileOffset: fileEnd + hole, archiveOffset, length });
      fileEnd += hole + length;
      archiveEnd = archiveOffset + length;
    }
    return { ...entry, extents, size: entry.type === "file" ? fileEnd + tail : 0 };
  });
}

async function decode(encoded: Buffer): Promise<LayerIndex> {
  const reader = await openLayerIndex(bufferSource(encoded));
  const windows = [];
  for (const number of reader.head.spans.keys()) windows.push(await reader.readWindow(number));
  return { head: reader.head, entries: await reader.readEntries(), windows };
}

test("decoding gives back what was encoded", async () => {
  await fc.assert(
    fc.asyncProperty(layerIndex, async (index) => {
      assert.deepEqual(await decode(encodeLayerIndex(index)), index);
    }),
    { numRuns: 150 },
  );
});

test("an index of an empty layer has no spans and no entries", async () => {
  const digest = digestOf(Buffer.alloc(0));
  const head = {
    layerDigest: digest,
    diffId: digest,
    compressedSize: 20,
    uncompressedSize: 0,
    spans: [],
  };
  const index = { head, entries: [], windows: [] };
  assert.deepEqual(await decode(encodeLayerIndex(index)), index);
});

test("changed bytes end in an index or in a typed error, never in anything else", async () => {
  const change = fc.record({
    at: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
    to: fc.nat(255),
  });
  const changes = fc.array(change, { minLength: 1, maxLength: 3 });
  await fc.assert(
    fc.asyncProperty(layerIndex, changes, async (index, changes) => {
      const encoded = encodeLayerIndex(index);
      for (const { at, to } of changes) encoded[Math.floor(at * encoded.length)] = to;
      await decode(encoded).catch((error: unknown) => {
        const foreseen =
          isClipError(error, "CORRUPT_INDEX") || isClipError(error, "LIMIT_EXCEEDED");
        assert.ok(foreseen, String(error));
      });
    }),
    { numRuns: 300 },
  );
});

test("with the digest of the head no changed byte of head, spans and files goes unnoticed", async () => {
  const [index] = fc.sample(layerIndex, { numRuns: 1, seed: 7 });
  assert.ok(index !== undefined);
  const encoded = encodeLayerIndex(index);
  const { sizes } = await openLayerIndex(bufferSource(encoded));
  const headDigest = digestOf(encoded.subarray(0, sizes.head));
  for (let at = 0; at < sizes.total - sizes.windows; at++) {
    const changed = Buffer.from(encoded);
    changed[at] = changed[at]! ^ 1;
    await assert.rejects(
      openLayerIndex(bufferSource(changed), { headDigest }).then((reader) => reader.readEntries()),
      (error) => isClipError(error, "CORRUPT_INDEX") || isClipError(error, "LIMIT_EXCEEDED"),
    );
  }
});

test("an index that would have its reader hold too much is refused", async () => {
  const [index] = fc.sample(layerIndex, { numRuns: 1, seed: 5 });
  assert.ok(index !== undefined);
  const { head, entries } = index;
  const [first] = head.spans;
  assert.ok(first !== undefined);
  const last = { ...first, length: head.uncompressedSize, compressedEnd: 2 ** 34 };
  const greedy = { ...head, compressedSize: 2 ** 35, spans: [last] };
  const exceeds = (encoded: Buffer) =>
    assert.rejects(decode(encoded), (error) => isClipError(error, "LIMIT_EXCEEDED"));
  await exceeds(encodeLayerIndex({ head: greedy, entries, windows: [Buffer.alloc(0)] }));
  const random = randomBytes(windowBytesMax + 1);
  const fair = { ...head, spans: [{ ...last, compressedEnd: head.compressedSize }] };
  await exceeds(encodeLayerIndex({ head: fair, entries, windows: [random] }));
});

test("an index that is cut short or has something behind it is refused", async () => {
  const [index] = fc.sample(layerIndex, { numRuns: 1, seed: 3 });
  assert.ok(index !== undefined);
  const encoded = encodeLayerIndex(index);
  for (let length = 0; length < encoded.length; length++) {
    await assert.rejects(decode(encoded.subarray(0, length)), (error) =>
      isClipError(error, "CORRUPT_INDEX"),
    );
  }
  await assert.rejects(decode(Buffer.concat([encoded, Buffer.alloc(1)])), (error) =>
    isClipError(error, "CORRUPT_INDEX"),
  );
});
