/** Random layers, from tar to image and back, against a model that unpacks them on flat paths. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isClipError } from "../base/errors.ts";
import { archive, member, pax, readEntries } from "../tar/test-archive.ts";
import { normalisePath } from "../tar/path.ts";
import { build, entry, list } from "./test-tree.ts";

/** One entry of a random layer. */
interface Step {
  path: string;
  type: "file" | "directory" | "symlink" | "hardlink" | "fifo";
  mode: number;
  uid: number;
  seconds: number;
  nanoseconds: number;
  content: Buffer;
  target: string;
  attribute: Buffer | undefined;
}

// Few names, so that they meet; some that sort around "." and "..".
const name = fc.constantFrom("a", "b", "c", "-", "...", "é", "a.b", "n".repeat(200));
const somePath = fc.array(name, { minLength: 1, maxLength: 3 }).map((names) => names.join("/"));
// Names that may be those of symbolic links are never parents: the model does not follow links.
const someLeaf = fc.tuple(somePath, fc.boolean()).map(([path, mark]) => (mark ? `${path}@` : path));
const anyStep: fc.Arbitrary<Step> = fc.record({
  path: someLeaf,
  type: fc.constantFrom("file", "directory", "directory", "symlink", "hardlink", "fifo"),
  mode: fc.nat(0o7777),
  uid: fc.nat(0o777777),
  seconds: fc.integer({ min: -(2 ** 40), max: 2 ** 40 }),
  nanoseconds: fc.nat(999_999_999),
  content: fc.uint8Array({ maxLength: 1100 }).map((bytes) => Buffer.from(bytes)),
  target: someLeaf,
  attribute: fc.option(
    fc.uint8Array({ maxLength: 30 }).map((bytes) => Buffer.from(bytes)),
    { nil: undefined },
  ),
});

const step = anyStep.map((step) => {
  if (step.type !== "symlink" || step.path.endsWith("@")) return step;
  return { ...step, path: `${step.path}@` };
});

/** What the model says a path leads to; hard links share one. */
interface Thing {
  type: Exclude<Step["type"], "hardlink">;
  step: Step | undefined;
  attribute: Buffer | undefined;
}

type Model = Map<string, Thing | { pending: string }>;

/** The tree that the steps make, or nothing when they cannot be unpacked. */
function unpack(steps: readonly Step[]): Map<string, Thing> | undefined {
  const model: Model = new Map([
    ["", { type: "directory", step: undefined, attribute: undefined }],
  ]);
  for (const step of steps) {
    for (const parent of ancestors(step.path)) {
      const present = model.get(parent);
      if (present === undefined) {
        model.set(parent, { type: "directory", step: undefined, attribute: undefined });
      } else if (!("type" in present) || present.type !== "directory") {
        return undefined;
      }
    }
    const present = model.get(step.path);
    if (step.type === "directory") {
      const old = present !== undefined && "type" in present ? present : undefined;
      const kept = old?.type === "directory" ? old.attribute : undefined;
      if (old?.type !== "directory") remove(model, step.path);
      model.set(step.path, { type: "directory", step, attribute: step.attribute ?? kept });
    } else if (step.type === "hardlink") {
      const target = model.get(step.target);
      if (target !== undefined && "type" in target) {
        if (target.type === "directory") return undefined;
        if (target === present) continue;
        remove(model, step.path);
        model.set(step.path, target);
      } else {
        remove(model, step.path);
        model.set(step.path, { pending: step.target });
      }
    } else {
      remove(model, step.path);
      const takes = step.type === "file" && step.attribute !== undefined;
      model.set(step.path, {
        type: step.type,
        step,
        attribute: takes ? step.attribute : undefined,
      });
    }
  }
  return resolve(model);
}

function ancestors(path: string): string[] {
  const names = path.split("/");
  return names.slice(0, -1).map((_, index) => names.slice(0, index + 1).join("/"));
}

function remove(model: Model, path: string): void {
  for (const key of model.keys()) {
    if (key === path || key.startsWith(`${path}/`)) model.delete(key);
  }
}

function resolve(model: Model): Map<string, Thing> | undefined {
  const resolved = new Map<string, Thing>();
  for (const [path, first] of model) {
    let at: Thing | { pending: string } | undefined = first;
    for (let hops = 0; at !== undefined && "pending" in at; hops++) {
      at = hops > model.size ? undefined : model.get(at.pending);
    }
    if (at === undefined || ("pending" in first && at.type === "directory")) return undefined;
    resolved.set(path, at);
  }
  return resolved;
}

