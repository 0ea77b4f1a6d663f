import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isClipError } from "../base/errors.ts";
import { parseChallenges } from "./challenge.ts";
import { baseUrl, parseHostsFile } from "./hosts-file.ts";
import { backoffMs, isTransientStatus, retryAfterMs } from "./retry.ts";

test("challenges are read in all their forms", () => {
  const read = (header: string | string[]) =>
    parseChallenges(header).map(({ scheme, parameters }) => [
      scheme,
      Object.fromEntries(parameters),
    ]);
  assert.deepEqual(
    read('Bearer realm="https://a/t",service="b c",scope="repository:x:pull,push"'),
    [["bearer", { realm: "https://a/t", service: "b c", scope: "repository:x:pull,push" }]],
  );
  assert.deepEqual(read("BASIC Realm=plain"), [["basic", { realm: "plain" }]]);
  assert.deepEqual(read('Basic realm="a\\"b", Bearer realm = "c" , error="d"'), [
    ["basic", { realm: 'a"b' }],
    ["bearer", { realm: "c", error: "d" }],
  ]);
  assert.deepEqual(read(["Basic", 'Bearer realm="x"']), [
    ["basic", {}],
    ["bearer", { realm: "x" }],
  ]);
  assert.deepEqual(parseChallenges(undefined), []);
});

test("no challenge makes the reader throw or hang", () => {
  const unit = fc.constantFrom(...Array.from('aB="\\, \t;/'));
  fc.assert(fc.property(fc.string({ unit, maxLength: 200 }), (text) => void parseChallenges(text)));
  parseChallenges(`Bearer realm="${"\\".repeat(50_000)}`);
});

test("Retry-After is seconds or a date, and is bounded", () => {
  const now = Date.parse("2026-01-01T00:00:00Z");
  assert.equal(retryAfterMs("3", now), 3000);
  assert.equal(retryAfterMs("Thu, 01 Jan 2026 00:00:05 GMT", now), 5000);
  assert.equal(retryAfterMs("Wed, 01 Jan 2025 00:00:05 GMT", now), 0);
  assert.equal(retryAfterMs("999999", now), 30_000);
  assert.equal(retryAfterMs("soon", now), undefined);
  assert.equal(retryAfterMs("", now), undefined);
  assert.equal(retryAfterMs(undefined, now), undefined);
});

test("backoff grows and stays bounded, and only passing faults are retried", () => {
  for (let attempt = 0; attempt < 40; attempt++) {
    const wait = backoffMs(attempt);
    assert.ok(wait > 0 && wait <= Math.min(100 * 2 ** attempt, 10_000));
  }
  assert.ok([408, 429, 500, 502, 503, 504].every(isTransientStatus));
  assert.ok(![200, 206, 400, 401, 403, 404, 416, 501].some(isTransientStatus));
});

test("a hosts file is read as containerd reads it", () => {
  const directory = "/etc/containerd/certs.d/registry.example.com";
  const { mirrors, server } = parseHostsFile(
    `server = "https://registry.example.com"
     ca = "ca.pem"
     [host."http://mirror:5000"]
       capabilities = ["pull", "resolve"]
       [host."http://mirror:5000".header]
         X-Team = ["a", "b"]
     [host."other/prefix/v2"]
       skip_verify = true
       client = [["client.cert", "client.key"], "both.pem"]
     [host."https://odd/path"]
       override_path = true
    `,
    `${directory}/hosts.toml`,
  );
  const capabilities = { pull: true, resolve: true, push: true };
  const tls = { caFiles: [], clientFiles: [], skipVerify: false };
  assert.deepEqual(server, {
    base: "https://registry.example.com/v2",
    capabilities,
    tls: { ...tls, caFiles: [`${directory}/ca.pem`] },
    headers: {},
  });
  const clientFiles = [
    [`${directory}/client.cert`, `${directory}/client.key`],
    [`${directory}/both.pem`],
  ];
  assert.deepEqual(mirrors, [
    {
      base: "http://mirror:5000/v2",
      capabilities: { ...capabilities, push: false },
      tls,
      headers: { "x-team": ["a", "b"] },
    },
    {
      base: "https://other/prefix/v2",
      capabilities,
      tls: { ...tls, clientFiles, skipVerify: true },
      headers: {},
    },
    { base: "https://odd/path", capabilities, tls, headers: {} },
  ]);
  for (const text of ["server = 5", "[host", 'server = "https://a b"', "[host.x]\nca = 1"]) {
    assert.throws(
      () => parseHostsFile(text, "/x/hosts.toml"),
      (error) => isClipError(error, "CONFIG_INVALID"),
      text,
    );
  }
  assert.equal(baseUrl("registry:5000/"), "https://registry:5000/v2");
});

test("what is wrong with a hosts file is said without what stands in it", () => {
  const text = '[host."https://a".header]\nauthorization = ["Bearer hunter2"\n';
  assert.throws(
    () => parseHostsFile(text, "/x/hosts.toml"),
    (error) => error instanceof Error && !error.message.includes("hunter2"),
  );
});
