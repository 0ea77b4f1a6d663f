/** `clip daemon`: the snapshotter itself, in the foreground. */
import { Command } from "commander";
import { describeError } from "../base/errors.ts";
import { openLog } from "../telemetry/log.ts";
import { addConfigOptions, configOf, type ConfigOptions } from "./config-options.ts";

/** The command. */
export function daemonCommand(): Command {
  return addConfigOptions(new Command("daemon"))
    .description("serve containerd's snapshotter API in the foreground until SIGTERM or SIGINT")
    .action(run);
}

async function run(options: ConfigOptions): Promise<void> {
  const config = await configOf(options);
  const log = openLog(config.log.level);
  const { startDaemon } = await import("../daemon/daemon.ts");
  const stopping = new Promise<NodeJS.Signals>((resolve) => {
    process.once("SIGTERM", resolve);
    process.once("SIGINT", resolve);
  });
  const daemon = await startDaemon(config, log);
  process.stdout.write(`clip is ready on ${config.address}\n`);
  log.info({ signal: await stopping }, "stopping");
  try {
    await daemon.close();
  } catch (error) {
    log.error({ error: describeError(error) }, "the daemon did not stop cleanly");
    process.exitCode = 1;
  }
}
