/**
 * Metadata images against the kernel and fsck.erofs: a layer's tar, mounted as EROFS with the tar as
 * its device, is the tree that GNU tar unpacks. Needs root and a kernel with file-backed EROFS.
 */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import {
  chmod,
  link,
  lchown,
  mkdir,
  open,
  readFile,
  readdir,
  symlink,
  utimes,
  writeFile,
} from "node:fs/promises";
import { release } from "node:os";
import { after, before, describe, test } from "node:test";
import { digestOf } from "../src/base/digest.ts";
import { ErofsReader } from "../src/erofs/reader.ts";
import { buildErofsImage, type ErofsImage } from "../src/erofs/writer.ts";
import { MS_RDONLY, mount, unmount } from "../src/os/libc.ts";
import { archive, header, member, padded, pax, readEntries } from "../src/tar/test-archive.ts";
import { run, runRaw } from "./harness/command.ts";
import { Sandbox } from "./harness/sandbox.ts";
import { tool } from "./harness/tools.ts";
import { assertSameTree, listTree } from "./harness/tree.ts";

const unfit = whyUnfit();
const fsck = [process.env["FSCK_EROFS"], tool("fsck.erofs")].find(
  (program) => program !== undefined && existsSync(program),
);

const missingFsck = fsck === undefined && "fsck.erofs is missing: run make setup";

function whyUnfit(): string | false {
  if (process.getuid?.() !== 0) return "mounting needs root";
  const [major = 0, minor = 0] = release().split(".").map(Number);
  if (major < 6 || (major === 6 && minor < 12))
    return `Linux ${release()} has no file-backed EROFS`;
  return readFileSync("/proc/filesystems", "utf8").includes("\terofs\n")
    ? false
    : "the kernel has no EROFS (modprobe erofs)";
}

