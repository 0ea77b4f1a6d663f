import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, before, test } from "node:test";
import { DataFiles } from "./data-files.ts";
import { makeLayer, patternAt } from "./fixtures.ts";
import type { FuseLayer } from "./layer.ts";

let directory: string;
let dataPath: string;

before(async () => {
  directory = await mkdtemp(path.join(tmpdir(), "clip-data-files-"));
  dataPath = path.join(directory, "data");
  await writeFile(dataPath, patternAt(0, 1000));
});

after(() => rm(directory, { recursive: true }));

function layerOf(number: number, file = dataPath): FuseLayer {
  return makeLayer({ number, size: 1000, spanBytes: 1000, present: true, dataPath: file });
}

function openDescriptors(): number {
  return readdirSync("/proc/self/fd").length;
}

test("bytes are read wherever they are, and a file that ends too early is not filled up", () => {
  const files = new DataFiles();
  const target = Buffer.alloc(100);
  assert.equal(files.read(layerOf(1), 850, target), true);
  assert.deepEqual(target, patternAt(850, 100));
  assert.equal(files.read(layerOf(1), 950, target), false);
  files.close(1);
});

test("a file that is not there is an answer, and is tried again", async () => {
  const files = new DataFiles();
  const late = path.join(directory, "late");
  assert.equal(files.read(layerOf(1, late), 0, Buffer.alloc(1)), false);
  await writeFile(late, "x");
  assert.equal(files.read(layerOf(1, late), 0, Buffer.alloc(1)), true);
  files.close(1);
});

test("however many layers there are, the number of open files is bounded", () => {
  const files = new DataFiles();
  const before = openDescriptors();
  for (let round = 0; round < 2; round++) {
    for (let number = 1; number <= 300; number++) {
      assert.equal(files.read(layerOf(number), 0, Buffer.alloc(1)), true);
    }
  }
  assert.equal(openDescriptors() - before, 256);
  for (let number = 1; number <= 300; number++) files.close(number);
  assert.equal(openDescriptors(), before);
});
