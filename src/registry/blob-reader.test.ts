import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { digestOf } from "../base/digest.ts";
import { describeError, type ErrorCode, isClipError } from "../base/errors.ts";
import type { BlobReader } from "./blob-reader.ts";
import type { RegistryOptions } from "./client.ts";
import { type FakeServer, type Handler, newClient, serveBlob, startServer } from "./fake-server.ts";

const bytes = randomBytes(3_000_000);
const digest = digestOf(bytes);
const path = `/v2/team/app/blobs/${digest}`;

async function serve(
  handler: Handler,
  options: Partial<RegistryOptions> = {},
): Promise<{ server: FakeServer; blob: BlobReader }> {
  const server = await startServer(handler);
  const blob = newClient(options).blob(
    { host: server.host, name: "team/app" },
    digest,
    bytes.length,
  );
  return { server, blob };
}

async function collect(stream: AsyncIterable<Buffer>): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(Buffer.from(chunk));
  return Buffer.concat(chunks);
}

function rejected(promise: Promise<unknown>, code: ErrorCode): Promise<void> {
  return assert.rejects(promise, (error) => {
    assert.ok(isClipError(error), String(error));
    assert.equal(error.code, code, error.message);
    return true;
  });
}

test("ranges, streams and parallel streams bring the right bytes", async () => {
  const { server, blob } = await serve((request, response) => serveBlob(request, response, bytes));
  assert.ok((await blob.read(17, 100_000)).equals(bytes.subarray(17, 100_017)));
  assert.ok((await blob.read(bytes.length - 1, 1)).equals(bytes.subarray(-1)));
  assert.equal((await blob.read(5, 0)).length, 0);
  assert.equal(digestOf(await collect(blob.stream())), digest);
  const parallel = blob.parallelStream({ connections: 3, chunkBytes: 200_001 });
  assert.equal(digestOf(await collect(parallel)), digest);
  assert.deepEqual([...new Set(server.requests)], [`GET ${path}`]);
  await rejected(blob.read(bytes.length, 1), "ARGUMENT_INVALID");
  await rejected(blob.read(-1, 1), "ARGUMENT_INVALID");
});

test("a stream goes on where its connection broke, as long as it makes progress", async () => {
  let answers = 0;
  const { blob } = await serve((request, response) => {
    const [, first = "0"] = /^bytes=(\d+)-/.exec(request.headers.range ?? "") ?? [];
    answers++;
    const end = Math.min(Number(first) + 400_000, bytes.length);
    const length = { "content-length": bytes.length - Number(first) };
    const range = `bytes ${first}-${bytes.length - 1}/${bytes.length}`;
    if (request.headers.range === undefined) response.writeHead(200, length);
    else response.writeHead(206, { ...length, "content-range": range });
    response.write(bytes.subarray(Number(first), end), () => {
      if (end < bytes.length) response.destroy();
      else response.end();
    });
  });
  assert.equal(digestOf(await collect(blob.stream())), digest);
  assert.ok(answers >= 8);
});

test("a connection that breaks at once every time is given up", async () => {
  const { server, blob } = await serve((_, response) => response.destroy());
  await rejected(blob.read(0, 10), "REGISTRY_UNAVAILABLE");
  assert.equal(server.requests.length, 3);
});

test("a body that breaks without progress every time is given up", async () => {
  const { server, blob } = await serve((_, response) => {
    const range = `bytes 0-99/${bytes.length}`;
    response.writeHead(206, { "content-range": range, "content-length": 100 });
    response.flushHeaders();
    setImmediate(() => response.destroy());
  });
  await rejected(blob.read(0, 100), "REGISTRY_UNAVAILABLE");
  assert.equal(server.requests.length, 3);
});

test("429 and 5xx are tried again, as late as the server asks", async () => {
  const statuses = [429, 503];
  const { server, blob } = await serve((request, response) => {
    const status = statuses.shift();
    if (status === undefined) serveBlob(request, response, bytes);
    else response.writeHead(status, { "retry-after": "0" }).end();
  });
  assert.ok((await blob.read(0, 5)).equals(bytes.subarray(0, 5)));
  assert.equal(server.requests.length, 3);
  server.handle((_, response) => response.writeHead(500).end());
  await rejected(blob.read(0, 5), "REGISTRY_UNAVAILABLE");
});

