import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { digestOf } from "../base/digest.ts";
import { type ErrorCode, isClipError } from "../base/errors.ts";
import { type FakeServer, newClient, serveBlob, startServer } from "./fake-server.ts";
import { mediaTypes } from "./manifest.ts";

const directory = mkdtempSync(join(tmpdir(), "clip-client-"));
after(() => rmSync(directory, { recursive: true, force: true }));

const content = Buffer.from("the content of a blob");
const digest = digestOf(content);
const name = "team/app";

function rejected(promise: Promise<unknown>, code: ErrorCode): Promise<void> {
  return assert.rejects(promise, (error) => {
    assert.ok(isClipError(error), String(error));
    assert.equal(error.code, code, error.message);
    assert.ok(!JSON.stringify([error.message, error.context]).includes("secret"));
    return true;
  });
}

/** A registry and its token service, which issues `token-1`, `token-2` and so on. */
async function startGuarded(lifetimeSeconds: number): Promise<{
  server: FakeServer;
  tokens: FakeServer;
  accept: (token: string) => void;
}> {
  let issued = 0;
  let accepted = "";
  const tokens = await startServer((request, response) => {
    const body: Buffer[] = [];
    request.on("data", (chunk: Buffer) => body.push(chunk));
    request.on("end", () => {
      const password = Buffer.from("someone:secret").toString("base64");
      const isKnown =
        request.headers.authorization === `Basic ${password}` ||
        Buffer.concat(body).includes("refresh_token=secret-refresh");
      if (!isKnown) return response.writeHead(401).end("secret");
      accepted = `token-${++issued}`;
      return response.end(JSON.stringify({ token: accepted, expires_in: lifetimeSeconds }));
    });
  });
  const server = await startServer((request, response) => {
    if (request.headers.authorization === `Bearer ${accepted}`) {
      return serveBlob(request, response, content);
    }
    const challenge = `Bearer realm="${tokens.origin}/token",service="test",scope="repository:${name}:pull"`;
    return response.writeHead(401, { "www-authenticate": challenge }).end();
  });
  return { server, tokens, accept: (token) => (accepted = token) };
}

function dockerConfig(host: string, auth: Record<string, string>): string {
  const path = join(directory, `${host}-${Object.keys(auth).join()}.json`);
  writeFileSync(path, JSON.stringify({ auths: { [host]: auth } }));
  return path;
}

const password = { auth: Buffer.from("someone:secret").toString("base64") };

test("a token is fetched once for all who need it, used again, and renewed when refused", async () => {
  const { server, tokens, accept } = await startGuarded(3600);
  const client = newClient({ dockerConfig: dockerConfig(server.host, password) });
  const read = () => client.blob({ host: server.host, name }, digest, content.length).read(0, 5);
  await Promise.all([read(), read(), read()]);
  await read();
  const scope = encodeURIComponent(`repository:${name}:pull`);
  assert.deepEqual(tokens.requests, [`GET /token?service=test&scope=${scope}`]);
  accept("another");
  await Promise.all([read(), read()]);
  assert.equal(tokens.requests.length, 2);
});

test("an identity token is exchanged for a bearer token", async () => {
  const { server, tokens } = await startGuarded(3600);
  const config = dockerConfig(server.host, { identitytoken: "secret-refresh" });
  const client = newClient({ dockerConfig: config });
  await client.blob({ host: server.host, name }, digest, content.length).read(0, 5);
  assert.deepEqual(tokens.requests, ["POST /token"]);
});

test("without credentials, or with wrong ones, access is denied after few requests", async () => {
  const { server } = await startGuarded(3600);
  const repository = { host: server.host, name };
  await rejected(newClient().blob(repository, digest, 21).read(0, 5), "REGISTRY_DENIED");
  const config = dockerConfig(server.host, { auth: Buffer.from("a:secret-b").toString("base64") });
  const client = newClient({ dockerConfig: config });
  await rejected(client.blob(repository, digest, 21).read(0, 5), "REGISTRY_DENIED");
  assert.equal(server.requests.length, 2);
});

