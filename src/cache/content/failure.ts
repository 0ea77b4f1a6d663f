/** What goes wrong between clip and a content cache, as errors that say where. */
import { ClipError, isClipError, type ErrorCode, type ErrorDetails } from "../../base/errors.ts";

/** The codes of a content cache. */
export type CacheCode = Extract<ErrorCode, `CACHE_${string}`>;

/** An error of the cache `name`. `cause` must be free of secrets: see {@link plainCause}. */
export function cacheError(
  code: CacheCode,
  name: string,
  what: string,
  details: { cause?: unknown; hint?: string; context?: ErrorDetails["context"] } = {},
): ClipError {
  return new ClipError(code, `content cache ${name}: ${what}`, {
    ...(details.cause === undefined ? {} : { cause: details.cause }),
    ...(details.hint === undefined ? {} : { hint: details.hint }),
    context: { cache: name, ...details.context },
  });
}

/** The error, if it is the cache's own; what the caller or the source did is thrown at once. */
export function asCacheFault(error: unknown): ClipError {
  if (isClipError(error) && (error.code.startsWith("CACHE_") || error.code === "TIMEOUT")) {
    return error;
  }
  throw error;
}

/** The error for a range that an object does not have. */
export function pastEnd(
  name: string,
  key: string,
  range: { offset: number; length: number },
  size: number | undefined,
): ClipError {
  const has = size === undefined ? "fewer" : `${size}`;
  return cacheError(
    "CACHE_PROTOCOL",
    name,
    `${key} has ${has} bytes, asked were ${range.length} at ${range.offset}`,
    { context: { key, ...range, ...(size === undefined ? {} : { size }) } },
  );
}

/**
 * A cause that keeps only name, message and system error code: the errors of client libraries carry
 * whole requests along, credentials and stored bytes included.
 */
export function plainCause(error: unknown): Error {
  if (!(error instanceof Error)) return new Error("something that is no error was thrown");
  const plain = new Error(`${error.name}: ${error.message}`);
  if (error instanceof AggregateError && error.message === "") {
    plain.message = error.errors.map((one) => plainCause(one).message).join("; ");
  }
  delete plain.stack;
  return plain;
}
