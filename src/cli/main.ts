/** The `clip` command. Subcommands load what they need when they run, so that each starts quickly. */
import { Command } from "commander";
import { describeError, isClipError } from "../base/errors.ts";
import { version } from "../base/version.ts";
import { configCommand } from "./config.ts";
import { daemonCommand } from "./daemon.ts";
import { indexCommand } from "./index.ts";
import { statusCommand } from "./status.ts";

const program = new Command("clip")
  .description("A containerd remote snapshotter for unmodified OCI images")
  .version(version)
  .addCommand(daemonCommand())
  .addCommand(indexCommand())
  .addCommand(statusCommand())
  .addCommand(configCommand());

try {
  await program.parseAsync();
} catch (error) {
  // What was foreseen is told in a sentence; a defect shows its stack.
  if (isClipError(error)) {
    process.stderr.write(`clip: ${describeError(error)}\n`);
    if (error.hint !== undefined) process.stderr.write(`hint: ${error.hint}\n`);
  } else {
    process.stderr.write(`${error instanceof Error ? error.stack : describeError(error)}\n`);
  }
  process.exitCode = 1;
}
