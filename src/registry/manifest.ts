/** Manifests and indexes as registries hold them (OCI image spec; Docker's schema 2). */
import * as v from "valibot";
import { type Digest, isDigest } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";

export const mediaTypes = {
  ociManifest: "application/vnd.oci.image.manifest.v1+json",
  ociIndex: "application/vnd.oci.image.index.v1+json",
  dockerManifest: "application/vnd.docker.distribution.manifest.v2+json",
  dockerIndex: "application/vnd.docker.distribution.manifest.list.v2+json",
  empty: "application/vnd.oci.empty.v1+json",
} as const;

/** A manifest as it came from the registry, matching its digest. */
export interface Manifest {
  digest: Digest;
  mediaType: string;
  bytes: Buffer;
}

const digest = v.custom<Digest>((value) => typeof value === "string" && isDigest(value));
const size = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const annotations = v.optional(v.record(v.string(), v.string()));

const descriptorSchema = v.object({
  mediaType: v.string(),
  digest,
  size,
  annotations,
  artifactType: v.optional(v.string()),
  platform: v.optional(
    v.object({
      os: v.string(),
      architecture: v.string(),
      variant: v.optional(v.string()),
    }),
  ),
});

const imageManifestSchema = v.object({
  mediaType: v.optional(v.string()),
  artifactType: v.optional(v.string()),
  config: descriptorSchema,
  layers: v.array(descriptorSchema),
  subject: v.optional(descriptorSchema),
  annotations,
});

const imageIndexSchema = v.object({
  mediaType: v.optional(v.string()),
  manifests: v.array(descriptorSchema),
  annotations,
});

const imageConfigSchema = v.object({
  rootfs: v.object({ diff_ids: v.array(digest) }),
});

/** What a piece of content is and how it is called. */
export type Descriptor = v.InferOutput<typeof descriptorSchema>;
/** A manifest: of an image, or of an artifact. */
export type ImageManifest = v.InferOutput<typeof imageManifestSchema>;
/** A list of manifests: of one image's platforms, or of referrers. */
export type ImageIndex = v.InferOutput<typeof imageIndexSchema>;

/** Whether a media type is that of a list of manifests. */
export function isIndexType(mediaType: string): boolean {
  return mediaType === mediaTypes.ociIndex || mediaType === mediaTypes.dockerIndex;
}

/** @throws ClipError REGISTRY_PROTOCOL when `bytes` are no manifest */
export function parseImageManifest(bytes: Buffer, what: string): ImageManifest {
  return parse(imageManifestSchema, bytes, what);
}

/** @throws ClipError REGISTRY_PROTOCOL when `bytes` are no list of manifests */
export function parseImageIndex(bytes: Buffer, what: string): ImageIndex {
  return parse(imageIndexSchema, bytes, what);
}

/**
 * The diffIDs of an image's layers, bottom first, from its config.
 * @throws ClipError REGISTRY_PROTOCOL when `bytes` are no config
 */
export function parseDiffIds(bytes: Buffer, what: string): Digest[] {
  return parse(imageConfigSchema, bytes, what).rootfs.diff_ids;
}

function parse<Schema extends v.GenericSchema>(
  schema: Schema,
  bytes: Buffer,
  what: string,
): v.InferOutput<Schema> {
  try {
    return v.parse(schema, JSON.parse(bytes.toString("utf8")));
  } catch (error) {
    throw new ClipError("REGISTRY_PROTOCOL", `${what} cannot be understood`, { cause: error });
  }
}
