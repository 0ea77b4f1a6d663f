/** A registry on this machine, and a proxy before it that counts what is asked for and sent. */

import http from "node:http";
import type { AddressInfo } from "node:net";
import { writeFile } from "node:fs/promises";
import { Service } from "./command.ts";
import type { Sandbox } from "./sandbox.ts";
import { tool, toolEnvironment } from "./tools.ts";

/** One request that the registry was asked. */
export interface RegistryRequest {
  method: string;
  /** Path and query. */
  path: string;
  range: string | undefined;
  status: number;
  /** Bytes of the body that were sent. */
  bytes: number;
}

/** Changes what a client sees. Return true when the request has been answered. */
export type Interference = (
  request: http.IncomingMessage,
  response: http.ServerResponse,
) => boolean | Promise<boolean>;

/** A registry that is running. */
export interface TestRegistry {
  /** `127.0.0.1:port`, as an image name starts. */
  host: string;
  /** What was asked since the start or the last reset. */
  requests: RegistryRequest[];
  /** Forgets what was asked. */
  reset(): void;
  /** Bytes that were sent for blobs of repositories, all by default. */
  blobBytes(repository?: string): number;
  /** Sees each request first; undefined ends it. */
  interfere(interference: Interference | undefined): void;
  /** Ends the registry, and starts it again on the same port. */
  stop(): Promise<void>;
  start(): Promise<void>;
}

/** Starts a registry with its files below `name` in the sandbox. */
export async function startRegistry(sandbox: Sandbox, name = "registry"): Promise<TestRegistry> {
  const { port } = await startRegistryServer(sandbox, name, "127.0.0.1");
  const proxy = new CountingProxy(port);
  await proxy.start();
  sandbox.onClose("registry", () => proxy.stop());
  return proxy;
}

/** Starts a registry alone; nobody counts. */
export async function startRegistryServer(
  sandbox: Sandbox,
  name: string,
  address: string,
): Promise<{ port: number }> {
  const directory = await sandbox.subdirectory(name);
  const configFile = sandbox.path(name, "config.yml");
  await writeFile(configFile, configOf(directory, address));
  const logFile = sandbox.path(name, "log");
  const service = await Service.start({
    name: "docker-registry",
    command: tool("docker-registry"),
    args: ["serve", configFile],
    env: toolEnvironment(),
    logFile,
    isReady: (output) => LISTENING.test(output),
  });
  sandbox.onClose("docker-registry", () => service.stop());
  return { port: Number(LISTENING.exec(service.output())?.[1]) };
}

const LISTENING = /listening on [\d.]+:(\d+)/;

function configOf(directory: string, address: string): string {
  // JSON is YAML.
  return JSON.stringify({
    version: 0.1,
    log: { level: "info", accesslog: { disabled: true } },
    storage: {
      filesystem: { rootdirectory: `${directory}/data` },
      delete: { enabled: true },
    },
    http: { addr: `${address}:0`, secret: "test" },
  });
}

class CountingProxy implements TestRegistry {
  readonly requests: RegistryRequest[] = [];
  readonly #backendPort: number;
  readonly #agent = new http.Agent({ keepAlive: true });
  #server: http.Server | undefined;
  #port = 0;
  #interference: Interference | undefined;

  constructor(backendPort: number) {
    this.#backendPort = backendPort;
  }

  get host(): string {
    return `127.0.0.1:${this.#port}`;
  }

  reset(): void {
    this.requests.length = 0;
  }

  blobBytes(repository?: string): number {
    const prefix = repository === undefined ? undefined : `/v2/${repository}/blobs/`;
    return this.requests
      .filter(({ path }) =>
        prefix === undefined ? path.includes("/blobs/") : path.startsWith(prefix),
      )
      .reduce((sum, { bytes }) => sum + bytes, 0);
  }

  interfere(interference: Interference | undefined): void {
    this.#interference = interference;
  }

  async start(): Promise<void> {
    const server = http.createServer((request, response) => {
      void this.#handle(request, response).catch((error: unknown) => {
        response.destroy(error instanceof Error ? error : new Error(String(error)));
      });
    });
    server.keepAliveTimeout = 60_000;
    this.#server = server;
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(this.#port, "127.0.0.1", resolve);
    });
    this.#port = (server.address() as AddressInfo).port;
  }

  async stop(): Promise<void> {
    const server = this.#server;
    if (server === undefined) return;
    this.#server = undefined;
    const closed = new Promise<void>((resolve) => {
      server.close(() => {
        resolve();
      });
    });
    server.closeAllConnections();
    await closed;
    this.#agent.destroy();
  }

  async #handle(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    const entry: RegistryRequest = {
      method: request.method ?? "GET",
      path: request.url ?? "/",
      range: request.headers.range,
      status: 0,
      bytes: 0,
    };
    this.requests.push(entry);
    if ((await this.#interference?.(request, response)) === true) {
      entry.status = response.statusCode;
      return;
    }
    const upstream = http.request(
      {
        host: "127.0.0.1",
        port: this.#backendPort,
        method: entry.method,
        path: entry.path,
        headers: request.headers,
        agent: this.#agent,
      },
      (answer) => {
        entry.status = answer.statusCode ?? 502;
        response.writeHead(entry.status, answer.headers);
        // Counted when it is handed to the socket: a client that goes away is not charged the rest.
        answer.on("data", (chunk: Buffer) => (entry.bytes += chunk.length));
        answer.on("error", (error) => response.destroy(error));
        answer.pipe(response);
      },
    );
    upstream.on("error", (error) => response.destroy(error));
    response.on("close", () => {
      if (!response.writableFinished) upstream.destroy();
    });
    request.pipe(upstream);
  }
}
