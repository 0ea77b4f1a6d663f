/** An image's manifest and config, as far as they tell what its layers are. */
import { chainIds, isDigest, parseDigest, type Digest } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";

/** A layer as manifest and config together describe it. */
export interface DocumentLayer {
  layerDigest: Digest;
  diffId: Digest;
  chainId: Digest;
  compressedSize: number;
  mediaType: string;
}

/** Which config a manifest names, and its layers but for the diffIDs. */
export interface Manifest {
  config: Digest;
  layers: Omit<DocumentLayer, "diffId" | "chainId">[];
}

/** Reads a manifest, Docker's schema 2 or OCI. @throws ClipError LAYER_UNSUPPORTED */
export function parseManifest(bytes: Buffer): Manifest {
  const { config, layers } = parseObject(bytes, "manifest");
  if (!isObject(config) || !Array.isArray(layers)) throw unsupported("it is no image manifest");
  return {
    config: digestOf(config["digest"]),
    layers: layers.map((layer: unknown) => {
      if (!isObject(layer)) throw unsupported("a layer is no descriptor");
      const { digest, size, mediaType } = layer;
      if (typeof size !== "number" || !Number.isSafeInteger(size) || size < 0) {
        throw unsupported("the size of a layer is none");
      }
      if (typeof mediaType !== "string") throw unsupported("a layer has no media type");
      return { layerDigest: digestOf(digest), compressedSize: size, mediaType };
    }),
  };
}

/** Puts manifest and config together. @throws ClipError LAYER_UNSUPPORTED */
export function describeLayers(manifest: Manifest, config: Buffer): DocumentLayer[] {
  const { rootfs } = parseObject(config, "config");
  const ids: unknown = isObject(rootfs) ? rootfs["diff_ids"] : undefined;
  if (!Array.isArray(ids) || ids.length !== manifest.layers.length) {
    throw unsupported("manifest and config differ in the number of layers");
  }
  const diffIds = ids.map(digestOf);
  const chain = chainIds(diffIds);
  return manifest.layers.flatMap((layer, position) => {
    const diffId = diffIds[position];
    const chainId = chain[position];
    return diffId === undefined || chainId === undefined ? [] : { ...layer, diffId, chainId };
  });
}

function digestOf(value: unknown): Digest {
  if (typeof value !== "string" || !isDigest(value)) throw unsupported("a digest is not sha256");
  return parseDigest(value);
}

function parseObject(bytes: Buffer, what: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString());
  } catch (error) {
    throw new ClipError("LAYER_UNSUPPORTED", `the ${what} is not JSON`, { cause: error });
  }
  if (!isObject(value)) throw unsupported(`the ${what} is not an object`);
  return value;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function unsupported(problem: string): ClipError {
  return new ClipError("LAYER_UNSUPPORTED", `an image cannot be understood: ${problem}`);
}
