import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { TarEntry } from "../tar/entry.ts";
import { isClipError, type ErrorCode } from "../base/errors.ts";
import { build, entry, file, list, nidOf } from "./test-tree.ts";

/** The paths of an image and their types: a letter as `ls -l` has it. */
function paths(entries: TarEntry[], keepRuntimeDirectories = false): string[] {
  const { reader } = build(entries, { keepRuntimeDirectories });
  const letters = { directory: "d", file: "-", symlink: "l", char: "c", block: "b", fifo: "p" };
  return [...list(reader)].map(([path, { type }]) => `${letters[type]} ${path}`);
}

function xattrsOf(entries: TarEntry[], path: string): string[] {
  const { reader } = build(entries);
  return reader
    .xattrs(nidOf(reader, path))
    .map(({ name, value }) => `${name.toString()}=${value.toString()}`);
}

function fails(entries: TarEntry[], code: ErrorCode = "CORRUPT_TAR"): void {
  assert.throws(
    () => build(entries),
    (error) => isClipError(error, code),
  );
}

describe("attributes", () => {
  test("everything that stat shows is kept", () => {
    const attributes = {
      mode: 0o7751,
      uid: 4_000_000_000,
      gid: 70_000,
      mtimeSeconds: -86_400,
      mtimeNanoseconds: 999_999_999,
    };
    const { reader, inodes } = build([
      { ...file("f", 1300, 7), ...attributes },
      entry("d", "directory", attributes),
      entry("l", "symlink", { ...attributes, linkTarget: "../x" }),
      entry("c", "char", { ...attributes, deviceMajor: 4095, deviceMinor: 0xfffff }),
      entry("b", "block", { ...attributes, deviceMajor: 8, deviceMinor: 1 }),
      entry("p", "fifo", attributes),
    ]);
    assert.equal(inodes, 7);
    assert.equal(reader.inodes, 7);
    for (const [path, inode] of list(reader)) {
      if (path === "") continue;
      const { uid, gid, mtimeSeconds, mtimeNanoseconds } = inode;
      const found = { mode: inode.mode & 0o7777, uid, gid, mtimeSeconds, mtimeNanoseconds };
      // Linux gives symbolic links no other permissions.
      assert.deepEqual(found, path === "l" ? { ...attributes, mode: 0o777 } : attributes, path);
    }
    const inode = (path: string) => reader.inode(nidOf(reader, path));
    assert.equal(inode("f").mode, 0o107751);
    assert.equal(inode("f").size, 1300);
    assert.equal(inode("c").device, 0xffffffff);
    assert.equal(inode("b").device, 0x801);
    assert.deepEqual(reader.readlink(nidOf(reader, "l")), Buffer.from("../x"));
  });

  test("link counts are those of a file system", () => {
    const { reader } = build([
      entry("d/e", "directory"),
      entry("d/f", "directory"),
      file("a", 5, 1),
      entry("d/b", "hardlink", { linkTarget: "a" }),
      entry("c", "hardlink", { linkTarget: "d/b" }),
    ]);
    const found = list(reader);
    assert.equal(found.get("")?.nlink, 3);
    assert.equal(found.get("d")?.nlink, 4);
    assert.equal(found.get("d/e")?.nlink, 2);
    assert.equal(found.get("a")?.nlink, 3);
    assert.equal(found.get("a")?.nid, found.get("c")?.nid);
    assert.equal(found.get("a")?.nid, found.get("d/b")?.nid);
  });

  test("extended attributes reach the file system as they do when containerd unpacks", () => {
    const xattrs = [
      "user.a",
      "security.capability",
      "system.posix_acl_access",
      "system.posix_acl_default",
      "trusted.overlay.opaque",
      "trusted.overlay.redirect",
      "trusted.x",
      "com.apple.quarantine",
      "user.",
    ].map((name) => ({ name: Buffer.from(name), value: Buffer.from("v") }));
    const entries = [
      { ...file("f", 0, 0), xattrs },
      entry("d", "directory", { xattrs }),
      entry("l", "symlink", { linkTarget: "x", xattrs }),
      entry("p", "fifo", { xattrs }),
    ];
    assert.deepEqual(xattrsOf(entries, "f"), [
      "user.a=v",
      "security.capability=v",
      "system.posix_acl_access=v",
    ]);
    assert.deepEqual(xattrsOf(entries, "d"), [
      "user.a=v",
      "security.capability=v",
      "system.posix_acl_access=v",
      "system.posix_acl_default=v",
    ]);
    assert.deepEqual(xattrsOf(entries, "l"), ["security.capability=v"]);
    assert.deepEqual(xattrsOf(entries, "p"), [
      "security.capability=v",
      "system.posix_acl_access=v",
    ]);
  });

  test("large attributes and long names fit", () => {
    const value = Buffer.alloc(60_000, 7);
    const name = Buffer.from(`user.${"n".repeat(250)}`);
    const { reader } = build([
      { ...file("f", 10, 3), xattrs: [{ name, value }] },
      entry("d", "directory", { xattrs: [{ name, value }] }),
      entry("d/g", "symlink", { linkTarget: "t".repeat(4095) }),
    ]);
    assert.deepEqual(reader.xattrs(nidOf(reader, "f")), [{ name, value }]);
    assert.deepEqual(reader.xattr(nidOf(reader, "d"), name), value);
    assert.equal(reader.xattr(nidOf(reader, "d"), Buffer.from("user.x")), undefined);
    assert.equal(reader.readlink(nidOf(reader, "d/g")).length, 4095);
  });
});

