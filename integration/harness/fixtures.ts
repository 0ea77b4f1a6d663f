/** The images of the tests. Each is made once, in a directory of the sandbox. */
import { randomBytes } from "node:crypto";
import { chmod, mkdir, open, readFile, symlink, utimes, writeFile } from "node:fs/promises";
import path from "node:path";
import { gzipSync } from "node:zlib";
import { run } from "./command.ts";
import {
  makeImage,
  makeLayer,
  unpackWithTar,
  unpackWithUmoci,
  type Compressor,
  type Image,
  type ImageLayer,
} from "./image.ts";
import { tarOf, type TarMember } from "./tar-writer.ts";
import { tool } from "./tools.ts";

/** A name, and how the image is made in a directory. */
export interface Fixture {
  name: string;
  make(directory: string): Promise<Image>;
  /** Unpacks it as `image.ts` says; umoci knows whiteouts, GNU tar everything else. */
  reference: typeof unpackWithTar;
}

/** Every kind of image that clip must serve as containerd itself would. */
export const fixtures: readonly Fixture[] = [
  { name: "kinds", make: makeKinds, reference: unpackWithTar },
  { name: "whiteouts", make: makeWhiteouts, reference: unpackWithUmoci },
  { name: "compressors", make: makeCompressors, reference: unpackWithUmoci },
  { name: "gnu-tar", make: makeGnuTar, reference: unpackWithTar },
];

const DAY = 86_400_000_000_000n;

/** Directories and programs that a container needs; nothing has to be added to run it. */
async function baseMembers(): Promise<TarMember[]> {
  const directory = (name: string, mode = 0o755): TarMember => ({
    name: `${name}/`,
    type: "directory",
    mode,
  });
  return [
    directory("."),
    ...["bin", "etc", "dev", "proc", "sys", "run", "var", "root", "srv"].map((name) =>
      directory(name),
    ),
    directory("tmp", 0o1777),
    { name: "bin/busybox", mode: 0o755, data: await readFile(tool("busybox")) },
    ...["sh", "cat", "ls", "sleep", "echo", "true", "find", "md5sum"].map((name): TarMember => ({
      name: `bin/${name}`,
      type: "symlink",
      link: "busybox",
    })),
    { name: "etc/os-release", data: 'NAME="clip test"\n' },
    { name: "etc/passwd", data: "root:x:0:0:root:/root:/bin/sh\n" },
    { name: "etc/group", data: "root:x:0:\n" },
    // Clients mount their own over these; were they missing, /etc would be changed.
    ...["hosts", "hostname", "resolv.conf"].map((name): TarMember => ({ name: `etc/${name}` })),
  ];
}

/** A layer of members. */
async function layerOf(
  directory: string,
  name: string,
  members: readonly TarMember[],
  compressor?: Compressor,
): Promise<ImageLayer> {
  const tarFile = path.join(directory, `${name}.tar`);
  await writeFile(tarFile, tarOf(members));
  return makeLayer(tarFile, compressor);
}

/** A small image that can be run, of one layer. */
export async function makeBase(directory: string): Promise<Image> {
  return makeImage([await layerOf(directory, "base", await baseMembers())]);
}

/** A pod's sandbox: something that sleeps. */
export async function makePause(directory: string): Promise<Image> {
  const layer = await layerOf(directory, "pause", await baseMembers());
  return makeImage([layer], { entrypoint: ["/bin/busybox", "sleep", "1000000000"], command: [] });
}

