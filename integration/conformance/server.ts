/** Serves plain overlay snapshots: `node server.ts ROOT SOCKET`. Stops when its input ends. */
import { createSnapshotterServer } from "../../src/snapshotter/service.ts";
import { openLog } from "../../src/telemetry/log.ts";

const [root, socket] = process.argv.slice(2);
if (root === undefined || socket === undefined) throw new Error("usage: server.ts ROOT SOCKET");
const server = await createSnapshotterServer({ root, log: openLog("info") });
await server.listen(socket);
process.stdout.write("ready\n");
// The parent holds the other end, so the server never outlives it.
process.stdin.resume().once("end", () => {
  void server.close().finally(() => process.exit());
});
