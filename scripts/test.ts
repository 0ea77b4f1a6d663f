/**
 * Runs parts of the test suite and says at the end, alone on a line, how many tests passed and how
 * many failed. Exits with 1 when one failed or none ran.
 *
 *     scripts/test.ts [check] [unit] [integration]
 */
import { spawnSync } from "node:child_process";
import { globSync, readFileSync } from "node:fs";
import path from "node:path";
import { run } from "node:test";
import { spec } from "node:test/reporters";

/** What counts in the end. */
interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

const root = path.join(import.meta.dirname, "..");

/** Longest time for one test file, in milliseconds. */
const FILE_TIMEOUT = 20 * 60_000;

const parts: Readonly<Record<string, () => Promise<Counts>>> = {
  check: runChecks,
  unit: () => runTests("src/**/*.test.ts", 2),
  // Integration tests measure and share the machine's mounts: one at a time.
  integration: () => runTests("integration/**/*.test.ts", 1),
};

// Tests run the tools that setup brought, whatever the machine has.
process.env["PATH"] = `${path.join(root, ".tools", "bin")}:${process.env["PATH"] ?? ""}`;
// Nor do they keep compiled code outside of the checkout.
process.env["NODE_COMPILE_CACHE"] ??= path.join(root, ".tools", "cache", "node");
process.exitCode = await main(process.argv.slice(2));

async function main(names: readonly string[]): Promise<number> {
  const total: Counts = { passed: 0, failed: 0, skipped: 0 };
  for (const name of names) {
    const part = parts[name];
    if (part === undefined) throw new Error(`unknown part ${name}: check, unit or integration`);
    process.stdout.write(`\n== ${name}\n`);
    const counts = await part();
    if (counts.passed + counts.failed === 0) {
      process.stdout.write(`${name}: no test was executed\n`);
      total.failed++;
    }
    total.passed += counts.passed;
    total.failed += counts.failed;
    total.skipped += counts.skipped;
  }
  if (total.skipped > 0) process.stdout.write(`\n${total.skipped} skipped\n`);
  process.stdout.write(`\n${total.passed} passed, ${total.failed} failed\n`);
  return total.failed > 0 || total.passed === 0 ? 1 : 0;
}

/** Types, lint, form, dead code: each counts as a test. */
function runChecks(): Promise<Counts> {
  const counts: Counts = { passed: 0, failed: 0, skipped: 0 };
  for (const [name, program, ...args] of [
    ["types", "typescript", "--pretty", "false"],
    ["lint", "oxlint", "--type-aware", "--deny-warnings"],
    ["format", "prettier", "--check", "--log-level", "warn", "."],
    ["dead code", "knip", "--no-progress"],
  ] as const) {
    const started = performance.now();
    const { status, stdout, stderr } = spawnSync(process.execPath, [binary(program), ...args], {
      cwd: root,
      encoding: "utf8",
    });
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    process.stdout.write(`${status === 0 ? "✔" : "✖"} ${name} (${seconds} s)\n`);
    if (status === 0) counts.passed++;
    else {
      counts.failed++;
      process.stdout.write(`${stdout}${stderr}\n`);
    }
  }
  return Promise.resolve(counts);
}

/** The script that a package names as its program. */
function binary(name: string): string {
  const directory = path.join(root, "node_modules", name);
  const { bin } = JSON.parse(readFileSync(path.join(directory, "package.json"), "utf8")) as {
    bin: string | Record<string, string>;
  };
  const file = typeof bin === "string" ? bin : (bin[name] ?? bin["tsc"]);
  if (file === undefined) throw new Error(`${name} has no program`);
  return path.join(directory, file);
}

/** Test files, each in a process of its own. */
async function runTests(pattern: string, concurrency: number): Promise<Counts> {
  const files = globSync(pattern, { cwd: root });
  const counts: Counts = { passed: 0, failed: 0, skipped: 0 };
  if (files.length === 0) return counts;
  const events = run({
    files: files.map((file) => path.join(root, file)).toSorted(),
    concurrency,
    cwd: root,
    timeout: FILE_TIMEOUT,
  });
  events.on("test:summary", ({ file, counts: found, success }) => {
    // One summary for each file, and one for all.
    if (file !== undefined) return;
    counts.passed += found.passed;
    counts.skipped += found.skipped + found.todo;
    counts.failed += found.tests - found.passed - found.skipped - found.todo;
    if (!success && counts.failed === 0) counts.failed++;
  });
  await new Promise<void>((resolve, reject) => {
    const report = events.compose(spec);
    report.on("end", resolve);
    report.on("error", reject);
    report.pipe(process.stdout, { end: false });
  });
  return counts;
}