test("answers that hold something else than was asked for are refused", async () => {
  const { server, blob } = await serve((_, response) => response.end(), { retries: 0 });
  const answer = (status: number, headers: Record<string, string | number>, body: Buffer) =>
    server.handle((_, response) => response.writeHead(status, headers).end(body));
  const ten = bytes.subarray(100, 110);
  for (const range of [
    "bytes 0-9/3000000",
    "bytes 100-110/3000000",
    "bytes 100-109/3000001",
    "bytes 100-99/3000000",
    "bytes */3000000",
    "lines 100-109/3000000",
    "",
  ]) {
    answer(206, { "content-range": range }, ten);
    await rejected(blob.read(100, 10), "REGISTRY_PROTOCOL");
  }
  for (const range of ["bytes 100-109/3000000", "bytes 100-109/*"]) {
    answer(206, { "content-range": range }, ten);
    assert.ok((await blob.read(100, 10)).equals(ten));
    answer(206, { "content-range": range, "content-encoding": "gzip" }, ten);
    await rejected(blob.read(100, 10), "REGISTRY_PROTOCOL");
  }
  answer(200, { "content-length": 7 }, Buffer.from("1234567"));
  await rejected(collect(blob.stream()), "REGISTRY_PROTOCOL");
  for (const [status, code] of [
    [404, "REGISTRY_NOT_FOUND"],
    [403, "REGISTRY_DENIED"],
    [416, "REGISTRY_PROTOCOL"],
    [204, "REGISTRY_PROTOCOL"],
  ] as const) {
    server.handle((_, response) => response.writeHead(status).end());
    await rejected(blob.read(100, 10), code);
  }
});

test("an answer that holds something else is asked for again", async () => {
  const ranges = ["bytes 0-9/3000000", `bytes 100-109/${bytes.length + 1}`, ""];
  const { server, blob } = await serve((request, response) => {
    const range = ranges.shift();
    if (range === undefined) serveBlob(request, response, bytes);
    else response.writeHead(206, { "content-range": range }).end(bytes.subarray(0, 10));
  });
  await rejected(blob.read(100, 10), "REGISTRY_PROTOCOL");
  assert.equal(server.requests.length, 3);
  ranges.push("bytes 0-9/3000000");
  assert.ok((await blob.read(100, 10)).equals(bytes.subarray(100, 110)));
});

test("a short answer is completed by another request", async () => {
  const { blob } = await serve((request, response) => {
    const [, first = "", last = ""] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
    request.headers.range = `bytes=${first}-${Math.min(Number(last), Number(first) + 299_999)}`;
    serveBlob(request, response, bytes);
  });
  assert.ok((await blob.read(10, 700_000)).equals(bytes.subarray(10, 700_010)));
});

test("a server without ranges serves what is near the beginning at once, and the rest when it insists", async () => {
  const { server, blob } = await serve((_, response) => {
    response.writeHead(200, { "content-length": bytes.length }).end(bytes);
  });
  assert.equal(await blob.supportsRanges(), false);
  assert.ok((await blob.read(1000, 10)).equals(bytes.subarray(1000, 1010)));
  const first = server.requests.length;
  assert.ok((await blob.read(2_900_000, 10)).equals(bytes.subarray(2_900_000, 2_900_010)));
  assert.equal(server.requests.length, first + 3);
  const before = server.requests.length;
  const parallel = blob.parallelStream({ connections: 4, chunkBytes: 100_000 });
  assert.equal(digestOf(await collect(parallel)), digest);
  assert.equal(server.requests.length, before + 1);
});

test("the target of a redirect is asked directly until it refuses", async () => {
  const storage = await startServer((request, response) => {
    const isFresh = request.url.endsWith("=2") || storage.requests.length < 4;
    if (isFresh) serveBlob(request, response, bytes);
    else response.writeHead(403).end("expired");
  });
  let signature = 0;
  const { server, blob } = await serve((_, response) => {
    const location = `${storage.origin}/object?signature=${++signature}`;
    response.writeHead(307, { location }).end();
  });
  for (let round = 0; round < 5; round++) {
    assert.ok((await blob.read(round, 5)).equals(bytes.subarray(round, round + 5)));
  }
  assert.equal(server.requests.length, 2);
  assert.equal(storage.requests.map((request) => request.at(-1)).join(""), "111122");
});

test("an error about a redirect's target does not show its query", async () => {
  const storage = await startServer((_, response) => response.writeHead(403).end());
  const { blob } = await serve((_, response) => {
    const location = `${storage.origin}/object?signature=secret`;
    response.writeHead(302, { location }).end();
  });
  await assert.rejects(blob.read(0, 5), (error) => {
    assert.ok(isClipError(error, "REGISTRY_DENIED"));
    assert.match(error.message, /the storage behind the registry refuses/);
    assert.match(error.hint ?? "", /expire/);
    assert.ok(!JSON.stringify([error.message, error.context]).includes("secret"));
    return true;
  });
});

test("redirects without end, and to nowhere, are refused", async () => {
  const { server, blob } = await serve(
    (request, response) => response.writeHead(302, { location: request.url }).end(),
    { retries: 0 },
  );
  await rejected(blob.read(0, 5), "REGISTRY_PROTOCOL");
  assert.ok(server.requests.length < 10);
  server.handle((_, response) => response.writeHead(302, { location: "file:///etc/passwd" }).end());
  await rejected(blob.read(0, 5), "REGISTRY_PROTOCOL");
});

