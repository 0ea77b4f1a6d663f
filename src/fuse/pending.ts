/** The READ requests that wait for bytes from elsewhere. */
import { constants } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { describeError, ClipError } from "../base/errors.ts";
import type { Log } from "../telemetry/log.ts";
import type { HandedRead } from "./outcome.ts";
import { putReplyHeader, replyHeaderBytes } from "./protocol.ts";

const { errno } = constants;

/** Bytes of a layer blob that someone waits for. */
export interface FuseReadRequest {
  /** Number of the layer. */
  layer: number;
  /** Where the bytes begin in the layer blob. */
  offset: number;
  /** How many there are, 1 to 1 MiB; inside the blob. */
  length: number;
  /** The kernel's number of the request, for the log; several parts of one READ share it. */
  unique: bigint;
  /** Fires when nobody waits any more: the reader was killed or the session has closed. */
  signal: AbortSignal;
  /**
   * Answers with exactly {@link FuseReadRequest.length} bytes, which are copied at once. Does
   * nothing if the request is settled already.
   * @throws ClipError ARGUMENT_INVALID if it is another number of bytes; the reader gets EIO
   */
  reply(data: Buffer | readonly Buffer[]): void;
  /** Answers with an errno (positive). Does nothing if the request is settled already. */
  fail(error: number): void;
}

/** What {@link PendingReads} needs. */
export interface PendingReadsOptions {
  /** Takes each part of a READ that is to be fetched. */
  onRead(request: FuseReadRequest): void;
  /** Writes a whole reply to the kernel; must not throw. */
  write(reply: Buffer[]): void;
  /** Whether a thread is about to die. */
  isBeingKilled(threadId: number): Promise<boolean>;
  log: Log;
}

/** How often it is looked whether an interrupted reader is being killed after all. */
const killPollMilliseconds = 100;
/** How long an INTERRUPT is put off whose request has not arrived yet. */
const interruptRetryMilliseconds = 2;

interface PendingRead {
  readonly read: HandedRead;
  readonly abort: AbortController;
  /** For each segment its bytes, once they are there. */
  readonly parts: (readonly Buffer[] | undefined)[];
  missing: number;
  interrupted: boolean;
}

/**
 * Owns every READ that was handed over, from then until it is answered, its reader is killed, or
 * the session closes: each gets exactly one reply.
 */
export class PendingReads {
  readonly #options: PendingReadsOptions;
  readonly #pending = new Map<bigint, PendingRead>();
  #end: "failed" | "abandoned" | undefined;

  constructor(options: PendingReadsOptions) {
    this.#options = options;
  }

  /** How many READs wait. */
  get size(): number {
    return this.#pending.size;
  }

  /** Whether this READ waits. */
  has(unique: bigint): boolean {
    return this.#pending.has(unique);
  }

