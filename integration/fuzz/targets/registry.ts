/** Whatever a registry may answer, as bytes on its connections: HTTP itself, headers and bodies. */
import assert from "node:assert/strict";
import net, { type AddressInfo, type NetConnectOpts, type Socket } from "node:net";
import tls from "node:tls";
import { digestOf, isDigest } from "../../../src/base/digest.ts";
import { RegistryClient } from "../../../src/registry/client.ts";
import { silentLog } from "../../../src/telemetry/log.ts";
import { attemptAsync, magnitude, type FuzzTarget } from "../engine/target.ts";

const codes = [
  ...([
    "REGISTRY_UNAVAILABLE",
    "REGISTRY_NOT_FOUND",
    "REGISTRY_DENIED",
    "REGISTRY_PROTOCOL",
  ] as const),
];
const blob = Buffer.from('{"a":"blob"}');
const digest = digestOf(blob);
const artifactType = "application/x";
const indexType = "application/vnd.oci.image.index.v1+json";
/** Between the answers of an input. */
const separator = Buffer.from("\n~~~\n");

/** What is asked, by the first byte of an input. */
const actions: readonly ((client: RegistryClient, host: string) => Promise<string>)[] = [
  async (client, host) => {
    const found = await client.manifest({ host, name: "x/y" }, "latest");
    assert.equal(found.digest, digestOf(found.bytes));
    return `manifest ${magnitude(found.bytes.length)}`;
  },
  async (client, host) => {
    const found = await client.referrers({ host, name: "x" }, digest, artifactType);
    assert.ok(found.every(({ digest }) => isDigest(digest)));
    return `referrers ${magnitude(found.length)}`;
  },
  async (client, host) => {
    assert.deepEqual(await client.smallBlob({ host, name: "x" }, digest), blob);
    return "blob";
  },
  async (client, host) => {
    const bytes = await client.blob({ host, name: "x" }, digest, 1000).read(100, 12);
    assert.equal(bytes.length, 12);
    return "range";
  },
  async (client, host) => {
    const reader = client.blob({ host, name: "x" }, digest, 1000);
    let bytes = 0;
    const options = { connections: 2, chunkBytes: 600 };
    for await (const chunk of reader.parallelStream(options)) bytes += chunk.length;
    assert.equal(bytes, 1000);
    return `stream ${String(reader.ignoresRanges)}`;
  },
  async (client, host) => `there ${String(await client.has({ host, name: "x" }, digest))}`,
];

interface Running {
  host: string;
  server: net.Server;
  answer: (answers: readonly Buffer[]) => void;
}

let running: Promise<Running> | undefined;

/** A byte for what is asked, and the answers, of which the last one is repeated. */
export const registryAnswers: FuzzTarget = {
  bytesMax: 1500,
  dictionary: [
    ...[
      "HTTP/1.1 200 OK\r\n",
      "HTTP/1.1 206 X\r\n",
      "HTTP/1.1 401 X\r\n",
      "HTTP/1.1 307 X\r\n",
      "\r\n\r\n",
    ],
    ...[
      "HTTP/1.1 100 Continue\r\n\r\n",
      "Content-Length: 12\r\n",
      "Transfer-Encoding: chunked\r\n",
    ],
    ...[
      'WWW-Authenticate: Bearer realm="http://a/t"\r\n',
      "WWW-Authenticate: Basic\r\n",
      "Location: /x\r\n",
    ],
    ...[
      "Content-Range: bytes 100-111/1000\r\n",
      'Link: </next>; rel="next"\r\n',
      "Content-Encoding: gzip\r\n",
    ],
    ...[
      `Content-Type: ${indexType}\r\n`,
      `Docker-Content-Digest: ${digest}\r\n`,
      '{"token":"x"}',
      separator,
    ],
    ...[
      "Connection: close\r\n",
      "Location: https://[::1]:1/\r\n",
      "Location: file:///etc/passwd\r\n",
    ],
  ],
  seeds: () => {
    const index = JSON.stringify({
      manifests: [{ mediaType: "a", digest, size: 12, artifactType }],
    });
    const challenge = 'WWW-Authenticate: Bearer realm="http://auth.example/t",service="s"\r\n';
    return [
      input(0, response(200, "Content-Type: application/json\r\n", '{"layers":[]}')),
      input(
        0,
        response(401, challenge, ""),
        response(200, "", '{"token":"t"}'),
        response(200, "", "{}"),
      ),
      input(
        1,
        response(200, `Content-Type: ${indexType}\r\nLink: </n>; rel="next"\r\n`, index),
        response(404, "", ""),
      ),
      input(
        2,
        response(307, "Location: http://storage.example/x\r\n", ""),
        response(200, "", String(blob)),
      ),
      input(3, response(206, "Content-Range: bytes 100-111/1000\r\n", "x".repeat(12))),
      input(3, response(200, "", "x".repeat(1000))),
      input(3, response(307, "Location: /s\r\n", ""), response(200, "", "x".repeat(1000))),
      input(3, response(206, "Content-Encoding: gzip\r\n", "x")),
      input(4, response(206, "Content-Range: bytes 0-0/1000\r\n", "x"), response(404, "", "")),
      input(4, response(200, "", "x".repeat(1000))),
      input(1, response(404, "", ""), response(200, `Content-Type: ${indexType}\r\n`, index)),
      input(0, response(200, `Docker-Content-Digest: ${digest}\r\n`, "{}")),
      input(
        0,
        response(401, challenge, ""),
        response(200, "", '{"access_token":"t","expires_in":1}'),
        response(401, challenge, ""),
      ),
      input(5, response(200, "", "")),
      input(0, response(503, "Retry-After: 1\r\n", '{"errors":[{"code":"X"}]}')),
    ];
  },
  mend: mendLengths,
  async run(input) {
    const { host, answer } = await (running ??= start());
    answer(split(input.subarray(1)));
    const options = { retries: 0, timeoutMs: 5000, idleTimeoutMs: 5000, log: silentLog };
    const client = new RegistryClient({ ...options, dockerConfig: "/nonexistent/config.json" });
    try {
      const action = actions[(input[0] ?? 0) % actions.length];
      if (action === undefined) throw new RangeError("there are actions");
      const outcome = await attemptAsync(codes, () => action(client, host));
      return "value" in outcome ? outcome.value : outcome.failure;
    } finally {
      await client.close();
    }
  },
  async close() {
    (await running)?.server.close();
  },
};