describe("unpacking", () => {
  test("the last entry of a name counts", () => {
    const { reader } = build([file("f", 5, 1), file("f", 9, 2)]);
    assert.equal(reader.inode(nidOf(reader, "f")).size, 9);
    assert.deepEqual(
      paths([entry("a", "directory"), file("a/b", 1, 1), file("a", 1, 2)]),
      ["d ", "- a"],
      "a file over a directory drops what is in it",
    );
    assert.deepEqual(paths([file("a", 1, 2), entry("a", "directory"), file("a/b", 1, 1)]), [
      "d ",
      "d a",
      "- a/b",
    ]);
  });

  test("a directory that comes again keeps its children and takes the new attributes", () => {
    const xattr = (name: string, value: string) => {
      return { name: Buffer.from(name), value: Buffer.from(value) };
    };
    const entries = [
      entry("d", "directory", {
        mode: 0o700,
        xattrs: [xattr("user.a", "1"), xattr("user.b", "1")],
      }),
      file("d/f", 1, 1),
      entry("d", "directory", { mode: 0o711, xattrs: [xattr("user.b", "2")] }),
    ];
    const { reader, impliedDirectories } = build(entries);
    assert.equal(reader.inode(nidOf(reader, "d")).mode, 0o40711);
    assert.ok(list(reader).has("d/f"));
    assert.deepEqual(xattrsOf(entries, "d"), ["user.a=1", "user.b=2"]);
    assert.deepEqual(impliedDirectories, []);
  });

  test("missing parents are made, and said", () => {
    const { reader, impliedDirectories } = build([file("a/b/f", 1, 1), entry("a", "directory")]);
    assert.deepEqual(impliedDirectories.map(String), ["a/b"]);
    const { mode, uid, mtimeSeconds } = reader.inode(nidOf(reader, "a/b"));
    assert.deepEqual([mode, uid, mtimeSeconds], [0o40755, 0, 0]);
  });

  test("whoever knows the layers below gives missing parents their attributes", () => {
    const attributes = { ...entry("", "directory"), mode: 0o1777, uid: 9 };
    const asked: string[] = [];
    const { reader } = build([file("tmp/x/f", 1, 1)], {
      directoryAttributes: (path) => {
        asked.push(path.toString());
        return path.toString() === "tmp" ? attributes : undefined;
      },
    });
    assert.deepEqual(asked, ["tmp", "tmp/x"]);
    assert.equal(reader.inode(nidOf(reader, "tmp")).mode, 0o41777);
    assert.equal(reader.inode(nidOf(reader, "tmp/x")).mode, 0o40755);
  });

  test("an entry of the root gives the root its attributes, anything but a directory does not", () => {
    const { reader } = build([entry("", "directory", { mode: 0o701, uid: 5 }), file("", 3, 1)]);
    assert.deepEqual(
      [reader.inode(reader.rootNid).mode, reader.inode(reader.rootNid).uid],
      [0o40701, 5],
    );
  });

  test("an entry below a file cannot be unpacked", () => {
    fails([file("a", 1, 1), file("a/b", 1, 1)]);
    fails([entry("a", "fifo"), entry("a/b/c", "directory")]);
  });

  test("symbolic links of the layer are followed on the way to an entry, within the root", () => {
    const link = (path: string, linkTarget: string) => entry(path, "symlink", { linkTarget });
    assert.deepEqual(paths([link("lib", "usr/lib"), file("lib/a", 1, 1)]), [
      "d ",
      "l lib",
      "d usr",
      "d usr/lib",
      "- usr/lib/a",
    ]);
    const found = paths([
      link("x/up", "../../../y"),
      link("x/abs", "/z"),
      file("x/up/a", 1, 1),
      file("x/abs/b", 1, 1),
    ]);
    assert.ok(found.includes("- y/a") && found.includes("- z/b"), found.join());
    assert.deepEqual(paths([link("lib", "usr"), entry("lib", "directory"), file("lib/a", 1, 1)]), [
      "d ",
      "d lib",
      "- lib/a",
    ]);
    fails([link("a", "b"), link("b", "a"), file("a/x", 1, 1)]);
  });

  test("an entry goes where its directory is now, not where it was", () => {
    const link = (path: string, linkTarget: string) => entry(path, "symlink", { linkTarget });
    assert.deepEqual(
      paths([
        file("d/a", 1, 1),
        link("d", "e"),
        file("d/a", 1, 1),
        entry("d", "directory"),
        file("d/b", 1, 1),
      ]),
      ["d ", "d d", "- d/b", "d e", "- e/a"],
    );
  });
});

