/** Creating the indexes of all layers of an image. */
import type { Digest } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import type { RegistryClient } from "../registry/client.ts";
import {
  type Descriptor,
  isIndexType,
  type Manifest,
  parseDiffIds,
  parseImageIndex,
  parseImageManifest,
} from "../registry/manifest.ts";
import { formatReference, type Reference } from "../registry/reference.ts";
import { buildLayerIndex } from "./build.ts";
import type { LayerHead } from "./model.ts";
import { publishLayerIndexes } from "./published.ts";

/** What to create. */
export interface CreateOptions {
  reference: Reference;
  registry: RegistryClient;
  /** `os/architecture[/variant]`, for images of several platforms. Default: this machine's. */
  platform?: string | undefined;
  /** Uncompressed bytes between two checkpoints, at least. */
  spanBytes: number;
  /** Publish the indexes next to the image. */
  push?: boolean;
  /** Ranges of one layer that are fetched at the same time. Default 4. */
  connections?: number;
  signal?: AbortSignal | undefined;
  /** Told now and then how much of which layer has been read. */
  onProgress?: ((progress: LayerProgress) => void) | undefined;
}

/** How far one layer is. */
export interface LayerProgress {
  layerDigest: Digest;
  compressedBytes: number;
  compressedSize: number;
}

/** What became of one layer. */
export type CreatedIndex =
  | { layerDigest: Digest; mediaType: string; head: LayerHead; encoded: Buffer }
  /** Why there is no index for it. */
  | { layerDigest: Digest; mediaType: string; skipped: string };

/** What became of an image. */
export interface CreatedImageIndex {
  /** The manifest of the platform: what the artifact refers to. */
  manifest: Manifest;
  layers: CreatedIndex[];
  /** Digest of the published artifact. */
  artifactDigest?: Digest;
}

/** The manifest of one platform of an image, and its layers, bottom first. */
export interface ImageLayers {
  manifest: Manifest;
  layers: { descriptor: Descriptor; diffId: Digest }[];
}

const chunkBytes = 4 * 1024 * 1024;

/**
 * Builds an index for each gzip layer of an image, one after the other, checking the layers
 * against their digests and diffIDs.
 * @throws ClipError REGISTRY_*, IMAGE_NOT_FOUND (no such platform), and as `buildLayerIndex`
 */
export async function createImageIndex(options: CreateOptions): Promise<CreatedImageIndex> {
  const { reference, registry, signal } = options;
  const { manifest, layers } = await readImage(options);
  const created: CreatedIndex[] = [];
  for (const { descriptor, diffId } of layers) {
    const { digest, mediaType } = descriptor;
    // An image may have the same layer several times.
    if (created.some(({ layerDigest }) => layerDigest === digest)) continue;
    const index = isGzipLayer(mediaType)
      ? await createLayerIndex(options, descriptor, diffId)
      : { layerDigest: digest, mediaType, skipped: `not a gzip layer: ${mediaType}` };
    created.push(index);
  }
  const indexes = created.filter((layer) => "encoded" in layer);
  if (options.push !== true || indexes.length === 0) return { manifest, layers: created };
  const { repository } = reference;
  const push = publishLayerIndexes(registry, repository, manifest, indexes, signal);
  return { manifest, layers: created, artifactDigest: await push };
}

/** Whether a layer of this media type has checkpoints to find (OCI and Docker gzip layers). */
export function isGzipLayer(mediaType: string): boolean {
  return /^application\/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar\+gzip|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar\.gzip)$/.test(
    mediaType,
  );
}

/**
 * The layers of one platform of an image.
 * @throws ClipError REGISTRY_*, IMAGE_NOT_FOUND
 */
export async function readImage({
  reference,
  registry,
  platform = defaultPlatform(),
  signal,
}: Pick<CreateOptions, "reference" | "registry" | "platform" | "signal">): Promise<ImageLayers> {
  const name = formatReference(reference);
  const found = await registry.resolve(reference, signal);
  const manifest = isIndexType(found.mediaType)
    ? await registry.manifest(reference.repository, choose(found, platform, name), signal)
    : found;
  const { config, layers } = parseImageManifest(manifest.bytes, `the manifest of ${name}`);
  const configBytes = await registry.smallBlob(reference.repository, config.digest, signal);
  const diffIds = parseDiffIds(configBytes, `the config of ${name}`);
  if (diffIds.length !== layers.length) {
    throw new ClipError(
      "REGISTRY_PROTOCOL",
      `${name}: ${layers.length} layers, but ${diffIds.length} diffIDs`,
    );
  }
  return {
    manifest,
    layers: layers.flatMap((descriptor, index) => {
      const diffId = diffIds[index];
      return diffId === undefined ? [] : [{ descriptor, diffId }];
    }),
  };
}

async function createLayerIndex(
  { reference, registry, spanBytes, connections = 4, signal, onProgress }: CreateOptions,
  { digest, size, mediaType }: Descriptor,
  diffId: Digest,
): Promise<CreatedIndex> {
  const blob = registry.blob(reference.repository, digest, size);
  const stream = blob.parallelStream({ connections, chunkBytes, signal });
  const { head, encoded } = await buildLayerIndex(stream, {
    spanBytes,
    layerDigest: digest,
    diffId,
    signal,
    onProgress: (compressedBytes) =>
      onProgress?.({ layerDigest: digest, compressedBytes, compressedSize: size }),
  });
  return { layerDigest: digest, mediaType, head, encoded };
}

function choose(index: Manifest, platform: string, name: string): Digest {
  const { manifests } = parseImageIndex(index.bytes, `the index of ${name}`);
  const [os, architecture, variant] = platform.split("/");
  const chosen = manifests.find(
    ({ platform: offered }) =>
      offered?.os === os &&
      offered?.architecture === architecture &&
      (variant === undefined || offered?.variant === variant),
  );
  if (chosen !== undefined) return chosen.digest;
  const offered = manifests.flatMap(({ platform }) =>
    platform === undefined ? [] : [`${platform.os}/${platform.architecture}`],
  );
  throw new ClipError("IMAGE_NOT_FOUND", `${name} is not there for ${platform}`, {
    hint: `It is there for ${[...new Set(offered)].join(", ")}.`,
  });
}

function defaultPlatform(): string {
  return `linux/${process.arch === "x64" ? "amd64" : process.arch}`;
}
