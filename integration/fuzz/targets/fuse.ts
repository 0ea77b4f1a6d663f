/** Requests of the kernel. */
import { makeLayer, makeSmallTree, makeState } from "../../../src/fuse/fixtures.ts";
import { nodeIdOf } from "../../../src/fuse/layer.ts";
import { magnitude, type FuzzTarget } from "../engine/target.ts";
import { initRequest, requestsFor, someRequest } from "./fuse-inputs.ts";
import { assertAnswer } from "./fuse-oracle.ts";

const layerNumber = 3;
const tree = makeSmallTree();
const states = [false, true].flatMap((noOpen) =>
  [true, false].map((present) => {
    const layer = makeLayer({ number: layerNumber, size: 10_000, spanBytes: 1000, present });
    return makeState([{ layer, tree }], noOpen);
  }),
);
const nodeIds = [
  ...[0n, 1n, 2n, 2n ** 63n],
  ...[0, tree.rootNid, ...[...tree.readdir(tree.rootNid)].slice(0, 6).map(({ nid }) => nid)].map(
    (nid) => BigInt(nodeIdOf(layerNumber, nid)),
  ),
];

/** Any bytes as a request: an answer, well-formed and with the number of the request. */
export const fuseRequest: FuzzTarget = {
  bytesMax: 600,
  dictionary: ["data\0", "link\0", "3.tree\0", "user.a\0"],
  seeds: () => [initRequest(), ...nodeIds.flatMap((nodeId) => requestsFor(Number(nodeId)))],
  generate: (random) => someRequest(random, nodeIds),
  mend: (input) => {
    const bytes = Buffer.from(input);
    if (bytes.length >= 4) bytes.writeUInt32LE(bytes.length, 0);
    return bytes;
  },
  run(input) {
    const state = states[(input[8] ?? 0) % states.length];
    if (state === undefined) throw new RangeError("there are states");
    const code = input.length >= 8 ? input.readUInt32LE(4) : 0;
    return `${code < 60 ? code : magnitude(code)} ${assertAnswer(input, state)}`;
  },
};