/** Every type of file, odd names, owners, times, attributes, links. */
async function makeKinds(directory: string): Promise<Image> {
  const binary = Buffer.from([0, 1, 2, 255, 254, 10, 61, 0]);
  const capability = Buffer.from("0100000200040000000000000000000000000000", "hex");
  const long = `${"long-directory-name-".repeat(4)}/${"n".repeat(200)}`;
  const small = { mode: 0o4755, uid: 1000, gid: 1000 };
  const members: TarMember[] = [
    ...(await baseMembers()),
    { name: "srv/", type: "directory", mode: 0o2775, uid: 12, gid: 34 },
    { name: "srv/empty", mode: 0o600 },
    { ...small, name: "srv/small", data: "small\n" },
    { name: "srv/block", data: randomBytes(512), mode: 0o2755 },
    { name: "srv/large", data: randomBytes(5_000_001), mode: 0o1644 },
    { name: "srv/compressible", data: Buffer.alloc(3_000_000, "clip ") },
    { name: "srv/large-owner", uid: 3_000_000_000, gid: 2_999_999_999 },
    { name: "srv/epoch", mtime: 0n },
    { name: "srv/before-epoch", mtime: -5n * DAY },
    { name: "srv/after-2106", mtime: 50_000n * DAY + 999_999_999n },
    { name: "srv/no-nanoseconds", mtime: 20_000n * DAY },
    { name: "srv/mode-zero", mode: 0, data: "x" },
    { name: "srv/fifo", type: "fifo", mode: 0o622 },
    { name: "srv/null", type: "character", mode: 0o666, device: [1, 3] },
    { name: "srv/disk", type: "block", mode: 0o660, gid: 6, device: [259, 300] },
    { name: "srv/relative", type: "symlink", link: "../bin/sh", uid: 5, gid: 6 },
    { name: "srv/absolute", type: "symlink", link: "/bin/sh" },
    { name: "srv/dangling", type: "symlink", link: "no/such/file" },
    { name: "srv/long-link", type: "symlink", link: `/${"target/".repeat(40)}` },
    // A hard link repeats what its file has: unpackers differ in whose word counts.
    { ...small, name: "srv/hard-link", type: "hardlink", link: "srv/small" },
    { ...small, name: "srv/another-hard-link", type: "hardlink", link: "srv/hard-link" },
    { name: "srv/link-to-symlink", type: "hardlink", link: "srv/relative", uid: 5, gid: 6 },
    { name: "srv/link-to-fifo", type: "hardlink", link: "srv/fifo", mode: 0o622 },
    { name: "srv/user-attributes", xattrs: { "user.text": "value", "user.binary": binary } },
    { name: "srv/trusted-attribute", xattrs: { "trusted.clip": binary } },
    { name: "srv/capability", mode: 0o755, xattrs: { "security.capability": capability } },
    { name: "srv/attributed/", type: "directory", xattrs: { "user.on-directory": "yes" } },
    { name: "srv/empty-attribute", xattrs: { "user.empty": "" } },
    { name: "srv/large-attribute", xattrs: { "user.large": "v".repeat(3000) } },
    { name: Buffer.from([...Buffer.from("srv/not-utf8-"), 0xff, 0xfe]), data: "bytes" },
    { name: "srv/späce and\nnewline", data: "odd" },
    { name: "srv/umlaut-ü", type: "symlink", link: "späce" },
    { name: `srv/${long.split("/")[0] ?? ""}/`, type: "directory" },
    { name: `srv/${long}`, data: "long" },
    { name: "./srv/dotted", data: "dotted" },
    { name: "/srv/rooted", data: "rooted" },
    { name: "srv/twice", data: "first, and longer than the second" },
    { name: "srv/twice", data: "second", mode: 0o640 },
    { name: "srv/many/", type: "directory" },
    ...Array.from({ length: 3000 }, (_, index) => ({
      name: `srv/many/file-${String(index).padStart(5, "0")}`,
      data: `contents ${index}\n`,
    })),
    { name: "srv/last", data: "last" },
  ];
  return makeImage([await layerOf(directory, "kinds", members)]);
}

