/** Programs that are run to their end, and programs that are kept running. */
import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { tellOnFailure } from "./service-logs.ts";

/** How a program is run. */
export interface CommandOptions {
  /** The whole environment; by default that of this process. */
  env?: Record<string, string>;
  cwd?: string;
  /** Fed to the program. */
  input?: string | Buffer;
  /** Milliseconds until it is killed; two minutes by default. */
  timeoutMs?: number;
  /** Called when it first says something on its standard output. */
  onFirstOutput?: () => void;
}

/** What a program that has ended left. */
export interface CommandResult {
  status: number;
  stdout: Buffer;
  stderr: string;
}

/** Runs a program to its end and returns its trimmed output. Throws with what it said on failure. */
export async function run(
  command: string,
  args: readonly string[],
  options: CommandOptions = {},
): Promise<string> {
  return (await runRaw(command, args, options)).stdout.toString("utf8").trim();
}

/** As `run`, with the output as bytes. */
export async function runRaw(
  command: string,
  args: readonly string[],
  options: CommandOptions = {},
): Promise<CommandResult> {
  const result = await attempt(command, args, options);
  if (result.status !== 0) {
    const said = `${result.stdout.toString("utf8").slice(-2000)}\n${result.stderr.slice(-4000)}`;
    throw new Error(
      `${command} ${args.join(" ")} ended with ${String(result.status)}:\n${said.trim()}`,
    );
  }
  return result;
}

/** As `run`, but a failure is a result. Throws only when the program did not start or took too long. */
export async function attempt(
  command: string,
  args: readonly string[],
  { timeoutMs = 120_000, input, onFirstOutput, ...options }: CommandOptions = {},
): Promise<CommandResult> {
  const child = spawn(command, args, { ...options, stdio: ["pipe", "pipe", "pipe"] });
  const stdout: Buffer[] = [];
  const stderr: Buffer[] = [];
  child.stdout.on("data", (chunk: Buffer) => stdout.push(chunk));
  if (onFirstOutput !== undefined) child.stdout.once("data", onFirstOutput);
  child.stderr.on("data", (chunk: Buffer) => stderr.push(chunk));
  // A program that does not read its input breaks the pipe; its status says what it thought of it.
  child.stdin.on("error", () => undefined);
  child.stdin.end(input);
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    child.kill("SIGKILL");
  }, timeoutMs);
  const ended = Promise.withResolvers<number>();
  child.on("error", ended.reject);
  child.on("close", (code, signal) => {
    ended.resolve(code ?? (signal === null ? 1 : 128));
  });
  try {
    const status = await ended.promise;
    const text = Buffer.concat(stderr).toString("utf8");
    if (late) {
      throw new Error(`${command} ${args.join(" ")} took over ${String(timeoutMs)} ms:\n${text}`);
    }
    return { status, stdout: Buffer.concat(stdout), stderr: text };
  } finally {
    clearTimeout(timer);
  }
}

/** A program that is started. */
export interface ServiceOptions {
  name: string;
  command: string;
  args: readonly string[];
  env: Record<string, string>;
  /** Name of the network namespace that it runs in; by default that of this process. */
  networkNamespace?: string | undefined;
  /** Receives its output and errors. */
  logFile: string;
  /** Asked until it says true; the output so far is passed in. */
  isReady(output: string): boolean | Promise<boolean>;
  /** Milliseconds until it has to be ready. */
  timeoutMs?: number;
}

/** A program that is kept running until it is stopped. */
export class Service {
  readonly name: string;
  readonly #child: ChildProcess;
  readonly #ended: Promise<void>;
  readonly #logFile: string;

  private constructor(options: ServiceOptions, child: ChildProcess) {
    this.name = options.name;
    this.#logFile = options.logFile;
    this.#child = child;
    this.#ended = new Promise((resolve) => {
      child.once("exit", () => {
        resolve();
      });
      child.once("error", () => {
        resolve();
      });
    });
  }

  /** Starts a program and waits until it is ready. */
  static async start(options: ServiceOptions): Promise<Service> {
    tellOnFailure(options.name, options.logFile);
    const log = openSync(options.logFile, "a");
    // Unlike `ip netns exec`, this leaves mounts where everyone sees them.
    const enter =
      options.networkNamespace === undefined
        ? []
        : ["nsenter", `--net=/run/netns/${options.networkNamespace}`];
    const [command = "", ...args] = [...enter, options.command, ...options.args];
    const child = spawn(command, args, {
      env: options.env,
      stdio: ["ignore", log, log],
    });
    closeSync(log);
    const service = new Service(options, child);
    const deadline = Date.now() + (options.timeoutMs ?? 30_000);
    while (!(await options.isReady(service.output()))) {
      if (!service.running || Date.now() > deadline) {
        await service.stop("SIGKILL");
        const state = child.exitCode === null ? "was not ready in time" : "ended at once";
        throw new Error(`${options.name} ${state}:\n${service.output().slice(-4000)}`);
      }
      await sleep(20);
    }
    return service;
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  get running(): boolean {
    return this.#child.pid !== undefined && !this.#child.killed && this.#isAlive();
  }

  /** All that it has said so far. */
  output(): string {
    return readFileSync(this.#logFile, "utf8");
  }

  /** Sends a signal and waits for the end; kills it when it does not comply in 20 seconds. */
  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    if (!this.#isAlive()) return;
    this.#child.kill(signal);
    const killer = setTimeout(() => this.#child.kill("SIGKILL"), 20_000);
    await this.#ended;
    clearTimeout(killer);
  }

  #isAlive(): boolean {
    return (
      this.#child.pid !== undefined &&
      this.#child.exitCode === null &&
      this.#child.signalCode === null
    );
  }
}
