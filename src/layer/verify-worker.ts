/** The thread that checks a complete layer. */
import { createHash } from "node:crypto";
import { closeSync, openSync, readSync } from "node:fs";
import { parentPort, workerData } from "node:worker_threads";
import type { Digest } from "../base/digest.ts";
import { ClipError, isClipError } from "../base/errors.ts";
import { buildErofsImage } from "../erofs/writer.ts";
import type { TarEntry } from "../tar/entry.ts";
import { TarReader } from "../tar/reader.ts";
import { readImageFile, writeImageFile } from "./image-file.ts";
import type { Verification, VerifyAnswer, VerifyOrder } from "./verification.ts";

const chunkBytes = 1024 * 1024;

parentPort?.postMessage(await answer(workerData as VerifyOrder), []);

async function answer(order: VerifyOrder): Promise<VerifyAnswer> {
  try {
    return await verify(order);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    return { message, code: isClipError(error) ? error.code : undefined };
  }
}

async function verify(order: VerifyOrder): Promise<Verification> {
  const { diffId, size, imagePath, keepRuntimeDirectories } = order;
  const entries: TarEntry[] = [];
  const tar = new TarReader({ onEntry: (entry) => entries.push(entry) });
  // Only what the digest vouches for is worth a complaint about its structure.
  const complaints: unknown[] = [];
  const digest = readWhole(order, (chunk) => {
    if (complaints.length === 0) attempt(() => tar.write(chunk), complaints);
  });
  if (digest !== diffId) return { digest, image: "right" };
  if (complaints.length === 0) attempt(() => tar.end(), complaints);
  if (complaints.length > 0) throw complaints[0];
  const { image } = buildErofsImage(entries, { blobSize: size, diffId, keepRuntimeDirectories });
  const found = await readImageFile(imagePath).catch(nothingIfMissing);
  const isRight = found !== undefined && found.state !== "damaged" && image.equals(found.image);
  if (isRight) return { digest, image: "right" };
  if (found?.state === "right") return { digest, image: "lie" };
  await writeImageFile(imagePath, image);
  return { digest, image: "made" };
}

/** sha256 of the file, whose bytes `take` gets in order. */
function readWhole({ path, size }: VerifyOrder, take: (chunk: Buffer) => void): Digest {
  const hash = createHash("sha256");
  const buffer = Buffer.allocUnsafeSlow(chunkBytes);
  const file = openSync(path, "r");
  try {
    for (let offset = 0; offset < size;) {
      const bytes = readSync(file, buffer, 0, Math.min(chunkBytes, size - offset), offset);
      if (bytes === 0) throw new ClipError("CORRUPT_LAYER", `${path} ends before byte ${size}`);
      const chunk = buffer.subarray(0, bytes);
      hash.update(chunk);
      take(chunk);
      offset += bytes;
    }
  } finally {
    closeSync(file);
  }
  return `sha256:${hash.digest("hex")}` as Digest;
}

function nothingIfMissing(error: NodeJS.ErrnoException): undefined {
  if (error.code !== "ENOENT") throw error;
}

function attempt(work: () => void, complaints: unknown[]): void {
  try {
    work();
  } catch (error) {
    complaints.push(error);
  }
}
