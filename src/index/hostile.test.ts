/** Parts of an index that are well-formed and say what no layer is like. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { digestBytes, digestOf } from "../base/digest.ts";
import { isClipError, type ErrorCode } from "../base/errors.ts";
import { layerSpansMax } from "../base/limits.ts";
import { decodeFileTable, encodeFileTable } from "./file-table.ts";
import { filesCodec, spansCodec, type FilesMessage, type SpansMessage } from "./messages.ts";
import { decodeSpans } from "./spans.ts";

const none = Buffer.alloc(0);
const fails = (code: ErrorCode) => (error: unknown) => isClipError(error, code);

function spans(changes: Partial<SpansMessage>): Buffer {
  return spansCodec.encode({
    compressedSteps: [10],
    bitOffsets: Buffer.alloc(1),
    lengths: [1000],
    compressedLengths: [90],
    digests: digestBytes(digestOf(none)),
    windowStoredLengths: [0],
    windowEncodings: Buffer.alloc(1),
    windowChecksums: [0],
    ...changes,
  });
}

const sizes = { compressedSize: 100, uncompressedSize: 1000 };

test("spans of no bytes, or from no bytes, are refused", () => {
  assert.equal(decodeSpans(spans({}), sizes, 0).spans.length, 1);
  const empty = spans({ lengths: [0] });
  assert.throws(
    () => decodeSpans(empty, { ...sizes, uncompressedSize: 0 }, 0),
    fails("CORRUPT_INDEX"),
  );
  const fromNothing = spans({ compressedLengths: [0] });
  assert.throws(() => decodeSpans(fromNothing, sizes, 0), fails("CORRUPT_INDEX"));
});

test("columns that would take much memory are refused before they are decoded", () => {
  const before = process.memoryUsage().rss;
  // Field 3, packed: one length for each byte.
  const zeros = Buffer.alloc(60 * 1024 * 1024);
  const length = Buffer.from([0x80, 0x80, 0x80, 0x1e]);
  assert.equal(zeros.length, 0x1e << 21);
  const column = Buffer.concat([Buffer.from([0x1a]), length, zeros]);
  assert.throws(() => decodeSpans(column, sizes, 0), fails("LIMIT_EXCEEDED"));
  const grown = process.memoryUsage().rss - before;
  assert.ok(grown < 400 * 1024 * 1024, `${grown} bytes`);
  // The same, not packed.
  const single = Buffer.concat(
    Array.from({ length: layerSpansMax + 1 }, () => Buffer.from([0x18, 1])),
  );
  assert.throws(() => decodeSpans(single, sizes, 0), fails("LIMIT_EXCEEDED"));
});

/** A file table of one entry. */
function table(changes: Partial<FilesMessage>): Buffer {
  return filesCodec.encode({
    ...{ pathShared: [0], pathRest: [1], pathBytes: Buffer.from("x"), types: Buffer.from([0]) },
    ...{ modes: [0], uids: [0], gids: [0], mtimeSteps: [0], mtimeNanoseconds: [0], sizes: [0] },
    ...{ extentCounts: [0], extentGaps: [], extentRemainders: [], extentSteps: [] },
    ...{ linkLengths: [], linkBytes: none, devices: [], attributes: [] },
    ...changes,
  });
}

test("entries are refused that no archive could have", () => {
  const symlink = (target: string): Partial<FilesMessage> => ({
    types: Buffer.from([2]),
    linkLengths: [target.length],
    linkBytes: Buffer.from(target),
  });
  const device = (major: number, minor: number): Partial<FilesMessage> => ({
    types: Buffer.from([4]),
    devices: [{ entryStep: 0, major, minor }],
  });
  assert.equal(decodeFileTable(table({}), 1000).length, 1);
  assert.equal(decodeFileTable(table(symlink("t".repeat(4095))), 1000).length, 1);
  assert.equal(decodeFileTable(table(device(4095, 2 ** 20 - 1)), 1000).length, 1);
  const impossible: Record<string, Partial<FilesMessage>> = {
    "a link to nowhere": symlink(""),
    "a long link": symlink("t".repeat(4096)),
    "a wide major number": device(4096, 0),
    "a wide minor number": device(0, 2 ** 20),
    "no user": { uids: [2 ** 32 - 1] },
    "no group": { gids: [2 ** 32 - 1] },
  };
  for (const [what, changes] of Object.entries(impossible)) {
    assert.throws(() => decodeFileTable(table(changes), 1000), fails("CORRUPT_INDEX"), what);
  }
});

test("bytes that are left out are no bytes", () => {
  assert.deepEqual(decodeFileTable(none, 0), []);
  const root = encodeFileTable(decodeFileTable(table({ pathRest: [0], pathBytes: none }), 0));
  const at = root.indexOf(Buffer.from([0x1a, 0]));
  assert.ok(at >= 0, "the bytes of paths are there, and empty");
  const without = Buffer.concat([root.subarray(0, at), root.subarray(at + 2)]);
  assert.deepEqual(decodeFileTable(without, 0), decodeFileTable(root, 0));
});
