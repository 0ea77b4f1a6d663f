/** An image of several hundred megabytes, built from Debian packages, as applications have them. */
import { existsSync } from "node:fs";
import {
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  writeFile,
} from "node:fs/promises";
import path from "node:path";
import { run } from "./command.ts";
import { makeImage, makeLayer, type Image, type ImageLayer } from "./image.ts";
import { cacheRoot, toolsRoot } from "./tools.ts";

/** Layers from the bottom up; setup brings the packages of each. */
const LAYERS = ["base", "python", "tools"] as const;

/** Changes whenever what is made here would be different. */
const VERSION = "1";

/**
 * The image. It takes a minute to make and is kept between runs.
 *
 * @returns layers `base` (a small Debian), `python` (an interpreter with large libraries, and a
 *   compiler), `tools`; about 250 MB compressed.
 */
export async function debianImage(): Promise<Image> {
  const layers: ImageLayer[] = [];
  for (const name of LAYERS) layers.push(await debianLayer(name));
  return makeImage(layers, { command: ["/bin/bash"] });
}

async function debianLayer(name: (typeof LAYERS)[number]): Promise<ImageLayer> {
  const packages = path.join(toolsRoot, "image", name);
  if (!existsSync(packages)) throw new Error(`${packages} is missing: run make setup`);
  const directory = path.join(cacheRoot, "debian", name);
  const described = path.join(directory, "layer.json");
  const version = `${VERSION} ${(await readdir(packages)).toSorted().join(" ")}`;
  if (existsSync(described)) {
    const made = JSON.parse(await readFile(described, "utf8")) as MadeLayer;
    if (made.version === version) return inDirectory(made.layer, directory);
  }
  process.stderr.write(`making the ${name} layer of the Debian image\n`);
  await mkdir(path.dirname(directory), { recursive: true });
  const temporary = await mkdtemp(`${directory}-`);
  try {
    const layer = await makeDebianLayer(name, packages, temporary);
    await writeFile(path.join(temporary, "layer.json"), JSON.stringify({ version, layer }));
    await rm(directory, { recursive: true, force: true });
    await rename(temporary, directory);
    return inDirectory(layer, directory);
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

interface MadeLayer {
  version: string;
  layer: ImageLayer;
}

function inDirectory(layer: ImageLayer, directory: string): ImageLayer {
  return {
    ...layer,
    tarFile: path.join(directory, path.basename(layer.tarFile)),
    blobFile: path.join(directory, path.basename(layer.blobFile)),
  };
}

async function makeDebianLayer(
  name: string,
  packages: string,
  directory: string,
): Promise<ImageLayer> {
  const root = path.join(directory, "root");
  await mkdir(root);
  for (const file of await readdir(packages)) {
    await run("dpkg-deb", ["--extract", path.join(packages, file), root]);
  }
  if (name === "base") await completeRoot(root);
  const tarFile = path.join(directory, "layer.tar");
  const form = ["--format=pax", "--sort=name", "--numeric-owner", "--pax-option=delete=atime"];
  await run("tar", ["-C", root, ...form, "--pax-option=delete=ctime", "-cf", tarFile, "."], {
    timeoutMs: 300_000,
  });
  await rm(root, { recursive: true });
  return makeLayer(tarFile, "pigz");
}

/** What the scripts of the packages would have made, as far as a container needs it. */
async function completeRoot(root: string): Promise<void> {
  await writeFile(path.join(root, "etc/passwd"), "root:x:0:0:root:/root:/bin/bash\n");
  await writeFile(path.join(root, "etc/group"), "root:x:0:\n");
  for (const name of ["hosts", "hostname", "resolv.conf"]) {
    await writeFile(path.join(root, "etc", name), "");
  }
  for (const name of ["dev", "proc", "sys", "run", "tmp", "root"]) {
    await mkdir(path.join(root, name), { recursive: true });
  }
  if (!existsSync(path.join(root, "usr/bin/awk"))) {
    await symlink("mawk", path.join(root, "usr/bin/awk"));
  }
}
