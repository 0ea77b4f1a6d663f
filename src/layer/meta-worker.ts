/** The thread that makes metadata images, so that large layers do not hold up the main thread. */
import { parentPort } from "node:worker_threads";
import { isClipError } from "../base/errors.ts";
import { makeMetaImage, type MetaAnswer, type MetaOrder } from "./meta-image.ts";

const port = parentPort;
port?.on("message", (order: MetaOrder & { id: number }) => {
  void outcome(order).then((answer) => port.postMessage(answer, []));
});

async function outcome(order: MetaOrder & { id: number }): Promise<MetaAnswer> {
  try {
    return { id: order.id, made: await makeMetaImage(order) };
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    return { id: order.id, message, code: isClipError(error) ? error.code : undefined };
  }
}
