/** Images made for tests: layers of any compression, pushed to a registry, unpacked as reference. */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { link, mkdir, rm, stat, writeFile } from "node:fs/promises";
import http from "node:http";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import { run } from "./command.ts";
import { tool } from "./tools.ts";

/** A layer in files. */
export interface ImageLayer {
  /** The uncompressed archive. */
  tarFile: string;
  diffId: string;
  /** What the registry holds. */
  blobFile: string;
  digest: string;
  size: number;
  uncompressedSize: number;
  mediaType: string;
}

/** An image in files. */
export interface Image {
  layers: readonly ImageLayer[];
  config: Buffer;
  manifest: Buffer;
  /** Digest of the manifest. */
  digest: string;
}

/** How a container of an image is run. */
export interface ImageSettings {
  entrypoint?: readonly string[];
  command?: readonly string[];
  environment?: readonly string[];
}

/** Ways to compress a layer; each leaves another kind of gzip stream. */
export const compressors = {
  "gzip -6": ["gzip", "-6", "-n", "-c"],
  "gzip -1": ["gzip", "-1", "-n", "-c"],
  "gzip -9 with a name": ["gzip", "-9", "-N", "-c"],
  pigz: [tool("pigz"), "-6", "-c"],
  "pigz in independent blocks": [tool("pigz"), "-i", "-c"],
  igzip: [tool("igzip"), "-1", "-c"],
  libdeflate: [tool("libdeflate-gzip"), "-6", "-c"],
  bgzip: [tool("bgzip"), "-c"],
  none: undefined,
} as const satisfies Record<string, readonly string[] | undefined>;

export type Compressor = keyof typeof compressors;

const OCI = "application/vnd.oci.image";

/** Compresses an archive beside it, and learns its digests. */
export async function makeLayer(
  tarFile: string,
  compressor: Compressor = "gzip -6",
): Promise<ImageLayer> {
  const command = compressors[compressor];
  let blobFile = tarFile;
  if (command !== undefined) {
    blobFile = `${tarFile}.gz`;
    const quoted = [...command, tarFile].map((word) => `'${word}'`).join(" ");
    await run("sh", ["-c", `${quoted} > '${blobFile}'`], { timeoutMs: 600_000 });
  }
  const [diffId, digest] = [await digestOfFile(tarFile), await digestOfFile(blobFile)];
  return {
    ...{ tarFile, diffId, blobFile, digest },
    size: (await stat(blobFile)).size,
    uncompressedSize: (await stat(tarFile)).size,
    mediaType: `${OCI}.layer.v1.tar${command === undefined ? "" : "+gzip"}`,
  };
}

/** Writes config and manifest of an image. */
export function makeImage(layers: readonly ImageLayer[], settings: ImageSettings = {}): Image {
  const config = Buffer.from(
    JSON.stringify({
      created: "2024-01-01T00:00:00Z",
      architecture: process.arch === "x64" ? "amd64" : process.arch,
      os: "linux",
      config: {
        Entrypoint: settings.entrypoint,
        Cmd: settings.command ?? ["/bin/sh"],
        Env: settings.environment ?? ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
      },
      rootfs: { type: "layers", diff_ids: layers.map(({ diffId }) => diffId) },
      history: layers.map(() => ({ created: "2024-01-01T00:00:00Z", created_by: "test" })),
    }),
  );
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: `${OCI}.manifest.v1+json`,
      config: {
        mediaType: `${OCI}.config.v1+json`,
        digest: digestOf(config),
        size: config.length,
      },
      layers: layers.map(({ mediaType, digest, size }) => ({ mediaType, digest, size })),
    }),
  );
  return { layers, config, manifest, digest: digestOf(manifest) };
}

/**
 * Pushes an image over plain HTTP.
 *
 * @param host `127.0.0.1:port`.
 * @returns the name by which it is pulled.
 */
export async function pushImage(
  image: Image,
  host: string,
  repository: string,
  tag = "latest",
): Promise<string> {
  for (const layer of image.layers) {
    await pushBlob(host, repository, layer.digest, layer.size, () =>
      createReadStream(layer.blobFile),
    );
  }
  await pushBytes(host, repository, image.config);
  const answer = await fetch(`http://${host}/v2/${repository}/manifests/${tag}`, {
    method: "PUT",
    headers: { "content-type": `${OCI}.manifest.v1+json` },
    body: new Uint8Array(image.manifest),
  });
  if (answer.status !== 201) {
    throw new Error(`manifest: ${answer.status} ${await answer.text()}`);
  }
  return `${host}/${repository}:${tag}`;
}

