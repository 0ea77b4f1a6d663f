/** A content cache of which not too much is asked at a time. */
import { Semaphore } from "../../base/concurrency.ts";
import type { ContentCache } from "./content-cache.ts";
import { cacheError } from "./failure.ts";
import { intercept } from "./intercept.ts";
import { withSignals } from "./operations.ts";

/** How many calls at a time. */
export interface ConcurrencyLimits {
  /** `read` and `has`. */
  reads: number;
  /** `store` and `remove`. */
  stores: number;
  /** Calls of each sort that wait; one more is refused as CACHE_UNAVAILABLE. */
  waiting: number;
}

/** The same cache; calls beyond the limits wait for their turn, in order. */
export function withConcurrency(cache: ContentCache, limits: ConcurrencyLimits): ContentCache {
  const reads = { permits: new Semaphore(limits.reads), most: limits.reads, calls: 0 };
  const stores = { permits: new Semaphore(limits.stores), most: limits.stores, calls: 0 };
  return intercept(cache, async (call, proceed) => {
    const gate = call.operation === "read" || call.operation === "has" ? reads : stores;
    if (gate.calls >= gate.most + limits.waiting) {
      throw cacheError("CACHE_UNAVAILABLE", cache.name, "too many calls are waiting");
    }
    return withSignals([call.signal], (signal) => {
      gate.calls++;
      return gate.permits.run(() => proceed(signal), signal).finally(() => gate.calls--);
    });
  });
}
