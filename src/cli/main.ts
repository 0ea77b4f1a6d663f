/** The `clip` command. Only the subcommand that is called is loaded, so that each starts quickly. */
import { Command } from "commander";
import { describeError, isClipError } from "../base/errors.ts";
import { version } from "../base/version.ts";

const commands: Record<string, () => Promise<Command>> = {
  daemon: async () => (await import("./daemon.ts")).daemonCommand(),
  upgrade: async () => (await import("./upgrade.ts")).upgradeCommand(),
  index: async () => (await import("./index.ts")).indexCommand(),
  status: async () => (await import("./status.ts")).statusCommand(),
  doctor: async () => (await import("./doctor.ts")).doctorCommand(),
  cache: async () => (await import("./cache.ts")).cacheCommand(),
  config: async () => (await import("./config.ts")).configCommand(),
};

const program = new Command("clip")
  .description("A containerd remote snapshotter for unmodified OCI images")
  .version(version);

try {
  // Help and mistakes are about all of them.
  const called = commands[process.argv[2] ?? ""];
  const loaded = await Promise.all(
    (called === undefined ? Object.values(commands) : [called]).map((load) => load()),
  );
  for (const command of loaded) program.addCommand(command);
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
