/** Why a worker thread ended that should not have. */
import { ClipError } from "./errors.ts";

/**
 * What the `error` event of a worker means for the work that it did.
 * @param work what the thread was doing, as the subject of a sentence
 * @returns LIMIT_EXCEEDED when its memory did not suffice; anything else is a defect
 */
export function workerFailure(error: unknown, work: string): Error {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  if (code === "ERR_WORKER_OUT_OF_MEMORY") {
    return new ClipError("LIMIT_EXCEEDED", `${work} needs more memory than a thread may take`, {
      hint: "A layer with fewer files needs less.",
      cause: error,
    });
  }
  return new Error(`${work} failed with its thread`, { cause: error });
}
