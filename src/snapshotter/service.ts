/** containerd's Snapshots service on a unix socket, over a {@link Snapshotter}. */
import type { Duplex } from "node:stream";
import { Server, ServerCredentials, type UntypedServiceImplementation } from "@grpc/grpc-js";
import { ClipError } from "../base/errors.ts";
import { grpcMessageBytesMax } from "../base/limits.ts";
import { PrivateSocket } from "../base/private-socket.ts";
import { loadService } from "../containerd/protos.ts";
import { GrpcHandlers, type CallContext, type CallObserver } from "./grpc-handlers.ts";
import {
  infoMessage,
  labelsOf,
  type CommitMessage,
  type InfoMessage,
  type KeyMessage,
  type ListMessage,
  type MountsMessage,
  type PrepareMessage,
  type UpdateMessage,
  type UsageMessage,
} from "./messages.ts";
import type { Mount } from "./mounts.ts";
import { Snapshotter, type SnapshotCounts, type SnapshotterOptions } from "./snapshotter.ts";

/** What {@link createSnapshotterServer} takes. */
export interface SnapshotterServerOptions extends SnapshotterOptions {
  /** Told of each call that has ended, for metrics. */
  onCall?: CallObserver;
  /** How long open calls may take to end when the server closes; 10 s if not given. */
  closeDeadlineMs?: number;
}

/** A running Snapshots service. */
export interface SnapshotterServer {
  /** Numbers of the layers that snapshots refer to, for those who keep layers. */
  layersInUse(): number[];
  /** How many snapshots there are. */
  snapshotCounts(): SnapshotCounts;
  /**
   * Serves on a unix socket that only its owner can connect to; it takes the place of a stale one.
   * @throws ClipError ARGUMENT_INVALID, SYSTEM_CALL
   */
  listen(path: string): Promise<void>;
  /** Serves a connection that somebody else has accepted. */
  accept(connection: Duplex): void;
  /** Takes no more calls, waits for the open ones for a while, and closes everything. */
  close(): Promise<void>;
}

/** Most snapshots in one message of a List. */
const listChunk = 100;

/** Opens the snapshots below `options.root`, to be served. */
export async function createSnapshotterServer(
  options: SnapshotterServerOptions,
): Promise<SnapshotterServer> {
  const snapshotter = await Snapshotter.open(options);
  const handlers = new GrpcHandlers(options.log, options.onCall ?? (() => {}));
  const server = new Server({
    "grpc.max_receive_message_length": grpcMessageBytesMax,
    "grpc.max_send_message_length": grpcMessageBytesMax,
  });
  server.addService(
    loadService("snapshots.proto", "containerd.services.snapshots.v1.Snapshots"),
    implementation(snapshotter, handlers),
  );
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  let socket: PrivateSocket | undefined;
  let closing: Promise<void> | undefined;
  return {
    layersInUse: () => snapshotter.layersInUse(),
    snapshotCounts: () => snapshotter.counts(),
    async listen(path) {
      socket = await PrivateSocket.bind(path, (temporary) => bind(server, temporary));
    },
    accept: (connection) => injector.injectConnection(connection),
    close: () => (closing ??= close()),
  };

  async function close(): Promise<void> {
    await socket?.close();
    await shutDown(server, options.closeDeadlineMs ?? 10_000, () => handlers.abort());
    await handlers.idle();
    await snapshotter.close();
  }
}

function implementation(
  snapshotter: Snapshotter,
  handlers: GrpcHandlers,
): UntypedServiceImplementation {
  const prepareRequest = (message: PrepareMessage, { metadata }: CallContext) => {
    const [namespace] = metadata.get("containerd-namespace");
    const { key, parent, labels } = message;
    return { key, parent, labels: labelsOf(labels), namespace: namespace?.toString() };
  };
  return {
    Prepare: handlers.unary<PrepareMessage, MountsMessage>("Prepare", async (message, context) =>
      mountsMessage(await snapshotter.prepare(prepareRequest(message, context), context.signal)),
    ),
    View: handlers.unary<PrepareMessage, MountsMessage>("View", async (message, context) =>
      mountsMessage(await snapshotter.view(prepareRequest(message, context), context.signal)),
    ),
    Mounts: handlers.unary<KeyMessage, MountsMessage>("Mounts", async ({ key }, { signal }) =>
      mountsMessage(await snapshotter.mounts(key, signal)),
    ),
    Commit: handlers.unary<CommitMessage, object>(
      "Commit",
      async ({ key, name, parent, labels }) => {
        await snapshotter.commit({ key, name, parent, labels: labelsOf(labels) });
        return {};
      },
    ),
    Remove: handlers.unary<KeyMessage, object>("Remove", async ({ key }) => {
      await snapshotter.remove(key);
      return {};
    }),
    Stat: handlers.unary<KeyMessage, { info: InfoMessage }>("Stat", ({ key }) => ({
      info: infoMessage(snapshotter.stat(key)),
    })),
    Update: handlers.unary<UpdateMessage, { info: InfoMessage }>(
      "Update",
      async ({ info, updateMask }) => {
        if (info === null) throw new ClipError("ARGUMENT_INVALID", "no snapshot is named");
        const paths = updateMask?.paths ?? [];
        const snapshot = await snapshotter.update(info.name, labelsOf(info.labels), paths);
        return { info: infoMessage(snapshot) };
      },
    ),
    List: handlers.streaming<ListMessage, { info: InfoMessage[] }>("List", function* ({ filters }) {
      const snapshots = snapshotter.list(filters);
      for (let at = 0; at < snapshots.length; at += listChunk) {
        yield { info: snapshots.slice(at, at + listChunk).map(infoMessage) };
      }
    }),
    Usage: handlers.unary<KeyMessage, UsageMessage>("Usage", async ({ key }, { signal }) => {
      const { bytes, inodes } = await snapshotter.usage(key, signal);
      return { size: bytes, inodes };
    }),
    Cleanup: handlers.unary<object, object>("Cleanup", async (_, { signal }) => {
      await snapshotter.cleanup(signal);
      return {};
    }),
  };
}

// Clients expect exactly one mount.
function mountsMessage(mount: Mount): MountsMessage {
  return { mounts: [mount] };
}

function bind(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.bindAsync(`unix:${path}`, ServerCredentials.createInsecure(), (error) => {
      if (error === null) resolve();
      else reject(new ClipError("SYSTEM_CALL", "cannot listen on the socket", { cause: error }));
    });
  });
}

async function shutDown(server: Server, deadlineMs: number, abort: () => void): Promise<void> {
  await new Promise<void>((resolve) => {
    const deadline = setTimeout(() => {
      abort();
      server.forceShutdown();
      resolve();
    }, deadlineMs);
    server.tryShutdown(() => {
      clearTimeout(deadline);
      resolve();
    });
  });
}
