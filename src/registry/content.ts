/** Small content of a repository: manifests, configs, referrers. Always checked, never large. */
import { type Digest, digestOf, isDigest } from "../base/digest.ts";
import { isClipError } from "../base/errors.ts";
import { manifestBytesMax, referrersPagesMax } from "../base/limits.ts";
import { registryError, type Subject } from "./failure.ts";
import { discardBody, isTransientFault, networkError, readBody } from "./http.ts";
import {
  type Descriptor,
  isIndexType,
  type Manifest,
  mediaTypes,
  parseImageIndex,
} from "./manifest.ts";
import type { Repository } from "./reference.ts";
import type { RegistryHost } from "./registry-host.ts";
import { backoffMs, pause } from "./retry.ts";
import type { RegistryResponse, Session } from "./session.ts";

/** Where a request goes, and how long it may be tried. */
export interface Scene {
  host: RegistryHost;
  repository: Repository;
  retries: number;
  signal: AbortSignal | undefined;
}

const accept = [
  mediaTypes.ociManifest,
  mediaTypes.ociIndex,
  mediaTypes.dockerManifest,
  mediaTypes.dockerIndex,
].join(", ");

/**
 * The manifest with this tag or digest.
 * @throws ClipError REGISTRY_NOT_FOUND, REGISTRY_DENIED, REGISTRY_UNAVAILABLE, REGISTRY_PROTOCOL
 */
export function fetchManifest(scene: Scene, target: string): Promise<Manifest> {
  const capability = isDigest(target) ? "pull" : "resolve";
  return scene.host.first(capability, undefined, scene.signal, (session, isLast) =>
    manifestAt(scene, session, target, isLast),
  );
}

/**
 * A whole blob of known digest, no larger than a manifest may be.
 * @throws as {@link fetchManifest}
 */
export function fetchSmallBlob(scene: Scene, digest: Digest): Promise<Buffer> {
  const { host, repository } = scene;
  const subject = subjectOf(scene, digest);
  return host.first("pull", undefined, scene.signal, async (session, isLast) => {
    const path = `/${repository.name}/blobs/${digest}${host.query(session)}`;
    const { response, bytes } = await get(scene, session, path, subject, {}, isLast);
    if (bytes === undefined) throw await session.failure(response, subject);
    if (digestOf(bytes) !== digest) throw wrongDigest(subject, session);
    return bytes;
  });
}

/**
 * Whether the repository holds this blob.
 * @throws as {@link fetchManifest}, but for REGISTRY_NOT_FOUND
 */
export function hasBlob(scene: Scene, digest: Digest): Promise<boolean> {
  const { host, repository, retries, signal } = scene;
  const subject = subjectOf(scene, digest);
  const scope = pullScope(repository);
  const found = host.first("pull", undefined, signal, async (session, isLast) => {
    const url = `/${repository.name}/blobs/${digest}${host.query(session)}`;
    const request = { method: "HEAD", url, scope, subject, signal } as const;
    const response = await session.send({ ...request, retries: isLast ? retries : 1 });
    if (response.status !== 200) throw await session.failure(response, subject);
    await discardBody(response.body);
    return true;
  });
  return found.catch((error: unknown) => {
    if (isClipError(error, "REGISTRY_NOT_FOUND")) return false;
    throw error;
  });
}

/**
 * What refers to the manifest `digest`: by the referrers API, or by the tag that stands in for it
 * (OCI distribution spec, "Listing Referrers"). The first endpoint that knows any decides.
 * @throws as {@link fetchManifest}, but for REGISTRY_NOT_FOUND
 */
export async function fetchReferrers(
  scene: Scene,
  digest: Digest,
  artifactType: string,
): Promise<Descriptor[]> {
  const sessions = await scene.host.capable("resolve", scene.signal);
  for (const [index, session] of sessions.entries()) {
    const isLast = index === sessions.length - 1;
    try {
      const listed = await referrersAt(scene, session, digest, artifactType, isLast);
      const found = (listed ?? (await taggedReferrers(scene, session, digest, isLast))).filter(
        (descriptor) => descriptor.artifactType === artifactType,
      );
      if (found.length > 0) return found;
    } catch (error) {
      if (isLast || !isClipError(error) || !error.code.startsWith("REGISTRY_")) throw error;
    }
  }
  return [];
}

/** The tag under which a registry without the referrers API keeps what refers to `digest`. */
export function referrersTag(digest: Digest): string {
  return digest.replace(":", "-");
}

