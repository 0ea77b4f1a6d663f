/** The thread that builds layer indexes, one after the other. */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { availableParallelism } from "node:os";
import { parentPort } from "node:worker_threads";
import { assert, ClipError } from "../base/errors.ts";
import { type BuildInput, type BuildOrder, type BuildOutput, packError } from "./build-messages.ts";
import { encodePackedIndex } from "./format.ts";
import { InlineHashes, type LayerHashes } from "./layer-hashes.ts";
import { LayerPass } from "./layer-pass.ts";
import { ThreadedHashes } from "./threaded-hashes.ts";

const readBytes = 1024 * 1024;
// Below this the second thread costs more than it saves.
const threadedBytesMin = 1024 * 1024;

const port = parentPort;
assert(port !== null, "this module is the main module of a worker thread");

interface Build {
  order: BuildOrder;
  stop: Int32Array;
  /** Bytes that have come while it is not yet known whether the layer is a small one. */
  first?: { bytes: ArrayBuffer; length: number };
  pass?: LayerPass;
}

let build: Build | undefined;
let threadedHashes: ThreadedHashes | undefined;

port.on("message", (input: BuildInput) => {
  if (input.kind === "begin") {
    const { order } = input;
    build = { order, stop: new Int32Array(order.stop) };
  }
  // A build that has failed gets no further answers, whatever is still under way to it.
  if (build === undefined) return;
  try {
    advance(build, input);
  } catch (error) {
    build.pass?.close();
    build = undefined;
    answer({ kind: "failed", error: packError(error) });
  }
});

function advance(build: Build, input: BuildInput): void {
  checkStop(build);
  switch (input.kind) {
    case "begin":
      if (build.order.path !== undefined) readFile(build, build.order.path);
      break;
    case "bytes":
      if (build.pass === undefined && build.first === undefined) {
        build.first = input;
      } else {
        flushFirst(build, true);
        take(build, input);
      }
      break;
    case "end":
      flushFirst(build, false);
      finish(build);
      break;
  }
}

function flushFirst(build: Build, isLarge: boolean): void {
  const { first } = build;
  delete build.first;
  if (build.pass === undefined) openPass(build, isLarge);
  if (first !== undefined) take(build, first);
}

function openPass(build: Build, isLarge: boolean): LayerPass {
  build.pass = new LayerPass(build.order, chooseHashes(isLarge));
  build.pass.open();
  return build.pass;
}

function take({ pass }: Build, { bytes, length }: { bytes: ArrayBuffer; length: number }): void {
  pass?.write(Buffer.from(bytes, 0, length));
  answer({ kind: "taken", compressedBytes: length, bytes }, [bytes]);
}

function readFile(build: Build, path: string): void {
  const fd = openSync(path, "r");
  try {
    const isLarge = fstatSync(fd).size >= threadedBytesMin;
    const pass = openPass(build, isLarge);
    const buffer = Buffer.allocUnsafeSlow(readBytes);
    for (;;) {
      checkStop(build);
      const length = readSync(fd, buffer, 0, readBytes, null);
      if (length === 0) break;
      pass.write(buffer.subarray(0, length));
      answer({ kind: "taken", compressedBytes: length });
    }
  } finally {
    closeSync(fd);
  }
  finish(build);
}

function finish({ pass }: Build): void {
  assert(pass !== undefined, "a build that ends has begun");
  const encoded = encodePackedIndex(pass.end());
  build = undefined;
  // A copy, so that nothing else shares the memory that goes away.
  const own = new Uint8Array(encoded).buffer;
  answer({ kind: "done", encoded: own }, [own]);
}

function chooseHashes(isLarge: boolean): LayerHashes {
  if (!isLarge || availableParallelism() === 1) return new InlineHashes();
  if (threadedHashes?.broken === true) threadedHashes = undefined;
  return (threadedHashes ??= new ThreadedHashes());
}

function checkStop({ stop }: Build): void {
  if (Atomics.load(stop, 0) !== 0) throw new ClipError("ABORTED", "the build was given up");
}

function answer(output: BuildOutput, transfer: ArrayBuffer[] = []): void {
  port?.postMessage(output, transfer);
}