/**
 * Unpacks an image with umoci. It knows whiteouts, but neither GNU tar's sparse files nor empty
 * attributes.
 *
 * @param directory made for it; the tree is in the directory that is returned.
 */
export async function unpackWithUmoci(image: Image, directory: string): Promise<string> {
  await writeLayout(image, path.join(directory, "layout"));
  const bundle = path.join(directory, "bundle");
  const layout = `${path.join(directory, "layout")}:latest`;
  await run(tool("umoci"), ["unpack", "--image", layout, bundle], { timeoutMs: 300_000 });
  return path.join(bundle, "rootfs");
}

/** Unpacks an image with GNU tar, one layer over the other. It knows nothing of whiteouts. */
export async function unpackWithTar(image: Image, directory: string): Promise<string> {
  const root = path.join(directory, "rootfs");
  await mkdir(root, { recursive: true });
  for (const layer of image.layers) {
    const options = [
      "--delay-directory-restore",
      "--same-owner",
      "--same-permissions",
      "--numeric-owner",
    ];
    // As containerd does, trusted attributes are not taken from an archive.
    const attributes = ["--xattrs", "--xattrs-include=*", "--xattrs-exclude=trusted.*"];
    await run("tar", ["-C", root, ...options, ...attributes, "-xf", layer.tarFile]);
  }
  return root;
}

/** sha256 of a file, as registries write it. */
async function digestOfFile(file: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(file, { highWaterMark: 1 << 20 }), hash);
  return `sha256:${hash.digest("hex")}`;
}

/** sha256 of bytes, as registries write it. */
function digestOf(bytes: Buffer): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

async function writeLayout(image: Image, layout: string): Promise<void> {
  const blobs = path.join(layout, "blobs", "sha256");
  const blobPath = (digest: string): string => path.join(blobs, digest.slice("sha256:".length));
  await mkdir(blobs, { recursive: true });
  for (const layer of image.layers) {
    await rm(blobPath(layer.digest), { force: true });
    await link(layer.blobFile, blobPath(layer.digest));
  }
  await writeFile(blobPath(digestOf(image.config)), image.config);
  await writeFile(blobPath(image.digest), image.manifest);
  await writeFile(path.join(layout, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}');
  const descriptor = {
    mediaType: `${OCI}.manifest.v1+json`,
    digest: image.digest,
    size: image.manifest.length,
    annotations: { "org.opencontainers.image.ref.name": "latest" },
  };
  await writeFile(
    path.join(layout, "index.json"),
    JSON.stringify({ schemaVersion: 2, manifests: [descriptor] }),
  );
}

async function pushBytes(host: string, repository: string, bytes: Buffer): Promise<void> {
  const file = { digest: digestOf(bytes), size: bytes.length };
  await pushBlob(host, repository, file.digest, file.size, async function* () {
    yield await Promise.resolve(bytes);
  });
}

async function pushBlob(
  host: string,
  repository: string,
  digest: string,
  size: number,
  open: () => AsyncIterable<Buffer>,
): Promise<void> {
  const base = `http://${host}/v2/${repository}/blobs`;
  const head = await fetch(`${base}/${digest}`, { method: "HEAD" });
  if (head.status === 200) return;
  const begun = await fetch(`${base}/uploads/`, { method: "POST" });
  const location = begun.headers.get("location");
  if (begun.status !== 202 || location === null) {
    throw new Error(`upload: ${begun.status} ${await begun.text()}`);
  }
  const url = new URL(location, `http://${host}`);
  url.searchParams.set("digest", digest);
  const status = await new Promise<number>((resolve, reject) => {
    const request = http.request(url, {
      method: "PUT",
      headers: { "content-type": "application/octet-stream", "content-length": size },
    });
    request.on("error", reject);
    request.on("response", (response) => {
      response.resume();
      response.on("end", () => {
        resolve(response.statusCode ?? 0);
      });
    });
    pipeline(open(), request).catch(reject);
  });
  if (status !== 201) throw new Error(`upload of ${digest}: ${status}`);
}