/** What the referrers tag of `digest` lists at this endpoint; nothing where there is no such tag. */
export async function taggedReferrers(
  scene: Scene,
  session: Session,
  digest: Digest,
  isLast = true,
): Promise<Descriptor[]> {
  try {
    const { bytes, mediaType } = await manifestAt(scene, session, referrersTag(digest), isLast);
    return isIndexType(mediaType) ? parseImageIndex(bytes, `referrers of ${digest}`).manifests : [];
  } catch (error) {
    if (isClipError(error, "REGISTRY_NOT_FOUND")) return [];
    throw error;
  }
}

async function manifestAt(
  scene: Scene,
  session: Session,
  target: string,
  isLast: boolean,
): Promise<Manifest> {
  const { host, repository } = scene;
  const subject = subjectOf(scene, target);
  const path = `/${repository.name}/manifests/${target}${host.query(session)}`;
  const { response, bytes } = await get(scene, session, path, subject, { accept }, isLast);
  if (bytes === undefined) throw await session.failure(response, subject);
  const digest = digestOf(bytes);
  const stated = isDigest(target) ? target : response.header("docker-content-digest");
  if (stated !== undefined && isDigest(stated) && stated !== digest) {
    throw wrongDigest(subject, session);
  }
  return { digest, mediaType: mediaTypeOf(response, bytes), bytes };
}

// undefined: this endpoint has no referrers API.
async function referrersAt(
  scene: Scene,
  session: Session,
  digest: Digest,
  artifactType: string,
  isLast: boolean,
): Promise<Descriptor[] | undefined> {
  const { host, repository } = scene;
  const subject = subjectOf(scene, digest);
  const found: Descriptor[] = [];
  const query = `artifactType=${encodeURIComponent(artifactType)}`;
  const namespace = host.query(session).replace("?", "&");
  let url: string | URL = `/${repository.name}/referrers/${digest}?${query}${namespace}`;
  for (let page = 0; page < referrersPagesMax; page++) {
    const headers = { accept: mediaTypes.ociIndex };
    const { response, bytes } = await get(scene, session, url, subject, headers, isLast);
    const type = response.header("content-type") ?? "";
    if (bytes === undefined || !type.startsWith(mediaTypes.ociIndex)) {
      if ([401, 403].includes(response.status)) throw await session.failure(response, subject);
      await discardBody(response.body);
      return page === 0 ? undefined : found;
    }
    found.push(...parseImageIndex(bytes, `referrers of ${digest}`).manifests);
    const next = /<([^>]+)>\s*;[^,]*\brel="?next"?/.exec(response.header("link") ?? "")?.[1];
    if (next === undefined || !URL.canParse(next, response.url.href)) break;
    url = new URL(next, response.url);
  }
  return found;
}

/** An answer, and its body if it is the one that was hoped for. */
interface Content {
  response: RegistryResponse;
  bytes: Buffer | undefined;
}

/** Asks until the whole body is there, or an answer that is no success. */
async function get(
  { repository, retries, signal }: Scene,
  session: Session,
  url: string | URL,
  subject: Subject,
  headers: Record<string, string>,
  isLast: boolean,
): Promise<Content> {
  const scope = pullScope(repository);
  const limited = isLast ? retries : Math.min(1, retries);
  const request = { url, headers, scope, subject, retries: limited, signal };
  for (let attempt = 0; ; attempt++) {
    const response = await session.send({ ...request, method: "GET" });
    if (response.status !== 200) return { response, bytes: undefined };
    try {
      return { response, bytes: await readBody(response.body, manifestBytesMax, subject) };
    } catch (error) {
      const failure = networkError(error, subject, session.origin, signal);
      if (attempt >= limited || !isTransientFault(error)) throw failure;
    }
    await pause(backoffMs(attempt), signal);
  }
}

function mediaTypeOf(response: RegistryResponse, bytes: Buffer): string {
  try {
    const parsed: unknown = JSON.parse(bytes.toString("utf8"));
    if (typeof parsed === "object" && parsed !== null && "mediaType" in parsed) {
      if (typeof parsed.mediaType === "string") return parsed.mediaType;
    }
  } catch {
    // What is not JSON is for the reader of the manifest to refuse.
  }
  return (response.header("content-type") ?? "").replace(/;.*/, "").trim();
}

/** What the authorization for reading a repository must cover. */
function pullScope(repository: Repository): string {
  return `repository:${repository.name}:pull`;
}

/** What a request for `target` is about. */
export function subjectOf({ repository }: Scene, target: string): Subject {
  return { host: repository.host, repository: repository.name, target };
}

function wrongDigest(subject: Subject, session: Session): Error {
  const endpoint = session.origin;
  return registryError("REGISTRY_PROTOCOL", "the content does not match its digest", subject, {
    endpoint,
  });
}
