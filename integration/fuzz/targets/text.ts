/** Texts that people and other programs write: configurations, names, filters, tables. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { digestFromKey, digestKey, isDigest, parseDigest } from "../../../src/base/digest.ts";
import { formatConfig, parseConfig } from "../../../src/config/load.ts";
import { mountpointsBelow, parseMountTable } from "../../../src/os/mount-table.ts";
import { parseChallenges } from "../../../src/registry/challenge.ts";
import { parseHostsFile } from "../../../src/registry/hosts-file.ts";
import { formatReference, parseReference } from "../../../src/registry/reference.ts";
import { retryAfterMs } from "../../../src/registry/retry.ts";
import { parseFilters } from "../../../src/snapshotter/filters.ts";
import { refLabel, type Snapshot } from "../../../src/snapshotter/snapshot.ts";
import { attempt, magnitude, type FuzzTarget } from "../engine/target.ts";

const texts = (...lines: string[]): (() => Buffer[]) => {
  return () => lines.map((line) => Buffer.from(line));
};
const digest = `sha256:${"0123456789abcdef".repeat(4)}`;

const exampleConfig = readFileSync(join(import.meta.dirname, "../../../config/clip.toml"), "utf8");

/** Any text as a configuration: one that means the same when it is printed, or CONFIG_INVALID. */
export const config: FuzzTarget = {
  bytesMax: 1500,
  dictionary: [
    ...(exampleConfig.match(/^#? ?[a-z_]+ = .*$|^#? ?\[+[a-z_.]+\]+$/gm) ?? []).map(
      (line) => `${line.replace(/^#? ?/, "")}\n`,
    ),
    ...[
      "__proto__",
      "constructor",
      '"""',
      "'''",
      "\\u0000",
      "1979-05-27",
      "nan",
      "{a=1}",
      "[[a]]\n",
    ],
  ],
  seeds: texts(
    "",
    '[log]\nlevel = "info"\n',
    '[[content_cache]]\nkind = "directory"\npath = "/x"\n',
  ),
  run(input) {
    const outcome = attempt(["CONFIG_INVALID"], () => parseConfig(input.toString(), "x"));
    if ("failure" in outcome) return outcome.failure;
    const again = parseConfig(formatConfig(outcome.value), "x");
    assert.ok(
      isDeepStrictEqual(again, outcome.value),
      "a configuration changes when it is printed",
    );
    return `fine ${magnitude(formatConfig(outcome.value).length)} ${Object.keys(outcome.value).length}`;
  },
};

/** Any text as a hosts file of containerd. */
export const hostsFile: FuzzTarget = {
  bytesMax: 800,
  dictionary: [
    ...['server = "https://a"\n', '[host."https://b"]\n', 'capabilities = ["pull"]\n', "ca = 1\n"],
    ...['client = [["a", "b"]]\n', "skip_verify = true\n", "override_path = true\n", "[header]\n"],
    ...['[host."http://c:1".header]\n', 'x = ["y"]\n', "__proto__", "../", "http://", "[::1]"],
  ],
  seeds: texts('server = "https://a"\n[host."https://b/v2"]\ncapabilities = ["pull"]\n', ""),
  run(input) {
    const outcome = attempt(["CONFIG_INVALID"], () =>
      parseHostsFile(input.toString(), "/x/hosts.toml"),
    );
    if ("failure" in outcome) return outcome.failure;
    const { mirrors, server } = outcome.value;
    for (const { base, headers } of [...mirrors, ...(server === undefined ? [] : [server])]) {
      assert.match(new URL(base).protocol, /^https?:$/);
      assert.ok(
        Object.values(headers)
          .flat()
          .every((value) => typeof value === "string"),
      );
    }
    return `${mirrors.length} ${String(server === undefined)}`;
  },
};

/** Any text as an image name: one that is the same when it is written in full, or refused. */
export const reference: FuzzTarget = {
  bytesMax: 400,
  dictionary: [
    digest,
    "@sha256:",
    ":5000",
    "/",
    "..",
    "localhost",
    "docker.io",
    "__",
    "-",
    "[::1]",
  ],
  seeds: texts("alpine", `a.b:5000/c/d:tag@${digest}`, "localhost/x", "[::1]:5000/y:1"),
  run(input) {
    const outcome = attempt(["ARGUMENT_INVALID"], () => parseReference(input.toString()));
    if ("failure" in outcome) return outcome.failure;
    const { repository, tag, digest } = outcome.value;
    // They become parts of URLs.
    assert.match(repository.name, /^[a-z0-9](?:[a-z0-9._/-]*[a-z0-9])?$/);
    assert.ok(!repository.name.split("/").includes("..") && repository.name.length <= 255);
    assert.equal(new URL(`https://${repository.host}/`).pathname, "/");
    assert.match(tag ?? "x", /^\w[\w.-]*$/);
    assert.deepEqual(parseReference(formatReference(outcome.value)), outcome.value);
    return [repository.host, repository.name, tag ?? "", digest ?? ""]
      .map(({ length }) => magnitude(length))
      .join(" ");
  },
};

/** Any text as a digest or the name of a file that stands for one. */
export const digestText: FuzzTarget = {
  bytesMax: 200,
  dictionary: ["sha256:", "sha256_", "sha512:", "../", "\0", "/", "A", "0".repeat(64)],
  seeds: texts(digest, digest.replace(":", "_"), "sha256:../../../etc/passwd"),
  run(input) {
    const text = input.toString("latin1");
    const fromKey = digestFromKey(text);
    if (fromKey !== undefined) assert.ok(digestKey(fromKey) === text && isDigest(fromKey));
    const outcome = attempt(["ARGUMENT_INVALID"], () => parseDigest(text));
    if ("failure" in outcome) return `${outcome.failure} ${String(fromKey === undefined)}`;
    assert.match(digestKey(outcome.value), /^sha256_[0-9a-f]{64}$/);
    return "a digest";
  },
};

const snapshot: Snapshot = {
  ...{
    id: 1,
    name: "default/1/some key",
    parent: "",
    kind: "active",
    createdAt: 0n,
    updatedAt: 0n,
  },
  labels: new Map([
    ["plain", "a".repeat(40)],
    ["containerd.io/gc.root", "2026-01-01"],
    ["quote", 'a"b\\c\n'],
  ]),
  ...{ layer: undefined, usage: undefined },
};

/** Any text as a filter of snapshots. */
export const filter: FuzzTarget = {
  bytesMax: 300,
  dictionary: [
    ...[
      "name",
      "kind",
      "parent",
      "labels.",
      '"',
      ",",
      "==",
      "!=",
      "~=",
      "\\x41",
      "\\u00e9",
      "\\U0001f600",
    ],
    ...[
      "/(a+)+$/",
      "(a*)*b",
      "(?i)",
      "[a-z]+",
      "|",
      "(x+x+)+y",
      ".*",
      "{1,30}",
      refLabel,
      "\\1",
      "^",
    ],
  ],
  seeds: texts(
    `labels."${refLabel}"==${digest},parent=="x"`,
    "kind~=/^a.*e$/",
    'name=="a\\x41"',
    "labels.plain ~= (a+)+b",
  ),
  run(input) {
    const outcome = attempt(["ARGUMENT_INVALID"], () => parseFilters([input.toString()]));
    if ("failure" in outcome) return outcome.failure;
    const { matches, lookup } = outcome.value;
    const found = attempt(["ARGUMENT_INVALID"], () => matches(snapshot));
    const answer = "failure" in found ? found.failure : String(found.value);
    return `${answer} ${String(lookup === undefined)} ${magnitude(input.length)}`;
  },
};

/** Any text as the header by which a registry asks for credentials, or for patience. */
export const challenge: FuzzTarget = {
  bytesMax: 1000,
  dictionary: [
    "Bearer ",
    "Basic ",
    'realm="',
    'scope="',
    '\\"',
    ",",
    "=",
    '"',
    "\\",
    "Wed, 21 Oct",
  ],
  seeds: texts(
    'Bearer realm="https://a/t",service="b",scope="repository:x:pull"',
    "Basic realm=x",
    "120",
  ),
  run(input) {
    const text = input.toString("latin1");
    const challenges = parseChallenges(text);
    const written = challenges.map(({ scheme, parameters }) => {
      const quote = (value: string): string => `"${value.replaceAll(/["\\]/g, "\\$&")}"`;
      const pairs = [...parameters].map(([name, value]) => `${name}=${quote(value)}`);
      return `${scheme} ${pairs.join(", ")}`;
    });
    assert.deepEqual(parseChallenges(written), challenges);
    const wait = retryAfterMs(text, 0);
    assert.ok(wait === undefined || (wait >= 0 && wait <= 30_000));
    const sizes = challenges.slice(0, 5).map(({ parameters }) => magnitude(parameters.size));
    return `${challenges.length < 5 ? challenges.length : "many"} ${sizes.join(" ")} ${String(wait)}`;
  },
};

/** Any text as the kernel's table of mounts, in which a mount point may have any name. */
export const mountTable: FuzzTarget = {
  bytesMax: 1000,
  dictionary: ["\\040", "\\134", "\\012", " - ", "0:23", "/run/clip", " shared:1", "fuse", "\n"],
  seeds: texts(
    "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n",
    "",
  ),
  run(input) {
    const table = parseMountTable(input.toString());
    for (const mount of table) {
      assert.ok(
        [mount.mountpoint, mount.device, mount.type].every((text) => typeof text === "string"),
      );
    }
    const below = mountpointsBelow(table, "/run/clip");
    assert.ok(below.every((path) => path === "/run/clip" || path.startsWith("/run/clip/")));
    return `${magnitude(table.length)} ${magnitude(below.length)}`;
  },
};
