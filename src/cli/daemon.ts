/** `clip daemon`: the snapshotter itself, in the foreground. */
import { mkdirSync, realpathSync } from "node:fs";
import { Command, Option } from "commander";
import { ClipError } from "../base/errors.ts";
import type { Config } from "../config/schema.ts";
import { openLog } from "../telemetry/log.ts";
import { addConfigOptions, configOf, type ConfigOptions } from "./config-options.ts";
import { dropPrivileges } from "./least-privilege.ts";

/**
 * Each thread has a heap of young objects three times this size, in MiB, for which V8 would take 48;
 * and garbage is collected when a daemon has nothing to do.
 */
const memoryFlags = ["--max-semi-space-size=1", "--expose-gc"];

interface DaemonFlags extends ConfigOptions {
  fdStore?: boolean;
  kept?: boolean;
}

/** The command. */
export function daemonCommand(): Command {
  return addConfigOptions(new Command("daemon"))
    .description(
      "serve containerd's snapshotter API in the foreground until SIGTERM or SIGINT; SIGHUP replaces the daemon under load",
    )
    .option("--fd-store", "have systemd store the FUSE session: SIGTERM leaves everything mounted")
    .addOption(new Option("--kept", "what the keeper starts: the daemon itself").hideHelp())
    .action(run);
}

async function run(flags: DaemonFlags): Promise<void> {
  // Daemons get what the keeper has.
  if (flags.kept !== true) dropPrivileges();
  const config = withRealDirectories(await configOf(flags));
  if (flags.kept === true) {
    const { runKeptDaemon } = await import("../daemon/kept-daemon.ts");
    await runKeptDaemon(config, flags.fdStore === true, openLog(config.log.level));
    return;
  }
  const { Keeper } = await import("../daemon/keeper.ts");
  const { ProcessFiles } = await import("../daemon/inherited.ts");
  const { root, state, address } = config;
  const keeper = new Keeper({
    root,
    files: new ProcessFiles(state),
    address,
    command: [
      ...[process.execPath, ...memoryFlags, ...process.execArgv],
      ...[...process.argv.slice(1), "--kept"],
    ],
    stored: flags.fdStore === true,
    onReady: () => process.stdout.write(`clip is ready on ${address}\n`),
    log: openLog(config.log.level),
  });
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => keeper.stop());
  process.on("SIGHUP", () => void keeper.replace());
  await keeper.run();
}

function withRealDirectories(config: Config): Config {
  return {
    ...config,
    root: makeDirectory(config.root),
    state: makeDirectory(config.state),
  };
}

function makeDirectory(path: string): string {
  try {
    mkdirSync(path, { recursive: true, mode: 0o711 });
    return realpathSync(path);
  } catch (error) {
    throw new ClipError("CONFIG_INVALID", `cannot use the directory ${path}`, { cause: error });
  }
}
