/** Documents of registries, of containerd, and of the caches, and the small files that clip keeps. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isDigest, parseDigest } from "../../../src/base/digest.ts";
import {
  chunkCount,
  chunkLength,
  decodeManifest,
  encodeManifest,
} from "../../../src/cache/content/redis-manifest.ts";
import { decodeSpanMap, encodeSpanMapHeader } from "../../../src/cache/span-map.ts";
import { describeLayers, parseManifest } from "../../../src/containerd/image-document.ts";
import { DockerConfig } from "../../../src/registry/docker-config.ts";
import {
  parseDiffIds,
  parseImageIndex,
  parseImageManifest,
} from "../../../src/registry/manifest.ts";
import { attempt, attemptAsync, magnitude, type FuzzTarget } from "../engine/target.ts";

const digest = parseDigest(`sha256:${"0123456789abcdef".repeat(4)}`);
const layerType = "application/vnd.oci.image.layer.v1.tar+gzip";
const descriptor = { mediaType: layerType, digest, size: 10 };
const manifest = { schemaVersion: 2, config: descriptor, layers: [descriptor, descriptor] };
const imageConfig = { rootfs: { type: "layers", diff_ids: [digest, digest] } };
const jsonWords = [
  ...[
    '"digest":',
    '"size":',
    '"layers":',
    '"config":',
    '"manifests":',
    '"mediaType":',
    '"rootfs":',
  ],
  ...[
    '"diff_ids":',
    '"annotations":{"a":"b"}',
    '"platform":{}',
    '"__proto__":',
    "null",
    "[]",
    "{}",
  ],
  ...["1e999", "-1", "9007199254740993", digest, "sha512:", "../", "\\u0000", "[[[[[[[[", '"'],
];
const json = (...values: unknown[]): (() => Buffer[]) => {
  return () => values.map((value) => Buffer.from(JSON.stringify(value)));
};

/** Any bytes as a manifest, a list of manifests or a config, as registries answer them. */
export const registryDocument: FuzzTarget = {
  bytesMax: 2500,
  dictionary: jsonWords,
  seeds: json(manifest, { manifests: [descriptor] }, imageConfig),
  run(input) {
    const protocol = ["REGISTRY_PROTOCOL"] as const;
    const image = attempt(protocol, () => parseImageManifest(input, "x"));
    const index = attempt(protocol, () => parseImageIndex(input, "x"));
    const diffIds = attempt(protocol, () => parseDiffIds(input, "x"));
    const descriptors = [
      ...("value" in image ? [image.value.config, ...image.value.layers] : []),
      ...("value" in index ? index.value.manifests : []),
    ];
    for (const { digest, size } of descriptors) {
      assert.ok(isDigest(digest) && Number.isSafeInteger(size) && size >= 0);
    }
    if ("value" in diffIds) assert.ok(diffIds.value.every(isDigest));
    const kinds = [image, index, diffIds].map((outcome) => Object.keys(outcome)[0]);
    return `${kinds.join(" ")} ${magnitude(descriptors.length)}`;
  },
};

/** Any bytes as what containerd has for an image's manifest and its config, with a NUL between. */
export const containerdDocument: FuzzTarget = {
  bytesMax: 2500,
  dictionary: [...jsonWords, "\0"],
  seeds: () => [Buffer.from(`${JSON.stringify(manifest)}\0${JSON.stringify(imageConfig)}`)],
  run(input) {
    const nul = input.indexOf(0);
    const end = nul === -1 ? input.length : nul;
    const outcome = attempt(["LAYER_UNSUPPORTED"], () =>
      describeLayers(parseManifest(input.subarray(0, end)), input.subarray(end + 1)),
    );
    if ("failure" in outcome) return outcome.failure;
    for (const { layerDigest, diffId, chainId, compressedSize, mediaType } of outcome.value) {
      assert.ok([layerDigest, diffId, chainId].every(isDigest) && typeof mediaType === "string");
      assert.ok(Number.isSafeInteger(compressedSize) && compressedSize >= 0);
    }
    return `fine ${magnitude(outcome.value.length)}`;
  },
};

let directory: string | undefined;

/** Any bytes as Docker's configuration file, but for credential helpers: those would be run. */
export const dockerConfig: FuzzTarget = {
  bytesMax: 1000,
  dictionary: [
    '"auths":',
    '"auth":',
    '"identitytoken":',
    '"a.b:5000":',
    "eDp5",
    '"username":',
    "null",
  ],
  seeds: json(
    { auths: { "a.b:5000": { auth: "eDp5" }, "https://a.b:5000/v1/": {} } },
    { auths: { "a.b:5000": { identitytoken: "x" } } },
    { auths: { "http://a.b:5000/v2/": { registrytoken: "x" } } },
    { auths: { "a.b:5000": { username: "x", password: "y" } } },
    {},
  ),
  async run(input) {
    if (/cred|\\/i.test(input.toString())) return "helpers";
    directory ??= mkdtempSync(join(tmpdir(), "clip-fuzz-"));
    const path = join(directory, "config.json");
    writeFileSync(path, input);
    const docker = new DockerConfig(path);
    const outcome = await attemptAsync(["CONFIG_INVALID"], () => docker.credentials("a.b:5000"));
    return "failure" in outcome ? outcome.failure : (outcome.value?.kind ?? "none");
  },
  close: () => {
    if (directory !== undefined) rmSync(directory, { recursive: true });
    return Promise.resolve();
  },
};

/** Any bytes as the file that says which spans are there. */
export const spanMap: FuzzTarget = {
  bytesMax: 400,
  dictionary: ["clipspan", Buffer.from([1, 0, 0, 0])],
  seeds: () =>
    [0, 3, 200].map((spanCount) => {
      const header = { spanCount, size: spanCount * 1000, complete: spanCount === 3 };
      const bytes = encodeSpanMapHeader({ ...header, tableDigest: digest });
      return Buffer.concat([bytes, Buffer.alloc(spanCount, 1)]);
    }),
  mend: (input) => {
    const bytes = Buffer.from(input);
    if (bytes.length >= 64) bytes.writeUInt32LE(bytes.length - 64, 12);
    return bytes;
  },
  run(input) {
    const decoded = decodeSpanMap(input);
    if (decoded === undefined) return "none";
    const { header, present } = decoded;
    assert.equal(present.length, header.spanCount);
    const again = Buffer.concat([encodeSpanMapHeader(header), present]);
    assert.deepEqual(decodeSpanMap(again), decoded);
    return `${magnitude(present.length)} ${magnitude(header.size)} ${String(header.complete)}`;
  },
};

/** Any bytes as what says how an object lies in Redis. */
export const redisManifest: FuzzTarget = {
  bytesMax: 1200,
  dictionary: [...jsonWords, '"chunkBytes":', '"upload":', '"version":1'],
  seeds: () => [encodeManifest({ size: 10_000, chunkBytes: 4096, upload: "0123456789abcdef" })],
  run(input) {
    const found = decodeManifest(input);
    if (found === undefined) return "none";
    assert.deepEqual(decodeManifest(encodeManifest(found)), found);
    const count = chunkCount(found);
    assert.ok(count * found.chunkBytes >= found.size && chunkLength(found, 0) <= found.chunkBytes);
    return `${magnitude(found.size)} ${magnitude(count)}`;
  },
};
