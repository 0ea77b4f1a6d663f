/**
 * Directories that a layer has things in, but no entry of their own for. Whoever unpacks layers one
 * over the other gives them the mode, owner and attributes of the layers below. Overlayfs shows
 * those of the topmost layer that has the directory: such a layer can be served as it is only where
 * both are the same.
 */
import type { ErofsReader } from "../erofs/reader.ts";

/** Paths in one piece, as they are kept and passed between threads: each is ended by a NUL. */
export function joinPaths(paths: readonly Buffer[]): Buffer {
  return Buffer.concat(paths.flatMap((path) => [path, nul]));
}

/** The paths that {@link joinPaths} was given. */
export function splitPaths(joined: Uint8Array): Buffer[] {
  const bytes = Buffer.from(joined.buffer, joined.byteOffset, joined.byteLength);
  const paths: Buffer[] = [];
  for (let at = 0; at < bytes.length;) {
    const end = bytes.indexOf(0, at);
    paths.push(bytes.subarray(at, end));
    at = end + 1;
  }
  return paths;
}

/**
 * The first of these directories that would look otherwise if the layer were unpacked over the
 * layers below, whose images come topmost first; undefined when there is none. No more images are
 * asked for than it takes.
 * @throws ClipError CORRUPT_EROFS
 */
export async function differingDirectory(
  implied: readonly Buffer[],
  below: AsyncIterable<ErofsReader>,
): Promise<Buffer | undefined> {
  let undecided = implied;
  if (undecided.length === 0) return undefined;
  for await (const image of below) {
    const absent: Buffer[] = [];
    for (const path of undecided) {
      const found = lookBelow(image, path);
      if (found === "differs") return path;
      if (found === "absent") absent.push(path);
    }
    if (absent.length === 0) return undefined;
    undecided = absent;
  }
  return undefined;
}

/** What one layer says of a directory: nothing, that it looks as by default, or otherwise. */
function lookBelow(image: ErofsReader, path: Buffer): "absent" | "same" | "differs" {
  let nid = image.rootNid;
  for (const name of path.toString("latin1").split("/")) {
    const child = image.lookup(nid, Buffer.from(name, "latin1"));
    if (child === undefined) return "absent";
    const { type } = image.inode(child);
    // Where it leads to need not be in the same layer.
    if (type === "symlink") return "differs";
    // Removed or replaced: nothing further below counts.
    if (type !== "directory") return "same";
    nid = child;
  }
  const { mode, uid, gid } = image.inode(nid);
  const hasAttributes = image
    .xattrs(nid)
    .some((xattr) => !xattr.name.toString("latin1").startsWith(overlayPrefix));
  const isDefault = (mode & 0o7777) === 0o755 && uid === 0 && gid === 0 && !hasAttributes;
  return isDefault ? "same" : "differs";
}

const nul = Buffer.from([0]);
const overlayPrefix = "trusted.overlay.";