describe("hard links", () => {
  const hard = (path: string, linkTarget: string) => entry(path, "hardlink", { linkTarget });

  test("may lead to symbolic links, devices and forward", () => {
    const { reader } = build([
      hard("before", "f"),
      hard("chain", "before"),
      file("f", 3, 1),
      entry("s", "symlink", { linkTarget: "nowhere" }),
      hard("t", "s"),
      entry("c", "char", { deviceMajor: 1, deviceMinor: 3 }),
      hard("d/e", "c"),
    ]);
    const found = list(reader);
    assert.equal(found.get("f")?.nlink, 3);
    assert.equal(found.get("chain")?.nid, found.get("f")?.nid);
    assert.equal(found.get("t")?.type, "symlink");
    assert.equal(found.get("t")?.nlink, 2);
    assert.equal(found.get("d/e")?.device, 0x103);
  });

  test("keep what they lead to when its own name is replaced", () => {
    const { reader } = build([file("f", 3, 1), hard("g", "f"), file("f", 4, 2)]);
    const found = list(reader);
    assert.deepEqual([found.get("f")?.size, found.get("g")?.size], [4, 3]);
    assert.deepEqual([found.get("f")?.nlink, found.get("g")?.nlink], [1, 1]);
  });

  test("to themselves leave everything as it is", () => {
    const { reader } = build([file("f", 3, 1), hard("f", "f")]);
    assert.equal(list(reader).get("f")?.nlink, 1);
  });

  test("that lead nowhere, to a directory or in a circle cannot be unpacked", () => {
    fails([hard("a", "missing")]);
    fails([hard("a", "a")]);
    fails([entry("d", "directory"), hard("a", "d")]);
    fails([hard("a", "d"), entry("d", "directory")]);
    fails([hard("a", "")]);
    fails([hard("a", "b"), hard("b", "c"), hard("c", "a")]);
  });

  test("that are gone in the end need no target", () => {
    assert.deepEqual(paths([hard("a", "missing"), file("a", 1, 1)]), ["d ", "- a"]);
    assert.deepEqual(paths([hard("d/a", "missing"), file("d", 1, 1)]), ["d ", "- d"]);
  });

  test("to what is left out of the image keep it", () => {
    const { reader } = build([file("dev/f", 3, 1), hard("f", "dev/f")]);
    assert.deepEqual([...list(reader).keys()], ["", "dev", "f"]);
    assert.equal(list(reader).get("f")?.nlink, 1);
  });
});