/** Layers that hide and replace what lies below them. */
async function makeWhiteouts(directory: string): Promise<Image> {
  const root: TarMember = { name: "./", type: "directory" };
  const srv: TarMember = { name: "srv/", type: "directory" };
  const dir = (name: string): TarMember => ({ name: `srv/${name}/`, type: "directory" });
  const file = (name: string, data = name): TarMember => ({ name: `srv/${name}`, data });
  const lower: TarMember[] = [
    ...(await baseMembers()),
    ...[file("kept"), file("removed"), file("replaced", "old"), file("file-to-directory")],
    ...[dir("removed-directory"), file("removed-directory/inside")],
    ...[dir("opaque"), file("opaque/hidden"), dir("opaque/deep"), file("opaque/deep/hidden")],
    ...[dir("merged"), file("merged/from-below"), file("merged/both", "below")],
    ...[dir("directory-to-file"), file("directory-to-file/inside")],
    ...[dir("back"), file("back/old"), dir("gone-and-back"), file("gone-and-back/old")],
    { name: "srv/linked-a", data: "linked" },
    { name: "srv/linked-b", type: "hardlink", link: "srv/linked-a" },
  ];
  const middle: TarMember[] = [
    ...[root, srv, { name: "srv/.wh.removed" }, { name: "srv/.wh.removed-directory" }],
    file("replaced", "new and longer"),
    ...[dir("opaque"), { name: "srv/opaque/.wh..wh..opq" }, file("opaque/shown")],
    ...[dir("merged"), file("merged/both", "above"), file("merged/from-above")],
    ...[dir("file-to-directory"), file("file-to-directory/inside")],
    file("directory-to-file", "now a file"),
    { name: "srv/.wh.gone-and-back" },
    // Whiteouts never hide entries of their own layer.
    ...[dir("back"), file("back/new"), { name: "srv/back/.wh..wh..opq" }],
  ];
  const upper: TarMember[] = [
    ...[root, srv, dir("gone-and-back"), file("gone-and-back/new")],
    ...[dir("opaque"), file("opaque/from-the-top")],
    ...[dir("merged"), { name: "srv/merged/.wh.from-above" }],
    { name: "srv/.wh.never-there" },
  ];
  return makeImage([
    await layerOf(directory, "lower", lower),
    await layerOf(directory, "middle", middle),
    await layerOf(directory, "upper", upper),
    await layerOf(directory, "empty", []),
  ]);
}

/** One layer for each way to compress, and some that no tool writes by itself. */
async function makeCompressors(directory: string): Promise<Image> {
  const all: Compressor[] = [
    ...(["gzip -1", "gzip -9 with a name", "pigz", "pigz in independent blocks"] as const),
    ...(["igzip", "libdeflate", "bgzip"] as const),
  ];
  const layers = [await layerOf(directory, "base", await baseMembers())];
  for (const [index, compressor] of all.entries()) {
    layers.push(await layerOf(directory, `tool-${index}`, contents(`tool-${index}`), compressor));
  }
  layers.push(await gzipped(directory, "stored", (tar) => gzipSync(tar, { level: 0 })));
  layers.push(
    await gzipped(directory, "members", (tar) => {
      const third = Math.floor(tar.length / 3);
      const parts = [tar.subarray(0, third), tar.subarray(third, 2 * third), Buffer.alloc(0)];
      return Buffer.concat([...parts, tar.subarray(2 * third)].map((part) => gzipSync(part)));
    }),
  );
  return makeImage(layers);
}

/** Some megabytes that compress in part, below `/srv/name`. */
function contents(name: string): TarMember[] {
  const words = Array.from({ length: 2000 }, () => randomBytes(3).toString("hex"));
  const text = Array.from({ length: 300_000 }, (_, index) => words[(index * index) % 1999]);
  return [
    { name: "./", type: "directory" },
    { name: "srv/", type: "directory" },
    { name: `srv/${name}/`, type: "directory" },
    { name: `srv/${name}/text`, data: text.join(" ") },
    { name: `srv/${name}/random`, data: randomBytes(1_200_000) },
    { name: `srv/${name}/zeros`, data: Buffer.alloc(2_500_000) },
    { name: `srv/${name}/end`, data: "end" },
  ];
}

