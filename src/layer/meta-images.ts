/** The metadata images of this node's layers. They are only ever written here. */
import { access, mkdir, readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { digestKey, type Digest } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import { workerFailure } from "../base/worker-failure.ts";
import type { LayerIndexReader } from "../index/reader.ts";
import { DirectFile } from "../os/direct-file.ts";
import { decodeImageFile, readImageFile, type ImageFile } from "./image-file.ts";
import { makeMetaImage, type MetaAnswer, type MetaImage } from "./meta-image.ts";

/** Changes whenever the same entries give another image, so that old images are made anew. */
const imageVersion = 1;
/** File tables up to this size take a few milliseconds, which the main thread can spare. */
const inlineBytesMax = 32 * 1024;
/** The thread ends when it had nothing to do for this long: it holds ten megabytes. */
const idleMs = 30_000;

/** What {@link MetaImages} is made with. */
export interface MetaImagesOptions {
  directory: string;
  keepRuntimeDirectories: boolean;
}

/** The parts of a layer index that an image is made from. */
export type ImageIndex = Pick<LayerIndexReader, "head" | "readFileTable">;

interface Waiting {
  resolve: (made: MetaImage) => void;
  reject: (error: unknown) => void;
}

/** Makes and keeps one metadata image a layer. */
export class MetaImages {
  readonly #options: MetaImagesOptions;
  readonly #waiting = new Map<number, Waiting>();
  #worker: Worker | undefined;
  #idleTimer: NodeJS.Timeout | undefined;
  #nextId = 1;

  constructor(options: MetaImagesOptions) {
    this.#options = options;
  }

  /** Creates the directory and deletes the images of all layers but these. */
  async open(keep: Iterable<Digest>): Promise<void> {
    const { directory } = this.#options;
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const names = new Set<string>();
    for (const digest of keep) names.add(this.#name(digest));
    for (const name of await readdir(directory)) {
      if (!names.has(name)) await rm(join(directory, name), { force: true, recursive: true });
    }
    // The thread takes long to start: a pull that comes soon should find it running.
    this.#startWorker();
  }

  path(layerDigest: Digest): string {
    return join(this.#options.directory, this.#name(layerDigest));
  }

  /** Whether the image of a layer is there. */
  async has(layerDigest: Digest): Promise<boolean> {
    return access(this.path(layerDigest)).then(
      () => true,
      () => false,
    );
  }

  /**
   * Makes the image of a layer from its index.
   * @throws ClipError CORRUPT_INDEX, CORRUPT_TAR, LAYER_UNSUPPORTED, LIMIT_EXCEEDED, DISK_FULL
   */
  async make(index: ImageIndex, signal?: AbortSignal): Promise<MetaImage> {
    const { head } = index;
    const order = {
      fileTable: await index.readFileTable(signal),
      diffId: head.diffId,
      size: head.uncompressedSize,
      imagePath: this.path(head.layerDigest),
      keepRuntimeDirectories: this.#options.keepRuntimeDirectories,
    };
    if (order.fileTable.length <= inlineBytesMax) return makeMetaImage(order);
    const worker = this.#startWorker();
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<MetaImage>();
    this.#waiting.set(id, { resolve, reject });
    worker.postMessage({ ...order, id }, []);
    return promise;
  }

  /**
   * The image of a layer, in memory that threads share.
   * @throws ClipError CORRUPT_EROFS when it is damaged, and has been removed
   */
  async load(layerDigest: Digest): Promise<SharedArrayBuffer> {
    const { image, state } = await readImageFile(this.path(layerDigest));
    if (state === "damaged") {
      await this.remove(layerDigest);
      throw new ClipError("CORRUPT_EROFS", `the metadata image of ${layerDigest} is damaged`);
    }
    const shared = new SharedArrayBuffer(image.length);
    image.copy(new Uint8Array(shared));
    return shared;
  }

  /** How it stands with the image of a layer on disk; `damaged` also when it cannot be read. */
  async check(layerDigest: Digest): Promise<ImageFile["state"] | "missing"> {
    try {
      const path = this.path(layerDigest);
      const file = await DirectFile.open(path);
      try {
        const bytes = await file.read(0, (await stat(path)).size);
        return bytes === undefined ? "damaged" : decodeImageFile(bytes).state;
      } finally {
        await file.close();
      }
    } catch (error) {
      return error instanceof Error && "code" in error && error.code === "ENOENT"
        ? "missing"
        : "damaged";
    }
  }

  /** Bytes that the image of a layer takes on disk. */
  async bytesOnDisk(layerDigest: Digest): Promise<number> {
    return stat(this.path(layerDigest)).then(
      (found) => found.blocks * 512,
      () => 0,
    );
  }

  async remove(layerDigest: Digest): Promise<void> {
    await rm(this.path(layerDigest), { force: true });
  }

  async close(): Promise<void> {
    clearTimeout(this.#idleTimer);
    await this.#worker?.terminate();
  }

  #name(layerDigest: Digest): string {
    const variant = this.#options.keepRuntimeDirectories ? "k" : "";
    return `${digestKey(layerDigest)}.v${imageVersion}${variant}.erofs`;
  }

  /** The thread, running, at least until it had nothing to do for a while. */
  #startWorker(): Worker {
    clearTimeout(this.#idleTimer);
    this.#idleTimer = setTimeout(() => this.#endIdleWorker(), idleMs).unref();
    if (this.#worker !== undefined) return this.#worker;
    const worker = new Worker(new URL("./meta-worker.ts", import.meta.url));
    worker.on("message", (answer: MetaAnswer) => {
      const waiting = this.#waiting.get(answer.id);
      this.#waiting.delete(answer.id);
      if ("made" in answer) waiting?.resolve(answer.made);
      else waiting?.reject(workerError(answer));
    });
    worker.on("error", (error) => {
      this.#lose(worker, workerFailure(error, "making the metadata of a layer"));
    });
    worker.on("exit", () => this.#lose(worker, new ClipError("CLOSED", "the thread has ended")));
    this.#worker = worker;
    return worker;
  }

  #endIdleWorker(): void {
    if (this.#waiting.size > 0) {
      this.#startWorker();
      return;
    }
    void this.#worker?.terminate();
    this.#worker = undefined;
  }

  #lose(worker: Worker, error: unknown): void {
    if (this.#worker !== worker) return;
    this.#worker = undefined;
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}

function workerError({ message, code }: Exclude<MetaAnswer, { made: MetaImage }>): Error {
  return code === undefined ? new Error(message) : new ClipError(code, message);
}
