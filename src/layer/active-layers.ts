/** The layers that the FUSE session serves. */
import { constants } from "node:os";
import { abortable, type Semaphore } from "../base/concurrency.ts";
import type { Digest } from "../base/digest.ts";
import { ClipError, describeError } from "../base/errors.ts";
import type { DiskCache } from "../cache/disk-cache.ts";
import type { LayerFile } from "../cache/layer-file.ts";
import type { FuseLayer, FuseReadRequest } from "../fuse/session.ts";
import type { LayerHead } from "../index/model.ts";
import type { LayerIndexReader } from "../index/reader.ts";
import type { Repository } from "../registry/reference.ts";
import type { Log } from "../telemetry/log.ts";
import { AlternateSource } from "./alternate-source.ts";
import type { ByteBudget } from "./byte-budget.ts";
import type { ClusterTier } from "./cluster/cluster-tier.ts";
import type { LayerCounters } from "./counters.ts";
import type { DemandActivity } from "./demand-activity.ts";
import { LayerBlob } from "./layer-blob.ts";
import type { LayerRegistry, RegistryBlob } from "./places.ts";
import type { LayerRecord, LayerRecords } from "./records.ts";
import { isRegistryFailure, RegistrySource, type SpanIndex } from "./registry-source.ts";
import { spanTableOf } from "./span-source.ts";
import { WholeSource } from "./whole-source.ts";

const { errno } = constants;

/** What layers need of the FUSE session. */
export interface LayerSession {
  addLayer(layer: FuseLayer): void;
  /** Nobody sees the layer missing. */
  replaceLayer(layer: FuseLayer): void;
  removeLayer(number: number): void;
}

/** What {@link ActiveLayers} is made with. */
export interface ActiveLayersOptions {
  session: LayerSession;
  registry: LayerRegistry;
  cache: DiskCache;
  records: LayerRecords;
  budget: ByteBudget;
  activity: DemandActivity;
  counters: LayerCounters;
  /** Whole pulls wait here for their turn. */
  pulls: Semaphore;
  /** Absent: layers are not shared. */
  cluster?: ClusterTier;
  log: Log;
  /** The metadata image of a layer if the session is to show its tree. */
  loadImage: (record: LayerRecord) => Promise<SharedArrayBuffer | undefined>;
  /** Serves a layer span by span that was added as complete. */
  reopen: (record: LayerRecord) => Promise<LayerBlob>;
  /**
   * A read has failed, maybe since the layer index is wrong. Resolves with what serves the layer
   * instead, once that is so; undefined when the failure stands. Never fails.
   */
  recover: (record: LayerRecord, blob: LayerBlob, error: unknown) => Promise<LayerBlob | undefined>;
  /** Spans of a layer that were on disk are not any more. */
  onLost: (blob: LayerBlob) => void;
  /** Opens the index of another blob of a layer, which is closed here; undefined: there is none. */
  openAlternate: (
    record: LayerRecord,
    layerDigest: Digest,
    signal: AbortSignal,
  ) => Promise<(SpanIndex & { close(): Promise<void> }) | undefined>;
}

/** A layer that the session serves. */
interface ActiveLayer {
  record: LayerRecord;
  /** Absent when the layer was complete from the beginning. */
  blob?: LayerBlob;
  index?: LayerIndexReader | undefined;
  /** Sources of the blob that have something open. */
  sources: readonly { close(): Promise<void> }[];
  /** What the session was told: which spans may be read from the file. */
  spanPresent: Uint8Array;
}

/** A repository that may have a blob. */
interface Place {
  repository: Repository;
  blob: RegistryBlob;
}

/** Adds layers to the session and answers the reads that it hands over. */
export class ActiveLayers {
  readonly #options: ActiveLayersOptions;
  readonly #active = new Map<number, ActiveLayer>();

  constructor(options: ActiveLayersOptions) {
    this.#options = options;
  }

  has(number: number): boolean {
    return this.#active.has(number);
  }

  /** The blob of a layer that is served and was not complete when that began. */
  blob(number: number): LayerBlob | undefined {
    return this.#active.get(number)?.blob;
  }

  /** The index that a layer is served with. */
  index(number: number): LayerIndexReader | undefined {
    return this.#active.get(number)?.index;
  }

