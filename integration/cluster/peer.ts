/**
 * What nodes reach a server through: it relays TCP connections, delays what is sent, and keeps
 * account of each node.
 */
import {
  createConnection,
  createServer,
  type AddressInfo,
  type Server,
  type Socket,
} from "node:net";
import type { Sandbox } from "../harness/sandbox.ts";

/** Bytes of one connection that may be under way before the sender is paused. */
const UNDER_WAY_MAX = 8 * 1024 * 1024;

/** One HTTP request of a node. */
export interface PeerRequest {
  method: string;
  path: string;
  userAgent: string;
}

/** What passed between one node and the server. */
export interface Traffic {
  requests: PeerRequest[];
  /** Bytes that went to the node, and that came from it. */
  received: number;
  sent: number;
}

/** A server as nodes see it. */
export class Peer {
  /** `address:port`. */
  readonly host: string;
  readonly #server: Server;
  readonly #traffic = new Map<string, Traffic>();
  readonly #delays = new Map<string, number>();
  readonly #sockets = new Set<Socket>();

  private constructor(server: Server, host: string) {
    this.#server = server;
    this.host = host;
  }

  /** Listens on an address and relays to a port of `target`. */
  static async open(
    sandbox: Sandbox,
    { address, target }: { address: string; target: { host: string; port: number } },
  ): Promise<Peer> {
    const server = createServer({ noDelay: true });
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(0, address, resolve);
    });
    const peer = new Peer(server, `${address}:${(server.address() as AddressInfo).port}`);
    server.on("connection", (socket) => {
      peer.#relay(socket, createConnection({ ...target, noDelay: true }));
    });
    sandbox.onClose("peer", () => peer.#close());
    return peer;
  }

  /** What passed since the last reset between a node and the server. */
  traffic(address: string): Traffic {
    let traffic = this.#traffic.get(address);
    if (traffic === undefined) {
      traffic = { requests: [], received: 0, sent: 0 };
      this.#traffic.set(address, traffic);
    }
    return traffic;
  }

  /** Forgets what passed between a node and the server. */
  reset(address: string): void {
    this.#traffic.delete(address);
  }

  /**
   * Milliseconds that are added to each round trip of a node. A new connection costs one round trip
   * more, as handshakes do.
   */
  setDelay(address: string, milliseconds: number): void {
    this.#delays.set(address, milliseconds);
  }

  #relay(node: Socket, server: Socket): void {
    const address = node.remoteAddress ?? "";
    const delay = (): number => this.#delays.get(address) ?? 0;
    let opening = delay();
    for (const [socket, other] of [
      [node, server],
      [server, node],
    ] as const) {
      this.#sockets.add(socket);
      socket.on("error", () => other.destroy());
      socket.on("close", () => {
        this.#sockets.delete(socket);
      });
    }
    delayed(node, server, {
      // All of a round trip's on the way there: a request is less work to hold back than an answer.
      delay: () => {
        const milliseconds = opening + delay();
        opening = 0;
        return milliseconds;
      },
      onChunk: (chunk) => {
        const traffic = this.traffic(address);
        traffic.sent += chunk.length;
        const request = requestOf(chunk);
        if (request !== undefined) traffic.requests.push(request);
      },
    });
    delayed(server, node, {
      delay: () => 0,
      onChunk: (chunk) => {
        this.traffic(address).received += chunk.length;
      },
    });
  }

  async #close(): Promise<void> {
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => {
        resolve();
      });
    });
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }
}

/**
 * Copies what one socket receives to another, in order, each chunk not before its delay is over.
 * What is dropped because the other one went away is not told.
 */
function delayed(
  source: Socket,
  target: Socket,
  { delay, onChunk }: { delay: () => number; onChunk: (chunk: Buffer) => void },
): void {
  const waiting: { chunk: Buffer | undefined; due: number }[] = [];
  let bytes = 0;
  const flush = (): void => {
    const now = performance.now();
    for (let [first] = waiting; first !== undefined && first.due <= now; [first] = waiting) {
      waiting.shift();
      if (first.chunk === undefined) target.end();
      else if (!target.destroyed) {
        bytes -= first.chunk.length;
        onChunk(first.chunk);
        target.write(first.chunk);
      }
    }
    const [next] = waiting;
    if (next !== undefined) callIn(next.due - now, flush);
    if (bytes + target.writableLength <= UNDER_WAY_MAX) source.resume();
  };
  const enqueue = (chunk: Buffer | undefined): void => {
    const milliseconds = delay();
    waiting.push({ chunk, due: performance.now() + milliseconds });
    bytes += chunk?.length ?? 0;
    if (waiting.length > 1) return;
    if (milliseconds > 0) callIn(milliseconds, flush);
    else flush();
  };
  source.on("data", (chunk: Buffer) => {
    enqueue(chunk);
    if (bytes + target.writableLength > UNDER_WAY_MAX) source.pause();
  });
  source.on("end", () => {
    enqueue(undefined);
  });
  target.on("drain", () => source.resume());
}

/** Timers know whole milliseconds and are late by up to two: too coarse for what is left of a delay. */
function callIn(milliseconds: number, call: () => void): void {
  if (milliseconds > 2) setTimeout(call, milliseconds - 2);
  else setImmediate(call);
}

/** The request that begins with a chunk. Clients do not send one before the last was answered. */
function requestOf(chunk: Buffer): PeerRequest | undefined {
  const head = chunk.toString("latin1", 0, 8192);
  const [, method, path] = /^([A-Z]+) (\S+) HTTP\/1\.1\r\n/.exec(head) ?? [];
  if (method === undefined || path === undefined) return undefined;
  return { method, path, userAgent: /\r\nuser-agent: (.*)\r\n/i.exec(head)?.[1] ?? "" };
}
