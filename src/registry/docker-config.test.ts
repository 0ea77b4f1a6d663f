import assert from "node:assert/strict";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { isClipError } from "../base/errors.ts";
import { DockerConfig } from "./docker-config.ts";

const directory = mkdtempSync(join(tmpdir(), "clip-docker-config-"));
const programs = join(directory, "bin");
const path = process.env["PATH"];
mkdirSync(programs);
process.env["PATH"] = `${programs}:${path}`;
after(() => {
  process.env["PATH"] = path;
  rmSync(directory, { recursive: true, force: true });
});

const file = join(directory, "config.json");
const base64 = (text: string) => Buffer.from(text).toString("base64");
const password = (username: string, word: string) => ({
  kind: "password",
  username,
  password: word,
});

function helper(name: string, script: string): void {
  const program = join(programs, `docker-credential-${name}`);
  writeFileSync(program, `#!/bin/sh\n${script}\n`);
  chmodSync(program, 0o755);
}

test("credentials are found in all forms that docker writes", async () => {
  const auths = {
    "plain.example.com": { auth: base64("user:pass:word") },
    "https://url.example.com/v1/": { auth: base64("u:p") },
    "fields.example.com:5000": { username: "u", password: "p" },
    "https://index.docker.io/v1/": { auth: base64("hub:p") },
    "identity.example.com": { auth: base64("<token>:"), identitytoken: "refresh" },
    "registry-token.example.com": { registrytoken: "bearer" },
    "empty.example.com": {},
    "odd.example.com": { auth: base64("no colon") },
  };
  writeFileSync(file, JSON.stringify({ auths, unknown: 1 }));
  const config = new DockerConfig(file);
  for (const [host, expected] of [
    ["plain.example.com", password("user", "pass:word")],
    ["url.example.com", password("u", "p")],
    ["fields.example.com:5000", password("u", "p")],
    ["fields.example.com", undefined],
    ["docker.io", password("hub", "p")],
    ["registry-1.docker.io", password("hub", "p")],
    ["identity.example.com", { kind: "identity-token", token: "refresh" }],
    ["registry-token.example.com", { kind: "registry-token", token: "bearer" }],
    ["empty.example.com", undefined],
    ["odd.example.com", undefined],
    ["unknown.example.com", undefined],
  ] as const) {
    assert.deepEqual(await config.credentials(host), expected, host);
  }
});

test("the file is read again when it changes, and may come and go", async () => {
  const late = join(directory, "late.json");
  const config = new DockerConfig(late);
  const write = (user: string) => {
    const auths = { "a.example.com": { auth: base64(`${user}:p`) } };
    writeFileSync(late, JSON.stringify({ auths }));
  };
  assert.equal(await config.credentials("a.example.com"), undefined);
  write("first");
  assert.deepEqual(await config.credentials("a.example.com"), password("first", "p"));
  write("the second");
  assert.deepEqual(await config.credentials("a.example.com"), password("the second", "p"));
  rmSync(late);
  assert.equal(await config.credentials("a.example.com"), undefined);
});

test("a file that cannot be understood is an error that quotes nothing of it", async () => {
  for (const text of [
    '{"auths":{"a":{"auth": 12345',
    '{"auths":{"a":{"auth":12345}}}',
    '"12345"',
  ]) {
    writeFileSync(file, text);
    await assert.rejects(
      new DockerConfig(file).credentials("a"),
      (error) => isClipError(error, "CONFIG_INVALID") && !error.message.includes("12345"),
    );
  }
});

test("helpers are asked for their hosts, the store for the others", async () => {
  helper("one", `read host; echo '{"ServerURL":"x","Username":"one-'$host'","Secret":"s"}'`);
  helper("two", `read host; echo '{"ServerURL":"x","Username":"<token>","Secret":"refresh"}'`);
  helper("none", `echo "credentials not found in native keychain"; exit 1`);
  helper("broken", `echo "password is 12345"; exit 3`);
  helper("nonsense", `echo "password is 12345"`);
  const auths = { "kept.example.com": { auth: base64("u:p") }, "a.example.com": {} };
  const credHelpers = {
    "one.example.com": "one",
    "kept.example.com": "none",
    "broken.example.com": "broken",
    "nonsense.example.com": "nonsense",
    "missing.example.com": "missing",
    "evil.example.com": "../evil",
  };
  writeFileSync(file, JSON.stringify({ auths, credsStore: "two", credHelpers }));
  const config = new DockerConfig(file);
  assert.deepEqual(
    await config.credentials("one.example.com"),
    password("one-one.example.com", "s"),
  );
  const token = { kind: "identity-token", token: "refresh" };
  assert.deepEqual(await config.credentials("other.example.com"), token);
  assert.deepEqual(await config.credentials("kept.example.com"), password("u", "p"));
  for (const host of ["broken", "nonsense", "missing", "evil"]) {
    await assert.rejects(
      config.credentials(`${host}.example.com`),
      (error) => isClipError(error, "CONFIG_INVALID") && !error.message.includes("12345"),
      host,
    );
  }
});

test("a helper that hangs is ended with its caller", async () => {
  helper("hang", "exec sleep 60");
  writeFileSync(file, JSON.stringify({ credsStore: "hang" }));
  await assert.rejects(
    new DockerConfig(file).credentials("a.example.com", AbortSignal.timeout(50)),
    (error) => isClipError(error, "ABORTED"),
  );
});
