/** Requests to one endpoint: authorization, redirects, retries. */
import { type Dispatcher, request } from "undici";
import * as v from "valibot";
import { ClipError } from "../base/errors.ts";
import { redirectsMax, registryErrorBytesMax } from "../base/limits.ts";
import type { Log } from "../telemetry/log.ts";
import type { Authorizer } from "./authorizer.ts";
import { parseChallenges } from "./challenge.ts";
import type { Endpoint } from "./endpoint.ts";
import { registryError, statusError, storageDenied, type Subject } from "./failure.ts";
import { isTransientFault, networkError, readBody } from "./http.ts";
import { backoffMs, isTransientStatus, pause, retryAfterMs } from "./retry.ts";

/** One request; retries and redirects repeat it, so it must be repeatable. */
export interface RegistryRequest {
  method: "GET" | "HEAD" | "POST" | "PUT";
  /** An address, or a path below the endpoint's base. */
  url: URL | string;
  headers?: Record<string, string>;
  /** What to send. */
  body?: Buffer;
  /** What the authorization must cover: `repository:team/app:pull`. */
  scope: string;
  subject: Subject;
  /** How often it is tried again after a fault that may pass. */
  retries: number;
  signal: AbortSignal | undefined;
}

/** An answer whose body has not been read; whoever gets it reads or dumps the body. */
export interface RegistryResponse {
  status: number;
  header(name: string): string | undefined;
  body: Dispatcher.ResponseData["body"];
  /** Where the answer came from in the end. */
  url: URL;
}

// The wait for an answer begins with the first byte that is sent.
const uploadTimeoutMs = 300_000;
const userAgent = "clip/0.1";

/** What a {@link Session} works with. */
export interface SessionOptions {
  endpoint: Endpoint;
  dispatcher: Dispatcher;
  authorizer: Authorizer;
  log: Log;
}

/** Talks to one endpoint. */
export class Session {
  readonly endpoint: Endpoint;
  /** Scheme, host and port of the endpoint. */
  readonly origin: string;
  readonly #dispatcher: Dispatcher;
  readonly #authorizer: Authorizer;
  readonly #log: Log;

  constructor({ endpoint, dispatcher, authorizer, log }: SessionOptions) {
    this.endpoint = endpoint;
    this.origin = new URL(endpoint.base).origin;
    this.#dispatcher = dispatcher;
    this.#authorizer = authorizer;
    this.#log = log;
  }

  /**
   * Sends a request until an answer stands: any status but 401 and the transient ones, of which
   * the last one is thrown when the retries are used up.
   * @throws ClipError REGISTRY_UNAVAILABLE, REGISTRY_DENIED, REGISTRY_PROTOCOL, ABORTED, CLOSED
   */
  async send(wanted: RegistryRequest): Promise<RegistryResponse> {
    for (let attempt = 0; ; attempt++) {
      let wait: number | undefined;
      let failure: ClipError;
      try {
        const response = await this.#authorized(wanted);
        if (!isTransientStatus(response.status)) return response;
        wait = retryAfterMs(response.header("retry-after"), Date.now());
        failure = await this.failure(response, wanted.subject);
      } catch (error) {
        failure = networkError(error, wanted.subject, this.origin, wanted.signal);
        if (!isTransientFault(error)) throw failure;
      }
      if (attempt >= wanted.retries || failure.code !== "REGISTRY_UNAVAILABLE") throw failure;
      const { code, message, context } = failure;
      this.#log.debug({ ...context, attempt, code, error: message }, "a request is tried again");
      await pause(wait ?? backoffMs(attempt), wanted.signal);
    }
  }

  /** The error for an answer that is not what was hoped for; takes its body. */
  async failure(response: RegistryResponse, subject: Subject): Promise<ClipError> {
    const reason = await readBody(response.body, registryErrorBytesMax, subject).then(
      errorReason,
      () => undefined,
    );
    const { status, url } = response;
    const isElsewhere = url.origin !== this.origin && (status === 401 || status === 403);
    if (isElsewhere) return storageDenied(status, subject, url.origin);
    return statusError(status, subject, url.origin, reason);
  }