  /**
   * Serves a layer whose spans come when they are read, also in place of one that was complete or is
   * suspended. Takes over `index`, also when it fails.
   */
  async addPartial(record: LayerRecord, index: LayerIndexReader): Promise<LayerBlob> {
    const { cache, session, budget, activity, counters, log } = this.#options;
    const { head } = index;
    let file: LayerFile | undefined;
    try {
      const image = await this.#options.loadImage(record);
      this.#hide(record.number);
      file = await cache.openLayer(record.layerDigest, spanTableOf(head));
      const shared = this.#options.cluster?.source(head);
      const places = this.#placesOf(record, head);
      const registry = this.#registrySource(index, () => withRanges(places()));
      const alternate = this.#alternateSource(record);
      const whole = this.#wholeSource(record, head, file, {
        places,
        source: this.#registrySource(index, places),
      });
      // It is known to be of no use to ask for parts; that may have changed, and is found out.
      const rest = record.ranges ? [registry, alternate, whole] : [alternate, whole, registry];
      const sources = [...(shared === undefined ? [] : [shared]), ...rest];
      const onLost = () => this.#options.onLost(blob);
      const parts = { head, file, sources, budget, activity, counters, log, onLost };
      const blob: LayerBlob = new LayerBlob(parts);
      const { spanStarts, spanPresent, path: dataPath, size } = file;
      const served = {
        number: record.number,
        size,
        dataPath,
        spanStarts,
        spanPresent,
        spanUsed: file.use.marks,
        ...(image === undefined ? {} : { tree: { image } }),
      };
      if (this.#active.has(record.number)) session.replaceLayer(served);
      else session.addLayer(served);
      this.#active.set(record.number, {
        ...{ record, blob, index, spanPresent },
        sources: [alternate, whole],
      });
      return blob;
    } catch (error) {
      if (file !== undefined) await cache.closeLayer(record.layerDigest);
      await index.close();
      throw error;
    }
  }

  /** Serves a layer that is complete on disk, at `dataPath`. */
  addComplete(record: LayerRecord, dataPath: string): Promise<void> {
    return this.#addWhole(record, dataPath, 1);
  }

  /** Serves a layer of which nothing can be read before its index has been had again. */
  addMissing(record: LayerRecord, dataPath: string): Promise<void> {
    return this.#addWhole(record, dataPath, 0);
  }

  /** Answers a read that the FUSE threads could not. */
  handleRead(request: FuseReadRequest): void {
    const { layer, offset, length, signal } = request;
    const active = this.#active.get(layer);
    if (active === undefined) {
      request.fail(errno.EIO);
      return;
    }
    const { record, blob } = active;
    // Of a layer that is complete only what the disk does not give gets here.
    const opened = blob === undefined ? this.#options.reopen(record) : Promise.resolve(blob);
    opened
      .then((it) => this.#read(record, it, request))
      .then(
        (pieces) => request.reply(pieces),
        (error: unknown) => {
          // Nobody reads an answer any more if the reader gave up. An answer ends the signal, too.
          const isAwaited = !signal.aborted;
          if (isAwaited) this.#options.counters.readErrors++;
          request.fail(errno.EIO);
          if (!isAwaited) return;
          const { layerDigest } = record;
          const fields = { layer: layerDigest, number: layer, offset, length };
          const failure = { ...fields, error: describeError(error) };
          this.#options.log.error(failure, "a read of a layer failed");
        },
      );
  }

  /**
   * From now on every read of a layer fails.
   * @returns its number, and the digest of the head of its index; undefined if it is not served
   */
  condemn(blob: LayerBlob, reason: ClipError): { number: number; headDigest: Digest } | undefined {
    blob.condemn(reason);
    for (const { record, index, blob: served } of this.#active.values()) {
      if (served !== blob || index === undefined) continue;
      this.#options.session.removeLayer(record.number);
      return { number: record.number, headDigest: index.headDigest };
    }
    return undefined;
  }

  /**
   * Ends what is done for a layer and closes its file. The session goes on with what it has: the
   * layer is to be added again, or removed, soon.
   * @returns its index, which the caller closes
   */
  async suspend(number: number): Promise<LayerIndexReader | undefined> {
    const active = this.#active.get(number);
    if (active === undefined) return undefined;
    const { record, blob, index, spanPresent } = active;
    await this.#close({ ...active, index: undefined }).catch((error: unknown) => {
      // What was open is closed all the same, and what was written is synced before it is claimed.
      const fields = { layer: record.layerDigest, number, error: describeError(error) };
      this.#options.log.warn(fields, "what was open of a layer could not be closed well");
    });
    // What is claimed has been noted by now.
    this.#hide(number);
    this.#active.set(number, { record, ...(blob && { blob }), sources: [], spanPresent });
    return index;
  }

  /** Stops to serve a layer. */
  async remove(number: number): Promise<void> {
    const active = this.#active.get(number);
    if (active === undefined) return;
    this.#active.delete(number);
    this.#options.session.removeLayer(number);
    await this.#close(active);
  }

  /** Stops to answer reads; the session is not touched. What was fetched is kept. */
  async close(): Promise<void> {
    const all = [...this.#active.values()];
    this.#active.clear();
    await Promise.all(all.map((active) => this.#close(active)));
  }

  async #read(
    record: LayerRecord,
    blob: LayerBlob,
    { offset, length, signal }: FuseReadRequest,
  ): Promise<Buffer[]> {
    try {
      return await blob.read(offset, length, signal);
    } catch (error) {
      if (signal.aborted) throw error;
      const instead = await abortable(this.#options.recover(record, blob, error), signal);
      if (instead === undefined) throw error;
      return instead.read(offset, length, signal);
    }
  }

  async #addWhole(record: LayerRecord, dataPath: string, present: 0 | 1): Promise<void> {
    const image = await this.#options.loadImage(record);
    const boundaries = record.size === 0 ? [0] : [0, record.size];
    const spanStarts = new Float64Array(new SharedArrayBuffer(boundaries.length * 8));
    spanStarts.set(boundaries);
    const spanPresent = new Uint8Array(new SharedArrayBuffer(boundaries.length - 1)).fill(present);
    this.#options.session.addLayer({
      number: record.number,
      size: record.size,
      dataPath,
      spanStarts,
      spanPresent,
      ...(image === undefined ? {} : { tree: { image } }),
    });
    this.#active.set(record.number, { record, sources: [], spanPresent });
  }

  /**
   * Has every read of a layer handed over, and so wait, until it is added again: another file, maybe
   * an empty one, may take the place of the one that the FUSE threads know by its path.
   */
  #hide(number: number): void {
    const spanPresent = this.#active.get(number)?.spanPresent;
    spanPresent?.forEach((_, span) => Atomics.store(spanPresent, span, 0));
  }

  /** Closes everything, also when some of it fails to close. */
  async #close({ record, blob, index, sources }: ActiveLayer): Promise<void> {
    const { cache } = this.#options;
    const steps = [
      () => blob?.close(),
      ...sources.map((source) => () => source.close()),
      () => (blob === undefined ? undefined : cache.closeLayer(record.layerDigest)),
      () => index?.close(),
    ];
    const failures: unknown[] = [];
    for (const step of steps) {
      try {
        await step();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
  }

  #registrySource(index: SpanIndex, places: () => Place[]): RegistrySource {
    const { layerDigest } = index.head;
    const onFound = (repository: Repository) =>
      this.#options.records.prefer(layerDigest, repository);
    return new RegistrySource({ index, places, onFound });
  }

  /** Where a blob of the layer may be, as far as that is known at the time of the call. */
  #placesOf({ diffId }: LayerRecord, head: LayerHead): () => Place[] {
    const { registry, records } = this.#options;
    const { layerDigest, compressedSize } = head;
    const readers = new Map<string, RegistryBlob>();
    return () => {
      const blob = records.blobs(diffId).find((one) => one.layerDigest === layerDigest);
      return (blob?.repositories ?? []).map((repository) => {
        const key = `${repository.host}/${repository.name}`;
        const reader = readers.get(key) ?? registry.blob(repository, layerDigest, compressedSize);
        readers.set(key, reader);
        return { repository, blob: reader };
      });
    };
  }

  #alternateSource(record: LayerRecord): AlternateSource {
    const { records, openAlternate } = this.#options;
    return new AlternateSource({
      digests: () =>
        records
          .blobs(record.diffId)
          .map(({ layerDigest }) => layerDigest)
          .filter((digest) => digest !== record.layerDigest),
      open: async (layerDigest, signal) => {
        const index = await openAlternate(record, layerDigest, signal);
        if (index === undefined) return undefined;
        const places = this.#placesOf(record, index.head);
        const source = this.#registrySource(index, () => withRanges(places()));
        return { source, close: () => index.close() };
      },
    });
  }

  #wholeSource(
    { number }: LayerRecord,
    head: LayerHead,
    file: LayerFile,
    { places, source }: { places: () => Place[]; source: RegistrySource },
  ): WholeSource {
    const { records, pulls, counters, log } = this.#options;
    return new WholeSource({
      isNeeded: (signal) => somePlaceIgnoresRanges(places(), signal),
      onBegin: () => records.setRanges(number, false),
      ...{ head, file, source, pulls, counters, log },
    });
  }
}

/**
 * Those that may give parts.
 * @throws ClipError REGISTRY_PROTOCOL when it is known that none does
 */
function withRanges(places: Place[]): Place[] {
  const useful = places.filter(({ blob }) => !blob.ignoresRanges);
  if (useful.length > 0 || places.length === 0) return useful;
  throw new ClipError("REGISTRY_PROTOCOL", "the registry gives no parts of the layer");
}

/** One that cannot be asked does not count. */
async function somePlaceIgnoresRanges(
  places: readonly Place[],
  signal: AbortSignal,
): Promise<boolean> {
  for (const { blob } of places) {
    try {
      if (!(await blob.supportsRanges(signal))) return true;
    } catch (error) {
      if (signal.aborted || !isRegistryFailure(error)) throw error;
    }
  }
  return false;
}
