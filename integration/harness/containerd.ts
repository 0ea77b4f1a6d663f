/** A private containerd, and the clients that speak to it. */
import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { attempt, run, Service, type CommandOptions, type CommandResult } from "./command.ts";
import type { Sandbox } from "./sandbox.ts";
import {
  cniDirectory,
  containerdDirectory,
  repositoryRoot,
  tool,
  toolEnvironment,
  type ContainerdGeneration,
} from "./tools.ts";

/** How containerd is started. */
export interface ContainerdOptions {
  generation: ContainerdGeneration;
  /** Its directory in the sandbox; `containerd` by default. */
  name?: string;
  /** Network namespace that it runs in. */
  networkNamespace?: string | undefined;
  /** clip's socket; without it containerd knows only its own snapshotters. */
  clipAddress?: string;
  /** What CRI uses; `clip` where clip is there, else `overlayfs`. */
  criSnapshotter?: string;
  /** Have CRI send what layer and image a snapshot is for; true by default. */
  criAnnotations?: boolean;
  /** Image of a pod's sandbox. Pods cannot run without. */
  pauseImage?: string;
  /** Decode gzip without other programs, as where neither igzip nor pigz is installed. */
  ownGzip?: boolean;
  /** Use the file that `config/` has for people, instead of a configuration for tests. */
  asDocumented?: boolean;
}

/** A containerd that is running. */
export class Containerd {
  readonly generation: ContainerdGeneration;
  readonly address: string;
  readonly directory: string;
  readonly sandbox: Sandbox;
  readonly #environment: Record<string, string>;
  readonly #networkNamespace: string | undefined;
  #service: Service | undefined;

