/** Reading a blob from a registry at any place. */
import type { Digest } from "../base/digest.ts";
import { ClipError, isClipError } from "../base/errors.ts";
import type { RangeSource } from "../base/range.ts";
import { registryError, type Subject } from "./failure.ts";
import { discardBody, isTransientFault, isUnknownName, networkError } from "./http.ts";
import { inOrder } from "./in-order.ts";
import type { RegistryHost } from "./registry-host.ts";
import { backoffMs, pause } from "./retry.ts";
import type { RegistryResponse, Session } from "./session.ts";
import type { Repository } from "./reference.ts";

// What is thrown away when a server ignores Range: this much, or as much as was asked for; and this
// much when it does so again and again.
const discardBytes = 1024 * 1024;
const discardBytesMax = 64 * 1024 * 1024;
// A body that breaks after this much has made progress: it does not count against the retries.
const progressBytes = 256 * 1024;

/** What a {@link BlobReader} works with. */
export interface BlobReaderOptions {
  repository: Repository;
  digest: Digest;
  /** Bytes of the blob, as its descriptor says. */
  size: number;
  host: RegistryHost;
  retries: number;
}

/** How {@link BlobReader.parallelStream} works. */
export interface ParallelOptions {
  /** Ranges that are under way at the same time. */
  connections: number;
  /** Bytes of one range. At most `connections` of them are held in memory. */
  chunkBytes: number;
  signal?: AbortSignal | undefined;
}

interface OpenBody {
  body: RegistryResponse["body"];
  /** Bytes to skip at its beginning, because the server ignored the range. */
  skip: number;
  /** Bytes that it holds after that. */
  length: number;
  ranged: boolean;
}

interface OpenOptions {
  /** What may be thrown away when the server ignores Range, in bytes. */
  discardMax: number;
  signal: AbortSignal | undefined;
}

/**
 * A blob in a registry. It holds no resources of its own. What it reads is not checked against the
 * digest: that is for whoever knows what the bytes should be.
 */
export class BlobReader implements RangeSource {
  readonly size: number;
  readonly #options: BlobReaderOptions;
  readonly #subject: Subject;
  // Where a redirect led, often an object store: asked directly until it refuses.
  readonly #locations = new Map<Session, URL>();
  #preferred: Session | undefined;
  #ranged: boolean | undefined;

  constructor(options: BlobReaderOptions) {
    const { repository, digest, size } = options;
    this.size = size;
    this.#options = options;
    this.#subject = { host: repository.host, repository: repository.name, target: digest };
  }

  /**
   * Exactly `length` bytes at `offset`.
   * @throws ClipError REGISTRY_UNAVAILABLE, REGISTRY_NOT_FOUND, REGISTRY_DENIED,
   *   REGISTRY_PROTOCOL (also when the server cannot serve ranges), ABORTED, CLOSED
   */
  async read(offset: number, length: number, signal?: AbortSignal): Promise<Buffer> {
    const buffer = Buffer.allocUnsafeSlow(length);
    await this.#readInto(buffer, offset, signal);
    return buffer;
  }

  /**
   * `length` bytes at `offset` in chunks of whatever size; goes on where a connection broke.
   * @throws as {@link read}
   */
  async *stream(
    offset = 0,
    length: number = this.size - offset,
    signal?: AbortSignal,
  ): AsyncGenerator<Buffer, void, undefined> {
    this.#checkRange(offset, length);
    const end = offset + length;
    let position = offset;
    const { retries } = this.#options;
    for (let failures = 0; position < end;) {
      const start = position;
      let opened: OpenBody | undefined;
      let failure: ClipError;
      try {
        const discardMax = failures < retries ? discardBytes : discardBytesMax;
        opened = await this.#open(position, end - position, { discardMax, signal });
        let { skip } = opened;
        for await (const chunk of opened.body) {
          const kept = skip === 0 ? chunk : chunk.subarray(Math.min(skip, chunk.length));
          skip -= chunk.length - kept.length;
          const wanted = kept.subarray(0, end - position);
          position += wanted.length;
          if (wanted.length > 0) yield wanted;
          if (position === end) return;
        }
        if (position > start && position - start >= opened.length) continue;
        failure = this.#protocol("the body of the answer ends too early");
      } catch (error) {
        failure = networkError(error, this.#subject, this.#origin(), signal);
        if (!mayPass(error) || signal?.aborted === true) throw failure;
      } finally {
        opened?.body.destroy();
      }
      failures = position - start >= progressBytes ? 0 : failures + 1;
      if (failures > retries) throw failure;
      await pause(backoffMs(failures), signal);
    }
  }

  /**
   * The whole blob in order, several ranges of it under way at once; one plain GET where the
   * server has no ranges. Leaving the loop early ends the requests. What is yielded is
   * overwritten once the next is asked for.
   * @throws as {@link read}
   */
  async *parallelStream(options: ParallelOptions): AsyncGenerator<Buffer, void, undefined> {
    const { connections, chunkBytes, signal } = options;
    if (this.size <= chunkBytes || connections <= 1 || !(await this.supportsRanges(signal))) {
      yield* this.stream(0, this.size, signal);
      return;
    }
    const chunks = Math.ceil(this.size / chunkBytes);
    // Memory outside of the heap that comes and goes has the whole heap collected again and again.
    const free: Buffer[] = [];
    const read = async (chunk: number, chunkSignal: AbortSignal) => {
      const offset = chunk * chunkBytes;
      const buffer = free.pop() ?? Buffer.allocUnsafeSlow(chunkBytes);
      const part = buffer.subarray(0, Math.min(chunkBytes, this.size - offset));
      await this.#readInto(part, offset, chunkSignal);
      return { buffer, part };
    };
    for await (const { buffer, part } of inOrder(chunks, connections, read, signal)) {
      yield part;
      free.push(buffer);
    }
  }

  async #readInto(buffer: Buffer, offset: number, signal: AbortSignal | undefined): Promise<void> {
    let position = 0;
    for await (const chunk of this.stream(offset, buffer.length, signal)) {
      position += chunk.copy(buffer, position);
    }
  }

