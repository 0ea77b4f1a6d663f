/** `clip status`: how the daemon of this node is doing. */
import { once } from "node:events";
import { request } from "node:http";
import { join, resolve } from "node:path";
import { text } from "node:stream/consumers";
import { Command } from "commander";
import { ClipError } from "../base/errors.ts";
import type { NodeStatus } from "../daemon/status.ts";
import { configOf } from "./config-options.ts";
import { formatStatus } from "./status-text.ts";

interface StatusFlags {
  json?: boolean;
  config?: string;
  state?: string;
}

const answerTimeoutMs = 15_000;
const answerBytesMax = 64 * 1024 * 1024;

/** The command. */
export function statusCommand(): Command {
  return new Command("status")
    .description("show what a running daemon serves and how well its caches do")
    .option("--json", "print JSON")
    .option("--state <directory>", "the daemon's state directory", (path) => resolve(path))
    .option("--config <file>", "the daemon's configuration file, which names that directory")
    .action(run);
}

async function run({ json, ...flags }: StatusFlags): Promise<void> {
  const { state } = await configOf(flags);
  const status = await askForStatus(join(state, "metrics.sock"));
  process.stdout.write(
    json === true ? `${JSON.stringify(status, undefined, 2)}\n` : formatStatus(status),
  );
}

/** @throws ClipError SYSTEM_CALL when no daemon answers, TIMEOUT */
export async function askForStatus(socketPath: string): Promise<NodeStatus> {
  const signal = AbortSignal.timeout(answerTimeoutMs);
  try {
    const sent = request({ socketPath, path: "/status", signal });
    sent.end();
    const [response] = await once(sent, "response");
    const body = await text(response);
    if (response.statusCode === 200 && body.length < answerBytesMax) return JSON.parse(body);
    throw new ClipError("SYSTEM_CALL", `the daemon answered ${response.statusCode}`, {
      hint: "its log says why",
    });
  } catch (error) {
    throw asStatusError(error, socketPath, signal);
  }
}

function asStatusError(error: unknown, socketPath: string, signal: AbortSignal): ClipError {
  if (error instanceof ClipError) return error;
  if (signal.aborted) {
    return new ClipError("TIMEOUT", `the daemon on ${socketPath} did not answer`, {
      hint: "it may be overloaded or stopped by a signal; its log may tell",
    });
  }
  const denied = error instanceof Error && "code" in error && error.code === "EACCES";
  return new ClipError("SYSTEM_CALL", `no clip daemon answers on ${socketPath}`, {
    hint: denied
      ? "only the user that the daemon runs as may ask it"
      : "is it running? name its state directory with --state, or its configuration with --config",
    cause: error,
  });
}
