/** A content cache in memory that does what a test tells it to. */
import { ClipError } from "../../../base/errors.ts";
import {
  checkRange,
  type CallOptions,
  type ContentCache,
  type ContentHit,
  type ContentInfo,
  type ContentKey,
  type ReadOptions,
  type RemoveOptions,
  type StoreOptions,
  type StoreOutcome,
} from "../content-cache.ts";
import { exactChunks, type ContentSource } from "../content-source.ts";
import { pastEnd } from "../failure.ts";
import { Operations, withDeadline } from "../operations.ts";

/** An honest cache, as long as {@link before} does nothing. */
export class MemoryCache implements ContentCache {
  readonly name: string;
  /** What it holds; clients that share the map are clients of one cache. */
  readonly objects: Map<ContentKey, Buffer>;
  /** Names of the operations that were begun. */
  readonly calls: string[] = [];
  /** Runs at the start of each operation: throw to fail, wait to be slow. */
  before: (operation: string, signal: AbortSignal) => Promise<void> = () => Promise.resolve();
  readonly #operations: Operations;

  constructor(name = "memory", objects = new Map<ContentKey, Buffer>()) {
    this.name = name;
    this.objects = objects;
    this.#operations = new Operations(name);
  }

  async read(
    key: ContentKey,
    offset: number,
    target: Buffer,
    options: ReadOptions = {},
  ): Promise<ContentHit | undefined> {
    return this.#run("read", options.signal, () => {
      checkRange(offset, target.length);
      const bytes = this.objects.get(key);
      if (bytes === undefined) return undefined;
      const range = { offset, length: target.length };
      if (offset + target.length > bytes.length) {
        throw pastEnd(this.name, key, range, bytes.length);
      }
      bytes.copy(target, 0, offset);
      return { from: this.name };
    });
  }

  async store(
    key: ContentKey,
    source: ContentSource,
    options: StoreOptions = {},
  ): Promise<StoreOutcome> {
    return this.#run("store", options.signal, async (signal) => {
      if (this.objects.has(key) && options.replace !== true) return "present";
      const chunks: Buffer[] = [];
      for await (const chunk of exactChunks(source, 65_536, signal)) chunks.push(chunk);
      if (this.objects.has(key) && options.replace !== true) return "present";
      this.objects.set(key, Buffer.concat(chunks));
      return "stored";
    });
  }

  async has(key: ContentKey, options: CallOptions = {}): Promise<ContentInfo | undefined> {
    return this.#run("has", options.signal, () => {
      const bytes = this.objects.get(key);
      return bytes === undefined ? undefined : { from: this.name, size: bytes.length };
    });
  }

  async remove(key: ContentKey, options: RemoveOptions = {}): Promise<void> {
    return this.#run("remove", options.signal, () => {
      this.objects.delete(key);
    });
  }

  async close(): Promise<void> {
    await this.#operations.close();
  }

  async #run<Value>(
    operation: string,
    signal: AbortSignal | undefined,
    work: (signal: AbortSignal) => Value | Promise<Value>,
  ): Promise<Value> {
    this.calls.push(operation);
    return this.#operations.run(signal, (linked) =>
      withDeadline(operation, 60_000, [linked], async (bounded) => {
        await this.before(operation, bounded);
        if (bounded.aborted) throw new ClipError("ABORTED", "too late");
        return work(bounded);
      }),
    );
  }
}
