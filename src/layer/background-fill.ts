/** Completes layers after their first use, while nobody is waiting for a read. */
import { setTimeout as sleep } from "node:timers/promises";
import { ClipError, describeError, isClipError } from "../base/errors.ts";
import type { Log } from "../telemetry/log.ts";
import type { LayerCounters } from "./counters.ts";
import type { DemandActivity } from "./demand-activity.ts";
import type { LayerBlob } from "./layer-blob.ts";
import type { Verification } from "./verification.ts";
import { wrongSpans } from "./verify.ts";

/** Uncompressed bytes that one fetch of the fill asks for. */
const stepBytes = 8 * 1024 * 1024;
/** First and longest wait after a failure; it doubles in between. */
const backoffMsMin = 1_000;
const backoffMsMax = 5 * 60_000;
/** How long a layer waits that has no room on disk. */
const noRoomMs = 60_000;

/** What {@link BackgroundFill} is made with. */
export interface BackgroundFillOptions {
  /** How long after its first use a layer is filled. */
  delayMs: number;
  /** Most uncompressed bytes a second; unlimited if absent. */
  bytesPerSecond?: number;
  /** Bytes that may be written to disk before something else has to go. */
  diskRoom: () => number;
  activity: DemandActivity;
  counters: LayerCounters;
  log: Log;
  /** Reads a layer whose every span is on disk. */
  verify: (blob: LayerBlob, signal: AbortSignal) => Promise<Verification>;
  /** The whole has matched, and that has been recorded. */
  onComplete?: (blob: LayerBlob) => void;
  /** The rest of a layer could not be had; it is tried again some time. */
  onFailure?: (blob: LayerBlob, error: unknown) => void;
  /**
   * The layer index lied: every span matched it, but the whole did not match the diffID, or holds
   * other files.
   */
  onMismatch: (blob: LayerBlob) => void;
}

/** Fills one layer at a time, in the order in which they were first used. */
export class BackgroundFill {
  readonly #options: BackgroundFillOptions;
  readonly #waiting = new Map<LayerBlob, { dueAt: number; backoffMs: number }>();
  readonly #closing = new AbortController();
  #current: { blob: LayerBlob; controller: AbortController } | undefined;
  #timer: NodeJS.Timeout | undefined;
  #running: Promise<void> = Promise.resolve();

  constructor(options: BackgroundFillOptions) {
    this.#options = options;
  }

  /** Layers that are to be filled, the one that is being filled included. */
  get queued(): number {
    return this.#waiting.size + (this.#current === undefined ? 0 : 1);
  }