describe("a metadata image", { skip: unfit }, () => {
  let sandbox: Sandbox;

  before(async () => {
    sandbox = await Sandbox.create();
  });

  after(() => sandbox.close());

  /** Mounts a layer; what is mounted goes with the sandbox. */
  async function mountLayer(
    name: string,
    tar: Buffer,
    keep = false,
  ): Promise<{ target: string; built: ErofsImage }> {
    const built = buildErofsImage(readEntries(tar), {
      blobSize: tar.length,
      diffId: digestOf(tar),
      keepRuntimeDirectories: keep,
    });
    const [blob, image] = [sandbox.path(`${name}.tar`), sandbox.path(`${name}.erofs`)];
    await writeFile(blob, tar);
    await writeFile(image, built.image);
    const target = await sandbox.subdirectory(name);
    await mount({ source: image, target, type: "erofs", flags: MS_RDONLY, data: `device=${blob}` });
    sandbox.onClose(`unmount ${name}`, () => unmount(target));
    if (fsck !== undefined) await run(fsck, [`--device=${blob}`, "--extract", image]);
    return { target, built };
  }

  /** What GNU tar makes of an archive. */
  async function unpack(name: string, tar: Buffer): Promise<string> {
    const target = await sandbox.subdirectory(`${name}.reference`);
    const parameters = [
      "--xattrs",
      "--xattrs-include=*",
      "--same-owner",
      "--numeric-owner",
      "-p",
      "-x",
      "-f",
      "-",
    ];
    await run("tar", ["-C", target, ...parameters], { input: tar });
    return target;
  }

  async function assertMountedAsUnpacked(name: string, tar: Buffer): Promise<string> {
    const { target } = await mountLayer(name, tar, true);
    const reference = await unpack(name, tar);
    assertSameTree(await listTree(target), await listTree(reference));
    return target;
  }

  test("of a tree that GNU tar has packed is that tree, in each of its formats", async () => {
    const source = await sandbox.subdirectory("source");
    await makeTree(source);
    const formats = {
      gnu: ["--format=gnu", "--exclude=hole"],
      posix: ["--format=posix", "--exclude=hole"],
      "sparse-gnu": ["--format=gnu", "--sparse"],
      "sparse-posix": ["--format=posix", "--sparse"],
    };
    for (const [name, options] of Object.entries(formats)) {
      const { stdout } = await runRaw("tar", ["-C", source, ...options, "-c", "."]);
      await assertMountedAsUnpacked(name, stdout);
    }
  });

  test("has what no other file system is asked to hold: any names, attributes, devices, times", async () => {
    const capability = Buffer.from("0100000200200000000000000000000000000000", "hex");
    const acl = Buffer.from(
      "0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000400ffffffff",
      "hex",
    );
    const target = await assertMountedAsUnpacked(
      "odd",
      archive(
        pax([["mtime", "1700000000.123456789"]]),
        member({ name: "./", type: "5", mode: 0o751, uid: 12 }),
        pax([
          ["SCHILY.xattr.user.binary", Buffer.from([0, 255, 10, 61])],
          ["SCHILY.xattr.security.capability", capability],
          ["mtime", "-1234567.5"],
        ]),
        member({ name: "capable", mode: 0o4755, uid: 1000, gid: 2000 }, "binary"),
        pax([["SCHILY.xattr.system.posix_acl_access", acl]]),
        member({ name: "acl", mode: 0o664 }, "acl"),
        pax([
          ["SCHILY.xattr.user.large", Buffer.alloc(3000, 7)],
          ["SCHILY.xattr.user.empty", ""],
        ]),
        member({ name: "dir/", type: "5", mode: 0o1777 }),
        member({ name: Buffer.from([0x64, 0x69, 0x72, 0x2f, 0xff, 0x0a, 0x80]) }, "odd name"),
        member({ name: `dir/${"n".repeat(90)}` }, Buffer.alloc(70_000, 3)),
        pax([["path", `dir/${"m".repeat(255)}`]]),
        member({ name: "x" }, "long name"),
        pax([["linkpath", "t".repeat(4000)]]),
        member({ name: "long-link", type: "2", link: "x" }),
        member({ name: "link", type: "2", link: "../somewhere else", uid: 7 }),
        member({ name: "char", type: "3", deviceMajor: 1, deviceMinor: 3, mode: 0o666 }),
        member({ name: "block", type: "4", deviceMajor: 259, deviceMinor: 300_000, mode: 0o660 }),
        member({ name: "fifo", type: "6", mode: 0o600 }),
        member({ name: "hard", type: "5" }),
        member({ name: "hard/char", type: "1", link: "char" }),
        member({ name: "hard/link", type: "1", link: "link" }),
        member({ name: "hard/capable", type: "1", link: "./capable" }),
        member({ name: "twice" }, "first"),
        member({ name: "twice" }, "second, longer"),
        header({ name: "contiguous", type: "7", size: 3 }),
        padded(Buffer.from("abc")),
      ),
    );
    assert.equal((await readFile(`${target}/twice`)).toString(), "second, longer");
  });

  test("reads at any offset as the file does", async () => {
    const content = randomBytes(3_000_001);
    const tar = archive(member({ name: "before" }, "x"), member({ name: "f" }, content));
    const { target } = await mountLayer("offsets", tar);
    const file = await open(`${target}/f`);
    try {
      for (const [offset, length] of [
        [0, 1],
        [511, 2],
        [512, 512],
        [4095, 8194],
        [2_999_999, 100],
        [3_000_001, 1],
      ] as const) {
        const buffer = Buffer.alloc(length);
        const { bytesRead } = await file.read(buffer, 0, length, offset);
        assert.deepEqual(buffer.subarray(0, bytesRead), content.subarray(offset, offset + length));
      }
    } finally {
      await file.close();
    }
  });

  test("takes none of the marks of overlayfs from the archive", async () => {
    const attributes = {
      "trusted.overlay.opaque": "y",
      "trusted.overlay.redirect": "/etc",
      "user.kept": "1",
    };
    const records = Object.entries(attributes).map(
      ([name, value]) => [`SCHILY.xattr.${name}`, value] as const,
    );
    const tar = archive(pax(records), member({ name: "d", type: "5" }), member({ name: "d/f" }));
    const { target } = await mountLayer("marks", tar);
    const line = (await listTree(target)).get("d") ?? "";
    assert.match(line, /user\.kept/);
    assert.doesNotMatch(line, /trusted/);
  });

  test("holds a hundred thousand names in one directory", async () => {
    const names = Array.from({ length: 100_000 }, (_, index) => `${index}`);
    const tar = archive(
      member({ name: "d", type: "5" }),
      ...names.map((name) => header({ name: `d/${name}`, size: 0 })),
    );
    const { target } = await mountLayer("many", tar);
    const found = await readdir(`${target}/d`);
    assert.deepEqual(found.sort(), names.sort());
    assert.equal((await readFile(`${target}/d/99999`)).length, 0);
  });

  test("stacked by overlayfs hides what its whiteouts say", async () => {
    const lower = archive(
      member({ name: "gone" }, "x"),
      member({ name: "kept" }, "x"),
      member({ name: "opaque", type: "5" }),
      member({ name: "opaque/old" }, "x"),
      member({ name: "replaced", type: "5" }),
      member({ name: "replaced/old" }, "x"),
      member({ name: "merged", type: "5" }),
      member({ name: "merged/old" }, "x"),
      member({ name: "merged/gone" }, "x"),
    );
    const upper = archive(
      member({ name: ".wh.gone" }),
      member({ name: "opaque/.wh..wh..opq" }),
      member({ name: "opaque/.wh.old" }),
      member({ name: "opaque/new" }, "y"),
      member({ name: ".wh.replaced" }),
      member({ name: "replaced/new" }, "y"),
      member({ name: "merged/.wh.gone" }),
      member({ name: "merged/new" }, "y"),
      member({ name: ".wh.kept" }),
      member({ name: "kept" }, "y"),
    );
    const { target: below } = await mountLayer("lower", lower);
    const { target: above } = await mountLayer("upper", upper);
    const merged = await sandbox.subdirectory("merged");
    const data = `lowerdir=${above}:${below}`;
    await mount({ source: "overlay", target: merged, type: "overlay", flags: MS_RDONLY, data });
    sandbox.onClose("unmount merged", () => unmount(merged));
    const found = (await readdir(merged, { recursive: true })).sort();
    assert.deepEqual(found, [
      "kept",
      "merged",
      "merged/new",
      "merged/old",
      "opaque",
      "opaque/new",
      "replaced",
      "replaced/new",
    ]);
    assert.equal((await readFile(`${merged}/kept`)).toString(), "y");
  });

  test("passes fsck.erofs, which sees damage", { skip: missingFsck }, async () => {
    const { built } = await mountLayer("checked", archive(member({ name: "f" }, "x")));
    const reader = new ErofsReader(built.image);
    const thirdEntry = reader.rootNid * 32 + 64 + 2 * 12;
    built.image.writeUInt32LE(0x00ffffff, thirdEntry);
    const image = sandbox.path("damaged.erofs");
    await writeFile(image, built.image);
    const blob = sandbox.path("checked.tar");
    await assert.rejects(run(fsck ?? "", [`--device=${blob}`, "--extract", image]));
  });
});

