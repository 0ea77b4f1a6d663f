/** A container reads while its registry, or the network to it, fails in every way. */
import assert from "node:assert/strict";
import { rename, writeFile } from "node:fs/promises";
import path from "node:path";
import { after, afterEach, before } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { certificates } from "./certificates.ts";
import type { ContainerReader } from "./container-reader.ts";
import { faultTest, type FaultKind } from "./fault-kinds.ts";
import { FaultProxy, type Provocation } from "./fault-proxy.ts";
import * as faults from "./http-faults.ts";
import {
  assertReads,
  blobs,
  NetworkStage,
  type DataLayer,
  type KnownFile,
} from "./network-stage.ts";
import { TokenService } from "./token-service.ts";

// A reader who goes on in one layer has it fetched ahead of him: he reads a little of each.
const layerCount = 10;
const filesPerLayer = 8;

let stage: NetworkStage;
let layers: DataLayer[];
let reader: ContainerReader;
let fresh: KnownFile[];
let warm: KnownFile;

before(async () => {
  stage = await NetworkStage.open();
  layers = await Promise.all(
    Array.from({ length: layerCount }, (_, at) => stage.makeDataLayer(`d${at}`, filesPerLayer)),
  );
  await stage.push("faults", layers);
  await stage.startNode();
  await stage.publishIndexes("faults");
  reader = await stage.startReader(await stage.pull("faults"));
  fresh = Array.from({ length: filesPerLayer }, (_, at) =>
    layers.flatMap(({ files }) => files[at] ?? []),
  ).flat();
  warm = takeFresh();
  await assertReads(reader, warm);
});
afterEach(async () => {
  await stage.registry.recover();
  await stage.trust(certificates.first);
  stage.registry.present(certificates.first);
});
after(async () => {
  await reader?.close();
  await stage?.close();
});

/** A file that nobody has read. */
function takeFresh(): KnownFile {
  const file = fresh.shift();
  assert.ok(file !== undefined, "there are files left");
  return file;
}

/** What is on this node's disk is read although the registry fails. */
async function assertWarm(): Promise<void> {
  await reader.forget(warm.name);
  await assertReads(reader, warm);
}

/** How a fault shows. */
interface Expectation {
  /** In the log, once a read has failed. */
  log: RegExp;
  /** In the metrics. */
  metric: RegExp;
  /** How the fault ends; by default everything is as it was. */
  recover?: () => Promise<void>;
}

const tierErrors = /^clip_tier_errors_total\{tier="registry"\}/;
const corruptSpans = /^clip_tier_corrupt_spans_total\{tier="registry"\}/;
const fault = (name: string) => new RegExp(`^clip_registry_faults_total\\{.*fault="${name}"\\}`);
const answered = (status: number) =>
  new RegExp(`^clip_registry_answers_total\\{.*status="${status}"\\}`);

/** A fault during which a read fails for want of another place, and after which it succeeds. */
function failing(
  kind: FaultKind,
  what: string,
  provoke: () => Provocation | Promise<Provocation | void>,
  { log, metric, recover = () => stage.registry.recover() }: Expectation,
): void {
  faultTest(kind, what, async () => {
    const counted = await stage.metric(metric);
    const failed = await stage.metric(/^clip_handed_read_errors_total/);
    const logged = stage.node.clip.log().length;
    const provocation = await provoke();
    await assertWarm();
    const file = takeFresh();
    // Where the machine dawdles for longer than a time limit, that is what a read fails of.
    for (let tries = 0; tries < 5; tries++) {
      const outcome = await reader.read(file.name);
      assert.ok("failure" in outcome, "the read fails");
      assert.match(outcome.failure, /Input\/output error/);
      if ((await stage.metric(metric)) > counted) break;
    }
    if (provocation !== undefined) assert.ok(provocation.count > 0, "the fault was provoked");
    assert.ok((await stage.metric(metric)) > counted, "it is counted");
    assert.ok((await stage.metric(/^clip_handed_read_errors_total/)) > failed);
    assert.match(stage.node.clip.log().slice(logged), log);
    await assertWarm();
    await recover();
    await assertReads(reader, file);
    await assertReads(reader, takeFresh());
  });
}

