/** A private clip daemon, and its command line. */
import { readdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { run, Service, type CommandOptions } from "./command.ts";
import { mountsBelow, type Sandbox } from "./sandbox.ts";
import { repositoryRoot, toolEnvironment } from "./tools.ts";

/** The command line. */
export const clipProgram = path.join(repositoryRoot, "bin", "clip");

/** Keys of clip's configuration file by section; `""` is the top. */
export type ClipSettings = Readonly<Record<string, Readonly<Record<string, unknown>>>>;

/** How the daemon is started. */
export interface ClipOptions {
  /** Where containerd will listen. */
  containerdAddress: string;
  /** Its directory in the sandbox; `clip` by default. */
  name?: string;
  /** Network namespace that it runs in. */
  networkNamespace?: string | undefined;
  /** Written into its configuration file. */
  settings?: ClipSettings;
  /** Further environment variables. */
  environment?: Readonly<Record<string, string>>;
}

/** A clip daemon that is running. */
export class ClipDaemon {
  readonly root: string;
  readonly state: string;
  readonly address: string;
  readonly configFile: string;
  readonly logFile: string;
  readonly #options: ClipOptions;
  #service: Service | undefined;

  private constructor(sandbox: Sandbox, options: ClipOptions) {
    const directory = sandbox.path(options.name ?? "clip");
    this.#options = options;
    this.root = path.join(directory, "root");
    this.state = path.join(directory, "state");
    this.address = path.join(directory, "clip.sock");
    this.configFile = path.join(directory, "clip.toml");
    this.logFile = path.join(directory, "log");
  }

  /** Writes its configuration, starts it and waits for its line. */
  static async start(sandbox: Sandbox, options: ClipOptions): Promise<ClipDaemon> {
    const daemon = new ClipDaemon(sandbox, options);
    await sandbox.subdirectory(options.name ?? "clip");
    await writeFile(daemon.configFile, tomlOf(options.settings ?? {}));
    sandbox.onClose("clip", () => daemon.stop());
    await daemon.start();
    return daemon;
  }

  /** Starts it again after `stop`. */
  async start(): Promise<void> {
    const linesBefore = this.#service?.output().match(READY)?.length ?? 0;
    this.#service = await Service.start({
      name: "clip daemon",
      command: clipProgram,
      args: [
        ...["daemon", "--root", this.root, "--state", this.state, "--address", this.address],
        ...["--containerd", this.#options.containerdAddress, "--config", this.configFile],
      ],
      env: { ...toolEnvironment(), ...this.#options.environment },
      networkNamespace: this.#options.networkNamespace,
      logFile: this.logFile,
      isReady: (output) => (output.match(READY)?.length ?? 0) > linesBefore,
    });
  }

  /** Ends it with SIGTERM, or as told, and waits for its end. */
  async stop(signal?: NodeJS.Signals): Promise<void> {
    await this.#service?.stop(signal);
  }

  get pid(): number {
    return this.#service?.pid ?? 0;
  }

  /** What it has logged so far. */
  log(): string {
    return this.#service?.output() ?? "";
  }

  /** Mounts below its directories, which may be mounts themselves. */
  mounts(): string[] {
    const below = [this.root, this.state];
    return below.flatMap(mountsBelow).filter((mountpoint) => !below.includes(mountpoint));
  }

  /** Names of the directories of snapshots that it keeps. */
  async snapshotDirectories(): Promise<string[]> {
    try {
      return await readdir(path.join(this.root, "s"));
    } catch {
      return [];
    }
  }
}

const READY = /^clip is ready\b.*$/gm;

/** Runs `clip` to its end. */
export function clip(args: readonly string[], options: CommandOptions = {}): Promise<string> {
  return run(clipProgram, args, { ...options, env: { ...toolEnvironment(), ...options.env } });
}

function tomlOf(settings: ClipSettings): string {
  return Object.entries(settings)
    .toSorted(([a], [b]) => Number(a !== "") - Number(b !== ""))
    .map(([section, keys]) => {
      const assignments = Object.entries(keys).map(([key, value]) => `${key} = ${inline(value)}\n`);
      return `${section === "" ? "" : `[${section}]\n`}${assignments.join("")}`;
    })
    .join("\n");
}

function inline(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(inline).join(", ")}]`;
  if (typeof value === "object" && value !== null) {
    const pairs = Object.entries(value).map(([key, inner]) => `${key} = ${inline(inner)}`);
    return `{ ${pairs.join(", ")} }`;
  }
  return JSON.stringify(value);
}
