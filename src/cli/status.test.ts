import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { isClipError } from "../base/errors.ts";
import { fakeNode } from "../daemon/fake-node.ts";
import { openTelemetry } from "../daemon/telemetry.ts";
import { telemetrySocket } from "../daemon/telemetry-socket.ts";
import { silentLog } from "../telemetry/log.ts";
import { askForStatus } from "./status.ts";

const state = await mkdtemp(join(tmpdir(), "clip-status-"));
const config = { root: "/r", address: "/a", state, metrics: {} };
after(() => rm(state, { recursive: true, force: true }));

void test("the daemon is asked on the socket in its state directory", async () => {
  const telemetry = await openTelemetry({ config, parts: fakeNode(), log: silentLog });
  const status = await askForStatus(telemetrySocket(state));
  assert.equal(status.snapshots.remote, 5);
  assert.equal(status.layers.length, 2);
  await telemetry.close();
});

void test("a daemon that cannot say how it is doing is told from one that is not there", async () => {
  const parts = fakeNode();
  const broken = { ...parts.layers, status: () => Promise.reject(new Error("no")) };
  const telemetry = await openTelemetry({
    config,
    parts: { ...parts, layers: broken },
    log: silentLog,
  });
  const answer = askForStatus(telemetrySocket(state));
  await assert.rejects(answer, { code: "SYSTEM_CALL", message: "the daemon answered 503" });
  await telemetry.close();
});

void test("no daemon is said in a sentence, with what to do", async () => {
  const path = join(state, "none.sock");
  const isTold = (error: unknown) =>
    isClipError(error, "SYSTEM_CALL") &&
    error.message === `no clip daemon answers on ${path}` &&
    error.hint?.includes("--state") === true;
  await assert.rejects(askForStatus(path), isTold);
  await writeFile(path, "");
  await assert.rejects(askForStatus(path), isTold);
});
