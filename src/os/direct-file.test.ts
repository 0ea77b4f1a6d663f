import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { DirectFile } from "./direct-file.ts";

const base = process.env["CLIP_TEST_DIRECTORY"] ?? "/var/tmp";
for (const parent of [base, tmpdir(), "/dev/shm"]) {
  const directory = mkdtempSync(join(parent, "clip-direct-"));
  after(() => rmSync(directory, { recursive: true, force: true }));

  void test(`any range of a file in ${parent} is read past the page cache`, async () => {
    const path = join(directory, "file");
    const bytes = randomBytes(300_001);
    writeFileSync(path, bytes);
    const file = await DirectFile.open(path);
    try {
      for (const [offset, length] of [
        [0, 1],
        [4095, 2],
        [4096, 4096],
        [12_345, 200_000],
        [299_999, 2],
        [0, 300_001],
        [8192, 0],
      ] as const) {
        assert.deepEqual(await file.read(offset, length), bytes.subarray(offset, offset + length));
      }
      assert.equal(await file.read(299_999, 3), undefined);
      assert.equal(await file.read(400_000, 1), undefined);
      writeFileSync(path, "new contents");
      assert.equal((await file.read(0, 12))?.toString(), "new contents");
    } finally {
      await file.close();
    }
  });
}

void test("a file that is not there is an error", async () => {
  await assert.rejects(DirectFile.open(join(base, "clip-no-such-file")), { code: "ENOENT" });
});
