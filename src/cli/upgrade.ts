/** `clip upgrade`: replaces the running daemon by the version that is installed now. */
import { setTimeout as delay } from "node:timers/promises";
import { Command } from "commander";
import { ClipError } from "../base/errors.ts";
import { ProcessFiles } from "../daemon/inherited.ts";
import { addConfigOptions, configOf, type ConfigOptions } from "./config-options.ts";

/** Longest time for the new daemon to serve. */
const upgradeMs = 90_000;
const pollMs = 20;

/** The command. */
export function upgradeCommand(): Command {
  return addConfigOptions(new Command("upgrade"))
    .description(
      "replace the running daemon by what is installed now; mounts and containers go on, whoever reads waits a moment",
    )
    .action(run);
}

async function run(options: ConfigOptions): Promise<void> {
  const { state } = await configOf(options);
  const files = new ProcessFiles(state);
  const keeper = files.read("keeper");
  const old = files.read("daemon");
  signal(keeper, state);
  const deadline = performance.now() + upgradeMs;
  while (files.read("daemon") === old) {
    if (performance.now() > deadline) {
      throw new ClipError("TIMEOUT", "no new daemon serves", {
        hint: "The log of the daemon says why; the old one goes on if the new one cannot be loaded.",
      });
    }
    await delay(pollMs);
  }
  process.stdout.write(`process ${files.read("daemon")} serves in place of ${old}\n`);
}

function signal(keeper: number, state: string): void {
  try {
    // 0 would be this very process group.
    if (keeper > 0) {
      process.kill(keeper, "SIGHUP");
      return;
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
  throw new ClipError("ARGUMENT_INVALID", `no clip daemon has its state in ${state}`, {
    hint: "Pass the --config or --state of the daemon that is to be replaced.",
  });
}
