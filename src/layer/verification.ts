/** What is said to and by the thread that checks a complete layer. */
import type { Digest } from "../base/digest.ts";
import type { ErrorCode } from "../base/errors.ts";

/** What is to be checked. */
export interface VerifyOrder {
  /** File of the uncompressed layer. */
  path: string;
  size: number;
  diffId: Digest;
  /** Its metadata image, which was made from the layer index. */
  imagePath: string;
  keepRuntimeDirectories: boolean;
}

/** What was found. */
export interface Verification {
  /** sha256 of the whole file. */
  digest: Digest;
  /**
   * `made`: it was damaged or missing, and has been replaced by what the layer itself gives; `lie`: it is as it
   * was made, but the layer gives another one, so the index that it was made from lied.
   */
  image: "right" | "made" | "lie";
}

/** What the thread answers. */
export type VerifyAnswer = Verification | { message: string; code: ErrorCode | undefined };
