/**
 * Every failure that clip foresees is a {@link ClipError}: it says what went wrong, where, and
 * what to do. Anything else that is thrown is a defect in clip.
 */

import { inspect } from "node:util";

/** What went wrong, in one word for programs. Each code is described in `docs/errors.md`. */
export type ErrorCode =
  | "ARGUMENT_INVALID"
  | "CONFIG_INVALID"
  | "SNAPSHOT_NOT_FOUND"
  | "SNAPSHOT_EXISTS"
  | "SNAPSHOT_PRECONDITION"
  | "LAYER_UNSUPPORTED"
  | "IMAGE_NOT_FOUND"
  | "CONTAINERD_UNAVAILABLE"
  | "REGISTRY_UNAVAILABLE"
  | "REGISTRY_NOT_FOUND"
  | "REGISTRY_DENIED"
  | "REGISTRY_PROTOCOL"
  | "CACHE_UNAVAILABLE"
  | "CACHE_DENIED"
  | "CACHE_PROTOCOL"
  | "CACHE_FULL"
  | "CORRUPT_GZIP"
  | "CORRUPT_TAR"
  | "CORRUPT_INDEX"
  | "CORRUPT_EROFS"
  | "CORRUPT_LAYER"
  | "LIMIT_EXCEEDED"
  | "DISK_FULL"
  | "SYSTEM_CALL"
  | "TIMEOUT"
  | "ABORTED"
  | "CLOSED";

/** What accompanies a {@link ClipError}. */
export interface ErrorDetails {
  /** What the operator can do about it: one sentence. */
  hint?: string;
  /** The failure underneath. */
  cause?: unknown;
  /** Fields for the log: digests, offsets, paths. Never secrets. */
  context?: Record<string, string | number | boolean>;
}

/** The one error class of clip; callers branch on {@link ClipError.code}. */
export class ClipError extends Error {
  override readonly name = "ClipError";
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly context: Readonly<Record<string, string | number | boolean>>;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.hint = details.hint;
    this.context = details.context ?? {};
  }
}

/** Whether `error` is a {@link ClipError}, with this code if one is given. */
export function isClipError(error: unknown, code?: ErrorCode): error is ClipError {
  return error instanceof ClipError && (code === undefined || error.code === code);
}

/** A one-line description of anything thrown, causes included, for logs and messages. */
export function describeError(error: unknown): string {
  const parts: string[] = [];
  for (let at: unknown = error, depth = 0; at !== undefined && depth < 5; depth++) {
    parts.push(at instanceof Error ? at.message : inspect(at));
    at = at instanceof Error ? at.cause : undefined;
  }
  return parts.join(": ");
}

/** Throws when a condition that only a defect in clip could break does not hold. */
export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(`assertion failed: ${message}`);
}
