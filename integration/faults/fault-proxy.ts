/** What clip reaches a server through: relays HTTP, and does to it what networks and servers do. */
import http from "node:http";
import https from "node:https";
import type { AddressInfo, Socket } from "node:net";
import type { Sandbox } from "../harness/sandbox.ts";
import { BlackHole } from "./black-hole.ts";
import type { Certificate } from "./certificates.ts";

/** A request on its way through. */
export interface Exchange {
  request: http.IncomingMessage & { url: string };
  response: http.ServerResponse;
  /** Asks the server, with other headers or another path if so wanted. */
  ask: (changes?: {
    headers?: http.IncomingHttpHeaders;
    url?: string;
  }) => Promise<http.IncomingMessage>;
  /** Has TCP reset the connection. */
  reset: () => void;
}

/** Answers a request in place of the server. */
export type Answer = (exchange: Exchange) => unknown;

/** Which requests. */
export type Filter = (request: Exchange["request"]) => boolean;

/** What is done at present, and how often it has been done. */
export interface Provocation {
  readonly count: number;
}

/** How a proxy is opened. */
export interface FaultProxyOptions {
  /** Port of the server, on 127.0.0.1. */
  target: number;
  /** Speak TLS. */
  certificate?: Certificate;
  /** The requests that faults are for, unless told otherwise. */
  filter: Filter;
}

/** A server as clip sees it. */
export class FaultProxy {
  readonly port: number;
  readonly #options: FaultProxyOptions;
  readonly #server: http.Server;
  readonly #agent = new http.Agent({ keepAlive: true });
  readonly #sockets = new Set<Socket>();
  #fault: { answer: Answer; filter: Filter; count: number } | undefined;
  #guard: Answer | undefined;
  #hole: BlackHole | undefined;

  private constructor(options: FaultProxyOptions, server: http.Server) {
    this.#options = options;
    this.#server = server;
    this.port = (server.address() as AddressInfo).port;
    server.on("request", (request, response) => void this.#handle(request, response));
    server.on("connection", (socket: Socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
  }

  static async open(sandbox: Sandbox, options: FaultProxyOptions): Promise<FaultProxy> {
    const { certificate } = options;
    const limits = { keepAliveTimeout: 60_000 };
    const server =
      certificate === undefined
        ? http.createServer(limits)
        : https.createServer({ ...limits, ...certificate });
    await listen(server, 0);
    const proxy = new FaultProxy(options, server);
    sandbox.onClose("fault proxy", () => proxy.#close());
    return proxy;
  }

  /** From now on, requests are answered so. */
  provoke(answer: Answer, filter: Filter = this.#options.filter): Provocation {
    this.#fault = { answer, filter, count: 0 };
    return this.#fault;
  }

  /** Asked before everything else: returns whether a request may pass. */
  guard(answer: Answer | undefined): void {
    this.#guard = answer;
  }

  /** From now on nobody listens. */
  async refuse(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.disconnect();
    await closed;
  }

  /** From now on connections are neither made nor refused. */
  async swallow(): Promise<void> {
    await this.refuse();
    this.#hole = await BlackHole.open(this.port);
  }

  /** From now on new connections get this certificate; there are no old ones any more. */
  present(certificate: Certificate): void {
    (this.#server as https.Server).setSecureContext(certificate);
    this.disconnect();
  }

  /** All is well again. */
  async recover(): Promise<void> {
    this.#fault = undefined;
    this.#guard = undefined;
    await this.#hole?.close();
    this.#hole = undefined;
    this.disconnect();
    if (!this.#server.listening) await listen(this.#server, this.port);
  }

  /** Ends every connection. */
  disconnect(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async #handle(incoming: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    const request = Object.assign(incoming, { url: incoming.url ?? "/" });
    const exchange: Exchange = {
      request,
      response,
      ask: (changes) => this.#ask(request, response, changes),
      reset: () => this.#reset(request.socket.remotePort),
    };
    try {
      if (this.#guard !== undefined && (await this.#guard(exchange)) !== true) return;
      const fault = this.#fault;
      if (fault?.filter(request) === true) {
        fault.count++;
        await fault.answer(exchange);
      } else {
        await relay(exchange);
      }
    } catch {
      response.destroy();
    }
  }

  #ask(
    request: Exchange["request"],
    response: http.ServerResponse,
    { headers = request.headers, url = request.url }: Parameters<Exchange["ask"]>[0] = {},
  ): Promise<http.IncomingMessage> {
    const { promise, resolve, reject } = Promise.withResolvers<http.IncomingMessage>();
    const asked = http.request({
      ...{ host: "127.0.0.1", port: this.#options.target, path: url, headers },
      method: request.method,
      agent: this.#agent,
    });
    asked.on("response", resolve).on("error", reject);
    response.on("close", () => asked.destroy());
    request.pipe(asked);
    return promise;
  }

  // The socket of a request may be that of TLS, which cannot reset anything.
  #reset(remotePort: number | undefined): void {
    for (const socket of this.#sockets) {
      if (socket.remotePort === remotePort) socket.resetAndDestroy();
    }
  }

  async #close(): Promise<void> {
    await this.recover();
    await this.refuse();
    this.#agent.destroy();
  }
}

/** Passes a request and its answer on as they are. */
async function relay({ ask, response }: Exchange): Promise<void> {
  const answer = await ask();
  response.writeHead(answer.statusCode ?? 502, answer.headers);
  answer.on("error", () => response.destroy());
  answer.pipe(response);
}

function listen(server: http.Server, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", () => {
      server.off("error", reject);
      resolve();
    });
  });
}