function toTar(steps: readonly Step[]): Buffer {
  const types = { file: "0", directory: "5", symlink: "2", hardlink: "1", fifo: "6" };
  const parts = steps.flatMap((step) => {
    const sign = step.seconds < 0 ? "-" : "";
    // As PAX writes it, the fraction of a negative time counts away from zero.
    const nanoseconds = BigInt(step.seconds) * 1_000_000_000n + BigInt(step.nanoseconds);
    const digits = `${nanoseconds < 0n ? -nanoseconds : nanoseconds}`.padStart(10, "0");
    const time = `${sign}${digits.slice(0, -9)}.${digits.slice(-9)}`;
    const records: [string, string | Buffer][] = [
      ["path", step.path],
      ["mtime", time],
    ];
    if (step.type === "hardlink") records.push(["linkpath", step.target]);
    if (step.attribute !== undefined) records.push(["SCHILY.xattr.user.x", step.attribute]);
    const fields = { name: "x", type: types[step.type], mode: step.mode, uid: step.uid };
    const content = step.type === "file" ? step.content : "";
    return [pax(records), member({ ...fields, link: step.target.slice(0, 90) }, content)];
  });
  return archive(...parts);
}

test("an image has what the entries of its layer make when they are unpacked", () => {
  let unpacked = 0;
  fc.assert(
    fc.property(fc.array(step, { maxLength: 25 }), (steps) => {
      const expected = unpack(steps);
      const tar = toTar(steps);
      const entries = readEntries(tar, 1000);
      if (expected === undefined) {
        assert.throws(
          () => build(entries, { blobSize: tar.length }),
          (error) => isClipError(error, "CORRUPT_TAR"),
        );
        return;
      }
      unpacked++;
      const { reader } = build(entries, { blobSize: tar.length });
      const found = list(reader);
      const latin = (path: string) => Buffer.from(path).toString("latin1");
      assert.deepEqual([...found.keys()].sort(), [...expected.keys()].map(latin).sort());
      for (const [path, thing] of expected) {
        const inode = found.get(latin(path));
        assert.ok(inode !== undefined);
        assert.equal(inode.type, thing.type, path);
        const { step, attribute }: Thing = thing;
        const mode = thing.type === "symlink" ? 0o777 : (step?.mode ?? 0o755);
        assert.equal(inode.mode & 0o7777, mode, path);
        assert.equal(inode.uid, step?.uid ?? 0, path);
        assert.equal(inode.mtimeSeconds, step?.seconds ?? 0, path);
        assert.equal(inode.mtimeNanoseconds, step?.nanoseconds ?? 0, path);
        assert.deepEqual(reader.xattr(inode.nid, Buffer.from("user.x")), attribute, path);
        if (inode.type === "directory") continue;
        const names: number = [...expected.values()].filter((other) => other === thing).length;
        assert.equal(inode.nlink, names, path);
        if (inode.type === "symlink") {
          assert.equal(reader.readlink(inode.nid).toString(), step?.target.slice(0, 90));
        }
        if (inode.type === "file") {
          const pieces = reader.extents(inode.nid).map(({ blobOffset = 0, length }) => {
            return tar.subarray(blobOffset, blobOffset + length);
          });
          assert.deepEqual(Buffer.concat(pieces), step?.content, path);
        }
      }
    }),
    { numRuns: 500 },
  );
  assert.ok(unpacked > 50, `only ${unpacked} layers could be unpacked`);
});

test("links that lead anywhere end in an image or a ClipError", () => {
  const part = fc.constantFrom("a", "b", "..", ".", "", ".wh.a", ".wh..wh..opq", ".wh..wh.x");
  const names = fc.array(part, { minLength: 1, maxLength: 4 }).map((parts) => parts.join("/"));
  const member = fc.record({
    name: fc.array(fc.constantFrom("a", "b", ".wh.a", ".wh..wh..opq"), {
      minLength: 1,
      maxLength: 4,
    }),
    type: fc.constantFrom(
      "file" as const,
      "directory" as const,
      "symlink" as const,
      "hardlink" as const,
    ),
    target: names,
  });
  let built = 0;
  fc.assert(
    fc.property(fc.array(member, { maxLength: 12 }), (members) => {
      const entries = members.map(({ name, type, target }) => {
        const linkTarget = type === "hardlink" ? normalisePath(Buffer.from(target)) : `${target}/`;
        return entry(name.join("/"), type, { linkTarget });
      });
      try {
        const { reader, inodes } = build(entries);
        built++;
        const nids = new Set([...list(reader).values()].map(({ nid }) => nid));
        assert.equal(nids.size, inodes);
      } catch (error) {
        if (!isClipError(error, "CORRUPT_TAR")) throw error;
      }
    }),
    { numRuns: 1000 },
  );
  assert.ok(built > 100, `only ${built} layers could be unpacked`);
});
