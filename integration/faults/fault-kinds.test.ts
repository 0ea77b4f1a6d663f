/** Every kind of fault is provoked by some test. */
import assert from "node:assert/strict";
import { globSync, readFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { faultKindOf, faultKinds } from "./fault-kinds.ts";

test("every kind of fault has a test", () => {
  const files = globSync("*.test.ts", { cwd: import.meta.dirname });
  const text = files.map((file) => readFileSync(path.join(import.meta.dirname, file), "utf8"));
  const tested = (kind: string) => text.some((source) => source.includes(`"${kind}"`));
  assert.deepEqual(
    faultKinds.filter((kind) => !tested(kind)),
    [],
  );
});

test("the kind of a fault is known by the name of its test", () => {
  for (const kind of faultKinds) assert.equal(faultKindOf(`${kind}: something happens`), kind);
  assert.equal(faultKindOf("something else happens"), undefined);
});
