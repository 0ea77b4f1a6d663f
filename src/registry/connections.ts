/** Connections to registries: pools that keep them alive, one per set of TLS options. */
import { readFile } from "node:fs/promises";
import { createSecureContext, getCACertificates, type SecureContext } from "node:tls";
import { Agent, buildConnector, type Dispatcher, EnvHttpProxyAgent } from "undici";
import { ClipError } from "../base/errors.ts";
import type { TlsOptions } from "./endpoint.ts";

// Enough for the readers and the background work of a busy node; the rest waits its turn.
const connectionsPerOrigin = 32;
const keepAliveMs = 30_000;

/** Time limits of one request, in milliseconds. */
export interface TimeoutOptions {
  /** For a connection, and again for the head of an answer. */
  timeoutMs: number;
  /** Longest silence in the body of an answer. */
  idleTimeoutMs: number;
}

/** Owns the connections; {@link close} ends them and what runs over them. */
export class Connections {
  readonly #options: TimeoutOptions;
  readonly #dispatchers = new Map<string, Promise<Dispatcher>>();
  #closed = false;

  constructor(options: TimeoutOptions) {
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
    const dispatchers = await Promise.allSettled(this.#dispatchers.values());
    this.#dispatchers.clear();
    for (const outcome of dispatchers) {
      if (outcome.status === "fulfilled") await outcome.value.destroy();
    }
  }

  async #create(tls: TlsOptions): Promise<Dispatcher> {
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
      connect: connector(material, tls.skipVerify, timeoutMs),
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
}

// Most registries on a developer's machine are plain: the system's authorities, which take some
// 50 ms to load, are loaded with the first TLS connection.
function connector(
  material: TlsMaterial,
  skipVerify: boolean,
  timeout: number,
): buildConnector.connector {
  const plain = buildConnector({ timeout, allowH2: false });
  let secure: buildConnector.connector | undefined;
  return (options, callback) => {
    if (options.protocol !== "https:") return plain(options, callback);
    secure ??= buildConnector({
      timeout,
      allowH2: false,
      secureContext: secureContext(material),
      rejectUnauthorized: !skipVerify,
    });
    return secure(options, callback);
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
  const clients = await Promise.all(tls.clientFiles.map((files) => Promise.all(files.map(pem))));
  return {
    authorities: await Promise.all(tls.caFiles.map(pem)),
    certificates: clients.map((files) => files[0] ?? ""),
    keys: clients.map((files) => files.at(-1) ?? ""),
  };
}

async function pem(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    throw new ClipError("CONFIG_INVALID", `cannot read the certificate ${path}`, { cause: error });
  }
}
