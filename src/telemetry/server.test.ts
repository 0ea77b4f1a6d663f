import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { request } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { text } from "node:stream/consumers";
import { silentLog } from "./log.ts";
import { TelemetryServer, textPage, type TelemetryServerOptions } from "./server.ts";

const directory = await mkdtemp(join(tmpdir(), "clip-telemetry-"));
after(() => rm(directory, { recursive: true, force: true }));
let sockets = 0;

async function open(options: Partial<TelemetryServerOptions>) {
  const socketPath = join(directory, `${++sockets}.sock`);
  const server = await TelemetryServer.open({ socketPath, pages: {}, log: silentLog, ...options });
  return { server, socketPath };
}

async function ask(socketPath: string, path: string, method = "GET") {
  const sent = request({ socketPath, path, method });
  sent.end();
  const [response] = await once(sent, "response");
  return { status: response.statusCode, headers: response.headers, body: await text(response) };
}

void test("pages are served on a socket that only its owner can connect to", async () => {
  const pages = { "/healthz": () => textPage(200, "ok") };
  const { server, socketPath } = await open({ pages });
  assert.equal((await stat(socketPath)).mode & 0o777, 0o600);
  const { status, headers, body } = await ask(socketPath, "/healthz?verbose=1");
  assert.deepEqual([status, body], [200, "ok\n"]);
  assert.equal(headers.connection, "close");
  await server.close();
  assert.deepEqual(await readdir(directory), []);
});

void test("other paths and methods are refused", async () => {
  const { server, socketPath } = await open({ pages: { "/status": () => textPage(200, "yes") } });
  for (const path of ["/", "/statu", "/status/", "/__proto__", "/toString"]) {
    assert.equal((await ask(socketPath, path)).status, 404, path);
  }
  const refused = await ask(socketPath, "/status", "POST");
  assert.deepEqual([refused.status, refused.headers.allow], [405, "GET, HEAD"]);
  const head = await ask(socketPath, "/status", "HEAD");
  assert.deepEqual([head.status, head.headers["content-length"], head.body], [200, "4", ""]);
  await server.close();
});

void test("a page that fails or takes too long is 503, and says nothing of why", async () => {
  const pages = {
    "/fails": () => Promise.reject(new Error("secret")),
    "/hangs": () => new Promise<never>(() => {}),
  };
  const { server, socketPath } = await open({ pages, pageTimeoutMs: 20 });
  for (const path of ["/fails", "/hangs"]) {
    const { status, body } = await ask(socketPath, path);
    assert.equal(status, 503, path);
    assert.doesNotMatch(body, /secret/);
  }
  await server.close();
});

void test("a page is made once for all who ask at the same time", async () => {
  let made = 0;
  const begun = Promise.withResolvers<void>();
  const done = Promise.withResolvers<void>();
  const slow = async () => {
    made++;
    begun.resolve();
    await done.promise;
    return textPage(200, String(made));
  };
  const { server, socketPath } = await open({ pages: { "/slow": slow } });
  const asked = Array.from({ length: 5 }, () => ask(socketPath, "/slow"));
  await begun.promise;
  await new Promise((next) => setTimeout(next, 20));
  done.resolve();
  for (const { body } of await Promise.all(asked)) assert.equal(body, "1\n");
  await server.close();
});

void test("headers that are too long are refused", async () => {
  const { server, socketPath } = await open({});
  const connection = connect(socketPath);
  connection.write(`GET / HTTP/1.1\r\nhost: a\r\nx: ${"x".repeat(9000)}\r\n\r\n`);
  assert.match(await text(connection), /^HTTP\/1\.1 431 /);
  await server.close();
});

void test("closing cuts off who has connected and says nothing", async () => {
  const { server, socketPath } = await open({});
  const connection = connect(socketPath);
  connection.on("error", () => {});
  await once(connection, "connect");
  const ended = once(connection, "close");
  await server.close();
  await ended;
});

void test("it also listens on a TCP address", async () => {
  const pages = { "/healthz": () => textPage(200, "ok") };
  for (const host of ["127.0.0.1", "[::1]"]) {
    const { server } = await open({ pages });
    const answer = await fetch(`http://${await server.listen(`${host}:0`)}/healthz`);
    assert.equal(await answer.text(), "ok\n");
    await server.close();
  }
});

void test("an address that is none, or is taken, leaves the socket as it is", async () => {
  const pages = { "/healthz": () => textPage(200, "ok") };
  const { server, socketPath } = await open({ pages });
  for (const address of ["", "9123", "localhost", "127.0.0.1:65536", "a:b:1"]) {
    await assert.rejects(server.listen(address), { code: "ARGUMENT_INVALID" });
  }
  const taken = await server.listen("127.0.0.1:0");
  await assert.rejects(server.listen(taken), { code: "SYSTEM_CALL" });
  assert.equal((await ask(socketPath, "/healthz")).status, 200);
  await server.close();
  assert.deepEqual(await readdir(directory), []);
});
