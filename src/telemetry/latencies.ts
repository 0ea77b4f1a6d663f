/** How long things took, as counts per class: cheap to note, and all that a histogram needs. */

/** Upper bounds of the classes in milliseconds, from a local read to a wait that is hopeless. */
const boundsMs: readonly number[] = [
  0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000,
];

/** Durations by class. */
export interface LatencyCounts {
  /** Upper bounds of the classes, ascending; a last class takes what is slower. */
  readonly boundsMs: readonly number[];
  /** How many durations each class has, one more than there are bounds. */
  readonly counts: readonly number[];
  /** Sum of all durations. */
  readonly milliseconds: number;
}

/** Durations that were noted one by one. They only grow in number. */
export class Latencies implements LatencyCounts {
  readonly boundsMs = boundsMs;
  readonly counts: number[] = Array.from({ length: boundsMs.length + 1 }, () => 0);
  milliseconds = 0;

  /** Notes one. */
  add(milliseconds: number): void {
    let at = 0;
    while (at < boundsMs.length && milliseconds > (boundsMs[at] ?? 0)) at++;
    this.counts[at] = (this.counts[at] ?? 0) + 1;
    this.milliseconds += milliseconds;
  }
}

/** Number of durations. */
export function totalOf({ counts }: LatencyCounts): number {
  return counts.reduce((sum, count) => sum + count, 0);
}

/**
 * The duration that a share of them did not exceed, in milliseconds: the upper bound of its class.
 * @returns undefined when there are none; Infinity when it is in the last class
 */
export function quantileOf(latencies: LatencyCounts, share: number): number | undefined {
  const total = totalOf(latencies);
  if (total === 0) return undefined;
  let below = 0;
  for (const [at, count] of latencies.counts.entries()) {
    below += count;
    if (below >= share * total) return latencies.boundsMs[at] ?? Infinity;
  }
  return Infinity;
}
