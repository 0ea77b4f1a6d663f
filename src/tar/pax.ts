/** PAX extended headers (IEEE Std 1003.1, "pax Extended Header"), with their values as bytes. */
import { corrupt, exceeded } from "./failure.ts";

/** A record `keyword=value`. */
export interface PaxRecord {
  keyword: string;
  value: Buffer;
}

/** Seconds since 1970, which may be negative, and nanoseconds, which count upwards from them. */
export interface PaxTime {
  seconds: number;
  nanoseconds: number;
}

const newline = 0x0a;
const equals = 0x3d;

/**
 * The records of an extended header in their order; keywords are read as latin1, so that each byte
 * is one character. Values are copies.
 * @throws ClipError CORRUPT_TAR
 */
export function parsePaxRecords(data: Buffer): PaxRecord[] {
  const records: PaxRecord[] = [];
  let at = 0;
  while (at < data.length) {
    const blank = data.indexOf(0x20, at);
    if (blank === -1 || blank - at > 10) throw corrupt("a PAX record has no length");
    const length = parseDecimal(data.toString("latin1", at, blank), "length of a PAX record");
    const end = at + length;
    if (length < 1 || end > data.length || end <= blank + 1 || data[end - 1] !== newline) {
      throw corrupt("the length of a PAX record is wrong");
    }
    const separator = data.indexOf(equals, blank);
    if (separator === -1 || separator >= end - 1) {
      throw corrupt("a PAX record has no equals sign");
    }
    const keyword = data.toString("latin1", blank + 1, separator);
    if (keyword.length === 0) throw corrupt("a PAX record has no keyword");
    records.push({ keyword, value: Buffer.from(data.subarray(separator + 1, end - 1)) });
    at = end;
  }
  return records;
}

/**
 * A decimal number as PAX records have them.
 * @throws ClipError CORRUPT_TAR for anything else, LIMIT_EXCEEDED beyond 2^53.
 */
export function parseDecimal(text: string, what: string): number {
  if (!/^\d{1,400}$/.test(text)) throw corrupt(`the ${what} is not a number`);
  const value = Number(text);
  if (value > Number.MAX_SAFE_INTEGER) throw exceeded(`the ${what}`, value, 2 ** 53);
  return value;
}

/**
 * A time as PAX records have them: decimal seconds, perhaps negative, perhaps with a fraction, of
 * which what is finer than nanoseconds is cut off.
 * @throws ClipError CORRUPT_TAR, LIMIT_EXCEEDED
 */
export function parseTime(text: string): PaxTime {
  const match = /^(-?)(\d{1,400})(?:\.(\d*))?$/.exec(text);
  if (match === null) throw corrupt("a modification time is not a number");
  const whole = parseDecimal(match[2] ?? "", "modification time");
  const fraction = Number((match[3] ?? "").slice(0, 9).padEnd(9, "0"));
  if (match[1] === "") return { seconds: whole, nanoseconds: fraction };
  if (fraction === 0) return { seconds: 0 - whole, nanoseconds: 0 };
  return { seconds: -1 - whole, nanoseconds: 1e9 - fraction };
}
