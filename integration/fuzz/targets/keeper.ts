/** What keeper and daemon say to each other. */
import assert from "node:assert/strict";
import { parseDaemonMessage, parseKeeperMessage } from "../../../src/daemon/keeper-protocol.ts";
import type { FuzzTarget } from "../engine/target.ts";

/** Any value as a message: one that is known, with nothing else in it, or none. */
export const keeperMessage: FuzzTarget = {
  bytesMax: 200,
  dictionary: [
    ...['"kind":', '"id":', '"go"', '"connection"', '"stop"', '"detach"', '"loaded"', '"locked"'],
    ...['"accepted"', '"ready"', '"over"', '"__proto__":', "null", "[]", "{}", "1e999", "-1"],
  ],
  seeds: () =>
    ['{"kind":"go"}', '{"kind":"connection","id":1}', '{"kind":"accepted","id":7}', "null"].map(
      (text) => Buffer.from(text),
    ),
  run(input) {
    const value = parseJson(input);
    const messages = [parseKeeperMessage(value), parseDaemonMessage(value)];
    for (const message of messages) {
      if (message === undefined) continue;
      const hasNumber = message.kind === "connection" || message.kind === "accepted";
      assert.deepEqual(Object.keys(message), hasNumber ? ["kind", "id"] : ["kind"]);
    }
    return messages.map((message) => message?.kind ?? "none").join(" ");
  },
};

/** The channel between the processes carries JSON. */
function parseJson(input: Buffer): unknown {
  try {
    return JSON.parse(input.toString());
  } catch {
    return undefined;
  }
}
