/** Reads containerd's own metadata over its socket. Never writes to it. */
import { Client, credentials, Metadata, status, type ServiceDefinition } from "@grpc/grpc-js";
import type { CallOptions, ServiceError } from "@grpc/grpc-js";
import type { Digest } from "../base/digest.ts";
import { ClipError, assert } from "../base/errors.ts";
import { grpcMessageBytesMax } from "../base/limits.ts";
import { loadService, nanosecondsFromTimestamp, type Timestamp } from "./protos.ts";

/** What {@link ContainerdClient} takes. */
export interface ContainerdClientOptions {
  /** Path of containerd's socket; it need not be there yet. */
  address: string;
  /** How long a call may take; 5 s if not given. */
  timeoutMs?: number;
}

/** A blob that containerd has. */
export interface ContentInfo {
  digest: string;
  size: number;
  /** Nanoseconds since 1970. */
  createdAt: bigint;
  labels: ReadonlyMap<string, string>;
}

/** A name that containerd has for an image. */
export interface ImageRecord {
  name: string;
  /** Digest of the manifest or index that it names. */
  target: string;
}

/** A part of containerd. */
export interface PluginRecord {
  type: string;
  id: string;
  /** What it tells of itself; a proxy plugin its `address`. */
  exports: Readonly<Record<string, string>>;
}

/** A container that containerd knows, running or not. */
export interface ContainerRecord {
  id: string;
  snapshotter: string;
  snapshotKey: string;
}

interface InfoMessage {
  digest: string;
  size: string;
  createdAt: Timestamp | null;
  labels: Record<string, string>;
}

interface Method<Request, Response> {
  path: string;
  serialize: (request: Request) => Buffer;
  deserialize: (bytes: Buffer) => Response;
}

const content = loadService("content.proto", "containerd.services.content.v1.Content");
const images = loadService("images.proto", "containerd.services.images.v1.Images");
const namespaces = loadService("namespaces.proto", "containerd.services.namespaces.v1.Namespaces");
const snapshots = loadService("snapshots.proto", "containerd.services.snapshots.v1.Snapshots");
const containers = loadService("containers.proto", "containerd.services.containers.v1.Containers");
const introspection = loadService(
  "introspection.proto",
  "containerd.services.introspection.v1.Introspection",
);

const methods = {
  info: method(content, "Info") as Method<{ digest: string }, { info: InfoMessage | null }>,
  list: method(content, "List") as Method<{ filters: readonly string[] }, { info: InfoMessage[] }>,
  read: method(content, "Read") as Method<{ digest: string }, { data: Buffer }>,
  images: method(images, "List") as Method<
    object,
    { images: { name: string; target: { digest: string } | null }[] }
  >,
  namespaces: method(namespaces, "List") as Method<object, { namespaces: { name: string }[] }>,
  snapshots: method(snapshots, "List") as Method<
    { snapshotter: string },
    { info: { name: string }[] }
  >,
  containers: method(containers, "List") as Method<object, { containers: ContainerRecord[] }>,
  plugins: method(introspection, "Plugins") as Method<object, { plugins: PluginRecord[] }>,
};

function method(service: ServiceDefinition, name: string): Method<never, unknown> {
  const definition = service[name];
  assert(definition !== undefined, `there is no method ${name}`);
  return {
    path: definition.path,
    serialize: definition.requestSerialize,
    deserialize: definition.responseDeserialize,
  };
}

/** A client of one containerd, which connects when it is first asked and again when it has to. */
export class ContainerdClient {
  readonly #options: ContainerdClientOptions;
  #client: Client | undefined;

  constructor(options: ContainerdClientOptions) {
    this.#options = options;
  }

  /** What containerd knows of a blob; undefined if it does not have it. @throws ClipError CONTAINERD_UNAVAILABLE, ABORTED */
  async contentInfo(
    namespace: string,
    digest: Digest,
    signal?: AbortSignal,
  ): Promise<ContentInfo | undefined> {
    try {
      const { info } = await this.#unary(methods.info, namespace, { digest }, signal);
      return info === null ? undefined : contentInfo(info);
    } catch (error) {
      if (isNotFound(error)) return undefined;
      throw error;
    }
  }

