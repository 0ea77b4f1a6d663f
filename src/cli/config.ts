/** `clip config`: what the configuration amounts to. */
import { Command } from "commander";
import { formatConfig } from "../config/load.ts";
import { addConfigOptions, configOf, type ConfigOptions } from "./config-options.ts";

/** The command and its subcommands. */
export function configCommand(): Command {
  const show = addConfigOptions(new Command("show"))
    .description("print the effective configuration: defaults, then the file, then the flags")
    .action(async (options: ConfigOptions) => {
      process.stdout.write(formatConfig(await configOf(options)));
    });
  return new Command("config").description("the daemon's configuration").addCommand(show);
}
