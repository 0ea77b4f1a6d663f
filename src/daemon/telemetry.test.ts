import assert from "node:assert/strict";
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import type { Log } from "../telemetry/log.ts";
import { fakeNode } from "./fake-node.ts";
import { openTelemetry } from "./telemetry.ts";

const directory = await mkdtemp(join(tmpdir(), "clip-telemetry-"));
after(() => rm(directory, { recursive: true, force: true }));

/** A log that keeps what errors it was told. */
function errorLog(): { log: Log; errors: object[] } {
  const errors: object[] = [];
  const drop = () => {};
  const log: Log = {
    debug: drop,
    info: drop,
    warn: drop,
    fatal: drop,
    error: (fields: unknown, message?: string) => void errors.push([fields, message]),
    child: () => log,
  };
  return { log, errors };
}

const parts = fakeNode();

function configOf(state: string, address?: string) {
  const metrics = address === undefined ? {} : { address };
  return { root: "/r", address: "/a", state, metrics };
}

void test("telemetry that cannot be served keeps nothing from starting", async () => {
  const { log, errors } = errorLog();
  const file = join(directory, "file");
  await writeFile(file, "");
  const telemetry = await openTelemetry({ config: configOf(file), parts, log });
  assert.equal(errors.length, 1);
  assert.match(JSON.stringify(errors[0]), /file\/metrics\.sock.*metrics and status are not served/);
  await telemetry.close();
});

void test("an address that cannot be listened on leaves the socket", async () => {
  const { log, errors } = errorLog();
  const state = join(directory, "state");
  const telemetry = await openTelemetry({ config: configOf(state, "192.0.2.1:1"), parts, log });
  assert.match(JSON.stringify(errors), /"address":"192\.0\.2\.1:1"/);
  assert.deepEqual(await readdir(state), ["metrics.sock"]);
  await telemetry.close();
  assert.deepEqual(await readdir(state), []);
});
