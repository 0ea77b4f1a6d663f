/** Bounds on what clip accepts from outside, in one place. Exceeding one is LIMIT_EXCEEDED. */

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;

/** Largest layer, compressed or not. EROFS addresses 2^32 blocks of 512 bytes. */
export const layerBytesMax = 1024 * GiB;
/** Most entries in one layer. */
export const layerEntriesMax = 5_000_000;
/** Most spans of one layer: as many as the largest has when they have their usual length. */
export const layerSpansMax = 1024 * 1024;
/**
 * Most bytes of all that the entries of a layer say: paths, link targets, attributes, places of data.
 * All of them are in memory while the layer is indexed.
 */
export const layerNamesBytesMax = 512 * MiB;
/** Most bytes of the paths of directories that a layer has things in, but no entry for. */
export const impliedPathBytesMax = 64 * MiB;
/** Longest path in a layer (Linux PATH_MAX). */
export const pathBytesMax = 4096;
/** Longest name in a directory (Linux NAME_MAX). */
export const nameBytesMax = 255;
/** Most bytes of extended attributes of one entry. */
export const xattrBytesMax = 64 * KiB;
/** Largest id of a user or a group: (uid_t) -1 means "no id" to the kernel. */
export const idMax = 2 ** 32 - 2;
/** The widest device numbers of Linux. */
export const deviceMajorMax = 2 ** 12 - 1;
export const deviceMinorMax = 2 ** 20 - 1;
/** Largest PAX or GNU long-name record block in a tar. */
export const tarExtensionBytesMax = 4 * MiB;
/** Largest span that is served lazily; a deflate block larger than this makes a layer eager. */
export const spanBytesMax = 64 * MiB;
/** Largest encoded layer index. */
export const indexBytesMax = 2 * GiB;
/** Largest manifest, config or referrers list from a registry (OCI distribution spec: 4 MiB). */
export const manifestBytesMax = 4 * MiB;
/** Most layers in one image that overlayfs can stack (fs/overlayfs OVL_MAX_STACK). */
export const overlayLayersMax = 500;
/** Largest gRPC message, as containerd's client allows. */
export const grpcMessageBytesMax = 16 * MiB;

/** Largest head of a layer index: it has digests and sizes only. */
export const indexHeadBytesMax = 64 * KiB;
/** Largest section of a layer index, decoded: it is in memory as a whole. */
export const indexSectionBytesMax = 512 * MiB;
/** Most bytes of all paths of an index: paths that share their beginnings could swell without bound. */
export const indexPathsBytesMax = GiB;
/** Largest layer index that is taken from the content cache: it is in memory as a whole. */
export const sharedIndexBytesMax = 256 * MiB;
/** Largest span map of the disk cache: a byte a span is more than any layer within the limits has. */
export const spanMapBytesMax = 64 * MiB;

/** Most published indexes of an image that are looked at: each costs a request. */
export const referrersMax = 16;
/** Most pages of a list of referrers. */
export const referrersPagesMax = 32;
/** Most redirects of one request to a registry. */
export const redirectsMax = 5;
/** Most that is read of a registry's error. */
export const registryErrorBytesMax = 64 * KiB;
/** Largest answer of a token service. */
export const tokenAnswerBytesMax = MiB;
/** Largest answer of a credential helper. */
export const helperAnswerBytesMax = 64 * KiB;

/** Largest head of a request for metrics, and of what comes with one that has something done. */
export const telemetryHeaderBytesMax = 8 * KiB;
export const actionParametersBytesMax = 64 * KiB;
/** Most connections of those who ask for metrics. */
export const telemetryConnectionsMax = 32;
