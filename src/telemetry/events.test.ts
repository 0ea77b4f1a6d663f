import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { digestKey, digestOf } from "../base/digest.ts";
import * as events from "./events.ts";
import type { Log } from "./log.ts";

const layer = digestOf(Buffer.from("layer"));
const cached = { layer, cacheKey: `${digestKey(layer)}.blob` };
const range = { offset: 4096, length: 5000 };

interface Line {
  level: string;
  fields: Record<string, unknown>;
  message: string;
}

/** What is logged by `write`. */
function linesOf(write: (log: Log) => void): Line[] {
  const lines: Line[] = [];
  const at = (level: string) => (fields: unknown, message?: unknown) =>
    void lines.push({ level, fields: fields as Record<string, unknown>, message: String(message) });
  const log: Log = {
    debug: at("debug"),
    info: at("info"),
    warn: at("warn"),
    error: at("error"),
    fatal: at("fatal"),
    child: () => log,
  };
  write(log);
  return lines;
}

const all = linesOf((log) => {
  events.layerMissed(log, layer, { host: "registry.example.com" });
  events.layerCached(log, layer, { bytes: 10, path: "/c", durationMs: 3 });
  events.contentCacheNotConfigured(log);
  events.storeQueued(log, cached, { bytes: 10 });
  events.storeBegun(log, cached, { path: "/c" });
  events.storeDone(log, cached, { bytes: 10, durationMs: 3, stored: true });
  events.storeFailed(log, cached, { bytes: 10, durationMs: 3, error: "full", retryMs: 1000 });
  events.rangeReadTried(log, cached, range);
  events.rangeReadHit(log, cached, { ...range, bytes: 5000, durationMs: 3 });
  events.rangeReadMissed(log, cached, { ...range, durationMs: 3, error: "down" });
  events.contentCacheLeftAlone(log, { cache: "redis", error: "down" });
  events.contentCacheUsedAgain(log, { cache: "redis" });
});

void test("docs/metrics.md lists each event with its level, wording and fields", async () => {
  const text = await readFile(new URL("../../docs/metrics.md", import.meta.url), "utf8");
  const rows = text
    .split("\n")
    .filter((line) => /^\| (debug|info|warn|error) /.test(line))
    .map((line) => line.split("|").map((cell) => cell.trim()));
  const told = rows.map(([, level, message = "", fields = ""]) => ({
    level,
    message: message.replaceAll("`", ""),
    fields: [...fields.matchAll(/`(\w+)`/g)].map(([, name]) => name),
  }));
  const written = all.map(({ level, message, fields }) => ({
    level,
    message,
    fields: Object.keys(fields),
  }));
  assert.deepEqual(told, written);
});

void test("a layer on disk has the key of its file, one in a cache that of its object", () => {
  const keys = all.flatMap(({ fields }) => ("layer" in fields ? [fields["cacheKey"]] : []));
  assert.deepEqual(keys.slice(0, 2), [digestKey(layer), digestKey(layer)]);
  assert.ok(keys.slice(2).every((key) => key === cached.cacheKey));
});
