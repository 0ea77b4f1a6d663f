/** What the errors of read(2) and write(2) on /dev/fuse mean. */

/** A read that found a request gone or was interrupted: read again. */
export function isRetryable(error: unknown): boolean {
  return hasCode(error, ["EINTR", "EAGAIN", "ENOENT"]);
}

/** The connection is over: unmounted or aborted. */
export function isConnectionOver(error: unknown): boolean {
  return hasCode(error, ["ENODEV", "ECONNABORTED", "EPERM"]);
}

/** A reply to a request that the kernel has given up. */
export function isForgotten(error: unknown): boolean {
  return hasCode(error, ["ENOENT"]);
}

function hasCode(error: unknown, codes: string[]): boolean {
  return error instanceof Error && "code" in error && codes.includes(String(error.code));
}
