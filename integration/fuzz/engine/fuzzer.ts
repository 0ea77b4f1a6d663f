/** Tries inputs on one target, and keeps those that make it behave in a new way. */
import { describeError } from "../../../src/base/errors.ts";
import { mutate } from "./mutate.ts";
import { Random } from "./random.ts";
import type { FuzzTarget } from "./target.ts";

/** An input that is not handled as it should be. */
export interface Finding {
  /** What went wrong, and where. */
  problem: string;
  input: Buffer;
}

/** What a {@link Fuzzer} works with. */
export interface FuzzerOptions {
  target: FuzzTarget;
  seed: number;
  /** Inputs that are tried first. */
  corpus: readonly Buffer[];
  /** Told of each input before it is tried. */
  onInput: (input: Buffer) => void;
  onFinding: (finding: Finding) => void;
}

/** Inputs kept; beyond that a new one takes the place of another. */
const keptMax = 2000;
/** Kinds of findings after which a target is left alone: it needs mending first. */
const findingsMax = 8;
const bytesMaxDefault = 4096;

/** See the module. The same seed and corpus give the same inputs. */
export class Fuzzer {
  readonly #options: FuzzerOptions;
  readonly #random: Random;
  readonly #bytesMax: number;
  readonly #dictionary: readonly Buffer[];
  readonly #behaviours = new Set<string>();
  readonly #problems = new Set<string>();
  readonly #kept: Buffer[] = [];
  readonly #fresh: Buffer[] = [];
  #executions = 0;

  constructor(options: FuzzerOptions) {
    const { target, seed } = options;
    this.#options = options;
    this.#random = new Random(seed);
    this.#bytesMax = target.bytesMax ?? bytesMaxDefault;
    this.#dictionary = (target.dictionary ?? []).map((word) => Buffer.from(word));
  }

  /** How many inputs have been tried. */
  get executions(): number {
    return this.#executions;
  }

  /** How many ways of behaving there are. */
  get behaviours(): number {
    return this.#behaviours.size;
  }

  /** Inputs that were the first to behave in their way and are not in the corpus. */
  get fresh(): readonly Buffer[] {
    return this.#fresh;
  }

  /** Tries inputs until `isOver` says so, or until there are too many findings. */
  async run(isOver: (executions: number) => boolean): Promise<void> {
    const { target, corpus } = this.#options;
    for (const input of corpus) await this.#try(input, true);
    for (const input of target.seeds()) await this.#try(input, false);
    while (!isOver(this.#executions) && this.#problems.size < findingsMax) {
      const attempt = this.#try(this.#next(), false);
      // Most targets are synchronous: waiting for each would take longer than trying it.
      if (attempt !== undefined) await attempt;
    }
  }

  #next(): Buffer {
    const random = this.#random;
    const { target } = this.#options;
    if (this.#kept.length === 0 || (target.generate !== undefined && random.oneIn(8))) {
      return target.generate?.(random) ?? random.bytes(random.below(64));
    }
    // What was found last leads on more often.
    const kept = this.#kept.length;
    const from = random.oneIn(2) ? 0 : Math.floor((kept * 3) / 4);
    const base = this.#kept[from + random.below(kept - from)] ?? Buffer.alloc(0);
    const sources = { dictionary: this.#dictionary, corpus: this.#kept, bytesMax: this.#bytesMax };
    const changed =
      target.change !== undefined && !random.oneIn(3)
        ? target.change(base, random)
        : mutate(base, random, sources);
    const mended = target.mend !== undefined && !random.oneIn(8) ? target.mend(changed) : changed;
    return mended.length > this.#bytesMax ? mended.subarray(0, this.#bytesMax) : mended;
  }

  #try(input: Buffer, isKnown: boolean): Promise<void> | undefined {
    this.#executions++;
    this.#options.onInput(input);
    try {
      const behaviour = this.#options.target.run(input);
      if (typeof behaviour === "string") {
        this.#learn(behaviour, input, isKnown);
        return undefined;
      }
      return behaviour.then(
        (settled) => this.#learn(settled, input, isKnown),
        (error: unknown) => this.#report(error, input),
      );
    } catch (error) {
      this.#report(error, input);
      return undefined;
    }
  }

  #learn(behaviour: string, input: Buffer, isKnown: boolean): void {
    if (this.#behaviours.has(behaviour) && !isKnown) return;
    this.#behaviours.add(behaviour);
    const own = Buffer.from(input);
    if (!isKnown) this.#fresh.push(own);
    if (this.#kept.length < keptMax) this.#kept.push(own);
    else this.#kept[this.#random.below(keptMax)] = own;
  }

  #report(error: unknown, input: Buffer): void {
    const kind = kindOf(error);
    if (this.#problems.has(kind)) return;
    this.#problems.add(kind);
    const stack = error instanceof Error ? (error.stack ?? "") : "";
    const problem = `${describeError(error)}\n${stack}`;
    this.#options.onFinding({ problem, input: Buffer.from(input) });
  }
}

/** Failures at the same place are one finding. */
function kindOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const place = /\n\s+at .*/.exec(error.stack ?? "")?.[0] ?? "";
  return `${error.name} ${place}`;
}
