import assert from "node:assert/strict";
import { test } from "node:test";
import type { TarEntry } from "./entry.ts";
import { archive, header, member, padded, pax, readEntries } from "./test-archive.ts";

function one(...parts: Buffer[]): TarEntry {
  const entries = readEntries(archive(...parts));
  assert.equal(entries.length, 1);
  return entries[0] as TarEntry;
}

test("a file has its attributes, and its data where it stands in the archive", () => {
  const entries = readEntries(
    archive(
      member({ name: "etc/", type: "5", mode: 0o755, mtime: 7 }),
      member({ name: "etc/passwd", mode: 0o104755, uid: 3, gid: 4, mtime: 0o12345 }, "root\n"),
      member({ name: "empty" }),
    ),
  );
  assert.deepEqual(
    entries.map((entry) => `${entry.type} ${entry.path.toString()} ${entry.size}`),
    ["directory etc 0", "file etc/passwd 5", "file empty 0"],
  );
  assert.deepEqual(entries[1], {
    path: Buffer.from("etc/passwd"),
    type: "file",
    mode: 0o4755,
    uid: 3,
    gid: 4,
    mtimeSeconds: 0o12345,
    mtimeNanoseconds: 0,
    size: 5,
    extents: [{ fileOffset: 0, archiveOffset: 1024, length: 5 }],
    linkTarget: Buffer.alloc(0),
    deviceMajor: 0,
    deviceMinor: 0,
    xattrs: [],
  });
  assert.deepEqual(entries[2]?.extents, []);
});

test("every type of entry is told apart, also the ones of old archives", () => {
  const types = [
    member({ name: "a", type: "0" }),
    member({ name: "b", type: "\0", magic: "v7" }),
    member({ name: "c", type: "7" }),
    member({ name: "d/", type: "0" }),
    member({ name: "e/", type: "\0", magic: "v7" }),
    member({ name: "f", type: "5" }),
    member({ name: "g", type: "1", link: "/./a" }),
    member({ name: "h", type: "2", link: "../a//b" }),
    member({ name: "i", type: "3", deviceMajor: 1, deviceMinor: 3 }),
    member({ name: "j", type: "4", deviceMajor: 8, deviceMinor: 1 << 18 }),
    member({ name: "k", type: "6" }),
  ];
  const entries = readEntries(archive(...types));
  assert.deepEqual(
    entries.map((entry) => entry.type),
    "file file file directory directory directory hardlink symlink char block fifo".split(" "),
  );
  assert.equal(entries[6]?.linkTarget.toString(), "a");
  assert.equal(entries[7]?.linkTarget.toString(), "../a//b");
  assert.deepEqual([entries[9]?.deviceMajor, entries[9]?.deviceMinor], [8, 1 << 18]);
});

test("the size in the header of what has no data is ignored, as Go does", () => {
  const entries = readEntries(
    archive(
      header({ name: "d", type: "5", size: 4096 }),
      header({ name: "l", type: "1", link: "f", size: 10 }),
      header({ name: "s", type: "2", link: "f", size: 1 }),
    ),
  );
  assert.deepEqual(
    entries.map((entry) => entry.size),
    [0, 0, 0],
  );
});

test("paths are made relative to the root and cannot leave it", () => {
  const cases = {
    "./a/b": "a/b",
    "/abs": "abs",
    "//a///b/": "a/b",
    "a/../b": "b",
    "../../etc/x": "etc/x",
    "a/./b/../../..": "",
    "./": "",
    "...": "...",
    "a/..b": "a/..b",
  };
  for (const [name, path] of Object.entries(cases)) {
    assert.equal(one(member({ name, type: "5" })).path.toString(), path, name);
  }
});

test("names are bytes", () => {
  const name = Buffer.from([0x66, 0xff, 0xe9, 0x0a, 0x80]);
  assert.deepEqual(one(member({ name })).path, name);
  assert.deepEqual(one(pax([["path", name]]), member({ name: "x" })).path, name);
});

test("the prefix of a POSIX header precedes the name, in star's the shorter one", () => {
  assert.equal(one(member({ name: "b", prefix: "x/a" })).path.toString(), "x/a/b");
  const star = (block: Buffer) => {
    block.write("tar\0", 508, "latin1");
    block.write("00000000000 00000000000 ", 476, "latin1");
  };
  const prefix = "p".repeat(131);
  assert.equal(one(member({ name: "b", prefix, patch: star })).path.toString(), `${prefix}/b`);
});

test("times in a GNU header are no prefix, but one that old Go has put there is", () => {
  const times = (block: Buffer) => void block.write("14371573312\x0014371573312\0", 345, "latin1");
  assert.equal(one(member({ name: "b", magic: "gnu", patch: times })).path.toString(), "b");
  assert.equal(
    one(member({ name: "b", magic: "gnu", prefix: "usr/lib" })).path.toString(),
    "usr/lib/b",
  );
});

