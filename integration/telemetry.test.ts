/**
 * What a daemon tells of itself after it has served a container lazily, from a registry that wants
 * credentials: the right numbers, the events, and no secret.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import http from "node:http";
import path from "node:path";
import { text } from "node:stream/consumers";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { NodeStatus } from "../src/daemon/status.ts";
import { clip } from "./harness/clip.ts";
import { fixtures, makeBase } from "./harness/fixtures.ts";
import { pushImage } from "./harness/image.ts";
import { startRegistry, type Interference } from "./harness/registry.ts";
import { Sandbox } from "./harness/sandbox.ts";
import { startClipAgain, startStage, type Stage } from "./harness/stage.ts";

const user = "someone";
const password = "the-password-4711";
const basic = Buffer.from(`${user}:${password}`).toString("base64");
const token = "the-token-4712";
const signature = "the-signature-4713";

let sandbox: Sandbox;
let stage: Stage;
let lazy: string;
let unindexed: string;
let denied: string;
/** How often each secret was used. */
const used = { basic: 0, token: 0, signature: 0 };

before(async () => {
  sandbox = await Sandbox.create();
  const registry = await startRegistry(sandbox);
  const kinds = fixtures.find(({ name }) => name === "kinds");
  assert.ok(kinds !== undefined);
  const image = await kinds.make(await sandbox.subdirectory("kinds"));
  lazy = await pushImage(image, registry.host, "test/lazy");
  await clip(["index", "create", lazy, "--push", "--plain-http"]);
  const base = await makeBase(await sandbox.subdirectory("base"));
  unindexed = await pushImage(base, registry.host, "test/unindexed");
  // Other bytes than those of the first, which containerd would know by then.
  const other = await kinds.make(await sandbox.subdirectory("other"));
  const refused = other.layers.map(({ digest }) => digest);
  denied = await pushImage(other, registry.host, "test/denied");

  const dockerConfig = sandbox.path("docker.json");
  await writeFile(dockerConfig, JSON.stringify({ auths: { [registry.host]: { auth: basic } } }));
  registry.interfere(guard(registry.host, refused));
  stage = await startStage(sandbox, {
    generation: "2",
    mode: "auto",
    registry,
    settings: {
      registry: {
        host: [{ name: registry.host, plain_http: true }],
        docker_config: dockerConfig,
        retries: 2,
      },
    },
  });
});

after(() => sandbox.close());

/** A registry that gives tokens for a password, and redirects blobs to URLs that are signed. */
function guard(host: string, refused: readonly string[]): Interference {
  let failures = 2;
  return (request, response) => {
    const answer = (status: number, headers: http.OutgoingHttpHeaders, body = "{}"): true => {
      request.resume();
      response.writeHead(status, { "content-type": "application/json", ...headers }).end(body);
      return true;
    };
    const url = new URL(request.url ?? "/", `http://${host}`);
    const { authorization } = request.headers;
    if (url.pathname === "/token") {
      if (request.method !== "GET") return answer(405, {});
      if (authorization !== `Basic ${basic}`) return answer(401, {});
      used.basic++;
      return answer(200, {}, JSON.stringify({ token, expires_in: 300 }));
    }
    if (url.searchParams.get("Signature") === signature) {
      used.signature++;
      // containerd does not try again; clip asks for ranges.
      return request.headers.range !== undefined && failures-- > 0 ? answer(503, {}) : false;
    }
    if (authorization !== `Bearer ${token}`) {
      const challenge = `Bearer realm="http://${host}/token",service="test"`;
      return answer(401, { "www-authenticate": challenge });
    }
    used.token++;
    if (refused.some((digest) => url.pathname.endsWith(digest))) return answer(403, {});
    if (!url.pathname.includes("/blobs/") || request.method === "POST") return false;
    return answer(307, { location: `http://${host}${url.pathname}?Signature=${signature}` });
  };
}

async function page(name: string): Promise<{ status: number | undefined; body: string }> {
  const socketPath = path.join(stage.clip.state, "metrics.sock");
  const request = http.get({ socketPath, path: name });
  const [response] = (await once(request, "response")) as [http.IncomingMessage];
  return { status: response.statusCode, body: await text(response) };
}

async function metric(name: string): Promise<number> {
  const { body } = await page("/metrics");
  const line = body.split("\n").find((candidate) => candidate.startsWith(`${name} `));
  assert.ok(line !== undefined, `${name} is in the page`);
  return Number(line.slice(name.length));
}

/** Waits until no span is on its way any more, to memory or to disk. */
async function settle(): Promise<void> {
  for (let tries = 0; (await metric("clip_span_memory_bytes")) > 0; tries++) {
    assert.ok(tries < 100, "spans arrive");
    await sleep(50);
  }
}

async function readStatus(): Promise<NodeStatus> {
  return JSON.parse(await clip(["status", "--json", "--state", stage.clip.state]));
}

/** Lines of the log with this message. */
function logged(message: string): Record<string, unknown>[] {
  const lines = stage.clip.log().split("\n");
  return lines
    .filter((line) => line.startsWith("{"))
    .map((line): Record<string, unknown> => JSON.parse(line))
    .filter(({ msg }) => msg === message);
}

async function runOnce(name: string, file: string): Promise<string> {
  const { containerd } = stage;
  const credentials = ["--user", `${user}:${password}`, "--plain-http"];
  await containerd.ctr(["image", "pull", ...credentials, "--snapshotter", "clip", name]);
  return containerd.ctr(["run", "--rm", "--snapshotter", "clip", name, "once", "cat", file]);
}