  async #authorized(wanted: RegistryRequest): Promise<RegistryResponse> {
    const { scope, subject, signal } = wanted;
    const authorization = await this.#authorizer.authorization(scope, subject, signal);
    const response = await this.#redirected(wanted, authorization);
    // Some registries (ECR) answer 403 when an authorization has expired.
    const expired = response.status === 403 && authorization !== undefined;
    if (response.url.origin !== this.origin || !(response.status === 401 || expired)) {
      return response;
    }
    const challenges = parseChallenges(response.headers("www-authenticate"));
    const retry = this.#authorizer.refuse(challenges, scope, authorization, subject);
    const renewed = retry
      ? await this.#authorizer.authorization(scope, subject, signal)
      : undefined;
    if (renewed === undefined || renewed === authorization) return response;
    await response.body.dump({ limit: registryErrorBytesMax });
    return this.#redirected(wanted, renewed);
  }

  // By hand, because the authorization is for the endpoint alone, and because the caller wants to
  // know where it ended.
  async #redirected(
    wanted: RegistryRequest,
    authorization: string | undefined,
  ): Promise<RegistryResponse & { headers(name: string): string | string[] | undefined }> {
    const { base } = this.endpoint;
    let url = typeof wanted.url === "string" ? new URL(base + wanted.url) : wanted.url;
    for (let hop = 0; hop <= redirectsMax; hop++) {
      const response = await this.#once(wanted, url, authorization);
      const { statusCode: status, headers, body } = response;
      const location = headers["location"];
      const isRedirect =
        status === 301 || status === 302 || status === 303 || status === 307 || status === 308;
      if (!isRedirect || typeof location !== "string" || wanted.method === "POST") {
        const header = (name: string) => [headers[name]].flat()[0];
        return { status, url, body, header, headers: (name) => headers[name] };
      }
      await body.dump({ limit: registryErrorBytesMax });
      url = this.#target(location, url, wanted.subject);
    }
    throw registryError("REGISTRY_PROTOCOL", "too many redirects", wanted.subject, {
      endpoint: this.origin,
    });
  }

  #target(location: string, from: URL, subject: Subject): URL {
    const target = URL.canParse(location, from.href) ? new URL(location, from) : undefined;
    if (target === undefined || !/^https?:$/.test(target.protocol)) {
      throw registryError("REGISTRY_PROTOCOL", "a redirect leads nowhere", subject);
    }
    if (from.protocol === "https:" && target.protocol === "http:") {
      throw registryError("REGISTRY_PROTOCOL", "a redirect leads away from TLS", subject, {
        endpoint: target.origin,
      });
    }
    return target;
  }

  async #once(
    wanted: RegistryRequest,
    url: URL,
    authorization: string | undefined,
  ): Promise<Dispatcher.ResponseData> {
    const { method, body, signal } = wanted;
    const ours = url.origin === this.origin;
    const response = await request(url, {
      method,
      dispatcher: this.#dispatcher,
      headers: {
        "user-agent": userAgent,
        "accept-encoding": "identity",
        ...(ours ? this.endpoint.headers : {}),
        ...(ours && authorization !== undefined ? { authorization } : {}),
        ...wanted.headers,
      },
      ...(body === undefined ? {} : { body, headersTimeout: uploadTimeoutMs }),
      ...(signal === undefined ? {} : { signal }),
    });
    // A body that is aborted before or after it is read reports that to nobody.
    response.body.on("error", () => {});
    return response;
  }
}

const errorsSchema = v.object({
  errors: v.pipe(
    v.array(v.object({ code: v.pipe(v.string(), v.regex(/^[A-Z_]{1,50}$/)) })),
    v.minLength(1),
  ),
});

// Only the code: a message may quote what was sent.
function errorReason(body: Buffer): string | undefined {
  try {
    return v.parse(errorsSchema, JSON.parse(body.toString("utf8"))).errors[0]?.code;
  } catch {
    return undefined;
  }
}
