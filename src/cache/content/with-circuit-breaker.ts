/** A content cache that is left alone for a while when it fails or is slow. */
import { isClipError, type ClipError } from "../../base/errors.ts";
import type { ContentCache } from "./content-cache.ts";
import { cacheError } from "./failure.ts";
import { intercept, type Call } from "./intercept.ts";

const MiB = 1024 * 1024;
const slowBytes = 4 * MiB;

/** When a cache is left alone, and for how long. */
export interface BreakerLimits {
  /** Failures in a row after which calls are refused. A slow `read` or `has` counts as one. */
  failures: number;
  /** An answer that takes longer is slow; for reads, per 4 MiB. Default: none is. */
  slowMs?: number;
  /** How long calls are refused at first; each vain probe doubles it. */
  openMs: number;
  /** Longest such time. */
  openMsMax: number;
}

/** What a breaker tells when it changes. */
export interface BreakerChange {
  cache: string;
  /** `open`: calls are refused. `closed`: all is well again. */
  state: "open" | "closed";
  /** What led to `open`; absent when it was slowness. */
  error?: ClipError;
}

/** What {@link withCircuitBreaker} can be given besides its limits. */
export interface BreakerOptions extends BreakerLimits {
  onChange?: (change: BreakerChange) => void;
  /** Clock in milliseconds, for tests. */
  now?: () => number;
}

/**
 * The same cache with a circuit breaker: after failures in a row its calls fail at once with
 * CACHE_UNAVAILABLE (`context.skipped`), so that a dead tier costs nothing. When the time is up one
 * call is let through as a probe (before a store, a `has`); its outcome decides. Failures are
 * CACHE_UNAVAILABLE, CACHE_DENIED and TIMEOUT; a cache that answers otherwise is alive. A read that
 * insists is always let through, and as good as a probe.
 */
export function withCircuitBreaker(cache: ContentCache, options: BreakerOptions): ContentCache {
  const breaker = new Breaker(cache.name, options);
  return intercept(cache, async (call, proceed) => {
    if (call.operation !== "store") return breaker.run(call, () => proceed(call.signal));
    // Uploads take long: a failing cache is found out before.
    if (!breaker.closed) {
      const { key, signal } = call;
      await breaker.run({ operation: "has", key, signal }, () => cache.has(key, { signal }));
    }
    return breaker.run(call, () => proceed(call.signal));
  });
}

class Breaker {
  readonly #name: string;
  readonly #options: BreakerOptions;
  readonly #now: () => number;
  #failures = 0;
  /** Times in a row that it was opened; 0 is closed. */
  #opened = 0;
  #openUntil = 0;
  #probing = false;
  #lastError: ClipError | undefined;

  constructor(name: string, options: BreakerOptions) {
    this.#name = name;
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  get closed(): boolean {
    return this.#opened === 0;
  }

  async run<Value>(call: Call, work: () => Promise<Value>): Promise<Value> {
    const isInsistent = call.operation === "read" && call.insist;
    const probe = !this.closed && !(isInsistent && this.#probing);
    if (probe) this.#enterProbe(isInsistent);
    const started = this.#now();
    try {
      const value = await work();
      this.#settle(isSlow(call, this.#now() - started, this.#options.slowMs), undefined);
      return value;
    } catch (error) {
      if (isFailure(error)) this.#settle(true, error);
      else if (!isClipError(error, "ABORTED")) this.#settle(false, undefined);
      throw error;
    } finally {
      if (probe) this.#probing = false;
    }
  }

  #enterProbe(isInsistent: boolean): void {
    const leftMs = Math.ceil(this.#openUntil - this.#now());
    if (!isInsistent && (leftMs > 0 || this.#probing)) {
      throw cacheError("CACHE_UNAVAILABLE", this.#name, "skipped, because it failed or was slow", {
        ...(this.#lastError === undefined ? {} : { cause: this.#lastError }),
        context: { skipped: true, leftMs: Math.max(leftMs, 0) },
      });
    }
    this.#probing = true;
  }

  #settle(failed: boolean, error: ClipError | undefined): void {
    if (!failed) {
      this.#failures = 0;
      if (this.closed) return;
      this.#opened = 0;
      this.#options.onChange?.({ cache: this.#name, state: "closed" });
      return;
    }
    this.#lastError = error;
    // Calls that were begun before it was opened have no more say.
    if (this.closed ? ++this.#failures < this.#options.failures : !this.#probing) return;
    const openMs = Math.min(this.#options.openMs * 2 ** this.#opened, this.#options.openMsMax);
    this.#openUntil = this.#now() + openMs;
    this.#failures = 0;
    if (this.#opened++ > 0) return;
    const change = { cache: this.#name, state: "open" } as const;
    this.#options.onChange?.(error === undefined ? change : { ...change, error });
  }
}

function isFailure(error: unknown): error is ClipError {
  return (
    isClipError(error, "CACHE_UNAVAILABLE") ||
    isClipError(error, "CACHE_DENIED") ||
    isClipError(error, "TIMEOUT")
  );
}

function isSlow(call: Call, milliseconds: number, slowMs = Infinity): boolean {
  if (call.operation === "store" || call.operation === "remove") return false;
  const bytes = call.operation === "read" ? call.bytes : 1;
  return milliseconds > slowMs * Math.max(Math.ceil(bytes / slowBytes), 1);
}
