/** The content cache that the configuration describes, and how layers are shared through it. */
import { readFile } from "node:fs/promises";
import { ClipError, describeError, isClipError } from "../base/errors.ts";
import { CacheCounters } from "../cache/content/cache-counters.ts";
import { isWorthRetrying } from "../cache/content/content-cache.ts";
import { openContentCache, type MemberLimits, type MemberOptions } from "../cache/content/open.ts";
import type { CacheEvent } from "../cache/content/with-metrics.ts";
import type { Config } from "../config/schema.ts";
import type { ContentCacheConfig } from "../config/content-cache.ts";
import type { ClusterOptions } from "../layer/cluster/cluster-options.ts";
import { contentCacheLeftAlone, contentCacheUsedAgain } from "../telemetry/events.ts";
import type { Log } from "../telemetry/log.ts";

/** Characters of a key of the cluster: as many as the MAC has bytes. */
const keyLengthMin = 32;
/** How often a cache's failures are told at most: each of them is counted anyway. */
const failureLogMs = 10_000;

/** Sharing with a cluster. */
export interface Sharing {
  cluster: ClusterOptions;
  counters: CacheCounters;
  /** To be called when the layers have been closed. */
  close(): Promise<void>;
}

/**
 * Opens what is configured; asks no server anything.
 * @returns undefined where no content cache is configured
 * @throws ClipError CONFIG_INVALID
 */
export async function openSharing(
  { contentCache, sharing }: Pick<Config, "contentCache" | "sharing">,
  log: Log,
): Promise<Sharing | undefined> {
  if (contentCache.length === 0) return undefined;
  const members = contentCache.map((member) => member.name ?? member.kind);
  if (new Set(members).size < members.length) {
    throw new ClipError("CONFIG_INVALID", "content_cache: two caches have the same name", {
      hint: "Give each of them a `name`.",
    });
  }
  const indexKeys = await readKeys(sharing.indexKeyFile);
  const counters = new CacheCounters();
  const tell = failureLog(log);
  const cache = await openContentCache(await Promise.all(contentCache.map(memberOptions)), {
    onEvent: (event) => {
      counters.observe(event);
      if (event.outcome === "error") tell(event);
    },
    onBreaker: ({ cache: name, state, error }) => {
      const reason = error === undefined ? undefined : describeError(error);
      if (state === "open") contentCacheLeftAlone(log, { cache: name, error: reason });
      else contentCacheUsedAgain(log, { cache: name });
    },
  });
  const { storeBytesPerSecondMax, keyDerivation, store, hedgeMsMin, hedgeMsMax } = sharing;
  return {
    cluster: {
      ...{ cache, members, keyDerivation, indexKeys, store, hedgeMsMin, hedgeMsMax },
      ...(storeBytesPerSecondMax !== undefined && { storeBytesPerSecond: storeBytesPerSecondMax }),
    },
    counters,
    close: () => cache.close(),
  };
}

/** Logs failures of caches: those that will not pass as errors, and no flood of them. */
function failureLog(log: Log): (event: CacheEvent) => void {
  const toldAt = new Map<string, number>();
  return ({ cache, operation, key, error }) => {
    const code = isClipError(error) ? error.code : "";
    const kind = `${cache} ${operation} ${code}`;
    const now = performance.now();
    if (now - (toldAt.get(kind) ?? -Infinity) < failureLogMs) return;
    toldAt.set(kind, now);
    const hint = isClipError(error) && error.hint !== undefined ? { hint: error.hint } : {};
    const fields = { cache, operation, cacheKey: key, code, error: describeError(error), ...hint };
    if (isWorthRetrying(error)) log.warn(fields, "a content cache failed");
    else log.error(fields, "a content cache failed");
  };
}

