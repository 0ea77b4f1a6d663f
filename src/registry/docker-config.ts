/** Credentials for registries from Docker's configuration file and its credential helpers. */
import { readFile, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import * as v from "valibot";
import { ClipError } from "../base/errors.ts";
import { askCredentialHelper } from "./credential-helper.ts";
import type { Credentials } from "./credentials.ts";

const authSchema = v.object({
  auth: v.optional(v.string()),
  username: v.optional(v.string()),
  password: v.optional(v.string()),
  identitytoken: v.optional(v.string()),
  registrytoken: v.optional(v.string()),
});
const configSchema = v.object({
  auths: v.optional(v.record(v.string(), authSchema), {}),
  credsStore: v.optional(v.string()),
  credHelpers: v.optional(v.record(v.string(), v.string()), {}),
});
type DockerConfigFile = v.InferOutput<typeof configSchema>;

/** Where Docker's configuration is unless told otherwise: `$DOCKER_CONFIG` or `~/.docker`. */
function defaultDockerConfigPath(): string {
  return join(process.env["DOCKER_CONFIG"] ?? join(homedir(), ".docker"), "config.json");
}

/** Docker's configuration file; read again whenever it has changed. */
export class DockerConfig {
  /** Where it is, or would be. */
  readonly path: string;
  #version = "";
  #file: DockerConfigFile = { auths: {}, credHelpers: {} };

  constructor(path: string = defaultDockerConfigPath()) {
    this.path = path;
  }

  /**
   * The credentials for a registry host; undefined where there are none.
   * @throws ClipError CONFIG_INVALID when the file cannot be understood, or a helper fails
   */
  async credentials(host: string, signal?: AbortSignal): Promise<Credentials | undefined> {
    const file = await this.#read();
    const keys = configKeys(host);
    const helper = keys.map((key) => file.credHelpers[key]).find(Boolean) ?? file.credsStore;
    if (helper !== undefined && helper !== "") {
      for (const key of keys) {
        const found = await askCredentialHelper(helper, key, signal);
        if (found !== undefined) return found;
      }
    }
    for (const [key, auth] of Object.entries(file.auths)) {
      if (keys.includes(key) || keys.includes(hostOfKey(key))) return fromAuth(auth);
    }
    return undefined;
  }

  /** Reads the file, if there is one. @throws ClipError CONFIG_INVALID when it cannot be understood */
  async check(): Promise<void> {
    await this.#read();
  }

  async #read(): Promise<DockerConfigFile> {
    try {
      const { mtimeMs, size, ino } = await stat(this.path);
      const version = `${mtimeMs} ${size} ${ino}`;
      if (version !== this.#version) {
        this.#file = v.parse(configSchema, JSON.parse(await readFile(this.path, "utf8")));
        this.#version = version;
      }
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === "ENOENT" || code === "ENOTDIR") {
        this.#version = "";
        this.#file = { auths: {}, credHelpers: {} };
      } else {
        // The file is full of secrets: messages of its parsers may quote them.
        const why = code ?? "it is not what Docker writes";
        throw new ClipError("CONFIG_INVALID", `cannot read ${this.path}: ${why}`);
      }
    }
    return this.#file;
  }
}

// Docker Hub's credentials stand under the address of its first version.
function configKeys(host: string): string[] {
  if (host === "docker.io" || host === "registry-1.docker.io") {
    return ["https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"];
  }
  return [host];
}

// Old clients wrote whole URLs as keys.
function hostOfKey(key: string): string {
  return key.replace(/^https?:\/\//, "").replace(/\/.*$/, "");
}

function fromAuth(auth: v.InferOutput<typeof authSchema>): Credentials | undefined {
  if (auth.registrytoken) return { kind: "registry-token", token: auth.registrytoken };
  if (auth.identitytoken) return { kind: "identity-token", token: auth.identitytoken };
  if (auth.auth) {
    const decoded = Buffer.from(auth.auth, "base64").toString("utf8").replace(/\0+$/, "");
    const colon = decoded.indexOf(":");
    if (colon < 0) return undefined;
    const [username, password] = [decoded.slice(0, colon), decoded.slice(colon + 1)];
    return { kind: "password", username, password };
  }
  if (auth.username !== undefined && auth.password !== undefined) {
    return { kind: "password", username: auth.username, password: auth.password };
  }
  return undefined;
}
