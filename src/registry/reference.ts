/** Names of images, as people and containerd write them (distribution's reference grammar). */
import { type Digest, isDigest } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";

/** A repository on a registry. */
export interface Repository {
  /** Host, with a port where it is not the default one: `registry.example.com:5000`. */
  host: string;
  /** Repository on that host: `team/app`. */
  name: string;
}

/** An image: a repository with a tag, a digest, or both (then the digest counts). */
export interface Reference {
  repository: Repository;
  tag?: string;
  digest?: Digest;
}

const dockerHub = "docker.io";
const component = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*";
const namePattern = new RegExp(`^${component}(?:/${component})*$`);
const hostPattern =
  /^(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?$/;
const tagPattern = /^\w[\w.-]{0,127}$/;

/**
 * Reads an image name. Docker's defaults apply: `alpine` is `docker.io/library/alpine:latest`;
 * the part before the first slash is a host when it has a dot, a colon, or is `localhost`.
 * @throws ClipError ARGUMENT_INVALID
 */
export function parseReference(text: string): Reference {
  const at = text.indexOf("@");
  const digest = at < 0 ? undefined : text.slice(at + 1);
  const named = at < 0 ? text : text.slice(0, at);
  const colon = named.lastIndexOf(":");
  const hasTag = colon > named.lastIndexOf("/");
  // "host:5000" alone would read as a name with a tag; distribution reads it so, too.
  const tag = hasTag ? named.slice(colon + 1) : undefined;
  const repository = parseRepository(hasTag ? named.slice(0, colon) : named);
  if (tag !== undefined && !tagPattern.test(tag)) throw invalid(text, "its tag is malformed");
  if (digest !== undefined && !isDigest(digest)) throw invalid(text, "its digest is not sha256");
  return {
    repository,
    ...(tag === undefined ? (digest === undefined ? { tag: "latest" } : {}) : { tag }),
    ...(digest === undefined ? {} : { digest }),
  };
}

/**
 * Reads a repository name without tag or digest, with the defaults of {@link parseReference}.
 * @throws ClipError ARGUMENT_INVALID
 */
function parseRepository(text: string): Repository {
  const slash = text.indexOf("/");
  const first = slash < 0 ? "" : text.slice(0, slash);
  const hasHost = /[.:]/.test(first) || first === "localhost";
  const host = hasHost ? canonicalHost(first) : dockerHub;
  const rest = hasHost ? text.slice(slash + 1) : text;
  const name = host === dockerHub && !rest.includes("/") ? `library/${rest}` : rest;
  // The pattern knows neither which ports nor which addresses there are.
  const isHost = hostPattern.test(host) && URL.canParse(`https://${host}`);
  if (!isHost) throw invalid(text, "its host is malformed");
  if (name.length > 255 || !namePattern.test(name)) {
    throw invalid(text, "its repository is malformed");
  }
  return { host, name };
}

/** The full form of a reference: host, repository, then tag and digest where it has them. */
export function formatReference(reference: Reference): string {
  const { repository, tag, digest } = reference;
  const suffix = (tag === undefined ? "" : `:${tag}`) + (digest === undefined ? "" : `@${digest}`);
  return `${repository.host}/${repository.name}${suffix}`;
}

/** Whether `host` (with or without a port) is this machine's loopback. */
export function isLoopback(host: string): boolean {
  const name = hostName(host).toLowerCase();
  return name === "localhost" || name === "::1" || /^127(?:\.\d{1,3}){3}$/.test(name);
}

/** The port in `host`, if it has one. */
export function hostPort(host: string): string | undefined {
  return /:(\d+)$/.exec(host.replace(/^\[.*\]/, ""))?.[1];
}

function hostName(host: string): string {
  if (host.startsWith("[")) return host.slice(1, host.indexOf("]"));
  return host.replace(/:\d+$/, "");
}

function canonicalHost(host: string): string {
  return host === "index.docker.io" || host === "registry-1.docker.io" ? dockerHub : host;
}

function invalid(text: string, why: string): ClipError {
  const shown = JSON.stringify(text.slice(0, 300));
  return new ClipError("ARGUMENT_INVALID", `not an image reference: ${shown}: ${why}`);
}
