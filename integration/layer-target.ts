/** Layers in a registry, as a node is asked for them. */
import { createHash, randomBytes } from "node:crypto";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import type { Digest } from "../src/base/digest.ts";
import { createImageIndex } from "../src/index/create.ts";
import type { LayerTarget } from "../src/layer/target.ts";
import { RegistryClient } from "../src/registry/client.ts";
import { parseReference } from "../src/registry/reference.ts";
import { silentLog } from "../src/telemetry/log.ts";
import { run } from "./harness/command.ts";
import { makeImage, makeLayer, pushImage, type Compressor, type Image } from "./harness/image.ts";
import type { TestRegistry } from "./harness/registry.ts";
import type { Sandbox } from "./harness/sandbox.ts";

/** How a layer is pushed. */
export interface PushOptions {
  registry: TestRegistry;
  /** The repository's. */
  name: string;
  compressor?: Compressor;
  /** Publish an index with spans of so many bytes. */
  spanBytes?: number;
}

/** Compresses an archive and pushes it as the only layer of an image. */
export async function pushLayer(tarFile: string, options: PushOptions): Promise<LayerTarget> {
  const { registry, name, compressor = "gzip -1", spanBytes } = options;
  const image = makeImage([await makeLayer(tarFile, compressor)]);
  const reference = await pushImage(image, registry.host, name);
  if (spanBytes !== undefined) {
    const client = new RegistryClient({ dockerConfig: "/nonexistent", log: silentLog });
    const index = { registry: client, spanBytes, push: true };
    await createImageIndex({ reference: parseReference(reference), ...index });
    await client.close();
  }
  return targetOf(image, registry, name);
}

/** The topmost layer of an image in a repository. */
export function targetOf(
  { digest, layers }: Image,
  { host }: Pick<TestRegistry, "host">,
  name: string,
): LayerTarget {
  const layer = layers.at(-1);
  if (layer === undefined) throw new Error("the image has a layer");
  return {
    layerDigest: layer.digest as Digest,
    diffId: layer.diffId as Digest,
    compressedSize: layer.size,
    mediaType: layer.mediaType,
    manifestDigest: digest as Digest,
    repositories: [{ host, name }],
  };
}

/** Two layers with the same files. */
export interface RandomLayers {
  /** With an index in the registry, and without. */
  indexed: LayerTarget;
  plain: LayerTarget;
  /** sha256 over every file, in order. */
  content: string;
}

/** Pushes layers of so many bytes that cannot be compressed, in so many files. */
export async function pushRandomLayers(
  sandbox: Sandbox,
  registry: TestRegistry,
  { bytes, files, spanBytes }: { bytes: number; files: number; spanBytes: number },
): Promise<RandomLayers> {
  const source = await sandbox.subdirectory("source");
  const digest = createHash("sha256");
  for (let at = 0; at < files; at++) {
    // Lengths that put the ends of files anywhere in spans and blocks.
    const data = randomBytes(bytes / files - at * 997);
    digest.update(data);
    await writeFile(path.join(source, `f${String(at).padStart(2, "0")}`), data);
  }
  const archive = async (format: string): Promise<string> => {
    const tarFile = sandbox.path(`${format}.tar`);
    const order = ["--sort=name", `--format=${format}`];
    await run("tar", ["-C", source, ...order, "-cf", tarFile, "."]);
    return tarFile;
  };
  return {
    indexed: await pushLayer(await archive("pax"), { registry, name: "indexed", spanBytes }),
    plain: await pushLayer(await archive("gnu"), { registry, name: "plain" }),
    content: digest.digest("hex"),
  };
}

/** sha256 over all files of such a layer, as another process reads them: this one may serve them. */
export async function contentOf(directory: string): Promise<string> {
  const script = 'cat "$1"/f* | sha256sum';
  return (await run("sh", ["-c", script, "sh", directory])).slice(0, 64);
}
