/** What all requests to registries share: bodies with a limit, and the faults of the network. */
import { type Dispatcher, errors } from "undici";
import { ClipError, isClipError } from "../base/errors.ts";
import { registryError, type Subject } from "./failure.ts";
import type { NetworkFault } from "./registry-counters.ts";

/** The body of an answer came too slowly. */
export class SlowAnswerError extends Error {
  override readonly name = "SlowAnswerError";
  readonly code = "SLOW_ANSWER";

  constructor(bytes: number, milliseconds: number) {
    super(`only ${bytes} bytes came in ${milliseconds} ms`);
  }
}

/**
 * The whole body, which must not be longer than `bytesMax`.
 * @throws ClipError REGISTRY_PROTOCOL when it is; what the network throws
 */
export async function readBody(
  body: AsyncIterable<Buffer>,
  bytesMax: number,
  subject: Subject,
): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of body) {
    length += chunk.length;
    if (length > bytesMax) {
      throw registryError(
        "REGISTRY_PROTOCOL",
        `the answer is larger than ${bytesMax} bytes`,
        subject,
      );
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, length);
}

/** Takes what is left of a body that nobody wants, whatever becomes of it. */
export async function discardBody(body: Dispatcher.ResponseData["body"]): Promise<void> {
  await body.dump().catch(() => {});
}

/** The error for a request that failed below HTTP. */
export function networkError(
  error: unknown,
  subject: Subject,
  endpoint: string,
  signal: AbortSignal | undefined,
): ClipError {
  if (isClipError(error)) return error;
  if (signal?.aborted === true) {
    return new ClipError("ABORTED", "the caller gave up", { cause: error });
  }
  if (error instanceof errors.ClientDestroyedError || error instanceof errors.ClientClosedError) {
    return new ClipError("CLOSED", "the registry client is closed", { cause: error });
  }
  if (isCertificateFault(error)) {
    return registryError("REGISTRY_UNAVAILABLE", "its certificate is not trusted", subject, {
      cause: error,
      endpoint,
      hint: "Name the authority with ca_file, or in the registry's hosts.toml.",
    });
  }
  return registryError("REGISTRY_UNAVAILABLE", "the registry cannot be reached", subject, {
    cause: error,
    endpoint,
  });
}

/** Whether trying again may help: not so for names that do not exist and for wrong certificates. */
export function isTransientFault(error: unknown): boolean {
  if (isClipError(error)) return false;
  if (error instanceof errors.ClientDestroyedError) return false;
  return !isUnknownName(error) && !isCertificateFault(error);
}

/** Whether a host name has no address. */
export function isUnknownName(error: unknown): boolean {
  return errorCode(error) === "ENOTFOUND";
}

/** What has failed below HTTP; undefined when clip itself gave the request up. */
export function faultOf(error: unknown): NetworkFault | undefined {
  const code = errorCode(error);
  if (isClipError(error) || code.startsWith("UND_ERR_ABORT") || isAbort(error)) return undefined;
  if (/^UND_ERR_(DESTROYED|CLOSED)$/.test(code)) return undefined;
  if (/TIMEOUT|^ETIMEDOUT$/.test(code)) return "timeout";
  if (/^(ECONNREFUSED|EHOSTUNREACH|ENETUNREACH|EHOSTDOWN)$/.test(code)) return "unreachable";
  if (/^(ECONNRESET|EPIPE|ECONNABORTED|UND_ERR_SOCKET|UND_ERR_RES_.*|HPE_.*)$/.test(code)) {
    return "broken";
  }
  if (code === "SLOW_ANSWER") return "slow";
  if (isUnknownName(error) || code === "EAI_AGAIN") return "name";
  return isCertificateFault(error) ? "certificate" : "other";
}

function isAbort(error: unknown): boolean {
  return error instanceof Error && (error.name === "AbortError" || error.name === "TimeoutError");
}

function isCertificateFault(error: unknown): boolean {
  return /CERT|^ERR_TLS|^ERR_SSL|VERIFY/.test(errorCode(error));
}

function errorCode(error: unknown): string {
  const code: unknown = error instanceof Error && "code" in error ? error.code : undefined;
  return typeof code === "string" ? code : "";
}
