/**
 * Examines a node: its system, databases, snapshots, layers and mounts against each other, and those
 * whom it depends on. What a daemon that serves has mounted itself is never touched, only looked up
 * in the kernel's tables.
 */
import { describeError } from "../../base/errors.ts";
import { checkContainerd } from "./check-containerd.ts";
import { checkContentCaches, checkStores } from "./check-sharing.ts";
import { checkCredentials, checkSystem } from "./check-system.ts";
import { checkDatabases } from "./check-databases.ts";
import { checkDisk } from "./check-disk.ts";
import { checkFiles } from "./check-files.ts";
import { checkLayers } from "./check-layers.ts";
import { checkMounts } from "./check-mounts.ts";
import { checkSnapshots } from "./check-snapshots.ts";
import type { Finding, Report, ReportedFinding } from "./finding.ts";
import { readNodeView, type NodeView, type Patient } from "./patient.ts";

/** How a node is examined. */
export interface ExamineOptions {
  /** Put right what can be. */
  repair: boolean;
  /** Told of each check before it is made. */
  onCheck?: (check: string) => void;
}

type Check = (patient: Patient, view: NodeView) => AsyncIterable<Finding>;

/** Checks that need nothing but the system. */
const first: Readonly<Record<string, (patient: Patient) => AsyncIterable<Finding>>> = {
  system: checkSystem,
  permissions: checkFiles,
  disk: checkDisk,
  credentials: checkCredentials,
  databases: checkDatabases,
};

/** Checks of what the databases say, which have to be readable by then. */
const second: Readonly<Record<string, Check>> = {
  snapshots: checkSnapshots,
  // What covers a directory goes before that is looked into.
  mounts: checkMounts,
  layers: checkLayers,
  stores: checkStores,
  "content caches": checkContentCaches,
  containerd: checkContainerd,
};

/**
 * Makes all checks, one after the other, and repairs what they find if that is wanted.
 * @throws ClipError ABORTED when the patient's signal fires
 */
export async function examine(patient: Patient, options: ExamineOptions): Promise<Report> {
  const findings: ReportedFinding[] = [];
  const checks: string[] = [];
  const make = async (check: string, found: () => AsyncIterable<Finding>) => {
    patient.signal.throwIfAborted();
    options.onCheck?.(check);
    checks.push(check);
    findings.push(...(await reported(check, found, options.repair)));
  };
  for (const [name, check] of Object.entries(first)) await make(name, () => check(patient));
  checks.push("tables");
  const view = await readNodeView(patient).catch((error: unknown) => {
    findings.push(unfinished("tables", error));
    return undefined;
  });
  if (view !== undefined) {
    for (const [name, check] of Object.entries(second)) {
      await make(name, () =>
        patient.live === undefined ? check(patient, view) : confirmed(check, patient),
      );
    }
  }
  const isLeft = ({ severity, outcome }: ReportedFinding) =>
    severity !== "note" && outcome !== "repaired";
  return { running: patient.live !== undefined, well: !findings.some(isLeft), checks, findings };
}

/**
 * What a check finds twice: while a daemon serves, things come and go between a look at the table and
 * a look at the disk.
 */
async function* confirmed(check: Check, patient: Patient): AsyncGenerator<Finding> {
  const keyOf = ({ what, where }: Finding) => `${what}\n${where}`;
  const once = new Set<string>();
  for await (const finding of check(patient, await readNodeView(patient))) once.add(keyOf(finding));
  if (once.size === 0) return;
  for await (const finding of check(patient, await readNodeView(patient))) {
    if (once.has(keyOf(finding))) yield finding;
  }
}

async function reported(
  check: string,
  found: () => AsyncIterable<Finding>,
  repair: boolean,
): Promise<ReportedFinding[]> {
  const all: ReportedFinding[] = [];
  try {
    for await (const { repair: put, ...finding } of found()) {
      const told = { ...finding, check, repairable: put !== undefined };
      all.push({ ...told, ...(repair && put !== undefined ? await attempt(put) : left) });
    }
  } catch (error) {
    all.push(unfinished(check, error));
  }
  return all;
}

function unfinished(check: string, error: unknown): ReportedFinding {
  return {
    ...{ severity: "error", check, what: "the check could not be made to its end" },
    ...{ where: check, advice: "The error says why.", repairable: false, outcome: "left" },
    error: describeError(error),
  };
}

const left = { outcome: "left" } as const;

async function attempt(
  repair: () => Promise<void>,
): Promise<Partial<ReportedFinding> & { outcome: ReportedFinding["outcome"] }> {
  try {
    await repair();
    return { outcome: "repaired" };
  } catch (error) {
    return { outcome: "failed", error: describeError(error) };
  }
}
