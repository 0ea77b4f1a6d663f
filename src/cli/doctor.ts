/** `clip doctor`: whether a node is well, and putting right what is not. */
import { Command } from "commander";
import { describeError, isClipError } from "../base/errors.ts";
import type { Config } from "../config/schema.ts";
import { doctorPath } from "../daemon/admin.ts";
import type { Report } from "../daemon/doctor/finding.ts";
import { telemetrySocket } from "../daemon/telemetry-socket.ts";
import { openLog } from "../telemetry/log.ts";
import { addConfigOptions, configOf, type ConfigOptions } from "./config-options.ts";
import { isUnreachable, orderDaemon } from "./daemon-client.ts";
import { formatReport } from "./doctor-text.ts";

interface DoctorFlags extends ConfigOptions {
  repair?: boolean;
  json?: boolean;
}

/** The command. */
export function doctorCommand(): Command {
  return addConfigOptions(new Command("doctor"))
    .description(
      "check store, mounts, caches and indexes against each other, with or without a daemon; ends with 1 if something is not well",
    )
    .option("--repair", "put right what can be")
    .option("--json", "print JSON")
    .action(run);
}

async function run({ repair = false, json, ...flags }: DoctorFlags): Promise<void> {
  const report = await reportOf(repair, flags);
  process.stdout.write(
    json === true ? `${JSON.stringify(report, undefined, 2)}\n` : formatReport(report),
  );
  process.exitCode = report.well ? 0 : 1;
}

async function reportOf(repair: boolean, flags: ConfigOptions): Promise<Report> {
  let config: Config;
  try {
    config = await configOf(flags);
  } catch (error) {
    if (!isClipError(error, "CONFIG_INVALID")) throw error;
    return invalidConfig(describeError(error), flags.config ?? "flags", error.hint ?? "");
  }
  const onCheck = (check: unknown) => {
    if (process.stderr.isTTY) process.stderr.write(`\r\x1b[Kchecking ${String(check)}`);
  };
  try {
    return await examine(config, repair, onCheck);
  } finally {
    if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
  }
}

async function examine(
  config: Config,
  repair: boolean,
  onProgress: (check: unknown) => void,
): Promise<Report> {
  try {
    const options = { parameters: { repair }, onProgress };
    return await orderDaemon<Report>(telemetrySocket(config.state), doctorPath, options);
  } catch (error) {
    if (!isUnreachable(error)) throw error;
  }
  const { examineOffline } = await import("../daemon/doctor/offline.ts");
  // What is found is told; the log would tell it again.
  return examineOffline(config, { repair, onCheck: onProgress }, openLog("silent"));
}

function invalidConfig(what: string, where: string, advice: string): Report {
  const told = { check: "configuration", repairable: false, outcome: "left" } as const;
  return {
    ...{ running: false, well: false, checks: ["configuration"] },
    findings: [{ ...told, severity: "error", what, where, advice }],
  };
}
