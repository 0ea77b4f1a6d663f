/** Examining a node that no daemon serves. */
import { closeSync, existsSync, openSync } from "node:fs";
import { join } from "node:path";
import { ClipError } from "../../base/errors.ts";
import type { Config } from "../../config/schema.ts";
import { tryLock } from "../../os/libc.ts";
import type { Log } from "../../telemetry/log.ts";
import { examine, type ExamineOptions } from "./doctor.ts";
import type { Report } from "./finding.ts";

/**
 * Examines the directories of a node, and keeps daemons away meanwhile.
 * @throws ClipError CONFIG_INVALID when a daemon uses them, though it has not answered
 */
export async function examineOffline(
  config: Config,
  options: ExamineOptions,
  log: Log,
): Promise<Report> {
  const patient = { config, log, signal: new AbortController().signal };
  if (!existsSync(config.root)) return examine(patient, options);
  const lock = openSync(join(config.root, "lock"), "a", 0o600);
  try {
    if (!tryLock(lock)) {
      throw new ClipError(
        "CONFIG_INVALID",
        `a clip daemon uses ${config.root} and does not answer`,
        {
          hint: "Is its state directory another one (--state)? Its log may say why it does not answer.",
        },
      );
    }
    return await examine(patient, options);
  } finally {
    closeSync(lock);
  }
}
