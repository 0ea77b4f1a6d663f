/** What a check can find. */

/**
 * `error`: something does not work; `warning`: something is damaged, lost or left over, or soon will
 * not work; `note`: worth knowing, and well.
 */
export type Severity = "error" | "warning" | "note";

/** Something that is not as it should be. */
export interface Finding {
  severity: Severity;
  /** What is wrong: a sentence without the place. */
  what: string;
  /** A path, a name, an address. */
  where: string;
  /** What a person can do about it, or what becomes of it by itself. */
  advice: string;
  /** Puts it right; absent: that is up to a person. */
  repair?: () => Promise<void>;
}

/** What became of a finding: `left` as it was, `repaired`, or the repair failed. */
export type Outcome = "left" | "repaired" | "failed";

/** A finding as it is told. */
export interface ReportedFinding extends Omit<Finding, "repair"> {
  /** Name of the check. */
  check: string;
  repairable: boolean;
  outcome: Outcome;
  /** Why the repair failed. */
  error?: string;
}

/** What `clip doctor` says. */
export interface Report {
  /** Whether a daemon was asked; otherwise its directories were examined without one. */
  running: boolean;
  /** Nothing is left but notes. */
  well: boolean;
  /** Names of the checks that were made. */
  checks: string[];
  findings: ReportedFinding[];
}
