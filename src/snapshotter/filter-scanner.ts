/** The words of a containerd filter. */
import { ClipError } from "../base/errors.ts";

const escapes: Record<string, number> = {
  a: 7,
  b: 8,
  f: 12,
  n: 10,
  r: 13,
  t: 9,
  v: 11,
  "\\": 92,
};

/** Reads a filter from left to right; space before a word is skipped. */
export class FilterScanner {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  /** Takes `separator` if it comes next. */
  take(separator: "," | "."): boolean {
    return this.#match(separator === "," ? /\s*,/y : /\s*\./y) !== undefined;
  }

  /** @throws ClipError ARGUMENT_INVALID unless all has been read */
  expectEnd(): void {
    this.#match(/\s*/y);
    if (this.#at !== this.#text.length) throw this.#error("expected a comma or the end");
  }

  /** The name of a field. @throws ClipError ARGUMENT_INVALID */
  field(): string {
    const plain = this.#match(/\s*[A-Za-z0-9_]+/y);
    return plain?.trim() ?? this.#quoted('"') ?? this.#fail("expected a field");
  }

  /** An operator, undefined where a selector ends without one. @throws ClipError ARGUMENT_INVALID */
  operator(): "==" | "!=" | "~=" | undefined {
    const operator = this.#match(/\s*[=!~]+/y)?.trim();
    if (operator === undefined) return undefined;
    if (operator === "==" || operator === "!=" || operator === "~=") return operator;
    throw this.#error(`there is no operator ${operator}`);
  }

  /** A value; patterns may also be quoted with / and |. @throws ClipError ARGUMENT_INVALID */
  value(isPattern: boolean): string {
    const quoted = this.#quoted(isPattern ? '"/|' : '"');
    if (quoted !== undefined) return quoted;
    const plain = this.#match(/\s*[^\s,"/|=!~][^\s,]*/y);
    return plain?.trim() ?? this.#fail("expected a value");
  }

  #quoted(quotes: string): string | undefined {
    this.#match(/\s*/y);
    const quote = this.#text[this.#at];
    if (quote === undefined || !quotes.includes(quote)) return undefined;
    this.#at++;
    const parts: Buffer[] = [];
    for (;;) {
      const plain = this.#match(quotePatterns[quote] ?? /[^]/y);
      if (plain !== undefined) parts.push(Buffer.from(plain));
      else if (this.#text[this.#at] === quote) break;
      else if (this.#text[this.#at] === "\\") parts.push(this.#escape(quote));
      else throw this.#error("a quoted word does not end");
    }
    this.#at++;
    return Buffer.concat(parts).toString();
  }

  // Escapes of bytes may together be one UTF-8 character, hence bytes.
  #escape(quote: string): Buffer {
    const escape = this.#match(
      /\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-3][0-7]{2}|[^xuU0-9])/y,
    );
    const kind = escape?.[1];
    if (escape === undefined || kind === undefined) throw this.#error("not an escape");
    if (kind === quote) return Buffer.from(quote);
    const known = escapes[kind];
    if (known !== undefined) return Buffer.from([known]);
    if (kind === "x") return Buffer.from(escape.slice(2), "hex");
    if (kind >= "0" && kind <= "7") return Buffer.from([Number.parseInt(escape.slice(1), 8)]);
    const codePoint = Number.parseInt(escape.slice(2), 16);
    const known32 = (kind === "u" || kind === "U") && codePoint <= 0x10ffff;
    if (!known32) throw this.#error("not an escape");
    return Buffer.from(String.fromCodePoint(codePoint));
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text)?.[0];
    if (found !== undefined) this.#at += found.length;
    return found;
  }

  #fail(expected: string): never {
    throw this.#error(expected);
  }

  #error(problem: string): ClipError {
    const shown = JSON.stringify(this.#text.slice(0, 200));
    return new ClipError("ARGUMENT_INVALID", `filter ${shown}, at ${this.#at}: ${problem}`);
  }
}

const quotePatterns: Record<string, RegExp> = {
  '"': /[^"\\\n]+/y,
  "/": /[^/\\\n]+/y,
  "|": /[^|\\\n]+/y,
};
