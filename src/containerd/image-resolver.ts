/**
 * Finds out which layer a chainID stands for. When containerd asks for a snapshot it has already
 * stored the manifest and the config of the image, so nobody else needs to be asked.
 */
import { readdir } from "node:fs/promises";
import { abortable, SingleFlight } from "../base/concurrency.ts";
import { isDigest, type Digest } from "../base/digest.ts";
import { describeError, isClipError } from "../base/errors.ts";
import { manifestBytesMax } from "../base/limits.ts";
import type { LayerTarget } from "../layer/target.ts";
import type { Log } from "../telemetry/log.ts";
import type { ContainerdClient, ContentInfo, ImageRecord } from "./client.ts";
import { describeLayers, parseManifest, type DocumentLayer } from "./image-document.ts";
import { candidateRepositories, hostsOfDirectory, sourcesOf } from "./repositories.ts";
import type { ResolvedImage, ResolveRequest } from "./resolved-image.ts";

/** What {@link ImageResolver} takes. */
export interface ImageResolverOptions {
  containerd: Pick<
    ContainerdClient,
    "contentInfo" | "listContent" | "readContent" | "images" | "namespaces"
  >;
  log: Log;
  /** Registries, with ports, that are known from the configuration. */
  registryHosts?: readonly string[];
  /** containerd's hosts directory (`certs.d`), whose entries are named after registries. */
  hostsDirectory?: string;
  /** How long containerd's lists are taken to be up to date; 1 s if not given. */
  listsKeptMs?: number;
}

const configLabel = "containerd.io/gc.ref.content.config";
const criLabels = {
  imageReference: "containerd.io/snapshot/cri.image-ref",
  manifestDigest: "containerd.io/snapshot/cri.manifest-digest",
  layerDigest: "containerd.io/snapshot/cri.layer-digest",
};
const documentsMax = 2048;

/** Answers from containerd's content store; lists are kept for a moment, documents for good. */
export class ImageResolver {
  readonly #options: ImageResolverOptions;
  readonly #lists: ShortMemory;
  readonly #documents = new Map<Digest, DocumentLayer[]>();

  constructor(options: ImageResolverOptions) {
    this.#options = options;
    this.#lists = new ShortMemory(options.listsKeptMs ?? 1_000);
  }

