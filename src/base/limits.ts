/** Bounds on what clip accepts from outside, in one place. Exceeding one is LIMIT_EXCEEDED. */

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;

/** Largest layer, compressed or not. EROFS addresses 2^32 blocks of 512 bytes. */
export const layerBytesMax = 1024 * GiB;
/** Most entries in one layer. */
export const layerEntriesMax = 5_000_000;
/** Longest path in a layer (Linux PATH_MAX). */
export const pathBytesMax = 4096;
/** Longest name in a directory (Linux NAME_MAX). */
export const nameBytesMax = 255;
/** Most bytes of extended attributes of one entry. */
export const xattrBytesMax = 64 * KiB;
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
