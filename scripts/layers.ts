/**
 * The rules of the source tree that no linter knows: which folder may import which, who may reach
 * the native interface, and how long a file may be.
 */
import { readdir, readFile } from "node:fs/promises";
import { stripTypeScriptTypes } from "node:module";
import path from "node:path";

/** Lines a file may have. */
export const LINES_MAX = 500;

/** Folders of `src` from the top down. Imports go downwards only; neighbours do not meet. */
const LEVELS: readonly (readonly string[])[] = [
  ["cli"],
  ["daemon"],
  ["snapshotter"],
  ["containerd"],
  ["layer"],
  ["index", "cache"],
  ["registry", "fuse"],
  ["erofs"],
  ["gzip", "tar"],
  ["os"],
  ["base"],
];

/** Folders beside the levels: who may import them, and what they may import. */
const ASIDE: Readonly<Record<string, Aside>> = {
  telemetry: {
    importedBy: (folder) => !["base", "os", "gzip", "tar", "erofs"].includes(folder),
    imports: ["base"],
  },
  config: {
    importedBy: (folder) => ["cli", "daemon"].includes(folder),
    imports: ["base", "telemetry"],
  },
};

interface Aside {
  importedBy(folder: string): boolean;
  imports: readonly string[];
}

/**
 * Breaches of the rules, as sentences; none when all is well.
 *
 * @param sources TypeScript sources by their path from the root of the repository, such as
 *   `src/gzip/checkpoint.ts`. The layer rules hold below `src`, the others everywhere.
 */
export function findBreaches(sources: ReadonlyMap<string, string>): string[] {
  const breaches: string[] = [];
  const graph = new Map<string, string[]>();
  for (const [file, source] of sources) {
    const specifiers = importsOf(source);
    const relative = specifiers.filter((specifier) => specifier.startsWith("."));
    const targets = relative.map((specifier) =>
      path.posix.normalize(path.posix.join(path.posix.dirname(file), specifier)),
    );
    graph.set(file, targets);
    breaches.push(
      ...targets.flatMap((target) => layerBreach(file, target) ?? []),
      ...packageBreaches(file, specifiers),
      ...formBreaches(file, source),
    );
  }
  breaches.push(...findCycles(graph));
  return breaches;
}

/** Reads the TypeScript sources below folders of the repository, keyed as `findBreaches` wants. */
export async function readSources(
  root: string,
  folders: readonly string[],
): Promise<Map<string, string>> {
  const sources = new Map<string, string>();
  for (const folder of folders) {
    const entries = await readdir(path.join(root, folder), {
      recursive: true,
      withFileTypes: true,
    });
    for (const entry of entries) {
      if (!entry.isFile() || !entry.name.endsWith(".ts")) continue;
      const file = path.join(entry.parentPath, entry.name);
      sources.set(path.relative(root, file), await readFile(file, "utf8"));
    }
  }
  return sources;
}

/** Every module that a source names: static, dynamic and worker imports, of types too. */
function importsOf(source: string): string[] {
  const code = source.replaceAll(/\/\*[\s\S]*?\*\//g, "").replaceAll(/^\s*\/\/.*$/gm, "");
  const forms = [
    /^(?:import|export)\b[^"'`;]*?\bfrom\s*["']([^"']+)["']/gm,
    /^import\s*["']([^"']+)["']/gm,
    /\bimport\(\s*["']([^"']+)["']/g,
    /\bnew URL\(\s*["']([^"']+\.ts)["']\s*,\s*import\.meta\.url/g,
  ];
  return forms.flatMap((form) => [...code.matchAll(form)].map((match) => match[1] ?? ""));
}

function layerBreach(file: string, target: string): string | undefined {
  const from = folderOf(file);
  const to = folderOf(target);
  if (from === undefined || from === to) return undefined;
  if (to === undefined) {
    return file.startsWith("src/") && !isLayerTest(file)
      ? `${file} imports ${target}, which is outside the layers of src`
      : undefined;
  }
  return mayImport(from, to) ? undefined : `${file} imports ${target}: ${from} must not use ${to}`;
}

function mayImport(from: string, to: string): boolean {
  const limited = ASIDE[from];
  if (limited !== undefined) return limited.imports.includes(to);
  const aside = ASIDE[to];
  if (aside !== undefined) return aside.importedBy(from);
  const upper = LEVELS.findIndex((level) => level.includes(from));
  const lower = LEVELS.findIndex((level) => level.includes(to));
  return upper !== -1 && lower !== -1 && upper < lower;
}

/** The layer that a file belongs to; undefined outside `src` and for files in `src` itself. */
function folderOf(file: string): string | undefined {
  const parts = file.split("/");
  return parts[0] === "src" && parts.length > 2 ? parts[1] : undefined;
}

/** The test of these rules stands above the layers. */
function isLayerTest(file: string): boolean {
  return folderOf(file) === undefined;
}

function packageBreaches(file: string, specifiers: readonly string[]): string[] {
  return specifiers.includes("koffi") && file.startsWith("src/") && !file.startsWith("src/os/")
    ? [`${file} imports koffi: system calls belong in src/os`]
    : [];
}

function formBreaches(file: string, source: string): string[] {
  const breaches: string[] = [];
  const lines = source.split("\n").length - 1;
  if (lines > LINES_MAX) breaches.push(`${file} has ${String(lines)} lines, over ${LINES_MAX}`);
  try {
    stripTypeScriptTypes(source);
  } catch (error) {
    const reason = error instanceof Error ? error.message.split("\n").at(-1) : String(error);
    breaches.push(`${file} does not run as it is: ${reason ?? ""}`);
  }
  return breaches;
}

function findCycles(graph: ReadonlyMap<string, readonly string[]>): string[] {
  const cycles: string[] = [];
  const done = new Set<string>();
  const open: string[] = [];
  const visit = (file: string): void => {
    if (done.has(file)) return;
    const start = open.indexOf(file);
    if (start !== -1) {
      cycles.push(`import cycle: ${[...open.slice(start), file].join(" -> ")}`);
      return;
    }
    open.push(file);
    for (const target of graph.get(file) ?? []) visit(target);
    open.pop();
    done.add(file);
  };
  for (const file of graph.keys()) visit(file);
  return cycles;
}