  /**
   * The image that has the layer, the newest if there are several; undefined if none is known.
   * @throws ClipError CONTAINERD_UNAVAILABLE, ABORTED
   */
  async resolve(request: ResolveRequest, signal: AbortSignal): Promise<ResolvedImage | undefined> {
    const found =
      (await this.#find(request, signal)) ??
      // The image may be newer than the list.
      (this.#lists.forget(request.namespace) ? await this.#find(request, signal) : undefined);
    if (found === undefined) return undefined;
    const { manifest, layers, position } = found;
    const [repositories, contentIsLocal] = await Promise.all([
      this.#repositories(manifest, request, signal),
      this.#isLocal(request.namespace, layers.slice(position), signal),
    ]);
    const targets = layers.map(({ layerDigest, diffId, compressedSize, mediaType }) => {
      const of = { manifestDigest: manifest.digest, repositories };
      return { layerDigest, diffId, compressedSize, mediaType, ...of };
    });
    return {
      layers: targets,
      chainIds: layers.map(({ chainId }) => chainId),
      position,
      contentIsLocal,
    };
  }

  async #find(
    { namespace, chainId, labels }: ResolveRequest,
    signal: AbortSignal,
  ): Promise<Found | undefined> {
    const wantedManifest = labels.get(criLabels.manifestDigest);
    const wantedLayer = labels.get(criLabels.layerDigest);
    const manifests = await this.#manifests(namespace, signal);
    const preferred = manifests.filter(({ digest }) => digest === wantedManifest);
    let second: Found | undefined;
    for (const manifest of new Set([...preferred, ...manifests])) {
      const layers = await this.#document(namespace, manifest.digest, signal);
      const position = layers.findIndex((layer) => layer.chainId === chainId);
      const layer = layers[position];
      if (layer === undefined) continue;
      // The same content can be compressed differently: one chainID, many blobs.
      if (wantedLayer === undefined || layer.layerDigest === wantedLayer) {
        return { manifest, layers, position };
      }
      second ??= { manifest, layers, position };
    }
    return second;
  }

  /** The manifests of a namespace, the newest first. */
  #manifests(namespace: string, signal: AbortSignal): Promise<Manifest[]> {
    const list = this.#lists.recall(namespace, async () => {
      const filters = [`labels."${configLabel}"`];
      const infos = await this.#options.containerd.listContent(namespace, filters);
      return infos
        .filter((info): info is Manifest => isDigest(info.digest) && info.size <= manifestBytesMax)
        .toSorted((a, b) => Number(b.createdAt - a.createdAt));
    });
    return abortable(list, signal);
  }

  /** The layers of an image; none if its documents are not there or make no sense. */
  async #document(
    namespace: string,
    digest: Digest,
    signal: AbortSignal,
  ): Promise<DocumentLayer[]> {
    const known = this.#documents.get(digest);
    if (known !== undefined) return known;
    const { containerd, log } = this.#options;
    let layers: DocumentLayer[] = [];
    try {
      const bytes = await containerd.readContent(namespace, digest, manifestBytesMax, signal);
      const manifest = parseManifest(bytes);
      const config = await containerd.readContent(
        namespace,
        manifest.config,
        manifestBytesMax,
        signal,
      );
      layers = describeLayers(manifest, config);
    } catch (error) {
      if (isClipError(error, "IMAGE_NOT_FOUND")) return [];
      if (!isClipError(error, "LAYER_UNSUPPORTED") && !isClipError(error, "LIMIT_EXCEEDED")) {
        throw error;
      }
      log.debug({ manifest: digest, error: describeError(error) }, "image is passed over");
    }
    this.#documents.set(digest, layers);
    if (this.#documents.size > documentsMax) {
      const [oldest] = this.#documents.keys();
      if (oldest !== undefined) this.#documents.delete(oldest);
    }
    return layers;
  }

  async #isLocal(
    namespace: string,
    layers: readonly DocumentLayer[],
    signal: AbortSignal,
  ): Promise<boolean> {
    for (const { layerDigest } of layers) {
      const info = await this.#options.containerd.contentInfo(namespace, layerDigest, signal);
      if (info === undefined) return false;
    }
    return true;
  }

  async #repositories(
    manifest: Manifest,
    request: ResolveRequest,
    signal: AbortSignal,
  ): Promise<LayerTarget["repositories"]> {
    const records = this.#lists.recall("images of all", () => this.#allImages(request.namespace));
    const [images, hosts] = await abortable(Promise.all([records, this.#knownHosts()]), signal);
    const same = images.filter(({ target }) => target === manifest.digest);
    return candidateRepositories({
      imageReference: request.labels.get(criLabels.imageReference),
      sources: sourcesOf(manifest.labels),
      sameImage: same.map(({ name }) => name),
      otherImages: images.map(({ name }) => name),
      hosts,
    });
  }

  /** The images of all namespaces, as far as they can be had: they only help to guess. */
  async #allImages(first: string): Promise<ImageRecord[]> {
    const { containerd, log } = this.#options;
    try {
      const namespaces = new Set([first, ...(await containerd.namespaces())]);
      const lists = await Promise.all([...namespaces].map((name) => containerd.images(name)));
      return lists.flat();
    } catch (error) {
      log.debug({ error: describeError(error) }, "containerd's images are not known");
      return [];
    }
  }

  async #knownHosts(): Promise<string[]> {
    const { hostsDirectory, registryHosts = [] } = this.#options;
    if (hostsDirectory === undefined) return [...registryHosts];
    // Most machines do not have one.
    const names = await readdir(hostsDirectory).catch(() => []);
    return [...registryHosts, ...hostsOfDirectory(names)];
  }
}

type Manifest = ContentInfo & { digest: Digest };

interface Found {
  manifest: Manifest;
  layers: DocumentLayer[];
  position: number;
}

/** Lists that are asked for once in a while, however often they are needed. */
class ShortMemory {
  readonly #keepMs: number;
  readonly #flights = new SingleFlight<unknown>();
  readonly #known = new Map<string, { until: number; value: unknown }>();

  constructor(keepMs: number) {
    this.#keepMs = keepMs;
  }

  /** What `key` stands for; a key always goes with the same kind of value. */
  async recall<Value>(key: string, ask: () => Promise<Value>): Promise<Value> {
    const known = this.#known.get(key);
    if (known !== undefined && performance.now() < known.until) return known.value as Value;
    const value = await this.#flights.run(key, ask);
    this.#known.set(key, { until: performance.now() + this.#keepMs, value });
    return value as Value;
  }

  /** Drops what is known; whether that was anything. */
  forget(key: string): boolean {
    return this.#known.delete(key);
  }
}
