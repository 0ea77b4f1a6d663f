/** A host name of this machine that comes and goes. */
import { readFileSync, writeFileSync } from "node:fs";
import type { Sandbox } from "../harness/sandbox.ts";

const hostsFile = "/etc/hosts";

/** A name of 127.0.0.1 below `clip.test`, until the sandbox is closed. */
export class HostName {
  readonly name: string;
  readonly #line: string;

  private constructor(name: string) {
    this.name = name;
    this.#line = `127.0.0.1 ${name}\n`;
  }

  static add(sandbox: Sandbox): HostName {
    const host = new HostName(`p${process.pid}.clip.test`);
    host.appear();
    // A run that is interrupted leaves nothing behind either.
    const vanish = (): void => host.vanish();
    process.once("exit", vanish);
    sandbox.onClose("host name", () => {
      process.off("exit", vanish);
      vanish();
      return Promise.resolve();
    });
    return host;
  }

  appear(): void {
    writeFileSync(hostsFile, this.#line, { flag: "a" });
  }

  /** The file stays the same one: it may be mounted. */
  vanish(): void {
    const text = readFileSync(hostsFile, "utf8");
    if (text.includes(this.#line)) writeFileSync(hostsFile, text.replaceAll(this.#line, ""));
  }
}