test("authorization goes to the registry alone, and follows no redirect to another origin", async () => {
  const seen: (string | undefined)[] = [];
  const storage = await startServer((request, response) => {
    seen.push(request.headers.authorization, request.headers["x-team"] as string | undefined);
    serveBlob(request, response, content);
  });
  const server = await startServer((request, response) => {
    if (request.headers.authorization === undefined) {
      return response.writeHead(401, { "www-authenticate": "Basic realm=x" }).end();
    }
    assert.equal(request.headers["x-team"], "a");
    return response.writeHead(307, { location: `${storage.origin}/object` }).end();
  });
  const hosts = join(directory, "certs.d");
  mkdirSync(join(hosts, server.host), { recursive: true });
  writeFileSync(
    join(hosts, server.host, "hosts.toml"),
    `server = "${server.origin}"\n[header]\nx-team = "a"\n`,
  );
  const client = newClient({
    dockerConfig: dockerConfig(server.host, password),
    hostsDirectory: hosts,
  });
  await client.blob({ host: server.host, name }, digest, content.length).read(0, 5);
  assert.deepEqual(seen, [undefined, undefined]);
});

test("a token service without TLS is refused to a registry with TLS", async () => {
  // The challenge alone decides, so no TLS is needed to see it.
  const { Authorizer } = await import("./authorizer.ts");
  const { Agent } = await import("undici");
  const authorizer = new Authorizer({
    base: "https://registry.example.com/v2",
    credentials: () => Promise.resolve(undefined),
    dispatcher: new Agent(),
    retries: 0,
    closing: new AbortController().signal,
  });
  const challenge = { scheme: "bearer", parameters: new Map([["realm", "http://a/token"]]) };
  const subject = { host: "registry.example.com", repository: name, target: digest };
  assert.throws(
    () => authorizer.refuse([challenge], "repository:a:pull", undefined, subject),
    (error) => isClipError(error, "REGISTRY_PROTOCOL"),
  );
});

test("mirrors are asked first, and left alone for a while when they fail", async () => {
  const mirror = await startServer((_, response) => response.destroy());
  const server = await startServer((request, response) => serveBlob(request, response, content));
  const hosts = { [server.host]: { mirrors: [mirror.origin] } };
  const client = newClient({ hosts, retries: 0 });
  const blob = client.blob({ host: server.host, name }, digest, content.length);
  for (let round = 0; round < 3; round++) assert.equal((await blob.read(0, 5)).toString(), "the c");
  const ns = encodeURIComponent(server.host);
  assert.deepEqual(
    [...new Set(mirror.requests)],
    [`GET /v2/${name}/blobs/${digest}?ns=${ns}`],
    "a mirror is told whose content is meant",
  );
  assert.ok(mirror.requests.length <= 2);
  assert.equal(server.requests.length, 3);

  mirror.handle((request, response) => serveBlob(request, response, content));
  const other = newClient({ hosts });
  await other.blob({ host: server.host, name }, digest, content.length).read(0, 5);
  assert.equal(server.requests.length, 3, "a mirror that answers is enough");
});

const manifest = Buffer.from(JSON.stringify({ mediaType: mediaTypes.ociManifest, layers: [] }));

test("a manifest must match its digest and its limits", async () => {
  const server = await startServer((_, response) => response.end(manifest));
  const client = newClient();
  const repository = { host: server.host, name };
  const found = await client.manifest(repository, digestOf(manifest));
  assert.equal(found.mediaType, mediaTypes.ociManifest);
  await rejected(client.manifest(repository, digest), "REGISTRY_PROTOCOL");
  assert.equal((await client.manifest(repository, "latest")).digest, digestOf(manifest));
  server.handle((_, response) =>
    response.writeHead(200, { "docker-content-digest": digest }).end(manifest),
  );
  await rejected(client.manifest(repository, "latest"), "REGISTRY_PROTOCOL");
  server.handle((_, response) => response.end(Buffer.alloc(5 * 1024 * 1024)));
  await rejected(client.manifest(repository, "latest"), "REGISTRY_PROTOCOL");
  server.handle((_, response) =>
    response.writeHead(404).end('{"errors":[{"code":"MANIFEST_UNKNOWN","message":"secret"}]}'),
  );
  await assert.rejects(client.manifest(repository, "latest"), /MANIFEST_UNKNOWN/);
  await rejected(client.manifest(repository, "latest"), "REGISTRY_NOT_FOUND");
});

