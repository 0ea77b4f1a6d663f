/** Content digests as OCI writes them: `sha256:<64 hex digits>` (OCI image spec, descriptor). */
import { createHash } from "node:crypto";
import { ClipError } from "./errors.ts";

declare const digestBrand: unique symbol;

/** A digest that has been checked to be `sha256:` and 64 lower-case hex digits. */
export type Digest = string & { readonly [digestBrand]: true };

const pattern = /^sha256:[0-9a-f]{64}$/;

/** Whether `text` is a digest that clip can work with. */
export function isDigest(text: string): text is Digest {
  return pattern.test(text);
}

/**
 * Checks that `text` is a digest.
 * @throws ClipError ARGUMENT_INVALID otherwise; `what` names the thing in the message.
 */
export function parseDigest(text: string, what = "digest"): Digest {
  if (isDigest(text)) return text;
  throw new ClipError(
    "ARGUMENT_INVALID",
    `${what} is not a sha256 digest: ${JSON.stringify(text.slice(0, 100))}`,
  );
}

/** The digest of `bytes`. */
export function digestOf(bytes: Uint8Array): Digest {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}` as Digest;
}

/** The digest whose 32 raw bytes are `raw`. */
export function digestFromBytes(raw: Uint8Array): Digest {
  return parseDigest(`sha256:${Buffer.from(raw).toString("hex")}`);
}

/** The 32 raw bytes of a digest. */
export function digestBytes(digest: Digest): Buffer {
  return Buffer.from(digest.slice("sha256:".length), "hex");
}

/** The key of a digest wherever a file name or cache key is needed: `sha256_<hex>`. */
export function digestKey(digest: Digest): string {
  return digest.replace(":", "_");
}

/** The inverse of {@link digestKey}; undefined for what it never yields. */
export function digestFromKey(key: string): Digest | undefined {
  const digest = key.replace("_", ":");
  return digest !== key && isDigest(digest) ? digest : undefined;
}

/**
 * The chainIDs of a stack of diffIDs, bottom first (OCI image spec, "Layer ChainID").
 */
export function chainIds(diffIds: readonly Digest[]): Digest[] {
  const chain: Digest[] = [];
  for (const diffId of diffIds) {
    const below = chain.at(-1);
    chain.push(below === undefined ? diffId : digestOf(Buffer.from(`${below} ${diffId}`)));
  }
  return chain;
}
