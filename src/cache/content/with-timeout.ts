/** A content cache that is given up on in time. */
import type { ContentCache, ContentKey, StoreOptions, StoreOutcome } from "./content-cache.ts";
import type { ContentSource } from "./content-source.ts";
import { ClipError } from "../../base/errors.ts";
import { intercept } from "./intercept.ts";
import { withDeadline, withSignals } from "./operations.ts";

/** How long calls may take. */
export interface TimeLimits {
  /** Longest `has` or `remove`, and what a `read` may take beyond its bytes. */
  callMs: number;
  /** Slowest rate at which the bytes of a read may come. */
  readBytesPerSecondMin: number;
  /** Longest time for which a store may make no progress: no bytes taken, no end. */
  storeStallMs: number;
}

/** The same cache, whose calls end with TIMEOUT when they exceed the limits. */
export function withTimeout(cache: ContentCache, limits: TimeLimits): ContentCache {
  const { callMs, readBytesPerSecondMin } = limits;
  const bounded = intercept(cache, (call, proceed) => {
    // Bounded by its progress, see below.
    if (call.operation === "store") return proceed(call.signal);
    const bytes = call.operation === "read" ? call.bytes : 0;
    const limitMs = callMs + Math.ceil((bytes * 1000) / readBytesPerSecondMin);
    const what = `content cache ${cache.name}: ${call.operation} of ${call.key}`;
    return withDeadline(what, limitMs, [call.signal], proceed);
  });
  return {
    name: bounded.name,
    read: (...args) => bounded.read(...args),
    has: (...args) => bounded.has(...args),
    remove: (...args) => bounded.remove(...args),
    close: () => bounded.close(),
    store: (key, source, options) =>
      storeWatched(bounded, limits.storeStallMs, key, source, options),
  };
}

async function storeWatched(
  cache: ContentCache,
  stallMs: number,
  key: ContentKey,
  source: ContentSource,
  options: StoreOptions = {},
): Promise<StoreOutcome> {
  const stalled = new AbortController();
  const timer = setTimeout(() => {
    const what = `content cache ${cache.name}: store of ${key} made no progress for ${stallMs} ms`;
    stalled.abort(new ClipError("TIMEOUT", what));
  }, stallMs);
  const watched: ContentSource = {
    size: source.size,
    async *stream(signal) {
      for await (const chunk of source.stream(signal)) {
        timer.refresh();
        yield chunk;
        timer.refresh();
      }
    },
  };
  try {
    return await withSignals([options.signal, stalled.signal], (signal) =>
      cache.store(key, watched, { ...options, signal }),
    );
  } finally {
    clearTimeout(timer);
  }
}
