/** Asking a token service for a bearer token (distribution spec, "token authentication"). */
import { type Dispatcher, request } from "undici";
import * as v from "valibot";
import { isClipError } from "../base/errors.ts";
import { tokenAnswerBytesMax } from "../base/limits.ts";
import type { Credentials } from "./credentials.ts";
import { registryError, statusError, type Subject } from "./failure.ts";
import { networkError, readBody } from "./http.ts";
import { backoffMs, isTransientStatus, pause, retryAfterMs } from "./retry.ts";

/** A token and until when it may be used. */
export interface Token {
  value: string;
  /** On the clock of `performance.now()`, which nobody sets. */
  expiresAt: number;
}

/** What to ask for, and whom. */
export interface TokenRequest {
  realm: URL;
  service: string | undefined;
  scopes: readonly string[];
  credentials: Credentials | undefined;
  dispatcher: Dispatcher;
  subject: Subject;
  retries: number;
  signal: AbortSignal;
}

// The specification's default where the service does not say.
const lifetimeSecondsDefault = 60;
const answerSchema = v.object({
  token: v.optional(v.string()),
  access_token: v.optional(v.string()),
  expires_in: v.optional(v.number()),
});

/**
 * Asks the token service, with the credentials or anonymously.
 * @throws ClipError REGISTRY_DENIED, REGISTRY_UNAVAILABLE, REGISTRY_PROTOCOL, ABORTED
 */
export async function fetchToken(wanted: TokenRequest): Promise<Token> {
  for (let attempt = 0; ; attempt++) {
    let wait: number | undefined;
    try {
      const answer = await ask(wanted);
      if ("token" in answer) return answer.token;
      if (attempt >= wanted.retries) throw answer.error;
      wait = answer.retryAfterMs;
    } catch (error) {
      if (isClipError(error)) throw error;
      if (attempt >= wanted.retries || wanted.signal.aborted) {
        throw networkError(error, wanted.subject, wanted.realm.origin, wanted.signal);
      }
    }
    await pause(wait ?? backoffMs(attempt), wanted.signal);
  }
}

type Answer = { token: Token } | { error: Error; retryAfterMs: number | undefined };

async function ask(wanted: TokenRequest): Promise<Answer> {
  const { subject, realm, dispatcher, signal } = wanted;
  const response = await request(...form(wanted, { dispatcher, signal }));
  const status = response.statusCode;
  const body = await readBody(response.body, tokenAnswerBytesMax, subject);
  if (isTransientStatus(status)) {
    const header = response.headers["retry-after"];
    return {
      error: statusError(status, subject, realm.origin, "the token service fails"),
      retryAfterMs: retryAfterMs(typeof header === "string" ? header : undefined, Date.now()),
    };
  }
  if (status !== 200) {
    // Some services answer a wrong password with 400.
    const denied = status >= 400 && status < 500;
    throw statusError(denied ? 401 : status, subject, realm.origin, "no token was issued");
  }
  return { token: parseToken(body, subject) };
}

function form(
  { realm, service, scopes, credentials }: TokenRequest,
  options: { dispatcher: Dispatcher; signal: AbortSignal },
): Parameters<typeof request> {
  const accept = { accept: "application/json", "accept-encoding": "identity" };
  if (credentials?.kind === "identity-token") {
    const body = new URLSearchParams({
      grant_type: "refresh_token",
      refresh_token: credentials.token,
      client_id: "clip",
      scope: scopes.join(" "),
      ...(service === undefined ? {} : { service }),
    }).toString();
    const headers = { ...accept, "content-type": "application/x-www-form-urlencoded" };
    return [realm, { ...options, method: "POST", headers, body }];
  }
  const url = new URL(realm);
  if (service !== undefined) url.searchParams.set("service", service);
  for (const scope of scopes) url.searchParams.append("scope", scope);
  const authorization =
    credentials?.kind === "password" ? { authorization: basicAuthorization(credentials) } : {};
  return [url, { ...options, method: "GET", headers: { ...accept, ...authorization } }];
}

/** The value of an `Authorization` header for a user name and password (RFC 7617). */
export function basicAuthorization(password: { username: string; password: string }): string {
  return `Basic ${Buffer.from(`${password.username}:${password.password}`).toString("base64")}`;
}

function parseToken(body: Buffer, subject: Subject): Token {
  try {
    const answer = v.parse(answerSchema, JSON.parse(body.toString("utf8")));
    const value = answer.token ?? answer.access_token;
    if (value !== undefined && /^[\x21-\x7e]+$/.test(value)) {
      const seconds = Math.max(answer.expires_in ?? 0, lifetimeSecondsDefault);
      // A tenth is kept back for clocks and for the time that requests take.
      return { value, expiresAt: performance.now() + seconds * 900 };
    }
  } catch {
    // Falls through: the body may hold a token, so no detail of it leaves this place.
  }
  throw registryError("REGISTRY_PROTOCOL", "the token service answers nonsense", subject);
}
