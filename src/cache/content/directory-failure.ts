/** What the errors of a file system mean for a content cache in it. */
import { isClipError, type ClipError } from "../../base/errors.ts";
import { cacheError } from "./failure.ts";

const full = new Set(["ENOSPC", "EDQUOT", "EFBIG"]);
const denied = new Set(["EACCES", "EPERM", "EROFS"]);
const misplaced = new Set(["EISDIR", "ENOTDIR", "ELOOP"]);

/** The error code of a system call that failed. */
export function systemCode(error: unknown): string | undefined {
  return error instanceof Error && "code" in error && typeof error.code === "string"
    ? error.code
    : undefined;
}

/** Whether a path leads nowhere. */
export function isMissing(error: unknown): boolean {
  return systemCode(error) === "ENOENT";
}

/** The error for a failed step of the cache `name`; ClipErrors stay as they are. */
export function fileError(name: string, what: string, error: unknown): ClipError {
  if (isClipError(error)) return error;
  const code = systemCode(error) ?? "";
  const details = { cause: error };
  if (full.has(code)) {
    return cacheError("CACHE_FULL", name, `${what}: no space left`, {
      ...details,
      hint: "Remove old files from the shared directory, or make it larger.",
    });
  }
  if (denied.has(code)) {
    return cacheError("CACHE_DENIED", name, `${what}: not permitted`, {
      ...details,
      hint: "The daemon must be allowed to read, create and remove files in the shared directory.",
    });
  }
  if (misplaced.has(code)) {
    return cacheError("CACHE_PROTOCOL", name, `${what}: not a file`, details);
  }
  return cacheError("CACHE_UNAVAILABLE", name, `${what} failed`, details);
}
