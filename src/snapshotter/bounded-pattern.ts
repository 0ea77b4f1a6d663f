/** Regular expressions of clients: some take longer than the universe lasts, on texts of 30 characters. */
import { createContext, Script, type Context } from "node:vm";
import { ClipError } from "../base/errors.ts";

/** How long one filter may look for its pattern, in all snapshots together. */
const budgetMs = 500;

interface Sandbox {
  pattern: RegExp;
  text: string;
}

const script = new Script("pattern.test(text)");
let shared: { context: Context; sandbox: Partial<Sandbox> } | undefined;

/** A pattern whose search is ended when it takes too long. */
export class BoundedPattern {
  readonly #pattern: RegExp;
  #leftMs = budgetMs;

  /** @throws ClipError ARGUMENT_INVALID */
  constructor(source: string) {
    // Go's regular expressions know flags at their beginning; otherwise the common ones are the same.
    const flags = /^\(\?([ims]+)\)/.exec(source);
    try {
      this.#pattern = new RegExp(source.slice(flags?.[0].length ?? 0), flags?.[1]);
    } catch (error) {
      const shown = JSON.stringify(source.slice(0, 200));
      throw new ClipError("ARGUMENT_INVALID", `filter has a bad regular expression: ${shown}`, {
        cause: error,
      });
    }
  }

  /**
   * Whether the pattern is in `text`.
   * @throws ClipError ARGUMENT_INVALID when that takes too long to find out
   */
  test(text: string): boolean {
    // Only what runs in a context of its own can be interrupted.
    if (shared === undefined) {
      const sandbox = {};
      shared = { context: createContext(sandbox), sandbox };
    }
    const { context, sandbox } = shared;
    Object.assign(sandbox, { pattern: this.#pattern, text } satisfies Sandbox);
    const began = performance.now();
    try {
      const timeout = Math.max(1, Math.ceil(this.#leftMs));
      return script.runInContext(context, { timeout }) === true;
    } catch (error) {
      throw new ClipError("ARGUMENT_INVALID", "the regular expression of a filter takes too long", {
        cause: error,
      });
    } finally {
      this.#leftMs -= performance.now() - began;
    }
  }
}
