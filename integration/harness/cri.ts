/** A client of the Kubernetes container runtime interface, as the kubelet is one. */
import path from "node:path";
import { fileURLToPath } from "node:url";
import { Client, credentials, type ServiceDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import type { Containerd } from "./containerd.ts";

const definitions = loadSync(fileURLToPath(new URL("cri.proto", import.meta.url)), {
  keepCase: false,
  longs: Number,
  enums: String,
  defaults: true,
});

/** What a command in a container left. */
export interface ExecResult {
  exitCode: number;
  stdout: string;
  stderr: string;
}

/** A container of a pod. */
export interface CriContainer {
  id: string;
  pod: string;
  /** Process on the host. */
  pid: number;
}

/** Speaks to one containerd. */
export class CriClient {
  readonly #client: Client;
  readonly #logs: string;
  #pods = 0;

  constructor(containerd: Containerd) {
    this.#logs = path.join(containerd.directory, "pod-logs");
    this.#client = new Client(`unix://${containerd.address}`, credentials.createInsecure(), {
      "grpc.default_authority": "localhost",
    });
  }

  /** Pulls an image; returns its ID. */
  async pull(image: string): Promise<string> {
    const reply = await this.#call<{ imageRef: string }>("ImageService", "PullImage", {
      image: { image },
    });
    return reply.imageRef;
  }

  /** Tags of the images that are there. */
  async images(): Promise<string[]> {
    const reply = await this.#call<{ images: { repoTags: string[] }[] }>(
      "ImageService",
      "ListImages",
      {},
    );
    return reply.images.flatMap(({ repoTags }) => repoTags);
  }

  async removeImage(image: string): Promise<void> {
    await this.#call("ImageService", "RemoveImage", { image: { image } });
  }

  /** Bytes that images take, as a kubelet would see. */
  async imageBytes(): Promise<number> {
    const reply = await this.#call<{ imageFilesystems: { usedBytes: { value: number } }[] }>(
      "ImageService",
      "ImageFsInfo",
      {},
    );
    return reply.imageFilesystems.reduce((sum, { usedBytes }) => sum + usedBytes.value, 0);
  }

  /** Runs a container in a pod of its own. */
  async run(image: string, command: readonly string[]): Promise<CriContainer> {
    const name = `pod-${String(++this.#pods)}`;
    const config = {
      metadata: { name, uid: name, namespace: "test", attempt: 0 },
      hostname: name,
      logDirectory: this.#logs,
      linux: {},
    };
    const { podSandboxId: pod } = await this.#call<{ podSandboxId: string }>(
      "RuntimeService",
      "RunPodSandbox",
      { config },
    );
    const { containerId } = await this.#call<{ containerId: string }>(
      "RuntimeService",
      "CreateContainer",
      {
        podSandboxId: pod,
        config: {
          metadata: { name: "main", attempt: 0 },
          image: { image },
          command,
          logPath: `${name}.log`,
          linux: {},
        },
        sandboxConfig: config,
      },
    );
    await this.#call("RuntimeService", "StartContainer", { containerId });
    return { id: containerId, pod, pid: await this.#processOf(containerId) };
  }

  /** Runs a command in a container. */
  async exec(container: CriContainer, cmd: readonly string[]): Promise<ExecResult> {
    const reply = await this.#call<{ stdout: Buffer; stderr: Buffer; exitCode: number }>(
      "RuntimeService",
      "ExecSync",
      { containerId: container.id, cmd, timeout: 60 },
    );
    return {
      exitCode: reply.exitCode,
      stdout: reply.stdout.toString("utf8"),
      stderr: reply.stderr.toString("utf8"),
    };
  }

  /** Ends a container and its pod. */
  async remove(container: CriContainer): Promise<void> {
    await this.#call("RuntimeService", "StopContainer", { containerId: container.id, timeout: 0 });
    await this.#call("RuntimeService", "RemoveContainer", { containerId: container.id });
    await this.#call("RuntimeService", "StopPodSandbox", { podSandboxId: container.pod });
    await this.#call("RuntimeService", "RemovePodSandbox", { podSandboxId: container.pod });
  }

  close(): void {
    this.#client.close();
  }

  async #processOf(containerId: string): Promise<number> {
    const { info } = await this.#call<{ info: Record<string, string> }>(
      "RuntimeService",
      "ContainerStatus",
      { containerId, verbose: true },
    );
    const details = JSON.parse(info["info"] ?? "{}") as { pid?: number };
    return details.pid ?? 0;
  }

  #call<Reply>(service: string, method: string, request: object): Promise<Reply> {
    const definition = (definitions[`runtime.v1.${service}`] as ServiceDefinition)[method];
    if (definition === undefined) throw new Error(`${service} has no ${method}`);
    return new Promise((resolve, reject) => {
      this.#client.makeUnaryRequest(
        definition.path,
        definition.requestSerialize,
        (bytes) => definition.responseDeserialize(bytes) as Reply,
        request,
        { deadline: Date.now() + 180_000 },
        (error, reply) => {
          if (error !== null) reject(new Error(`${method}: ${error.message}`, { cause: error }));
          else if (reply === undefined) reject(new Error(`${method}: no reply`));
          else resolve(reply);
        },
      );
    });
  }
}
