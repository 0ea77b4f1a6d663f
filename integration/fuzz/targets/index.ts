/** Layer indexes: whole ones, ones whose digests fit whatever they say, and ones that are shared. */
import assert from "node:assert/strict";
import { isDeepStrictEqual } from "node:util";
import { gzipSync } from "node:zlib";
import { digestBytes, digestOf } from "../../../src/base/digest.ts";
import { sample } from "../../../src/gzip/testing.ts";
import { decodeFileTable, encodeFileTable } from "../../../src/index/file-table.ts";
import { encodeLayerIndex, encodePackedIndex } from "../../../src/index/format.ts";
import { InlineHashes } from "../../../src/index/layer-hashes.ts";
import { LayerPass } from "../../../src/index/layer-pass.ts";
import { headCodec } from "../../../src/index/messages.ts";
import type { LayerIndex } from "../../../src/index/model.ts";
import { encodeSpans } from "../../../src/index/spans.ts";
import { openLayerIndex } from "../../../src/index/reader.ts";
import { bufferSource } from "../../../src/index/sources.ts";
import {
  indexOffset,
  isVouchedFor,
  readSeal,
  sealIndex,
} from "../../../src/layer/cluster/sealed-index.ts";
import { archive, member, pax, readEntries } from "../../../src/tar/test-archive.ts";
import { Random } from "../engine/random.ts";
import { attempt, attemptAsync, magnitude, type FuzzTarget } from "../engine/target.ts";
import { assertImage } from "./image-oracle.ts";
import { changeMessage } from "./protobuf-inputs.ts";
import { changeArchive, someArchive } from "./tar-inputs.ts";

const codes = ["CORRUPT_INDEX", "LIMIT_EXCEEDED"] as const;
const layerBytes = 2 ** 20;
const digest = digestOf(Buffer.from("layer"));

/** Any bytes as a whole index: an index that can be encoded again, or a typed error. */
export const layerIndex: FuzzTarget = {
  bytesMax: 4096,
  dictionary: ["clipidx\0", Buffer.from([1, 0, 0, 0])],
  seeds: () => exampleArchives().map(indexOf),
  run: (input) => describeIndex(input),
};

/**
 * An index whose digests are right: 4 bytes compressed size, 4 bytes size, 2 bytes length of the
 * spans, the spans, the windows.
 */
export const indexSpans: FuzzTarget = {
  bytesMax: 2048,
  seeds: () => exampleArchives().map(splitIndex),
  change: (input, random) => {
    const { numbers, spans, windows } = cut(input);
    if (random.oneIn(4)) numbers[random.below(8)] = random.word();
    return join(numbers, changeMessage(spans, random), windows);
  },
  run(input) {
    const { numbers, spans, windows } = cut(input);
    const files = encodeFileTable([]);
    const section = (bytes: Buffer): object => {
      return {
        storedLength: bytes.length,
        length: bytes.length,
        encoding: 0,
        digest: digestBytes(digestOf(bytes)),
      };
    };
    const head = headCodec.encode({
      layerDigest: digestBytes(digest),
      diffId: digestBytes(digest),
      compressedSize: numbers.readUInt32LE(0),
      uncompressedSize: numbers.readUInt32LE(4),
      ...{ spans: section(spans), files: section(files), windows: section(windows) },
    } as Parameters<typeof headCodec.encode>[0]);
    const preamble = Buffer.from("clipidx\0\u0001\0\0\0\0\0\0\0", "latin1");
    preamble.writeUInt32LE(head.length, 12);
    return describeIndex(Buffer.concat([preamble, head, spans, files, windows]));
  },
};

/** Any bytes as a file table: a table that can be encoded again, and made into an image. */
export const fileTable: FuzzTarget = {
  bytesMax: 4096,
  dictionary: ["../", "a/b", ".wh.", "user.a"],
  seeds: () => exampleArchives().map((bytes) => encodeFileTable(readEntries(bytes))),
  generate: (random) => {
    const read = attempt(["CORRUPT_TAR", "LIMIT_EXCEEDED"], () => readEntries(someArchive(random)));
    return encodeFileTable("value" in read ? read.value : []);
  },
  change: changeMessage,
  run(input) {
    const outcome = attempt(codes, () => decodeFileTable(input, layerBytes));
    if ("failure" in outcome) return outcome.failure;
    const again = decodeFileTable(encodeFileTable(outcome.value), layerBytes);
    assert.ok(isDeepStrictEqual(again, outcome.value), "a table changes when it is encoded again");
    return `${magnitude(outcome.value.length)} ${assertImage(outcome.value, layerBytes)}`;
  },
};

/** Any bytes as an uncompressed layer: its index says of it what its archive says. */
export const layerPass: FuzzTarget = {
  bytesMax: 6 * 1024,
  seeds: exampleArchives,
  generate: someArchive,
  change: changeArchive,
  run(input) {
    const compressed = gzipSync(input, { level: 1 });
    const pass = new LayerPass({ spanBytes: 700 }, new InlineHashes());
    const outcome = attempt(["CORRUPT_TAR", "LIMIT_EXCEEDED"], () => {
      try {
        pass.write(compressed);
        return pass.end();
      } finally {
        pass.close();
      }
    });
    if ("failure" in outcome) return outcome.failure;
    const { head, entries } = outcome.value;
    assert.equal(head.diffId, digestOf(input));
    assert.deepEqual(entries, readEntries(input));
    return describeIndex(encodePackedIndex(outcome.value));
  },
};

