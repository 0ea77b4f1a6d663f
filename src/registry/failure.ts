/** What goes wrong between clip and a registry, as errors that say where. */
import { ClipError, type ErrorCode } from "../base/errors.ts";

/** What a request is about, for messages and the log. */
export interface Subject {
  /** The registry as the image name has it. */
  host: string;
  repository: string;
  /** Digest or tag. */
  target: string;
}

type RegistryCode = Extract<ErrorCode, `REGISTRY_${string}`>;

/** An error about `subject`; `status` is the HTTP status that led to it. */
export function registryError(
  code: RegistryCode,
  what: string,
  subject: Subject,
  details: { status?: number; cause?: unknown; hint?: string; endpoint?: string } = {},
): ClipError {
  const { status, cause, hint, endpoint } = details;
  const where = `${subject.host}/${subject.repository} ${subject.target}`;
  return new ClipError(
    code,
    `${where}: ${what}${status === undefined ? "" : ` (HTTP ${status})`}`,
    {
      ...(hint === undefined ? {} : { hint }),
      ...(cause === undefined ? {} : { cause }),
      context: {
        host: subject.host,
        repository: subject.repository,
        digest: subject.target,
        ...(status === undefined ? {} : { status }),
        ...(endpoint === undefined ? {} : { endpoint }),
      },
    },
  );
}

/**
 * The error for an HTTP status that ends a request. `reason` is the registry's own error code
 * (OCI distribution spec, "Error Codes"), which carries no secrets.
 */
export function statusError(
  status: number,
  subject: Subject,
  endpoint: string,
  reason: string | undefined,
): ClipError {
  const suffix = reason === undefined ? "" : `: ${reason}`;
  const details = { status, endpoint };
  if (status === 401 || status === 403) {
    return registryError("REGISTRY_DENIED", `access denied${suffix}`, subject, {
      ...details,
      hint: `Log in to ${subject.host} (docker login), or check the credentials in the Docker configuration file.`,
    });
  }
  if (status === 404 || status === 410) {
    return registryError("REGISTRY_NOT_FOUND", `not found${suffix}`, subject, details);
  }
  if (status === 429 || status >= 500) {
    return registryError("REGISTRY_UNAVAILABLE", `the registry fails${suffix}`, subject, details);
  }
  return registryError("REGISTRY_PROTOCOL", `unexpected answer${suffix}`, subject, details);
}

/** The error for an address that a registry has redirected to, and that refuses to be read. */
export function storageDenied(status: number, subject: Subject, endpoint: string): ClipError {
  return registryError(
    "REGISTRY_DENIED",
    "the storage behind the registry refuses the address that the registry has signed",
    subject,
    {
      status,
      endpoint,
      hint: "Signed addresses expire: are the clocks right, and may the registry read its storage?",
    },
  );
}
