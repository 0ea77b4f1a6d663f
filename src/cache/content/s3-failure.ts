/** What the errors of an S3 server mean. */
import { isClipError, type ClipError } from "../../base/errors.ts";
import { cacheError, plainCause } from "./failure.ts";

const missing = new Set(["NoSuchKey", "NotFound"]);
const full = new Set(["QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "StorageFull"]);
const denied = new Set([
  "AccessDenied",
  "AccountProblem",
  "AllAccessDisabled",
  "CredentialsProviderError",
  "ExpiredToken",
  "InvalidAccessKeyId",
  "InvalidSecurity",
  "InvalidToken",
  "SignatureDoesNotMatch",
  "TokenProviderError",
  "TokenRefreshRequired",
  // versitygw's way to say InvalidAccessKeyId.
  "XAdminUserNotFound",
]);
// What servers without conditional writes answer to `If-None-Match` on a PUT.
const unsupported = new Set(["NotImplemented", "InvalidArgument", "InvalidRequest"]);

/** HTTP status of the answer that an error stands for. */
export function statusOf(error: unknown): number | undefined {
  if (!(error instanceof Error) || !("$metadata" in error)) return undefined;
  const metadata = error.$metadata;
  if (typeof metadata !== "object" || metadata === null) return undefined;
  return "httpStatusCode" in metadata && typeof metadata.httpStatusCode === "number"
    ? metadata.httpStatusCode
    : undefined;
}

/** Whether the answer was that there is no such object. */
export function isMissingObject(error: unknown): boolean {
  return error instanceof Error && missing.has(error.name) && statusOf(error) === 404;
}

/** Whether a conditional put found the object already there (RFC 9110 §13.1.2). */
export function isPreconditionFailed(error: unknown): boolean {
  return statusOf(error) === 412;
}

/** Whether a conditional put ran into another one that was under way. */
export function isConditionalConflict(error: unknown): boolean {
  return statusOf(error) === 409;
}

/** Whether the server cannot do conditional puts. */
export function isUnsupportedCondition(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  return statusOf(error) === 501 || (statusOf(error) === 400 && unsupported.has(error.name));
}

/** The error for a failed request of the cache `name`; ClipErrors stay as they are. */
export function s3Error(name: string, bucket: string, what: string, error: unknown): ClipError {
  if (isClipError(error)) return error;
  const status = statusOf(error);
  const code = error instanceof Error ? error.name : "";
  const suffix = status === undefined ? "" : ` (${code}, HTTP ${status})`;
  const context = { bucket, ...(status === undefined ? {} : { status }) };
  const details = { cause: plainCause(error), context };
  if (code === "NoSuchBucket") {
    return cacheError("CACHE_DENIED", name, `there is no bucket ${bucket}`, {
      ...details,
      hint: "Create the bucket, or correct its name; clip creates none.",
    });
  }
  if (denied.has(code) || status === 401 || status === 403) {
    return cacheError("CACHE_DENIED", name, `${what}: access denied${suffix}`, {
      ...details,
      hint: "Check the credentials; they need ListBucket, GetObject, PutObject, DeleteObject and AbortMultipartUpload.",
    });
  }
  if (full.has(code) || status === 507) {
    return cacheError("CACHE_FULL", name, `${what}: no space left${suffix}`, details);
  }
  const transient = status === undefined || status === 408 || status === 429 || status >= 500;
  if (transient && status !== 501) {
    return cacheError("CACHE_UNAVAILABLE", name, `${what} failed${suffix}`, details);
  }
  return cacheError("CACHE_PROTOCOL", name, `${what}: unexpected answer${suffix}`, {
    ...details,
    hint: "Check endpoint, region and path style.",
  });
}
