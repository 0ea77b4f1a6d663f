import assert from "node:assert/strict";
import { test } from "node:test";
import { isClipError } from "../base/errors.ts";
import { mountOf } from "./mounts.ts";

const own = { upper: "/r/s/9", work: "/r/w/9" };

function lowers(...paths: string[]) {
  return paths.map((path) => ({ path, opaqueRoot: false }));
}

/** Whether the kernel knows it depends on the machine. */
function withoutIndex(options: readonly string[]): string[] {
  return options.filter((option) => option !== "index=off");
}

test("a snapshot without parents is a bind mount of its own directory", () => {
  assert.deepEqual(mountOf({ own, readOnly: false, lowers: [] }), {
    type: "bind",
    source: "/r/s/9",
    options: ["rw", "rbind"],
  });
  assert.deepEqual(mountOf({ own, readOnly: true, lowers: [] }).options, ["ro", "rbind"]);
});

test("a look at one layer is a read-only bind mount, at several an overlay without an upper", () => {
  assert.deepEqual(mountOf({ own: undefined, readOnly: true, lowers: lowers("/r/l/1") }), {
    type: "bind",
    source: "/r/l/1",
    options: ["ro", "rbind"],
  });
  const two = mountOf({ own: undefined, readOnly: true, lowers: lowers("/r/s/2", "/r/l/1") });
  assert.equal(two.type, "overlay");
  assert.equal(two.source, "overlay");
  assert.deepEqual(withoutIndex(two.options), ["lowerdir=/r/s/2:/r/l/1"]);
});

test("a writable snapshot is an overlay, its parent on top", () => {
  const mount = mountOf({ own, readOnly: false, lowers: lowers("/r/s/2", "/r/l/1") });
  assert.deepEqual(withoutIndex(mount.options), [
    "workdir=/r/w/9",
    "upperdir=/r/s/9",
    "lowerdir=/r/s/2:/r/l/1",
  ]);
});

test("nothing below an opaque root is seen", () => {
  const stack = [
    { path: "/r/s/3", opaqueRoot: false },
    { path: "/r/l/2", opaqueRoot: true },
    { path: "/r/l/1", opaqueRoot: true },
  ];
  const mount = mountOf({ own, readOnly: false, lowers: stack });
  assert.ok(mount.options.includes("lowerdir=/r/s/3:/r/l/2"));
  const view = mountOf({ own: undefined, readOnly: true, lowers: stack.slice(1) });
  assert.deepEqual(view, { type: "bind", source: "/r/l/2", options: ["ro", "rbind"] });
});

test("500 layers fit below a usual root, and more are refused", () => {
  const root = "/var/lib/clip-snapshotter";
  const own = { upper: `${root}/s/9999`, work: `${root}/w/9999` };
  const stack = Array.from(
    { length: 501 },
    (_, at) => `${root}/${at % 2 ? "l" : "s"}/${9000 + at}`,
  );
  const limited = (error: unknown) => isClipError(error, "LIMIT_EXCEEDED");
  mountOf({ own, readOnly: false, lowers: lowers(...stack.slice(1)) });
  assert.throws(() => mountOf({ own, readOnly: false, lowers: lowers(...stack) }), limited);
  const far = stack.slice(0, 400).map((path) => path.replace("/s/", "/a-longer-name/"));
  assert.throws(() => mountOf({ own, readOnly: false, lowers: lowers(...far) }), limited);
});