test("a daemon that has done nothing says so", async () => {
  assert.deepEqual(await page("/healthz"), { status: 200, body: "ok\n" });
  const { layers, hitRatio, snapshots, contentCache } = await readStatus();
  assert.deepEqual(layers, []);
  assert.deepEqual(hitRatio, { disk: null, contentCache: null, all: null });
  assert.deepEqual(snapshots, { active: 0, view: 0, committed: 0, remote: 0 });
  assert.equal(contentCache, null);
  const message = "ContentCache not configured - layer will NOT be shared across cluster";
  assert.equal(logged(message).length, 1);
});

test("a container that starts lazily shows in the metrics", async () => {
  assert.equal(await runOnce(lazy, "/srv/small"), "small");
  await settle();
  assert.equal(await metric('clip_layers{state="lazy"}'), 1);
  assert.equal(await metric('clip_layers{state="complete"}'), 0);
  assert.equal(await metric('clip_snapshots{kind="remote"}'), 1);
  const calls = "clip_grpc_call_duration_seconds_count";
  assert.equal(await metric(`${calls}{method="Prepare",code="ALREADY_EXISTS"}`), 1);
  assert.ok((await metric('clip_fuse_requests_total{opcode="READ"}')) > 0);
  assert.ok((await metric("clip_handed_reads_total")) > 0);
  const spans = await metric('clip_tier_spans_total{tier="registry"}');
  assert.ok(spans > 0);
  assert.ok((await metric('clip_tier_first_span_seconds_count{tier="registry"}')) > 0);
  const local = await metric("clip_layer_local_bytes");
  assert.ok(local > 0 && local < (await metric("clip_layer_bytes")));
  assert.equal(await metric('clip_tier_bytes_total{tier="registry"}'), local);
  assert.ok((await metric("clip_disk_cache_bytes")) >= local);
  assert.equal(await metric("clip_reads_waiting"), 0);

  const { layers, tiers, mode } = await readStatus();
  assert.equal(layers.length, 1);
  assert.equal(layers[0]?.state, "lazy");
  assert.equal(layers[0]?.localBytes, local);
  assert.equal(tiers["registry"]?.hits, spans);
  assert.match(stage.clip.log(), new RegExp(`"mode":"${mode}"`));
});

test("a layer that is pulled whole shows as complete, and in the log", async () => {
  assert.equal(await runOnce(unindexed, "/etc/os-release"), 'NAME="clip test"');
  assert.equal(await metric('clip_layers{state="complete"}'), 1);
  assert.equal(await metric("clip_whole_pulls_total"), 1);
  const missed = logged("cache miss - downloading and decompressing layer from registry");
  const [kept] = logged("layer decompressed and cached to disk");
  const layer = (await readStatus()).layers.find(({ state }) => state === "complete");
  assert.ok(kept !== undefined && layer !== undefined);
  assert.deepEqual([missed[0]?.["layer"], kept["layer"]], [layer.layerDigest, layer.layerDigest]);
  assert.equal(kept["cacheKey"], layer.layerDigest.replace(":", "_"));
  assert.equal(kept["bytes"], layer.size);
  assert.equal(kept["path"], path.join(stage.clip.root, "cache", kept["cacheKey"]));
  assert.equal(typeof kept["durationMs"], "number");
});

test("a layer that the registry refuses is a fallback with its reason", async () => {
  const credentials = ["--user", `${user}:${password}`, "--plain-http"];
  const pull = ["image", "pull", ...credentials, "--snapshotter", "clip", denied];
  assert.notEqual((await stage.containerd.tryCtr(pull)).status, 0);
  assert.equal(await metric('clip_fallbacks_total{reason="registry_denied"}'), 1);
  const { fallbacks } = await readStatus();
  assert.deepEqual(fallbacks, { registry_denied: 1 });
});

test("a person is shown the same", async () => {
  const shown = await clip(["status", "--state", stage.clip.state]);
  const [layer] = (await readStatus()).layers;
  assert.ok(layer !== undefined);
  const short = layer.layerDigest.slice("sha256:".length, "sha256:".length + 12);
  assert.match(shown, new RegExp(`^${short} +lazy +\\d+\\.\\d %`, "m"));
  assert.match(shown, /^registry +\d+ +\S+ \S+ +/m);
  assert.match(shown, /^fallbacks +1 registry denied$/m);
});

test("no secret is in the log, the metrics or the status", async () => {
  for (const [secret, times] of Object.entries(used)) assert.ok(times > 0, `${secret} was used`);
  assert.ok(logged("a request is tried again").length > 0, "the log tells of requests");
  const told = [
    stage.clip.log(),
    (await page("/metrics")).body,
    (await page("/status")).body,
    await clip(["status", "--state", stage.clip.state]),
  ];
  for (const text of told) {
    assert.ok(text.length > 0);
    for (const secret of [password, basic, token, signature, "Signature="]) {
      const at = text.indexOf(secret);
      assert.equal(at, -1, `${secret}: ${text.slice(Math.max(0, at - 200), at + 50)}`);
    }
  }
});

test("without a daemon the status is one clear sentence", async () => {
  await stage.clip.stop();
  const asked = clip(["status", "--state", stage.clip.state]);
  const said =
    /clip: no clip daemon answers on \S+metrics\.sock: connect ENOENT .*\nhint: is it running\?/;
  await assert.rejects(asked, said);
  await startClipAgain(stage);
  assert.equal((await readStatus()).layers.length, 2);
});
