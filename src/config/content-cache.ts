/** The part of the configuration that is about sharing layers with other nodes. */
import * as v from "valibot";
import { count, milliseconds, path, serverUrl } from "./values.ts";

const MiB = 1024 * 1024;
const name = v.pipe(
  v.string(),
  v.regex(/^[a-z][a-z0-9_-]{0,31}$/, "must be a short lower-case word"),
);
const bytesPerSecond = count(1024, 1024 * 1024 * MiB);
const hostAndPort = v.pipe(
  v.string(),
  v.regex(/^(\[[0-9a-fA-F:.]+\]|[^:\s[\]]+):\d{1,5}$/, "must be host:port"),
);

/** What every kind has: the defaults are those of `src/cache/content/open.ts`. */
const limits = {
  /** For the log and the counters. Unique; by default the kind. */
  name: v.optional(name),
  /** Largest object that is stored here. */
  objectBytesMax: v.optional(count(MiB, 1024 * 1024 * MiB)),
  /** Only read: nothing is stored here or removed from here. */
  readOnly: v.optional(v.boolean()),
  /** Reads and stores at the same time, and calls that may wait for their turn. */
  reads: v.optional(count(1, 1024)),
  stores: v.optional(count(1, 64)),
  waiting: v.optional(count(0, 1_000_000)),
  /** Longest call without its bytes. */
  callTimeoutMs: v.optional(milliseconds),
  /** Slowest rate of the bytes of a read. */
  readBytesPerSecondMin: v.optional(bytesPerSecond),
  /** Longest time for which a store makes no progress. */
  storeStallMs: v.optional(milliseconds),
  /** Failures in a row after which it is left alone. */
  breakerFailures: v.optional(count(1, 1_000)),
  /** An answer that takes longer counts as a failure. */
  breakerSlowMs: v.optional(milliseconds),
  /** How long it is left alone at first, and at the longest. */
  breakerOpenMs: v.optional(milliseconds),
  breakerOpenMsMax: v.optional(milliseconds),
};

const directoryCache = v.strictObject({
  kind: v.literal("directory"),
  ...limits,
  /** The directory. It must exist. */
  path,
  /** Longest wait for one step of file I/O. */
  stepTimeoutMs: v.optional(milliseconds),
  /** File operations at the same time. */
  parallel: v.optional(count(1, 64)),
});

const redisCache = v.strictObject({
  kind: v.literal("redis"),
  ...limits,
  /** The server; of a cluster some of its nodes. */
  nodes: v.pipe(v.array(hostAndPort), v.minLength(1, "must name a server")),
  cluster: v.optional(v.boolean()),
  username: v.optional(v.string()),
  /** File that holds the password. */
  passwordFile: v.optional(path),
  database: v.optional(count(0, 1_000)),
  /** Speak TLS. */
  tls: v.optional(v.boolean()),
  /** Certificates (PEM) to trust instead of the system's; means TLS. */
  caFile: v.optional(path),
  /** Comes before each key. */
  prefix: v.optional(v.string()),
  /** Size of the values of which objects consist. */
  chunkBytes: v.optional(count(64 * 1024, 64 * MiB)),
  /** How long an object is kept after it was stored. */
  ttlSeconds: v.optional(count(1, 10 * 365 * 24 * 3600)),
  connectTimeoutMs: v.optional(milliseconds),
  commandTimeoutMs: v.optional(milliseconds),
});

const s3Cache = v.strictObject({
  kind: v.literal("s3"),
  ...limits,
  /** The bucket. It must exist. */
  bucket: v.pipe(v.string(), v.nonEmpty()),
  /** Comes before each key. */
  prefix: v.optional(v.string()),
  region: v.optional(v.string()),
  /** URL of the server; by default that of AWS. */
  endpoint: v.optional(serverUrl),
  /** `https://server/bucket/key` instead of `https://bucket.server/key`. */
  pathStyle: v.optional(v.boolean()),
  /** Fixed credentials; the secret is in a file of its own. */
  accessKeyId: v.optional(v.string()),
  secretAccessKeyFile: v.optional(path),
  /** Put objects only where there is none. */
  conditionalPut: v.optional(v.boolean()),
  partBytes: v.optional(count(5 * MiB, 1024 * MiB)),
  parallelParts: v.optional(count(1, 32)),
  connections: v.optional(count(1, 1024)),
  connectTimeoutMs: v.optional(milliseconds),
  requestTimeoutMs: v.optional(milliseconds),
  attempts: v.optional(count(1, 20)),
});

/** One content cache. */
export const contentCacheSchema = v.variant("kind", [directoryCache, redisCache, s3Cache]);

/** How the content caches are used. */
export const sharingSchema = v.strictObject({
  /** What the key of a layer's bytes is made of. */
  keyDerivation: v.optional(v.picklist(["layer-digest", "diffid"]), "layer-digest"),
  /** Store what this node has pulled or completed. */
  store: v.optional(v.boolean(), true),
  /** Most bytes a second of that. */
  storeBytesPerSecondMax: v.optional(bytesPerSecond),
  /** Between these lies the wait after which the registry is asked besides the content cache. */
  hedgeMsMin: v.optional(milliseconds, 50),
  hedgeMsMax: v.optional(milliseconds, 2_000),
  /** Keys of the cluster, one a line: shared indexes are signed with the first. */
  indexKeyFile: v.optional(path),
});

/** One content cache as it is configured. */
export type ContentCacheConfig = v.InferOutput<typeof contentCacheSchema>;
