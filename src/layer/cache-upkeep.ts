/** Keeps what is on disk of layers right: checks when asked, and by itself every now and then. */
import type { Digest } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import type { DemandActivity } from "./demand-activity.ts";
import type { LayerBlob } from "./layer-blob.ts";
import type { LayerRecord } from "./records.ts";
import { ScrubRecords } from "./scrub-records.ts";
import { Scrubber } from "./scrubber.ts";
import type { Verification } from "./verification.ts";
import { CacheVerifier, type CacheVerifierOptions, type LayerCheck } from "./verify-cache.ts";
import { verifyLayer } from "./verify.ts";

/** When layers on disk are checked without anybody asking for it. */
export interface ScrubSettings {
  /** How old the last check of a layer may become, in milliseconds. */
  intervalMs: number;
  /** Most bytes that are read a second. */
  bytesPerSecond: number;
}

/** What {@link CacheUpkeep} is made with. */
export interface CacheUpkeepOptions extends Omit<CacheVerifierOptions, "verify"> {
  keepRuntimeDirectories: boolean;
  /** Absent: only when somebody asks. */
  scrub: ScrubSettings | undefined;
  /** Where it is kept when which layer was checked. */
  scrubPath: string;
  activity: DemandActivity;
}

/** What is to be checked, and how. */
export interface VerifyCacheOptions {
  /** One layer; default: all. */
  layer?: Digest | undefined;
  /** Fetch at once what is damaged; without this it is fetched when somebody reads it. */
  repair: boolean;
  signal: AbortSignal;
  /** Told before each layer: which one it is, and of how many. */
  onProgress?: (layer: Digest, at: number, count: number) => void;
}

/** See the module. */
export class CacheUpkeep {
  readonly #options: CacheUpkeepOptions;
  readonly #verifier: CacheVerifier;
  readonly #scrubber: Scrubber | undefined;

  constructor(options: CacheUpkeepOptions) {
    const { scrub, scrubPath, activity, records, log } = options;
    this.#options = options;
    this.#verifier = new CacheVerifier({
      ...options,
      verify: (record, path, signal) => this.verifyWhole(record, path, signal),
    });
    this.#scrubber =
      scrub &&
      new Scrubber({
        ...scrub,
        checked: ScrubRecords.open(scrubPath),
        layers: () => records.all(),
        check: (layer, how) => this.#verifier.check(layer, how),
        ...{ activity, log },
      });
  }

  /** Begins to check layers now and then, if that is wanted. */
  start(): void {
    this.#scrubber?.start();
  }

  async close(): Promise<void> {
    await this.#scrubber?.close();
  }

  /**
   * Checks what is on disk, one layer after the other.
   * @throws ClipError ARGUMENT_INVALID when no such layer is here, AbortError
   */
  async verifyCache(options: VerifyCacheOptions): Promise<LayerCheck[]> {
    const { layer, repair, signal, onProgress } = options;
    const all = this.#options.records.all();
    const wanted = all.filter(({ layerDigest }) => layer === undefined || layerDigest === layer);
    if (layer !== undefined && wanted.length === 0) {
      throw new ClipError("ARGUMENT_INVALID", `this node has no layer ${layer}`, {
        hint: "clip status lists the layers",
      });
    }
    const checks: LayerCheck[] = [];
    for (const [at, record] of wanted.entries()) {
      signal.throwIfAborted();
      onProgress?.(record.layerDigest, at, wanted.length);
      checks.push(await this.#verifier.check(record, { repair, signal, before: async () => {} }));
    }
    return checks;
  }

  /** As {@link CacheVerifier.reopen}. */
  reopen(record: LayerRecord): Promise<LayerBlob> {
    return this.#verifier.reopen(record);
  }

  /**
   * Reads a layer of which every byte is in the file at `path`, as {@link verifyLayer}.
   * @throws ClipError CORRUPT_LAYER, CORRUPT_TAR, LIMIT_EXCEEDED, DISK_FULL, ABORTED
   */
  verifyWhole(
    { layerDigest, diffId, size }: Pick<LayerRecord, "layerDigest" | "diffId" | "size">,
    path: string,
    signal: AbortSignal,
  ): Promise<Verification> {
    const { metaImages, keepRuntimeDirectories } = this.#options;
    const imagePath = metaImages.path(layerDigest);
    return verifyLayer({ path, size, diffId, imagePath, keepRuntimeDirectories }, signal);
  }
}
