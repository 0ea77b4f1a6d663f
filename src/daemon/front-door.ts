/**
 * The socket that clients connect to. It outlives the daemons: a client that connects while there is
 * none waits instead of failing.
 */
import { createServer, type Server, type Socket } from "node:net";
import { PrivateSocket } from "../base/private-socket.ts";

/** Takes a connection over. */
export type Receiver = (connection: Socket) => void;

/** Connections that wait for a daemon; there is one containerd, with very few. */
const waitingMax = 256;

/** Accepts connections and passes them on, unread. */
export class FrontDoor {
  readonly #server: Server;
  readonly #socket: PrivateSocket;
  readonly #waiting = new Set<Socket>();
  #receiver: Receiver | undefined;

  private constructor(server: Server, socket: PrivateSocket) {
    this.#server = server;
    this.#socket = socket;
    server.on("connection", (connection) => {
      // Nobody reads it here: an error can only mean that the client is gone.
      connection.on("error", () => this.#waiting.delete(connection));
      this.#onConnection(connection);
    });
  }

  /**
   * Listens at `path`, in place of whoever listens there.
   * @throws ClipError ARGUMENT_INVALID, SYSTEM_CALL
   */
  static async open(path: string): Promise<FrontDoor> {
    const server = createServer({ pauseOnConnect: true });
    const socket = await PrivateSocket.bind(
      path,
      (temporary) =>
        new Promise((resolve, reject) => {
          server.once("error", reject);
          server.listen(temporary, resolve);
        }),
    );
    return new FrontDoor(server, socket);
  }

  /** Passes connections on from now on, those that wait first; to nobody if there is no receiver. */
  passTo(receiver: Receiver | undefined): void {
    this.#receiver = receiver;
    if (receiver === undefined) return;
    for (const connection of this.#waiting) receiver(connection);
    this.#waiting.clear();
  }

  /** Takes connections back that a receiver did not get. */
  takeBack(connections: readonly Socket[]): void {
    for (const connection of connections) this.#onConnection(connection);
  }

  async close(): Promise<void> {
    this.#receiver = undefined;
    for (const connection of this.#waiting) connection.destroy();
    this.#waiting.clear();
    this.#server.close();
    await this.#socket.close();
  }

  #onConnection(connection: Socket): void {
    if (this.#receiver !== undefined) this.#receiver(connection);
    else if (this.#waiting.size < waitingMax) this.#waiting.add(connection);
    else connection.destroy();
  }
}
