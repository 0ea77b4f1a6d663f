/** Whether SQLite finds its databases as they should be. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { databaseComplaints, salvageDatabase } from "../../base/database-repair.ts";
import { LayerRecords } from "../../layer/records.ts";
import { ScrubRecords } from "../../layer/scrub-records.ts";
import { SnapshotStore } from "../../snapshotter/store.ts";
import type { Finding } from "./finding.ts";
import { databases, openQueue, type Patient } from "./patient.ts";

const creators: Readonly<Record<keyof typeof databases, (path: string) => void>> = {
  snapshots: (path) => SnapshotStore.open(path).close(),
  layers: (path) => LayerRecords.open(path).close(),
  stores: (path) => openQueue(path).close(),
  scrub: (path) => ScrubRecords.open(path).close(),
};

/** What SQLite complains about, a finding a database. */
export async function* checkDatabases({
  config: { root },
  live,
}: Patient): AsyncGenerator<Finding> {
  for (const [name, file] of Object.entries(databases)) {
    const path = join(root, file);
    if (!existsSync(path)) continue;
    const [complaint] = databaseComplaints(path);
    if (complaint === undefined) continue;
    const repair = async () => {
      salvageDatabase(path, creators[name as keyof typeof databases]);
    };
    yield {
      severity: "error",
      what: `the database is damaged: ${complaint}`,
      where: path,
      advice:
        live === undefined
          ? "A repair saves the rows that can be read; the damaged file is kept beside it."
          : "Stop the daemon and run `clip doctor --repair`: it saves the rows that can be read.",
      ...(live === undefined ? { repair } : {}),
    };
  }
}
