/** What was asked of registries and what came of it, by host; telemetry reads it. */

/**
 * How a request fails below HTTP: nobody is there, no answer in time, an answer that comes too
 * slowly, a connection that breaks, a name without an address, a certificate that is not trusted.
 */
export type NetworkFault =
  "unreachable" | "timeout" | "slow" | "broken" | "name" | "certificate" | "other";

/** Counts of one host. They only grow. */
export interface HostCounts {
  /** Answers by HTTP status. */
  readonly answers: Map<number, number>;
  /** Requests, and bodies of answers, that failed. Those that clip itself gave up do not count. */
  readonly faults: Map<NetworkFault, number>;
  /** Bytes of the bodies of all answers. */
  bytes: number;
}

/** Hosts that are told apart: whoever names images names hosts. */
const hostsMax = 256;
const otherHosts = "other";

/** Counts by the host that was really asked: mirrors, token services and storage included. */
export class RegistryCounters {
  readonly #hosts = new Map<string, HostCounts>();

  /** All counts so far; the objects live on and change. */
  get hosts(): ReadonlyMap<string, HostCounts> {
    return this.#hosts;
  }

  /** The counts of `host:port`, which is added if it is new. */
  of(host: string): HostCounts {
    const known = this.#hosts.get(host);
    if (known !== undefined) return known;
    if (this.#hosts.size >= hostsMax && host !== otherHosts) return this.of(otherHosts);
    const counts = { answers: new Map(), faults: new Map(), bytes: 0 };
    this.#hosts.set(host, counts);
    return counts;
  }
}

/** Adds one to a count. */
export function increment<Key>(counts: Map<Key, number>, key: Key): void {
  counts.set(key, (counts.get(key) ?? 0) + 1);
}
