/** Connections to registries: pools that keep them alive, one per set of TLS options. */
import { readFile, stat } from "node:fs/promises";
import { createSecureContext, getCACertificates, type SecureContext } from "node:tls";
import { Agent, buildConnector, type Dispatcher, EnvHttpProxyAgent } from "undici";
import { ClipError } from "../base/errors.ts";
import type { TlsOptions } from "./endpoint.ts";
import type { RegistryCounters } from "./registry-counters.ts";
import { watched } from "./watch.ts";

// Enough for the readers and the background work of a busy node; the rest waits its turn.
const connectionsPerOrigin = 32;
const keepAliveMs = 30_000;

/** How long one request may take, and where it is counted. */
export interface ConnectionsOptions {
  /** Milliseconds for a connection, and again for the head of an answer. */
  timeoutMs: number;
  /** Longest silence in the body of an answer, in milliseconds. */
  idleTimeoutMs: number;
  /** Fewest bytes a second of a body, on average over `idleTimeoutMs`; 0: no limit. */
  bytesPerSecondMin: number;
  counters: RegistryCounters;
}

/** Owns the connections; {@link close} ends them and what runs over them. */
export class Connections {
  readonly #options: ConnectionsOptions;
  readonly #dispatchers = new Map<string, Promise<Dispatcher>>();
  readonly #agents: Dispatcher[] = [];
  #closed = false;

  constructor(options: ConnectionsOptions) {
    this.#options = options;
  }

  /**
   * The pool for these TLS options.
   * @throws ClipError CONFIG_INVALID when a certificate cannot be read, CLOSED
   */
  dispatcher(tls: TlsOptions): Promise<Dispatcher> {
    if (this.#closed) {
      return Promise.reject(new ClipError("CLOSED", "the registry client is closed"));
    }
    const key = JSON.stringify(tls);
    let found = this.#dispatchers.get(key);
    if (found === undefined) {
      found = this.#create(tls);
      this.#dispatchers.set(key, found);
      found.catch(() => this.#dispatchers.delete(key));
    }
    return found;
  }

  async close(): Promise<void> {
    this.#closed = true;
    await Promise.allSettled(this.#dispatchers.values());
    this.#dispatchers.clear();
    for (const agent of this.#agents) await agent.destroy();
  }

  async #create(tls: TlsOptions): Promise<Dispatcher> {
    const { idleTimeoutMs, bytesPerSecondMin, counters } = this.#options;
    const agent = await this.#agent(tls);
    this.#agents.push(agent);
    return agent.compose(watched(counters, { bytesPerSecondMin, windowMs: idleTimeoutMs }));
  }

  async #agent(tls: TlsOptions): Promise<Dispatcher> {
    const { timeoutMs, idleTimeoutMs } = this.#options;
    const material = await readMaterial(tls);
    const { HTTP_PROXY, HTTPS_PROXY, http_proxy, https_proxy } = process.env;
    const options = {
      connections: connectionsPerOrigin,
      // Ranges of one blob are fetched side by side: that needs connections of their own.
      allowH2: false,
      keepAliveTimeout: keepAliveMs,
      headersTimeout: timeoutMs,
      bodyTimeout: idleTimeoutMs,
      connect: connector(tls, material, timeoutMs),
    };
    if (HTTP_PROXY ?? HTTPS_PROXY ?? http_proxy ?? https_proxy) {
      const requestTls = {
        secureContext: secureContext(material),
        rejectUnauthorized: !tls.skipVerify,
      };
      return new EnvHttpProxyAgent({ ...options, requestTls, noProxy: unproxiedHosts() });
    }
    return new Agent(options);
  }
}

// A proxy cannot reach this machine's loopback: as in Go, it is never asked for it.
function unproxiedHosts(): string {
  const { NO_PROXY, no_proxy = NO_PROXY } = process.env;
  return [no_proxy, "localhost", "127.0.0.1", "[::1]"].filter(Boolean).join(",");
}

interface TlsMaterial {
  authorities: string[];
  certificates: string[];
  keys: string[];
  /** Changes with the files. */
  version: string;
}

// Most registries on a developer's machine are plain: the system's authorities, which take some
// 50 ms to load, are loaded with the first TLS connection. Certificates are replaced while clip
// runs: each new connection looks whether their files have changed.
function connector(
  tls: TlsOptions,
  material: TlsMaterial,
  timeout: number,
): buildConnector.connector {
  const plain = buildConnector({ timeout, allowH2: false });
  const connectorOf = (current: TlsMaterial) => ({
    version: current.version,
    connect: buildConnector({
      timeout,
      allowH2: false,
      secureContext: secureContext(current),
      rejectUnauthorized: !tls.skipVerify,
    }),
  });
  let secure: ReturnType<typeof connectorOf> | undefined;
  const connectSecurely = async (...[options, callback]: Parameters<typeof plain>) => {
    secure ??= connectorOf(material);
    if ((await versionOf(tls)) !== secure.version) {
      try {
        secure = connectorOf(await readMaterial(tls));
      } catch {
        // Files that are being replaced may not fit each other yet.
      }
    }
    secure.connect(options, callback);
  };
  return (options, callback) => {
    if (options.protocol === "https:") void connectSecurely(options, callback);
    else plain(options, callback);
  };
}

let systemAuthorities: string[] | undefined;

function secureContext({ authorities, certificates, keys }: TlsMaterial): SecureContext {
  systemAuthorities ??= [
    ...new Set([...getCACertificates("default"), ...getCACertificates("system")]),
  ];
  return createSecureContext({
    ca: [...systemAuthorities, ...authorities],
    ...(certificates.length === 0 ? {} : { cert: certificates, key: keys }),
  });
}

async function readMaterial(tls: TlsOptions): Promise<TlsMaterial> {
  const version = await versionOf(tls);
  const clients = await Promise.all(tls.clientFiles.map((files) => Promise.all(files.map(pem))));
  return {
    authorities: await Promise.all(tls.caFiles.map(pem)),
    certificates: clients.map((files) => files[0] ?? ""),
    keys: clients.map((files) => files.at(-1) ?? ""),
    version,
  };
}

async function versionOf({ caFiles, clientFiles }: TlsOptions): Promise<string> {
  const versions = [...caFiles, ...clientFiles.flat()].map(async (path) => {
    const found = await stat(path).catch(() => undefined);
    return found === undefined ? "" : `${found.mtimeMs} ${found.size} ${found.ino}`;
  });
  return (await Promise.all(versions)).join("\n");
}

async function pem(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    throw new ClipError("CONFIG_INVALID", `cannot read the certificate ${path}`, { cause: error });
  }
}