  /** Has the layer filled some time after now; nothing happens if it is complete or known. */
  schedule(blob: LayerBlob): void {
    if (blob.file.complete || this.#waiting.has(blob) || this.#current?.blob === blob) return;
    this.#enqueue(blob, this.#options.delayMs, backoffMsMin);
  }

  /** Forgets a layer; when this returns nothing is being done with it. */
  async cancel(blob: LayerBlob): Promise<void> {
    this.#waiting.delete(blob);
    if (this.#current?.blob !== blob) return;
    this.#current.controller.abort();
    await this.#running;
    this.#waiting.delete(blob);
  }

  /** Stops. What has been fetched is kept. */
  async close(): Promise<void> {
    this.#closing.abort();
    clearTimeout(this.#timer);
    this.#waiting.clear();
    this.#current?.controller.abort();
    await this.#running;
  }

  #enqueue(blob: LayerBlob, delayMs: number, backoffMs: number): void {
    if (this.#closing.signal.aborted) return;
    this.#waiting.set(blob, { dueAt: performance.now() + delayMs, backoffMs });
    this.#arm();
  }

  #arm(): void {
    clearTimeout(this.#timer);
    if (this.#current !== undefined || this.#waiting.size === 0) return;
    const dueAt = Math.min(...[...this.#waiting.values()].map((entry) => entry.dueAt));
    const wait = Math.max(0, dueAt - performance.now());
    this.#timer = setTimeout(() => this.#startNext(), wait).unref();
  }

  #startNext(): void {
    const now = performance.now();
    const due = [...this.#waiting].find(([, entry]) => entry.dueAt <= now);
    if (due === undefined) return this.#arm();
    const [blob, { backoffMs }] = due;
    this.#waiting.delete(blob);
    const controller = new AbortController();
    this.#current = { blob, controller };
    this.#running = this.#run(blob, backoffMs, controller.signal).finally(() => {
      this.#current = undefined;
      this.#arm();
    });
  }

  async #run(blob: LayerBlob, backoffMs: number, signal: AbortSignal): Promise<void> {
    const { log } = this.#options;
    const layer = blob.head.layerDigest;
    try {
      const done = await this.#fetchRest(blob, signal).catch((error: unknown) => {
        if (!signal.aborted) this.#options.onFailure?.(blob, error);
        throw error;
      });
      if (!done || !(await this.#check(blob, signal))) {
        log.debug({ layer, retryMs: noRoomMs }, "there is no room to fill a layer");
        this.#enqueue(blob, noRoomMs, backoffMs);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (isClipError(error, "CORRUPT_TAR")) {
        this.#options.counters.mismatches++;
        log.error({ layer, error: describeError(error) }, "the layer is no archive");
        this.#options.onMismatch(blob);
        return;
      }
      const next = Math.min(backoffMs * 2, backoffMsMax);
      log.warn(
        { layer, error: describeError(error), retryMs: backoffMs },
        "a layer could not be filled",
      );
      this.#enqueue(blob, backoffMs, next);
    }
  }

  /** Whether everything has been fetched; false: what is missing has no room on disk. */
  async #fetchRest(blob: LayerBlob, signal: AbortSignal): Promise<boolean> {
    const { activity, bytesPerSecond, diskRoom } = this.#options;
    // While one step is being fetched the one before is decoded and written.
    let before: Promise<void> = Promise.resolve();
    for (let next = 0; ;) {
      await activity.quiet(signal);
      if (diskRoom() < missingBytes(blob.file)) {
        await before;
        return false;
      }
      const startedAt = performance.now();
      const step = blob.fill(next, stepBytes, signal);
      step?.done.catch(() => {});
      await before;
      if (step === undefined) return true;
      before = step.done;
      next = step.next;
      if (bytesPerSecond === undefined) continue;
      await step.done;
      const dueMs = (step.bytes / bytesPerSecond) * 1000 - (performance.now() - startedAt);
      if (dueMs > 0) await sleep(dueMs, undefined, { signal });
    }
  }

  /** Whether the layer could be checked; false: something of it had to go again. */
  async #check(blob: LayerBlob, signal: AbortSignal): Promise<boolean> {
    const release = blob.file.hold();
    try {
      if (missingBytes(blob.file) > 0) return false;
      await this.#checkHeld(blob, signal);
      return true;
    } finally {
      release();
    }
  }

  async #checkHeld(blob: LayerBlob, signal: AbortSignal): Promise<void> {
    const { counters, log, verify, onMismatch } = this.#options;
    const { file, head } = blob;
    const layer = head.layerDigest;
    await file.flush();
    const { digest: found, image } = await verify(blob, signal);
    if (found === head.diffId) {
      if (image === "lie") {
        counters.mismatches++;
        log.error({ layer }, "the files of the layer are not what its index says");
        onMismatch(blob);
        return;
      }
      if (image === "made") log.error({ layer }, "the metadata of the layer was damaged on disk");
      await file.markComplete();
      counters.completed++;
      log.info({ layer, bytes: file.size }, "the layer is complete");
      this.#options.onComplete?.(blob);
      return;
    }
    counters.mismatches++;
    const wrong = await wrongSpans(file, head, signal);
    log.error(
      { layer, expected: head.diffId, found, wrongSpans: wrong.length },
      "the layer on disk does not match its diffID",
    );
    // Before anything is dropped: it would be fetched again, and be wrong again.
    if (wrong.length === 0) onMismatch(blob);
    await file.drop(wrong.length > 0 ? wrong : file.spanPresent.keys());
    if (wrong.length === 0) return;
    throw new ClipError("CORRUPT_LAYER", `${wrong.length} spans on disk had changed`);
  }
}

function missingBytes(file: LayerBlob["file"]): number {
  let bytes = 0;
  for (let span = 0; span < file.spanCount; span++)
    if (!file.has(span)) bytes += file.lengthOf(span);
  return bytes;
}
