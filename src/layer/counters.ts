/** What the layers have done since the daemon started; telemetry reads it. */
import { Latencies } from "../telemetry/latencies.ts";

/** Counts of one place that spans come from. */
export interface SourceCounters {
  /** Fetches that were begun. */
  fetches: number;
  /** Spans that came, verified. */
  spans: number;
  /** Their uncompressed bytes. */
  bytes: number;
  /** Fetches that failed. */
  errors: number;
  /** Fetches of spans that it did not have. */
  misses: number;
  /** Spans whose digest was wrong. */
  corrupt: number;
  /** Of each fetch, how long its first span took to come. */
  latencies: Latencies;
}

/** Counts over all layers; plain numbers that only grow. */
export interface LayerCounters {
  /** Reads that the FUSE threads handed over because a span was missing. */
  reads: number;
  readBytes: number;
  /** Reads that no source could answer: the reader saw EIO. */
  readErrors: number;
  /** How long they took, whatever their end. */
  readLatencies: Latencies;
  /** Spans that such reads found on disk, in flight, or nowhere. */
  spanHits: number;
  spanJoins: number;
  spanMisses: number;
  /** Spans fetched ahead of a sequential reader. */
  prefetchedSpans: number;
  /** Spans fetched by the background fill. */
  filledSpans: number;
  /** Spans that could not be kept on disk. */
  writeErrors: number;
  /** Spans on disk that could not be read, and were fetched again. */
  unreadableSpans: number;
  /** Checks of what is on disk: bytes read, spans and images that were wrong or made right again. */
  checkedBytes: number;
  damagedSpans: number;
  damagedImages: number;
  repairedSpans: number;
  repairedImages: number;
  /** Whole pulls that succeeded, their compressed bytes, and whole pulls that failed. */
  wholePulls: number;
  wholePullBytes: number;
  wholePullErrors: number;
  /** Layers with a wrong index that were had anew and go on, and attempts at that which failed. */
  recoveries: number;
  recoveryErrors: number;
  /** Layers that were filled to the end, and found to be right or wrong. */
  completed: number;
  mismatches: number;
  /** By source: `registry`, … */
  sources: Map<string, SourceCounters>;
}

/** Counters that all stand at zero. */
export function newLayerCounters(): LayerCounters {
  return {
    reads: 0,
    readBytes: 0,
    readErrors: 0,
    readLatencies: new Latencies(),
    spanHits: 0,
    spanJoins: 0,
    spanMisses: 0,
    prefetchedSpans: 0,
    filledSpans: 0,
    writeErrors: 0,
    unreadableSpans: 0,
    checkedBytes: 0,
    damagedSpans: 0,
    damagedImages: 0,
    repairedSpans: 0,
    repairedImages: 0,
    wholePulls: 0,
    wholePullBytes: 0,
    wholePullErrors: 0,
    recoveries: 0,
    recoveryErrors: 0,
    completed: 0,
    mismatches: 0,
    sources: new Map(),
  };
}

/** The counters of one source, which is added if it is new. */
export function sourceCounters(counters: LayerCounters, source: string): SourceCounters {
  let found = counters.sources.get(source);
  if (found === undefined) {
    const latencies = new Latencies();
    found = { fetches: 0, spans: 0, bytes: 0, errors: 0, misses: 0, corrupt: 0, latencies };
    counters.sources.set(source, found);
  }
  return found;
}
