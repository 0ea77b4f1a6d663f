/** What can go wrong with an answer over HTTP; for `FaultProxy`. */
import type http from "node:http";
import type { Answer, Exchange } from "./fault-proxy.ts";

/** Bytes of a body that come before it breaks. */
const beginningBytes = 100;

/** The answer as it is. */
export const untouched: Answer = async (exchange) => {
  (await begin(exchange)).pipe(exchange.response);
};

/** Nothing is ever answered. */
export const silent: Answer = () => {};

/** The head comes, and then nothing. */
export const silentBody: Answer = async (exchange) => {
  await begin(exchange);
};

/** The body comes, one byte after the other. */
export function trickle(intervalMs: number): Answer {
  return async (exchange) => {
    const { response } = exchange;
    const body = await bytesOf(await begin(exchange));
    let sent = 0;
    const timer = setInterval(() => response.write(body.subarray(sent, ++sent)), intervalMs);
    response.on("close", () => clearInterval(timer));
  };
}

/** An answer that the server never gave. */
export function answer(status: number, headers: http.OutgoingHttpHeaders = {}, body = ""): Answer {
  return ({ response }) => response.writeHead(status, headers).end(body);
}

/** The connection is reset in the middle of the body. */
export const reset: Answer = async (exchange) => {
  const body = await bytesOf(await begin(exchange));
  // A reset takes with it what has not been received yet.
  exchange.response.write(body.subarray(0, beginningBytes), () => {
    setTimeout(() => exchange.reset(), 20);
  });
};

/** The body ends in good order, but too early. */
export const truncated: Answer = async ({ ask, response }) => {
  const given = await ask();
  const { "content-length": _, ...headers } = given.headers;
  const body = await bytesOf(given);
  response.writeHead(given.statusCode ?? 502, headers).end(body.subarray(0, beginningBytes));
};

/** The whole object is sent, whatever part was asked for. */
export const ignoresRange: Answer = async ({ ask, request, response }) => {
  const { range: _, ...headers } = request.headers;
  const given = await ask({ headers });
  response.writeHead(given.statusCode ?? 502, given.headers);
  given.pipe(response);
};

/** Some bits are not as they were. */
export const bitFlips: Answer = async (exchange) => {
  const body = await bytesOf(await begin(exchange));
  for (let at = Math.min(beginningBytes, body.length >> 1); at < body.length; at += 997) {
    body.writeUInt8(body.readUInt8(at) ^ 0x10, at);
  }
  exchange.response.end(body);
};

/** As many bytes as were asked for, but others. */
export const otherBytes: Answer = async (exchange) => {
  const body = await bytesOf(await begin(exchange));
  exchange.response.end(Buffer.from(body.toReversed()));
};

/** The head tells of another part of the object. */
export const wrongRange: Answer = async ({ ask, response }) => {
  const given = await ask();
  const shifted = given.headers["content-range"]?.replace(/\d+/, (first) => `${Number(first) + 1}`);
  response.writeHead(given.statusCode ?? 502, { ...given.headers, "content-range": shifted });
  given.pipe(response);
};

/** The address leads to itself. */
export const redirectLoop: Answer = ({ request, response }) =>
  response.writeHead(307, { location: request.url }).end();

async function begin({ ask, response }: Exchange): Promise<http.IncomingMessage> {
  const given = await ask();
  response.writeHead(given.statusCode ?? 502, given.headers);
  response.flushHeaders();
  return given;
}

async function bytesOf(message: http.IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of message) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}
