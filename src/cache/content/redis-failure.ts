/** What the errors of Redis and of its client mean. */
import { isClipError, type ClipError } from "../../base/errors.ts";
import { cacheError, plainCause } from "./failure.ts";

const denied =
  /^(NOAUTH|WRONGPASS|NOPERM|DENIED)\b|invalid password|without any password configured/i;
const full = /^OOM\b/;
const wrong = /^(WRONGTYPE|ERR unknown command|ERR wrong number|ERR syntax)/;

/**
 * The error for a failed step of the cache `name`; ClipErrors stay as they are. `connectionFault` is
 * what last went wrong with the connection: a command that could not be sent does not say why.
 */
export function redisError(
  name: string,
  what: string,
  error: unknown,
  connectionFault: unknown,
): ClipError {
  if (isClipError(error)) return error;
  const fault = isReply(error) ? error : (connectionFault ?? error);
  const message = messageOf(fault);
  const details = { cause: plainCause(fault) };
  if (denied.test(message)) {
    return cacheError("CACHE_DENIED", name, `${what}: access denied`, {
      ...details,
      hint: "Check user name, password and the user's permissions (ACL).",
    });
  }
  if (full.test(message)) {
    return cacheError("CACHE_FULL", name, `${what}: no memory left`, {
      ...details,
      hint: "Raise maxmemory, or let Redis evict (maxmemory-policy allkeys-lru).",
    });
  }
  if (wrong.test(message)) {
    return cacheError("CACHE_PROTOCOL", name, `${what}: unexpected answer`, details);
  }
  return cacheError("CACHE_UNAVAILABLE", name, `${what} failed`, details);
}

/** Whether the server itself said it, as opposed to the client library. */
function isReply(error: unknown): boolean {
  return error instanceof Error && error.name === "ReplyError";
}

/** The text of an error; of a cluster's, that of the node that was asked last. */
function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return "";
  if ("lastNodeError" in error && error.lastNodeError instanceof Error) {
    return error.lastNodeError.message;
  }
  return error.message;
}
