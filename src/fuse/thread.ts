/**
 * A FUSE thread: reads a request from /dev/fuse, answers it if that needs nothing but local data,
 * hands it over otherwise, and goes on. It blocks in read(2), so nothing else happens in it.
 */
import { readSync, writeSync } from "node:fs";
import { flushCompileCache } from "node:module";
import { parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import { assert, describeError } from "../base/errors.ts";
import { ErofsReader } from "../erofs/reader.ts";
import { currentThreadId } from "../os/interrupt.ts";
import { DataFiles } from "./data-files.ts";
import { handle } from "./handler.ts";
import { isConnectionOver, isForgotten, isRetryable } from "./device.ts";
import type { FuseLayer } from "./layer.ts";
import {
  SessionMemory,
  ThreadMemory,
  type LayerMessage,
  type ThreadMessage,
  type ThreadStart,
} from "./messages.ts";
import type { HandlerState, ServedLayer } from "./nodes.ts";
import { replyBytesMax, type Outcome } from "./outcome.ts";

const start = workerData as ThreadStart;
const session = new SessionMemory(start.session);
const memory = new ThreadMemory(start.thread);
const files = new DataFiles();
const layers = new Map<number, ServedLayer>();
// Replies are copied into the kernel by write(2), so one buffer does for all of them.
const replyBuffer = Buffer.allocUnsafeSlow(replyBytesMax);
let seenGeneration = -1;

const state: HandlerState = {
  layers,
  get rootModified() {
    return { seconds: start.startedSeconds, nanoseconds: seenGeneration % 1e9 };
  },
  noOpen: start.noOpen,
  readLocal: (layer, offset, target) => files.read(layer, offset, target),
};

for (const layer of start.layers) addLayer(layer);
// It would be written at the end only, which a process that is killed does not come to.
flushCompileCache();
memory.threadId = currentThreadId();
try {
  serve();
} finally {
  memory.threadId = 0;
  start.port.close();
}

function serve(): void {
  // The thread before this one may have died with a request in its hand.
  if (memory.inHand !== 0n) answer(memory.request.subarray(0, memory.request.readUInt32LE(0)));
  while (!session.stopping) {
    const request = readRequest();
    if (request === "again") continue;
    if (request === "over") {
      tell({ kind: "ended" });
      return;
    }
    answer(request);
  }
}

function answer(request: Buffer): void {
  const code = request.length >= 8 ? request.readUInt32LE(4) : 0;
  memory.count(code);
  updateLayers();
  settle(handle(request, state, replyBuffer), code);
  memory.settle();
}

function readRequest(): Buffer | "again" | "over" {
  try {
    const { request } = memory;
    return request.subarray(0, readSync(start.descriptor, request, 0, request.length, null));
  } catch (error) {
    if (isRetryable(error)) return "again";
    if (isConnectionOver(error)) return "over";
    throw error;
  }
}

function settle(outcome: Outcome, code: number): void {
  switch (outcome.kind) {
    case "reply":
      write(outcome.length);
      if (outcome.fault !== undefined) {
        tell({ kind: "fault", opcode: code, message: describeError(outcome.fault) });
      }
      return;
    case "initialized":
      write(outcome.length);
      tell({ kind: "initialized", minor: outcome.minor });
      return;
    case "handover":
      tell({ kind: "read", read: outcome.read });
      return;
    case "interrupt":
      tell(outcome);
      return;
    case "silent":
      return;
  }
}

function write(length: number): void {
  try {
    writeSync(start.descriptor, replyBuffer, 0, length);
  } catch (error) {
    // Whoever waited is gone, or everything is; the next read tells.
    if (!isForgotten(error) && !isConnectionOver(error)) throw error;
  }
}

function updateLayers(): void {
  const { generation } = session;
  if (generation === seenGeneration) return;
  seenGeneration = generation;
  for (;;) {
    const received = receiveMessageOnPort(start.port);
    if (received === undefined) return;
    const message = received.message as LayerMessage;
    if (message.kind === "add") {
      // What was there under its number may have had another file.
      files.close(message.layer.number);
      addLayer(message.layer);
    } else {
      layers.delete(message.number);
      files.close(message.number);
    }
  }
}

function addLayer(layer: FuseLayer): void {
  layers.set(layer.number, { layer, tree: openTree(layer) });
}

/** The layer's tree; none if its image is damaged, which costs the layer, not the session. */
function openTree(layer: FuseLayer): ErofsReader | undefined {
  if (layer.tree === undefined) return undefined;
  try {
    return new ErofsReader(Buffer.from(layer.tree.image));
  } catch (error) {
    tell({ kind: "fault", opcode: 0, message: describeError(error) });
    return undefined;
  }
}

function tell(message: ThreadMessage): void {
  assert(parentPort !== null, "a FUSE thread runs as a worker");
  // oxlint-disable-next-line unicorn/require-post-message-target-origin -- this is no window
  parentPort.postMessage(message);
}
