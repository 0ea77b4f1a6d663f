/**
 * The configuration of the daemon and the commands. Keys are written `snake_case` in TOML and
 * `camelCase` in code; nothing else differs. `config/clip.toml` shows every key with its default.
 */
import * as v from "valibot";
import { logLevels } from "../telemetry/log.ts";
import { contentCacheSchema, sharingSchema } from "./content-cache.ts";
import { count, milliseconds, path, serverUrl, zeroOr } from "./values.ts";

const MiB = 1024 * 1024;

const tcpAddress = v.pipe(
  v.string(),
  v.regex(/^(\[[0-9a-fA-F:.]+\]|[^:\s]+):\d{1,5}$/, "must be host:port"),
);

const registryHost = v.strictObject({
  /** Host as it stands in image names, with its port. */
  name: v.pipe(v.string(), v.nonEmpty()),
  /** Speak HTTP instead of HTTPS. Hosts on this machine's loopback always may. */
  plainHttp: v.optional(v.boolean(), false),
  /** Do not check the server's certificate. */
  skipVerify: v.optional(v.boolean(), false),
  /** File of certificates (PEM) to trust besides the system's. */
  caFile: v.optional(path),
  /** Base URLs that are asked before the host itself, in order. */
  mirrors: v.optional(v.array(serverUrl), []),
});

/** The shape, limits and defaults of the configuration. */
export const configSchema = v.strictObject({
  /** Where snapshots, layers and indexes are kept. On a disk file system, not on overlayfs. */
  root: v.optional(path, "/var/lib/clip-snapshotter"),
  /** Where what does not survive a reboot is kept. */
  state: v.optional(path, "/run/clip-snapshotter"),
  /** Unix socket on which the Snapshots service listens. */
  address: v.optional(path, "/run/clip-snapshotter/clip.sock"),
  log: v.optional(
    v.strictObject({
      level: v.optional(v.picklist(logLevels), "info"),
    }),
    {},
  ),
  metrics: v.optional(
    v.strictObject({
      /** `host:port` on which metrics and status are served, besides the socket below `state`. */
      address: v.optional(tcpAddress),
    }),
    {},
  ),
  containerd: v.optional(
    v.strictObject({
      /** containerd's socket: from its content store clip learns which layer a chainID is. */
      address: v.optional(path, "/run/containerd/containerd.sock"),
      /** containerd's hosts directory: mirrors, ports and certificates of registries. */
      hostsDirectory: v.optional(path, "/etc/containerd/certs.d"),
    }),
    {},
  ),
  registry: v.optional(
    v.strictObject({
      /** Docker's configuration file, for credentials. Default: ~/.docker/config.json. */
      dockerConfig: v.optional(path),
      /** Registries that need something other than the defaults. */
      host: v.optional(v.array(registryHost), []),
      /** Longest wait for a connection and for the head of an answer. */
      timeoutMs: v.optional(milliseconds, 10_000),
      /** Longest silence in the body of an answer. */
      idleTimeoutMs: v.optional(milliseconds, 30_000),
      /** Fewest bytes a second of a body, on average over that time; 0: no limit. */
      bytesPerSecondMin: v.optional(zeroOr(1, 1024 * MiB), 1024),
      /** How often a request is tried again after a fault that may pass. */
      retries: v.optional(count(0, 20), 5),
    }),
    {},
  ),
  mount: v.optional(
    v.strictObject({
      /** `erofs`: metadata served by the kernel; `fuse`: a directory tree; `auto`: the best. */
      mode: v.optional(v.picklist(["auto", "erofs", "fuse"]), "auto"),
      /** Keep what a layer has below /proc, /sys and /dev. */
      keepRuntimeDirectories: v.optional(v.boolean(), false),
    }),
    {},
  ),
  fuse: v.optional(
    v.strictObject({
      /** Threads that answer the kernel. */
      threads: v.optional(count(1, 16), 2),
      /** How far the kernel reads ahead in a file. */
      readAheadKb: v.optional(count(128, 16_384), 1024),
    }),
    {},
  ),
  layer: v.optional(
    v.strictObject({
      /** Uncompressed bytes between two checkpoints of an index that clip builds. */
      spanBytes: v.optional(count(64 * 1024, 16 * MiB), MiB),
      /** Complete a layer in the background after its first use. */
      backgroundFill: v.optional(v.boolean(), true),
      /** How long after its first use that begins. */
      backgroundFillDelayMs: v.optional(count(0, 24 * 3600 * 1000), 5_000),
      /** Layers that are pulled whole at the same time. */
      concurrentPulls: v.optional(count(1, 64), 3),
      /** Connections of one whole pull. */
      pullConnections: v.optional(count(1, 64), 4),
    }),
    {},
  ),
  cache: v.optional(
    v.strictObject({
      /** Most bytes on disk of all layers; 0: no limit. */
      bytesMax: v.optional(zeroOr(64 * MiB, 1024 * 1024 * 1024 * MiB), 0),
      /** Bytes that layers leave free on their file system; 0: none in particular. */
      freeBytesMin: v.optional(zeroOr(MiB, 1024 * 1024 * 1024 * MiB), 512 * MiB),
      /** How old the last check of a layer on disk may become; 0: none is checked by itself. */
      scrubIntervalMs: v.optional(zeroOr(60_000, 365 * 24 * 3600 * 1000), 7 * 24 * 3600 * 1000),
      /** Most bytes that these checks read a second. */
      scrubBytesPerSecondMax: v.optional(count(MiB, 1024 * 1024 * MiB), 16 * MiB),
    }),
    {},
  ),
  index: v.optional(
    v.strictObject({
      /** Look for published indexes in the registry. */
      lookup: v.optional(v.boolean(), true),
      /** Size limit of the local store of indexes. */
      storeBytesMax: v.optional(count(MiB, 1024 * 1024 * MiB), 1024 * MiB),
    }),
    {},
  ),
  /** Caches that the nodes of a cluster share, nearest first; none: layers are not shared. */
  contentCache: v.optional(v.array(contentCacheSchema), []),
  sharing: v.optional(sharingSchema, {}),
});

/** The effective configuration. */
export type Config = v.InferOutput<typeof configSchema>;
