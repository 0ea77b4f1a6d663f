/**
 * containerd's filters over snapshots: `selector ("," selector)*`, where a selector is
 * `field ("." field)* [("==" | "!=" | "~=") value]`, and fields and values may be quoted as in Go.
 */
import { BoundedPattern } from "./bounded-pattern.ts";
import { FilterScanner } from "./filter-scanner.ts";
import { refLabel, type Snapshot } from "./snapshot.ts";

/** Whether a snapshot is wanted. */
export interface SnapshotFilter {
  matches: (snapshot: Snapshot) => boolean;
  /** Set when only snapshots with this parent and this ref label can match: containerd's look-up. */
  lookup?: { parent: string; ref: string };
}

/**
 * Understands the filters of a List: alternatives, none of them meaning all.
 * @throws ClipError ARGUMENT_INVALID
 */
export function parseFilters(filters: readonly string[]): SnapshotFilter {
  const alternatives = filters.map(parseFilter);
  if (alternatives.length === 0) return { matches: () => true };
  const matches = (snapshot: Snapshot) =>
    alternatives.some((selectors) => selectors.every((selector) => accepts(selector, snapshot)));
  const [only] = alternatives;
  const lookup = alternatives.length === 1 && only !== undefined ? lookupOf(only) : undefined;
  return { matches, ...(lookup === undefined ? {} : { lookup }) };
}

type Operator = "present" | "==" | "!=" | "~=";

interface Selector {
  path: string[];
  operator: Operator;
  value: string;
  pattern: BoundedPattern | undefined;
}

function parseFilter(text: string): Selector[] {
  // As in containerd, the empty filter accepts everything.
  if (text === "") return [];
  const scanner = new FilterScanner(text);
  const selectors: Selector[] = [];
  do selectors.push(parseSelector(scanner));
  while (scanner.take(","));
  scanner.expectEnd();
  return selectors;
}

function parseSelector(scanner: FilterScanner): Selector {
  const path = [scanner.field()];
  while (scanner.take(".")) path.push(scanner.field());
  const operator = scanner.operator();
  if (operator === undefined) return { path, operator: "present", value: "", pattern: undefined };
  const value = scanner.value(operator === "~=");
  return {
    path,
    operator,
    value,
    pattern: operator === "~=" ? new BoundedPattern(value) : undefined,
  };
}

function accepts(selector: Selector, snapshot: Snapshot): boolean {
  const value = fieldOf(selector.path, snapshot);
  if (selector.operator === "present") return value !== undefined;
  if (selector.operator === "==") return value === selector.value;
  if (selector.operator === "!=") return value !== selector.value;
  // containerd matches a field that is not there as an empty one.
  return selector.pattern?.test(value ?? "") === true;
}

function fieldOf([first, ...rest]: string[], snapshot: Snapshot): string | undefined {
  if (first === "labels") return snapshot.labels.get(rest.join("."));
  if (rest.length > 0) return undefined;
  return first === "name" || first === "parent" || first === "kind" ? snapshot[first] : undefined;
}

function lookupOf(selectors: readonly Selector[]): { parent: string; ref: string } | undefined {
  const equal = (field: string) =>
    selectors.find(({ path, operator }) => operator === "==" && path.join(".") === field)?.value;
  const parent = equal("parent");
  const ref = equal(`labels.${refLabel}`);
  return parent === undefined || ref === undefined ? undefined : { parent, ref };
}
