/** Inputs that are kept in files: `<directory>/<target>/<name>`. */
import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

/** The inputs of a target by their names, in the order of these; none where there is no folder. */
export async function readCorpus(directory: string, target: string): Promise<Map<string, Buffer>> {
  const folder = join(directory, target);
  const names = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw error;
  });
  const inputs = new Map<string, Buffer>();
  names.sort((a, b) => (a < b ? -1 : 1));
  for (const name of names) inputs.set(name, await readFile(join(folder, name)));
  return inputs;
}

/** Keeps an input, under a name that its bytes decide. @returns the path of the file */
export async function keepInput(directory: string, target: string, input: Buffer): Promise<string> {
  const folder = join(directory, target);
  await mkdir(folder, { recursive: true });
  const name = createHash("sha256").update(input).digest("hex").slice(0, 16);
  const path = join(folder, name);
  await writeFile(path, input);
  return path;
}