async function start(): Promise<Running> {
  let answers: readonly Buffer[] = [];
  let next = 0;
  const server = net.createServer((socket) => {
    socket.on("error", () => socket.destroy());
    // One answer a connection, as soon as there is a request; then it ends, so that nobody waits.
    socket.once("data", () => socket.end(answers[Math.min(next++, answers.length - 1)] ?? ""));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  leadEverythingTo(port);
  return {
    host: `127.0.0.1:${port}`,
    server,
    answer: (wanted) => ([answers, next] = [wanted, 0]),
  };
}

/** Redirects and token services lead to any host: nothing but the server here is ever connected to. */
function leadEverythingTo(port: number): void {
  const here = { host: "127.0.0.1", port };
  const connect = net.connect.bind(net) as (options: NetConnectOpts) => Socket;
  net.connect = ((options: NetConnectOpts) =>
    connect({ ...options, ...here })) as typeof net.connect;
  const connectTls = tls.connect.bind(tls) as (options: tls.ConnectionOptions) => tls.TLSSocket;
  tls.connect = ((options: tls.ConnectionOptions) =>
    connectTls({ ...options, ...here })) as typeof tls.connect;
}

function response(code: number, headers: string, body: string): Buffer {
  const length = `Content-Length: ${Buffer.byteLength(body)}\r\n`;
  return Buffer.from(`HTTP/1.1 ${code} X\r\n${headers}${length}\r\n${body}`);
}

function input(action: number, ...answers: readonly Buffer[]): Buffer {
  return Buffer.concat([
    Buffer.from([action]),
    ...answers.flatMap((one, at) => (at === 0 ? [one] : [separator, one])),
  ]);
}

function split(bytes: Buffer): Buffer[] {
  const answers: Buffer[] = [];
  let at = 0;
  for (let end = bytes.indexOf(separator); end >= 0; end = bytes.indexOf(separator, at)) {
    answers.push(bytes.subarray(at, end));
    at = end + separator.length;
  }
  return [...answers, bytes.subarray(at)];
}

/** Has each answer state the length that its body has. */
function mendLengths(bytes: Buffer): Buffer {
  const answers = split(bytes.subarray(1)).map((answer) => {
    const end = answer.indexOf("\r\n\r\n");
    if (end < 0) return answer;
    const head = answer.toString("latin1", 0, end);
    const length = `Content-Length: ${answer.length - end - 4}`;
    const mended = head.replace(/Content-Length: \d+/i, length);
    return Buffer.concat([Buffer.from(mended, "latin1"), answer.subarray(end)]);
  });
  return input(bytes[0] ?? 0, ...answers);
}
