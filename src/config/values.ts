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

/** The URL of a server. Passwords have no place in it: the configuration is shown and logged. */
export const serverUrl = v.pipe(
  v.string(),
  v.check((text) => {
    const url = URL.canParse(text) ? new URL(text) : undefined;
    return url !== undefined && url.username === "" && url.password === "" && url.search === "";
  }, "must be a URL without user, password and query"),
);
