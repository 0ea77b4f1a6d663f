/** Archives that are damaged, or made to do harm. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { TarEntry } from "./entry.ts";
import { ClipError } from "../base/errors.ts";
import { TarReader } from "./reader.ts";
import { archive, header, member, padded, pax, readEntries } from "./test-archive.ts";

function failure(code: string): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof ClipError, String(error));
    assert.equal(error.code, code, error.message);
    assert.equal(typeof error.context["offset"], "number");
    assert.equal(typeof error.context["entry"], "string");
    return true;
  };
}

const corrupt = failure("CORRUPT_TAR");
const exceeded = failure("LIMIT_EXCEEDED");

test("a sparse map that lies is refused", () => {
  const file =
    (map: string, bytes: number, size = "8000") =>
    () =>
      readEntries(
        archive(
          pax([
            ["GNU.sparse.size", size],
            ["GNU.sparse.map", map],
          ]),
          member({ name: "s" }, Buffer.alloc(bytes)),
        ),
      );
  assert.throws(file("0,512,256,512", 1024), corrupt, "overlapping");
  assert.throws(file("512,512,0,512", 1024), corrupt, "not in order");
  assert.throws(file("7900,512", 512), corrupt, "beyond the end");
  assert.throws(file("0,512", 1024), corrupt, "less than the data");
  assert.throws(file("0,512", 511), corrupt, "more than the data");
  assert.throws(file("0,512,1", 512), corrupt, "half a pair");
  assert.throws(file("0,-5", 512), corrupt, "negative");
  assert.throws(file("0,512", 512, "9007199254740993"), exceeded, "huge");
  const versionOne = (map: string) => () =>
    readEntries(
      archive(
        pax([
          ["GNU.sparse.major", "1"],
          ["GNU.sparse.realsize", "100"],
        ]),
        member({ name: "s" }, map),
      ),
    );
  assert.throws(versionOne("5\n1\n"), corrupt, "a map longer than the data");
  assert.throws(versionOne("x\n"), corrupt);
  assert.throws(versionOne("99999999\n"), exceeded);
  assert.throws(versionOne(`${"1".repeat(500)}\n`), corrupt);
});

test("checksums are verified, as sums of unsigned or of signed bytes", () => {
  const good = member({ name: Buffer.from([0xff, 0xfe]) });
  const bad = Buffer.from(good);
  bad.writeUInt8(0x61, 0);
  assert.throws(() => readEntries(archive(bad)), corrupt);
  const signed = Buffer.from(good);
  const sum = Number.parseInt(good.toString("latin1", 148, 154), 8);
  signed.write((sum - 512).toString(8).padStart(6, "0"), 148, "latin1");
  assert.equal(readEntries(archive(signed)).length, 1);
});

test("a truncated archive is an error wherever it ends", () => {
  const whole = Buffer.concat([
    pax([["path", "long"]]),
    member({ name: "x" }, Buffer.alloc(600)),
    member({ name: "y" }),
  ]);
  for (const end of [1, 511, 512, 513, 1023, 1024, 1536, 1600, 2135, 2137, 2559, 2561]) {
    assert.throws(() => readEntries(whole.subarray(0, end)), corrupt, `at ${end}`);
  }
});

test("a header behind a block of zeros is an error", () => {
  assert.throws(() => readEntries(archive(Buffer.alloc(512), member({ name: "x" }))), corrupt);
});

test("what is too large or impossible is refused, and it is said where", () => {
  const withSize = (bytes: number[]) =>
    header({
      name: "big",
      patch: (block) => {
        block.fill(0, 124, 136);
        Buffer.from(bytes).copy(block, 124);
      },
    });
  const binary = (value: bigint) => {
    const bytes = Buffer.alloc(12);
    bytes.writeBigInt64BE(value, 4);
    bytes.writeInt32BE(value < 0n ? -1 : 0, 0);
    bytes.writeUInt8((bytes[0] ?? 0) | 0x80, 0);
    return [...bytes];
  };
  const cases: [string, Buffer, typeof corrupt][] = [
    ["a name over 255", pax([["path", "n".repeat(256)]]), exceeded],
    ["a path over 4096", pax([["path", "n/".repeat(2049)]]), exceeded],
    ["a NUL in a path", pax([["path", "a\0b"]]), corrupt],
    ["a huge attribute", pax([["SCHILY.xattr.user.a", "v".repeat(65536)]]), exceeded],
    ["an attribute without a name", pax([["SCHILY.xattr.", "v"]]), corrupt],
    ["a negative size", pax([["size", "-1"]]), corrupt],
    ["a size over 2^53", pax([["size", "9007199254740993"]]), exceeded],
    ["a size over the limit", pax([["size", "2199023255552"]]), exceeded],
    ["a negative user id", pax([["uid", "-1"]]), corrupt],
    ["the user id that means none", pax([["uid", "4294967295"]]), corrupt],
    ["a time that is none", pax([["mtime", "yesterday"]]), corrupt],
    ["a record without a length", member({ name: "x", type: "x" }, "path=x\n"), corrupt],
    ["a record that is too long", member({ name: "x", type: "x" }, "99 path=x\n"), corrupt],
    ["a record without equals", member({ name: "x", type: "x" }, "7 path\n"), corrupt],
    ["a huge extension", header({ name: "x", type: "x", size: 4 * 1024 * 1024 + 1 }), exceeded],
    ["a negative binary size", withSize(binary(-1n)), corrupt],
    [
      "a binary size over 2^53",
      withSize([0x80, ...Array.from({ length: 11 }, () => 0xff)]),
      exceeded,
    ],
    ["a size that is no number", withSize([...Buffer.from("12x")]), corrupt],
    ["an unknown type", member({ name: "x", type: "Z" }), corrupt],
    ["a wide device number", member({ name: "x", type: "3", deviceMajor: 4096 }), corrupt],
    ["a link to nowhere", member({ name: "x", type: "2" }), corrupt],
    [
      "a long link",
      Buffer.concat([pax([["linkpath", "l".repeat(4096)]]), member({ name: "x", type: "2" })]),
      exceeded,
    ],
  ];
  for (const [what, bytes, expected] of cases) {
    const whole = archive(member({ name: "before" }), bytes, member({ name: "after" }));
    assert.throws(() => readEntries(whole), expected, what);
  }
});

test("endless extension headers are refused before they fill the memory", () => {
  const reader = new TarReader({ onEntry: () => {} });
  const big = pax([["comment", "c".repeat(1024 * 1024)]]);
  assert.throws(() => {
    for (let count = 0; count < 100; count++) reader.write(big);
  }, exceeded);
});

test("a few global attributes on very many entries are refused before they fill the memory", () => {
  const many = Array.from({ length: 2000 }, (_, at): [string, string] => {
    return [`SCHILY.xattr.user.${at}`, "v"];
  });
  const entries = Buffer.concat(Array.from({ length: 100 }, () => member({ name: "x" })));
  let taken = 0;
  const reader = new TarReader({ onEntry: () => taken++ });
  reader.write(pax(many, "g"));
  assert.throws(() => {
    for (let count = 0; count < 1000; count++) reader.write(entries);
  }, exceeded);
  assert.ok(taken > 100 && taken < 10_000, `${taken} entries`);
});

test("damaged archives give entries or a ClipError, and nothing else", () => {
  const whole = archive(
    pax([
      ["path", "a/long"],
      ["mtime", "1.5"],
      ["SCHILY.xattr.user.x", "y"],
    ]),
    member({ name: "x" }, "data"),
    member({ name: "././@LongLink", type: "L", magic: "gnu" }, `${"n".repeat(120)}\0`),
    member({ name: "y", magic: "gnu" }, "z"),
    pax([
      ["GNU.sparse.major", "1"],
      ["GNU.sparse.name", "s"],
      ["GNU.sparse.realsize", "4096"],
    ]),
    member({ name: "s" }, Buffer.concat([padded(Buffer.from("1\n0\n512\n")), Buffer.alloc(512)])),
    member({ name: "old", type: "S", magic: "gnu" }),
    member({ name: "c", type: "3", deviceMajor: 1, deviceMinor: 3 }),
  );
  const change = fc.record({
    at: fc.nat(whole.length - 1),
    byte: fc.oneof(
      fc.nat(255),
      fc.constantFrom(...Buffer.from("0179xgLKS\n= -\0\x80\xff", "latin1")),
    ),
  });
  fc.assert(
    fc.property(fc.array(change, { minLength: 1, maxLength: 8 }), fc.boolean(), (changes, mend) => {
      const bytes = Buffer.from(whole);
      for (const { at, byte } of changes) bytes[at] = byte;
      if (mend) mendChecksums(bytes);
      try {
        for (const entry of readEntries(bytes, 700)) assertSound(entry);
      } catch (error) {
        if (!(error instanceof ClipError)) throw error;
      }
    }),
    { numRuns: 2000 },
  );
});

// Otherwise nearly every change would end at the checksum.
function mendChecksums(bytes: Buffer): void {
  for (let at = 0; at + 512 <= bytes.length; at += 512) {
    const block = bytes.subarray(at, at + 512);
    if (block.toString("latin1", 257, 262) !== "ustar") continue;
    block.fill(" ", 148, 156);
    const sum = block.reduce((total, byte) => total + byte, 0);
    block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  }
}

function assertSound(entry: TarEntry): void {
  assert.ok(entry.size >= 0 && entry.uid >= 0 && entry.gid >= 0);
  assert.ok(entry.mode >= 0 && entry.mode <= 0o7777);
  assert.ok(entry.mtimeNanoseconds >= 0 && entry.mtimeNanoseconds < 1e9);
  const names = entry.path.toString("latin1").split("/");
  assert.ok(entry.path.length === 0 || !names.some((name) => ["", ".", ".."].includes(name)));
  let end = 0;
  for (const extent of entry.extents) {
    assert.ok(extent.fileOffset >= end && extent.length > 0);
    end = extent.fileOffset + extent.length;
  }
  assert.ok(end <= entry.size);
}
