/** The tree of files that the entries of a layer's tar make when they are unpacked in order. */
import type { EntryType, TarEntry, Xattr } from "../tar/entry.ts";
import { ClipError } from "../base/errors.ts";
import { impliedPathBytesMax, nameBytesMax, pathBytesMax, xattrBytesMax } from "../base/limits.ts";

/** What a name in a directory leads to. */
export type Node = DirectoryNode | LeafNode | LinkNode;

/** Owner, permissions, time and extended attributes. */
export type Attributes = Pick<
  TarEntry,
  "mode" | "uid" | "gid" | "mtimeSeconds" | "mtimeNanoseconds" | "xattrs"
>;

/** A directory. Names are latin1 strings: a character is a byte, and their order that of bytes. */
export interface DirectoryNode {
  kind: "directory";
  name: string;
  /** The root is its own parent. */
  parent: DirectoryNode;
  /** Bytes of its path. */
  pathBytes: number;
  attributes: Attributes;
  /** Whether no entry describes it: it is there because of what is in it. */
  implied: boolean;
  children: Map<string, Node>;
  /** Names that the layer removes from the layers below, and the entries that say so. */
  whiteouts: Map<string, TarEntry>;
  /** Whether it hides everything that the layers below have in it. */
  opaque: boolean;
}

/** Anything else; several names may lead to the same one. */
export interface LeafNode {
  kind: "leaf";
  type: Exclude<EntryType, "directory" | "hardlink">;
  entry: TarEntry;
}

/** A hard link whose target has not come yet. None is left in a finished tree. */
export interface LinkNode {
  kind: "link";
  name: string;
  parent: DirectoryNode;
  target: string;
}

/** Unpacks entries, one after the other, as containerd does with a layer. */
export class LayerTree {
  readonly root: DirectoryNode = newDirectory("", undefined);
  readonly #forward: LinkNode[] = [];
  #impliedPathBytes = 0;
  // Most entries lie in the same directory as the one before.
  #parentPath = "";
  #parent: DirectoryNode | undefined = this.root;

  constructor() {
    this.root.implied = true;
  }

  /**
   * Unpacks one entry over what is there.
   *
   * As with containerd, a directory over a directory changes its attributes, anything else replaces
   * what has the name; parents that are missing are made, those that are symbolic links of this
   * layer are followed. Unlike containerd, a hard link may come before its target, its own
   * attributes do not count, and a whiteout never touches what its own layer has.
   * @throws ClipError CORRUPT_TAR when the entry cannot be unpacked.
   */
  add(entry: TarEntry): void {
    if (entry.path.length === 0) {
      // Nothing else can stand in place of the root; containerd ignores it too.
      if (entry.type === "directory") describe(this.root, entry);
      return;
    }
    const path = entry.path.toString("latin1");
    if (isAufsInternal(path)) return;
    const slash = path.lastIndexOf("/");
    const parent = this.#directoryAt(path.slice(0, Math.max(slash, 0)));
    const name = path.slice(slash + 1);
    if (name.startsWith(whiteoutPrefix)) addWhiteout(parent, name, entry);
    else this.#place(parent, name, entry);
  }

