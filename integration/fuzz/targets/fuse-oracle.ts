/** What every answer to the kernel has to be like. */
import assert from "node:assert/strict";
import { isClipError } from "../../../src/base/errors.ts";
import { handle } from "../../../src/fuse/handler.ts";
import type { HandlerState } from "../../../src/fuse/nodes.ts";
import { replyBytesMax } from "../../../src/fuse/outcome.ts";
import { magnitude } from "../engine/target.ts";

const out = Buffer.alloc(replyBytesMax);

/** Handles a request; its answer is well-formed, and a fault is one that is foreseen. */
export function assertAnswer(request: Buffer, state: HandlerState): string {
  const outcome = handle(request, state, out);
  if (outcome.kind === "handover") {
    const { segments, layer } = outcome.read;
    const size = state.layers.get(layer)?.layer.size ?? 0;
    for (const { blobOffset = 0, length } of segments) {
      assert.ok(length > 0 && blobOffset >= 0 && blobOffset + length <= size);
    }
    return `handover ${magnitude(segments.length)}`;
  }
  if (outcome.kind === "silent" || outcome.kind === "interrupt") return outcome.kind;
  if (outcome.kind === "reply" && outcome.fault !== undefined) {
    if (!isClipError(outcome.fault, "CORRUPT_EROFS")) throw outcome.fault;
  }
  assert.ok(outcome.length >= 16 && outcome.length <= replyBytesMax);
  assert.equal(out.readUInt32LE(0), outcome.length);
  assert.equal(out.readBigUInt64LE(8), request.readBigUInt64LE(8));
  const error = out.readInt32LE(4);
  assert.ok(error <= 0 && error > -512 && (error === 0 || outcome.length === 16));
  return `${outcome.kind} ${error} ${magnitude(outcome.length)}`;
}
