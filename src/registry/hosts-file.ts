/** containerd's hosts directory: `<directory>/<host>/hosts.toml` (containerd docs/hosts.md). */
import { readFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { parse } from "smol-toml";
import * as v from "valibot";
import { ClipError, describeError } from "../base/errors.ts";
import type { Endpoint } from "./endpoint.ts";

const oneOrMany = v.union([v.string(), v.array(v.string())]);
const settings = {
  capabilities: v.optional(v.array(v.string())),
  ca: v.optional(oneOrMany),
  client: v.optional(v.union([v.string(), v.array(oneOrMany)])),
  skip_verify: v.optional(v.boolean(), false),
  override_path: v.optional(v.boolean(), false),
  header: v.optional(v.record(v.string(), oneOrMany), {}),
};
const hostSchema = v.object(settings);
const fileSchema = v.object({
  ...settings,
  server: v.optional(v.string()),
  host: v.optional(v.record(v.string(), hostSchema), {}),
});

/** What a hosts file says: endpoints to ask in order, and perhaps who the server itself is. */
export interface HostsFile {
  mirrors: Endpoint[];
  server?: Endpoint;
}

/**
 * Reads the file for `host`, or the one for `_default`.
 * @returns undefined where there is neither
 * @throws ClipError CONFIG_INVALID
 */
export async function readHostsFile(
  directory: string,
  host: string,
): Promise<HostsFile | undefined> {
  for (const name of [host.replace(/:(\d+)$/, "_$1_"), host, "_default"]) {
    const path = join(directory, name, "hosts.toml");
    let text: string;
    try {
      text = await readFile(path, "utf8");
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === "ENOENT" || code === "ENOTDIR") continue;
      throw new ClipError("CONFIG_INVALID", `cannot read ${path}`, { cause: error });
    }
    return parseHostsFile(text, path);
  }
  return undefined;
}

/**
 * Parses a hosts file; `path` is where it stands: its certificates are relative to that.
 * @throws ClipError CONFIG_INVALID
 */
export function parseHostsFile(text: string, path: string): HostsFile {
  try {
    const file = v.parse(fileSchema, parse(text));
    const directory = dirname(path);
    const mirrors = Object.entries(file.host).map(([url, host]) =>
      toEndpoint(url, host, directory),
    );
    if (file.server === undefined) return { mirrors };
    return { mirrors, server: toEndpoint(file.server, file, directory) };
  } catch (error) {
    // What follows the first line is a piece of the file, which may have secrets in its headers.
    const [why = ""] = describeError(error).split("\n", 1);
    throw new ClipError("CONFIG_INVALID", `cannot understand ${path}: ${why}`);
  }
}

function toEndpoint(
  url: string,
  host: v.InferOutput<typeof hostSchema>,
  directory: string,
): Endpoint {
  const absolute = (file: string) => resolve(directory, file);
  const clients =
    host.client === undefined || typeof host.client === "string" ? [host.client] : host.client;
  const capabilities = host.capabilities ?? ["pull", "resolve", "push"];
  return {
    base: baseUrl(url, host.override_path),
    capabilities: {
      pull: capabilities.includes("pull"),
      resolve: capabilities.includes("resolve"),
      push: capabilities.includes("push"),
    },
    tls: {
      caFiles: many(host.ca).map(absolute),
      clientFiles: clients
        .filter((client) => client !== undefined)
        .map((client) => many(client).map(absolute)),
      skipVerify: host.skip_verify,
    },
    headers: Object.fromEntries(
      Object.entries(host.header).map(([name, value]) => [name.toLowerCase(), many(value)]),
    ),
  };
}

/**
 * The address below which a registry's API stands: `https://host/v2`, without a slash at its end.
 * A path in `url` is kept, `/v2` is added unless it ends so or `overridePath` is set.
 */
export function baseUrl(url: string, overridePath = false): string {
  const parsed = new URL(/^https?:\/\//.test(url) ? url : `https://${url}`);
  const path = parsed.pathname.replace(/\/+$/, "");
  return parsed.origin + (overridePath || path.endsWith("/v2") ? path : `${path}/v2`);
}

function many(value: string | readonly string[] | undefined): string[] {
  if (value === undefined) return [];
  return typeof value === "string" ? [value] : [...value];
}
