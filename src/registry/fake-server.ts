/** A server for tests that answers as it is told, on a port of its own. */
import http from "node:http";
import type { AddressInfo } from "node:net";
import { after } from "node:test";
import { silentLog } from "../telemetry/log.ts";
import { RegistryClient, type RegistryOptions } from "./client.ts";

/** Answers a request. */
export type Handler = (
  request: http.IncomingMessage & { url: string },
  response: http.ServerResponse,
) => unknown;

/** A running server. */
export interface FakeServer {
  /** `127.0.0.1:<port>` */
  host: string;
  origin: string;
  /** `METHOD path` of all requests so far. */
  requests: string[];
  handle(handler: Handler): void;
}

/** Starts a server that is stopped after the tests of the file. */
export async function startServer(handler: Handler): Promise<FakeServer> {
  let current = handler;
  const requests: string[] = [];
  const server = http.createServer((request, response) => {
    const { url = "/" } = request;
    requests.push(`${request.method} ${url}`);
    Promise.resolve(current(Object.assign(request, { url }), response)).catch(() =>
      response.destroy(),
    );
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  after(() => {
    server.close();
    server.closeAllConnections();
  });
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  const handle = (next: Handler) => (current = next);
  return { host, origin: `http://${host}`, requests, handle };
}

/** Serves `bytes` as a blob as registries do, ranges included. */
export function serveBlob(
  request: http.IncomingMessage,
  response: http.ServerResponse,
  bytes: Buffer,
): void {
  const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
  if (first === undefined || last === undefined) {
    response.writeHead(200, { "content-length": bytes.length }).end(bytes);
    return;
  }
  const part = bytes.subarray(Number(first), Number(last) + 1);
  const range = `bytes ${first}-${Number(first) + part.length - 1}/${bytes.length}`;
  response.writeHead(206, { "content-range": range, "content-length": part.length }).end(part);
}

/** A client that is closed after the tests of the file; without credentials by default. */
export function newClient(options: Partial<RegistryOptions> = {}): RegistryClient {
  const client = new RegistryClient({
    dockerConfig: "/nonexistent/config.json",
    retries: 2,
    timeoutMs: 2000,
    idleTimeoutMs: 2000,
    log: silentLog,
    ...options,
  });
  after(() => client.close());
  return client;
}
