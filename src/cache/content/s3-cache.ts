/** A content cache in a bucket of an S3-compatible object store. */
import type { S3Client } from "@aws-sdk/client-s3";
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
} from "./content-cache.ts";
import type { ContentSource } from "./content-source.ts";
import { isClipError } from "../../base/errors.ts";
import { cacheError, pastEnd } from "./failure.ts";
import { Operations, withDeadline } from "./operations.ts";
import { isMissingObject, s3Error, statusOf } from "./s3-failure.ts";
import { s3Http } from "./s3-http.ts";
import { S3Upload, type S3Sdk } from "./s3-upload.ts";

/** Which bucket, as whom, and how patient to be. */
export interface S3CacheOptions {
  /** Default: `s3`. */
  name?: string;
  /** The bucket. It must exist. */
  bucket: string;
  /** Comes before each key, for example `clip/`. Default: empty. */
  prefix?: string;
  /** Default: AWS_REGION, or else `us-east-1`. */
  region?: string;
  /** URL of the server. Default: that of AWS for the region. */
  endpoint?: string;
  /** `https://server/bucket/key` instead of `https://bucket.server/key`. Default: false. */
  pathStyle?: boolean;
  /**
   * Fixed credentials. Default: what the environment, the AWS configuration files, a web identity
   * (AWS_WEB_IDENTITY_TOKEN_FILE), the container or the instance offer, in this order.
   */
  credentials?: { accessKeyId: string; secretAccessKey: string; sessionToken?: string };
  /** Put objects only where there is none (`If-None-Match: *`), if the server can. Default: true. */
  conditionalPut?: boolean;
  /** Size of the parts of an upload, at least 5 MiB. Default 8 MiB; larger for enormous objects. */
  partBytes?: number;
  /** Parts of one object that are sent at the same time. Default 2. */
  parallelParts?: number;
  /** Connections. Default 64. */
  connections?: number;
  /** Longest wait for a connection. Default 3 s. */
  connectTimeoutMs?: number;
  /** Longest wait for one request, repetitions included. Default 60 s. */
  requestTimeoutMs?: number;
  /** How often a request that may pass is sent, in all. Default 3. */
  attempts?: number;
}

const MiB = 1024 * 1024;
const partBytesMin = 5 * MiB;

/**
 * Opens the cache: loads the client (about 0.05 s, with the first request 0.2 s), asks the
 * server nothing. Memory: a store holds `parallelParts + 1` parts, a read what its connection
 * buffers. Give the bucket a lifecycle rule that ends unfinished multipart uploads: those of a node
 * that died stay otherwise.
 */
export async function openS3Cache(options: S3CacheOptions): Promise<ContentCache> {
  const sdk = await import("@aws-sdk/client-s3");
  const timeoutMs = options.requestTimeoutMs ?? 60_000;
  const client = new sdk.S3Client({
    region: options.region ?? process.env["AWS_REGION"] ?? "us-east-1",
    ...(options.endpoint === undefined ? {} : { endpoint: options.endpoint }),
    ...(options.credentials === undefined ? {} : { credentials: options.credentials }),
    forcePathStyle: options.pathStyle ?? false,
    maxAttempts: options.attempts ?? 3,
    // Spans carry their own digests, and many servers do not know the newer checksums.
    requestChecksumCalculation: "WHEN_REQUIRED",
    responseChecksumValidation: "WHEN_REQUIRED",
    requestHandler: s3Http({
      connections: options.connections ?? 64,
      connectTimeoutMs: options.connectTimeoutMs ?? 3_000,
      silenceMs: timeoutMs,
    }),
    logger: { debug() {}, info() {}, warn() {}, error() {} },
  });
  return new S3Cache(sdk, client, { ...options, requestTimeoutMs: timeoutMs });
}

class S3Cache implements ContentCache {
  readonly name: string;
  readonly #sdk: S3Sdk;
  readonly #client: S3Client;
  readonly #bucket: string;
  readonly #prefix: string;
  readonly #requestTimeoutMs: number;
  readonly #upload: S3Upload;
  readonly #operations: Operations;