test("GNU long names and long links apply to the next entry alone", () => {
  const long = `${"d".repeat(200)}/${"n".repeat(255)}`;
  const entries = readEntries(
    archive(
      member({ name: "././@LongLink", type: "L", magic: "gnu" }, `${long}\0`),
      member({ name: "././@LongLink", type: "K", magic: "gnu" }, `${"t".repeat(300)}\0`),
      member({ name: "short", type: "2", link: "l", magic: "gnu" }),
      member({ name: "short", type: "2", link: "l", magic: "gnu" }),
    ),
  );
  assert.deepEqual(
    entries.map((entry) => [entry.path.toString(), entry.linkTarget.toString()]),
    [
      [long, "t".repeat(300)],
      ["short", "l"],
    ],
  );
});

test("numbers that do not fit in octal digits are binary", () => {
  const big = (block: Buffer) => {
    block.fill(0, 108, 148);
    block.writeUInt8(0x80, 108);
    block.writeUInt32BE(4_000_000_000, 112);
    block.write("0000001", 116, "latin1");
    block.write("00000000000", 124, "latin1");
    block.fill(0xff, 136, 148);
    block.writeInt32BE(-86400, 144);
  };
  const entry = one(member({ name: "x", magic: "gnu", patch: big }));
  assert.equal(entry.uid, 4_000_000_000);
  assert.equal(entry.gid, 1);
  assert.equal(entry.mtimeSeconds, -86400);
});

test("PAX records take the place of what the header says", () => {
  const entry = one(
    pax([
      ["path", "löng/näme"],
      ["size", "3"],
      ["uid", "4294967294"],
      ["gid", "70000"],
      ["mtime", "1700000000.123456789123"],
      ["comment", "nothing"],
    ]),
    header({ name: "x", size: 0, uid: 1 }),
    padded(Buffer.from("abc")),
  );
  assert.equal(entry.path.toString(), "löng/näme");
  assert.deepEqual([entry.size, entry.uid, entry.gid], [3, 4294967294, 70000]);
  assert.deepEqual([entry.mtimeSeconds, entry.mtimeNanoseconds], [1700000000, 123456789]);
  assert.equal(
    one(
      pax([["linkpath", "x\ny"]]),
      member({ name: "l", type: "2", link: "z" }),
    ).linkTarget.toString(),
    "x\ny",
  );
});

test("a time before 1970 counts its nanoseconds upwards", () => {
  const cases: [string, number, number][] = [
    ["-1.5", -2, 500_000_000],
    ["-1", -1, 0],
    ["-0.000000001", -1, 999_999_999],
    ["0", 0, 0],
    ["12.", 12, 0],
    ["12.0000000019", 12, 1],
  ];
  for (const [text, seconds, nanoseconds] of cases) {
    const entry = one(pax([["mtime", text]]), member({ name: "x" }));
    assert.deepEqual([entry.mtimeSeconds, entry.mtimeNanoseconds], [seconds, nanoseconds], text);
  }
});

test("global records hold until others take their place, and an empty one takes them back", () => {
  const entries = readEntries(
    archive(
      pax(
        [
          ["uid", "5"],
          ["SCHILY.xattr.user.a", "1"],
        ],
        "g",
      ),
      member({ name: "a", uid: 1 }),
      pax([["uid", "6"]]),
      member({ name: "b", uid: 1 }),
      pax([["uid", ""]]),
      member({ name: "c", uid: 1 }),
      pax([["uid", ""]], "g"),
      member({ name: "d", uid: 1 }),
    ),
  );
  assert.deepEqual(
    entries.map((entry) => entry.uid),
    [5, 6, 1, 1],
  );
  assert.equal(entries[3]?.xattrs.length, 1);
});

test("extended attributes are bytes, and the last of a name counts", () => {
  const capability = Buffer.from("0100000200200000000000000000000000000000", "hex");
  const entry = one(
    pax([
      ["SCHILY.xattr.security.capability", capability],
      ["SCHILY.xattr.user.a=b", "no"],
      ["SCHILY.xattr.user.empty", ""],
      ["SCHILY.xattr.user.twice", "1"],
      ["SCHILY.xattr.user.twice", Buffer.from([0, 0x0a, 0xff])],
      ["LIBARCHIVE.xattr.user.other", "eA=="],
    ]),
    member({ name: "x" }),
  );
  assert.deepEqual(
    entry.xattrs.map(({ name, value }) => [name.toString(), value.toString("hex")]),
    [
      ["security.capability", capability.toString("hex")],
      ["user.a", Buffer.from("b=no").toString("hex")],
      ["user.empty", ""],
      ["user.twice", "000aff"],
    ],
  );
});

