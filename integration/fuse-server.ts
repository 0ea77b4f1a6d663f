/**
 * A process that serves one layer, for the tests of what happens when such a process ends:
 * `fuse-server.ts MOUNTPOINT FILE exit|resume`. `resume` serves on descriptor 3, slowly; `exit`
 * exits without closing. Prints a line when it serves.
 */
import { openSync, readSync, statSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { makeLayer } from "../src/fuse/fixtures.ts";
import { openFuseSession, type FuseReadRequest } from "../src/fuse/session.ts";
import { openLog } from "../src/telemetry/log.ts";

const [mountpoint = "", dataPath = "", mode] = process.argv.slice(2);
const { size } = statSync(dataPath);
const descriptor = openSync(dataPath, "r");

const session = await openFuseSession({
  mountpoint,
  log: openLog("error"),
  // Half of the bytes are present, the others take their time.
  layers: [halfPresent()],
  ...(mode === "resume" && { resume: { descriptor: 3 } }),
  onRead: (request) => void replySlowly(request),
});
console.log("ready");
process.on("SIGTERM", () => void session.detach().then(() => process.exit(0)));
if (mode === "exit") process.exit(7);

function halfPresent(): ReturnType<typeof makeLayer> {
  const layer = makeLayer({ number: 1, size, spanBytes: 256 * 1024, present: false, dataPath });
  for (let span = 0; span < layer.spanPresent.length; span += 2) layer.spanPresent[span] = 1;
  return layer;
}

async function replySlowly(request: FuseReadRequest): Promise<void> {
  await delay(3);
  const data = Buffer.alloc(request.length);
  readSync(descriptor, data, 0, request.length, request.offset);
  request.reply(data);
}
