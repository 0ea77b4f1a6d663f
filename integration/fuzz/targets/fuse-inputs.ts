/** Requests as the kernel makes them, and as it never would. */
import { makeRequest, nameBody, readBody, xattrBody } from "../../../src/fuse/fixtures.ts";
import { opcode } from "../../../src/fuse/opcodes.ts";
import type { Random } from "../engine/random.ts";

const opcodes = Object.values(opcode);
const names = [
  "data",
  "link",
  "name-7",
  "nothing",
  "3",
  "3.tree",
  "4",
  "..",
  ".",
  "",
  "n".repeat(300),
];

/** Every kind of request that reads, about one node. */
export function requestsFor(nodeId: number): Buffer[] {
  return [
    makeRequest(opcode.LOOKUP, nodeId, nameBody("file-30")),
    makeRequest(opcode.GETATTR, nodeId),
    makeRequest(opcode.READLINK, nodeId),
    makeRequest(opcode.READ, nodeId, readBody(0, 65_536)),
    makeRequest(opcode.READDIRPLUS, nodeId, readBody(0, 4096)),
    makeRequest(opcode.GETXATTR, nodeId, xattrBody(100, "user.a")),
    makeRequest(opcode.LISTXATTR, nodeId, xattrBody(0)),
  ];
}

/** The first request of a session: a kernel that offers everything. */
export function initRequest(): Buffer {
  const body = Buffer.alloc(64, 0xff);
  body.writeUInt32LE(7, 0);
  body.writeUInt32LE(45, 4);
  return makeRequest(opcode.INIT, 0, body);
}

/** A request of any kind, about one of these nodes or some other. */
export function someRequest(random: Random, nodeIds: readonly bigint[]): Buffer {
  const code = random.oneIn(10) ? random.small(5000) : random.pick(opcodes);
  const nodeId = random.oneIn(8)
    ? (BigInt(random.word()) << 32n) | BigInt(random.word())
    : random.pick(nodeIds);
  // What tells one request from the others also chooses the state that it meets.
  return makeRequest(code, nodeId, someBody(random), BigInt(random.word()));
}

const offsets = [
  0n,
  1n,
  511n,
  512n,
  1023n,
  4096n,
  9999n,
  10_000n,
  2n ** 31n,
  2n ** 53n,
  2n ** 64n - 1n,
];
const sizes = [0, 1, 23, 24, 100, 4096, 65_536, 1_048_576, 1_048_577, 2 ** 32 - 1];

function someBody(random: Random): Buffer {
  switch (random.below(6)) {
    case 0:
      return nameBody(random.pick(names));
    case 1:
      return xattrBody(random.pick(sizes), random.pick(["user.a", "user.b", ""]));
    case 2:
      return random.bytes(random.small(120));
    case 3:
      return Buffer.alloc(0);
    default:
      return readBody(random.pick(offsets), random.pick(sizes));
  }
}
