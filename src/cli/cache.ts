/** `clip cache verify`: whether what is on disk of layers is what it should be. */
import { Command } from "commander";
import { parseDigest } from "../base/digest.ts";
import { verifyCachePath } from "../daemon/admin.ts";
import { telemetrySocket } from "../daemon/telemetry-socket.ts";
import type { LayerCheck } from "../layer/verify-cache.ts";
import { formatChecks, isWell } from "./cache-text.ts";
import { addConfigOptions, configOf, type ConfigOptions } from "./config-options.ts";
import { orderDaemon } from "./daemon-client.ts";

interface VerifyFlags extends ConfigOptions {
  repair?: boolean;
  json?: boolean;
}

/** The command and its subcommand. */
export function cacheCommand(): Command {
  const verify = addConfigOptions(new Command("verify"))
    .description(
      "have the daemon compare what is on disk with its digests; ends with 1 if damage was found and not repaired",
    )
    .argument("[layer]", "digest of one layer; default: all", parseDigest)
    .option("--repair", "fetch at once what is damaged, not when somebody reads it")
    .option("--json", "print JSON")
    .action(run);
  return new Command("cache").description("the layers on this node's disk").addCommand(verify);
}

async function run(layer: string | undefined, flags: VerifyFlags): Promise<void> {
  const { repair = false, json, ...options } = flags;
  const { state } = await configOf(options);
  const checks = await orderDaemon<LayerCheck[]>(telemetrySocket(state), verifyCachePath, {
    parameters: { ...(layer === undefined ? {} : { layer }), repair },
    onProgress: tellProgress,
  });
  if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
  process.stdout.write(
    json === true ? `${JSON.stringify(checks, undefined, 2)}\n` : formatChecks(checks),
  );
  process.exitCode = isWell(checks) ? 0 : 1;
}

function tellProgress(value: unknown): void {
  const { layer, at, count } = value as { layer: string; at: number; count: number };
  if (process.stderr.isTTY)
    process.stderr.write(`\r\x1b[Kchecking ${at + 1} of ${count}: ${layer}`);
}
