/**
 * Serves pages of telemetry over HTTP, on a unix socket and, where wanted, on a TCP address; has
 * actions done for those who ask on the unix socket.
 */
import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { ListenOptions } from "node:net";
import { SingleFlight } from "../base/concurrency.ts";
import { assert, ClipError, describeError } from "../base/errors.ts";
import { PrivateSocket } from "../base/private-socket.ts";
import { telemetryConnectionsMax, telemetryHeaderBytesMax } from "../base/limits.ts";
import { Actions, type Action } from "./actions.ts";
import type { Log } from "./log.ts";

/** What is answered to a GET. */
export interface Page {
  /** Default: 200. */
  status?: number;
  contentType: string;
  body: string;
  /** The methods of a path that has others than GET and HEAD; with status 405. */
  allow?: string;
}

/** What {@link TelemetryServer.open} takes. */
export interface TelemetryServerOptions {
  /** Path of the unix socket; only its owner can connect to it. */
  socketPath: string;
  /** Pages by path. One that is being made is not begun again: all who ask get it. */
  pages: Readonly<Record<string, () => Promise<Page> | Page>>;
  /** What a POST on the unix socket, and only there, has done, by path. Default: none. */
  actions?: Readonly<Record<string, Action>>;
  log: Log;
  /** Longest time that a page may take. Default: 10 s. */
  pageTimeoutMs?: number;
}

const requestTimeoutMs = 5_000;
/** Longest time without a byte moving. */
const idleTimeoutMs = 30_000;

/** A server that is listening. */
export class TelemetryServer {
  readonly #options: TelemetryServerOptions;
  readonly #flights = new SingleFlight<Page>();
  readonly #actions: Actions;
  readonly #servers: Server[] = [];
  #socket: PrivateSocket | undefined;

  private constructor(options: TelemetryServerOptions) {
    this.#options = options;
    this.#actions = new Actions(options.actions ?? {}, options.log);
  }

  /**
   * Begins to serve on the unix socket.
   * @throws ClipError ARGUMENT_INVALID, SYSTEM_CALL when it cannot listen
   */
  static async open(options: TelemetryServerOptions): Promise<TelemetryServer> {
    const server = new TelemetryServer(options);
    try {
      server.#socket = await PrivateSocket.bind(options.socketPath, async (path) => {
        await server.#listen({ path }, server.#actions);
      });
      return server;
    } catch (error) {
      await server.close();
      throw error;
    }
  }

  /**
   * Serves on a TCP address, `host:port`, as well. Whoever reaches it can read all pages.
   * @returns the address, with the port that the system chose for 0
   * @throws ClipError ARGUMENT_INVALID, SYSTEM_CALL when it cannot listen
   */
  async listen(address: string): Promise<string> {
    const server = await this.#listen(tcpOptions(address));
    const bound = server.address();
    assert(typeof bound === "object" && bound !== null, "a TCP server has an address");
    const host = bound.family === "IPv6" ? `[${bound.address}]` : bound.address;
    return `${host}:${bound.port}`;
  }

  /** Stops; answers that are on their way are cut off, actions are given up. */
  async close(): Promise<void> {
    await this.#actions.close();
    await this.#socket?.close();
    const closed = this.#servers.map((server) => once(server, "close"));
    for (const server of this.#servers) {
      server.close();
      server.closeAllConnections();
    }
    await Promise.all(closed);
    this.#servers.length = 0;
  }

  async #listen(where: ListenOptions, actions?: Actions): Promise<Server> {
    const server = createServer(
      {
        maxHeaderSize: telemetryHeaderBytesMax,
        headersTimeout: requestTimeoutMs,
        requestTimeout: requestTimeoutMs,
        connectionsCheckingInterval: 1_000,
      },
      (request, response) => void this.#answer(request, response, actions),
    );
    server.maxConnections = telemetryConnectionsMax;
    server.setTimeout(idleTimeoutMs);
    // It must not keep a process alive that has nothing else to do.
    server.unref();
    await new Promise<void>((resolve, reject) => {
      server.once("error", (error) => {
        const at = where.path ?? `${where.host}:${where.port}`;
        reject(new ClipError("SYSTEM_CALL", `cannot listen on ${at}`, { cause: error }));
      });
      server.listen(where, resolve);
    });
    this.#servers.push(server);
    return server;
  }

  async #answer(
    request: IncomingMessage,
    response: ServerResponse,
    actions: Actions | undefined,
  ): Promise<void> {
    const path = request.url?.split("?", 1)[0] ?? "/";
    if (actions?.has(path) === true && request.method === "POST" && !actions.isRunning(path)) {
      await actions.run(path, request, response);
      return;
    }
    const page =
      actions?.has(path) === true ? actionRefusal(request) : await this.#pageFor(path, request);
    response.writeHead(page.status ?? 200, {
      "content-type": page.contentType,
      "content-length": Buffer.byteLength(page.body),
      "cache-control": "no-store",
      "x-content-type-options": "nosniff",
      // A connection a question: nothing has to be kept for those that never come back.
      connection: "close",
      ...(page.status === 405 ? { allow: page.allow ?? "GET, HEAD" } : {}),
    });
    response.end(request.method === "HEAD" ? undefined : page.body);
  }

  async #pageFor(path: string, { method }: IncomingMessage): Promise<Page> {
    if (method !== "GET" && method !== "HEAD") return textPage(405, "only GET is served");
    const { pages, log } = this.#options;
    const make = Object.hasOwn(pages, path) ? pages[path] : undefined;
    if (make === undefined) return textPage(404, `there is ${Object.keys(pages).join(", ")}`);
    try {
      return await this.#flights.run(path, () => this.#withinTime(path, make));
    } catch (error) {
      log.error({ path, error: describeError(error) }, "a page of telemetry could not be made");
      return textPage(503, "this page cannot be made now; the log says why");
    }
  }

  async #withinTime(path: string, make: () => Promise<Page> | Page): Promise<Page> {
    const late = Promise.withResolvers<never>();
    const timer = setTimeout(() => {
      late.reject(new ClipError("TIMEOUT", `${path} was not ready in time`));
    }, this.#options.pageTimeoutMs ?? 10_000);
    try {
      return await Promise.race([make(), late.promise]);
    } finally {
      clearTimeout(timer);
    }
  }
}

/** A page of one line. */
export function textPage(status: number, line: string): Page {
  return { status, contentType: "text/plain; charset=utf-8", body: `${line}\n` };
}

/** A page of JSON. */
export function jsonPage(value: unknown): Page {
  return { contentType: "application/json", body: `${JSON.stringify(value)}\n` };
}

function actionRefusal({ method }: IncomingMessage): Page {
  if (method === "POST") return textPage(409, "this is being done already");
  return { ...textPage(405, "only POST has this done"), allow: "POST" };
}

/** Splits `host:port`, where an IPv6 address is in brackets. */
function tcpOptions(address: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:]+)):(\d{1,5})$/.exec(address);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host !== undefined && port <= 65_535) return { host, port };
  throw new ClipError("ARGUMENT_INVALID", `${JSON.stringify(address)} is no address`, {
    hint: "write host:port, for example 127.0.0.1:9123",
  });
}
