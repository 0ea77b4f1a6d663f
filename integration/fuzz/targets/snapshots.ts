/** Calls of the Snapshots service, with any bytes as messages, to a server with snapshots of its own. */
import assert from "node:assert/strict";
import { mkdtempSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client, credentials, status, type ServiceError } from "@grpc/grpc-js";
import { loadService } from "../../../src/containerd/protos.ts";
import type { InfoMessage } from "../../../src/snapshotter/messages.ts";
import { createSnapshotterServer } from "../../../src/snapshotter/service.ts";
import { silentLog, type Log } from "../../../src/telemetry/log.ts";
import type { FuzzTarget } from "../engine/target.ts";
import { changeMessage } from "./protobuf-inputs.ts";

const service = loadService("snapshots.proto", "containerd.services.snapshots.v1.Snapshots");
const methods = Object.values(service);
const names = Object.keys(service);
const callsMax = 4;

/** What a call may end with: never UNKNOWN, and INTERNAL only for bytes that are no message. */
const foreseen = new Set([
  ...[status.OK, status.INVALID_ARGUMENT, status.NOT_FOUND, status.ALREADY_EXISTS],
  ...[status.FAILED_PRECONDITION, status.RESOURCE_EXHAUSTED],
]);

interface Running {
  root: string;
  client: Client;
  server: Awaited<ReturnType<typeof createSnapshotterServer>>;
}

let running: Promise<Running> | undefined;
/** What the server logged as a defect. */
const defects: string[] = [];

/** Up to four calls: of each a byte for the method, a byte for the length, and the message. */
export const snapshotCalls: FuzzTarget = {
  bytesMax: 500,
  dictionary: [
    "base",
    "a",
    "labels.x",
    "name==a",
    "kind~=/a/",
    "containerd.io/snapshot.ref",
    "../x",
  ],
  seeds: () => {
    const key = { key: "a" };
    return [
      encodeCalls(
        ["Prepare", key],
        ["Commit", { key: "a", name: "base" }],
        ["Stat", { key: "base" }],
      ),
      encodeCalls(["Prepare", key], ["Mounts", key], ["Usage", key], ["Remove", key]),
      encodeCalls(
        ["Prepare", key],
        ["Commit", { key: "a", name: "base" }],
        ["Prepare", { key: "b", parent: "base" }],
        ["Commit", { key: "b", name: "top", parent: "base" }],
      ),
      encodeCalls(
        ["Prepare", key],
        ["Commit", { key: "a", name: "base" }],
        ["View", { key: "v", parent: "base" }],
        ["Remove", { key: "base" }],
      ),
      encodeCalls(["View", { key: "v" }], ["List", { filters: ["kind==view"] }], ["Cleanup", {}]),
      encodeCalls(
        ["Prepare", { key: "a", labels: { x: "y" } }],
        [
          "Update",
          { info: { name: "a", labels: { x: "z" } }, updateMask: { paths: ["labels.x"] } },
        ],
      ),
    ];
  },
  change: (input, random) => {
    const calls = decodeCalls(input);
    if (calls.length === 0) return input;
    const call = random.pick(calls);
    if (random.oneIn(4)) call.method = random.below(methods.length);
    else call.message = changeMessage(call.message, random).subarray(0, 255);
    return Buffer.concat(calls.map(encodeCall));
  },
  async run(input) {
    const { client } = await (running ??= start());
    const codes: string[] = [];
    for (const { method, message } of decodeCalls(input)) {
      const answer = await call(client, method, message);
      codes.push(`${names[method] ?? ""} ${status[answer.code] ?? ""}`);
    }
    await removeAll(client);
    assert.deepEqual(defects, []);
    return codes.join(", ");
  },
  async close() {
    if (running === undefined) return;
    const { client, server, root } = await running;
    client.close();
    await server.close();
    await rm(root, { recursive: true });
  },
};

