import assert from "node:assert/strict";
import { test } from "node:test";
import { formatBytes, formatTable } from "./text.ts";

test("bytes are shown in the largest unit that leaves at least one", () => {
  assert.deepEqual([0, 1023, 1024, 1536, 1024 ** 3, 5 * 1024 ** 5].map(formatBytes), [
    "0 B",
    "1023 B",
    "1.0 KiB",
    "1.5 KiB",
    "1.0 GiB",
    "5120.0 TiB",
  ]);
});

test("columns of a table are as wide as their widest cell, and lines end without blanks", () => {
  assert.equal(
    formatTable(
      ["a", "long"],
      [
        ["wide", "x"],
        ["", ""],
      ],
    ),
    "a     long\nwide  x\n\n",
  );
});
