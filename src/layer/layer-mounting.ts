/** Has layers mounted and served, and lets them go again. */
import { join } from "node:path";
import type { DiskCache } from "../cache/disk-cache.ts";
import { blobName, treeName } from "../fuse/session.ts";
import type { ActiveLayers } from "./active-layers.ts";
import type { BackgroundFill } from "./background-fill.ts";
import type { LayerMounts } from "./layer-mounts.ts";
import type { LayerParts } from "./layer-parts.ts";
import type { MetaImages } from "./meta-images.ts";
import type { MountMode } from "./mount-mode.ts";
import type { LayerRecord } from "./records.ts";

/** What {@link LayerMounting} is made with; it owns none of it. */
export interface LayerMountingOptions {
  mode: MountMode;
  fuseMountpoint: string;
  cache: DiskCache;
  metaImages: MetaImages;
  mounts: LayerMounts;
  parts: LayerParts;
  active: ActiveLayers;
  /** Absent: layers are not completed in the background. */
  fill: BackgroundFill | undefined;
}

/** See the module. Calls for one layer must not overlap. */
export class LayerMounting {
  readonly #options: LayerMountingOptions;

  constructor(options: LayerMountingOptions) {
    this.#options = options;
  }

  /**
   * Mounts a layer if it is not mounted.
   * @returns where it is
   * @throws ClipError SYSTEM_CALL, DISK_FULL, and what {@link LayerParts.prepareAnew} throws when
   *   something of the layer has been lost
   */
  async mount(record: LayerRecord): Promise<string> {
    if (this.#options.mode === "erofs") return this.#mountErofs(record);
    await this.serve(record);
    return join(this.#options.fuseMountpoint, treeName(record.number));
  }

  /**
   * Has the session serve a layer, and the rest of it fetched some time.
   * @returns the layer, which may be made of another blob now
   * @throws as {@link mount}
   */
  async serve(known: LayerRecord): Promise<LayerRecord> {
    const { active, fill } = this.#options;
    const record = active.has(known.number) ? known : await this.#activate(known);
    const blob = active.blob(record.number);
    if (blob !== undefined) fill?.schedule(blob);
    return record;
  }

  /**
   * Serves a layer that someone has mounted, without anything being fetched for that: others wait.
   * @returns false if its index has to be had first; that is done for whoever reads it
   * @throws ClipError SYSTEM_CALL, DISK_FULL
   */
  async resume(record: LayerRecord): Promise<boolean> {
    const { parts, active, cache } = this.#options;
    if (await parts.isOnDisk(record)) {
      await this.serve(record);
      return true;
    }
    await active.addMissing(record, cache.dataPath(record.layerDigest));
    return false;
  }

  /** Ends everything that is done with a layer. Whoever uses one of its mounts keeps it. */
  async end({ number }: LayerRecord): Promise<void> {
    const { parts, mounts, active, fill } = this.#options;
    await parts.forget(number);
    await mounts.release(number);
    const blob = active.blob(number);
    if (blob !== undefined) await fill?.cancel(blob);
    await active.remove(number);
  }

  async #mountErofs(known: LayerRecord): Promise<string> {
    const { cache, mounts, metaImages, parts, active, fuseMountpoint } = this.#options;
    const { number } = known;
    const path = mounts.path(number);
    const current = await mounts.current(number);
    if (current === "local") return path;
    // What could not be served any more is to be served again, also for those who have it mounted.
    if (current === "fuse" && !active.has(number)) await this.serve(known);
    const isComplete = (await cache.completePath(known.layerDigest, known.size)) !== undefined;
    if (current === "fuse" && !isComplete) return path;
    const record = await parts.ensureImage(known);
    const complete = await cache.completePath(record.layerDigest, record.size);
    if (complete !== undefined) {
      await mounts.mount(number, metaImages.path(record.layerDigest), complete, "local");
      return path;
    }
    const { layerDigest } = await this.serve(record);
    const device = join(fuseMountpoint, blobName(number));
    await mounts.mount(number, metaImages.path(layerDigest), device, "fuse");
    return path;
  }

  async #activate(known: LayerRecord): Promise<LayerRecord> {
    const { cache, parts, active } = this.#options;
    const { record, index } = await this.#open(await parts.ensureImage(known));
    if (index !== undefined) await active.addPartial(record, index);
    else await active.addComplete(record, cache.dataPath(record.layerDigest));
    return record;
  }

  /** Of a layer that is served span by span something can be evicted, and something can be lost. */
  async #open(record: LayerRecord) {
    const { cache, parts } = this.#options;
    const complete = await cache.completePath(record.layerDigest, record.size);
    if (complete === undefined) return parts.takeIndex(record);
    return { record, index: await parts.takeKeptIndex(record) };
  }
}
