/** Authorization at one endpoint: basic, or bearer tokens by scope, renewed before they expire. */
import type { Dispatcher } from "undici";
import { abortable, SingleFlight } from "../base/concurrency.ts";
import type { Challenge } from "./challenge.ts";
import type { Credentials } from "./credentials.ts";
import { registryError, type Subject } from "./failure.ts";
import { basicAuthorization, fetchToken, type Token } from "./token.ts";

/** What an {@link Authorizer} works with. */
export interface AuthorizerOptions {
  /** The endpoint's address. */
  base: string;
  /** Credentials for the endpoint; asked anew for each token. */
  credentials(signal: AbortSignal): Promise<Credentials | undefined>;
  dispatcher: Dispatcher;
  retries: number;
  /** Ends what runs for several callers at once. */
  closing: AbortSignal;
}

type Scheme = { kind: "basic" } | { kind: "bearer"; realm: URL; service: string | undefined };

/** Knows what the endpoint asked for and remembers what satisfied it. */
export class Authorizer {
  readonly #options: AuthorizerOptions;
  readonly #tokens = new Map<string, Token>();
  // A registry may know a repository by another name than its clients do: what it asked for then.
  readonly #demanded = new Map<string, string[]>();
  readonly #flight = new SingleFlight<string | undefined>();
  #scheme: Scheme | undefined;
  #basic: string | undefined;

  constructor(options: AuthorizerOptions) {
    this.#options = options;
  }

  /** The header for a request; undefined as long as the endpoint has not asked for any. */
  authorization(
    scope: string,
    subject: Subject,
    signal: AbortSignal | undefined,
  ): Promise<string | undefined> {
    const scheme = this.#scheme;
    if (scheme === undefined) return Promise.resolve(undefined);
    if (scheme.kind === "basic" && this.#basic !== undefined) return Promise.resolve(this.#basic);
    if (scheme.kind === "bearer") {
      const token = this.#tokens.get(scope);
      if (token !== undefined && token.expiresAt > performance.now()) {
        return Promise.resolve(`Bearer ${token.value}`);
      }
    }
    const work = () => this.#obtain(scheme, scope, subject);
    return abortable(this.#flight.run(`${scheme.kind} ${scope}`, work), signal);
  }

  /**
   * Takes in what the endpoint demanded in an answer that refused `refused` (or a request without
   * authorization), so that {@link authorization} obtains something new.
   * @returns false when there is nothing to try
   * @throws ClipError REGISTRY_PROTOCOL when the demand makes no sense
   */
  refuse(
    challenges: readonly Challenge[],
    scope: string,
    refused: string | undefined,
    subject: Subject,
  ): boolean {
    const bearer = challenges.find(({ scheme }) => scheme === "bearer");
    if (bearer !== undefined) {
      this.#scheme = this.#bearerScheme(bearer, subject);
      const demanded = (bearer.parameters.get("scope") ?? "").split(" ").filter(Boolean);
      if (demanded.some((other) => other !== scope)) this.#demanded.set(scope, demanded);
    } else if (challenges.some(({ scheme }) => scheme === "basic"))
      this.#scheme = { kind: "basic" };
    if (this.#scheme === undefined) return false;
    // Another request may have renewed it meanwhile: only what was refused is forgotten.
    if (refused === this.#basic) this.#basic = undefined;
    const token = this.#tokens.get(scope);
    if (token !== undefined && refused === `Bearer ${token.value}`) this.#tokens.delete(scope);
    return true;
  }

  #bearerScheme(challenge: Challenge, subject: Subject): Scheme {
    const text = challenge.parameters.get("realm") ?? "";
    const realm = URL.canParse(text) ? new URL(text) : undefined;
    if (realm === undefined || !/^https?:$/.test(realm.protocol)) {
      throw registryError("REGISTRY_PROTOCOL", "its token service has no address", subject);
    }
    if (realm.protocol === "http:" && this.#options.base.startsWith("https:")) {
      throw registryError("REGISTRY_PROTOCOL", "its token service does not use TLS", subject);
    }
    return { kind: "bearer", realm, service: challenge.parameters.get("service") };
  }

  async #obtain(scheme: Scheme, scope: string, subject: Subject): Promise<string | undefined> {
    const { closing, dispatcher, retries } = this.#options;
    const credentials = await this.#options.credentials(closing);
    if (credentials?.kind === "registry-token") return `Bearer ${credentials.token}`;
    if (scheme.kind === "basic") {
      if (credentials?.kind === "password") this.#basic = basicAuthorization(credentials);
      return this.#basic;
    }
    const { realm, service } = scheme;
    const scopes = [...new Set([scope, ...(this.#demanded.get(scope) ?? [])])];
    const token = await fetchToken({
      realm,
      service,
      scopes,
      credentials,
      dispatcher,
      subject,
      retries,
      signal: closing,
    });
    this.#forgetExpired();
    this.#tokens.set(scope, token);
    return `Bearer ${token.value}`;
  }

  #forgetExpired(): void {
    const now = performance.now();
    for (const [scope, { expiresAt }] of this.#tokens) {
      if (expiresAt <= now) this.#tokens.delete(scope);
    }
  }
}
