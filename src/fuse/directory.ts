/** Answers READDIR and READDIRPLUS. */
import { constants } from "node:os";
import { blobName, nodeIdOf, treeName, type Node } from "./layer.ts";
import type { ErofsReader } from "../erofs/reader.ts";
import {
  findNode,
  rootEntryAttributes,
  rootValidity,
  treeAttributes,
  treeValidity,
  type HandlerState,
} from "./nodes.ts";
import { opcode } from "./opcodes.ts";
import { fail, reply, type Call, type Outcome } from "./outcome.ts";
import * as protocol from "./protocol.ts";

const { errno } = constants;

/** DT_* of readdir(3). */
const direntTypes = {
  fifo: 1,
  char: 2,
  directory: 4,
  block: 6,
  file: 8,
  symlink: 10,
} as const;

/** One entry as it goes into the reply; without attributes for `.` and `..`. */
interface Listed extends protocol.DirectoryEntry {
  attributes: (() => protocol.Attributes) | undefined;
}

/** Answers a READDIR or READDIRPLUS. */
export function handleDirectory(call: Call): Outcome {
  const body = protocol.decodeRead(call.request);
  if (body === undefined) return fail(call, errno.EIO);
  const plus = call.opcode === opcode.READDIRPLUS;
  const listed = list(call, body.offset);
  if (typeof listed === "number") return fail(call, listed);
  const validity = call.nodeId === protocol.rootNodeId ? rootValidity : treeValidity;

  const start = protocol.replyHeaderBytes;
  const end = start + Math.min(body.size, protocol.readBytesMax);
  let at = start;
  for (const entry of listed) {
    const bytes = protocol.direntBytes(entry.name) + (plus ? protocol.entryBytes : 0);
    if (at + bytes > end) break;
    if (plus) at += putEntryOf(call.out, at, entry, validity);
    at += protocol.putDirent(call.out, at, entry);
  }
  return reply(call, at - start);
}

function putEntryOf(
  out: Buffer,
  at: number,
  entry: Listed,
  validity: protocol.EntryValidity,
): number {
  // The kernel takes an entry without a nodeid as a mere name, which is right for `.` and `..`.
  if (entry.attributes === undefined) return protocol.putNegativeEntry(out, at, 0);
  return protocol.putEntry(out, at, entry.attributes(), validity);
}

function list(call: Call, first: number): Iterable<Listed> | number {
  if (call.nodeId === protocol.rootNodeId) return listRoot(call.state, first);
  const found = findNode(call.state, call.nodeId);
  if (found === undefined) return errno.ESTALE;
  const { tree, node } = found;
  if (tree === undefined) return errno.ENOTDIR;
  return listTree(tree, node, first);
}

function* listTree(tree: ErofsReader, node: Node, first: number): Iterable<Listed> {
  for (const { name, nid, type, cookie } of tree.readdir(node.inode, first)) {
    yield {
      name,
      inode: nodeIdOf(node.layer, nid),
      type: direntTypes[type],
      next: cookie,
      attributes: isDots(name) ? undefined : () => treeAttributes(node.layer, tree, nid),
    };
  }
}

/**
 * The root: cookies 1 and 2 stand behind `.` and `..`, 2n + 1 and 2n + 2 behind the blob and the
 * tree of layer n, so that a listing goes on rightly when layers come and go.
 */
function* listRoot(state: HandlerState, first: number): Iterable<Listed> {
  const dots = { type: direntTypes.directory, inode: protocol.rootNodeId, attributes: undefined };
  if (first < 1) yield { ...dots, name: Buffer.from("."), next: 1 };
  if (first < 2) yield { ...dots, name: Buffer.from(".."), next: 2 };
  for (const number of [...state.layers.keys()].sort((a, b) => a - b)) {
    const served = state.layers.get(number);
    if (served === undefined) continue;
    for (const asTree of [false, true]) {
      const next = 2 * number + (asTree ? 2 : 1);
      if (next <= first) continue;
      const attributes = rootEntryAttributes(served, asTree);
      if (attributes === undefined) continue;
      const name = Buffer.from(asTree ? treeName(number) : blobName(number));
      const type = asTree ? direntTypes.directory : direntTypes.file;
      yield { name, type, next, inode: attributes.nodeId, attributes: () => attributes };
    }
  }
}

function isDots(name: Buffer): boolean {
  return name[0] === 0x2e && (name.length === 1 || (name.length === 2 && name[1] === 0x2e));
}