  /** Takes over a READ. */
  add(read: HandedRead): void {
    const pending: PendingRead = {
      read,
      abort: new AbortController(),
      parts: read.segments.map(() => undefined),
      missing: read.segments.length,
      interrupted: false,
    };
    if (this.#end === "abandoned") return;
    if (this.#end === "failed") {
      this.#write(read.unique, errno.EIO);
      return;
    }
    this.#pending.set(read.unique, pending);
    read.segments.forEach((segment, part) => {
      const { blobOffset, length } = segment;
      if (blobOffset === undefined) this.#supply(pending, part, [Buffer.alloc(length)]);
      else this.#request(pending, part, blobOffset, length);
    });
  }

  /**
   * The kernel tells that the reader of `target` got a signal. Only if it is dying the READ is
   * given up: programs do not expect EINTR from a file, and some get harmless signals all the time.
   * @param unique number of the INTERRUPT itself
   */
  async interrupt(target: bigint, unique: bigint): Promise<void> {
    const pending = this.#pending.get(target);
    if (pending === undefined) {
      // Answered in the meantime, or another thread is about to hand it over: EAGAIN makes the
      // kernel send the INTERRUPT again as long as it waits for the answer to the READ.
      await delay(interruptRetryMilliseconds, undefined, { ref: false });
      if (this.#end === undefined) this.#write(unique, errno.EAGAIN);
      return;
    }
    if (pending.interrupted) return;
    pending.interrupted = true;
    while (this.#pending.get(target) === pending) {
      if (await this.#options.isBeingKilled(pending.read.threadId)) {
        this.#settle(pending, errno.EINTR);
        return;
      }
      // The kernel sends only one INTERRUPT, also if SIGKILL follows later.
      await delay(killPollMilliseconds, undefined, { ref: false });
    }
  }

  /** Answers a request with EIO that no thread could handle, unless it was handed over. */
  failLost(unique: bigint): void {
    if (!this.#pending.has(unique)) this.#write(unique, errno.EIO);
  }

  /** Answers what waits, and whatever is still handed over, with EIO. */
  failAll(): void {
    this.#end ??= "failed";
    for (const pending of this.#pending.values()) this.#settle(pending, errno.EIO);
  }

  /** Forgets what waits without an answer, for another process to serve it. */
  abandonAll(): void {
    this.#end = "abandoned";
    for (const pending of this.#pending.values()) pending.abort.abort();
    this.#pending.clear();
  }

  #request(pending: PendingRead, part: number, offset: number, length: number): void {
    const { unique, layer } = pending.read;
    const request: FuseReadRequest = {
      layer,
      offset,
      length,
      unique,
      signal: pending.abort.signal,
      reply: (data) => {
        const buffers: readonly Buffer[] = Buffer.isBuffer(data) ? [data] : data;
        const bytes = buffers.reduce((sum, buffer) => sum + buffer.length, 0);
        if (bytes !== length) {
          this.#settle(pending, errno.EIO);
          throw new ClipError(
            "ARGUMENT_INVALID",
            `a read of ${length} bytes was answered with ${bytes}`,
          );
        }
        this.#supply(pending, part, buffers);
      },
      fail: (error) => this.#settle(pending, error),
    };
    try {
      this.#options.onRead(request);
    } catch (error) {
      const fields = { number: layer, offset, length, error: describeError(error) };
      this.#options.log.error(fields, "a read failed");
      this.#settle(pending, errno.EIO);
    }
  }

  #supply(pending: PendingRead, part: number, buffers: readonly Buffer[]): void {
    if (!this.#isPending(pending) || pending.parts[part] !== undefined) return;
    pending.missing--;
    // Other parts may take long, and the buffers are the caller's.
    pending.parts[part] = pending.missing === 0 ? buffers : [Buffer.concat(buffers)];
    if (pending.missing > 0) return;
    this.#pending.delete(pending.read.unique);
    this.#write(
      pending.read.unique,
      0,
      pending.parts.flatMap((buffers) => buffers ?? []),
    );
  }

  #settle(pending: PendingRead, error: number): void {
    if (!this.#isPending(pending)) return;
    this.#pending.delete(pending.read.unique);
    this.#write(pending.read.unique, error);
    pending.abort.abort();
  }

  #isPending(pending: PendingRead): boolean {
    return this.#pending.get(pending.read.unique) === pending;
  }

  /** Writes an error, or a body if there is one. */
  #write(unique: bigint, error: number, body?: Buffer[]): void {
    // The kernel accepts errors 1 to 511 only.
    const isError = Number.isInteger(error) && error > 0 && error < 512;
    const accepted = body !== undefined ? 0 : isError ? error : errno.EIO;
    const header = Buffer.alloc(replyHeaderBytes);
    const bytes = body?.reduce((sum, buffer) => sum + buffer.length, 0) ?? 0;
    putReplyHeader(header, unique, accepted, bytes);
    this.#options.write([header, ...(body ?? [])]);
  }
}
