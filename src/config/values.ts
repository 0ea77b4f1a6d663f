/** Kinds of values that the configuration has. */
import * as v from "valibot";

/** The path of a file or directory. */
export const path = v.pipe(v.string(), v.startsWith("/", "must be an absolute path"));

/** A whole number between these. */
export const count = (min: number, max: number) =>
  v.pipe(v.number(), v.integer(), v.minValue(min), v.maxValue(max));

/** A whole number between these, or 0 for none. */
export const zeroOr = (min: number, max: number) =>
  v.pipe(
    count(0, max),
    v.check((value) => value === 0 || value >= min, `must be 0 or at least ${min}`),
  );

/** A time that something may take: up to a day. */
export const milliseconds = count(1, 24 * 3600 * 1000);