async function gzipped(
  directory: string,
  name: string,
  compress: (tar: Buffer) => Buffer,
): Promise<ImageLayer> {
  const layer = await layerOf(directory, name, contents(name), "none");
  const blobFile = `${layer.tarFile}.gz`;
  await writeFile(blobFile, compress(await readFile(layer.tarFile)));
  const blob = await makeLayer(blobFile, "none");
  return {
    ...layer,
    ...{ blobFile, digest: blob.digest, size: blob.size },
    mediaType: `${layer.mediaType}+gzip`,
  };
}

/** Layers of which the middle one is not compressed. */
export async function makeMixed(directory: string): Promise<Image> {
  return makeImage([
    await layerOf(directory, "base", await baseMembers()),
    await layerOf(directory, "plain", contents("plain"), "none"),
    await layerOf(directory, "above", contents("above")),
  ]);
}

/** Layers with files in directories that only the layers below describe. */
export async function makeImplied(directory: string): Promise<Image> {
  const described: TarMember[] = [
    { name: "srv/plain/", type: "directory" },
    { name: "srv/shared/", type: "directory", mode: 0o2775, uid: 12, gid: 34 },
    { name: "srv/owned/", type: "directory", uid: 5, gid: 6, xattrs: { "user.note": "kept" } },
    { name: "srv/removed/", type: "directory", mode: 0o700 },
  ];
  return makeImage([
    await layerOf(directory, "base", [...(await baseMembers()), ...described]),
    await layerOf(directory, "same", [
      ...[{ name: "srv/plain/file" }, { name: "srv/new/deep/file" }],
      { name: "srv/.wh.removed" },
    ]),
    await layerOf(directory, "hidden", [{ name: "srv/removed/file" }]),
    await layerOf(directory, "other", [
      ...[{ name: "tmp/file" }, { name: "srv/shared/file" }, { name: "srv/owned/file" }],
    ]),
    await layerOf(directory, "top", [{ name: "srv/top" }]),
  ]);
}

/** Archives as GNU tar writes them from a directory: its own form and pax, with sparse files. */
async function makeGnuTar(directory: string): Promise<Image> {
  const layers = [await layerOf(directory, "base", await baseMembers())];
  const forms = {
    gnu: ["--format=gnu"],
    "pax-0.0": ["--format=pax", "--sparse-version=0.0"],
    "pax-0.1": ["--format=pax", "--sparse-version=0.1"],
    "pax-1.0": ["--format=pax", "--sparse-version=1.0"],
    ustar: ["--format=ustar"],
  };
  for (const [name, options] of Object.entries(forms)) {
    const tree = path.join(directory, `tree-${name}`);
    await writeGnuTree(path.join(tree, "srv", name), name !== "ustar");
    const tarFile = path.join(directory, `${name}.tar`);
    const sparse = name === "ustar" ? [] : ["--sparse"];
    await run("tar", ["-C", tree, "--numeric-owner", ...options, ...sparse, "-cf", tarFile, "."]);
    layers.push(await makeLayer(tarFile));
  }
  return makeImage(layers);
}

async function writeGnuTree(directory: string, longNames: boolean): Promise<void> {
  await mkdir(path.join(directory, "sub"), { recursive: true });
  await writeFile(path.join(directory, "plain"), "plain\n");
  await chmod(path.join(directory, "plain"), 0o4711);
  await symlink("plain", path.join(directory, "link"));
  if (longNames) {
    const name = path.join(directory, "sub", "l".repeat(150));
    await writeFile(name, "long");
    await symlink("t".repeat(150), path.join(directory, "sub", "long-target"));
  }
  const sparse = await open(path.join(directory, "sparse"), "w");
  // Data at the start, in the middle, in many places, and a hole at the end.
  await sparse.write("start", 0);
  for (let index = 1; index < 40; index++) await sparse.write(`part ${index}`, index * 262_144);
  await sparse.truncate(20_000_000);
  await sparse.close();
  const hole = await open(path.join(directory, "hole"), "w");
  await hole.truncate(3_000_000);
  await hole.close();
  await utimes(path.join(directory, "plain"), 1_600_000_000.25, 1_600_000_000.25);
}
