import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { readdir, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import { Client, credentials, status, type ServiceError } from "@grpc/grpc-js";
import { chainIds, digestOf } from "../base/digest.ts";
import { isClipError } from "../base/errors.ts";
import { loadService } from "../containerd/protos.ts";
import { silentLog } from "../telemetry/log.ts";
import type { InfoMessage, MountsMessage } from "./messages.ts";
import { createSnapshotterServer, type SnapshotterServerOptions } from "./service.ts";
import { refLabel } from "./snapshot.ts";

const directory = mkdtempSync(join(tmpdir(), "clip-service-"));
after(() => rmSync(directory, { recursive: true, force: true }));

const definition = loadService("snapshots.proto", "containerd.services.snapshots.v1.Snapshots");
let servers = 0;

async function start(context: TestContext, options: Partial<SnapshotterServerOptions> = {}) {
  const root = join(directory, String(servers++));
  const server = await createSnapshotterServer({ root, log: silentLog, ...options });
  const path = join(root, "clip.sock");
  await server.listen(path);
  const client = new Client(`unix:${path}`, credentials.createInsecure());
  context.after(async () => {
    client.close();
    await server.close();
  });
  const method = (name: string) => {
    const found = definition[name];
    assert.ok(found !== undefined);
    return found;
  };
  const start = (
    name: string,
    request: object,
    done: (error: ServiceError | null, response?: unknown) => void,
  ) => {
    const { path, requestSerialize, responseDeserialize } = method(name);
    return client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, done);
  };
  const call = (name: string, request: object) =>
    new Promise<unknown>((resolve, reject) => {
      start(name, request, (error, response) =>
        error === null ? resolve(response) : reject(error),
      );
    });
  const list = async (filters: string[]) => {
    const { path, requestSerialize, responseDeserialize } = method("List");
    const stream = client.makeServerStreamRequest(path, requestSerialize, responseDeserialize, {
      filters,
    });
    const messages: { info: InfoMessage[] }[] = [];
    for await (const message of stream) messages.push(message as { info: InfoMessage[] });
    return messages;
  };
  return { server, root, path, call, list, start };
}

function failsWith(code: status, details: RegExp) {
  return (error: unknown) => {
    const { code: actual, details: text } = error as ServiceError;
    assert.equal(actual, code);
    assert.match(text, details);
    return true;
  };
}

test("the socket is its owner's alone, takes the place of a stale one, and goes at the end", async (context) => {
  const { path, root, server } = await start(context);
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  assert.deepEqual(
    (await readdir(root)).filter((name) => name.startsWith(".")),
    [],
  );
  const stale = join(root, "stale.sock");
  await writeFile(stale, "");
  const second = await createSnapshotterServer({ root: join(root, "second"), log: silentLog });
  await second.listen(stale);
  assert.equal((await stat(stale)).mode & 0o777, 0o600);
  await second.close();
  await assert.rejects(stat(stale));
  await assert.rejects(server.listen("relative"), (error) =>
    isClipError(error, "ARGUMENT_INVALID"),
  );
  await assert.rejects(server.listen(`/${"x".repeat(107)}`), (error) =>
    isClipError(error, "ARGUMENT_INVALID"),
  );
});

test("a snapshot lives from Prepare to Remove, and its files go with it", async (context) => {
  const { call, root } = await start(context);
  const { mounts } = (await call("Prepare", { key: "a" })) as MountsMessage;
  assert.deepEqual(
    mounts.map(({ type, options }) => ({ type, options })),
    [{ type: "bind", options: ["rw", "rbind"] }],
  );
  assert.deepEqual(await call("Mounts", { key: "a" }), {
    mounts: mounts.map((mount) => ({ ...mount, target: "" })),
  });
  await writeFile(join(mounts[0]?.source ?? "", "file"), Buffer.alloc(10_000));
  await call("Commit", { key: "a", name: "base", labels: { x: "y" } });
  const { info } = (await call("Stat", { key: "base" })) as { info: InfoMessage };
  assert.equal(info.kind, "COMMITTED");
  assert.deepEqual(info.labels, { x: "y" });
  const usage = (await call("Usage", { key: "base" })) as { size: string; inodes: string };
  assert.equal(Number(usage.inodes), 2);
  assert.ok(Number(usage.size) >= 10_000);
  await call("View", { key: "v", parent: "base" });
  await call("Remove", { key: "v" });
  await call("Remove", { key: "base" });
  await call("Cleanup", {});
  for (const name of ["s", "w", "trash"])
    assert.deepEqual(await readdir(join(root, name)), [], name);
});

