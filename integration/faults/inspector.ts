/**
 * Runs code inside the threads of a daemon, through the inspector of Node: so a test makes a thread
 * fail that knows nothing of tests.
 */
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import type { ClipDaemon } from "../harness/clip.ts";

/** Environment with which a daemon can be inspected; each process gets a port of its own. */
export const inspectable = { NODE_OPTIONS: "--inspect=127.0.0.1:0" };

interface Message {
  id?: number;
  method?: string;
  params?: { sessionId?: string; message?: string; workerInfo?: { url: string; title: string } };
}

/** A connection to the main thread of the daemon that serves now, and through it to the others. */
export class Inspector {
  readonly #socket: WebSocket;
  readonly #threads = new Map<string, string>();
  #lastId = 0;

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.addEventListener("message", ({ data }) => this.#onMessage(String(data)));
  }

  /** Connects to the daemon that was started last. */
  static async connect(clip: ClipDaemon): Promise<Inspector> {
    const address = [...clip.log().matchAll(/Debugger listening on (ws:\S+)/g)].at(-1)?.[1];
    if (address === undefined) throw new Error("the daemon cannot be inspected");
    const socket = new WebSocket(address);
    await once(socket, "open");
    const inspector = new Inspector(socket);
    inspector.#send({ method: "NodeWorker.enable", params: { waitForDebuggerOnStart: false } });
    return inspector;
  }

  /** Runs code in every thread whose name or module has this in it; waits until there is one. */
  async runIn(name: string, expression: string): Promise<void> {
    for (let tries = 0; ; tries++) {
      const sessions = [...this.#threads].filter(([, known]) => known.includes(name));
      for (const [sessionId] of sessions) this.#evaluate(sessionId, expression);
      if (sessions.length > 0) return;
      if (tries === 400) throw new Error(`there is no thread ${name}`);
      await sleep(10);
    }
  }

  close(): void {
    this.#socket.close();
  }

  #evaluate(sessionId: string, expression: string): void {
    const message = { id: ++this.#lastId, method: "Runtime.evaluate", params: { expression } };
    this.#send({
      method: "NodeWorker.sendMessageToWorker",
      params: { sessionId, message: JSON.stringify(message) },
    });
  }

  #send(message: object): void {
    this.#socket.send(JSON.stringify({ id: ++this.#lastId, ...message }));
  }

  #onMessage(data: string): void {
    const { method, params } = JSON.parse(data) as Message;
    const sessionId = params?.sessionId ?? "";
    if (method === "NodeWorker.attachedToWorker") {
      const { title = "", url = "" } = params?.workerInfo ?? {};
      this.#threads.set(sessionId, `${title} ${url}`);
    }
    if (method === "NodeWorker.detachedFromWorker") this.#threads.delete(sessionId);
  }
}
