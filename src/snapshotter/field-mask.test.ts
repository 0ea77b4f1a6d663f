import assert from "node:assert/strict";
import { test } from "node:test";
import { isClipError } from "../base/errors.ts";
import { updatedLabels } from "./field-mask.ts";

const current = new Map([
  ["a", "1"],
  ["b", "2"],
]);
const wanted = new Map([
  ["b", "3"],
  ["c.d/e", "4"],
]);

test("without paths, and with `labels`, the labels are replaced", () => {
  assert.deepEqual(updatedLabels(current, wanted, []), wanted);
  assert.deepEqual(updatedLabels(current, wanted, ["labels"]), wanted);
});

test("a path to one label takes that over alone, and an absent one is emptied", () => {
  assert.deepEqual(
    Object.fromEntries(updatedLabels(current, wanted, ["labels.c.d/e", "labels.a"])),
    { a: "", b: "2", "c.d/e": "4" },
  );
});

test("nothing else can be updated", () => {
  for (const path of ["parent", "kind", "name", "label", ""]) {
    assert.throws(
      () => updatedLabels(current, wanted, ["labels", path]),
      (error) => isClipError(error, "ARGUMENT_INVALID"),
      path,
    );
  }
});
