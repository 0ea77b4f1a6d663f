/**
 * Layer indexes in registries: an OCI artifact refers to the image manifest and has one blob for
 * each layer with an index (OCI image spec, "Guidelines for Artifact Usage").
 */
import { type Digest, digestOf, isDigest } from "../base/digest.ts";
import { describeError, isClipError } from "../base/errors.ts";
import { indexBytesMax, referrersMax } from "../base/limits.ts";
import type { RangeSource } from "../base/range.ts";
import type { RegistryClient } from "../registry/client.ts";
import {
  type Descriptor,
  type Manifest,
  mediaTypes,
  parseImageManifest,
} from "../registry/manifest.ts";
import type { Repository } from "../registry/reference.ts";
import type { Log } from "../telemetry/log.ts";
import { openLayerIndex } from "./reader.ts";
import { bufferSource } from "./sources.ts";

/** Type of the artifact; the number is the version of the format. */
const indexArtifactType = "application/vnd.clip.layer-index.v1";

/** Annotations of each blob. */
const annotationKeys = {
  /** Digest of the layer that the index is of. */
  layer: "vnd.clip.layer.digest",
  /** Digest of the preamble and the head of the index. */
  head: "vnd.clip.index.head.digest",
  /** Bytes at the beginning of the index that hold all but the windows. */
  prefix: "vnd.clip.index.prefix.size",
} as const;
const createdKey = "org.opencontainers.image.created";

const prefixBytesDefault = 64 * 1024;
const emptyConfig = Buffer.from("{}");

/** A layer index in a registry. What the artifact says of it is trusted: its digest was checked. */
export interface PublishedIndex {
  /** Digest of the whole encoded index. */
  digest: Digest;
  /** Bytes of the whole encoded index. */
  size: number;
  headDigest: Digest;
  /** Bytes at its beginning that hold all but the windows. */
  prefixBytes: number;
  /** Reads it from the registry. */
  source: RangeSource;
}

/** What to publish. */
export interface NewIndex {
  layerDigest: Digest;
  encoded: Buffer;
}

/**
 * The indexes that are published for the layers of an image manifest, the newest of each first.
 * @throws ClipError REGISTRY_* when the registry cannot be asked
 */
export async function findLayerIndexes(
  registry: RegistryClient,
  repository: Repository,
  manifestDigest: Digest,
  { log, signal }: { log: Log; signal?: AbortSignal | undefined },
): Promise<Map<Digest, PublishedIndex[]>> {
  const referrers = await registry.referrers(repository, manifestDigest, indexArtifactType, signal);
  const newest = [...referrers].sort((a, b) => createdAt(b) - createdAt(a)).slice(0, referrersMax);
  const artifacts = await Promise.all(
    newest.map(async ({ digest }) => {
      try {
        const manifest = await registry.manifest(repository, digest, signal);
        return readArtifact(manifest, manifestDigest);
      } catch (error) {
        if (!isClipError(error) || !error.code.startsWith("REGISTRY_")) throw error;
        const fields = { index: digest, code: error.code, error: describeError(error) };
        log.warn(fields, "a published index is passed over");
        return [];
      }
    }),
  );
  const found = new Map<Digest, PublishedIndex[]>();
  for (const { layerDigest, ...index } of artifacts.flat()) {
    const source = registry.blob(repository, index.digest, index.size);
    found.set(layerDigest, [...(found.get(layerDigest) ?? []), { ...index, source }]);
  }
  return found;
}

/**
 * Uploads the indexes of layers of an image, and the artifact that makes them known.
 * @returns the digest of the artifact
 * @throws ClipError REGISTRY_*
 */
export async function publishLayerIndexes(
  registry: RegistryClient,
  repository: Repository,
  image: Manifest,
  indexes: readonly NewIndex[],
  signal?: AbortSignal,
): Promise<Digest> {
  const config = {
    mediaType: mediaTypes.empty,
    digest: await registry.pushBlob(repository, emptyConfig, signal),
    size: emptyConfig.length,
  };
  const layers = [];
  for (const index of indexes) {
    await registry.pushBlob(repository, index.encoded, signal);
    layers.push(await describeIndex(index));
  }
  const annotations = { [createdKey]: new Date().toISOString() };
  const artifact = {
    schemaVersion: 2,
    mediaType: mediaTypes.ociManifest,
    artifactType: indexArtifactType,
    config,
    layers,
    subject: { mediaType: image.mediaType, digest: image.digest, size: image.bytes.length },
    annotations,
  };
  const bytes = Buffer.from(JSON.stringify(artifact));
  const refersTo = { subject: image.digest, artifactType: indexArtifactType, annotations };
  const manifest = { bytes, mediaType: mediaTypes.ociManifest, refersTo };
  return registry.pushManifest(repository, manifest, signal);
}

async function describeIndex({ layerDigest, encoded }: NewIndex): Promise<Descriptor> {
  const { sizes } = await openLayerIndex(bufferSource(encoded));
  return {
    mediaType: indexArtifactType,
    digest: digestOf(encoded),
    size: encoded.length,
    annotations: {
      [annotationKeys.layer]: layerDigest,
      [annotationKeys.head]: digestOf(encoded.subarray(0, sizes.head)),
      [annotationKeys.prefix]: String(sizes.total - sizes.windows),
    },
  };
}

type IndexDescription = Omit<PublishedIndex, "source"> & { layerDigest: Digest };

// What makes no sense is left out: the layer then has no index, which is no error.
function readArtifact(manifest: Manifest, subject: Digest): IndexDescription[] {
  const artifact = parseImageManifest(manifest.bytes, `artifact ${manifest.digest}`);
  const type = artifact.artifactType ?? artifact.config.mediaType;
  if (artifact.subject?.digest !== subject || type !== indexArtifactType) return [];
  return artifact.layers.flatMap(({ digest, size, annotations = {} }) => {
    const layerDigest = annotations[annotationKeys.layer] ?? "";
    const headDigest = annotations[annotationKeys.head] ?? "";
    if (!isDigest(layerDigest) || !isDigest(headDigest) || size > indexBytesMax) return [];
    const stated = Number(annotations[annotationKeys.prefix]);
    const prefixBytes = Number.isSafeInteger(stated) && stated > 0 ? stated : prefixBytesDefault;
    return [{ layerDigest, digest, size, headDigest, prefixBytes: Math.min(prefixBytes, size) }];
  });
}

function createdAt({ annotations }: Descriptor): number {
  return Date.parse(annotations?.[createdKey] ?? "") || 0;
}
