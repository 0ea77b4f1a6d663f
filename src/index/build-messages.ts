/** What the thread that builds indexes and the one that wants them say to each other. */
import { ClipError, type ErrorCode, isClipError } from "../base/errors.ts";
import type { LayerPassOptions } from "./layer-pass.ts";

/** What is to be built. */
export interface BuildOrder extends LayerPassOptions {
  /** The compressed layer, where it is a local file; else it comes in messages. */
  path?: string;
  /** One 32-bit number: not zero when the build is given up. */
  stop: SharedArrayBuffer;
}

/** What the build thread is told. */
export type BuildInput =
  /** Begins a build; the one before has been answered. */
  | { kind: "begin"; order: BuildOrder }
  /** Bytes `0..length` of `bytes` are next. */
  | { kind: "bytes"; bytes: ArrayBuffer; length: number }
  /** The layer is over. */
  | { kind: "end" };

/** What the build thread answers: any number of `taken`, then one of the others. */
export type BuildOutput =
  /** Compressed bytes were taken; `bytes` can be used again. */
  | { kind: "taken"; compressedBytes: number; bytes?: ArrayBuffer }
  | { kind: "done"; encoded: ArrayBuffer }
  | { kind: "failed"; error: ErrorMessage };

/** An error as it travels between threads. */
export interface ErrorMessage {
  code?: ErrorCode;
  message: string;
  hint?: string;
  context?: Readonly<Record<string, string | number | boolean>>;
  stack?: string;
}

/** Takes an error apart for the journey. */
export function packError(error: unknown): ErrorMessage {
  if (!(error instanceof Error)) return { message: String(error) };
  const stack = error.stack === undefined ? {} : { stack: error.stack };
  if (!isClipError(error)) return { message: error.message, ...stack };
  const { code, message, hint, context } = error;
  return { code, message, context, ...(hint === undefined ? {} : { hint }), ...stack };
}

/** Puts the error together again. */
export function unpackError({ code, message, hint, context, stack }: ErrorMessage): Error {
  if (code === undefined) return new Error(message, { cause: stack });
  return new ClipError(code, message, {
    ...(hint === undefined ? {} : { hint }),
    ...(context === undefined ? {} : { context }),
  });
}
