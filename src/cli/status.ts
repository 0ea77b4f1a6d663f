/** `clip status`: how the daemon of this node is doing. */
import { resolve } from "node:path";
import { Command } from "commander";
import type { NodeStatus } from "../daemon/status.ts";
import { telemetrySocket } from "../daemon/telemetry-socket.ts";
import { configOf } from "./config-options.ts";
import { askDaemon } from "./daemon-client.ts";
import { formatStatus } from "./status-text.ts";

interface StatusFlags {
  json?: boolean;
  config?: string;
  state?: string;
}

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
  const status = await askForStatus(telemetrySocket(state));
  process.stdout.write(
    json === true ? `${JSON.stringify(status, undefined, 2)}\n` : formatStatus(status),
  );
}

/** @throws ClipError SYSTEM_CALL when no daemon answers, TIMEOUT */
export function askForStatus(socketPath: string): Promise<NodeStatus> {
  return askDaemon(socketPath, "/status");
}
