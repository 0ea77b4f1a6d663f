/** Writing to a repository (OCI distribution spec, "Push"). */
import { type Digest, digestOf } from "../base/digest.ts";
import { registryError, type Subject } from "./failure.ts";
import { hasBlob, referrersTag, type Scene, subjectOf, taggedReferrers } from "./content.ts";
import { discardBody } from "./http.ts";
import { type Descriptor, mediaTypes } from "./manifest.ts";
import { backoffMs, pause } from "./retry.ts";
import type { RegistryRequest, RegistryResponse, Session } from "./session.ts";

const referrersTries = 4;

/**
 * Uploads a blob unless the repository has it.
 * @throws ClipError REGISTRY_DENIED, REGISTRY_UNAVAILABLE, REGISTRY_PROTOCOL
 */
export async function pushBlob(scene: Scene, bytes: Buffer): Promise<Digest> {
  const digest = digestOf(bytes);
  if (await hasBlob(scene, digest)) return digest;
  const subject = subjectOf(scene, digest);
  const session = await writable(scene);
  // An upload has a state at the registry: what breaks in the middle begins anew.
  for (let attempt = 0; ; attempt++) {
    try {
      await upload(scene, session, digest, bytes, subject);
      return digest;
    } catch (error) {
      if (attempt >= scene.retries || !isUnavailable(error)) throw error;
      await pause(backoffMs(attempt), scene.signal);
    }
  }
}

/** A manifest to be written. */
export interface NewManifest {
  bytes: Buffer;
  mediaType: string;
  /** Its tag; absent: it is known by its digest alone. */
  tag?: string;
  /** What it refers to, and how it appears among the referrers of that. */
  refersTo?: { subject: Digest; artifactType: string; annotations?: Record<string, string> };
}

/**
 * Writes a manifest; where it refers to another one and the registry does not keep track of
 * that, the tag that stands in for the referrers API is updated.
 * @throws ClipError REGISTRY_DENIED, REGISTRY_UNAVAILABLE, REGISTRY_PROTOCOL
 */
export async function pushManifest(scene: Scene, manifest: NewManifest): Promise<Digest> {
  const { bytes, mediaType, tag, refersTo } = manifest;
  const digest = digestOf(bytes);
  const session = await writable(scene);
  const response = await putManifest(scene, session, tag ?? digest, mediaType, bytes);
  const isListed = response.header("oci-subject") !== undefined;
  if (refersTo !== undefined && !isListed) {
    const { subject, artifactType, annotations } = refersTo;
    const descriptor = { mediaType, digest, size: bytes.length, artifactType };
    await tagReferrer(scene, session, subject, {
      ...descriptor,
      ...(annotations === undefined ? {} : { annotations }),
    });
  }
  return digest;
}

async function upload(
  scene: Scene,
  session: Session,
  digest: Digest,
  bytes: Buffer,
  subject: Subject,
): Promise<void> {
  const request = { ...base(scene, subject), retries: 0 };
  const url = `/${scene.repository.name}/blobs/uploads/`;
  const begun = await session.send({ ...request, method: "POST", url });
  if (begun.status !== 202) throw await session.failure(begun, subject);
  await discardBody(begun.body);
  const text = begun.header("location");
  if (text === undefined || !URL.canParse(text, begun.url.href)) {
    throw registryError("REGISTRY_PROTOCOL", "it says not where to upload to", subject);
  }
  const location = new URL(text, begun.url);
  location.searchParams.set("digest", digest);
  const headers = { "content-type": "application/octet-stream" };
  const done = await session.send({
    ...request,
    method: "PUT",
    url: location,
    headers,
    body: bytes,
  });
  if (done.status !== 201) throw await session.failure(done, subject);
  await discardBody(done.body);
}

async function putManifest(
  scene: Scene,
  session: Session,
  target: string,
  mediaType: string,
  bytes: Buffer,
): Promise<RegistryResponse> {
  const subject = subjectOf(scene, target);
  const url = `/${scene.repository.name}/manifests/${target}`;
  const headers = { "content-type": mediaType };
  const request = { ...base(scene, subject), method: "PUT", url, headers, body: bytes } as const;
  const response = await session.send(request);
  if (response.status !== 201) throw await session.failure(response, subject);
  await discardBody(response.body);
  return response;
}

// Two writers may overwrite each other's list, and the registry has no means against it: each
// looks whether its entry is still there, and writes again if not.
async function tagReferrer(
  scene: Scene,
  session: Session,
  subject: Digest,
  entry: Descriptor,
): Promise<void> {
  for (let attempt = 0; attempt < referrersTries; attempt++) {
    const listed = await taggedReferrers(scene, session, subject);
    if (listed.some(({ digest }) => digest === entry.digest)) return;
    const manifests = [...listed, entry];
    const index = { schemaVersion: 2, mediaType: mediaTypes.ociIndex, manifests };
    const bytes = Buffer.from(JSON.stringify(index));
    await putManifest(scene, session, referrersTag(subject), mediaTypes.ociIndex, bytes);
    await pause(backoffMs(0), scene.signal);
  }
  throw registryError(
    "REGISTRY_UNAVAILABLE",
    "others keep overwriting the list of referrers",
    subjectOf(scene, subject),
  );
}

async function writable(scene: Scene): Promise<Session> {
  const session = (await scene.host.capable("push", scene.signal)).at(-1);
  if (session === undefined) {
    throw registryError("REGISTRY_UNAVAILABLE", "it has no endpoint", subjectOf(scene, "push"));
  }
  return session;
}

function base(
  { repository, retries, signal }: Scene,
  subject: Subject,
): Pick<RegistryRequest, "scope" | "subject" | "retries" | "signal"> {
  return { scope: `repository:${repository.name}:pull,push`, subject, retries, signal };
}

function isUnavailable(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "REGISTRY_UNAVAILABLE";
}
