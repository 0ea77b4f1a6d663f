/** Entries to build images of, and images as lists, for tests. */
import type { EntryType, TarEntry } from "../tar/entry.ts";
import { digestOf } from "../base/digest.ts";
import type { ErofsInode, ErofsReader } from "./reader.ts";
import { ErofsReader as Reader } from "./reader.ts";
import { buildErofsImage, type ErofsImage, type ErofsImageOptions } from "./writer.ts";

/** An entry with defaults for all that does not matter. */
export function entry(
  path: string | Buffer,
  type: EntryType,
  rest: Partial<Omit<TarEntry, "linkTarget">> & { linkTarget?: string | Buffer } = {},
): TarEntry {
  return {
    mode: type === "directory" ? 0o755 : 0o644,
    uid: 0,
    gid: 0,
    mtimeSeconds: 0,
    mtimeNanoseconds: 0,
    size: 0,
    extents: [],
    deviceMajor: 0,
    deviceMinor: 0,
    xattrs: [],
    ...rest,
    path: bytes(path),
    type,
    linkTarget: bytes(rest.linkTarget ?? ""),
  };
}

/** A file whose data begins at a block of the blob. */
export function file(path: string | Buffer, size: number, block: number): TarEntry {
  const extents = size === 0 ? [] : [{ fileOffset: 0, archiveOffset: block * 512, length: size }];
  return entry(path, "file", { size, extents });
}

export const diffId = digestOf(Buffer.from("a layer"));

/** An image of entries, of a blob of 1 GiB if nothing else is said. */
export function build(
  entries: readonly TarEntry[],
  options: Partial<ErofsImageOptions> = {},
): ErofsImage & { reader: ErofsReader } {
  const built = buildErofsImage(entries, { blobSize: 2 ** 30, diffId, ...options });
  return { ...built, reader: new Reader(built.image) };
}

/** Every path of an image with the inode it leads to; names are latin1. The root is "". */
export function list(reader: ErofsReader): Map<string, ErofsInode> {
  const found = new Map<string, ErofsInode>();
  const visit = (path: string, nid: number) => {
    const inode = reader.inode(nid);
    found.set(path, inode);
    if (inode.type !== "directory") return;
    for (const { name, nid: child } of reader.readdir(nid)) {
      const text = name.toString("latin1");
      if (text !== "." && text !== "..") visit(path === "" ? text : `${path}/${text}`, child);
    }
  };
  visit("", reader.rootNid);
  return found;
}

/** The inode number of a path. */
export function nidOf(reader: ErofsReader, path: string): number {
  let nid = reader.rootNid;
  for (const name of path.split("/").filter((part) => part !== "")) {
    const child = reader.lookup(nid, Buffer.from(name, "latin1"));
    if (child === undefined) throw new Error(`${path} is not in the image`);
    nid = child;
  }
  return nid;
}

function bytes(text: string | Buffer): Buffer {
  return typeof text === "string" ? Buffer.from(text) : text;
}
