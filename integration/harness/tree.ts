/** Directory trees, compared in everything that a layer determines. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { runRaw } from "./command.ts";
import { tool } from "./tools.ts";

/** Differences that are shown when two trees are not equal. */
const DIFFERENCES_SHOWN = 20;

/** A tree as text by path: type, mode, owner, time, links, target, attributes, digest. */
export type Tree = ReadonlyMap<string, string>;

/**
 * Lists a tree.
 *
 * @param prune paths below the directory, starting with a slash, that are left out with all that
 *   they hold.
 */
export async function listTree(directory: string, prune: readonly string[] = []): Promise<Tree> {
  const args = prune.flatMap((path) => ["-prune", path]);
  const { stdout } = await runRaw(tool("tree"), [...args, directory], { timeoutMs: 300_000 });
  const tree = new Map<string, string>();
  for (const line of stdout.toString("utf8").split("\n")) {
    if (line === "") continue;
    const { path } = JSON.parse(line) as { path: string };
    // The root of a container has the time at which its own directory was made.
    tree.set(path, path === "" ? line.replace(/,"mtime":"[^"]*"/, "") : line);
  }
  return tree;
}

/**
 * Fails unless a process sees a tree as its root, apart from what is mounted inside.
 *
 * @param pid process in a container, seen from the host.
 */
export async function assertProcessSees(pid: number, expected: Tree): Promise<void> {
  const mounts = await readFile(`/proc/${pid}/mountinfo`, "utf8");
  const prune = mounts
    .split("\n")
    .map((line) => line.split(" ")[4] ?? "/")
    .filter((mountpoint) => mountpoint !== "/");
  const actual = await listTree(`/proc/${pid}/root`, prune);
  const comparable = [...expected].filter(
    ([path]) =>
      !prune.some((pruned) => `/${path}` === pruned || `/${path}`.startsWith(`${pruned}/`)),
  );
  assertSameTree(actual, new Map(comparable));
}

/** Fails with the first differences when two trees are not equal. */
export function assertSameTree(actual: Tree, expected: Tree): void {
  const differences: string[] = [];
  for (const [path, line] of expected) {
    const found = actual.get(path);
    if (found === undefined) differences.push(`missing: ${line}`);
    else if (found !== line) differences.push(`expected: ${line}\n     got: ${found}`);
  }
  for (const [path, line] of actual) {
    if (!expected.has(path)) differences.push(`too much: ${line}`);
  }
  assert.ok(expected.size > 1, "the expected tree is not empty");
  assert.equal(
    differences.length,
    0,
    `${differences.length} differences:\n${differences.slice(0, DIFFERENCES_SHOWN).join("\n")}`,
  );
}
