/** The one FUSE mount of a node: its connection, its threads, and the reads that they hand over. */
import { closeSync, writevSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { ClipError, describeError } from "../base/errors.ts";
import { MNT_DETACH, unmount } from "../os/libc.ts";
import { silentLog, type Log } from "../telemetry/log.ts";
import {
  abortConnection,
  findConnection,
  openConnection,
  restoreMount,
  type FuseConnection,
} from "./connection.ts";
import { isConnectionOver, isForgotten } from "./device.ts";
import { isBeingKilled } from "./killed.ts";
import { checkLayer, type FuseLayer } from "./layer.ts";
import type { ThreadMessage } from "./messages.ts";
import type { MountEntry } from "../os/mount-table.ts";
import { opcodeName } from "./opcodes.ts";
import { PendingReads, type FuseReadRequest } from "./pending.ts";
import { encodeResend } from "./protocol.ts";
import { FuseThreads } from "./threads.ts";

export { attachConnection, openConnection, type FuseConnection } from "./connection.ts";
export { blobName, treeName, type FuseLayer } from "./layer.ts";
export type { FuseReadRequest } from "./pending.ts";

/** What {@link openFuseSession} takes. */
export interface FuseSessionOptions {
  /** Where the layers appear; created if missing. An absolute path. */
  mountpoint: string;
  /** Called on the main thread for bytes that are not present locally. */
  onRead(request: FuseReadRequest): void;
  /** How many threads serve requests. */
  threads?: number;
  /** Layers to serve from the first request on; after taking a session over, all of them. */
  layers?: readonly FuseLayer[];
  /** How far the kernel reads ahead in files of trees; 1024 or more for reads of 1 MiB. */
  readAheadKilobytes?: number;
  /**
   * Spares trees an OPEN per open file, at the price that blobs are cached twice; for sessions
   * that are used for trees only.
   */
  noOpen?: boolean;
  /**
   * /dev/fuse of a session that an earlier process began and that is still mounted. Its requests
   * that were in flight are sent again. The descriptor stays the caller's. `fresh`: it was only
   * mounted, see {@link attachConnection}.
   */
  resume?: { descriptor: number; fresh?: boolean };
  /** Called when the mount has ended without {@link FuseSession.close}: unmounted or aborted. */
  onEnd?(): void;
  log?: Log;
}

const defaultThreads = 2;
const defaultReadAheadKilobytes = 4096;
/** Bound of the kernel's and the threads' first answers. */
const startMilliseconds = 30_000;
/** How often it is looked whether the mount is still there. */
const mountCheckMilliseconds = 5_000;
/** Bound of every step of closing. */
const stopMilliseconds = 1000;
/** More buffers than this are joined: writev(2) takes 1024 at most, and has to take all at once. */
const writeBuffersMax = 512;

/**
 * Mounts the session, or takes over one that is mounted.
 * @throws ClipError SYSTEM_CALL, TIMEOUT, ARGUMENT_INVALID
 */
export async function openFuseSession(options: FuseSessionOptions): Promise<FuseSession> {
  for (const layer of options.layers ?? []) checkLayer(layer);
  const { resume, mountpoint } = options;
  const connection = await (resume === undefined
    ? openConnection(mountpoint)
    : findConnection(mountpoint, resume.descriptor));
  const session = new FuseSession(options, connection);
  try {
    await session.start();
    return session;
  } catch (error) {
    await (resume === undefined ? session.close() : session.detach());
    throw error;
  }
}

/** A mounted FUSE session; made by {@link openFuseSession}. */
export class FuseSession {
  readonly #options: FuseSessionOptions;
  readonly #descriptor: number;
  readonly #mount: MountEntry;
  readonly #log: Log;
  readonly #threads: FuseThreads;
  readonly #pending: PendingReads;
  readonly #initialized = Promise.withResolvers<void>();
  readonly #onExit = (): void => this.#threads.stopNow(stopMilliseconds);
  #closing: Promise<void> | undefined;
  #mountCheck: NodeJS.Timeout | undefined;
  #checking = Promise.resolve();
  #ended = false;
  #served = true;

  constructor(options: FuseSessionOptions, connection: FuseConnection) {
    const { descriptor, mount } = connection;
    this.#options = options;
    this.#descriptor = descriptor;
    this.#mount = mount;
    this.#log = (options.log ?? silentLog).child({ part: "fuse" });
    // Nobody waits for it in a session that is taken over, which may end all the same.
    this.#initialized.promise.catch(() => {});
    this.#threads = new FuseThreads({
      descriptor,
      count: options.threads ?? defaultThreads,
      noOpen: options.noOpen ?? false,
      log: this.#log,
      onMessage: (message) => this.#onMessage(message),
      isPending: (unique) => this.#pending.has(unique),
      onLost: (unique) => this.#pending.failLost(unique),
    });
    this.#pending = new PendingReads({
      onRead: (request) => options.onRead(request),
      write: (reply) => this.#write(reply),
      isBeingKilled,
      log: this.#log,
    });
  }

  /** Starts to serve; resolves when the kernel can send requests. */
  async start(): Promise<void> {
    // A thread that blocks in read(2) would keep the process from ending.
    process.once("exit", this.#onExit);
    for (const layer of this.#options.layers ?? []) this.#threads.addLayer(layer);
    const { resume } = this.#options;
    if (resume === undefined || resume.fresh === true) {
      this.#threads.start();
      await this.#waitForInit();
    } else {
      this.#resend();
      this.#threads.start();
    }
    await this.setReadAhead(this.#options.readAheadKilobytes ?? defaultReadAheadKilobytes);
    this.#mountCheck = setInterval(() => {
      this.#checking = this.#checking.then(() => this.#checkMount());
    }, mountCheckMilliseconds).unref();
  }

  /**
   * Shows a layer, from now on.
   * @throws ClipError ARGUMENT_INVALID if it is not a proper one or is there already
   */
  addLayer(layer: FuseLayer): void {
    checkLayer(layer);
    if (this.#threads.hasLayer(layer.number)) {
      throw new ClipError("ARGUMENT_INVALID", `layer ${layer.number} is served already`);
    }
    this.#threads.addLayer(layer);
  }

  /**
   * Shows a layer otherwise than before: with other spans, another file, or another image of the
   * same tree. Nobody sees it missing.
   * @throws ClipError ARGUMENT_INVALID if it is not a proper one
   */
  replaceLayer(layer: FuseLayer): void {
    checkLayer(layer);
    this.#threads.addLayer(layer);
  }

  /**
   * Stops to show a layer. What still has it open gets ESTALE; reads of it that were handed over
   * stay with whoever took them.
   */
  removeLayer(number: number): void {
    this.#threads.removeLayer(number);
  }

  /** How many requests there were, by the name of their opcode; zeros are left out. */
  requestCounts(): Record<string, number> {
    const counts: Record<string, number> = {};
    this.#threads.counts().forEach((count, code) => {
      const name = opcodeName(code);
      if (count > 0) counts[name] = (counts[name] ?? 0) + count;
    });
    return counts;
  }

  /** How many reads wait for bytes from elsewhere. */
  get pendingReads(): number {
    return this.#pending.size;
  }

  /** Sets how far the kernel reads ahead in files of trees. */
  async setReadAhead(kilobytes: number): Promise<void> {
    const file = `/sys/class/bdi/${this.#mount.device}/read_ahead_kb`;
    try {
      await writeFile(file, String(kilobytes));
    } catch (error) {
      // Slower, not wrong: /sys can be read-only in a container.
      this.#log.warn({ file, error: describeError(error) }, "readahead could not be set");
    }
  }

  /**
   * Unmounts and ends everything; what waits fails with EIO. Whoever still has files open gets
   * errors from then on.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /**
   * Stops to serve without an answer to what waits and leaves the mount in place, for another
   * process to resume the session on a copy of the descriptor.
   */
  detach(): Promise<void> {
    this.#closing ??= this.#detach();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const { mountpoint } = this.#mount;
    await this.#endChecks();
    this.#pending.failAll();
    if (!this.#ended) {
      // The threads still serve, since the kernel may ask something on the way.
      await unmount(mountpoint, MNT_DETACH).catch((error: unknown) => {
        this.#log.warn({ mountpoint, error: describeError(error) }, "unmounting failed");
      });
    }
    await this.#endThreads();
  }

  async #detach(): Promise<void> {
    await this.#endChecks();
    this.#pending.abandonAll();
    await this.#endThreads();
  }

  async #endChecks(): Promise<void> {
    clearInterval(this.#mountCheck);
    await this.#checking;
  }

  /** Whoever has a file open keeps the session alive when its mount is taken away. */
  async #checkMount(): Promise<void> {
    const { mountpoint } = this.#mount;
    try {
      if (this.#ended || !(await restoreMount(mountpoint, this.#descriptor))) return;
      this.#log.error({ mountpoint }, "the FUSE mount was taken away, and is there again");
    } catch (error) {
      if (this.#closing !== undefined) return;
      this.#log.error({ mountpoint, error: describeError(error) }, "the FUSE mount is gone");
      this.#onEnded();
    }
  }

  async #endThreads(): Promise<void> {
    const ended = await this.#threads.stop(stopMilliseconds);
    process.off("exit", this.#onExit);
    this.#served = false;
    if (ended) {
      // If this is the last descriptor it ends the connection, also if the mount is in use.
      if (this.#options.resume === undefined) closeSync(this.#descriptor);
      return;
    }
    // A thread hangs in local I/O and may still write to the descriptor: it has to stay open.
    this.#log.error({}, "a FUSE thread does not end, the connection is aborted");
    await abortConnection(this.#mount, this.#log);
  }

  async #waitForInit(): Promise<void> {
    const timer = setTimeout(() => {
      this.#initialized.reject(new ClipError("TIMEOUT", "the kernel did not begin the session"));
    }, startMilliseconds);
    try {
      await this.#initialized.promise;
    } finally {
      clearTimeout(timer);
    }
  }

  #onMessage(message: ThreadMessage): void {
    switch (message.kind) {
      case "initialized":
        this.#log.debug({ minor: message.minor }, "FUSE session begun");
        this.#initialized.resolve();
        return;
      case "read":
        this.#pending.add(message.read);
        return;
      case "interrupt":
        void this.#pending.interrupt(message.target, message.unique);
        return;
      case "fault": {
        const request = opcodeName(message.opcode);
        this.#log.error({ request, error: message.message }, "a FUSE request failed");
        return;
      }
      case "ended":
        this.#onEnded();
        return;
    }
  }

  #onEnded(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#initialized.reject(new ClipError("CLOSED", "the mount has ended"));
    this.#pending.failAll();
    if (this.#closing !== undefined) return;
    this.#log.error({ mountpoint: this.#mount.mountpoint }, "the FUSE mount has ended");
    this.#options.onEnd?.();
  }

  #resend(): void {
    try {
      writevSync(this.#descriptor, [encodeResend()]);
    } catch (error) {
      // Before Linux 6.9: requests that the earlier process had taken stay unanswered.
      this.#log.warn({ error: describeError(error) }, "requests in flight cannot be taken over");
    }
  }

  #write(reply: Buffer[]): void {
    // After closing the descriptor's number may belong to another file.
    if (!this.#served) return;
    try {
      const buffers = reply.length > writeBuffersMax ? [Buffer.concat(reply)] : reply;
      writevSync(this.#descriptor, buffers);
    } catch (error) {
      if (isForgotten(error) || isConnectionOver(error)) return;
      this.#log.error({ error: describeError(error) }, "a reply could not be written");
    }
  }
}
