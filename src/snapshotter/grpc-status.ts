/** What a failure is called in gRPC, as containerd's clients understand it. */
import { status } from "@grpc/grpc-js";
import { describeError, isClipError, type ErrorCode } from "../base/errors.ts";

/** A gRPC status without details: containerd would show them to its users. */
export interface GrpcStatus {
  code: status;
  details: string;
}

/** The status that stands for anything thrown. */
export function grpcStatusOf(error: unknown): GrpcStatus {
  const code = isClipError(error) ? codes[error.code] : codeOfSystemError(error);
  const suffix = suffixes[code];
  const text = describeError(error);
  const hint = isClipError(error) && error.hint !== undefined ? ` (${error.hint})` : "";
  return { code, details: suffix === undefined ? text + hint : `${text}${hint}: ${suffix}` };
}

const codes: Record<ErrorCode, status> = {
  ARGUMENT_INVALID: status.INVALID_ARGUMENT,
  CONFIG_INVALID: status.INVALID_ARGUMENT,
  SNAPSHOT_NOT_FOUND: status.NOT_FOUND,
  SNAPSHOT_EXISTS: status.ALREADY_EXISTS,
  SNAPSHOT_PRECONDITION: status.FAILED_PRECONDITION,
  LAYER_UNSUPPORTED: status.FAILED_PRECONDITION,
  LIMIT_EXCEEDED: status.FAILED_PRECONDITION,
  IMAGE_NOT_FOUND: status.NOT_FOUND,
  CONTAINERD_UNAVAILABLE: status.UNAVAILABLE,
  REGISTRY_UNAVAILABLE: status.UNAVAILABLE,
  REGISTRY_NOT_FOUND: status.UNAVAILABLE,
  REGISTRY_DENIED: status.UNAVAILABLE,
  REGISTRY_PROTOCOL: status.UNAVAILABLE,
  CACHE_UNAVAILABLE: status.UNAVAILABLE,
  CACHE_DENIED: status.UNAVAILABLE,
  CACHE_PROTOCOL: status.UNAVAILABLE,
  CACHE_FULL: status.RESOURCE_EXHAUSTED,
  CORRUPT_GZIP: status.DATA_LOSS,
  CORRUPT_TAR: status.DATA_LOSS,
  CORRUPT_INDEX: status.DATA_LOSS,
  CORRUPT_EROFS: status.DATA_LOSS,
  CORRUPT_LAYER: status.DATA_LOSS,
  DISK_FULL: status.RESOURCE_EXHAUSTED,
  SYSTEM_CALL: status.INTERNAL,
  TIMEOUT: status.DEADLINE_EXCEEDED,
  ABORTED: status.CANCELLED,
  CLOSED: status.UNAVAILABLE,
};

// containerd's errors end in their class; its clients take it off and put it on again.
const suffixes: Partial<Record<status, string>> = {
  [status.INVALID_ARGUMENT]: "invalid argument",
  [status.NOT_FOUND]: "not found",
  [status.ALREADY_EXISTS]: "already exists",
  [status.FAILED_PRECONDITION]: "failed precondition",
  [status.UNAVAILABLE]: "unavailable",
};

function codeOfSystemError(error: unknown): status {
  if (error instanceof Error && "code" in error) {
    if (error.code === "ENOSPC" || error.code === "EDQUOT") return status.RESOURCE_EXHAUSTED;
    if (typeof error.code === "string") return status.INTERNAL;
  }
  return status.UNKNOWN;
}
