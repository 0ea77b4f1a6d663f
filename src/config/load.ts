/** Reading the configuration file, and showing the effective configuration. */
import { readFile } from "node:fs/promises";
import { parse, stringify } from "smol-toml";
import * as v from "valibot";
import { ClipError, describeError } from "../base/errors.ts";
import { configSchema, type Config } from "./schema.ts";

/** What command-line flags may override; absent means: as the file says. */
export interface ConfigOverrides {
  root?: string | undefined;
  state?: string | undefined;
  address?: string | undefined;
  containerd?: string | undefined;
  mountMode?: string | undefined;
  logLevel?: string | undefined;
}

/**
 * The effective configuration: defaults, then the file, then the flags.
 * @throws ClipError CONFIG_INVALID naming the file and the key.
 */
export async function loadConfig(
  file: string | undefined,
  overrides: ConfigOverrides,
): Promise<Config> {
  const text = file === undefined ? "" : await readConfigFile(file);
  return parseConfig(text, file ?? "flags", overrides);
}

/** {@link loadConfig} for a text that has been read; `origin` names it in messages. */
export function parseConfig(text: string, origin: string, overrides: ConfigOverrides = {}): Config {
  const table = renameKeys(parseToml(text, origin), toCamelCase) as Table;
  override(table, [], "root", overrides.root);
  override(table, [], "state", overrides.state);
  override(table, [], "address", overrides.address);
  override(table, ["containerd"], "address", overrides.containerd);
  override(table, ["mount"], "mode", overrides.mountMode);
  override(table, ["log"], "level", overrides.logLevel);
  const result = v.safeParse(configSchema, table);
  if (result.success) return result.output;
  const issue = result.issues[0];
  const key = toSnakeCase(v.getDotPath(issue) ?? "");
  throw new ClipError("CONFIG_INVALID", `${origin}: ${key}: ${issue.message}`, {
    hint: "`clip config show` prints every key; config/clip.toml explains them",
  });
}

/** The configuration as TOML. */
export function formatConfig(config: Config): string {
  return stringify(renameKeys(config, toSnakeCase));
}

type Table = Record<string, unknown>;

async function readConfigFile(file: string): Promise<string> {
  try {
    return await readFile(file, "utf8");
  } catch (error) {
    throw new ClipError("CONFIG_INVALID", `cannot read the configuration file ${file}`, {
      cause: error,
    });
  }
}

function parseToml(text: string, origin: string): unknown {
  try {
    return parse(text);
  } catch (error) {
    throw new ClipError("CONFIG_INVALID", `${origin} is not TOML: ${describeError(error)}`);
  }
}

function override(table: Table, parents: string[], key: string, value: string | undefined): void {
  if (value === undefined) return;
  let at = table;
  for (const parent of parents) {
    const existing = at[parent];
    const next: Table = isTable(existing) ? existing : {};
    at[parent] = next;
    at = next;
  }
  at[key] = value;
}

function renameKeys(value: unknown, rename: (key: string) => string): unknown {
  if (Array.isArray(value)) return value.map((item) => renameKeys(item, rename));
  if (!isTable(value)) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, item]) => [rename(key), renameKeys(item, rename)]),
  );
}

function isTable(value: unknown): value is Table {
  return (
    typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date)
  );
}

function toCamelCase(key: string): string {
  return key.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

function toSnakeCase(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}
