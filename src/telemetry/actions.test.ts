import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { request, type IncomingMessage } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { text } from "node:stream/consumers";
import { ClipError } from "../base/errors.ts";
import type { Action } from "./actions.ts";
import { silentLog } from "./log.ts";
import { TelemetryServer } from "./server.ts";

const directory = await mkdtemp(join(tmpdir(), "clip-actions-"));
after(() => rm(directory, { recursive: true, force: true }));
let sockets = 0;

async function serve(actions: Record<string, Action>) {
  const socketPath = join(directory, `${++sockets}.sock`);
  const server = await TelemetryServer.open({ socketPath, pages: {}, actions, log: silentLog });
  return { server, socketPath };
}

async function ask(where: object, body = "", method = "POST"): Promise<IncomingMessage> {
  const sent = request({ path: "/do", method, ...where });
  sent.end(body);
  const [response] = (await once(sent, "response")) as [IncomingMessage];
  return response;
}

async function linesOf(response: IncomingMessage): Promise<object[]> {
  return (await text(response))
    .trim()
    .split("\n")
    .map((line): object => JSON.parse(line));
}

/** An action that begins and ends when it is given up. */
function endless() {
  const begun = Promise.withResolvers<void>();
  const ended = Promise.withResolvers<void>();
  const action: Action = async ({ signal }) => {
    begun.resolve();
    await once(signal, "abort");
    ended.resolve();
    throw new ClipError("ABORTED", "given up");
  };
  return { action, begun: begun.promise, ended: ended.promise };
}

void test("an action gets its parameters and tells progress and result", async () => {
  const { server, socketPath } = await serve({
    "/do": async ({ parameters, progress }) => {
      progress({ done: 1 });
      return { parameters };
    },
  });
  const told = await linesOf(await ask({ socketPath }, '{"a":1}'));
  assert.deepEqual(told, [{ progress: { done: 1 } }, { result: { parameters: { a: 1 } } }]);
  await server.close();
});

void test("a failure is told with its code and hint", async () => {
  const { server, socketPath } = await serve({
    "/do": () => Promise.reject(new ClipError("DISK_FULL", "no room", { hint: "make room" })),
  });
  const told = await linesOf(await ask({ socketPath }));
  assert.deepEqual(told, [{ error: { code: "DISK_FULL", message: "no room", hint: "make room" } }]);
  await server.close();
});

void test("parameters that are not JSON, or too many, are refused", async () => {
  const { server, socketPath } = await serve({ "/do": async () => "done" });
  const [wrong] = await linesOf(await ask({ socketPath }, "{"));
  assert.match(JSON.stringify(wrong), /ARGUMENT_INVALID/);
  const [large] = await linesOf(await ask({ socketPath }, " ".repeat(65_537)));
  assert.match(JSON.stringify(large), /LIMIT_EXCEEDED/);
  await server.close();
});

void test("an action is given up when its client goes away", async () => {
  const { action, begun, ended } = endless();
  const { server, socketPath } = await serve({ "/do": action });
  const response = await ask({ socketPath });
  await begun;
  response.destroy();
  await ended;
  await server.close();
});

void test("closing gives an action up, says so, and waits for its end", async () => {
  const { action, begun } = endless();
  const { server, socketPath } = await serve({ "/do": action });
  const response = await ask({ socketPath });
  await begun;
  const told = linesOf(response).catch(() => []);
  await server.close();
  assert.ok((await told).length <= 1);
});

void test("an action that is being done is not begun again", async () => {
  const { action, begun } = endless();
  const { server, socketPath } = await serve({ "/do": action });
  const first = await ask({ socketPath });
  await begun;
  assert.equal((await ask({ socketPath })).statusCode, 409);
  first.destroy();
  await server.close();
});

void test("only a POST on the unix socket has anything done", async () => {
  let done = 0;
  const { server, socketPath } = await serve({ "/do": async () => ++done });
  const asked = await ask({ socketPath }, "", "GET");
  assert.deepEqual([asked.statusCode, asked.headers.allow], [405, "POST"]);
  const [host, port] = (await server.listen("127.0.0.1:0")).split(":");
  assert.equal((await ask({ host, port }, "")).statusCode, 405);
  assert.equal((await ask({ host, port }, "", "GET")).statusCode, 404);
  assert.equal(done, 0);
  await server.close();
});
