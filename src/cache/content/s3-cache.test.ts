import assert from "node:assert/strict";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { after, before, beforeEach, describe, test } from "node:test";
import { isClipError, type ErrorCode } from "../../base/errors.ts";
import { bufferSource } from "./content-source.ts";
import { openS3Cache } from "./s3-cache.ts";
import { freshKey, testBytes } from "./testing/content-cache-suite.ts";

const MiB = 1024 * 1024;

/** Answers like no good server does. */
type Handler = (request: IncomingMessage, response: ServerResponse) => void;

describe("with a server that misbehaves", () => {
  let server: Server;
  let port: number;
  let handler: Handler;
  const seen: { method: string; path: string; condition: string | undefined }[] = [];

  before(async () => {
    server = createServer((request, response) => {
      const url = request.url ?? "";
      const condition = request.headers["if-none-match"];
      seen.push({ method: request.method ?? "", path: url.split("?")[0] ?? "", condition });
      request.resume();
      request.once("end", () => handler(request, response));
    });
    await new Promise<void>((resolve) => {
      server.listen(0, "127.0.0.1", resolve);
    });
    const address = server.address();
    port = typeof address === "object" && address !== null ? address.port : 0;
  });
  after(() => {
    server.closeAllConnections();
    server.close();
  });
  beforeEach(() => {
    seen.length = 0;
  });

  function open(attempts = 1, requestTimeoutMs = 500) {
    return openS3Cache({
      bucket: "clip",
      endpoint: `http://127.0.0.1:${port}`,
      pathStyle: true,
      credentials: { accessKeyId: "id", secretAccessKey: "hidden" },
      requestTimeoutMs,
      attempts,
    });
  }

  const wrongAnswers: [string, ErrorCode, Handler][] = [
    ["ignores the range", "CACHE_PROTOCOL", (_, response) => response.end("0123456789")],
    ["gives another range", "CACHE_PROTOCOL", partial("bytes 5-14/100", 10)],
    ["gives a shorter range", "CACHE_PROTOCOL", partial("bytes 10-14/100", 5)],
    ["has a shorter object", "CACHE_PROTOCOL", partial("bytes 10-14/15", 5)],
    ["makes nonsense of the range", "CACHE_PROTOCOL", partial("bytes banana", 10)],
    ["gives more bytes than announced", "CACHE_PROTOCOL", partial("bytes 10-19/100", 11)],
    ["gives fewer bytes than announced", "CACHE_PROTOCOL", partial("bytes 10-19/100", 9)],
    ["cuts the body", "CACHE_UNAVAILABLE", cutBody],
    ["drops the connection", "CACHE_UNAVAILABLE", (_, response) => response.destroy()],
    ["stalls in the body", "TIMEOUT", stallBody],
    ["never answers", "TIMEOUT", () => {}],
    ["fails", "CACHE_UNAVAILABLE", status(500, "InternalError")],
    ["is overloaded", "CACHE_UNAVAILABLE", status(503, "SlowDown")],
    ["wants no credentials like these", "CACHE_DENIED", status(403, "InvalidAccessKeyId")],
    ["has other credentials", "CACHE_DENIED", status(403, "SignatureDoesNotMatch")],
    ["has no such bucket", "CACHE_DENIED", status(404, "NoSuchBucket")],
    ["says the range is past the end", "CACHE_PROTOCOL", status(416, "InvalidRange")],
    ["is elsewhere", "CACHE_PROTOCOL", status(301, "PermanentRedirect")],
    ["answers with a page for people", "CACHE_UNAVAILABLE", htmlError],
  ];
  for (const [what, code, answer] of wrongAnswers) {
    test(`a read fails with ${code} when the server ${what}`, async () => {
      handler = answer;
      const cache = await open();
      const target = Buffer.alloc(10);
      await assert.rejects(cache.read(freshKey(), 10, target), (error) => {
        assert.equal(isClipError(error, code), true, String(error));
        assert.equal(JSON.stringify(error).includes("hidden"), false);
        return true;
      });
      await cache.close();
    });
  }

  test("a fault that passes is not seen when there are attempts left", async () => {
    let requests = 0;
    handler = (request, response) => {
      const answer =
        ++requests === 1 ? status(500, "InternalError") : partial("bytes 10-19/100", 10);
      answer(request, response);
    };
    const cache = await open(2, 30_000);
    assert.notEqual(await cache.read(freshKey(), 10, Buffer.alloc(10)), undefined);
    await cache.close();
  });

  test("a full server is told apart when storing", async () => {
    handler = (request, response) => {
      const full = request.method === "PUT";
      (full ? status(507, "InsufficientStorage") : status(404, "NotFound"))(request, response);
    };
    const cache = await open();
    await assert.rejects(cache.store(freshKey(), bufferSource(testBytes(10))), (error) =>
      isClipError(error, "CACHE_FULL"),
    );
    await cache.close();
  });

  test("a put that another node won is a success", async () => {
    handler = (request, response) => {
      const put = request.method === "PUT";
      status(put ? 412 : 404, put ? "PreconditionFailed" : "NotFound")(request, response);
    };
    const cache = await open();
    assert.equal(await cache.store(freshKey(), bufferSource(testBytes(10))), "present");
    assert.equal(seen.at(-1)?.condition, "*");
    await cache.close();
  });

  test("a put that runs into another one succeeds if that one did, and is worth a retry if not", async () => {
    let heads = 0;
    let won = true;
    handler = (request, response) => {
      if (request.method === "PUT") status(409, "ConditionalRequestConflict")(request, response);
      else if (++heads === 1 || !won) status(404, "NotFound")(request, response);
      else response.writeHead(200, { "content-length": "10" }).end();
    };
    const cache = await open();
    assert.equal(await cache.store(freshKey(), bufferSource(testBytes(10))), "present");
    won = false;
    await assert.rejects(cache.store(freshKey(), bufferSource(testBytes(10))), (error) =>
      isClipError(error, "CACHE_UNAVAILABLE"),
    );
    await cache.close();
  });

  for (const [code, name] of [
    [501, "NotImplemented"],
    [400, "InvalidArgument"],
  ] as const) {
    test(`a server that knows no conditional puts (${name}) is asked for one only once`, async () => {
      handler = (request, response) => {
        if (request.method === "HEAD") status(404, "NotFound")(request, response);
        else if (request.headers["if-none-match"] !== undefined) {
          status(code, name)(request, response);
        } else response.writeHead(200, { etag: '"1"' }).end();
      };
      const cache = await open();
      assert.equal(await cache.store(freshKey(), bufferSource(testBytes(10))), "stored");
      assert.equal(await cache.store(freshKey(), bufferSource(testBytes(MiB))), "stored");
      const puts = seen.filter(({ method }) => method === "PUT");
      assert.deepEqual(
        puts.map(({ condition }) => condition),
        ["*", undefined, undefined],
      );
      await cache.close();
    });
  }

  test("a bucket that is not there is no miss when it is read or written", async () => {
    handler = status(404, "NoSuchBucket");
    const cache = await open();
    await assert.rejects(cache.store(freshKey(), bufferSource(testBytes(10))), (error) =>
      isClipError(error, "CACHE_DENIED"),
    );
    handler = status(404, "NoSuchKey");
    assert.equal(await cache.read(freshKey(), 0, Buffer.alloc(1)), undefined);
    await cache.remove(freshKey());
    await cache.close();
  });
});

function status(code: number, name: string): Handler {
  const body = `<?xml version="1.0"?><Error><Code>${name}</Code><Message>no</Message></Error>`;
  return (request, response) => {
    response.writeHead(code, { "content-type": "application/xml" });
    response.end(request.method === "HEAD" ? undefined : body);
  };
}

function partial(contentRange: string, length: number): Handler {
  return (_, response) => {
    response.writeHead(206, { "content-range": contentRange });
    response.end(Buffer.alloc(length));
  };
}

function cutBody(_: IncomingMessage, response: ServerResponse): void {
  response.writeHead(206, { "content-range": "bytes 10-19/100", "content-length": "10" });
  response.write("01234", () => response.destroy());
}

function stallBody(_: IncomingMessage, response: ServerResponse): void {
  response.writeHead(206, { "content-range": "bytes 10-19/100", "content-length": "10" });
  response.write("01234");
}

function htmlError(_: IncomingMessage, response: ServerResponse): void {
  response.writeHead(502, { "content-type": "text/html" });
  response.end("<html><body><h1>Bad gateway</h1></body>");
}
