/** Layers that are small as they come and large when they are looked at: time and memory stay bounded. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { constants, gzipSync, zstdCompressSync } from "node:zlib";
import { digestOf } from "../base/digest.ts";
import { isClipError } from "../base/errors.ts";
import { buildErofsImage } from "../erofs/writer.ts";
import { decodeSpanSync } from "../gzip/decode.ts";
import { gzipMember } from "../gzip/testing.ts";
import { header } from "../tar/test-archive.ts";
import { encodings } from "./compression.ts";
import { encodePackedIndex, openSection } from "./format.ts";
import { InlineHashes } from "./layer-hashes.ts";
import { LayerPass } from "./layer-pass.ts";
import { openLayerIndex } from "./reader.ts";
import { bufferSource } from "./sources.ts";

const MiB = 1024 * 1024;
const GiB = 1024 * MiB;

/** The most that this process held while `work` ran, less what it held before. */
function grownBy(work: (look: () => void) => void): number {
  const before = process.memoryUsage.rss();
  let most = before;
  const look = (): void => {
    most = Math.max(most, process.memoryUsage.rss());
  };
  work(look);
  look();
  return most - before;
}

test("a gibibyte of zeros in a mebibyte of gzip takes little memory, and so does each span", () => {
  const zeros = gzipSync(Buffer.alloc(16 * MiB));
  const first = gzipSync(header({ name: "zeros", size: GiB }));
  const pass = new LayerPass({ spanBytes: MiB }, new InlineHashes());
  const grown = grownBy((look) => {
    pass.write(first);
    for (let count = 0; count < GiB / (16 * MiB); count++) {
      pass.write(zeros);
      look();
    }
  });
  assert.ok(grown < 100 * MiB, `${grown} bytes`);
  const { head, entries } = pass.end();
  assert.equal(entries[0]?.size, GiB);
  assert.ok(head.compressedSize < 2 * MiB && head.uncompressedSize === GiB + 512);
  for (const { length } of head.spans) assert.ok(length <= 16 * MiB + 512);
});

test("a span that yields more than its index says is given up at once", () => {
  const compressed = gzipSync(Buffer.alloc(256 * MiB)).subarray(10);
  const request = { compressed, checkpoint: { bitOffset: 0 }, window: Buffer.alloc(0) };
  const grown = grownBy(() => {
    assert.throws(
      () => decodeSpanSync({ ...request, length: 1000 }),
      (error) => isClipError(error, "CORRUPT_GZIP"),
    );
  });
  assert.ok(grown < 20 * MiB, `${grown} bytes`);
});

test("a section that yields more than it says is given up at once", () => {
  const params = { [constants.ZSTD_c_compressionLevel]: 1 };
  const bytes = zstdCompressSync(Buffer.alloc(256 * MiB), { params });
  const section = { offset: 0, storedLength: bytes.length, length: 1000, digest: digestOf(bytes) };
  const grown = grownBy(() => {
    assert.throws(
      () => openSection(bytes, { ...section, encoding: encodings.zstd }),
      (error) => isClipError(error, "CORRUPT_INDEX"),
    );
  });
  assert.ok(grown < 20 * MiB, `${grown} bytes`);
});

test("a million entries are indexed, read back and made into an image", async () => {
  const perMember = 1000;
  const pass = new LayerPass({ spanBytes: MiB }, new InlineHashes());
  const grown: number[] = [];
  grown.push(
    grownBy((look) => {
      for (let number = 0; number < 1_000_000; number += perMember) {
        const headers = Array.from({ length: perMember }, (_, at) =>
          header({ name: `d${number / perMember}/f${at}` }),
        );
        pass.write(gzipMember(Buffer.concat(headers), { level: 1 }));
        if (number % 100_000 === 0) look();
      }
    }),
  );
  const encoded = encodePackedIndex(pass.end());
  assert.ok(encoded.length < 8 * MiB, `${encoded.length} bytes`);
  const reader = await openLayerIndex(bufferSource(encoded));
  const entries = await reader.readEntries();
  assert.equal(entries.length, 1_000_000);
  grown.push(
    grownBy(() => {
      const options = { blobSize: 512 * entries.length, diffId: reader.head.diffId };
      const { inodes, image } = buildErofsImage(entries, options);
      assert.equal(inodes, 1_000_000 + 1001);
      assert.ok(image.length < 256 * MiB);
    }),
  );
  assert.ok(Math.max(...grown) < 1536 * MiB, grown.join(", "));
});