  /**
   * Leads the hard links that came before their targets to these.
   * @throws ClipError CORRUPT_TAR when a target is not there.
   */
  finish(): void {
    for (const link of this.#forward) {
      if (this.#isAttached(link)) this.#resolve(link);
    }
    this.#forward.length = 0;
  }

  #place(parent: DirectoryNode, name: string, entry: TarEntry): void {
    const { type } = entry;
    const present = parent.children.get(name);
    if (type === "directory") {
      if (present?.kind === "directory") return describe(present, entry);
      const directory = newDirectory(name, parent);
      describe(directory, entry);
      this.#replace(parent, name, present, directory);
    } else if (type === "hardlink") {
      const target = entry.linkTarget.toString("latin1");
      const node = this.#linked(target) ?? {
        kind: "link",
        name,
        parent,
        target,
      };
      // A link to itself leaves everything as it is.
      if (node === present) return;
      if (node.kind === "link") this.#forward.push(node);
      this.#replace(parent, name, present, node);
    } else {
      this.#replace(parent, name, present, { kind: "leaf", type, entry });
    }
  }

  #replace(parent: DirectoryNode, name: string, present: Node | undefined, node: Node): void {
    // Paths through what goes away lead elsewhere now.
    if (present !== undefined) this.#parent = undefined;
    parent.children.set(name, node);
  }

  /** What a hard link leads to, if it is there already. */
  #linked(target: string): LeafNode | LinkNode | undefined {
    const node = this.#find(target);
    if (node?.kind === "directory") throw corrupt("a hard link leads to a directory", target);
    return node?.kind === "leaf" ? node : undefined;
  }

  #resolve(first: LinkNode): void {
    const chain = new Set<LinkNode>();
    let node: Node | undefined = first;
    while (node?.kind === "link") {
      if (chain.has(node)) throw corrupt("hard links in a circle", path(first.parent, first.name));
      chain.add(node);
      const found: Node | undefined = this.#find(node.target);
      if (found === undefined || found.kind === "directory") {
        const what = found === undefined ? "nothing" : "a directory";
        throw corrupt(`a hard link leads to ${what}`, node.target);
      }
      node = found;
    }
    for (const link of chain) link.parent.children.set(link.name, node);
  }

  #isAttached(link: LinkNode): boolean {
    if (link.parent.children.get(link.name) !== link) return false;
    let at = link.parent;
    for (; at !== at.parent; at = at.parent) {
      if (at.parent.children.get(at.name) !== at) return false;
    }
    return at === this.root;
  }

  #directoryAt(directoryPath: string): DirectoryNode {
    if (this.#parent === undefined || this.#parentPath !== directoryPath) {
      const found = this.#walk(directoryPath, true);
      if (found?.kind !== "directory") throw corrupt("a parent is not a directory", directoryPath);
      this.#parent = found;
      this.#parentPath = directoryPath;
    }
    return this.#parent;
  }

  #find(target: string): Node | undefined {
    if (target === "") return this.root;
    const slash = target.lastIndexOf("/");
    const parent = this.#walk(target.slice(0, Math.max(slash, 0)), false);
    return parent?.kind === "directory" ? parent.children.get(target.slice(slash + 1)) : undefined;
  }

  /** Follows a path and the symbolic links on it; makes the directories that are missing, or not. */
  #walk(directoryPath: string, make: boolean): Node | undefined {
    const ahead = directoryPath.split("/").toReversed();
    let at = this.root;
    let links = 0;
    let steps = 0;
    for (let name = ahead.pop(); name !== undefined; name = ahead.pop()) {
      if (++steps > stepsMax) throw corrupt("too many steps on a path", directoryPath);
      if (name === "" || name === ".") continue;
      if (name === "..") {
        at = at.parent;
        continue;
      }
      let child = at.children.get(name);
      if (child === undefined) {
        if (!make) return undefined;
        checkImpliedName(name, at);
        child = newDirectory(name, at);
        this.#countImplied(child);
        at.children.set(name, child);
      }
      if (child.kind === "directory") {
        at = child;
      } else if (child.kind === "leaf" && child.type === "symlink") {
        if (++links > linksMax) throw corrupt("too many symbolic links", directoryPath);
        const target = child.entry.linkTarget.toString("latin1");
        if (target.startsWith("/")) at = this.root;
        for (const part of target.split("/").toReversed()) ahead.push(part);
      } else {
        return child;
      }
    }
    return at;
  }

  /** A few short entries, and links that lead far, could make directories without end. */
  #countImplied({ pathBytes }: DirectoryNode): void {
    this.#impliedPathBytes += pathBytes;
    if (this.#impliedPathBytes > impliedPathBytesMax) {
      throw exceeded("directories that no entry describes", impliedPathBytesMax);
    }
  }
}

/** The path of a name in a directory. */
export function path(parent: DirectoryNode, name: string): string {
  let text = name;
  for (let at = parent; at !== at.parent; at = at.parent) text = `${at.name}/${text}`;
  return text;
}

