/** The reader against archives that other programs have made. */
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import {
  closeSync,
  ftruncateSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
  chmodSync,
} from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { buffer } from "node:stream/consumers";
import { after, before, describe, test } from "node:test";
import fc from "fast-check";
import { pack, type Header } from "tar-stream";
import type { TarEntry } from "./entry.ts";
import { readEntries } from "./test-archive.ts";

const long = path.join("d".repeat(120), "e".repeat(120));

let scratch: string;
let tree: string;

before(() => {
  scratch = mkdtempSync(path.join(tmpdir(), "clip-tar-"));
  tree = path.join(scratch, "tree");
  makeTree(tree);
});

after(() => rmSync(scratch, { recursive: true, force: true }));

function makeTree(root: string): void {
  mkdirSync(path.join(root, long), { recursive: true });
  mkdirSync(path.join(root, "sticky"));
  chmodSync(path.join(root, "sticky"), 0o1777);
  writeFileSync(path.join(root, "empty"), "");
  writeFileSync(path.join(root, "file"), "x".repeat(1300));
  chmodSync(path.join(root, "file"), 0o4751);
  writeFileSync(path.join(root, long, "näme".repeat(20)), "deep");
  writeFileSync(Buffer.concat([Buffer.from(`${root}/`), Buffer.from([0x62, 0xff, 0xe9])]), "latin");
  linkSync(path.join(root, "file"), path.join(root, "hard"));
  symlinkSync("t".repeat(150), path.join(root, "symlink"));
  utimesSync(path.join(root, "file"), 1_500_000_000, 1_500_000_000.25);
  makeSparse(path.join(root, "sparse"), 100, 64 * 1024);
}

/** Every other `step` bytes have a block of data, the rest are holes. */
function makeSparse(file: string, runs: number, step: number): void {
  const descriptor = openSync(file, "w");
  for (let run = 0; run < runs; run++) {
    writeSync(descriptor, Buffer.alloc(4096, run + 1), 0, 4096, (2 * run + 1) * step);
  }
  ftruncateSync(descriptor, (2 * runs + 1) * step + 5);
  closeSync(descriptor);
}

/** The bytes of a file as the archive and the entry's extents give them. */
function contentOf(archive: Buffer, entry: TarEntry): Buffer {
  const content = Buffer.alloc(entry.size);
  for (const { fileOffset, archiveOffset, length } of entry.extents) {
    archive.copy(content, fileOffset, archiveOffset, archiveOffset + length);
  }
  return content;
}

function lookUp(root: string, name: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`${root}/`), name]);
}

interface Expectations {
  nanoseconds: boolean;
  /** Beginnings of names that the format has no room for. */
  without?: string[];
}

/** Every entry is what the file system has, and nothing is missing. */
function assertMatches(archive: Buffer, entries: TarEntry[], expected: Expectations): void {
  const inodes = new Map<number, Buffer>();
  for (const entry of entries) {
    const file = lookUp(tree, entry.path);
    const stat = lstatSync(file, { bigint: true });
    const name = entry.path.toString();
    if (entry.type === "hardlink") {
      const target = lstatSync(lookUp(tree, entry.linkTarget), { bigint: true });
      assert.equal(target.ino, stat.ino, name);
      continue;
    }
    assert.equal(entry.mode, Number(stat.mode & 0o7777n), name);
    assert.equal(entry.uid, Number(stat.uid), name);
    assert.equal(entry.gid, Number(stat.gid), name);
    assert.equal(entry.mtimeSeconds, Number(stat.mtimeNs / 1_000_000_000n), name);
    if (expected.nanoseconds) {
      assert.equal(entry.mtimeNanoseconds, Number(stat.mtimeNs % 1_000_000_000n), name);
    }
    if (entry.type === "symlink") {
      assert.deepEqual(entry.linkTarget, readlinkSync(file, { encoding: "buffer" }), name);
    } else if (entry.type === "file") {
      assert.deepEqual(contentOf(archive, entry), readFileSync(file), name);
    } else {
      assert.equal(entry.type, "directory");
      assert.ok(stat.isDirectory());
    }
    inodes.set(Number(stat.ino), entry.path);
  }
  const paths = new Set(entries.map((entry) => entry.path.toString("latin1")));
  for (const name of readdirSync(tree, { recursive: true, encoding: "latin1" })) {
    if (expected.without?.some((start) => name.startsWith(start))) continue;
    assert.ok(paths.has(name), name);
  }
}

function run(command: string, parameters: string[]): Buffer {
  return execFileSync(command, parameters, {
    maxBuffer: 1 << 28,
    stdio: ["ignore", "pipe", "ignore"],
  });
}

function isMissing(command: string): string | false {
  const { error } = spawnSync(command, ["--version"], { stdio: "ignore" });
  return error === undefined ? false : `${command} is not installed`;
}

