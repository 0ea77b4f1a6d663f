/**
 * containerd's own snapshotter suite, from containerd 1.7 and 2.x, against the service on its
 * socket. Needs root, and Go as `scripts/go` finds it.
 */
import assert from "node:assert/strict";
import { execFile, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { detachMountsBelow } from "../src/os/mount-table.ts";

const run = promisify(execFile);
const sources = fileURLToPath(new URL("conformance", import.meta.url));

for (const version of ["v1", "v2"]) {
  describe(`containerd's snapshotter suite (${version})`, () => {
    let scratch: string;
    before(async () => {
      scratch = await mkdtemp(join(tmpdir(), "clip-conformance-"));
      await build(version, join(scratch, "suite"));
    });
    after(async () => {
      // A suite that was ended early leaves its mounts behind.
      await detachMountsBelow(scratch);
      await rm(scratch, { recursive: true, force: true });
    });

    test("passes over the socket", { timeout: 600_000 }, async (context) => {
      const root = join(scratch, "root");
      const socket = join(scratch, "clip.sock");
      const server = await startServer(root, socket);
      try {
        const { code, output } = await runSuite(join(scratch, "suite"), socket, context.signal);
        const { passed, failed, skipped } = outcomes(output);
        context.diagnostic(`${passed.length} passed, skipped by the suite: ${skipped.join(", ")}`);
        assert.deepEqual(
          failed.map((name) => explain(output, name)),
          [],
        );
        assert.equal(code, 0, output.slice(-4000));
        assert.ok(passed.length >= 20, `only ${passed.length} tests ran`);
      } finally {
        await stopServer(server);
      }
    });
  });
}

async function build(version: string, output: string): Promise<void> {
  const go = fileURLToPath(new URL("../scripts/go", import.meta.url));
  await run(go, ["test", "-c", "-o", output, "."], { cwd: join(sources, version) });
}

async function startServer(root: string, socket: string): Promise<ChildProcess> {
  const server = spawn(process.execPath, [join(sources, "server.ts"), root, socket], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const lines = createInterface({ input: server.stdout });
  await Promise.race([
    once(lines, "line"),
    once(server, "exit").then(() => assert.fail("the server did not start")),
  ]);
  return server;
}

async function stopServer(server: ChildProcess): Promise<void> {
  if (server.exitCode !== null) return;
  server.stdin?.end();
  await once(server, "exit");
}

function runSuite(suite: string, socket: string, signal: AbortSignal) {
  const scratch = dirname(suite);
  const child = spawn(suite, ["-test.v", "-test.root", "-test.parallel=4"], {
    cwd: scratch,
    env: { ...process.env, CLIP_SOCKET: socket, TMPDIR: scratch },
    signal,
    killSignal: "SIGKILL",
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => (output += text));
  }
  return new Promise<{ code: number | null; output: string }>((resolve, reject) => {
    child.once("error", reject).once("close", (code) => resolve({ code, output }));
  });
}

/** Names of the tests in the output of `go test -v`, by how they ended. */
function outcomes(output: string): { passed: string[]; failed: string[]; skipped: string[] } {
  const of = (verdict: string) =>
    Array.from(
      output.matchAll(new RegExp(`^ *--- ${verdict}: (\\S+)`, "gm")),
      ([, name]) => name ?? "",
    );
  return { passed: of("PASS"), failed: of("FAIL"), skipped: of("SKIP") };
}

/** What `go test -v` printed of one test. */
function explain(output: string, name: string): string {
  const lines = output.split("\n");
  const start = lines.findIndex((line) => line.includes(`--- FAIL: ${name} `));
  const end = lines.findIndex((line, at) => at > start && /^ *--- |^=== /.test(line));
  return lines.slice(start, end < 0 ? start + 40 : Math.min(end, start + 40)).join("\n");
}
