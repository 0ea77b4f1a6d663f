/** Counts over the calls of content caches, for metrics and `clip status`. */
import type { CacheEvent } from "./with-metrics.ts";

const boundsMs = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000];

/** Counts of the calls with one outcome. They only grow. */
export interface CacheCount {
  readonly cache: string;
  readonly operation: CacheEvent["operation"];
  readonly outcome: CacheEvent["outcome"];
  calls: number;
  bytes: number;
  milliseconds: number;
  /** Calls per latency class; see `latencyBoundsMs`. */
  latencies: number[];
}

/** Counts by cache, operation and outcome. */
export class CacheCounters {
  /** Upper bounds of the latency classes in milliseconds; a last class takes what is slower. */
  readonly latencyBoundsMs: readonly number[] = boundsMs;
  readonly #counts = new Map<string, CacheCount>();

  /** Counts one call; give it to `withMetrics`. */
  readonly observe = (event: CacheEvent): void => {
    const count = this.#countOf(event);
    count.calls++;
    count.bytes += event.bytes;
    count.milliseconds += event.milliseconds;
    const bucket = boundsMs.findIndex((bound) => event.milliseconds <= bound);
    const index = bucket === -1 ? boundsMs.length : bucket;
    count.latencies[index] = (count.latencies[index] ?? 0) + 1;
  };

  /** All counts so far; the objects live on and change. */
  counts(): CacheCount[] {
    return [...this.#counts.values()];
  }

  #countOf({ cache, operation, outcome }: CacheEvent): CacheCount {
    const id = `${cache} ${operation} ${outcome}`;
    const known = this.#counts.get(id);
    if (known !== undefined) return known;
    const latencies = Array.from({ length: boundsMs.length + 1 }, () => 0);
    const count = { cache, operation, outcome, calls: 0, bytes: 0, milliseconds: 0, latencies };
    this.#counts.set(id, count);
    return count;
  }
}
