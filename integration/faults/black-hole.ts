/** A port to which connections are begun and never made: SYN packets are dropped. */
import { connect, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { Worker } from "node:worker_threads";

// The kernel completes connections until the queue of those that nobody has accepted is full.
const script = `
  const { createServer } = require("node:net");
  const { parentPort, workerData } = require("node:worker_threads");
  const listening = () => {
    parentPort.postMessage("listening");
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  };
  createServer().listen({ ...workerData, backlog: 1 }, listening);
`;

/** How long a connection on this machine takes at most if it is made at all. */
const connectedMs = 250;

/** Swallows connections to a port of 127.0.0.1 until it is closed. */
export class BlackHole {
  readonly #worker: Worker;
  readonly #queued: Socket[];

  private constructor(worker: Worker, queued: Socket[]) {
    this.#worker = worker;
    this.#queued = queued;
  }

  /** Nobody may listen on the port. */
  static async open(port: number): Promise<BlackHole> {
    const address = { port, host: "127.0.0.1" };
    const worker = new Worker(script, { eval: true, workerData: address });
    await new Promise((resolve, reject) => {
      worker.once("message", resolve).once("error", reject);
    });
    const queued: Socket[] = [];
    for (let isFull = false; !isFull;) {
      const socket = connect(address);
      socket.on("error", () => {});
      queued.push(socket);
      const connected = new Promise<boolean>((resolve) => {
        socket.once("connect", () => resolve(true));
      });
      isFull = !(await Promise.race([connected, sleep(connectedMs, false)]));
    }
    return new BlackHole(worker, queued);
  }

  async close(): Promise<void> {
    for (const socket of this.#queued) socket.destroy();
    await this.#worker.terminate();
  }
}