test("every wait ends with the caller's signal", async () => {
  const { server, blob } = await serve(() => {});
  await rejected(blob.read(0, 5, AbortSignal.timeout(20)), "ABORTED");
  const beginning = { "content-range": `bytes 0-4/${bytes.length}`, "content-length": 5 };
  server.handle((_, response) => response.writeHead(206, beginning).write("x"));
  await rejected(blob.read(0, 5, AbortSignal.timeout(50)), "ABORTED");
  server.handle((_, response) => response.writeHead(429, { "retry-after": "20" }).end());
  await rejected(blob.read(0, 5, AbortSignal.timeout(20)), "ABORTED");
  server.handle(() => {});
  const signal = AbortSignal.timeout(20);
  const parallel = blob.parallelStream({ connections: 3, chunkBytes: 100_000, signal });
  await rejected(collect(parallel), "ABORTED");
  await rejected(blob.read(0, 5, AbortSignal.abort()), "ABORTED");
});

test("a server that falls silent is given up", async () => {
  const server = await startServer(() => {});
  const repository = { host: server.host, name: "team/app" };
  const client = newClient({ timeoutMs: 50, idleTimeoutMs: 50, retries: 0 });
  const blob = client.blob(repository, digest, bytes.length);
  await rejected(blob.read(0, 5), "REGISTRY_UNAVAILABLE");
  assert.equal(server.requests.length, 1);
  const beginning = { "content-range": `bytes 0-4/${bytes.length}`, "content-length": 5 };
  server.handle((_, response) => response.writeHead(206, beginning).flushHeaders());
  await rejected(blob.read(0, 5), "REGISTRY_UNAVAILABLE");
});

test("an answer that comes too slowly is given up, however steadily it comes", async () => {
  const server = await startServer((_, response) => {
    const range = `bytes 0-9999/${bytes.length}`;
    response.writeHead(206, { "content-range": range, "content-length": 10_000 });
    const timer = setInterval(() => response.write("x"), 20);
    response.on("close", () => clearInterval(timer));
  });
  const limits = { idleTimeoutMs: 200, bytesPerSecondMin: 10_000, retries: 0 };
  const client = newClient(limits);
  const blob = client.blob({ host: server.host, name: "team/app" }, digest, bytes.length);
  await assert.rejects(blob.read(0, 10_000), (error) => {
    assert.ok(isClipError(error, "REGISTRY_UNAVAILABLE"));
    assert.match(describeError(error), /only \d+ bytes came in 200 ms/);
    return true;
  });
  assert.deepEqual(client.counters.of(server.host).faults, new Map([["slow", 1]]));
});

test("an answer is not slow because its reader is", async () => {
  const { blob } = await serve((request, response) => serveBlob(request, response, bytes), {
    idleTimeoutMs: 200,
    bytesPerSecondMin: 500_000,
    retries: 0,
  });
  const chunks: Buffer[] = [];
  for await (const chunk of blob.stream()) {
    if (chunks.length === 2) await sleep(700);
    chunks.push(Buffer.from(chunk));
  }
  assert.equal(digestOf(Buffer.concat(chunks)), digest);
});

test("what is asked and answered is counted by host", async () => {
  const storage = await startServer((request, response) => serveBlob(request, response, bytes));
  const server = await startServer((_, response) =>
    response.writeHead(307, { location: `${storage.origin}/object` }).end(),
  );
  const client = newClient({ retries: 0 });
  const blob = client.blob({ host: server.host, name: "team/app" }, digest, bytes.length);
  await blob.read(0, 5);
  await blob.read(9, 5);
  const gone = client.blob({ host: "127.0.0.1:1", name: "team/app" }, digest, bytes.length);
  await rejected(gone.read(0, 5), "REGISTRY_UNAVAILABLE");
  const { hosts } = client.counters;
  assert.deepEqual(hosts.get(server.host)?.answers, new Map([[307, 1]]));
  assert.deepEqual(hosts.get(storage.host), {
    answers: new Map([[206, 2]]),
    faults: new Map(),
    bytes: 10,
  });
  assert.deepEqual(hosts.get("127.0.0.1:1")?.faults, new Map([["unreachable", 1]]));
});

test("leaving a parallel stream early ends its requests", async () => {
  const open = new Set<object>();
  const { blob } = await serve((request, response) => {
    open.add(response);
    response.on("close", () => open.delete(response));
    if (request.headers.range?.startsWith("bytes=0-") === true) serveBlob(request, response, bytes);
  });
  for await (const chunk of blob.parallelStream({ connections: 4, chunkBytes: 100_000 })) {
    assert.equal(chunk.length, 100_000);
    break;
  }
  while (open.size > 0) await new Promise(setImmediate);
});

test("closing the client ends what runs", async () => {
  const server = await startServer(() => {});
  const client = newClient();
  const blob = client.blob({ host: server.host, name: "team/app" }, digest, bytes.length);
  const outcome = rejected(blob.read(0, 5), "CLOSED");
  while (server.requests.length === 0) await new Promise(setImmediate);
  await client.close();
  await outcome;
  await rejected(blob.read(0, 5), "CLOSED");
});
