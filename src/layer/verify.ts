/** Checks of a layer whose every span is local. */
import { hash } from "node:crypto";
import { Worker } from "node:worker_threads";
import { ClipError } from "../base/errors.ts";
import { workerFailure } from "../base/worker-failure.ts";
import type { LayerFile } from "../cache/layer-file.ts";
import type { LayerHead } from "../index/model.ts";
import type { Verification, VerifyAnswer, VerifyOrder } from "./verification.ts";

/**
 * Reads a whole layer in a thread of its own: its digest, and whether the metadata image that was
 * made from its index is the one that the layer itself gives. If it is damaged it is replaced.
 * @throws ClipError CORRUPT_LAYER, CORRUPT_TAR, LIMIT_EXCEEDED, DISK_FULL, ABORTED
 */
export async function verifyLayer(order: VerifyOrder, signal: AbortSignal): Promise<Verification> {
  const worker = new Worker(new URL("./verify-worker.ts", import.meta.url), { workerData: order });
  const { promise, resolve, reject } = Promise.withResolvers<VerifyAnswer>();
  worker.once("message", resolve);
  worker.once("error", (error) => reject(workerFailure(error, "checking a layer")));
  worker.once("exit", () => reject(new ClipError("CLOSED", "the thread has ended")));
  const onAbort = () => reject(new ClipError("ABORTED", "the check was given up"));
  if (signal.aborted) onAbort();
  else signal.addEventListener("abort", onAbort, { once: true });
  try {
    const answer = await promise;
    if ("digest" in answer) return answer;
    const { message, code } = answer;
    throw code === undefined ? new Error(message) : new ClipError(code, message);
  } finally {
    signal.removeEventListener("abort", onAbort);
    await worker.terminate();
  }
}

/** Those spans whose bytes on disk do not match their digests. */
export async function wrongSpans(
  file: LayerFile,
  head: LayerHead,
  signal: AbortSignal,
): Promise<number[]> {
  const wrong: number[] = [];
  for (const [at, span] of head.spans.entries()) {
    signal.throwIfAborted();
    const bytes = await file.read(span.checkpoint.uncompressedOffset, span.length);
    const right = bytes !== undefined && `sha256:${hash("sha256", bytes)}` === span.digest;
    if (!right) wrong.push(at);
  }
  return wrong;
}
