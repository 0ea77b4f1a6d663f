/** The connection of a Redis content cache: one server or a cluster, opened when first used. */
import type { Cluster, Redis, RedisOptions } from "ioredis";

/** The part of the library that is used. */
export type RedisLibrary = Pick<typeof import("ioredis"), "Redis" | "Cluster">;

/** How to reach the server. */
export interface RedisAddress {
  /** The server; with `cluster` some of its nodes, from which the others are learnt. */
  nodes: readonly { host: string; port: number }[];
  cluster?: boolean;
  username?: string;
  password?: string;
  /** Not in a cluster. */
  database?: number;
  /** Speak TLS; `ca` are certificates (PEM) to trust instead of the system's. */
  tls?: boolean | { ca: string };
  connectTimeoutMs: number;
  /** A connection on which something was asked and nothing heard for so long is given up. */
  silenceMs: number;
}

/** The commands that the cache uses; both kinds of client have them. */
export interface RedisCommands {
  getBuffer(key: string): Promise<Buffer | null>;
  getrangeBuffer(key: string, start: number, end: number): Promise<Buffer | null>;
  call(command: "SET", ...args: (string | number | Buffer)[]): Promise<unknown>;
  pexpire(key: string, milliseconds: number): Promise<number>;
  persist(key: string): Promise<number>;
  unlink(key: string): Promise<number>;
  eval(script: string, keys: 1, key: string, ...args: (string | Buffer)[]): Promise<unknown>;
}

/**
 * Begins to connect: to the server, or to all nodes of the cluster. Lost connections come back until
 * {@link RedisConnection.close}.
 */
export function connectRedis(ioredis: RedisLibrary, address: RedisAddress): RedisConnection {
  return new RedisConnection(
    address.cluster === true ? openCluster(ioredis, address) : openSingle(ioredis, address),
  );
}

/** One connection (in a cluster one to each node). Commands on it are answered in order. */
export class RedisConnection {
  readonly #client: Redis | Cluster;
  readonly #waiting = new Set<(fault: unknown) => void>();
  #fault: unknown;

  constructor(client: Redis | Cluster) {
    this.#client = client;
    this.#client.on("error", (error: unknown) => {
      this.#fault = error;
      // A cluster's client would have them wait until the cluster is back.
      if (!this.#isReady) for (const fail of this.#waiting) fail(error);
    });
    this.#client.on("ready", () => {
      this.#fault = undefined;
    });
  }

  /** Sends commands. They wait for a connection until an attempt to get one has failed. */
  async run<Value>(work: (commands: RedisCommands) => Promise<Value>): Promise<Value> {
    const failed = Promise.withResolvers<never>();
    this.#waiting.add(failed.reject);
    try {
      return await Promise.race([work(this.#client), failed.promise]);
    } finally {
      this.#waiting.delete(failed.reject);
    }
  }

  /** Why there is no connection, once an attempt to get one has failed. */
  get outage(): unknown {
    return this.#isReady ? undefined : this.#fault;
  }

  /** What is wrong with the connection, while something is. */
  get fault(): unknown {
    return this.#fault;
  }

  /** Drops the connection; commands that wait for an answer fail. */
  close(): void {
    this.#client.disconnect();
  }

  get #isReady(): boolean {
    return this.#client.status === "ready";
  }
}

function retryDelayMs(attempt: number): number {
  return Math.min(50 * 2 ** Math.min(attempt, 10), 1_000);
}

function openSingle(ioredis: RedisLibrary, address: RedisAddress): Redis {
  const [node] = address.nodes;
  return new ioredis.Redis({
    ...commonOptions(address),
    ...node,
    ...(address.database === undefined ? {} : { db: address.database }),
    retryStrategy: retryDelayMs,
  });
}

function openCluster(ioredis: RedisLibrary, address: RedisAddress): Cluster {
  return new ioredis.Cluster([...address.nodes], {
    redisOptions: commonOptions(address),
    clusterRetryStrategy: retryDelayMs,
    slotsRefreshTimeout: address.connectTimeoutMs,
    // Names in certificates are names, not what they resolve to.
    ...(address.tls === undefined || address.tls === false ? {} : { dnsLookup: asName }),
  });
}

function asName(name: string, done: (error: null, address: string) => void): void {
  done(null, name);
}

function commonOptions(address: RedisAddress) {
  const { username, password, tls } = address;
  return {
    ...(username === undefined ? {} : { username }),
    ...(password === undefined ? {} : { password }),
    ...(tls === undefined || tls === false ? {} : { tls: tls === true ? {} : tls }),
    connectTimeout: address.connectTimeoutMs,
    socketTimeout: address.silenceMs,
    // A command does not outlive its connection: the caller has other tiers to ask.
    maxRetriesPerRequest: 0,
    autoResendUnfulfilledCommands: false,
    disableClientInfo: true,
    // Understood by every server; nothing here needs the newer protocol.
    protocol: 2,
  } as const satisfies RedisOptions;
}