  /** The blobs that one of containerd's filters accepts. @throws ClipError CONTAINERD_UNAVAILABLE, ABORTED */
  async listContent(
    namespace: string,
    filters: readonly string[],
    signal?: AbortSignal,
  ): Promise<ContentInfo[]> {
    const infos: ContentInfo[] = [];
    await this.#stream(methods.list, namespace, { filters }, signal, ({ info }) => {
      infos.push(...info.map(contentInfo));
    });
    return infos;
  }

  /**
   * The bytes of a blob.
   * @throws ClipError LIMIT_EXCEEDED when there are more than `bytesMax`, IMAGE_NOT_FOUND when
   *   containerd does not have it, CONTAINERD_UNAVAILABLE, ABORTED
   */
  async readContent(
    namespace: string,
    digest: Digest,
    bytesMax: number,
    signal?: AbortSignal,
  ): Promise<Buffer> {
    const parts: Buffer[] = [];
    let bytes = 0;
    try {
      await this.#stream(methods.read, namespace, { digest }, signal, ({ data }) => {
        parts.push(data);
        bytes += data.length;
        if (bytes > bytesMax) {
          throw new ClipError("LIMIT_EXCEEDED", `${digest} is larger than ${bytesMax} bytes`);
        }
      });
    } catch (error) {
      if (!isNotFound(error)) throw error;
      throw new ClipError("IMAGE_NOT_FOUND", `containerd does not have ${digest}`, {
        cause: error,
      });
    }
    return Buffer.concat(parts);
  }

  /** The images of a namespace. @throws ClipError CONTAINERD_UNAVAILABLE, ABORTED */
  async images(namespace: string, signal?: AbortSignal): Promise<ImageRecord[]> {
    const { images } = await this.#unary(methods.images, namespace, {}, signal);
    return images.map(({ name, target }) => ({ name, target: target?.digest ?? "" }));
  }

  /** The names of all namespaces. @throws ClipError CONTAINERD_UNAVAILABLE, ABORTED */
  async namespaces(signal?: AbortSignal): Promise<string[]> {
    const { namespaces } = await this.#unary(methods.namespaces, "", {}, signal);
    return namespaces.map(({ name }) => name);
  }

  /**
   * The snapshots of a namespace by the names that its clients use: those that containerd knows and
   * the snapshotter has. @throws ClipError CONTAINERD_UNAVAILABLE, ABORTED
   */
  async snapshots(namespace: string, snapshotter: string, signal?: AbortSignal): Promise<string[]> {
    const names: string[] = [];
    await this.#stream(methods.snapshots, namespace, { snapshotter }, signal, ({ info }) => {
      names.push(...info.map(({ name }) => name));
    });
    return names;
  }

  /** The containers of a namespace. @throws ClipError CONTAINERD_UNAVAILABLE, ABORTED */
  async containers(namespace: string, signal?: AbortSignal): Promise<ContainerRecord[]> {
    const { containers } = await this.#unary(methods.containers, namespace, {}, signal);
    return containers;
  }

  /** The parts of containerd. @throws ClipError CONTAINERD_UNAVAILABLE, ABORTED */
  async plugins(signal?: AbortSignal): Promise<PluginRecord[]> {
    const { plugins } = await this.#unary(methods.plugins, "", {}, signal);
    return plugins;
  }

  /** Ends the connection; open calls fail. */
  close(): void {
    this.#client?.close();
    this.#client = undefined;
  }

  async #unary<Request, Response>(
    { path, serialize, deserialize }: Method<Request, Response>,
    namespace: string,
    request: Request,
    signal: AbortSignal | undefined,
  ): Promise<Response> {
    const { promise, resolve, reject } = Promise.withResolvers<Response>();
    const running = this.#connected().makeUnaryRequest(
      path,
      serialize,
      deserialize,
      request,
      metadataOf(namespace),
      this.#callOptions(),
      (error, response) => {
        if (error === null && response !== undefined) resolve(response);
        else reject(error ?? new Error("an answer without a message"));
      },
    );
    return this.#settle(promise, running, signal);
  }

  async #stream<Request, Response>(
    { path, serialize, deserialize }: Method<Request, Response>,
    namespace: string,
    request: Request,
    signal: AbortSignal | undefined,
    take: (response: Response) => void,
  ): Promise<void> {
    const running = this.#connected().makeServerStreamRequest(
      path,
      serialize,
      deserialize,
      request,
      metadataOf(namespace),
      this.#callOptions(),
    );
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    running.on("end", resolve).on("error", reject);
    running.on("data", (response: Response) => {
      try {
        take(response);
      } catch (error) {
        reject(error);
        running.cancel();
      }
    });
    await this.#settle(promise, running, signal);
  }

  async #settle<Value>(
    outcome: Promise<Value>,
    running: { cancel(): void },
    signal: AbortSignal | undefined,
  ): Promise<Value> {
    const cancel = () => running.cancel();
    signal?.addEventListener("abort", cancel);
    if (signal?.aborted === true) cancel();
    try {
      return await outcome;
    } catch (error) {
      if (signal?.aborted === true) {
        throw new ClipError("ABORTED", "the call of containerd was given up", { cause: error });
      }
      if (error instanceof ClipError || isNotFound(error)) throw error;
      throw new ClipError("CONTAINERD_UNAVAILABLE", "containerd did not answer", {
        cause: error,
        context: { address: this.#options.address },
      });
    } finally {
      signal?.removeEventListener("abort", cancel);
    }
  }

  #callOptions(): CallOptions {
    return { deadline: Date.now() + (this.#options.timeoutMs ?? 5_000) };
  }

  #connected(): Client {
    this.#client ??= new Client(`unix:${this.#options.address}`, credentials.createInsecure(), {
      "grpc.max_receive_message_length": grpcMessageBytesMax,
      // containerd may be restarted at any time, and is then soon back.
      "grpc.initial_reconnect_backoff_ms": 100,
      "grpc.max_reconnect_backoff_ms": 2_000,
    });
    return this.#client;
  }
}

function metadataOf(namespace: string): Metadata {
  const metadata = new Metadata();
  if (namespace !== "") metadata.set("containerd-namespace", namespace);
  return metadata;
}

function contentInfo({ digest, size, createdAt, labels }: InfoMessage): ContentInfo {
  return {
    digest,
    size: Number(size),
    createdAt: nanosecondsFromTimestamp(createdAt),
    labels: new Map(Object.entries(labels)),
  };
}

function isNotFound(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && error.code === status.NOT_FOUND;
}
