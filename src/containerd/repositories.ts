/** Where the blobs of an image may be found, as far as containerd's metadata tells. */
import { isClipError } from "../base/errors.ts";
import type { Repository } from "../registry/reference.ts";
import { parseReference } from "../registry/reference.ts";

/** What is known of where an image comes from. */
export interface RepositoryHints {
  /** The reference that is being pulled, if the client tells. */
  imageReference: string | undefined;
  /** `distribution.source.<host>` of the manifest: the host without its port → repositories. */
  sources: readonly { hostname: string; names: readonly string[] }[];
  /** Names of images that are known to name this manifest. */
  sameImage: readonly string[];
  /** Names of other images that containerd has. */
  otherImages: readonly string[];
  /** Hosts, with ports, that are configured somewhere. */
  hosts: readonly string[];
}

/**
 * The repositories that may have an image's blobs, best first: the one that is being pulled from,
 * those that containerd has pulled from before, then the sources that containerd has noted down.
 * It notes no ports, so those of all known hosts of that name are tried before having none.
 */
export function candidateRepositories(hints: RepositoryHints): Repository[] {
  const candidates: (Repository | undefined)[] = [];
  if (hints.imageReference !== undefined) candidates.push(repositoryOf(hints.imageReference));
  candidates.push(...hints.sameImage.map(repositoryOf));
  const others = hints.otherImages.flatMap((name) => repositoryOf(name) ?? []);
  for (const { hostname, names } of hints.sources) {
    const sameHost = others.filter(({ host }) => withoutPort(host) === hostname);
    candidates.push(...sameHost.filter(({ name }) => names.includes(name)));
    const bare = withBrackets(hostname);
    const hosts = [...sameHost.map(({ host }) => host), ...hints.hosts].filter(
      (host) => host !== bare && withoutPort(host) === hostname,
    );
    for (const host of [...new Set(hosts), bare]) {
      candidates.push(...names.map((name) => ({ host, name })));
    }
  }
  return distinct(candidates);
}

const sourcePrefix = "containerd.io/distribution.source.";

/** The sources in the labels of a blob. */
export function sourcesOf(labels: ReadonlyMap<string, string>): RepositoryHints["sources"] {
  return [...labels]
    .filter(([key]) => key.startsWith(sourcePrefix))
    .map(([key, value]) => ({
      hostname: key.slice(sourcePrefix.length),
      names: value.split(",").filter((name) => name !== ""),
    }));
}

// Images can have any name in containerd.
function repositoryOf(imageName: string): Repository | undefined {
  try {
    return parseReference(imageName).repository;
  } catch (error) {
    if (isClipError(error, "ARGUMENT_INVALID")) return undefined;
    throw error;
  }
}

/** Hosts that the names in containerd's hosts directory (`certs.d`) stand for. */
export function hostsOfDirectory(names: readonly string[]): string[] {
  // `host_5000_` is for file systems that take no colon.
  return names.filter((name) => name !== "_default").map((name) => name.replace(/_(\d+)_$/, ":$1"));
}

// As containerd does it, which leaves no brackets around an IPv6 address either.
function withoutPort(host: string): string {
  return host.replace(/:\d+$/, "").replace(/^\[(.*)\]$/, "$1");
}

function withBrackets(hostname: string): string {
  return hostname.includes(":") ? `[${hostname}]` : hostname;
}

function distinct(candidates: readonly (Repository | undefined)[]): Repository[] {
  const byKey = new Map<string, Repository>();
  for (const candidate of candidates) {
    if (candidate === undefined) continue;
    const key = `${candidate.host}/${candidate.name}`;
    if (!byKey.has(key)) byKey.set(key, candidate);
  }
  return [...byKey.values()];
}
