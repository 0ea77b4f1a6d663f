/** A containerd for tests: the services that clip reads, over their real definitions. */
import { Server, ServerCredentials, status } from "@grpc/grpc-js";
import type { sendUnaryData, ServerUnaryCall, ServerWritableStream } from "@grpc/grpc-js";
import { digestOf, type Digest } from "../base/digest.ts";
import { loadService, timestampFromNanoseconds } from "./protos.ts";

interface Blob {
  bytes: Buffer;
  labels: Record<string, string>;
  createdAt: bigint;
}

/** What a namespace holds. */
export class FakeNamespace {
  readonly blobs = new Map<string, Blob>();
  readonly images: { name: string; target: { digest: string } }[] = [];
}

/** Serves namespaces on a unix socket, and notes down each call as `<namespace> <Service>.<method>`. */
export class FakeContainerd {
  readonly namespaces = new Map<string, FakeNamespace>();
  readonly calls: string[] = [];
  /** Answers nothing at all while set. */
  silent = false;
  readonly #server = new Server();
  #clock = 0n;

  namespace(name: string): FakeNamespace {
    const namespace = this.namespaces.get(name) ?? new FakeNamespace();
    this.namespaces.set(name, namespace);
    return namespace;
  }

  /** Stores a blob, newer than all before it. */
  put(namespace: string, content: Buffer | object, labels: Record<string, string> = {}): Digest {
    const bytes = Buffer.isBuffer(content) ? content : Buffer.from(JSON.stringify(content));
    const digest = digestOf(bytes);
    this.namespace(namespace).blobs.set(digest, { bytes, labels, createdAt: ++this.#clock });
    return digest;
  }

  async listen(path: string): Promise<void> {
    const service = (file: string, name: string) =>
      loadService(file, `containerd.services.${name}`);
    this.#server.addService(service("content.proto", "content.v1.Content"), {
      Info: this.#unary("Content.Info", (namespace, { digest }) => {
        const blob = namespace.blobs.get(digest ?? "");
        return blob === undefined ? undefined : { info: infoOf(digest ?? "", blob) };
      }),
      List: this.#stream("Content.List", (namespace, { filters }) => {
        const label = /^labels\."(.*)"$/.exec(filters?.[0] ?? "")?.[1] ?? "";
        const blobs = [...namespace.blobs].filter(([, { labels }]) => label in labels);
        return blobs.map(([digest, blob]) => ({ info: [infoOf(digest, blob)] }));
      }),
      Read: this.#stream("Content.Read", (namespace, { digest }) => {
        const bytes = namespace.blobs.get(digest ?? "")?.bytes;
        if (bytes === undefined) return undefined;
        const half = bytes.length >> 1;
        return [{ data: bytes.subarray(0, half) }, { data: bytes.subarray(half) }];
      }),
    });
    this.#server.addService(service("images.proto", "images.v1.Images"), {
      List: this.#unary("Images.List", ({ images }) => ({ images })),
    });
    this.#server.addService(service("namespaces.proto", "namespaces.v1.Namespaces"), {
      List: this.#unary("Namespaces.List", () => ({
        namespaces: [...this.namespaces.keys()].map((name) => ({ name })),
      })),
    });
    await new Promise<void>((resolve, reject) => {
      this.#server.bindAsync(`unix:${path}`, ServerCredentials.createInsecure(), (error) =>
        error === null ? resolve() : reject(error),
      );
    });
  }

  close(): void {
    this.#server.forceShutdown();
  }

  #unary(
    method: string,
    answer: (namespace: FakeNamespace, request: Request) => object | undefined,
  ) {
    return (call: ServerUnaryCall<Request, object>, callback: sendUnaryData<object>) => {
      const namespace = this.#called(method, call);
      if (this.silent) return;
      const response = answer(namespace, call.request);
      if (response === undefined)
        callback({ code: status.NOT_FOUND, details: "content: not found" });
      else callback(null, response);
    };
  }

  #stream(
    method: string,
    answer: (namespace: FakeNamespace, request: Request) => object[] | undefined,
  ) {
    return (call: ServerWritableStream<Request, object>) => {
      const namespace = this.#called(method, call);
      if (this.silent) return;
      const responses = answer(namespace, call.request);
      if (responses === undefined) {
        call.emit("error", { code: status.NOT_FOUND, details: "content: not found" });
        return;
      }
      for (const response of responses) call.write(response);
      call.end();
    };
  }

  #called(
    method: string,
    { metadata }: { metadata: ServerUnaryCall<Request, object>["metadata"] },
  ) {
    const name = metadata.get("containerd-namespace").join();
    this.calls.push(`${name} ${method}`.trim());
    return this.namespaces.get(name) ?? new FakeNamespace();
  }
}

interface Request {
  digest?: string;
  filters?: string[];
}

function infoOf(digest: string, { bytes, labels, createdAt }: Blob) {
  return { digest, size: bytes.length, createdAt: timestampFromNanoseconds(createdAt), labels };
}
