/** The flags that override the configuration file, the same for every command that has them. */
import { resolve } from "node:path";
import type { Command } from "commander";
import { loadConfig } from "../config/load.ts";
import type { Config } from "../config/schema.ts";

/** What {@link addConfigOptions} adds to a command's options. */
export interface ConfigOptions {
  config?: string;
  root?: string;
  state?: string;
  address?: string;
  containerd?: string;
  mountMode?: string;
  logLevel?: string;
}

/** Adds the flags. Paths may be relative to where the command was called. */
export function addConfigOptions(command: Command): Command {
  const absolute = (path: string) => resolve(path);
  return command
    .option("--config <file>", "configuration file (TOML)")
    .option("--root <directory>", "where snapshots and layers are kept", absolute)
    .option("--state <directory>", "where what does not survive a reboot is kept", absolute)
    .option("--address <socket>", "unix socket of the Snapshots service", absolute)
    .option("--containerd <socket>", "containerd's unix socket", absolute)
    .option("--mount-mode <mode>", "auto, erofs or fuse")
    .option("--log-level <level>", "debug, info, warn, error or silent");
}

/** The effective configuration of a command that was called with these flags. */
export function configOf(options: ConfigOptions): Promise<Config> {
  const { config: file, ...overrides } = options;
  return loadConfig(file, overrides);
}