const key = Buffer.alloc(32, 1);

/** Any bytes as a shared index: vouched for only if they are what was sealed. */
export const sealedIndex: FuzzTarget = {
  bytesMax: 600,
  dictionary: ["clipseal", Buffer.from([1, 0, 0, 0])],
  seeds: () => [
    sealIndex(digest, Buffer.from("an index"), key).subarray(0, 100),
    sealIndex(digest, Buffer.alloc(300, 7), undefined).subarray(0, 400),
  ],
  mend: (input) => {
    // The length is made to fit what is there, and the MAC is that of another key.
    const encoded = input.subarray(Math.min(indexOffset, input.length));
    return sealIndex(digest, encoded, Buffer.alloc(32, input.length % 3)).subarray(0, input.length);
  },
  run(input) {
    const outcome = attempt(codes, () => readSeal(input));
    if ("failure" in outcome) return outcome.failure;
    const { end, mac } = outcome.value;
    assert.ok(end >= indexOffset && mac.length === 32);
    const encoded = input.subarray(indexOffset, end);
    const isVouched = isVouchedFor(digest, encoded, mac, [key]);
    const sealed = sealIndex(digest, encoded, key).subarray(20, 52);
    assert.equal(isVouched, sealed.equals(mac));
    return `${String(isVouched)} ${magnitude(end)} ${String(end <= input.length)}`;
  },
};

async function describeIndex(bytes: Buffer): Promise<string> {
  const outcome = await attemptAsync(codes, () => readAll(bytes));
  if ("failure" in outcome) return outcome.failure;
  const { head, entries, windows } = outcome.value;
  let [uncompressed, compressed] = [0, 0];
  for (const { checkpoint, length, compressedEnd } of head.spans) {
    assert.equal(checkpoint.uncompressedOffset, uncompressed);
    assert.ok(length > 0, "a span is empty");
    assert.ok(checkpoint.compressedOffset >= compressed, "the spans are not in order");
    assert.ok(compressedEnd > checkpoint.compressedOffset, "a span has no compressed bytes");
    uncompressed += length;
    compressed = checkpoint.compressedOffset;
  }
  const again = await readAll(encodeLayerIndex(outcome.value));
  assert.ok(isDeepStrictEqual(again, outcome.value), "an index changes when it is encoded again");
  return [head.spans.length, entries.length, windows.length].map(magnitude).join(" ");
}

async function readAll(bytes: Buffer): Promise<LayerIndex> {
  const reader = await openLayerIndex(bufferSource(bytes));
  const windows: Buffer[] = [];
  for (const number of reader.head.spans.keys()) windows.push(await reader.readWindow(number));
  return { head: reader.head, entries: await reader.readEntries(), windows };
}

function exampleArchives(): Buffer[] {
  const random = new Random(3);
  const rich = archive(
    member({ name: "d", type: "5" }),
    member({ name: "d/file" }, sample("text", 3000)),
    member({ name: "d/link", type: "2", link: "file" }),
    member({ name: "d/hard", type: "1", link: "d/file" }),
    member({ name: "null", type: "3", deviceMajor: 1, deviceMinor: 3 }),
    pax([
      ["SCHILY.xattr.user.a", "value"],
      ["mtime", "1.5"],
    ]),
    member({ name: "x" }, sample("mixed", 2000)),
  );
  return [archive(), archive(member({ name: "a" }, "data")), rich, someArchive(random)].filter(
    (bytes) => "value" in attempt(["CORRUPT_TAR", "LIMIT_EXCEEDED"], () => readEntries(bytes)),
  );
}

function indexOf(bytes: Buffer): Buffer {
  const pass = new LayerPass({ spanBytes: 700 }, new InlineHashes());
  pass.write(gzipSync(bytes, { level: 1, memLevel: 1 }));
  return encodePackedIndex(pass.end());
}

function splitIndex(bytes: Buffer): Buffer {
  const pass = new LayerPass({ spanBytes: 700 }, new InlineHashes());
  pass.write(gzipSync(bytes, { level: 1, memLevel: 1 }));
  const { head, windows } = pass.end();
  const encoded = encodeSpans(head.spans, windows);
  const numbers = Buffer.alloc(8);
  numbers.writeUInt32LE(head.compressedSize, 0);
  numbers.writeUInt32LE(head.uncompressedSize, 4);
  return join(numbers, encoded.spans, encoded.windows);
}

function join(numbers: Buffer, spans: Buffer, windows: Buffer): Buffer {
  const length = Buffer.alloc(2);
  length.writeUInt16LE(Math.min(spans.length, 0xffff));
  return Buffer.concat([numbers, length, spans, windows]);
}

function cut(input: Buffer): { numbers: Buffer; spans: Buffer; windows: Buffer } {
  const head = Buffer.concat([input.subarray(0, 10)], 10);
  const spansEnd = 10 + head.readUInt16LE(8);
  return {
    numbers: head.subarray(0, 8),
    spans: input.subarray(10, spansEnd),
    windows: input.subarray(spansEnd),
  };
}