  constructor(
    sdk: S3Sdk,
    client: S3Client,
    options: S3CacheOptions & { requestTimeoutMs: number },
  ) {
    this.name = options.name ?? "s3";
    this.#sdk = sdk;
    this.#client = client;
    this.#bucket = options.bucket;
    this.#prefix = options.prefix ?? "";
    this.#requestTimeoutMs = options.requestTimeoutMs;
    this.#operations = new Operations(this.name);
    this.#upload = new S3Upload({
      sdk,
      client,
      bucket: this.#bucket,
      partBytes: Math.max(options.partBytes ?? 8 * MiB, partBytesMin),
      parallelParts: options.parallelParts ?? 2,
      conditional: options.conditionalPut ?? true,
      request: (what, signal, work) => this.#request(what, signal, work),
    });
  }

  async read(
    key: ContentKey,
    offset: number,
    target: Buffer,
    options: ReadOptions = {},
  ): Promise<ContentHit | undefined> {
    checkRange(offset, target.length);
    return this.#operations.run(options.signal, async (signal) => {
      const found =
        target.length === 0
          ? await this.#checkEmptyRange(key, offset, signal)
          : await this.#readRange(key, offset, target, signal);
      return found ? { from: this.name } : undefined;
    });
  }

  async store(
    key: ContentKey,
    source: ContentSource,
    options: StoreOptions = {},
  ): Promise<StoreOutcome> {
    return this.#operations.runDetached(options.signal, async (signal, closing) => {
      const replace = options.replace === true;
      const isPresent = async () => (await this.#head(key, signal)) !== undefined;
      if (!replace && (await isPresent())) return "present";
      const how = { replace, isPresent, signal, closing };
      return this.#upload.run(this.#objectName(key), source, how);
    });
  }

  async has(key: ContentKey, options: CallOptions = {}): Promise<ContentInfo | undefined> {
    return this.#operations.run(options.signal, async (signal) => {
      const size = await this.#head(key, signal);
      return size === undefined ? undefined : { from: this.name, size };
    });
  }

  async remove(key: ContentKey, options: RemoveOptions = {}): Promise<void> {
    await this.#operations.run(options.signal, async (signal) => {
      const command = new this.#sdk.DeleteObjectCommand(this.#address(key));
      await this.#request(`removal of ${key}`, signal, (abortSignal) =>
        this.#client.send(command, { abortSignal }),
      ).catch((error: unknown) => {
        // Some servers say so, AWS does not.
        if (!isNotFound(error)) throw error;
      });
    });
  }

  async close(): Promise<void> {
    await this.#operations.close();
    this.#client.destroy();
  }

  async #readRange(
    key: ContentKey,
    offset: number,
    target: Buffer,
    signal: AbortSignal,
  ): Promise<boolean> {
    const range = { offset, length: target.length };
    const command = new this.#sdk.GetObjectCommand({
      ...this.#address(key),
      Range: `bytes=${offset}-${offset + target.length - 1}`,
    });
    return this.#request(`read of ${key}`, signal, async (abortSignal) => {
      const answer = await this.#client.send(command, { abortSignal }).catch((error: unknown) => {
        if (isMissingObject(error)) return undefined;
        if (statusOf(error) === 416) throw pastEnd(this.name, key, range, undefined);
        throw error;
      });
      if (answer === undefined) return false;
      if (!isByteStream(answer.Body)) throw this.#wrongAnswer(key, "no body");
      const body = answer.Body;
      try {
        this.#checkContentRange(key, range, answer.ContentRange);
        await this.#copyBody(key, body, target, abortSignal);
      } finally {
        // Frees the connection; after the whole body this does nothing.
        body.destroy();
      }
      return true;
    });
  }

  #checkContentRange(
    key: ContentKey,
    range: { offset: number; length: number },
    contentRange: string | undefined,
  ): void {
    const match = /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16})$/.exec(contentRange ?? "");
    if (match === null) throw this.#wrongAnswer(key, "no range");
    const [first, last, size] = match.slice(1).map(Number) as [number, number, number];
    if (range.offset + range.length > size) throw pastEnd(this.name, key, range, size);
    if (first !== range.offset || last !== range.offset + range.length - 1) {
      throw this.#wrongAnswer(key, `another range (${first}-${last})`);
    }
  }

  async #copyBody(
    key: ContentKey,
    body: ByteStream,
    target: Buffer,
    signal: AbortSignal,
  ): Promise<void> {
    const onAbort = () => body.destroy();
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      let filled = 0;
      for await (const chunk of body) {
        signal.throwIfAborted();
        if (filled + chunk.length > target.length) {
          throw this.#wrongAnswer(key, "more bytes than it announced");
        }
        target.set(chunk, filled);
        filled += chunk.length;
      }
      signal.throwIfAborted();
      if (filled < target.length) throw this.#wrongAnswer(key, "fewer bytes than it announced");
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** HTTP has no way to ask for no bytes. */
  async #checkEmptyRange(key: ContentKey, offset: number, signal: AbortSignal): Promise<boolean> {
    const size = await this.#head(key, signal);
    if (size === undefined) return false;
    if (offset > size) throw pastEnd(this.name, key, { offset, length: 0 }, size);
    return true;
  }

  async #head(key: ContentKey, signal: AbortSignal): Promise<number | undefined> {
    const command = new this.#sdk.HeadObjectCommand(this.#address(key));
    return this.#request(`look-up of ${key}`, signal, async (abortSignal) => {
      const answer = await this.#client.send(command, { abortSignal }).catch((error: unknown) => {
        // The answer to HEAD has no body, so a bucket that is missing looks like this as well.
        if (statusOf(error) === 404) return undefined;
        throw error;
      });
      if (answer === undefined) return undefined;
      if (answer.ContentLength === undefined) throw this.#wrongAnswer(key, "no length");
      return answer.ContentLength;
    });
  }

  #request<Value>(
    what: string,
    signal: AbortSignal | undefined,
    work: (signal: AbortSignal) => Promise<Value>,
  ): Promise<Value> {
    const name = `content cache ${this.name}: ${what}`;
    return withDeadline(name, this.#requestTimeoutMs, [signal], async (bounded) => {
      try {
        return await work(bounded);
      } catch (error) {
        throw s3Error(this.name, this.#bucket, what, error);
      }
    });
  }

  #wrongAnswer(key: ContentKey, what: string) {
    return cacheError("CACHE_PROTOCOL", this.name, `the answer for ${key} has ${what}`, {
      context: { bucket: this.#bucket, key },
    });
  }

  #address(key: ContentKey): { Bucket: string; Key: string } {
    return { Bucket: this.#bucket, Key: this.#objectName(key) };
  }

  #objectName(key: ContentKey): string {
    return `${this.#prefix}${key}`;
  }
}

/** What Node's HTTP client gives for a body. */
type ByteStream = AsyncIterable<Uint8Array> & { destroy(): unknown };

function isByteStream(body: unknown): body is ByteStream {
  return (
    typeof body === "object" && body !== null && Symbol.asyncIterator in body && "destroy" in body
  );
}

function isNotFound(error: unknown): boolean {
  return isClipError(error, "CACHE_PROTOCOL") && error.context["status"] === 404;
}