describe("whiteouts", () => {
  test("become what overlayfs takes for them", () => {
    const whiteout = { ...file("d/.wh.gone", 0, 0), uid: 3, gid: 4, mode: 0o600 };
    const { reader, opaqueRoot } = build([
      whiteout,
      file("e/.wh..wh..opq", 0, 0),
      file("e/f", 1, 1),
    ]);
    const inode = reader.inode(nidOf(reader, "d/gone"));
    assert.deepEqual([inode.mode, inode.device, inode.uid, inode.gid], [0o20000, 0, 3, 4]);
    assert.deepEqual(reader.xattrs(nidOf(reader, "e")), [
      { name: Buffer.from("trusted.overlay.opaque"), value: Buffer.from("y") },
    ]);
    assert.equal(opaqueRoot, false);
  });

  test("hide nothing of their own layer, whatever comes first", () => {
    for (const entries of [
      [file(".wh.a", 0, 0), file("a", 1, 1)],
      [file("a", 1, 1), file(".wh.a", 0, 0)],
    ]) {
      assert.deepEqual(paths(entries), ["d ", "- a"]);
    }
  });

  test("make a directory that their own layer has opaque", () => {
    for (const entries of [
      [file(".wh.d", 0, 0), file("d/f", 1, 1)],
      [file("d/f", 1, 1), file(".wh.d", 0, 0)],
    ]) {
      assert.deepEqual(paths(entries), ["d ", "d d", "- d/f"]);
      assert.deepEqual(xattrsOf(entries, "d"), ["trusted.overlay.opaque=y"]);
    }
  });

  test("are left out where nothing of the layers below is seen", () => {
    const entries = [
      file("d/.wh..wh..opq", 0, 0),
      file("d/.wh.x", 0, 0),
      file("d/e/.wh.y", 0, 0),
      file("d/e/.wh..wh..opq", 0, 0),
    ];
    assert.deepEqual(paths(entries), ["d ", "d d", "d d/e"]);
  });

  test("at the root say that the layers below are not seen at all", () => {
    const built = build([file(".wh..wh..opq", 0, 0), file(".wh.x", 0, 0), file("f", 1, 1)]);
    assert.equal(built.opaqueRoot, true);
    assert.deepEqual([...list(built.reader).keys()], ["", "f"]);
    assert.deepEqual(built.reader.xattrs(built.reader.rootNid), []);
  });

  test("of AUFS' own files are ignored", () => {
    const entries = [
      file(".wh..wh.aufs", 0, 0),
      entry(".wh..wh.plnk", "directory"),
      file(".wh..wh.plnk/1.2", 3, 1),
      entry(".wh..wh.orph", "directory"),
      file("f", 1, 1),
    ];
    assert.deepEqual(paths(entries), ["d ", "- f"]);
  });

  test("that name nothing cannot be unpacked", () => {
    for (const name of [".wh.", ".wh..", ".wh...", "d/.wh."]) fails([file(name, 0, 0)]);
  });

  test("follow the directory they stand in", () => {
    assert.deepEqual(paths([file("d/.wh.x", 0, 0), file("d", 1, 1)]), ["d ", "- d"]);
    const link = entry("lib", "symlink", { linkTarget: "usr" });
    assert.ok(paths([link, file("lib/.wh.x", 0, 0)]).includes("c usr/x"));
  });
});

