/** What comes of a request: its outcome, and the replies that several handlers write. */
import type { HandlerState } from "./nodes.ts";
import * as protocol from "./protocol.ts";

/** What is to be done about a request. */
export type Outcome =
  /** Write the first `length` bytes of the reply buffer. `fault` is a failure for the log. */
  | { kind: "reply"; length: number; fault?: unknown }
  /** Write them; the session is negotiated at this minor version. */
  | { kind: "initialized"; length: number; minor: number }
  /** The bytes are not here: someone else has to answer. */
  | { kind: "handover"; read: HandedRead }
  /** The request `target` is interrupted; its owner has to decide. `unique` is the INTERRUPT's. */
  | { kind: "interrupt"; target: bigint; unique: bigint }
  /** Nobody waits for an answer. */
  | { kind: "silent" };

/** A run of the bytes of a READ: where it is in the layer blob, or nowhere if it is a hole. */
export interface Segment {
  blobOffset: number | undefined;
  length: number;
}

/** A READ whose bytes are not all present. */
export interface HandedRead {
  unique: bigint;
  /** The thread that waits, 0 if unknown. */
  threadId: number;
  layer: number;
  /** What the reply consists of, in order. */
  segments: Segment[];
}

/** Bytes that the reply buffer needs. */
export const replyBytesMax = protocol.replyHeaderBytes + protocol.readBytesMax;

/** A request being handled. */
export interface Call extends protocol.RequestHeader {
  request: Buffer;
  state: HandlerState;
  out: Buffer;
}

/** A reply with the first `bodyBytes` behind the header in the reply buffer. */
export function reply(call: { unique: bigint; out: Buffer }, bodyBytes: number): Outcome {
  return {
    kind: "reply",
    length: protocol.putReplyHeader(call.out, call.unique, 0, bodyBytes),
  };
}

/** A reply that says that the request failed. */
export function fail(
  call: { unique: bigint; out: Buffer },
  error: number,
): { kind: "reply"; length: number } {
  return { kind: "reply", length: protocol.putReplyHeader(call.out, call.unique, error, 0) };
}
