/** Whether the machine has what clip needs, and the credentials can be read. */
import { access, constants, readFile, stat } from "node:fs/promises";
import { release } from "node:os";
import { describeError } from "../../base/errors.ts";
import { DockerConfig } from "../../registry/docker-config.ts";
import type { Finding } from "./finding.ts";
import type { Patient } from "./patient.ts";

/** The first moment at which this clip can have been running: 2026. */
const clockMin = Date.UTC(2026, 0, 1);
const clockSlackMs = 3_600_000;

/** Kernel, devices, identity, clock. */
export async function* checkSystem({ config }: Patient): AsyncGenerator<Finding> {
  yield* kernel();
  if (process.getuid?.() !== 0) {
    yield {
      severity: "error",
      what: "this is not root",
      where: `user ${process.getuid?.()}`,
      advice: "Mounting takes root: run the daemon and `clip doctor` as root.",
    };
  }
  yield* fuseDevice();
  yield* fileSystems();
  yield* clock(config.root);
}

function* kernel(): Generator<Finding> {
  const [major = 0, minor = 0] = release().split(".").map(Number);
  const isBefore = (wanted: number, least: number) =>
    major < wanted || (major === wanted && minor < least);
  const where = `Linux ${release()}`;
  if (isBefore(5, 10)) {
    const advice = "Use Linux 5.10 or later, better 6.12.";
    yield { severity: "error", what: "the kernel is too old", where, advice };
  } else if (isBefore(6, 9)) {
    yield {
      severity: "note",
      what: "the kernel cannot send FUSE requests again",
      where,
      advice:
        "A read that is under way when the daemon dies waits until its reader is killed; Linux 6.9 repeats it.",
    };
  }
  if (!isBefore(5, 10) && isBefore(6, 12)) {
    yield {
      severity: "note",
      what: "the kernel cannot mount EROFS images from files",
      where,
      advice: "Layers are served as FUSE trees; Linux 6.12 serves their metadata itself.",
    };
  }
}

async function* fuseDevice(): AsyncGenerator<Finding> {
  try {
    await access("/dev/fuse", constants.R_OK | constants.W_OK);
  } catch (error) {
    yield {
      severity: "error",
      what: `the device of FUSE cannot be used: ${describeError(error)}`,
      where: "/dev/fuse",
      advice: "Load the kernel module fuse (`modprobe fuse`).",
    };
  }
}

/** A kernel loads what it lacks when it is mounted first, if it can. */
async function* fileSystems(): AsyncGenerator<Finding> {
  const known = await readFile("/proc/filesystems", "utf8").catch(() => "");
  for (const name of ["overlay", "erofs", "fuse"]) {
    if (new RegExp(`\\t${name}$`, "m").test(known)) continue;
    yield {
      severity: "note",
      what: `the file system ${name} is not loaded`,
      where: "/proc/filesystems",
      advice: `It is loaded at the first mount if the kernel has it: \`modprobe ${name}\` tells.`,
    };
  }
}

async function* clock(root: string): AsyncGenerator<Finding> {
  const now = Date.now();
  const newest = await stat(root).catch(() => undefined);
  const isBack = newest !== undefined && newest.mtimeMs > now + clockSlackMs;
  if (now >= clockMin && !isBack) return;
  yield {
    severity: "warning",
    what: isBack ? "files below the root are from the future" : "the clock is wrong",
    where: new Date(now).toISOString(),
    advice: "Set the clock: certificates and tokens of registries depend on it.",
  };
}

/** Docker's configuration file. */
export async function* checkCredentials({
  config: { registry },
}: Patient): AsyncGenerator<Finding> {
  const credentials = new DockerConfig(registry.dockerConfig);
  const where = credentials.path;
  try {
    await credentials.check();
  } catch (error) {
    yield {
      severity: "error",
      what: `the credentials of registries cannot be read: ${describeError(error)}`,
      where,
      advice: "Correct the file, or registry.docker_config.",
    };
    return;
  }
  const found = await stat(where).catch(() => undefined);
  if (found === undefined && registry.dockerConfig !== undefined) {
    yield {
      severity: "warning",
      what: "the configured file of credentials is not there",
      where,
      advice: "Correct registry.docker_config; without it only public images can be pulled.",
    };
  }
  if (found !== undefined && (found.mode & 0o077) !== 0) {
    yield {
      severity: "warning",
      what: "other users can read or write the credentials of registries",
      where,
      advice: `chmod 600 ${where}`,
    };
  }
}
