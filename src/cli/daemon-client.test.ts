import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { ClipError } from "../base/errors.ts";
import type { Action } from "../telemetry/actions.ts";
import { silentLog } from "../telemetry/log.ts";
import { TelemetryServer } from "../telemetry/server.ts";
import { orderDaemon } from "./daemon-client.ts";

const directory = await mkdtemp(join(tmpdir(), "clip-client-"));
const socketPath = join(directory, "s");
after(() => rm(directory, { recursive: true, force: true }));

async function withActions<Value>(
  actions: Record<string, Action>,
  use: (server: TelemetryServer) => Promise<Value>,
): Promise<Value> {
  const server = await TelemetryServer.open({ socketPath, pages: {}, actions, log: silentLog });
  try {
    return await use(server);
  } finally {
    await server.close();
  }
}

void test("what the daemon has done comes back, with progress on the way", async () => {
  const action: Action = async ({ parameters, progress }) => {
    progress(1);
    return parameters;
  };
  await withActions({ "/do": action }, async () => {
    const told: unknown[] = [];
    const parameters = { repair: true };
    const onProgress = (value: unknown) => void told.push(value);
    assert.deepEqual(await orderDaemon(socketPath, "/do", { parameters, onProgress }), parameters);
    assert.deepEqual(told, [1]);
  });
});

void test("a failure has the daemon's code and hint", async () => {
  const failure = new ClipError("DISK_FULL", "no room", { hint: "make room" });
  await withActions({ "/do": () => Promise.reject(failure) }, async () => {
    const order = orderDaemon(socketPath, "/do");
    await assert.rejects(order, { code: "DISK_FULL", message: "no room", hint: "make room" });
    await assert.rejects(orderDaemon(socketPath, "/other"), /the daemon answered 405/);
  });
});

void test("a daemon that ends in between, or is not there, is said in a sentence", async () => {
  const begun = Promise.withResolvers<void>();
  const action: Action = async ({ signal }) => {
    begun.resolve();
    await new Promise((resolve) => signal.addEventListener("abort", resolve));
  };
  await withActions({ "/do": action }, async (server) => {
    const order = orderDaemon(socketPath, "/do");
    // It may still be told, or be cut off before.
    const rejected = assert.rejects(order, { code: /^(ABORTED|SYSTEM_CALL)$/ });
    await begun.promise;
    await server.close();
    await rejected;
  });
  await assert.rejects(orderDaemon(socketPath, "/do"), /no clip daemon answers/);
});