describe("archives of GNU tar", () => {
  for (const format of ["oldgnu", "gnu", "posix"]) {
    test(`in the ${format} format are read as the tree is`, () => {
      const archive = run("tar", ["-C", tree, `--format=${format}`, "-cf", "-", "."]);
      const expected = { nanoseconds: format === "posix" };
      assertMatches(archive, readEntries(archive), expected);
    });
  }

  for (const format of ["v7", "ustar"]) {
    test(`in the ${format} format are read as far as the format can tell the tree`, () => {
      const parameters = [
        "-C",
        tree,
        `--format=${format}`,
        "-cf",
        "-",
        "--exclude=ddd*",
        "--exclude=symlink",
        ".",
      ];
      const archive = run("tar", parameters);
      const without = ["ddd", "symlink"];
      assertMatches(archive, readEntries(archive), { nanoseconds: false, without });
    });
  }

  const sparseFormats = {
    "old GNU": ["--format=oldgnu"],
    "0.0": ["--format=posix", "--sparse-version=0.0"],
    "0.1": ["--format=posix", "--sparse-version=0.1"],
    "1.0": ["--format=posix", "--sparse-version=1.0"],
  };
  for (const [name, options] of Object.entries(sparseFormats)) {
    test(`with sparse files in the ${name} form have the map right`, () => {
      const archive = run("tar", ["-C", tree, "--sparse", ...options, "-cf", "-", "."]);
      const entries = readEntries(archive);
      assertMatches(archive, entries, {
        nanoseconds: options[0] === "--format=posix",
      });
      const sparse = entries.find((entry) => entry.path.toString() === "sparse");
      assert.equal(sparse?.extents.length, 100);
    });
  }
});

test("archives of bsdtar are read as the tree is", { skip: isMissing("bsdtar") }, () => {
  for (const format of ["pax", "gnutar"]) {
    const archive = run("bsdtar", ["-C", tree, `--format=${format}`, "-cf", "-", "."]);
    assertMatches(archive, readEntries(archive), {
      nanoseconds: format === "pax",
    });
  }
});

test("archives of Python are read as the tree is", { skip: isMissing("python3") }, () => {
  const script = `
import sys, tarfile
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=getattr(tarfile, sys.argv[2])) as t:
    t.add(sys.argv[1], arcname=".")
`;
  for (const format of ["PAX_FORMAT", "GNU_FORMAT"]) {
    const archive = run("python3", ["-c", script, tree, format]);
    assertMatches(archive, readEntries(archive), { nanoseconds: false });
  }
});

test("whatever tar-stream packs comes out again", async () => {
  const name = fc.stringMatching(/^[a-zä][a-z0-9ü_-]{0,120}$/);
  const headers = fc.record({
    name: fc.array(name, { minLength: 1, maxLength: 4 }).map((names) => names.join("/")),
    type: fc.constantFrom(
      "file" as const,
      "directory" as const,
      "symlink" as const,
      "link" as const,
    ),
    mode: fc.integer({ min: 1, max: 0o7777 }),
    uid: fc.nat(0o777777),
    gid: fc.nat(0o777777),
    seconds: fc.nat(2 ** 31 - 1),
    content: fc.uint8Array({ maxLength: 1200 }),
    target: name,
  });
  await fc.assert(
    fc.asyncProperty(fc.array(headers, { maxLength: 12 }), async (all) => {
      const packer = pack();
      for (const { seconds, content, target, ...rest } of all) {
        const header: Partial<Header> & { name: string } = {
          ...rest,
          mtime: new Date(seconds * 1000),
        };
        if (rest.type === "symlink" || rest.type === "link") header.linkname = target;
        packer.entry(header, Buffer.from(rest.type === "file" ? content : []));
      }
      packer.finalize();
      const archive = await buffer(packer);
      const entries = readEntries(archive, 999);
      assert.equal(entries.length, all.length);
      for (const [index, expected] of all.entries()) {
        const entry = entries[index] as TarEntry;
        assert.equal(entry.path.toString(), expected.name);
        assert.equal(entry.type, expected.type === "link" ? "hardlink" : expected.type);
        assert.deepEqual(
          [entry.mode, entry.uid, entry.gid],
          [expected.mode, expected.uid, expected.gid],
        );
        assert.equal(entry.mtimeSeconds, expected.seconds);
        const isLink = expected.type === "symlink" || expected.type === "link";
        assert.equal(entry.linkTarget.toString(), isLink ? expected.target : "");
        const content = expected.type === "file" ? Buffer.from(expected.content) : Buffer.alloc(0);
        assert.deepEqual(contentOf(archive, entry), content);
      }
    }),
    { numRuns: 60 },
  );
});
