/** A layer in a registry for tests that publish indexes of it, right ones and others. */
import { randomBytes } from "node:crypto";
import { copyFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Digest } from "../src/base/digest.ts";
import { buildLayerIndex } from "../src/index/build.ts";
import { encodeLayerIndex } from "../src/index/format.ts";
import { publishLayerIndexes } from "../src/index/published.ts";
import type { LayerIndexReader } from "../src/index/reader.ts";
import type { LayerTarget } from "../src/layer/target.ts";
import { RegistryClient } from "../src/registry/client.ts";
import { silentLog } from "../src/telemetry/log.ts";
import { targetOf } from "./layer-target.ts";
import { run } from "./harness/command.ts";
import { makeImage, makeLayer, pushImage, type ImageLayer } from "./harness/image.ts";
import { startRegistry, type TestRegistry } from "./harness/registry.ts";
import type { Sandbox } from "./harness/sandbox.ts";

const spanBytes = 256 * 1024;

/** A layer with two files: `large` of 8 MiB in many spans, and `small` behind it. */
export interface IndexedLayer {
  registry: TestRegistry;
  layer: ImageLayer;
  /** sha256 of `large` in hex. */
  large: string;
  /** Another blob of the layer. */
  other: ImageLayer;
  /** Pushes an image with the layer on top, and these indexes of that, the oldest first. */
  push(name: string, indexes: readonly Buffer[], options?: PushOptions): Promise<LayerTarget>;
}

/** What else is pushed. */
export interface PushOptions {
  /** The layer itself. Default: `layer`. */
  blob?: ImageLayer;
  /** The layers below it. Default: none. */
  below?: readonly ImageLayer[];
}

/** What a layer index consists of. */
export type IndexParts = Parameters<typeof encodeLayerIndex>[0];

/** Makes the layer, and starts the registry. */
export async function makeIndexedLayer(sandbox: Sandbox): Promise<IndexedLayer> {
  const registry = await startRegistry(sandbox);
  const source = await sandbox.subdirectory("source");
  // Half of it compresses, so that spans differ in their length.
  const bytes = Array.from({ length: 8 }, (_, at) => [
    randomBytes(512 * 1024),
    Buffer.alloc(512 * 1024, `text ${at} `),
  ]).flat();
  await writeFile(join(source, "large"), Buffer.concat(bytes));
  await writeFile(join(source, "small"), "small\n");
  const tarFile = join(await sandbox.subdirectory("image"), "layer.tar");
  await run("tar", ["-C", source, "--sort=name", "-cf", tarFile, "."]);
  const layer = await makeLayer(tarFile);
  const otherTar = join(await sandbox.subdirectory("other"), "layer.tar");
  await copyFile(tarFile, otherTar);
  return {
    ...{ registry, layer, large: await sha256(join(source, "large")) },
    other: await makeLayer(otherTar, "gzip -1"),
    push: (name, indexes, { blob = layer, below = [] } = {}) =>
      pushLayer({ registry, layer: blob, below, name, indexes }),
  };
}

/** The right index of a layer as it is encoded, and a reader of it. */
export async function rightIndex({ layer }: Pick<IndexedLayer, "layer">): Promise<{
  encoded: Buffer;
  reader: LayerIndexReader;
}> {
  return buildLayerIndex({ path: layer.blobFile }, { spanBytes });
}

/** An index of a layer that differs from the right one in its parts, and is well-formed. */
export async function wrongIndex(
  layer: Pick<IndexedLayer, "layer">,
  change: (right: IndexParts) => IndexParts,
): Promise<Buffer> {
  const { reader } = await rightIndex(layer);
  const { head } = reader;
  const windows = await Promise.all(head.spans.map((_, at) => reader.readWindow(at)));
  return encodeLayerIndex(change({ head, entries: await reader.readEntries(), windows }));
}

/** Digest of a file in hex, as another process reads it. */
export async function sha256(path: string): Promise<string> {
  return (await run("sha256sum", [path])).slice(0, 64);
}

async function pushLayer({
  registry,
  layer,
  below,
  name,
  indexes,
}: {
  registry: TestRegistry;
  layer: ImageLayer;
  below: readonly ImageLayer[];
  name: string;
  indexes: readonly Buffer[];
}): Promise<LayerTarget> {
  const image = makeImage([...below, layer]);
  await pushImage(image, registry.host, name);
  const client = new RegistryClient({ dockerConfig: "/nonexistent", log: silentLog });
  const repository = { host: registry.host, name };
  const layerDigest = layer.digest as Digest;
  for (const encoded of indexes) {
    const manifest = await client.manifest(repository, image.digest);
    await publishLayerIndexes(client, repository, manifest, [{ layerDigest, encoded }]);
    await sleep(5); // The time of creation tells which is newer.
  }
  await client.close();
  return targetOf(image, registry, name);
}