async function memberOptions(config: ContentCacheConfig): Promise<MemberOptions> {
  const limits = limitsOf(config);
  if (config.kind === "directory") {
    const { name, path, stepTimeoutMs, parallel } = config;
    return {
      kind: "directory",
      limits,
      options: { path, ...given({ name, stepTimeoutMs, parallel }) },
    };
  }
  if (config.kind === "redis") {
    const { name, cluster, username, passwordFile, database, tls, caFile } = config;
    const { prefix, chunkBytes, ttlSeconds, connectTimeoutMs, commandTimeoutMs } = config;
    const password = await readSecret(passwordFile);
    const ca = await readConfigured(caFile);
    const options = {
      ...{ name, cluster, username, password, database, prefix, chunkBytes, ttlSeconds },
      ...{ connectTimeoutMs, commandTimeoutMs, tls: ca === undefined ? tls : { ca } },
    };
    return {
      kind: "redis",
      limits,
      options: { nodes: config.nodes.map(address), ...given(options) },
    };
  }
  const { name, bucket, prefix, region, endpoint, pathStyle, conditionalPut } = config;
  const { partBytes, parallelParts, connections, connectTimeoutMs, requestTimeoutMs } = config;
  const options = {
    ...{ name, prefix, region, endpoint, pathStyle, conditionalPut, partBytes, parallelParts },
    ...{ connections, connectTimeoutMs, requestTimeoutMs, attempts: config.attempts },
    credentials: await credentialsOf(config),
  };
  return { kind: "s3", limits, options: { bucket, ...given(options) } };
}

function limitsOf(config: ContentCacheConfig): MemberLimits {
  const { objectBytesMax, readOnly, reads, stores, waiting, callTimeoutMs } = config;
  const { readBytesPerSecondMin, storeStallMs, breakerFailures, breakerSlowMs } = config;
  const { breakerOpenMs, breakerOpenMsMax } = config;
  return given({
    ...{ objectBytesMax, readOnly, reads, stores, waiting, callTimeoutMs, readBytesPerSecondMin },
    ...{ storeStallMs, breakerFailures, breakerSlowMs, breakerOpenMs, breakerOpenMsMax },
  });
}

async function credentialsOf({
  accessKeyId,
  secretAccessKeyFile,
}: Extract<ContentCacheConfig, { kind: "s3" }>) {
  if (accessKeyId === undefined && secretAccessKeyFile === undefined) return undefined;
  const secretAccessKey = await readSecret(secretAccessKeyFile);
  if (accessKeyId === undefined || secretAccessKey === undefined) {
    throw new ClipError(
      "CONFIG_INVALID",
      "content_cache: access_key_id and secret_access_key_file belong together",
    );
  }
  return { accessKeyId, secretAccessKey };
}

function address(text: string): { host: string; port: number } {
  const colon = text.lastIndexOf(":");
  const host = text.slice(0, colon).replace(/^\[(.*)\]$/, "$1");
  return { host, port: Number(text.slice(colon + 1)) };
}

async function readKeys(file: string | undefined): Promise<Buffer[]> {
  const text = await readConfigured(file);
  if (text === undefined) return [];
  const keys = text.split("\n").map((line) => line.trim());
  const filled = keys.filter((line) => line !== "");
  if (filled.length === 0 || filled.some((line) => line.length < keyLengthMin)) {
    throw new ClipError("CONFIG_INVALID", `sharing.index_key_file: ${file} has no usable key`, {
      hint: `Each line is a key of at least ${keyLengthMin} characters: openssl rand -hex 32`,
    });
  }
  return filled.map((line) => Buffer.from(line));
}

async function readSecret(file: string | undefined): Promise<string | undefined> {
  return (await readConfigured(file))?.trim();
}

async function readConfigured(file: string | undefined): Promise<string | undefined> {
  if (file === undefined) return undefined;
  try {
    return await readFile(file, "utf8");
  } catch (error) {
    throw new ClipError("CONFIG_INVALID", `cannot read the file ${file}`, { cause: error });
  }
}

/** Options without those that are not given. */
type Given<Options> = { [Key in keyof Options]?: Exclude<Options[Key], undefined> };

function given<Options extends object>(options: Options): Given<Options> {
  const entries = Object.entries(options).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as Given<Options>;
}
