/** The thread that hashes what another thread decodes. It ends with that thread. */
import { type MessagePort, workerData } from "node:worker_threads";
import { currentThreadId } from "../os/interrupt.ts";
import { readRing, type RingMemory, ringOperations } from "./hash-ring.ts";
import { InlineHashes } from "./layer-hashes.ts";

/** What the thread starts with. */
export interface HashOrder {
  ring: RingMemory;
  /** One 32-bit number: how many layers have been answered. */
  answered: SharedArrayBuffer;
  port: MessagePort;
}

const { ring, answered, port } = workerData as HashOrder;
const answers = new Int32Array(answered);
let hashes = new InlineHashes();

readRing(ring, currentThreadId(), (operation, bytes) => {
  switch (operation) {
    case ringOperations.compressed:
      return hashes.addCompressed(bytes);
    case ringOperations.uncompressed:
      return hashes.addUncompressed(bytes);
    case ringOperations.endSpan:
      return hashes.endSpan();
    case ringOperations.end:
      port.postMessage(hashes.end());
      Atomics.add(answers, 0, 1);
      Atomics.notify(answers, 0);
      break;
    default:
      break;
  }
  hashes = new InlineHashes();
});