async function makeTree(root: string): Promise<void> {
  await mkdir(`${root}/${"d".repeat(150)}/${"e".repeat(150)}`, { recursive: true });
  await mkdir(`${root}/many`);
  for (let index = 0; index < 2000; index++)
    await writeFile(`${root}/many/${index * 7919}`, `${index}`);
  await mkdir(`${root}/modes`);
  for (const mode of [0, 0o1777, 0o2755, 0o4711, 0o6777]) {
    await writeFile(`${root}/modes/${mode}`, randomBytes(mode));
    await lchown(`${root}/modes/${mode}`, mode, 65_536 + mode);
    await chmod(`${root}/modes/${mode}`, mode);
  }
  await writeFile(`${root}/${"d".repeat(150)}/deep`, "deep");
  await link(`${root}/many/0`, `${root}/hard`);
  await symlink("many/0", `${root}/soft`);
  await symlink("x".repeat(600), `${root}/softer`);
  await utimes(`${root}/hard`, 1, 1_600_000_000.75);
  const sparse = await open(`${root}/sparse`, "w");
  for (let run = 0; run < 50; run++)
    await sparse.write(randomBytes(4096), 0, 4096, run * 200_704 + 8192);
  await sparse.truncate(20_000_003);
  await sparse.close();
  const hole = await open(`${root}/hole`, "w");
  await hole.truncate(100_000_000);
  await hole.close();
}