describe("runtime directories", () => {
  const entries = [
    entry("proc", "directory", { mode: 0o555 }),
    file("proc/cpuinfo", 1, 1),
    file("sys/x/y", 1, 1),
    file("dev/.wh.null", 0, 0),
    file("usr/dev/f", 1, 1),
  ];

  test("are there without what is in them", () => {
    assert.deepEqual(paths(entries), [
      "d ",
      "d dev",
      "d proc",
      "d sys",
      "d usr",
      "d usr/dev",
      "- usr/dev/f",
    ]);
  });

  test("are whole when it is wished", () => {
    const found = paths(entries, true);
    for (const path of ["- proc/cpuinfo", "- sys/x/y", "c dev/null"]) {
      assert.ok(found.includes(path), path);
    }
  });

  test("that are no directories are like everything else", () => {
    assert.deepEqual(paths([file("proc", 1, 1), entry("dev", "symlink", { linkTarget: "d" })]), [
      "d ",
      "l dev",
      "- proc",
    ]);
  });
});

describe("data", () => {
  test("of a file is one piece of the blob", () => {
    const { reader } = build([file("f", 5000, 123), file("g", 0, 0)], { blobSize: 512 * 200 });
    assert.deepEqual(reader.extents(nidOf(reader, "f")), [
      { fileOffset: 0, length: 5000, blobOffset: 123 * 512 },
    ]);
    assert.deepEqual(reader.extents(nidOf(reader, "f"), 600, 100), [
      { fileOffset: 600, length: 100, blobOffset: 123 * 512 + 600 },
    ]);
    assert.deepEqual(reader.extents(nidOf(reader, "f"), 5000, 1), []);
    assert.deepEqual(reader.extents(nidOf(reader, "g")), []);
    assert.equal(reader.blobSize, 512 * 200);
  });

  test("of a sparse file is pieces and holes", () => {
    const extents = [
      { fileOffset: 512, archiveOffset: 5 * 512, length: 1024 },
      { fileOffset: 1536, archiveOffset: 9 * 512, length: 512 },
      { fileOffset: 8192, archiveOffset: 10 * 512, length: 100 },
    ];
    const { reader } = build([
      entry("f", "file", { size: 8292, extents }),
      entry("hole", "file", { size: 2 ** 39 + 1, extents: [] }),
    ]);
    assert.deepEqual(reader.extents(nidOf(reader, "f")), [
      { fileOffset: 0, length: 512, blobOffset: undefined },
      { fileOffset: 512, length: 1024, blobOffset: 5 * 512 },
      { fileOffset: 1536, length: 512, blobOffset: 9 * 512 },
      { fileOffset: 2048, length: 6144, blobOffset: undefined },
      { fileOffset: 8192, length: 100, blobOffset: 10 * 512 },
    ]);
    assert.deepEqual(reader.extents(nidOf(reader, "f"), 1000, 1000), [
      { fileOffset: 1000, length: 536, blobOffset: 5 * 512 + 488 },
      { fileOffset: 1536, length: 464, blobOffset: 9 * 512 },
    ]);
    assert.deepEqual(reader.extents(nidOf(reader, "hole")), [
      { fileOffset: 0, length: 2 ** 39 + 1, blobOffset: undefined },
    ]);
  });

  test("that has no form in blocks is left to an ordinary unpack", () => {
    const sparse = (fileOffset: number, archiveOffset: number, length: number) =>
      entry("f", "file", { size: 10_000, extents: [{ fileOffset, archiveOffset, length }] });
    fails([sparse(5, 512, 512)], "LAYER_UNSUPPORTED");
    fails([sparse(512, 100, 512)], "LAYER_UNSUPPORTED");
    fails([sparse(512, 512, 100)], "LAYER_UNSUPPORTED");
    fails([file("f", 100, 2 ** 21)], "LAYER_UNSUPPORTED");
    const scattered = { fileOffset: 512, archiveOffset: 512, length: 512 };
    fails([entry("f", "file", { size: 2 ** 40, extents: [scattered] })], "LAYER_UNSUPPORTED");
  });

  test("beyond what EROFS can address is refused", () => {
    assert.throws(
      () => build([file("f", 1, 1)], { blobSize: 2 ** 41 }),
      (error) => isClipError(error, "LIMIT_EXCEEDED"),
    );
  });
});

test("the same entries give the same image", () => {
  const entries = [
    file("b", 1, 1),
    entry("a/c", "symlink", { linkTarget: "x" }),
    file("a/d", 1, 2),
  ];
  assert.deepEqual(build(entries).image, build(entries).image);
});