/** A fault that passes while a reader waits: it never learns of it. */
function passing(kind: FaultKind, provoke: () => Provocation): void {
  faultTest(kind, "a reader that waits gets its bytes when it is over", async () => {
    const provocation = provoke();
    const file = takeFresh();
    const read = reader.read(file.name);
    const ended = read.then(() => true);
    while (provocation.count === 0) {
      assert.ok(!(await Promise.race([ended, sleep(1, false)])), "the fault was provoked");
    }
    await stage.registry.recover();
    assert.deepEqual(await read, { sum: file.sum });
  });
}

/** A fault that is got over by itself. */
function harmless(kind: FaultKind, what: string, provoke: () => Provocation, metric: RegExp): void {
  faultTest(kind, what, async () => {
    const counted = await stage.metric(metric);
    const provocation = provoke();
    await assertReads(reader, takeFresh());
    await assertReads(reader, takeFresh());
    assert.ok(provocation.count > 0, "the fault was provoked");
    assert.ok((await stage.metric(metric)) > counted, "it is counted");
    await stage.registry.recover();
    await assertReads(reader, takeFresh());
  });
}

const provoke = (answer: Parameters<FaultProxy["provoke"]>[0]) => () =>
  stage.registry.provoke(answer);

failing("registry-down", "nobody listens", () => stage.registry.refuse(), {
  log: /the registry cannot be reached.*ECONNREFUSED/,
  metric: fault("unreachable"),
});
failing("registry-black-hole", "connections hang", () => stage.registry.swallow(), {
  log: /the registry cannot be reached.*[Cc]onnect [Tt]imeout/,
  metric: fault("timeout"),
});
failing("registry-silent", "requests are not answered", provoke(faults.silent), {
  log: /the registry cannot be reached: Headers Timeout/,
  metric: fault("timeout"),
});
passing("registry-silent", provoke(faults.silent));
failing("registry-silent-body", "nothing comes after the head", provoke(faults.silentBody), {
  log: /the registry cannot be reached/,
  metric: fault("timeout"),
});
passing("registry-silent-body", provoke(faults.silentBody));
failing("registry-trickle", "a byte comes now and then", provoke(faults.trickle(200)), {
  log: /only \d+ bytes came in 1000 ms/,
  metric: fault("slow"),
});
passing("registry-trickle", provoke(faults.trickle(200)));
failing(
  "registry-throttled",
  "there are too many requests",
  provoke(faults.answer(429, { "retry-after": "1" })),
  { log: /the registry fails \(HTTP 429\)/, metric: answered(429) },
);
passing("registry-throttled", provoke(faults.answer(429, { "retry-after": "1" })));
failing("registry-failing", "it answers 503", provoke(faults.answer(503)), {
  log: /the registry fails \(HTTP 503\)/,
  metric: answered(503),
});
failing("registry-reset", "connections are reset", provoke(faults.reset), {
  log: /the registry cannot be reached/,
  metric: fault("broken"),
});
passing("registry-reset", provoke(faults.reset));
failing("registry-truncated", "bodies end too early", provoke(faults.truncated), {
  log: /the body of the answer ends too early/,
  metric: tierErrors,
});
passing("registry-truncated", provoke(faults.truncated));
failing("registry-bit-flips", "some bits are wrong", provoke(faults.bitFlips), {
  log: /a span could not be fetched/,
  metric: corruptSpans,
});
failing("registry-other-bytes", "other bytes are sent", provoke(faults.otherBytes), {
  log: /a span could not be fetched/,
  metric: corruptSpans,
});
failing("registry-wrong-range", "another range is sent", provoke(faults.wrongRange), {
  log: /another range than was asked for/,
  metric: tierErrors,
});
passing("registry-wrong-range", provoke(faults.wrongRange));
failing("registry-redirect-loop", "an address leads to itself", provoke(faults.redirectLoop), {
  log: /too many redirects/,
  metric: answered(307),
});
harmless(
  "registry-ignores-range",
  "readers get their bytes from a registry that always sends the whole blob",
  provoke(faults.ignoresRange),
  answered(200),
);

