/** Compares all layers on disk with their digests, over and over, slowly and behind the readers. */
import { setTimeout as sleep } from "node:timers/promises";
import { describeError } from "../base/errors.ts";
import type { Log } from "../telemetry/log.ts";
import type { DemandActivity } from "./demand-activity.ts";
import type { LayerRecord } from "./records.ts";
import type { ScrubRecords } from "./scrub-records.ts";
import type { CheckOptions } from "./verify-cache.ts";

/** How often it is looked whether a layer is due, at most. */
const lookMsMax = 60_000;
/** How long a layer is left alone that could not be checked. */
const retryMs = 3600 * 1000;

/** What {@link Scrubber} is made with. */
export interface ScrubberOptions {
  /** How old the last check of a layer may become, in milliseconds. */
  intervalMs: number;
  bytesPerSecond: number;
  activity: DemandActivity;
  /** Closed with this. */
  checked: ScrubRecords;
  layers: () => LayerRecord[];
  check: (layer: LayerRecord, options: CheckOptions) => Promise<unknown>;
  log: Log;
}

/** Works on one layer at a time: the one that has waited longest. */
export class Scrubber {
  readonly #options: ScrubberOptions;
  readonly #closing = new AbortController();
  /** Layers that could not be checked, and until when they are left alone. */
  readonly #failed = new Map<number, number>();
  #running: Promise<void> = Promise.resolve();

  constructor(options: ScrubberOptions) {
    this.#options = options;
  }

  start(): void {
    this.#running = this.#run();
  }

  /** Stops; a layer that was being checked is checked anew some time. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#running;
    this.#options.checked.close();
  }

  async #run(): Promise<void> {
    const { log } = this.#options;
    const { signal } = this.#closing;
    while (!signal.aborted) {
      try {
        const { layer, dueInMs } = this.#next();
        if (layer === undefined || dueInMs > 0) {
          const waitMs = Math.min(Math.max(dueInMs, 1), lookMsMax);
          await sleep(waitMs, undefined, { signal, ref: false });
        } else {
          await this.#check(layer);
        }
      } catch (error) {
        if (signal.aborted) return;
        log.warn({ error: describeError(error) }, "layers on disk cannot be checked now");
        await sleep(lookMsMax, undefined, { signal, ref: false }).catch(() => {});
      }
    }
  }

  #next(): { layer?: LayerRecord; dueInMs: number } {
    const { layers, checked, intervalMs } = this.#options;
    const now = Date.now();
    const all = layers();
    const checkedAt = checked.checkedAt(
      all.map(({ layerDigest }) => layerDigest),
      now,
    );
    let next: { layer?: LayerRecord; dueInMs: number } = { dueInMs: lookMsMax };
    for (const layer of all) {
      const last = checkedAt.get(layer.layerDigest) ?? now;
      const dueAt = Math.max(last + intervalMs, this.#failed.get(layer.number) ?? 0);
      if (next.layer === undefined || dueAt - now < next.dueInMs) {
        next = { layer, dueInMs: dueAt - now };
      }
    }
    return next;
  }

  async #check(layer: LayerRecord): Promise<void> {
    const { check, checked, log } = this.#options;
    const { signal } = this.#closing;
    const { number, layerDigest } = layer;
    this.#failed.delete(number);
    try {
      const pacer = new Pacer(this.#options);
      const before = (bytes: number, inner: AbortSignal) => pacer.before(bytes, inner);
      await check(layer, { repair: true, before, signal });
      checked.note(layerDigest, Date.now());
    } catch (error) {
      if (signal.aborted) throw error;
      this.#failed.set(number, Date.now() + retryMs);
      const fields = { layer: layerDigest, number, error: describeError(error) };
      log.warn(fields, "a layer on disk could not be checked");
    }
  }
}

/** Keeps to a rate, and makes way for readers. */
class Pacer {
  readonly #options: Pick<ScrubberOptions, "activity" | "bytesPerSecond">;
  #dueAt = -Infinity;

  constructor(options: Pick<ScrubberOptions, "activity" | "bytesPerSecond">) {
    this.#options = options;
  }

  async before(bytes: number, signal: AbortSignal): Promise<void> {
    const { activity, bytesPerSecond } = this.#options;
    await activity.quiet(signal);
    const waitMs = this.#dueAt - performance.now();
    if (waitMs > 0) await sleep(waitMs, undefined, { signal });
    this.#dueAt = Math.max(this.#dueAt, performance.now()) + (bytes / bytesPerSecond) * 1000;
  }
}
