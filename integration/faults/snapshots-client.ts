/** A client of clip's Snapshots service, without containerd. */
import {
  credentials,
  makeGenericClientConstructor,
  status,
  type ServiceError,
} from "@grpc/grpc-js";
import { loadService } from "../../src/containerd/protos.ts";

const SnapshotsClientConstructor = makeGenericClientConstructor(
  loadService("snapshots.proto", "containerd.services.snapshots.v1.Snapshots"),
  "Snapshots",
);

type Call = (
  request: object,
  options: { deadline: number },
  callback: (error: ServiceError | null, answer: unknown) => void,
) => void;

type Stream = (
  request: object,
  options: { deadline: number },
) => AsyncIterable<{ info: { name: string }[] }>;

/** Longest time for a call. */
const callMs = 30_000;

/** One connection. */
export class SnapshotsClient {
  readonly #client: InstanceType<typeof SnapshotsClientConstructor>;

  constructor(address: string) {
    // Each has a connection of its own, as processes have.
    const options = { "grpc.use_local_subchannel_pool": 1 };
    this.#client = new SnapshotsClientConstructor(
      `unix:${address}`,
      credentials.createInsecure(),
      options,
    );
  }

  async prepare(key: string, parent = ""): Promise<void> {
    await this.#call("Prepare", { key, parent });
  }

  /** @returns the lower directories, the topmost first, where there are several */
  async view(key: string, parent: string): Promise<string[]> {
    const { mounts } = (await this.#call("View", { key, parent })) as {
      mounts: { options: string[] }[];
    };
    const options = mounts.flatMap((mount) => mount.options);
    const lower = options.find((option) => option.startsWith("lowerdir="));
    return lower?.slice("lowerdir=".length).split(":") ?? [];
  }

  /** Inodes that a snapshot takes up. */
  async usage(key: string): Promise<number> {
    return Number(((await this.#call("Usage", { key })) as { inodes: string }).inodes);
  }

  /** Names of all snapshots. */
  async list(): Promise<string[]> {
    const open = (this.#client as unknown as Record<string, Stream>)["List"];
    const names: string[] = [];
    const answers = open?.call(this.#client, {}, { deadline: Date.now() + callMs });
    for await (const { info } of answers ?? []) names.push(...info.map(({ name }) => name));
    return names;
  }

  async mounts(key: string): Promise<void> {
    await this.#call("Mounts", { key });
  }

  async commit(key: string, name: string): Promise<void> {
    await this.#call("Commit", { key, name });
  }

  async remove(key: string): Promise<void> {
    await this.#call("Remove", { key });
  }

  /** Whether there is a snapshot of that name. */
  async exists(key: string): Promise<boolean> {
    try {
      await this.#call("Stat", { key });
      return true;
    } catch (error) {
      if ((error as ServiceError).code === status.NOT_FOUND) return false;
      throw error;
    }
  }

  close(): void {
    this.#client.close();
  }

  #call(method: string, request: object): Promise<unknown> {
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    const call = (this.#client as unknown as Record<string, Call>)[method];
    call?.call(this.#client, request, { deadline: Date.now() + callMs }, (error, answer) => {
      if (error === null) resolve(answer);
      else reject(error);
    });
    return promise;
  }
}
