import assert from "node:assert/strict";
import path from "node:path";
import { describe, test } from "node:test";
import { findBreaches, LINES_MAX, readSources } from "../scripts/layers.ts";

const root = path.join(import.meta.dirname, "..");

/** Breaches of a made-up tree. */
function breachesOf(sources: Record<string, string>): string[] {
  return findBreaches(new Map(Object.entries(sources)));
}

describe("the source tree", () => {
  test("keeps to the layers, has no cycles, runs as it is, and has short files", async () => {
    const sources = await readSources(root, ["src", "integration", "scripts"]);
    assert.ok(sources.size > 20, "the sources were found");
    assert.deepEqual(findBreaches(sources), []);
  });
});

describe("the check of the layers", () => {
  const forbidden: [string, string, string][] = [
    ["an import upwards", "src/gzip/a.ts", 'import { b } from "../layer/b.ts";'],
    ["a type from above", "src/base/a.ts", 'import type { B } from "../os/b.ts";'],
    ["an import between neighbours", "src/gzip/a.ts", 'import { b } from "../tar/b.ts";'],
    ["a re-export from above", "src/tar/a.ts", 'export * from "../erofs/b.ts";'],
    ["a dynamic import upwards", "src/fuse/a.ts", 'await import("../layer/b.ts");'],
    ["a worker above", "src/fuse/a.ts", 'new URL("../index/b.ts", import.meta.url);'],
    ["an import for effect upwards", "src/os/a.ts", 'import "../fuse/b.ts";'],
    [
      "an import over several lines",
      "src/tar/a.ts",
      'import {\n  b,\n  c,\n} from "../registry/b.ts";',
    ],
    ["telemetry in a pure folder", "src/erofs/a.ts", 'import { b } from "../telemetry/b.ts";'],
    ["configuration below the daemon", "src/layer/a.ts", 'import { b } from "../config/b.ts";'],
    ["telemetry that knows more than base", "src/telemetry/a.ts", 'import "../os/b.ts";'],
    ["a folder that nobody knows", "src/gzip/a.ts", 'import "../misc/b.ts";'],
    ["a source outside src", "src/gzip/a.ts", 'import "../../scripts/b.ts";'],
    ["koffi outside src/os", "src/gzip/a.ts", 'import koffi from "koffi";'],
    ["an enum", "src/gzip/a.ts", "export enum Colour { Red }"],
    [
      "a parameter property",
      "scripts/a.ts",
      "export class A { constructor(private b: number) {} }",
    ],
    ["a file that is too long", "src/gzip/a.ts", "//\n".repeat(LINES_MAX + 1)],
  ];
  for (const [what, file, source] of forbidden) {
    test(`finds ${what}`, () => {
      assert.equal(breachesOf({ [file]: source }).length, 1);
    });
  }

  test("finds a cycle", () => {
    const breaches = breachesOf({
      "src/gzip/a.ts": 'import "./b.ts";',
      "src/gzip/b.ts": 'import "./c.ts";',
      "src/gzip/c.ts": 'import "./a.ts";',
    });
    assert.deepEqual(breaches, [
      "import cycle: src/gzip/a.ts -> src/gzip/b.ts -> src/gzip/c.ts -> src/gzip/a.ts",
    ]);
  });

  test("allows what goes downwards, and words in comments", () => {
    const breaches = breachesOf({
      "src/layer/a.ts": [
        '// import { x } from "../cli/x.ts";',
        'import koffiFree from "node:fs";',
        'import { b } from "../gzip/b.ts";',
        'import type { Log } from "../telemetry/log.ts";',
        'import { c } from "./c.ts";',
      ].join("\n"),
      "src/daemon/a.ts": 'import { b } from "../config/b.ts";',
      "src/os/a.ts": 'import koffi from "koffi";',
      "integration/a.ts": 'import { b } from "../src/gzip/b.ts";',
    });
    assert.deepEqual(breaches, []);
  });
});