async function start(): Promise<Running> {
  const root = mkdtempSync(join(tmpdir(), "clip-fuzz-"));
  const log: Log = {
    ...{ debug: ignore, info: ignore, warn: ignore, fatal: ignore, child: () => log },
    error: (...details: unknown[]) => void defects.push(JSON.stringify(details)),
  };
  const server = await createSnapshotterServer({ root, log: { ...silentLog, ...log } });
  const path = join(root, "clip.sock");
  await server.listen(path);
  return { root, server, client: new Client(`unix:${path}`, credentials.createInsecure()) };
}

function ignore(): void {
  // Only defects count.
}

interface Answer {
  code: status;
  bytes: Buffer | undefined;
}

async function call(client: Client, method: number, message: Buffer): Promise<Answer> {
  const definition = methods[method % methods.length];
  if (definition === undefined) throw new RangeError("there are methods");
  const isMessage = decodes(definition.requestDeserialize, message);
  const answer = await (definition.responseStream
    ? callStream(client, definition.path, message)
    : callOnce(client, definition.path, message));
  const isForeseen = isMessage ? foreseen.has(answer.code) : answer.code === status.INTERNAL;
  assert.ok(isForeseen, `${definition.path} ends with ${status[answer.code]}`);
  return answer;
}

function callOnce(client: Client, path: string, message: Buffer): Promise<Answer> {
  return new Promise((resolve) => {
    client.makeUnaryRequest(path, asIs, asIs, message, (error: ServiceError | null, bytes) =>
      resolve({ code: error?.code ?? status.OK, bytes }),
    );
  });
}

async function callStream(client: Client, path: string, message: Buffer): Promise<Answer> {
  const parts: Buffer[] = [];
  try {
    for await (const part of client.makeServerStreamRequest(path, asIs, asIs, message)) {
      parts.push(part as Buffer);
    }
    return { code: status.OK, bytes: Buffer.concat(parts) };
  } catch (error) {
    return { code: (error as ServiceError).code, bytes: undefined };
  }
}

function asIs(bytes: Buffer): Buffer {
  return bytes;
}

function decodes(deserialize: (bytes: Buffer) => unknown, message: Buffer): boolean {
  try {
    deserialize(message);
    return true;
  } catch {
    return false;
  }
}

/** Leaves no snapshot, so that each input meets the same server; parents go after their children. */
async function removeAll(client: Client): Promise<void> {
  for (let left = Infinity; left > 0;) {
    const list = service["List"];
    const remove = service["Remove"];
    if (list === undefined || remove === undefined) throw new Error("these methods are there");
    const { bytes = Buffer.alloc(0) } = await callStream(client, list.path, Buffer.alloc(0));
    // Messages of a List one behind the other decode as one.
    const { info } = list.responseDeserialize(bytes) as { info: InfoMessage[] };
    assert.ok(info.length < left, "a snapshot cannot be removed");
    left = info.length;
    for (const { name } of info) {
      await callOnce(client, remove.path, remove.requestSerialize({ key: name }));
    }
  }
}

interface Call {
  method: number;
  message: Buffer;
}

function decodeCalls(input: Buffer): Call[] {
  const calls: Call[] = [];
  for (let at = 0; at + 2 <= input.length && calls.length < callsMax;) {
    const end = at + 2 + (input[at + 1] ?? 0);
    calls.push({ method: (input[at] ?? 0) % methods.length, message: input.subarray(at + 2, end) });
    at = end;
  }
  return calls;
}

function encodeCall({ method, message }: Call): Buffer {
  return Buffer.concat([Buffer.from([method, message.length]), message]);
}

function encodeCalls(...calls: readonly [string, object][]): Buffer {
  return Buffer.concat(
    calls.map(([name, request]) => {
      const message = service[name]?.requestSerialize(request) ?? Buffer.alloc(0);
      return encodeCall({ method: names.indexOf(name), message });
    }),
  );
}