test("failures have the code and the ending that containerd knows them by", async (context) => {
  const { call, list } = await start(context);
  await call("Prepare", { key: "a" });
  await call("Commit", { key: "a", name: "base" });
  await call("Prepare", { key: "b", parent: "base" });
  await assert.rejects(call("Stat", { key: "x" }), failsWith(status.NOT_FOUND, /: not found$/));
  await assert.rejects(
    call("Prepare", { key: "b" }),
    failsWith(status.ALREADY_EXISTS, /: already exists$/),
  );
  await assert.rejects(
    call("Mounts", { key: "base" }),
    failsWith(status.FAILED_PRECONDITION, /: failed precondition$/),
  );
  await assert.rejects(
    call("Remove", { key: "base" }),
    failsWith(status.FAILED_PRECONDITION, /cannot remove/),
  );
  await assert.rejects(
    call("View", { key: "v", parent: "b" }),
    failsWith(status.INVALID_ARGUMENT, /: invalid argument$/),
  );
  await assert.rejects(
    call("Update", {}),
    failsWith(status.INVALID_ARGUMENT, /: invalid argument$/),
  );
  await assert.rejects(list(["name=="]), failsWith(status.INVALID_ARGUMENT, /: invalid argument$/));
});

test("an update changes the labels of the mask, and Go's zero time is no harm", async (context) => {
  const { call } = await start(context);
  await call("Prepare", { key: "a", labels: { keep: "1", drop: "2" } });
  const { info } = (await call("Update", {
    info: { name: "a", labels: { add: "3" }, createdAt: { seconds: "-62135596800", nanos: 0 } },
    updateMask: { paths: ["labels.add", "labels.drop"] },
  })) as { info: InfoMessage };
  assert.deepEqual(info.labels, { keep: "1", add: "3" });
  assert.notEqual(info.createdAt.seconds, "-62135596800");
});

test("a list comes in parts of a hundred", async (context) => {
  const { call, list } = await start(context);
  await Promise.all(Array.from({ length: 201 }, (_, at) => call("Prepare", { key: `k${at}` })));
  assert.deepEqual(
    (await list([])).map(({ info }) => info.length),
    [100, 100, 1],
  );
  assert.deepEqual(await list(["kind==committed"]), []);
  const [only] = await list(["name==k7"]);
  assert.deepEqual(
    only?.info.map(({ name }) => name),
    ["k7"],
  );
});

test("a cancelled Prepare aborts what it waits for; closing does so at its deadline", async (context) => {
  const signals: AbortSignal[] = [];
  let asked = Promise.withResolvers<void>();
  const never = (_: unknown, signal: AbortSignal) =>
    new Promise<never>((_, reject) => {
      signals.push(signal);
      signal.addEventListener("abort", () => reject(new Error("given up")));
      asked.resolve();
    });
  const unused = () => assert.fail("there is no layer");
  const remote = {
    resolver: { resolve: never },
    layers: {
      prefetch: unused,
      ensure: unused,
      checkOver: unused,
      mount: unused,
      rootOf: unused,
      usage: unused,
      numbers: unused,
      release: unused,
    },
  };
  const { start: begin, server } = await start(context, { remote, closeDeadlineMs: 50 });
  const [ref = ""] = chainIds([digestOf(Buffer.from("x"))]);
  const prepare = (key: string) => {
    const { promise, resolve } = Promise.withResolvers<ServiceError | null>();
    return { call: begin("Prepare", { key, labels: { [refLabel]: ref } }, resolve), promise };
  };
  const cancelled = prepare("a");
  await asked.promise;
  asked = Promise.withResolvers();
  cancelled.call.cancel();
  assert.equal((await cancelled.promise)?.code, status.CANCELLED);
  const cut = prepare("b");
  await asked.promise;
  await server.close();
  assert.notEqual(await cut.promise, null);
  assert.deepEqual(
    signals.map(({ aborted }) => aborted),
    [true, true],
  );
});
