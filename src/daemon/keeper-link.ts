/** The keeper, as a daemon sees it. */
import type { Socket } from "node:net";
import { parseKeeperMessage, type DaemonMessage } from "./keeper-protocol.ts";

/** Why a daemon is to end. */
export type EndOrder = "stop" | "detach";

/** The channel to the keeper of this process. There is one of these in a process. */
export class KeeperLink {
  /** Resolves when the daemon may take over; false if that is not going to happen. */
  readonly go: Promise<boolean>;
  /** Resolves when the daemon is to end. */
  readonly end: Promise<EndOrder>;
  /** Resolves when the keeper has died, though nobody is to end. */
  readonly lost: Promise<void>;
  readonly #go = Promise.withResolvers<boolean>();
  readonly #end = Promise.withResolvers<EndOrder>();
  readonly #lost = Promise.withResolvers<void>();
  readonly #accepted = new Set<number>();
  readonly #onConnection: (connection: Socket) => void;

  /** From now on signals decide, those of a new keeper among them. */
  readonly #onDisconnect = (): void => {
    this.#go.resolve(false);
    for (const signal of ["SIGTERM", "SIGINT"] as const) {
      process.on(signal, () => this.#end.resolve("stop"));
    }
    process.on("SIGUSR2", () => this.#end.resolve("detach"));
    this.#lost.resolve();
  };

  constructor(onConnection: (connection: Socket) => void) {
    this.#onConnection = onConnection;
    this.go = this.#go.promise;
    this.end = this.#end.promise;
    this.lost = this.#lost.promise;
    process.on("message", (message, connection) =>
      this.#onMessage(message, connection as Socket | undefined),
    );
    process.once("disconnect", this.#onDisconnect);
    // A terminal and some service managers send these to all processes; the keeper decides.
    for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) process.on(signal, ignore);
  }

  /** Tells the keeper, if there still is one. */
  tell(message: DaemonMessage): void {
    if (process.connected) process.send?.(message, undefined, {}, ignore);
  }

  /** Lets this process end. */
  close(): void {
    process.off("disconnect", this.#onDisconnect);
    if (process.connected) process.disconnect();
  }

  #onMessage(value: unknown, connection: Socket | undefined): void {
    const message = parseKeeperMessage(value);
    switch (message?.kind) {
      case undefined:
        return;
      case "go":
        this.#go.resolve(true);
        return;
      case "connection":
        if (connection === undefined) return;
        this.tell({ kind: "accepted", id: message.id });
        // The keeper may have passed it again before it knew.
        if (this.#accepted.has(message.id)) connection.destroy();
        else this.#onConnection(connection);
        this.#accepted.add(message.id);
        return;
      case "stop":
      case "detach":
        this.#go.resolve(false);
        this.#end.resolve(message.kind);
        return;
    }
  }
}

function ignore(): void {
  // Nothing is to be done.
}
