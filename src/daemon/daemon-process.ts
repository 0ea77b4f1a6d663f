/** A daemon's process, as its keeper sees it. */
import { spawn, type ChildProcess } from "node:child_process";
import type { Socket } from "node:net";
import { parseDaemonMessage, type KeeperMessage } from "./keeper-protocol.ts";
import { isUndead } from "./process-state.ts";

/** How a daemon ended. */
export interface DaemonEnd {
  pid: number;
  code: number | null;
  signal: NodeJS.Signals | null;
  /** For how many milliseconds it served; 0 if it did not come so far. */
  servedMs: number;
  /** It was told to end. */
  asked: boolean;
  /** Another daemon has the lock. */
  locked: boolean;
  /** The FUSE session has ended: its descriptor is of no use any more. */
  over: boolean;
  /** Connections that were passed to it and that it did not get. */
  unaccepted: Socket[];
}

/** What {@link DaemonProcess} takes. */
export interface DaemonProcessOptions {
  /** Program and arguments. */
  command: readonly string[];
  /** /dev/fuse and the lock, for the descriptors that the protocol names. */
  device: number;
  lock: number;
  onReady: (daemon: DaemonProcess) => void;
}

/**
 * How long a daemon may take to accept a connection before that is passed again: a daemon that is out
 * of descriptors does not get it.
 */
const acceptMs = 2_000;
/** How often it is looked whether the daemon is dead although its end is not told. */
const lookMs = 250;

/** One run of the daemon, from its start to its end. */
export class DaemonProcess {
  /** Whether its code could be loaded; it waits for {@link DaemonProcess.go} then. */
  readonly loaded: Promise<boolean>;
  /** How it ended. */
  readonly ended: Promise<DaemonEnd>;
  readonly #child: ChildProcess;
  readonly #loaded = Promise.withResolvers<boolean>();
  readonly #onReady: (daemon: DaemonProcess) => void;
  readonly #passing = new Map<number, Socket>();
  #passed = 0;
  #readyAt: number | undefined;
  #asked = false;
  #locked = false;
  #over = false;

  constructor(options: DaemonProcessOptions) {
    const { command, device, lock, onReady } = options;
    const [program = "", ...args] = command;
    this.#onReady = onReady;
    this.#child = spawn(program, args, {
      // A heap for each of its threads would keep much of what one of them has freed.
      env: { MALLOC_ARENA_MAX: "1", ...process.env },
      stdio: ["ignore", "inherit", "inherit", device, lock, "ipc"],
    });
    this.loaded = this.#loaded.promise;
    this.ended = this.#untilEnded();
    void this.ended.then(() => this.#loaded.resolve(false));
    this.#child.on("message", (message) => this.#onMessage(message));
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** Has it take over; the one before must have ended. */
  go(): void {
    this.#send({ kind: "go" });
  }

  /** Passes a connection on. */
  pass(connection: Socket): void {
    const id = ++this.#passed;
    this.#passing.set(id, connection);
    this.#passAgain(id, connection);
  }

  /** Tells it to end, and ends it if it has not done so in time. */
  async end(kind: "stop" | "detach", milliseconds: number): Promise<DaemonEnd> {
    this.#asked = true;
    this.#send({ kind });
    const killer = setTimeout(() => this.#child.kill("SIGKILL"), milliseconds);
    try {
      return await this.ended;
    } finally {
      clearTimeout(killer);
    }
  }

  /** Ends it at once. */
  kill(): void {
    this.#child.kill("SIGKILL");
  }

  async #untilEnded(): Promise<DaemonEnd> {
    // What it said before it died may arrive after its end.
    const silent = new Promise((resolve) => this.#child.once("disconnect", resolve));
    const undead = this.#untilUndead();
    const end = await Promise.race([
      undead.promise,
      new Promise<[number | null, NodeJS.Signals | null]>((resolve) => {
        this.#child.once("exit", (...end) => resolve(end));
        // It could not even be started.
        this.#child.once("error", () => resolve([1, null]));
      }),
    ]);
    undead.stop();
    if (end === undefined) {
      // The channel is among the files that it keeps.
      if (this.#child.connected) this.#child.disconnect();
      return this.#end(null, "SIGKILL");
    }
    if (this.#child.connected) await silent;
    return this.#end(...end);
  }

  /**
   * A thread that waits for an answer of the session in the kernel, as mount(2) does, outlives its
   * process; the end of the process is told only after that of the thread. But only the next daemon
   * can give the answer.
   */
  #untilUndead(): { promise: Promise<undefined>; stop(): void } {
    const { promise, resolve } = Promise.withResolvers<undefined>();
    let looks = 0;
    const timer = setInterval(() => {
      // Every process is in this state for a moment, before its parent has learned of its end.
      looks = isUndead(this.pid) ? looks + 1 : 0;
      if (looks > 1) resolve(undefined);
    }, lookMs);
    return { promise, stop: () => clearInterval(timer) };
  }

  #onMessage(value: unknown): void {
    const message = parseDaemonMessage(value);
    switch (message?.kind) {
      case undefined:
        return;
      case "loaded":
        this.#loaded.resolve(true);
        return;
      case "locked":
        this.#locked = true;
        return;
      case "accepted":
        // The copy here; the daemon has its own.
        this.#passing.get(message.id)?.destroy();
        this.#passing.delete(message.id);
        return;
      case "ready":
        this.#readyAt = performance.now();
        this.#onReady(this);
        return;
      case "over":
        this.#over = true;
        return;
    }
  }

  #passAgain(id: number, connection: Socket): void {
    this.#send({ kind: "connection", id }, connection);
    setTimeout(() => {
      const waits = this.#passing.get(id) === connection && !connection.destroyed;
      if (waits && this.#child.connected) this.#passAgain(id, connection);
    }, acceptMs).unref();
  }

  #send(message: KeeperMessage, connection?: Socket): void {
    // It may have died; its end tells.
    this.#child.send(message, connection, { keepOpen: true }, () => {});
  }

  #end(code: number | null, signal: NodeJS.Signals | null): DaemonEnd {
    return {
      ...{ pid: this.pid, code, signal },
      servedMs: this.#readyAt === undefined ? 0 : Math.round(performance.now() - this.#readyAt),
      ...{ asked: this.#asked, locked: this.#locked, over: this.#over },
      unaccepted: [...this.#passing.values()],
    };
  }
}