  /**
   * Whether ranges of this blob can be had, as the last answer showed. One request for one byte if
   * there was none: it also shows that the blob is there and may be read, and where it really is.
   * @throws as {@link read}
   */
  async supportsRanges(signal?: AbortSignal): Promise<boolean> {
    if (this.#ranged === undefined && this.size > 0) {
      const opened = await this.#open(0, 1, { discardMax: discardBytes, signal });
      if (opened.ranged) await discardBody(opened.body);
      else opened.body.destroy();
      this.#ranged = opened.ranged;
    }
    return this.#ranged ?? true;
  }

  /** Whether it is known, without asking, that ranges cannot be had. */
  get ignoresRanges(): boolean {
    return this.#ranged === false;
  }

  #open(offset: number, length: number, options: OpenOptions): Promise<OpenBody> {
    const { host, retries } = this.#options;
    return host.first("pull", this.#preferred, options.signal, async (session, isLast) => {
      const tries = isLast ? retries : 1;
      const opened = await this.#openAt(session, offset, length, { ...options, retries: tries });
      this.#preferred = session;
      return opened;
    });
  }

  async #openAt(
    session: Session,
    offset: number,
    length: number,
    { retries, discardMax, signal }: OpenOptions & { retries: number },
  ): Promise<OpenBody> {
    const whole = offset === 0 && length === this.size;
    const { repository, digest, host } = this.#options;
    const send = (url: URL | string, tries: number) =>
      session.send({
        method: "GET",
        url,
        headers: whole ? {} : { range: `bytes=${offset}-${offset + length - 1}` },
        scope: `repository:${repository.name}:pull`,
        subject: this.#subject,
        retries: tries,
        signal,
      });
    const path = `/${repository.name}/blobs/${digest}${host.query(session)}`;
    // The registry itself is there for when the known address fails: no need to insist.
    const known = await this.#sendToKnown(session, (url) => send(url, Math.min(retries, 1)));
    const response = known ?? (await send(path, retries));
    if (response.status !== 200 && response.status !== 206) {
      throw await session.failure(response, this.#subject);
    }
    if (response.url.href !== session.endpoint.base + path) {
      this.#locations.set(session, response.url);
    }
    if (!whole) this.#ranged = response.status === 206;
    try {
      return this.#check(response, offset, length, whole ? Infinity : discardMax);
    } catch (error) {
      response.body.destroy();
      this.#locations.delete(session);
      throw error;
    }
  }

  // A signed address expires, and an object moves: then the registry knows the new address.
  async #sendToKnown(
    session: Session,
    send: (url: URL) => Promise<RegistryResponse>,
  ): Promise<RegistryResponse | undefined> {
    const known = this.#locations.get(session);
    if (known === undefined) return undefined;
    try {
      const response = await send(known);
      if (response.status < 400) return response;
      await discardBody(response.body);
    } catch (error) {
      if (!isClipError(error) || !error.code.startsWith("REGISTRY_")) throw error;
    }
    this.#locations.delete(session);
    return undefined;
  }

  #check(response: RegistryResponse, offset: number, length: number, discardMax: number): OpenBody {
    const { body, status } = response;
    const encoding = response.header("content-encoding");
    if (encoding !== undefined && encoding !== "identity") {
      throw this.#protocol("the answer is encoded though it must not be", status);
    }
    if (status === 206) {
      const range = response.header("content-range") ?? "";
      const [, first, last, total] = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(range) ?? [];
      const end = Number(last) + 1;
      const fits = Number(first) === offset && end > offset && end <= offset + length;
      if (!fits || (total !== "*" && Number(total) !== this.size)) {
        throw this.#protocol("the answer holds another range than was asked for", status);
      }
      return { body, skip: 0, length: end - offset, ranged: true };
    }
    const stated = response.header("content-length");
    if (stated !== undefined && Number(stated) !== this.size) {
      throw this.#protocol("the blob has another size than its descriptor says", status);
    }
    if (offset > Math.max(discardMax, length)) {
      throw this.#protocol("the registry cannot serve ranges", status);
    }
    return { body, skip: offset, length, ranged: false };
  }

  #checkRange(offset: number, length: number): void {
    const valid = Number.isSafeInteger(offset) && Number.isSafeInteger(length);
    if (!valid || offset < 0 || length < 0 || offset + length > this.size) {
      throw new ClipError("ARGUMENT_INVALID", `no such range: ${length} bytes at ${offset}`);
    }
  }

  #protocol(what: string, status?: number): ClipError {
    const endpoint = this.#origin();
    return registryError("REGISTRY_PROTOCOL", what, this.#subject, {
      endpoint,
      ...(status === undefined ? {} : { status }),
    });
  }

  #origin(): string {
    return this.#preferred?.origin ?? this.#subject.host;
  }
}

// What was wrong with an answer may be right the next time, and a name that is gone may come back:
// a reader would rather wait than fail.
function mayPass(error: unknown): boolean {
  if (!isClipError(error)) return isTransientFault(error) || isUnknownName(error);
  return error.code === "REGISTRY_PROTOCOL" || isUnknownName(error.cause);
}
