/** A token service and the door that its tokens open (OCI distribution spec, token authentication). */
import type { Exchange } from "./fault-proxy.ts";

/** Issues tokens, and checks them. */
export class TokenService {
  /** Who wants a token must know it; undefined: everybody gets one. */
  password: string | undefined;
  /** How many tokens have been issued. */
  issued = 0;
  readonly #host: string;
  readonly #valid = new Set<string>();

  /** `host` is where it is reached. */
  constructor(host: string, password?: string) {
    this.#host = host;
    this.password = password;
  }

  /** Whether a request may pass. Those that may not, and those for tokens, are answered. */
  admits({ request, response }: Exchange): boolean {
    const { authorization = "" } = request.headers;
    if (request.url.startsWith("/token?")) {
      if (this.password === undefined || passwordOf(authorization) === this.password) {
        response.end(JSON.stringify({ token: this.#issue(), expires_in: 300 }));
      } else {
        response.writeHead(401).end();
      }
      return false;
    }
    if (this.#valid.has(authorization)) return true;
    const challenge = `Bearer realm="https://${this.#host}/token",service="test"`;
    response.writeHead(401, { "www-authenticate": challenge }).end();
    return false;
  }

  /** Ends all tokens that have been issued. */
  expire(): void {
    this.#valid.clear();
  }

  #issue(): string {
    const token = `token-${++this.issued}`;
    this.#valid.add(`Bearer ${token}`);
    return token;
  }
}

function passwordOf(authorization: string): string | undefined {
  const encoded = /^Basic (.*)$/.exec(authorization)?.[1];
  return encoded === undefined
    ? undefined
    : Buffer.from(encoded, "base64").toString("utf8").split(":")[1];
}
