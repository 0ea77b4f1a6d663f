/**
 * A network of nodes on this machine: each has a network namespace with an address of its own, and a
 * link to a bridge whose rate can be limited.
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { run } from "../harness/command.ts";
import type { Sandbox } from "../harness/sandbox.ts";
import { tool, toolEnvironment } from "../harness/tools.ts";

/** A network that is up until its sandbox is closed. */
export class ClusterNetwork {
  /** Address of this machine in the network; what nodes are to reach listens there. */
  readonly gateway: string;
  readonly #number: number;
  readonly #links: NodeLink[] = [];

  private constructor(number: number) {
    this.#number = number;
    this.gateway = addressOf(number, 1);
  }

  /** Makes the bridge. Networks of several sandboxes do not meet. */
  static async create(sandbox: Sandbox): Promise<ClusterNetwork> {
    const network = new ClusterNetwork(await addBridge());
    const remove = (): void => {
      network.#remove();
    };
    // A run that is interrupted leaves nothing behind either.
    process.once("exit", remove);
    sandbox.onClose("network", () => {
      process.off("exit", remove);
      remove();
      return Promise.resolve();
    });
    return network;
  }

  /** Adds a node: a namespace that nothing but the bridge can be reached from. */
  async addNode(): Promise<NodeLink> {
    const host = this.#links.length + 2;
    if (host > 254) throw new Error("the network is full");
    const link = new NodeLink({
      namespace: `clip-${this.#number}-${host}`,
      device: `clip${this.#number}-${host}`,
      address: addressOf(this.#number, host),
    });
    this.#links.push(link);
    const inside = ["netns", link.namespace];
    await ip(["netns", "add", link.namespace]);
    await ip(["link", "add", link.device, "type", "veth", "peer", "name", "eth0", ...inside]);
    await ip(["link", "set", link.device, "master", bridgeOf(this.#number), "up"]);
    await ip(["-n", link.namespace, "addr", "add", `${link.address}/24`, "dev", "eth0"]);
    await ip(["-n", link.namespace, "link", "set", "lo", "up"]);
    await ip(["-n", link.namespace, "link", "set", "eth0", "up"]);
    return link;
  }

  #remove(): void {
    for (const { namespace } of this.#links) quietly(["netns", "delete", namespace]);
    for (const { device } of this.#links) quietly(["link", "delete", device]);
    quietly(["link", "delete", bridgeOf(this.#number)]);
  }
}

/** The link of one node. */
export class NodeLink {
  readonly namespace: string;
  readonly address: string;
  /** The end of the link that is outside of the namespace. */
  readonly device: string;

  constructor({ namespace, device, address }: Pick<NodeLink, "namespace" | "device" | "address">) {
    this.namespace = namespace;
    this.device = device;
    this.address = address;
  }

  /** Limits the rate in both directions; undefined lifts the limit. */
  async setRate(megabits: number | undefined): Promise<void> {
    for (const [namespace, device] of [
      [[], this.device],
      [["-n", this.namespace], "eth0"],
    ] as const) {
      const discipline = ["dev", device, "root"];
      if (megabits === undefined) {
        quietly([...namespace, "qdisc", "delete", ...discipline], "tc");
        continue;
      }
      const limit = ["tbf", "rate", `${megabits}mbit`, "burst", "128kb", "latency", "100ms"];
      await run(programOf("tc"), [...namespace, "qdisc", "replace", ...discipline, ...limit]);
    }
  }

  /** Bytes that the node has received, with all headers. */
  async receivedBytes(): Promise<number> {
    const file = `/sys/class/net/${this.device}/statistics/tx_bytes`;
    return Number(await readFile(file, "utf8"));
  }
}

/** Takes the first number that nobody on this machine uses. */
async function addBridge(): Promise<number> {
  // 198.19.0.0/16 is for benchmarks of networks (RFC 2544).
  for (let number = process.pid % 200; number < 255; number++) {
    const bridge = bridgeOf(number);
    if (existsSync(`/sys/class/net/${bridge}`)) continue;
    await ip(["link", "add", "name", bridge, "type", "bridge"]);
    await ip(["addr", "add", `${addressOf(number, 1)}/24`, "dev", bridge]);
    await ip(["link", "set", bridge, "up"]);
    return number;
  }
  throw new Error("there are too many bridges");
}

function bridgeOf(number: number): string {
  return `clip${number}`;
}

function addressOf(number: number, host: number): string {
  return `198.19.${number}.${host}`;
}

function ip(args: readonly string[]): Promise<string> {
  return run(programOf("ip"), args);
}

/** Runs `ip` or `tc` where a failure only says that there is nothing to undo. */
function quietly(args: readonly string[], program: "ip" | "tc" = "ip"): void {
  spawnSync(programOf(program), args, { stdio: "ignore", env: toolEnvironment() });
}

function programOf(name: "ip" | "tc"): string {
  return tool(name);
}
