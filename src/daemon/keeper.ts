/**
 * The keeper: holds what must not be lost when the daemon dies - the FUSE session, the lock and the
 * socket that clients connect to - and starts the daemon again. It serves no request and loads as
 * little as possible, so there is little that it could die of.
 */
import { closeSync, openSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { ClipError, describeError } from "../base/errors.ts";
import type { Log } from "../telemetry/log.ts";
import { DaemonProcess, type DaemonEnd } from "./daemon-process.ts";
import { FrontDoor } from "./front-door.ts";
import { isDead, isUndead } from "./process-state.ts";
import { takeFromOrphan, takeStored, type ProcessFiles } from "./inherited.ts";
import { RestartDelays } from "./restart-delays.ts";

/** What {@link Keeper} takes. */
export interface KeeperOptions {
  /** Both exist, and have no symlinks in their paths. */
  root: string;
  files: ProcessFiles;
  /** Where clients connect. */
  address: string;
  /** Program and arguments of a daemon. */
  command: readonly string[];
  /** The service manager stores the descriptor of the session: ending leaves everything mounted. */
  stored: boolean;
  /** Called once, when the first daemon serves. */
  onReady: () => void;
  log: Log;
}

/** Longest time for a daemon to end when it is asked to. */
const endMs = 15_000;
/** Longest time for the code of a daemon to load that is to replace another. */
const loadMs = 60_000;
/** How long another daemon may hold the lock: one that lost its keeper is recognised by then. */
const lockMs = 3_000;
const lockRetryMs = 100;

/** Runs daemons, one after the other; see the module. */
export class Keeper {
  readonly #options: KeeperOptions;
  readonly #delays = new RestartDelays();
  readonly #stopping = new AbortController();
  #device = -1;
  #lock = -1;
  #door: FrontDoor | undefined;
  #closing: Promise<void> | undefined;
  #current: DaemonProcess | undefined;
  /** Waits for the current one to end. */
  #next: DaemonProcess | undefined;
  /** Someone may be using the session: from then on there is no giving up. */
  #inUse = false;
  #wasReady = false;
  #replacing = false;
  #failure: unknown;

  constructor(options: KeeperOptions) {
    this.#options = options;
  }

  /**
   * Keeps a daemon running until {@link Keeper.stop}.
   * @throws ClipError when the first daemon cannot start, or does not stop as it should
   */
  async run(): Promise<void> {
    const { root, files, stored } = this.#options;
    await this.#takeOver();
    try {
      await this.#keep();
    } finally {
      await (this.#closing ?? this.#door?.close());
      // What a daemon leaves that died in the end, or before it served for the first time.
      if (!stored || !this.#inUse) await this.#unmount(root);
      if (this.#wasReady) await files.remove();
      closeSync(this.#device);
      closeSync(this.#lock);
    }
  }

  /** Has the daemon stop, and {@link Keeper.run} return. */
  stop(): void {
    if (this.#stopping.signal.aborted) return;
    this.#stopping.abort();
    // First of all: a client that finds no socket waits for one, one that is cut off gives up.
    this.#closing = this.#door?.close();
    this.#next?.kill();
    void this.#current?.end(this.#options.stored ? "detach" : "stop", endMs);
  }

  /**
   * Replaces the daemon by one that is started from what is installed now. Nobody notices but those
   * whose calls take longer than a daemon waits for.
   */
  async replace(): Promise<void> {
    const { log } = this.#options;
    if (this.#replacing || this.#stopping.signal.aborted) return;
    this.#replacing = true;
    try {
      const next = this.#start();
      log.info({ pid: next.pid }, "a new daemon is loaded to replace the current one");
      const timeout = setTimeout(() => next.kill(), loadMs);
      const loaded = await next.loaded;
      clearTimeout(timeout);
      if (!loaded || this.#stopping.signal.aborted) {
        next.kill();
        log.error({}, "the new daemon cannot be loaded: the current one stays");
        return;
      }
      this.#next = next;
      this.#door?.passTo(undefined);
      await this.#current?.end("detach", endMs);
    } finally {
      this.#replacing = false;
    }
  }

  async #takeOver(): Promise<void> {
    const { root, files, log } = this.#options;
    const stored = takeStored(process.env);
    const orphan = stored === undefined ? await takeFromOrphan(root, files, log) : undefined;
    this.#device = stored ?? orphan?.device ?? openDevice();
    this.#lock = orphan?.lock ?? openLock(root);
    this.#inUse = stored !== undefined || orphan !== undefined;
    if (this.#inUse) log.info({}, "an earlier FUSE session goes on");
  }

  async #keep(): Promise<void> {
    const startedAt = performance.now();
    while (!this.#stopping.signal.aborted) {
      const end = await this.#runDaemon();
      if (this.#failure !== undefined) throw this.#failure;
      if (this.#stopping.signal.aborted) checkStop(end);
      else if (end.locked) await this.#awaitLock(performance.now() - startedAt);
      else if (end.over) this.#replaceDevice();
      else if (!end.asked) await this.#afterDeath(end);
    }
  }

  async #runDaemon(): Promise<DaemonEnd> {
    const daemon = this.#next ?? this.#start();
    this.#next = undefined;
    this.#current = daemon;
    daemon.go();
    const end = await daemon.ended;
    this.#current = undefined;
    this.#door?.passTo(undefined);
    this.#door?.takeBack(end.unaccepted);
    return end;
  }

  #start(): DaemonProcess {
    const { command, log } = this.#options;
    const daemon = new DaemonProcess({
      ...{ command, device: this.#device, lock: this.#lock },
      onReady: (ready) => void this.#onReady(ready),
    });
    log.debug({ pid: daemon.pid }, "a daemon is started");
    return daemon;
  }

  async #onReady(daemon: DaemonProcess): Promise<void> {
    const { files, address, onReady, log } = this.#options;
    log.info({ pid: daemon.pid }, "the daemon serves");
    try {
      files.write("keeper", process.pid);
      files.write("daemon", daemon.pid);
    } catch (error) {
      // The disk may be full. Only an upgrade and a next keeper would need them.
      log.error({ error: describeError(error) }, "the process numbers cannot be written");
    }
    this.#inUse = true;
    try {
      this.#door ??= await FrontDoor.open(address);
    } catch (error) {
      this.#failure = error;
      await daemon.end("stop", endMs);
      return;
    }
    if (this.#current === daemon) this.#door?.passTo((connection) => daemon.pass(connection));
    if (this.#wasReady) return;
    this.#wasReady = true;
    onReady();
  }

  async #afterDeath(end: DaemonEnd): Promise<void> {
    const { pid, code, signal, servedMs } = end;
    if (!this.#inUse && code !== null) {
      throw new ClipError("CLOSED", "the daemon could not start", {
        hint: "It has said why, above.",
      });
    }
    const delayMs = this.#delays.next(servedMs);
    const fields = { pid, code, signal, servedMs, delayMs };
    this.#options.log.error(fields, "the daemon has died, another takes its place");
    await delay(delayMs, undefined, { signal: this.#stopping.signal }).catch(() => {});
  }

  /** Another daemon has the lock: one that has just lost its keeper, or that of another keeper. */
  async #awaitLock(waitedMs: number): Promise<void> {
    const { root, files, log } = this.#options;
    if (waitedMs > lockMs) {
      throw new ClipError("CONFIG_INVALID", `another clip daemon uses ${root}`, {
        hint: "Stop it, or give this one a root and a state directory of its own.",
      });
    }
    await delay(lockRetryMs);
    if (isUndead(files.read("daemon")) && isDead(files.read("keeper"))) {
      log.warn({}, "a thread of a dead daemon has the lock, until its request is answered");
      rmSync(join(root, "lock"));
      closeSync(this.#lock);
      this.#lock = openLock(root);
      return;
    }
    const inherited = await takeFromOrphan(root, files, log);
    if (inherited === undefined) return;
    closeSync(this.#device);
    closeSync(this.#lock);
    this.#device = inherited.device;
    this.#lock = inherited.lock;
    this.#inUse = true;
  }

  #replaceDevice(): void {
    this.#options.log.error({}, "the FUSE session has ended, a new one takes its place");
    closeSync(this.#device);
    this.#device = openDevice();
  }

  async #unmount(root: string): Promise<void> {
    // Loaded only here, to keep the keeper small.
    const { unmountBelow } = await import("./unmount.ts");
    await unmountBelow(root, this.#lock, this.#options.log);
  }
}

function openLock(root: string): number {
  return openSync(join(root, "lock"), "a", 0o600);
}

function openDevice(): number {
  try {
    return openSync("/dev/fuse", "r+");
  } catch (error) {
    throw new ClipError("SYSTEM_CALL", "/dev/fuse cannot be opened", {
      hint: "Load the kernel module fuse, and run as root.",
      cause: error,
    });
  }
}

/** @throws ClipError CLOSED unless the daemon stopped as it was told to */
function checkStop({ code, signal }: DaemonEnd): void {
  if (code === 0) return;
  throw new ClipError(
    "CLOSED",
    `the daemon did not stop cleanly: ${signal ?? `exit code ${code}`}`,
  );
}
