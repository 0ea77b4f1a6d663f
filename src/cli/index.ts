/** `clip index`: creating and looking at layer indexes. */
import { mkdir, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { Command } from "commander";
import { digestKey } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import { createImageIndex, readImage, type CreatedIndex } from "../index/create.ts";
import { summariseIndex, type IndexSummary } from "../index/inspect.ts";
import { findLayerIndexes } from "../index/published.ts";
import { openLayerIndex, type LayerIndexReader } from "../index/reader.ts";
import { fileSource } from "../index/sources.ts";
import { parseReference } from "../registry/reference.ts";
import { openLog, type Log } from "../telemetry/log.ts";
import { openRegistry } from "../daemon/registry.ts";
import type { RegistryClient } from "../registry/client.ts";
import { configOf } from "./config-options.ts";
import { formatBytes, formatTable } from "./text.ts";

interface RegistryFlags {
  config?: string;
  plainHttp?: boolean;
  platform?: string;
  logLevel?: string;
  json?: boolean;
}

interface CreateFlags extends RegistryFlags {
  push?: boolean;
  output?: string;
}

/** The command and its subcommands. */
export function indexCommand(): Command {
  const create = registryFlags(new Command("create"))
    .description("build the layer indexes of an image in a registry")
    .argument("<image>", "image reference, such as registry.example.com/app:1")
    .option("--push", "publish the indexes beside the image")
    .option("--output <directory>", "also write each index into this directory")
    .action(runCreate);
  const inspect = registryFlags(new Command("inspect"))
    .description("show what a layer index holds")
    .argument("<image-or-file>", "image whose published indexes to show, or the file of one index")
    .action(runInspect);
  return new Command("index")
    .description("layer indexes: what clip needs to serve a layer lazily")
    .addCommand(create)
    .addCommand(inspect);
}

function registryFlags(command: Command): Command {
  return command
    .option("--config <file>", "the daemon's configuration file, for its registry settings")
    .option("--plain-http", "speak HTTP to the image's registry")
    .option("--platform <platform>", "os/architecture[/variant] of a multi-platform image")
    .option("--log-level <level>", "debug, info, warn, error or silent", "warn")
    .option("--json", "print JSON");
}

async function runCreate(image: string, flags: CreateFlags): Promise<void> {
  if (flags.push !== true && flags.output === undefined) {
    throw new ClipError("ARGUMENT_INVALID", "nothing to do with the indexes", {
      hint: "pass --push to publish them, or --output DIRECTORY to write them",
    });
  }
  await withRegistry(image, flags, async (registry, log) => {
    const { layer } = await configOf(configFlags(flags));
    const created = await createImageIndex({
      reference: parseReference(image),
      registry,
      platform: flags.platform,
      spanBytes: layer.spanBytes,
      push: flags.push === true,
      connections: layer.pullConnections,
      onProgress: ({ layerDigest, compressedBytes, compressedSize }) =>
        log.info({ layer: layerDigest, compressedBytes, compressedSize }, "building a layer index"),
    });
    const { output } = flags;
    if (output !== undefined) await writeIndexes(resolve(output), created.layers);
    if (flags.json === true) {
      print({
        manifest: created.manifest.digest,
        artifact: created.artifactDigest,
        layers: created.layers.map(describeCreated),
      });
      return;
    }
    process.stdout.write(
      formatTable(["layer", "compressed", "uncompressed", "index"], created.layers.map(createdRow)),
    );
    if (created.artifactDigest !== undefined) {
      process.stdout.write(`published as ${created.artifactDigest}\n`);
    }
  });
}

async function runInspect(imageOrFile: string, flags: RegistryFlags): Promise<void> {
  const file = await fileSource(resolve(imageOrFile));
  const summaries =
    file === undefined
      ? await inspectImage(imageOrFile, flags)
      : [await summariseAndClose(await openLayerIndex(file))];
  if (flags.json === true) print(summaries);
  else process.stdout.write(summaries.map(describeSummary).join("\n"));
}

async function inspectImage(image: string, flags: RegistryFlags): Promise<IndexSummary[]> {
  return withRegistry(image, flags, async (registry, log) => {
    const reference = parseReference(image);
    const { manifest, layers } = await readImage({ reference, registry, platform: flags.platform });
    const found = await findLayerIndexes(registry, reference.repository, manifest.digest, { log });
    const summaries: IndexSummary[] = [];
    for (const { descriptor } of layers) {
      const [newest] = found.get(descriptor.digest) ?? [];
      if (newest === undefined) continue;
      const { source, headDigest } = newest;
      summaries.push(await summariseAndClose(await openLayerIndex(source, { headDigest })));
    }
    if (summaries.length > 0) return summaries;
    throw new ClipError("IMAGE_NOT_FOUND", `no layer index is published for ${image}`, {
      hint: `clip index create ${image} --push`,
    });
  });
}

/** Runs `work` with a registry client that is closed afterwards. */
async function withRegistry<Value>(
  image: string,
  flags: RegistryFlags,
  work: (registry: RegistryClient, log: Log) => Promise<Value>,
): Promise<Value> {
  const config = await configOf(configFlags(flags));
  const log = openLog(config.log.level);
  const { host } = parseReference(image).repository;
  const registry = openRegistry(config, log, flags.plainHttp === true ? [host] : []);
  try {
    return await work(registry, log);
  } finally {
    await registry.close();
  }
}

function configFlags({ config, logLevel }: RegistryFlags): { config?: string; logLevel?: string } {
  return {
    ...(config === undefined ? {} : { config }),
    ...(logLevel === undefined ? {} : { logLevel }),
  };
}

async function summariseAndClose(reader: LayerIndexReader): Promise<IndexSummary> {
  try {
    return await summariseIndex(reader);
  } finally {
    await reader.close();
  }
}

async function writeIndexes(directory: string, layers: readonly CreatedIndex[]): Promise<void> {
  await mkdir(directory, { recursive: true });
  for (const layer of layers) {
    if (!("encoded" in layer)) continue;
    await writeFile(join(directory, digestKey(layer.layerDigest)), layer.encoded);
  }
}

function describeCreated(layer: CreatedIndex) {
  const { layerDigest, mediaType } = layer;
  if (!("encoded" in layer)) return { layerDigest, mediaType, skipped: layer.skipped };
  const { diffId, compressedSize, uncompressedSize, spans } = layer.head;
  const indexSize = layer.encoded.length;
  return {
    layerDigest,
    mediaType,
    diffId,
    compressedSize,
    uncompressedSize,
    spans: spans.length,
    indexSize,
  };
}

function createdRow(layer: CreatedIndex): string[] {
  if (!("encoded" in layer)) return [layer.layerDigest, "", "", layer.skipped];
  const { compressedSize, uncompressedSize } = layer.head;
  return [
    layer.layerDigest,
    formatBytes(compressedSize),
    formatBytes(uncompressedSize),
    formatBytes(layer.encoded.length),
  ];
}

function describeSummary(summary: IndexSummary): string {
  const { spans, sizes } = summary;
  const entries = Object.entries(summary.entries).map(([type, count]) => `${count} ${type}`);
  return formatTable(undefined, [
    ["layer", summary.layerDigest],
    ["diffID", summary.diffId],
    ["compressed", formatBytes(summary.compressedSize)],
    ["uncompressed", formatBytes(summary.uncompressedSize)],
    [
      "index",
      `${formatBytes(sizes.total)} (${(100 * summary.sizeRatio).toFixed(2)} % of the uncompressed layer)`,
    ],
    [
      "  of which",
      `${formatBytes(sizes.files)} file table, ${formatBytes(sizes.spans)} spans, ${formatBytes(sizes.windows)} windows`,
    ],
    ["spans", `${spans.count}, ${formatBytes(spans.lengthMin)} to ${formatBytes(spans.lengthMax)}`],
    ["entries", entries.join(", ")],
    ["file bytes", formatBytes(summary.fileBytes)],
  ]);
}

function print(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, undefined, 2)}\n`);
}
