import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isClipError } from "../base/errors.ts";
import { parseFilters } from "./filters.ts";
import { refLabel, type Snapshot } from "./snapshot.ts";

const snapshot: Snapshot = {
  id: 1,
  name: "default/1/some key",
  parent: "",
  kind: "active",
  labels: new Map([
    ["plain", "value"],
    ["containerd.io/gc.root", "2026-01-01"],
    ["quote", 'a"b\\c\n'],
  ]),
  createdAt: 0n,
  updatedAt: 0n,
  layer: undefined,
  usage: undefined,
};

function matches(...filters: string[]): boolean {
  return parseFilters(filters).matches(snapshot);
}

/** A string as Go's %q writes it, near enough. */
function quote(text: string): string {
  return `"${Array.from(text, (character) => {
    if (character === '"' || character === "\\") return `\\${character}`;
    if (character === "\n") return "\\n";
    const code = character.codePointAt(0) ?? 0;
    if (code < 0x20) return `\\x${code.toString(16).padStart(2, "0")}`;
    if (code > 0xffff) return `\\U${code.toString(16).padStart(8, "0")}`;
    return code > 0x7e ? `\\u${code.toString(16).padStart(4, "0")}` : character;
  }).join("")}"`;
}

test("each operator does what containerd's does", () => {
  const wanted = [
    'name=="default/1/some key"',
    'parent==""',
    "parent",
    "kind==active",
    "kind!=committed",
    "kind ~= ^act",
    "kind~=/^a.*e$/",
    "kind~=|e\\|x|",
    "kind~=(?i)ACTIVE",
    "labels.plain",
    "labels.plain==value",
    'labels."containerd.io/gc.root"',
    'labels."containerd.io/gc.root"==2026-01-01',
    "labels.missing!=value",
    'labels.quote=="a\\"b\\\\c\\x0a"',
    'labels.quote=="\\141\\u0022b\\\\c\\n"',
    "kind==active,labels.plain",
    "",
  ];
  for (const filter of wanted) assert.equal(matches(filter), true, filter);
  const unwanted = [
    "name==other",
    'parent!=""',
    "kind==Active",
    "kind~=^committed$",
    "labels.missing",
    "labels.missing==value",
    "labels.plain!=value",
    "labels",
    "kind.x",
    "unknown",
    "kind==active,labels.missing",
  ];
  for (const filter of unwanted) assert.equal(matches(filter), false, filter);
});

test("several filters are alternatives, and none is all", () => {
  assert.equal(matches("kind==view", "kind==active"), true);
  assert.equal(matches("kind==view", "kind==committed"), false);
  assert.equal(matches(), true);
});

test("what is no filter is refused", () => {
  for (const filter of [
    ",",
    "name==",
    "name=x",
    "name===x",
    'name=="x',
    'name=="\\q"',
    'name=="\\U00110000"',
    "name==/x/",
    "name==x y",
    "name..x",
    ".name",
    "name==x,",
    "name~=(",
    "'name'",
    'name=="\n"',
  ]) {
    assert.throws(
      () => parseFilters([filter]),
      (error) => isClipError(error, "ARGUMENT_INVALID"),
      filter,
    );
  }
});

test("a pattern that would take years is given up", () => {
  const labelled = { ...snapshot, labels: new Map([["x", "a".repeat(60)]]) };
  const filter = parseFilters(["labels.x~=/^(a+)+b$/"]);
  assert.throws(
    () => filter.matches(labelled),
    (error) => isClipError(error, "ARGUMENT_INVALID"),
  );
});

test("containerd's look-up of a remote snapshot is recognized", () => {
  const parent = 'default/1/extract-1-x sha256:0 "é\n';
  const filter = `labels.${quote(refLabel)}==sha256:abc,parent==${quote(parent)}`;
  assert.deepEqual(parseFilters([filter]).lookup, { parent, ref: "sha256:abc" });
  assert.deepEqual(parseFilters([filter, "name==x"]).lookup, undefined);
  assert.deepEqual(parseFilters([`labels.${quote(refLabel)},parent==x`]).lookup, undefined);
});

test("quoted words come back as they were, whatever is in them", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), fc.string({ unit: "grapheme" }), (key, value) => {
      const filter = parseFilters([`labels.${quote(key)}==${quote(value)}`]);
      const labelled = (label: string) => ({ ...snapshot, labels: new Map([[key, label]]) });
      assert.equal(filter.matches(labelled(value)), true);
      assert.equal(filter.matches(labelled(`${value}.`)), false);
    }),
    { numRuns: 300 },
  );
});

test("any text is either understood or refused", () => {
  const pieces = fc.constantFrom(
    "name",
    "labels",
    ".",
    ",",
    "==",
    "!=",
    "~=",
    '"',
    "\\",
    "/",
    "|",
    " ",
    "x",
    "\0",
    "é",
  );
  fc.assert(
    fc.property(fc.array(pieces, { maxLength: 12 }), (words) => {
      try {
        parseFilters([words.join("")]).matches(snapshot);
      } catch (error) {
        if (!isClipError(error, "ARGUMENT_INVALID")) throw error;
      }
    }),
    { numRuns: 2000 },
  );
});
