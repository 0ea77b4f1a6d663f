/** Putting an object into a bucket: in one request if it is small, in parts if it is not. */
import type { CompletedPart, S3Client } from "@aws-sdk/client-s3";
import { ClipError } from "../../base/errors.ts";
import { exactChunks, type ContentSource } from "./content-source.ts";
import { forEachParallel } from "./operations.ts";
import {
  isConditionalConflict,
  isPreconditionFailed,
  isUnsupportedCondition,
} from "./s3-failure.ts";

/** The client library, which is loaded when a cache needs it. */
export type S3Sdk = typeof import("@aws-sdk/client-s3");

const MiB = 1024 * 1024;
const partsMax = 10_000;

/** What an upload needs from its cache. */
export interface S3UploadOptions {
  sdk: S3Sdk;
  client: S3Client;
  bucket: string;
  partBytes: number;
  parallelParts: number;
  /** Whether to try conditional puts. */
  conditional: boolean;
  /** Runs a request within its deadline, its errors made ClipErrors. */
  request: <Value>(
    what: string,
    signal: AbortSignal | undefined,
    work: (signal: AbortSignal) => Promise<Value>,
  ) => Promise<Value>;
}

/** How one object is put. */
interface PutOptions {
  replace: boolean;
  isPresent: () => Promise<boolean>;
  /** Ends the upload; parts that are on their way are still delivered. */
  signal: AbortSignal;
  /** Ends everything at once. */
  closing: AbortSignal;
}

type Outcome = "stored" | "present";

/** The uploads of one cache; remembers whether its server can put conditionally. */
export class S3Upload {
  readonly #options: S3UploadOptions;
  #conditional: boolean;

  constructor(options: S3UploadOptions) {
    this.#options = options;
    this.#conditional = options.conditional;
  }

  /** Puts the object `Key`. After `signal` this goes on until what was sent is cleaned up. */
  async run(Key: string, source: ContentSource, options: PutOptions): Promise<Outcome> {
    const partBytes = Math.max(
      this.#options.partBytes,
      Math.ceil(source.size / partsMax / MiB) * MiB,
    );
    return source.size <= partBytes
      ? this.#putWhole(Key, source, options)
      : this.#putParts(Key, source, partBytes, options);
  }

  async #putWhole(Key: string, source: ContentSource, options: PutOptions): Promise<Outcome> {
    const { sdk, client, bucket } = this.#options;
    let Body: Buffer = Buffer.alloc(0);
    for await (const all of exactChunks(source, source.size, options.signal)) Body = all;
    return this.#finish(Key, options, async (condition, abortSignal) => {
      await client.send(
        new sdk.PutObjectCommand({
          Bucket: bucket,
          Key,
          Body,
          ContentLength: Body.length,
          ContentType: "application/octet-stream",
          ...condition,
        }),
        { abortSignal },
      );
    });
  }

  async #putParts(
    Key: string,
    source: ContentSource,
    partBytes: number,
    options: PutOptions,
  ): Promise<Outcome> {
    const { sdk, client, bucket } = this.#options;
    const UploadId = await this.#begin(Key, options.signal);
    let completed = false;
    try {
      const Parts = await this.#sendParts(Key, UploadId, source, partBytes, options);
      const outcome = await this.#finish(Key, options, async (condition, abortSignal) => {
        await client.send(
          new sdk.CompleteMultipartUploadCommand({
            Bucket: bucket,
            Key,
            UploadId,
            MultipartUpload: { Parts },
            ...condition,
          }),
          { abortSignal },
        );
      });
      completed = outcome === "stored";
      return outcome;
    } finally {
      if (!completed) await this.#abandon(Key, UploadId);
    }
  }

  async #begin(Key: string, signal: AbortSignal): Promise<string> {
    const { sdk, client, bucket, request } = this.#options;
    const command = new sdk.CreateMultipartUploadCommand({
      Bucket: bucket,
      Key,
      ContentType: "application/octet-stream",
    });
    return request(`upload of ${Key}`, signal, async (abortSignal) => {
      const { UploadId } = await client.send(command, { abortSignal });
      if (UploadId !== undefined) return UploadId;
      throw new ClipError("CACHE_PROTOCOL", "the server began an upload without an id");
    });
  }

  async #sendParts(
    Key: string,
    UploadId: string,
    source: ContentSource,
    partBytes: number,
    { signal, closing }: PutOptions,
  ): Promise<CompletedPart[]> {
    const { sdk, client, bucket, parallelParts, request } = this.#options;
    const parts: CompletedPart[] = [];
    const chunks = exactChunks(source, partBytes, signal);
    await forEachParallel(chunks, parallelParts, signal, async (chunk, index) => {
      const PartNumber = index + 1;
      const command = new sdk.UploadPartCommand({
        Bucket: bucket,
        Key,
        UploadId,
        PartNumber,
        Body: chunk,
        ContentLength: chunk.length,
      });
      // Not cut off with the upload: a server that still handles a part while the upload is
      // abandoned may keep it for ever.
      const { ETag } = await request(`upload of ${Key}`, closing, (abortSignal) =>
        client.send(command, { abortSignal }),
      );
      parts[index] = { PartNumber, ...(ETag === undefined ? {} : { ETag }) };
    });
    return parts;
  }

  /** Makes the object visible with `send`, on the condition that it is not there yet. */
  async #finish(
    Key: string,
    { replace, isPresent, signal }: PutOptions,
    send: (condition: { IfNoneMatch?: "*" }, signal: AbortSignal) => Promise<void>,
  ): Promise<Outcome> {
    const { request } = this.#options;
    const what = `upload of ${Key}`;
    if (this.#conditional && !replace) {
      const verdict = await request(what, signal, async (abortSignal) => {
        try {
          await send({ IfNoneMatch: "*" }, abortSignal);
          return "stored" as const;
        } catch (error) {
          if (isPreconditionFailed(error)) return "present" as const;
          if (isUnsupportedCondition(error)) return "unsupported" as const;
          if (isConditionalConflict(error)) return "conflict" as const;
          throw error;
        }
      });
      if (verdict === "stored" || verdict === "present") return verdict;
      if (verdict === "conflict") {
        if (await isPresent()) return "present";
        throw new ClipError("CACHE_UNAVAILABLE", `${what}: another upload is under way`);
      }
      this.#conditional = false;
      // The next best: equal bytes may be put twice, but a finished object is seen in time.
      if (await isPresent()) return "present";
    }
    await request(what, signal, (abortSignal) => send({}, abortSignal));
    return "stored";
  }

  /** Frees the parts on the server. Bounded on its own: what ended the upload does not end this. */
  async #abandon(Key: string, UploadId: string): Promise<void> {
    const { sdk, client, bucket, request } = this.#options;
    const command = new sdk.AbortMultipartUploadCommand({ Bucket: bucket, Key, UploadId });
    // A server that cannot be reached now drops it by its lifecycle rule for unfinished uploads.
    await request("removal of an unfinished upload", undefined, (abortSignal) =>
      client.send(command, { abortSignal }),
    ).catch(() => {});
  }
}
