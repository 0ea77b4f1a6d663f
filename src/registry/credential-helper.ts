/** Docker's credential helpers: programs named `docker-credential-<name>`. */
import { spawn } from "node:child_process";
import * as v from "valibot";
import { ClipError } from "../base/errors.ts";
import { helperAnswerBytesMax } from "../base/limits.ts";
import type { Credentials } from "./credentials.ts";

const timeoutMs = 20_000;
const answerSchema = v.object({ Username: v.string(), Secret: v.string() });

/**
 * Asks the helper `name` for the credentials of `server`.
 * @returns undefined when the helper knows none
 * @throws ClipError CONFIG_INVALID when it cannot be run, takes too long or answers nonsense
 */
export async function askCredentialHelper(
  name: string,
  server: string,
  signal?: AbortSignal,
): Promise<Credentials | undefined> {
  if (!/^[\w.-]+$/.test(name)) throw failed(name, "its name is malformed");
  const { exitCode, output } = await run(name, server, signal);
  if (exitCode !== 0) {
    if (/credentials not found|no credentials|not found in native keychain/i.test(output)) {
      return undefined;
    }
    throw failed(name, `it ended with ${exitCode ?? "a signal"}`);
  }
  let answer: v.InferOutput<typeof answerSchema>;
  try {
    answer = v.parse(answerSchema, JSON.parse(output));
  } catch {
    throw failed(name, "its answer cannot be understood");
  }
  if (answer.Secret === "") return undefined;
  if (answer.Username === "<token>") return { kind: "identity-token", token: answer.Secret };
  return { kind: "password", username: answer.Username, password: answer.Secret };
}

function run(
  name: string,
  server: string,
  signal?: AbortSignal,
): Promise<{ exitCode: number | null; output: string }> {
  const limit = AbortSignal.timeout(timeoutMs);
  const stop = signal === undefined ? limit : AbortSignal.any([signal, limit]);
  return new Promise((resolve, reject) => {
    const child = spawn(`docker-credential-${name}`, ["get"], {
      stdio: ["pipe", "pipe", "ignore"],
      signal: stop,
      killSignal: "SIGKILL",
    });
    let output = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      if (output.length < helperAnswerBytesMax) output += text;
    });
    // A helper that ends without reading its input is its own business.
    child.stdin.on("error", () => {}).end(server);
    child.on("close", (exitCode) => resolve({ exitCode, output }));
    child.on("error", (error) => {
      if (signal?.aborted === true) {
        reject(new ClipError("ABORTED", "the caller gave up", { cause: error }));
      } else {
        reject(failed(name, limit.aborted ? "it did not answer in time" : error.message));
      }
    });
  });
}

function failed(name: string, why: string): ClipError {
  return new ClipError("CONFIG_INVALID", `credential helper docker-credential-${name}: ${why}`, {
    hint: "Check credsStore and credHelpers in the Docker configuration file.",
  });
}