test("an old GNU sparse file may have its map in several blocks", () => {
  const runs = Array.from({ length: 30 }, (_, index) => [index * 4096, 512] as const);
  const put = (block: Buffer, at: number, run: readonly [number, number]) => {
    block.write(run[0].toString(8).padStart(11, "0"), at, "latin1");
    block.write(run[1].toString(8).padStart(11, "0"), at + 12, "latin1");
  };
  const first = header({
    name: "s",
    type: "S",
    magic: "gnu",
    size: 30 * 512,
    patch: (block) => {
      for (const [index, run] of runs.slice(0, 4).entries()) put(block, 386 + index * 24, run);
      block.writeUInt8(1, 482);
      block.write((1e6).toString(8).padStart(11, "0"), 483, "latin1");
    },
  });
  const second = Buffer.alloc(512);
  for (const [index, run] of runs.slice(4, 25).entries()) put(second, index * 24, run);
  second.writeUInt8(1, 504);
  const third = Buffer.alloc(512);
  for (const [index, run] of runs.slice(25).entries()) put(third, index * 24, run);
  const entry = one(first, second, third, Buffer.alloc(30 * 512, 1));
  assert.equal(entry.size, 1e6);
  assert.deepEqual(
    entry.extents,
    runs.map(([fileOffset, length], index) => {
      return { fileOffset, archiveOffset: 1536 + index * 512, length };
    }),
  );
});

test("a PAX sparse file has its map in records or before its data", () => {
  const expected = [
    { fileOffset: 512, length: 512 },
    { fileOffset: 4096, length: 100 },
  ];
  const data = Buffer.alloc(612, 1);
  const sparse = [
    ["GNU.sparse.size", "8000"],
    ["GNU.sparse.numblocks", "3"],
  ] as const;
  const versions = {
    "0.0": one(
      pax([
        ...sparse,
        ["GNU.sparse.offset", "512"],
        ["GNU.sparse.numbytes", "512"],
        ["GNU.sparse.offset", "4096"],
        ["GNU.sparse.numbytes", "100"],
        ["GNU.sparse.offset", "8000"],
        ["GNU.sparse.numbytes", "0"],
      ]),
      member({ name: "s" }, data),
    ),
    "0.1": one(
      pax([...sparse, ["GNU.sparse.name", "s"], ["GNU.sparse.map", "512,512,4096,100,8000,0"]]),
      member({ name: "GNUSparseFile.1/s" }, data),
    ),
    "1.0": one(
      pax([
        ["GNU.sparse.major", "1"],
        ["GNU.sparse.minor", "0"],
        ["GNU.sparse.name", "s"],
        ["GNU.sparse.realsize", "8000"],
      ]),
      member(
        { name: "GNUSparseFile.1/s" },
        Buffer.concat([padded(Buffer.from("3\n512\n512\n4096\n100\n8000\n0\n")), data]),
      ),
    ),
  };
  for (const [version, entry] of Object.entries(versions)) {
    assert.equal(entry.path.toString(), "s", version);
    assert.equal(entry.size, 8000, version);
    const start = entry.extents[0]?.archiveOffset ?? 0;
    assert.equal(start % 512, 0);
    assert.deepEqual(
      entry.extents,
      expected.map((run, index) => ({ ...run, archiveOffset: start + index * 512 })),
      version,
    );
  }
});

test("an archive without end blocks, with one, or with more behind them is whole", () => {
  const file = member({ name: "x" }, "data");
  assert.equal(readEntries(file).length, 1);
  assert.equal(readEntries(Buffer.concat([file, Buffer.alloc(512)])).length, 1);
  assert.equal(readEntries(Buffer.concat([archive(file), file, Buffer.from("junk")])).length, 1);
  assert.equal(readEntries(file.subarray(0, 516)).length, 1, "not even padding");
  assert.equal(readEntries(Buffer.alloc(0)).length, 0);
});

test("where an archive is cut into chunks makes no difference", () => {
  const whole = archive(
    pax([
      ["path", "a/long"],
      ["SCHILY.xattr.user.x", Buffer.from([0xff, 0])],
    ]),
    member({ name: "x" }, Buffer.alloc(1300, 7)),
    member({ name: "././@LongLink", type: "L", magic: "gnu" }, `${"n".repeat(120)}\0`),
    member({ name: "y", magic: "gnu" }, "z"),
    pax([
      ["GNU.sparse.major", "1"],
      ["GNU.sparse.name", "s"],
      ["GNU.sparse.realsize", "4096"],
    ]),
    member({ name: "s" }, Buffer.concat([padded(Buffer.from("1\n0\n512\n")), Buffer.alloc(512)])),
    member({ name: "l", type: "2", link: "target" }),
  );
  const expected = readEntries(whole, whole.length);
  assert.equal(expected.length, 4);
  for (const bytes of [1, 7, 511, 512, 513, 1000, 4096]) {
    assert.deepEqual(readEntries(whole, bytes), expected, `chunks of ${bytes}`);
  }
});
