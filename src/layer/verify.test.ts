import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { pack } from "tar-stream";
import { digestOf } from "../base/digest.ts";
import { buildErofsImage } from "../erofs/writer.ts";
import type { TarEntry } from "../tar/entry.ts";
import { TarReader } from "../tar/reader.ts";
import { readImageFile, writeImageFile } from "./image-file.ts";
import { verifyLayer } from "./verify.ts";

const base = await mkdtemp(join(tmpdir(), "clip-verify-"));
after(() => rm(base, { recursive: true, force: true }));

const never = new AbortController().signal;

async function makeLayer() {
  const archive = pack();
  archive.entry({ name: "etc/passwd" }, "root:x:0:0\n");
  archive.entry({ name: "large" }, Buffer.alloc(3_000_000, 7));
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive) chunks.push(chunk as Buffer);
  const tar = Buffer.concat(chunks);
  const entries: TarEntry[] = [];
  const reader = new TarReader({ onEntry: (entry) => entries.push(entry) });
  reader.write(tar);
  reader.end();
  const directory = await mkdtemp(join(base, "d-"));
  const diffId = digestOf(tar);
  const { image } = buildErofsImage(entries, { blobSize: tar.length, diffId });
  const order = {
    ...{ path: join(directory, "layer"), imagePath: join(directory, "image"), diffId },
    ...{ size: tar.length, keepRuntimeDirectories: false },
  };
  await writeFile(order.path, tar);
  await writeImageFile(order.imagePath, image);
  return { tar, entries, image, order };
}

void test("a layer that is what it should be is left as it is", async () => {
  const { order, image } = await makeLayer();
  const found = await verifyLayer(order, never);
  assert.deepEqual(found, { digest: order.diffId, image: "right" });
  assert.deepEqual(await readImageFile(order.imagePath), { image, state: "right" });
});

void test("an image from an index that lied about the files is found out and left", async () => {
  const { order, entries, tar } = await makeLayer();
  const forged = entries.map((entry) => ({ ...entry, mode: 0o4777 }));
  const lie = buildErofsImage(forged, { blobSize: tar.length, diffId: order.diffId });
  await writeImageFile(order.imagePath, lie.image);
  assert.deepEqual(await verifyLayer(order, never), { digest: order.diffId, image: "lie" });
  assert.deepEqual((await readImageFile(order.imagePath)).image, lie.image);
});

void test("an image that is damaged on disk is replaced", async () => {
  const { order, image } = await makeLayer();
  const file = await readFile(order.imagePath);
  file[600] = (file[600] ?? 0) ^ 1;
  await writeFile(order.imagePath, file);
  assert.equal((await readImageFile(order.imagePath)).state, "damaged");
  assert.deepEqual(await verifyLayer(order, never), { digest: order.diffId, image: "made" });
  assert.deepEqual(await readImageFile(order.imagePath), { image, state: "right" });
  await writeFile(order.imagePath, image);
  assert.equal((await readImageFile(order.imagePath)).state, "unknown");
});

void test("wrong bytes are told by their digest, even where they are no archive", async () => {
  const { order, tar } = await makeLayer();
  const wrong = Buffer.alloc(tar.length, 9);
  await writeFile(order.path, wrong);
  assert.deepEqual(await verifyLayer(order, never), {
    digest: digestOf(wrong),
    image: "right",
  });
});

void test("a file that is cut short, or no archive in spite of its digest, is an error", async () => {
  const { order, tar } = await makeLayer();
  await writeFile(order.path, tar.subarray(0, 1000));
  await assert.rejects(verifyLayer(order, never), { code: "CORRUPT_LAYER" });
  const garbage = Buffer.alloc(tar.length, 9);
  await writeFile(order.path, garbage);
  await assert.rejects(verifyLayer({ ...order, diffId: digestOf(garbage) }, never), {
    code: "CORRUPT_TAR",
  });
});

void test("the check can be given up", async () => {
  const { order } = await makeLayer();
  await assert.rejects(verifyLayer(order, AbortSignal.abort()), { code: "ABORTED" });
});
