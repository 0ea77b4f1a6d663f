/** The outcome of `clip cache verify` for a person's terminal. */
import type { LayerCheck } from "../layer/verify-cache.ts";
import { formatBytes, formatTable } from "./text.ts";

/** Digits of a digest that tell layers apart. */
const digestDigits = 12;

/** Whether nothing is damaged any more. */
export function isWell(checks: readonly LayerCheck[]): boolean {
  return checks.every(
    ({ damaged, repaired, image }) => damaged === repaired && image !== "damaged",
  );
}

/** A table of the layers, and a sentence about all of them. */
export function formatChecks(checks: readonly LayerCheck[]): string {
  const names = ["LAYER", "CHECKED", "SPANS", "DAMAGED", "REPAIRED", "METADATA"];
  const rows = checks.map(({ layerDigest, bytes, spans, damaged, repaired, image }) => [
    layerDigest.slice("sha256:".length).slice(0, digestDigits),
    formatBytes(bytes),
    `${spans}`,
    `${damaged}`,
    `${repaired}`,
    image,
  ]);
  return `${formatTable(names, rows)}\n${summary(checks)}\n`;
}

function summary(checks: readonly LayerCheck[]): string {
  const sum = (value: (check: LayerCheck) => number) =>
    checks.reduce((total, check) => total + value(check), 0);
  const damaged = sum((check) => check.damaged);
  const images = sum(({ image }) => (image === "damaged" || image === "repaired" ? 1 : 0));
  if (damaged + images === 0) return "everything on disk is right";
  const found = `damage was found in ${damaged} spans and ${images} metadata images`;
  if (isWell(checks)) return `${found}, and repaired`;
  const left = damaged - sum((check) => check.repaired);
  return (
    `${found}; ${left} spans are not on disk any more and are fetched again when somebody reads ` +
    "them (--repair fetches them at once)"
  );
}