failing("registry-lost-blob", "the registry has lost the layers", () => moveBlobs("data", "lost"), {
  log: /not found.*\(HTTP 404\)/,
  metric: answered(404),
  recover: () => moveBlobs("lost", "data"),
});

async function moveBlobs(from: string, to: string): Promise<void> {
  const blobDirectory = path.join(stage.registryData, "docker/registry/v2/blobs/sha256");
  for (const { layer } of layers) {
    const hex = layer.digest.slice("sha256:".length);
    const directory = path.join(blobDirectory, hex.slice(0, 2), hex);
    await rename(path.join(directory, from), path.join(directory, to));
  }
}

failing("name-gone", "the registry's name has no address", () => leaveName(), {
  log: /the registry cannot be reached.*(ENOTFOUND|EAI_AGAIN)/,
  metric: fault("name"),
  recover: () => Promise.resolve(stage.hostName.appear()),
});

async function leaveName(): Promise<void> {
  stage.hostName.vanish();
  stage.registry.disconnect();
}

failing(
  "certificate-replaced",
  "the registry has a certificate of another authority",
  async () => stage.registry.present(certificates.second),
  {
    log: /its certificate is not trusted/,
    metric: fault("certificate"),
    recover: () => stage.trust(certificates.second),
  },
);

faultTest("token-expired", "tokens end in the middle of a container's life", async () => {
  const tokens = new TokenService(stage.host);
  stage.registry.guard((exchange) => tokens.admits(exchange));
  await assertReads(reader, takeFresh());
  assert.equal(tokens.issued, 1);
  tokens.expire();
  await assertReads(reader, takeFresh());
  assert.equal(tokens.issued, 2);
});

const credentials = (password: string) =>
  writeFile(
    stage.dockerConfig,
    JSON.stringify({
      auths: { [stage.host]: { auth: Buffer.from(`clip:${password}`).toString("base64") } },
    }),
  );
failing(
  "password-changed",
  "the registry has another password, which the configuration gets later",
  async () => {
    const tokens = new TokenService(stage.host, "old");
    await credentials("old");
    stage.registry.guard((exchange) => tokens.admits(exchange));
    await assertReads(reader, takeFresh());
    tokens.password = "new";
    tokens.expire();
  },
  {
    log: /access denied: no token was issued/,
    metric: answered(401),
    recover: () => credentials("new"),
  },
);

faultTest("redirect-expired", "signed addresses of the storage end", async () => {
  const storage = await FaultProxy.open(stage.sandbox, {
    target: stage.registryPort,
    certificate: certificates.first,
    filter: blobs,
  });
  let signature = 1;
  storage.guard(({ request, response }) => {
    if (request.url.endsWith(`?signature=${signature}`)) return true;
    return response.writeHead(403).end() === undefined;
  });
  const redirects = stage.registry.provoke(({ request, response }) => {
    const location = `https://${stage.hostName.name}:${storage.port}${request.url}?signature=${signature}`;
    response.writeHead(307, { location }).end();
  });
  await assertReads(reader, takeFresh());
  assert.equal(redirects.count, 1);
  signature++;
  await assertReads(reader, takeFresh());
  assert.equal(redirects.count, 2);
  // Storage that refuses what has just been signed.
  storage.guard(({ response }) => response.writeHead(403).end() === undefined);
  const file = takeFresh();
  assert.ok("failure" in (await reader.read(file.name)));
  assert.match(stage.node.clip.log(), /the storage behind the registry refuses the address/);
  await stage.registry.recover();
  await assertReads(reader, file);
});
