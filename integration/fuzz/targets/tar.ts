/** Tar archives: read, written again and read again, and made into a metadata image. */
import assert from "node:assert/strict";
import { isDeepStrictEqual } from "node:util";
import { crc32 } from "node:zlib";
import type { TarEntry } from "../../../src/tar/entry.ts";
import { normalisePath } from "../../../src/tar/path.ts";
import { archive, header, member, readEntries } from "../../../src/tar/test-archive.ts";
import { attempt, magnitude, type FuzzTarget } from "../engine/target.ts";
import { assertImage } from "./image-oracle.ts";
import { changeArchive, mendChecksums, someArchive } from "./tar-inputs.ts";

const blockBytes = 512;
const readCodes = ["CORRUPT_TAR", "LIMIT_EXCEEDED"] as const;

const words = [
  ...[
    "ustar\u000000",
    "ustar  \0",
    "././@LongLink",
    "PaxHeaders/x",
    "../",
    "/",
    "./",
    "..",
    ".wh.",
  ],
  ...[
    "path=",
    "linkpath=",
    "size=",
    "mtime=",
    "uid=",
    "gid=",
    "SCHILY.xattr.user.",
    ".wh..wh..opq",
  ],
  ...["GNU.sparse.map=", "GNU.sparse.size=", "GNU.sparse.major=1\n", "GNU.sparse.realsize="],
  ...["GNU.sparse.name=", "GNU.sparse.offset=", "GNU.sparse.numbytes=", "30 mtime=", "0,512,"],
  Buffer.from([0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
  Buffer.alloc(12, 0xff),
];

/** Any bytes as an archive. The chunks do not matter, and what was read can be written again. */
export const tarReader: FuzzTarget = {
  bytesMax: 6 * 1024,
  dictionary: words,
  seeds: () => [archive(member({ name: "a" }, "data")), archive()],
  generate: someArchive,
  change: changeArchive,
  mend: mendChecksums,
  run(input) {
    const chunkBytes = 1 + (crc32(input) % 1500);
    const whole = attempt(readCodes, () => readEntries(input));
    const pieces = attempt(readCodes, () => readEntries(input, chunkBytes));
    assert.ok(isDeepStrictEqual(pieces, whole), "the pieces of an archive matter");
    if ("failure" in whole) return whole.failure;
    for (const entry of whole.value) assertSound(entry);
    const plain = whole.value.filter(isPlain);
    const again = readEntries(archive(...plain.map(writeEntry)));
    assert.deepEqual(again.map(withoutPlaces), plain.map(withoutPlaces));
    return describeEntries(whole.value);
  },
};

/** Any archive that can be read, as a metadata image, which shows the same tree. */
export const tarImage: FuzzTarget = {
  bytesMax: 8 * 1024,
  dictionary: words,
  seeds: () => [archive(member({ name: "a" }, "data")), archive()],
  generate: someArchive,
  change: changeArchive,
  mend: mendChecksums,
  run(input) {
    const read = attempt(readCodes, () => readEntries(input));
    if ("failure" in read) return read.failure;
    return assertImage(read.value, Math.ceil(input.length / blockBytes) * blockBytes);
  },
};

/** Any bytes as a path: it leads to where a chroot would lead, and never out of the root. */
export const tarPath: FuzzTarget = {
  bytesMax: 9000,
  dictionary: ["../", "/", "./", "..", ".", "//", "a".repeat(255), "a/".repeat(2000), "\0"],
  seeds: () =>
    ["", "/", "a/../b", "../../etc/passwd", "./a//b/", "..."].map((path) => Buffer.from(path)),
  run(input) {
    const outcome = attempt(readCodes, () => normalisePath(input));
    const expected = walk(input.toString("latin1"));
    if ("failure" in outcome) return outcome.failure;
    assert.equal(outcome.value.toString("latin1"), expected);
    return `${magnitude(input.length)} ${magnitude(outcome.value.length)}`;
  },
};

function walk(path: string): string {
  const names: string[] = [];
  for (const name of path.split("/")) {
    if (name === "..") names.pop();
    else if (name !== "" && name !== ".") names.push(name);
  }
  return names.join("/");
}

function assertSound(entry: TarEntry): void {
  const { path, size, extents, mode, mtimeNanoseconds } = entry;
  assert.equal(path.toString("latin1"), walk(path.toString("latin1")));
  assert.ok(path.length <= 4096 && mode >= 0 && mode <= 0o7777);
  assert.ok(mtimeNanoseconds >= 0 && mtimeNanoseconds < 1e9);
  assert.ok(Number.isSafeInteger(entry.mtimeSeconds) && Number.isSafeInteger(size) && size >= 0);
  for (const id of [entry.uid, entry.gid]) assert.ok(id >= 0 && id < 2 ** 32 - 1);
  let end = 0;
  for (const { fileOffset, length, archiveOffset } of extents) {
    assert.ok(fileOffset >= end && length > 0 && archiveOffset >= blockBytes);
    end = fileOffset + length;
  }
  assert.ok(end <= size && (entry.type === "file" || size === 0));
}

/** Not sparse, and small enough to be written again. */
function isPlain({ size, extents }: TarEntry): boolean {
  return size === 0 || (size <= 4096 && extents.length === 1 && extents[0]?.length === size);
}

function withoutPlaces({ extents, ...entry }: TarEntry): object {
  return { ...entry, runs: extents.map(({ fileOffset, length }) => [fileOffset, length]) };
}

const typeFlags = {
  ...{ file: "0", hardlink: "1", symlink: "2", char: "3", block: "4", directory: "5", fifo: "6" },
};

/** An entry in its most explicit form. */
function writeEntry(entry: TarEntry): Buffer {
  const { path, linkTarget, type, mode, size, deviceMajor, deviceMinor, xattrs } = entry;
  const records: [string, string | Buffer][] = [
    ["mtime", formatTime(entry)],
    ["uid", String(entry.uid)],
    ["gid", String(entry.gid)],
    ...xattrs.map(({ name, value }): [string, Buffer] => {
      return [`SCHILY.xattr.${name.toString("latin1")}`, value];
    }),
  ];
  if (path.length > 0) records.push(["path", path]);
  if (linkTarget.length > 0) records.push(["linkpath", linkTarget]);
  const fields = { name: path.length > 0 ? "x" : ".", type: typeFlags[type], mode, size };
  const devices = { deviceMajor, deviceMinor };
  const data = Buffer.alloc(Math.ceil(size / blockBytes) * blockBytes);
  return Buffer.concat([latin1Pax(records), header({ ...fields, ...devices }), data]);
}

/** Keywords are bytes: a record is put together from its parts. */
function latin1Pax(records: readonly [string, string | Buffer][]): Buffer {
  const bodies = records.map(([keyword, value]) => {
    const rest = Buffer.concat([
      Buffer.from(` ${keyword}=`, "latin1"),
      Buffer.from(value),
      Buffer.from("\n"),
    ]);
    let length = rest.length;
    while (String(length).length + rest.length !== length) {
      length = String(length).length + rest.length;
    }
    return Buffer.concat([Buffer.from(String(length)), rest]);
  });
  return member({ name: "PaxHeaders/x", type: "x" }, Buffer.concat(bodies));
}

function formatTime({ mtimeSeconds, mtimeNanoseconds }: TarEntry): string {
  if (mtimeNanoseconds === 0) return String(mtimeSeconds);
  const digits = (value: number): string => String(value).padStart(9, "0");
  return mtimeSeconds >= 0
    ? `${mtimeSeconds}.${digits(mtimeNanoseconds)}`
    : `-${-1 - mtimeSeconds}.${digits(1e9 - mtimeNanoseconds)}`;
}

function describeEntries(entries: readonly TarEntry[]): string {
  const shapes = entries.slice(0, 6).map(({ type, xattrs, extents, size, path }) => {
    const sizes = [xattrs.length, extents.length, size, path.length].map(magnitude);
    return `${type} ${sizes.join(" ")}`;
  });
  return `${magnitude(entries.length)}: ${shapes.toSorted().join(", ")}`;
}