  private constructor(sandbox: Sandbox, options: ContainerdOptions) {
    this.generation = options.generation;
    this.sandbox = sandbox;
    this.directory = sandbox.path(options.name ?? "containerd");
    this.address = path.join(this.directory, "containerd.sock");
    this.#networkNamespace = options.networkNamespace;
    this.#environment = {
      ...toolEnvironment([containerdDirectory(options.generation)]),
      // Temporary mounts of client and server, too, stay in the sandbox.
      TMPDIR: path.join(this.directory, "tmp"),
      ...(options.ownGzip && { CONTAINERD_DISABLE_IGZIP: "1", CONTAINERD_DISABLE_PIGZ: "1" }),
    };
  }

  /** Writes its configuration and starts it. */
  static async start(sandbox: Sandbox, options: ContainerdOptions): Promise<Containerd> {
    const containerd = new Containerd(sandbox, options);
    await mkdir(path.join(containerd.directory, "tmp"), { recursive: true });
    await writeFile(
      path.join(containerd.directory, "config.toml"),
      await configOf(containerd.directory, options),
    );
    await writeCniConfig(containerd.directory);
    await restoreForwarding(sandbox);
    sandbox.onClose("containerd", () => containerd.close());
    await containerd.start();
    return containerd;
  }

  /** Starts it again after `stop`. */
  async start(): Promise<void> {
    this.#service = await Service.start({
      name: `containerd ${this.generation}`,
      command: path.join(containerdDirectory(this.generation), "containerd"),
      args: ["--config", path.join(this.directory, "config.toml")],
      env: this.#environment,
      networkNamespace: this.#networkNamespace,
      logFile: this.logFile,
      isReady: async () => existsSync(this.address) && (await this.#answers()),
    });
  }

  async stop(signal?: NodeJS.Signals): Promise<void> {
    await this.#service?.stop(signal);
  }

  get logFile(): string {
    return path.join(this.directory, "log");
  }

  log(): Promise<string> {
    return readFile(this.logFile, "utf8");
  }

  /** Runs `ctr` of the same generation. */
  ctr(args: readonly string[], options: CommandOptions = {}): Promise<string> {
    return askAgain(args, () =>
      run(this.#program("ctr"), this.#ctrArguments(args), this.#options(options)),
    );
  }

  /** As `ctr`, but a failure is a result. */
  tryCtr(args: readonly string[], options: CommandOptions = {}): Promise<CommandResult> {
    return attempt(this.#program("ctr"), this.#ctrArguments(args), this.#options(options));
  }

  /** Starts `ctr`, to talk to it; it is ended by the caller. */
  spawnCtr(args: readonly string[]): ChildProcessWithoutNullStreams {
    return spawn(this.#program("ctr"), this.#ctrArguments(args), { env: this.#environment });
  }

  /** Runs `nerdctl` in its namespace `default`, without networks of its own. */
  nerdctl(args: readonly string[], options: CommandOptions = {}): Promise<string> {
    return askAgain(args, () =>
      run(tool("nerdctl"), this.#nerdctlArguments(args), this.#options(options)),
    );
  }

  /** As `nerdctl`, but a failure is a result. */
  tryNerdctl(args: readonly string[], options: CommandOptions = {}): Promise<CommandResult> {
    return attempt(tool("nerdctl"), this.#nerdctlArguments(args), this.#options(options));
  }

  /** Removes every container, image and lease in every namespace, and has the garbage collected. */
  async prune(): Promise<void> {
    for (const namespace of lines(await this.ctr(["namespaces", "ls", "-q"]))) {
      const inNamespace = (args: string[]): Promise<CommandResult> =>
        this.tryCtr(["-n", namespace, ...args]);
      const list = async (args: string[]): Promise<string[]> =>
        lines((await inNamespace(args)).stdout.toString("utf8"));
      for (const task of await list(["tasks", "ls", "-q"])) {
        await inNamespace(["tasks", "kill", "--signal", "SIGKILL", task]);
        await inNamespace(["tasks", "rm", "--force", task]);
      }
      for (const container of await list(["containers", "ls", "-q"])) {
        await inNamespace(["containers", "rm", container]);
      }
      for (const lease of await list(["leases", "ls", "-q"])) {
        await inNamespace(["leases", "rm", lease]);
      }
      for (const image of await list(["images", "ls", "-q"])) {
        await inNamespace(["images", "rm", "--sync", image]);
      }
      await inNamespace(["content", "prune", "references"]);
    }
  }

  /** Names of the snapshots that containerd knows, of all namespaces. */
  async snapshots(snapshotter: string): Promise<string[]> {
    const found: string[] = [];
    for (const namespace of lines(await this.ctr(["namespaces", "ls", "-q"]))) {
      const table = await this.ctr([
        "-n",
        namespace,
        "snapshots",
        "--snapshotter",
        snapshotter,
        "ls",
      ]);
      found.push(...lines(table).slice(1));
    }
    return found;
  }

  /** Ends containers and containerd. */
  async close(): Promise<void> {
    try {
      if (this.#service?.running === true) await this.prune();
    } finally {
      await this.stop();
    }
  }

  #program(name: string): string {
    return path.join(containerdDirectory(this.generation), name);
  }

  #ctrArguments(args: readonly string[]): string[] {
    return ["--address", this.address, ...args];
  }

  #nerdctlArguments(args: readonly string[]): string[] {
    return [
      ...["--address", this.address, "--data-root", path.join(this.directory, "nerdctl")],
      ...["--cni-path", cniDirectory, "--cni-netconfpath", path.join(this.directory, "net.d")],
      ...["--cgroup-manager", "cgroupfs", "--hosts-dir", "", "--insecure-registry", ...args],
    ];
  }

  #options(options: CommandOptions): CommandOptions {
    return { ...options, env: { ...this.#environment, ...options.env } };
  }

  async #answers(): Promise<boolean> {
    return (await this.tryCtr(["version"], { timeoutMs: 5000 })).status === 0;
  }
}

/** Clients now and then lose what a container says that ends at once: then it is run again. */
async function askAgain(args: readonly string[], client: () => Promise<string>): Promise<string> {
  const inForeground = args.includes("run") && args.includes("--rm") && !args.includes("-d");
  for (let tries = 0; ; tries++) {
    const output = await client();
    if (output !== "" || !inForeground || tries === 3) return output;
  }
}

/** Lines of an output, without empty ones. */
export function lines(output: string): string[] {
  return output.split("\n").filter((line) => line !== "");
}

async function configOf(directory: string, options: ContainerdOptions): Promise<string> {
  if (options.asDocumented === true) return documentedConfig(directory, options);
  return (options.generation === "1" ? configOfGeneration1 : configOfGeneration2)(
    directory,
    options,
  );
}

/** The file for people, with other places and nothing else. */
async function documentedConfig(directory: string, options: ContainerdOptions): Promise<string> {
  const file = path.join(repositoryRoot, "config", `containerd-${options.generation}.x.toml`);
  const documented = (await readFile(file, "utf8"))
    .replace("/run/clip-snapshotter/clip.sock", options.clipAddress ?? "")
    .replaceAll("linux/amd64", platform);
  const common = commonConfig(directory).split("\n");
  const tables = common.findIndex((line) => line.startsWith("["));
  return [...common.slice(0, tables), documented, ...common.slice(tables)].join("\n");
}

const platform = `linux/${process.arch === "x64" ? "amd64" : process.arch}`;

function configOfGeneration1(directory: string, options: ContainerdOptions): string {
  return `version = 2
${commonConfig(directory)}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = ${quote(options.pauseImage ?? "none")}
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = ${quote(criSnapshotterOf(options))}
    disable_snapshot_annotations = ${String(!(options.criAnnotations ?? true))}
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = ${quote(cniDirectory)}
    conf_dir = ${quote(path.join(directory, "net.d"))}
${proxyConfig(options)}`;
}

/** Its NRI socket would be that of all containerds of the machine: one that starts breaks another. */
function configOfGeneration2(directory: string, options: ContainerdOptions): string {
  const snapshotters = options.clipAddress === undefined ? ["overlayfs"] : ["overlayfs", "clip"];
  return `version = 3
${commonConfig(directory)}
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [${quote(cniDirectory)}]
    conf_dir = ${quote(path.join(directory, "net.d"))}
[plugins."io.containerd.cri.v1.images"]
  snapshotter = ${quote(criSnapshotterOf(options))}
  disable_snapshot_annotations = ${String(!(options.criAnnotations ?? true))}
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = ${quote(options.pauseImage ?? "none")}
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
${snapshotters
  .map(
    (snapshotter) => `[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = ${quote(platform)}
  snapshotter = ${quote(snapshotter)}`,
  )
  .join("\n")}
${proxyConfig(options)}`;
}

function commonConfig(directory: string): string {
  return `root = ${quote(path.join(directory, "root"))}
state = ${quote(path.join(directory, "state"))}
[grpc]
  address = ${quote(path.join(directory, "containerd.sock"))}
[ttrpc]
  address = ${quote(path.join(directory, "containerd.sock.ttrpc"))}
[debug]
  level = "info"
[plugins."io.containerd.internal.v1.opt"]
  path = ${quote(path.join(directory, "opt"))}`;
}

function proxyConfig(options: ContainerdOptions): string {
  if (options.clipAddress === undefined) return "";
  return `[proxy_plugins.clip]
  type = "snapshot"
  address = ${quote(options.clipAddress)}
`;
}

function criSnapshotterOf(options: ContainerdOptions): string {
  return options.criSnapshotter ?? (options.clipAddress === undefined ? "overlayfs" : "clip");
}

/** TOML's basic strings are JSON's, for what occurs here. */
function quote(text: string): string {
  return JSON.stringify(text);
}

/** A pod's link turns on forwarding on the whole machine; it is put back to what it was. */
async function restoreForwarding(sandbox: Sandbox): Promise<void> {
  const file = "/proc/sys/net/ipv4/ip_forward";
  const before = await readFile(file, "utf8");
  sandbox.onClose("forwarding", async () => {
    if ((await readFile(file, "utf8")) !== before) await writeFile(file, before);
  });
}

/** Pods get an address on a point-to-point link that ends with them. */
async function writeCniConfig(directory: string): Promise<void> {
  await mkdir(path.join(directory, "net.d"), { recursive: true });
  const config = {
    cniVersion: "0.4.0",
    name: "clip-test",
    plugins: [
      {
        type: "ptp",
        ipMasq: false,
        ipam: {
          type: "host-local",
          subnet: "198.18.77.0/24",
          dataDir: path.join(directory, "cni"),
        },
      },
    ],
  };
  await writeFile(path.join(directory, "net.d", "10-clip.conflist"), JSON.stringify(config));
}