/** As many symbolic links as containerd follows on one path. */
const linksMax = 255;
/** More than a path has, so that links to long paths cannot take all the time there is. */
const stepsMax = 2 * pathBytesMax;
const whiteoutPrefix = ".wh.";
const opaqueName = ".wh..wh..opq";
const aufsPrefix = ".wh..wh.";

function newDirectory(name: string, parent: DirectoryNode | undefined): DirectoryNode {
  const pathBytes = (parent?.pathBytes ?? 0) + name.length + 1;
  // Links can lead a path to where none that is written out can.
  if (pathBytes > pathBytesMax + 1) throw exceeded("the length of a path", pathBytesMax);
  const directory = {
    kind: "directory" as const,
    name,
    pathBytes,
    attributes: impliedAttributes,
    implied: true,
    children: new Map<string, Node>(),
    whiteouts: noWhiteouts,
    opaque: false,
  };
  const node: DirectoryNode = Object.assign(directory, { parent: parent as DirectoryNode });
  node.parent ??= node;
  return node;
}

// Names in paths of entries are as they should be; those in targets of symbolic links can be anything.
function checkImpliedName(name: string, parent: DirectoryNode): void {
  if (name.length > nameBytesMax) throw exceeded("the length of a name", nameBytesMax);
  if (name.includes("\0")) throw corrupt("a name with a zero byte", path(parent, name));
}

/** What a directory has that no entry describes, as when containerd makes it; its time is 0. */
const impliedAttributes: Attributes = {
  mode: 0o755,
  uid: 0,
  gid: 0,
  mtimeSeconds: 0,
  mtimeNanoseconds: 0,
  xattrs: [],
};

// Few directories have any.
const noWhiteouts: Map<string, TarEntry> = new Map();

function describe(directory: DirectoryNode, entry: TarEntry): void {
  const xattrs = mergeXattrs(directory.attributes.xattrs, entry.xattrs);
  const { mode, uid, gid, mtimeSeconds, mtimeNanoseconds } = entry;
  directory.attributes = { mode, uid, gid, mtimeSeconds, mtimeNanoseconds, xattrs };
  directory.implied = false;
}

function mergeXattrs(present: Xattr[], added: Xattr[]): Xattr[] {
  if (present.length === 0) return added;
  const merged = new Map<string, Xattr>();
  let bytes = 0;
  for (const xattr of [...present, ...added]) {
    const name = xattr.name.toString("latin1");
    bytes += sizeOf(xattr) - sizeOf(merged.get(name));
    merged.set(name, xattr);
  }
  if (bytes > xattrBytesMax) {
    throw exceeded("the extended attributes of a directory", xattrBytesMax);
  }
  return [...merged.values()];
}

function sizeOf(xattr: Xattr | undefined): number {
  return xattr === undefined ? 0 : xattr.name.length + xattr.value.length;
}

function addWhiteout(parent: DirectoryNode, name: string, entry: TarEntry): void {
  if (name === opaqueName) {
    parent.opaque = true;
    return;
  }
  const hidden = name.slice(whiteoutPrefix.length);
  if (hidden === "" || hidden === "." || hidden === "..") {
    throw corrupt("a whiteout that names nothing", path(parent, name));
  }
  if (parent.whiteouts === noWhiteouts) parent.whiteouts = new Map();
  parent.whiteouts.set(hidden, entry);
}

// AUFS kept its own files under such names; no layer means them to be seen.
function isAufsInternal(entryPath: string): boolean {
  if (!entryPath.includes(aufsPrefix)) return false;
  return entryPath
    .split("/")
    .some(
      (name, index, all) =>
        name.startsWith(aufsPrefix) && !(name === opaqueName && index === all.length - 1),
    );
}

function corrupt(message: string, at: string): ClipError {
  return new ClipError("CORRUPT_TAR", `${message} (at "${quote(at)}")`, {
    context: { entry: quote(at) },
  });
}

function exceeded(what: string, limit: number): ClipError {
  return new ClipError("LIMIT_EXCEEDED", `${what} in a layer: over ${limit} bytes`, {
    context: { limit },
  });
}

function quote(text: string): string {
  return JSON.stringify(Buffer.from(text, "latin1").toString("utf8", 0, 200)).slice(1, -1);
}
