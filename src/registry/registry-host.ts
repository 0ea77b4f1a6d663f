/** One registry: its endpoints, and which of them to ask. */
import { isClipError } from "../base/errors.ts";
import type { Log } from "../telemetry/log.ts";
import type { Session } from "./session.ts";

/** What is wanted from an endpoint: blobs and manifests by digest, tags, or to write. */
export type Capability = "pull" | "resolve" | "push";

const restMsFirst = 10_000;
const restMsMax = 300_000;

interface Rest {
  until: number;
  ms: number;
}

/** Finds for each request the endpoint that answers it. */
export class RegistryHost {
  readonly #host: string;
  readonly #sessions: (signal: AbortSignal | undefined) => Promise<readonly Session[]>;
  readonly #log: Log;
  // Endpoints that could not be reached are not asked first again for a while.
  readonly #resting = new WeakMap<Session, Rest>();

  /** `sessions` gives the endpoints in order, the registry itself last. */
  constructor(
    host: string,
    sessions: (signal: AbortSignal | undefined) => Promise<readonly Session[]>,
    log: Log,
  ) {
    this.#host = host;
    this.#sessions = sessions;
    this.#log = log;
  }

  /**
   * The outcome of `work` at the first endpoint where it succeeds, beginning with `preferred`.
   * @throws what the last in the list threw: the registry itself, unless it lacks the capability
   */
  async first<Value>(
    capability: Capability,
    preferred: Session | undefined,
    signal: AbortSignal | undefined,
    work: (session: Session, isLast: boolean) => Promise<Value>,
  ): Promise<Value> {
    const capable = await this.capable(capability, signal);
    const sessions = this.#order(capable, preferred);
    let failure: unknown;
    for (const [index, session] of sessions.entries()) {
      try {
        const value = await work(session, index === sessions.length - 1);
        this.#resting.delete(session);
        return value;
      } catch (error) {
        if (!isClipError(error) || error.code === "ABORTED" || error.code === "CLOSED") throw error;
        if (error.code === "REGISTRY_UNAVAILABLE") this.#rest(session);
        if (index < sessions.length - 1) {
          this.#log.warn(
            { host: this.#host, endpoint: session.origin, code: error.code, error: error.message },
            "the next endpoint is asked",
          );
        }
        if (failure === undefined || session === capable.at(-1)) failure = error;
      }
    }
    throw failure;
  }

  /**
   * The endpoints that can do this, in order.
   * @throws ClipError CONFIG_INVALID
   */
  async capable(
    capability: Capability,
    signal: AbortSignal | undefined,
  ): Promise<readonly Session[]> {
    const all = await this.#sessions(signal);
    const capable = all.filter(({ endpoint }) => endpoint.capabilities[capability]);
    return capable.length > 0 ? capable : all.slice(-1);
  }

  /** What to add to a path at this endpoint: a mirror must be told whose content is meant. */
  query(session: Session): string {
    const { hostname, host } = new URL(session.endpoint.base);
    const own = this.#host === host || this.#host === hostname;
    const hub = this.#host === "docker.io" && host === "registry-1.docker.io";
    return own || hub ? "" : `?ns=${encodeURIComponent(this.#host)}`;
  }

  #order(sessions: readonly Session[], preferred: Session | undefined): Session[] {
    const now = performance.now();
    const isResting = (session: Session) => (this.#resting.get(session)?.until ?? 0) > now;
    const rank = (session: Session) => (isResting(session) ? 2 : session === preferred ? 0 : 1);
    return [...sessions].sort((a, b) => rank(a) - rank(b));
  }

  #rest(session: Session): void {
    const ms = Math.min((this.#resting.get(session)?.ms ?? restMsFirst / 2) * 2, restMsMax);
    this.#resting.set(session, { until: performance.now() + ms, ms });
  }
}
