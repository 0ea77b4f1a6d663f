import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { gzipSync } from "node:zlib";
import { pack } from "tar-stream";
import { digestOf } from "../base/digest.ts";
import { isClipError } from "../base/errors.ts";
import { buildLayerIndex } from "./build.ts";
import { summariseIndex } from "./inspect.ts";

const directory = mkdtempSync(join(tmpdir(), "clip-build-"));
after(() => rmSync(directory, { recursive: true, force: true }));

const spanBytes = 128 * 1024;
const tar = await makeTar();
const layer = gzipSync(tar);
const layerDigest = digestOf(layer);
const diffId = digestOf(tar);

async function makeTar(): Promise<Buffer> {
  const archive = pack();
  archive.entry({ name: "etc/", type: "directory", mode: 0o755 });
  archive.entry({ name: "etc/random", mode: 0o644 }, randomBytes(2_500_000));
  archive.entry({ name: "etc/zeros", mode: 0o600 }, Buffer.alloc(1_000_000));
  archive.entry({ name: "etc/text" }, "some text ".repeat(50_000));
  archive.entry({ name: "link", type: "symlink", linkname: "etc/text" });
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

async function* inPieces(bytes: Buffer, size: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += size) {
    await new Promise(setImmediate);
    yield bytes.subarray(at, at + size);
  }
}

test("one pass yields digests, spans, entries and the uncompressed bytes, from a stream or a file", async () => {
  const layerPath = join(directory, "layer.gz");
  writeFileSync(layerPath, layer);
  const encoded: Buffer[] = [];
  for (const source of [inPieces(layer, 10_007), { path: layerPath }]) {
    const outputPath = join(directory, `output-${encoded.length}`);
    let progress = 0;
    const built = await buildLayerIndex(source, {
      spanBytes,
      layerDigest,
      diffId,
      outputPath,
      onProgress: (bytes) => (progress = bytes),
    });
    encoded.push(built.encoded);
    assert.equal(progress, layer.length);
    assert.deepEqual(readFileSync(outputPath), tar);
    assert.ok(statSync(outputPath).blocks * 512 < tar.length - 800_000, "zeros take no room");
    const { head, reader } = built;
    assert.deepEqual(
      [head.layerDigest, head.diffId, head.compressedSize, head.uncompressedSize],
      [layerDigest, diffId, layer.length, tar.length],
    );
    assert.ok(head.spans.length > 3);
    for (const { checkpoint, length, digest } of head.spans) {
      const at = checkpoint.uncompressedOffset;
      assert.equal(digestOf(tar.subarray(at, at + length)), digest);
    }
    const entries = await reader.readEntries();
    assert.deepEqual(
      entries.map(({ path, type }) => `${path.toString()} ${type}`),
      ["etc directory", "etc/random file", "etc/zeros file", "etc/text file", "link symlink"],
    );
    const summary = await summariseIndex(reader);
    assert.deepEqual(summary.entries, { directory: 1, file: 3, symlink: 1 });
    assert.equal(summary.sizes.total, built.encoded.length);
  }
  assert.deepEqual(encoded[0], encoded[1]);
});

test("a layer that is not what its digests say is refused", async () => {
  const other = digestOf(Buffer.from("other"));
  for (const expected of [{ layerDigest: other }, { diffId: other }]) {
    await assert.rejects(
      buildLayerIndex(inPieces(layer, 100_000), { spanBytes, ...expected }),
      (error) => isClipError(error, "CORRUPT_LAYER"),
    );
  }
});

test("damage, truncation and nonsense end in typed errors", async () => {
  const damaged = Buffer.from(layer);
  // It depends on the place who notices first.
  damaged.fill(0xff, layer.length - 5000, layer.length - 4900);
  for (const [bytes, code] of [
    [damaged, /^(?:CORRUPT_GZIP|CORRUPT_TAR|LIMIT_EXCEEDED)$/],
    [layer.subarray(0, -20), /^CORRUPT_GZIP$/],
    [Buffer.from("no gzip at all"), /^CORRUPT_GZIP$/],
    [gzipSync(Buffer.alloc(5000, "not a tar")), /^CORRUPT_TAR$/],
  ] as const) {
    await assert.rejects(
      buildLayerIndex(inPieces(bytes, 50_000), { spanBytes }),
      (error) => isClipError(error) && code.test(error.code),
    );
  }
});

test("the failure of the source is the failure of the build, and its thread ends", async () => {
  async function* failing(): AsyncGenerator<Buffer> {
    yield layer.subarray(0, 1000);
    await new Promise(setImmediate);
    throw new Error("the line went dead");
  }
  await assert.rejects(buildLayerIndex(failing(), { spanBytes }), /line went dead/);
});

test("an output that cannot be written is an error of the build", async () => {
  const outputPath = join(directory, "missing", "output");
  const build = buildLayerIndex(inPieces(layer, 50_000), { spanBytes, outputPath });
  await assert.rejects(build, (error) => isClipError(error, "SYSTEM_CALL"));
});

test("a build ends when it is aborted, though its source hangs", async () => {
  const controller = new AbortController();
  async function* hanging(): AsyncGenerator<Buffer> {
    yield layer.subarray(0, 1000);
    controller.abort();
    await new Promise(() => {});
  }
  await assert.rejects(
    buildLayerIndex(hanging(), { spanBytes, signal: controller.signal }),
    (error) => isClipError(error, "ABORTED"),
  );
  await assert.rejects(
    buildLayerIndex(hanging(), { spanBytes, signal: controller.signal }),
    (error) => isClipError(error, "ABORTED"),
  );
});

test("a thread whose build was given up in the middle builds the next layer right", async () => {
  for (let round = 0; round < 3; round++) {
    const controller = new AbortController();
    async function* interrupted(): AsyncGenerator<Buffer> {
      yield layer.subarray(0, 2_000_000);
      await new Promise(setImmediate);
      if (round === 0) controller.abort();
      else throw new Error("the line went dead");
    }
    const { signal } = controller;
    await assert.rejects(buildLayerIndex(interrupted(), { spanBytes, signal }));
    const built = await buildLayerIndex(inPieces(layer, 700_000), { spanBytes });
    assert.equal(built.head.diffId, diffId);
    assert.equal(built.head.layerDigest, layerDigest);
  }
});

test("layers that are built at the same time do not mix", async () => {
  const builds = Array.from({ length: 5 }, () =>
    buildLayerIndex(inPieces(layer, 300_000), { spanBytes, layerDigest, diffId }),
  );
  const [first, ...others] = await Promise.all(builds);
  for (const { encoded } of others) assert.ok(first?.encoded.equals(encoded));
});

test("builds leave no descriptors open", async () => {
  const count = () => readdirSync("/proc/self/fd").length;
  const before = count();
  for (let round = 0; round < 3; round++) {
    const outputPath = join(directory, "again");
    await buildLayerIndex(inPieces(layer, 50_000), { spanBytes, outputPath });
    await buildLayerIndex(inPieces(layer.subarray(0, 1000), 100), { spanBytes, outputPath }).catch(
      () => {},
    );
  }
  assert.ok(count() <= before + 1, `${count()} descriptors, ${before} before`);
});
