/** Opening the content cache that a configuration describes. */
import { chainOf, type ChainMember } from "./chain.ts";
import type { ContentCache } from "./content-cache.ts";
import { openDirectoryCache, type DirectoryCacheOptions } from "./directory-cache.ts";
import { openRedisCache, type RedisCacheOptions } from "./redis-cache.ts";
import { openS3Cache, type S3CacheOptions } from "./s3-cache.ts";
import { withCircuitBreaker, type BreakerChange } from "./with-circuit-breaker.ts";
import { withConcurrency } from "./with-concurrency.ts";
import { withMetrics, type CacheEvent } from "./with-metrics.ts";
import { withTimeout } from "./with-timeout.ts";

const MiB = 1024 * 1024;

/** What one cache of a chain is used for, and how it is spared. All have defaults. */
export interface MemberLimits {
  /** Largest object that is stored here. Default: no limit; 256 MiB for `redis`. */
  objectBytesMax?: number;
  /** Only read: nothing is stored here or removed from here. Default: false. */
  readOnly?: boolean;
  /** Reads at the same time. Default 16. */
  reads?: number;
  /** Stores at the same time. Default 2. */
  stores?: number;
  /** Calls that may wait for their turn. Default 1024. */
  waiting?: number;
  /** Longest call without its bytes. Default 3 s. */
  callTimeoutMs?: number;
  /** Slowest rate of the bytes of a read. Default 512 KiB/s. */
  readBytesPerSecondMin?: number;
  /** Longest time for which a store makes no progress. Default 60 s. */
  storeStallMs?: number;
  /** Failures in a row after which it is left alone. Default 5. */
  breakerFailures?: number;
  /** An answer that takes longer counts as a failure; for reads, per 4 MiB. Default: none does. */
  breakerSlowMs?: number;
  /** How long it is left alone at first, and at the longest. Defaults 1 s and 30 s. */
  breakerOpenMs?: number;
  breakerOpenMsMax?: number;
}

/** One cache, with the options of its kind. */
export type MemberOptions = { limits?: MemberLimits } & (
  | { kind: "directory"; options: DirectoryCacheOptions }
  | { kind: "redis"; options: RedisCacheOptions }
  | { kind: "s3"; options: S3CacheOptions }
);

/** Who is told what happens. */
export interface CacheObserver {
  /** Each call to each member, when it has ended. Must not throw. */
  onEvent?: (event: CacheEvent) => void;
  /** A member is left alone, or used again. Must not throw. */
  onBreaker?: (change: BreakerChange) => void;
}

/**
 * Opens a chain of caches, in the order in which they are asked. Each member is wrapped, from the
 * inside: time limits, circuit breaker, concurrency, metrics. So waiting for a turn is not held
 * against a server, and what waits fails at once when the breaker opens. Asks no server anything: one that
 * is down is found out when it is used.
 */
export async function openContentCache(
  members: readonly MemberOptions[],
  observer: CacheObserver = {},
): Promise<ContentCache> {
  const opened: ChainMember[] = [];
  try {
    for (const member of members) opened.push(await openMember(member, observer));
    return chainOf(opened);
  } catch (error) {
    await Promise.all(opened.map(({ cache }) => cache.close()));
    throw error;
  }
}

async function openMember(member: MemberOptions, observer: CacheObserver): Promise<ChainMember> {
  const limits = member.limits ?? {};
  const backend = await openBackend(member);
  const timed = withTimeout(backend, {
    callMs: limits.callTimeoutMs ?? 3_000,
    readBytesPerSecondMin: limits.readBytesPerSecondMin ?? MiB / 2,
    storeStallMs: limits.storeStallMs ?? 60_000,
  });
  const guarded = withCircuitBreaker(timed, {
    failures: limits.breakerFailures ?? 5,
    openMs: limits.breakerOpenMs ?? 1_000,
    openMsMax: limits.breakerOpenMsMax ?? 30_000,
    ...(limits.breakerSlowMs === undefined ? {} : { slowMs: limits.breakerSlowMs }),
    ...(observer.onBreaker === undefined ? {} : { onChange: observer.onBreaker }),
  });
  const limited = withConcurrency(guarded, {
    reads: limits.reads ?? 16,
    stores: limits.stores ?? 2,
    waiting: limits.waiting ?? 1024,
  });
  const objectBytesMax = limits.objectBytesMax ?? (member.kind === "redis" ? 256 * MiB : undefined);
  return {
    cache: observer.onEvent === undefined ? limited : withMetrics(limited, observer.onEvent),
    readOnly: limits.readOnly ?? false,
    ...(objectBytesMax === undefined ? {} : { objectBytesMax }),
  };
}

async function openBackend(member: MemberOptions): Promise<ContentCache> {
  if (member.kind === "directory") return openDirectoryCache(member.options);
  if (member.kind === "redis") return openRedisCache(member.options);
  return openS3Cache(member.options);
}
