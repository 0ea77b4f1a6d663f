/** What the daemon has done when the owner of its socket asks for it with a POST. */
import { parseDigest } from "../base/digest.ts";
import type { Config } from "../config/schema.ts";
import type { Layers } from "../layer/layers.ts";
import type { Action } from "../telemetry/actions.ts";
import type { Log } from "../telemetry/log.ts";

/** What actions work on. */
export interface AdminParts {
  config: Config;
  layers: Layers;
  log: Log;
}

/** Where the daemon examines itself; the parameter `repair` has it put right what it can. */
export const doctorPath = "/doctor";

/**
 * Where the daemon compares what is on disk with its digests. Parameters: `layer` (a digest; default:
 * all) and `repair`, which has it fetch at once what is damaged.
 */
export const verifyCachePath = "/cache/verify";

/** The actions of the daemon, by path. What they need is loaded when they are called. */
export function adminActions({ config, layers, log }: AdminParts): Record<string, Action> {
  return {
    [doctorPath]: async ({ parameters, progress, signal }) => {
      const { examine } = await import("./doctor/doctor.ts");
      const live = { mode: layers.mode, mount: (number: number) => layers.mount(number) };
      const repair = isRecord(parameters) && parameters["repair"] === true;
      return examine({ config, live, log, signal }, { repair, onCheck: progress });
    },
    [verifyCachePath]: ({ parameters, progress, signal }) => {
      const { layer, repair } = isRecord(parameters) ? parameters : {};
      return layers.verifyCache({
        ...(typeof layer === "string" ? { layer: parseDigest(layer) } : {}),
        repair: repair === true,
        signal,
        onProgress: (digest, at, count) => progress({ layer: digest, at, count }),
      });
    },
  };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}
