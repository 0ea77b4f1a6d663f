/** Where the programs are that `scripts/setup` brings. */
import path from "node:path";

/** Root of the checkout. */
export const repositoryRoot = path.join(import.meta.dirname, "..", "..");

/** What setup keeps: programs, packages, caches. */
export const toolsRoot = path.join(repositoryRoot, ".tools");

/** Things that take long to make and may be kept between runs. */
export const cacheRoot = path.join(toolsRoot, "cache");

/** Binaries of CNI plugins. */
export const cniDirectory = path.join(toolsRoot, "cni", "bin");

/** The two generations of containerd that clip is tested with. */
export const containerdGenerations = ["1", "2"] as const;
export type ContainerdGeneration = (typeof containerdGenerations)[number];

/** Directory with `containerd`, `ctr` and the shim of a generation. */
export function containerdDirectory(generation: ContainerdGeneration): string {
  return path.join(toolsRoot, `containerd-${generation}`, "bin");
}

/** Path of a program in `.tools/bin`. */
export function tool(name: string): string {
  return path.join(toolsRoot, "bin", name);
}

/** Environment for programs that look others up in PATH. */
export function toolEnvironment(first: readonly string[] = []): Record<string, string> {
  const directories = [...first, path.join(toolsRoot, "bin"), process.env["PATH"] ?? "/usr/bin"];
  return {
    // No credentials or settings of whoever runs the tests.
    HOME: "/nonexistent",
    LANG: "C.UTF-8",
    TZ: "UTC",
    PATH: directories.join(":"),
  };
}
