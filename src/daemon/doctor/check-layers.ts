/** Whether what is on disk of layers fits what is known of them. */
import { readdir, readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { digestFromKey, digestKey, type Digest } from "../../base/digest.ts";
import { describeError, isClipError } from "../../base/errors.ts";
import { mapSuffix } from "../../cache/disk-cache.ts";
import { decodeSpanMap } from "../../cache/span-map.ts";
import { openLayerIndex } from "../../index/reader.ts";
import { fileSource } from "../../index/sources.ts";
import { MetaImages } from "../../layer/meta-images.ts";
import type { LayerRecord } from "../../layer/records.ts";
import { isOld } from "./check-snapshots.ts";
import type { Finding } from "./finding.ts";
import type { NodeView, Patient } from "./patient.ts";

/** All that is wrong with layers. */
export async function* checkLayers(patient: Patient, view: NodeView): AsyncGenerator<Finding> {
  yield* unusedLayers(view);
  yield* strayFiles(patient, view, "cache", ["", mapSuffix]);
  yield* strayFiles(patient, view, "meta", undefined);
  for (const layer of view.layers) {
    patient.signal.throwIfAborted();
    yield* cacheFiles(patient, view, layer);
  }
  yield* indexes(patient);
  yield* images(patient, view);
}

function* unusedLayers({ layers, snapshots }: NodeView): Generator<Finding> {
  const used = new Set(snapshots.map(({ layer }) => layer));
  for (const { number, layerDigest } of layers) {
    if (used.has(number)) continue;
    yield {
      severity: "note",
      what: `no snapshot uses layer ${number}`,
      where: layerDigest,
      advice: "It may have been made ready ahead of time; it is given back some minutes later.",
    };
  }
}

/** Files of layers that are not known. */
async function* strayFiles(
  { config: { root }, live }: Patient,
  { layers }: NodeView,
  directory: string,
  suffixes: readonly string[] | undefined,
): AsyncGenerator<Finding> {
  const known = new Set<string>();
  for (const { layerDigest } of layers) {
    for (const suffix of suffixes ?? [""]) known.add(digestKey(layerDigest) + suffix);
  }
  for (const name of await readdir(join(root, directory)).catch(() => [])) {
    const path = join(root, directory, name);
    const belongs = known.has(suffixes === undefined ? (name.split(".", 1)[0] ?? "") : name);
    if (belongs || (live !== undefined && !(await isOld(path)))) continue;
    yield {
      severity: "warning",
      what: "a file that belongs to no layer",
      where: path,
      advice: "A repair deletes it, as does the next start of the daemon.",
      repair: () => rm(path, { force: true, recursive: true }),
    };
  }
}

async function* cacheFiles(
  { config: { root }, live }: Patient,
  { mountTable }: NodeView,
  { number, layerDigest, size }: LayerRecord,
): AsyncGenerator<Finding> {
  const path = join(root, "cache", digestKey(layerDigest));
  const fault = await cacheFault(path, size);
  if (fault === undefined) return;
  // What of a layer is being pulled or completed stands for itself in a moment.
  if (live !== undefined && fault.severity === "warning" && !(await isOld(path))) return;
  const isMounted = mountTable.some(
    ({ mountpoint }) => mountpoint === join(root, "l", `${number}`),
  );
  const isInUse = live !== undefined && (isMounted || live.mode === "fuse");
  const repair = async () => {
    // The map first: it must never claim what is not there.
    await rm(path + mapSuffix, { force: true });
    await rm(path, { force: true });
  };
  yield {
    ...{ severity: fault.severity, what: fault.what, where: path },
    advice: isInUse
      ? "Stop the daemon and run `clip doctor --repair`: the layer is in use."
      : "A repair deletes it: the layer is fetched again when it is read.",
    ...(isInUse ? {} : { repair }),
  };
}

/** What is wrong with the file and the span map of a layer; a layer that has neither is well. */
async function cacheFault(
  path: string,
  size: number,
): Promise<Pick<Finding, "severity" | "what"> | undefined> {
  const data = await stat(path).catch(() => undefined);
  const map = await readFile(path + mapSuffix).catch(() => undefined);
  if (data === undefined && map === undefined) return undefined;
  if (map === undefined) return { severity: "warning", what: "a layer without its span map" };
  if (data === undefined) return { severity: "warning", what: "a span map without its layer" };
  const decoded = decodeSpanMap(map);
  if (decoded === undefined) return { severity: "warning", what: "the span map is damaged" };
  if (data.size === size && decoded.header.size === size) return undefined;
  const { complete } = decoded.header;
  return {
    severity: complete ? "error" : "warning",
    what: `${complete ? "a layer that is called complete" : "a layer"} has ${data.size} bytes instead of ${size}`,
  };
}

/** Indexes that cannot be read. */
async function* indexes({ config: { root }, signal }: Patient): AsyncGenerator<Finding> {
  const directory = join(root, "index");
  for (const name of await readdir(directory).catch(() => [])) {
    signal.throwIfAborted();
    const digest = digestFromKey(name);
    if (digest === undefined) continue;
    const path = join(directory, name);
    const fault = await indexFault(path, digest);
    if (fault === undefined) continue;
    yield {
      severity: "warning",
      what: `the layer index is damaged: ${fault}`,
      where: path,
      advice: "A repair deletes it: it is fetched or built again when it is needed.",
      repair: () => rm(path, { force: true }),
    };
  }
}

async function indexFault(path: string, digest: Digest): Promise<string | undefined> {
  const source = await fileSource(path);
  if (source === undefined) return undefined;
  try {
    const reader = await openLayerIndex(source);
    await reader.readFileTable();
    return reader.head.layerDigest === digest ? undefined : "it is of another layer";
  } catch (error) {
    if (!isClipError(error)) throw error;
    return describeError(error);
  } finally {
    await source.close?.();
  }
}

/** Metadata images that are missing or cannot be read; made from the indexes. */
async function* images(
  { config: { root, mount }, signal }: Patient,
  { layers }: NodeView,
): AsyncGenerator<Finding> {
  const { keepRuntimeDirectories } = mount;
  const made = new MetaImages({ directory: join(root, "meta"), keepRuntimeDirectories });
  try {
    for (const { layerDigest } of layers) {
      signal.throwIfAborted();
      const fault = await made.check(layerDigest);
      if (fault !== "missing" && fault !== "damaged") continue;
      yield {
        severity: "warning",
        what: `the metadata image is ${fault}`,
        where: made.path(layerDigest),
        advice:
          "A repair makes it from the layer index; without one that happens at the next mount.",
        repair: () => makeImage(made, root, layerDigest),
      };
    }
  } finally {
    await made.close();
  }
}

async function makeImage(made: MetaImages, root: string, layerDigest: Digest): Promise<void> {
  const source = await fileSource(join(root, "index", digestKey(layerDigest)));
  // Without it the next mount has the layer made ready anew.
  if (source === undefined) return made.remove(layerDigest);
  try {
    await made.make(await openLayerIndex(source));
  } finally {
    await source.close?.();
  }
}
