/**
 * Prints everything that can be seen of a directory tree, one JSON object a line, to compare two
 * trees with: `tree-listing.ts DIRECTORY`. A program of its own, since whoever serves a tree must
 * not read it.
 */
import { createHash } from "node:crypto";
import { lstatSync, readdirSync, readFileSync, readlinkSync, type BigIntStats } from "node:fs";
import koffi from "koffi";

const libc = koffi.load(null);
const llistxattr = libc.func("long llistxattr(void *path, void *list, size_t size)");
const lgetxattr = libc.func("long lgetxattr(void *path, void *name, void *value, size_t size)");

const root = process.argv[2] ?? ".";
const firstPaths = new Map<bigint, string>();
const lines: string[] = [];
walk(Buffer.from(root), Buffer.alloc(0));
process.stdout.write(lines.join("\n"));

function walk(place: Buffer, shown: Buffer): void {
  const stats = lstatSync(place, { bigint: true });
  lines.push(JSON.stringify(describe(place, shown, stats)));
  if (!stats.isDirectory()) return;
  const names = readdirSync(place, { encoding: "buffer" }).sort((a, b) => a.compare(b));
  for (const name of names) walk(join(place, name), join(shown, name));
}

function describe(place: Buffer, shown: Buffer, stats: BigIntStats): Record<string, unknown> {
  const at = shown.toString("latin1");
  const firstPath = firstPaths.get(stats.ino) ?? at;
  firstPaths.set(stats.ino, firstPath);
  return {
    path: at,
    mode: stats.mode.toString(8),
    owner: `${stats.uid}:${stats.gid}`,
    modified: String(stats.mtimeNs),
    links: String(stats.nlink),
    sameAs: firstPath,
    ...(!stats.isDirectory() && { size: String(stats.size) }),
    ...((stats.isCharacterDevice() || stats.isBlockDevice()) && { device: String(stats.rdev) }),
    ...(stats.isSymbolicLink() && { target: readlinkSync(place, "latin1") }),
    ...(stats.isFile() && { sha256: hash(readFileSync(place)) }),
    xattrs: xattrsOf(place),
  };
}

function xattrsOf(place: Buffer): Record<string, string> {
  const path = Buffer.concat([place, Buffer.alloc(1)]);
  const list = Buffer.alloc(65_536);
  const length = Number(llistxattr(path, list, list.length));
  if (length < 0) throw new Error(`llistxattr of ${place.toString("latin1")} failed`);
  const names = list.toString("latin1", 0, length).split("\0").filter(Boolean).sort();
  return Object.fromEntries(
    names.map((name) => {
      const value = Buffer.alloc(65_536);
      const bytes = Number(lgetxattr(path, Buffer.from(`${name}\0`), value, value.length));
      if (bytes < 0) throw new Error(`lgetxattr of ${place.toString("latin1")} failed`);
      return [name, bytes > 64 ? hash(value.subarray(0, bytes)) : value.toString("hex", 0, bytes)];
    }),
  );
}

function join(directory: Buffer, name: Buffer): Buffer {
  return directory.length === 0 ? name : Buffer.concat([directory, Buffer.from("/"), name]);
}

function hash(bytes: Buffer): string {
  return createHash("sha256").update(bytes).digest("hex");
}
