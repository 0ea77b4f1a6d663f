/** What is fuzzed, and what counts as right. */
import { isClipError, type ErrorCode } from "../../../src/base/errors.ts";
import type { Random } from "./random.ts";

/** A piece of clip that takes bytes from outside. */
export interface FuzzTarget {
  /** Inputs to begin with, besides those in the corpus. */
  seeds(): Buffer[];
  /** Words that mean something in the format. */
  dictionary?: readonly (string | Buffer)[];
  /** Longest input; 4096 bytes if not given. */
  bytesMax?: number;
  /** Makes an input from nothing. */
  generate?: (random: Random) => Buffer;
  /** Changes an input in a way that keeps its structure. */
  change?: (input: Buffer, random: Random) => Buffer;
  /** Mends what a blind change breaks, such as checksums, so that what lies behind them is reached. */
  mend?: (input: Buffer) => Buffer;
  /**
   * Tries an input.
   * @returns how it behaved, in short: inputs that behave in a new way are kept and changed further
   * @throws anything, when that is not what clip should do with these bytes
   */
  run(input: Buffer): string | Promise<string>;
  close?: () => Promise<void>;
}

/** A target by its name, loaded when it is its turn. */
export interface TargetEntry {
  /** Inputs to try in a bounded campaign. */
  executions: number;
  load: () => Promise<FuzzTarget>;
}

/** What came of something: a value, or a failure that is foreseen, described. */
export type Outcome<Value> = { value: Value } | { failure: string };

/** The outcome of `work`, which may fail with these codes; any other failure is thrown. */
export function attempt<Value>(codes: readonly ErrorCode[], work: () => Value): Outcome<Value> {
  try {
    return { value: work() };
  } catch (error) {
    return { failure: describeForeseen(codes, error) };
  }
}

/** As {@link attempt}. */
export async function attemptAsync<Value>(
  codes: readonly ErrorCode[],
  work: () => Promise<Value>,
): Promise<Outcome<Value>> {
  try {
    return { value: await work() };
  } catch (error) {
    return { failure: describeForeseen(codes, error) };
  }
}

/** How large something is, roughly: a description with exact numbers would tell all inputs apart. */
export function magnitude(value: number): number {
  return value < 2 ** 32 ? 32 - Math.clz32(value) : 33;
}

function describeForeseen(codes: readonly ErrorCode[], error: unknown): string {
  if (!isClipError(error) || !codes.includes(error.code)) throw error;
  const [line = ""] = error.message.split("\n");
  const shape = line.replaceAll(/"(?:[^"\\]|\\.)*"?/g, '""').replaceAll(/\d+/g, "#");
  return `${error.code} ${shape.slice(0, 200)}`;
}
