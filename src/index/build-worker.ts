/** The thread that builds a layer index. */
import { closeSync, openSync, readSync } from "node:fs";
import { parentPort, workerData } from "node:worker_threads";
import { assert, ClipError } from "../base/errors.ts";
import { type BuildInput, type BuildOrder, type BuildOutput, packError } from "./build-messages.ts";
import { encodeLayerIndex } from "./format.ts";
import { LayerPass } from "./layer-pass.ts";

const readBytes = 1024 * 1024;

const port = parentPort;
assert(port !== null, "this module is the main module of a worker thread");
const order = workerData as BuildOrder;
const stop = new Int32Array(order.stop);

function answer(output: BuildOutput, transfer: ArrayBuffer[] = []): void {
  port?.postMessage(output, transfer);
}

function attempt(pass: LayerPass | undefined, work: () => void): void {
  try {
    if (Atomics.load(stop, 0) !== 0) throw new ClipError("ABORTED", "the build was given up");
    work();
  } catch (error) {
    pass?.close();
    answer({ kind: "failed", error: packError(error) });
    port?.close();
  }
}

function finish(pass: LayerPass): void {
  const encoded = encodeLayerIndex(pass.end());
  // A copy, so that nothing else shares the memory that goes away.
  const own = new Uint8Array(encoded).buffer;
  answer({ kind: "done", encoded: own }, [own]);
  port?.close();
}

function readFile(pass: LayerPass, path: string): void {
  const buffer = Buffer.allocUnsafeSlow(readBytes);
  const fd = openSync(path, "r");
  try {
    for (;;) {
      if (Atomics.load(stop, 0) !== 0) throw new ClipError("ABORTED", "the build was given up");
      const length = readSync(fd, buffer, 0, readBytes, null);
      if (length === 0) break;
      pass.write(buffer.subarray(0, length));
      answer({ kind: "taken", compressedBytes: length });
    }
  } finally {
    closeSync(fd);
  }
  finish(pass);
}

attempt(undefined, () => {
  const pass = new LayerPass(order);
  const { path } = order;
  if (path !== undefined) {
    attempt(pass, () => readFile(pass, path));
    return;
  }
  port.on("message", ({ bytes, length }: BuildInput) => {
    attempt(pass, () => {
      if (bytes === undefined) return finish(pass);
      pass.write(Buffer.from(bytes, 0, length));
      answer({ kind: "taken", compressedBytes: length, bytes }, [bytes]);
    });
  });
});
