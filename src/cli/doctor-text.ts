/** What `clip doctor` prints for a person. */
import type { Report, ReportedFinding } from "../daemon/doctor/finding.ts";

/** A report, the worst first. */
export function formatReport({ running, well, checks, findings }: Report): string {
  const order = ["error", "warning", "note"];
  const sorted = findings.toSorted((a, b) => order.indexOf(a.severity) - order.indexOf(b.severity));
  const examined = running ? "the daemon examined itself" : "no daemon runs";
  const verdict = well ? "all is well" : "something is not well";
  return `${sorted.map(formatFinding).join("")}${examined}: ${checks.length} checks, ${verdict}\n`;
}

function formatFinding(finding: ReportedFinding): string {
  const { severity, check, what, where, advice, outcome, error } = finding;
  const outcomes = {
    left: finding.repairable ? `${advice} (--repair)` : advice,
    repaired: "Repaired.",
    failed: `The repair failed: ${error ?? ""}`,
  };
  const reason = outcome === "left" && error !== undefined ? `  ${error}\n` : "";
  return `${severity}: ${check}: ${what}\n  ${where}\n${reason}  ${outcomes[outcome]}\n`;
}
