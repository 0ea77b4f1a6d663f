/** Images of many files with known checksums, half of their bytes compressible. */
import { createHash, randomBytes } from "node:crypto";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { makeImage, makeLayer, type Image, type ImageLayer } from "../harness/image.ts";
import { tarOf, type TarMember } from "../harness/tar-writer.ts";

/** Size of a data layer. */
export interface DataSize {
  files: number;
  fileBytes: number;
}

/**
 * An image with a layer of `/data/<number>` above others, and `/data/sums` as sha256sum writes it.
 * Every one has other contents.
 */
export async function makeDataImage(
  directory: string,
  below: readonly ImageLayer[],
  size: DataSize,
  further: readonly TarMember[] = [],
): Promise<Image> {
  const files = Array.from({ length: size.files }, (_, number) => ({
    name: `data/${number}`,
    data: mixedBytes(size.fileBytes),
  }));
  const sums = files.map(
    ({ name, data }) => `${createHash("sha256").update(data).digest("hex")}  /${name}\n`,
  );
  const tarFile = path.join(directory, `data-${randomBytes(4).toString("hex")}.tar`);
  await writeFile(
    tarFile,
    tarOf([
      { name: "data/", type: "directory" },
      { name: "data/sums", data: sums.join("") },
      ...files,
      ...further,
    ]),
  );
  return makeImage([...below, await makeLayer(tarFile, "pigz")]);
}

function mixedBytes(length: number): Buffer {
  const random = randomBytes(Math.floor(length / 2));
  const line = `${random.subarray(0, 24).toString("hex")} text that a compressor likes\n`;
  return Buffer.concat([random, Buffer.alloc(length - random.length, line)]);
}