const descriptor = (artifactType: string, text: string) => ({
  mediaType: mediaTypes.ociManifest,
  digest: digestOf(Buffer.from(text)),
  size: 1,
  artifactType,
});

test("referrers come from the API page by page, else from the tag", async () => {
  const client = newClient();
  const index = (...manifests: object[]) =>
    JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociIndex, manifests });
  const server = await startServer((request, response) => {
    const type = { "content-type": mediaTypes.ociIndex };
    if (request.url.includes("page=2")) {
      return response.writeHead(200, type).end(index(descriptor("a", "2"), descriptor("b", "3")));
    }
    const link = `</v2/${name}/referrers/${digest}?page=2>; rel="next"`;
    return response.writeHead(200, { ...type, link }).end(index(descriptor("a", "1")));
  });
  const repository = { host: server.host, name };
  const digests = async () =>
    (await client.referrers(repository, digest, "a")).map(({ digest }) => digest);
  const both = [descriptor("a", "1").digest, descriptor("a", "2").digest];
  assert.deepEqual(await digests(), both);

  const tag = `/v2/${name}/manifests/${digest.replace(":", "-")}`;
  for (const missing of [404, 405, 200]) {
    server.handle((request, response) =>
      request.url === tag
        ? response.end(index(descriptor("a", "1"), descriptor("a", "2")))
        : response.writeHead(missing, { "content-type": "text/html" }).end("<html>"),
    );
    assert.deepEqual(await digests(), both, String(missing));
  }
  server.handle((_, response) => response.writeHead(404).end());
  assert.deepEqual(await digests(), []);
  server.handle((_, response) => response.writeHead(403).end());
  await rejected(digests(), "REGISTRY_DENIED");
  server.handle((request, response) => {
    const link = `<${request.url}>; rel="next"`;
    response.writeHead(200, { "content-type": mediaTypes.ociIndex, link }).end(index());
  });
  assert.deepEqual(await digests(), [], "pages without end");
});

test("an upload that breaks begins anew, and what the registry has is not sent", async () => {
  let breaks = 1;
  const stored: Buffer[] = [];
  const server = await startServer((request, response) => {
    if (request.method === "HEAD") return response.writeHead(stored.length > 0 ? 200 : 404).end();
    if (request.method === "POST") {
      return response.writeHead(202, { location: `/upload/${breaks}?state=x` }).end();
    }
    if (breaks-- > 0) return response.destroy();
    assert.equal(request.url, `/upload/0?state=x&digest=${encodeURIComponent(digest)}`);
    request.on("data", (chunk: Buffer) => stored.push(chunk));
    return request.on("end", () => response.writeHead(201).end());
  });
  const client = newClient();
  const repository = { host: server.host, name };
  assert.equal(await client.pushBlob(repository, content), digest);
  assert.deepEqual(Buffer.concat(stored), content);
  const before = server.requests.length;
  await client.pushBlob(repository, content);
  assert.deepEqual(server.requests.slice(before), [`HEAD /v2/${name}/blobs/${digest}`]);
});

test("a registry that keeps track of referrers gets no tag for them", async () => {
  const server = await startServer((_, response) =>
    response.writeHead(201, { "oci-subject": digest }).end(),
  );
  const refersTo = { subject: digest, artifactType: "a" };
  const pushed = { bytes: manifest, mediaType: mediaTypes.ociManifest, refersTo };
  await newClient().pushManifest({ host: server.host, name }, pushed);
  assert.deepEqual(server.requests, [`PUT /v2/${name}/manifests/${digestOf(manifest)}`]);
});
