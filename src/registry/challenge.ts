/** `WWW-Authenticate` headers (RFC 9110 §11.6.1). */

/** What a server asks for. */
export interface Challenge {
  /** Lower case: `basic`, `bearer`. */
  scheme: string;
  /** Names in lower case. */
  parameters: Map<string, string>;
}

/** The challenges in the values of `WWW-Authenticate`; what cannot be read is left out. */
export function parseChallenges(values: string | readonly string[] | undefined): Challenge[] {
  if (values === undefined) return [];
  return (typeof values === "string" ? [values] : values).flatMap(parseHeader);
}

// One step takes: a parameter (name=value, the value quoted or not), or else a scheme.
const token = "[!#$%&'*+.^_`|~0-9A-Za-z-]+";
const step = new RegExp(
  `[\\s,]*(?:(${token})\\s*=\\s*(?:"((?:[^"\\\\]|\\\\.)*)"|(${token}))|(${token}))`,
  "y",
);

function parseHeader(header: string): Challenge[] {
  const challenges: Challenge[] = [];
  step.lastIndex = 0;
  for (let match = step.exec(header); match !== null; match = step.exec(header)) {
    const [, name, quoted, plain, scheme] = match;
    if (scheme !== undefined) {
      challenges.push({ scheme: scheme.toLowerCase(), parameters: new Map() });
    } else if (name !== undefined) {
      const value = plain ?? (quoted ?? "").replaceAll(/\\(.)/g, "$1");
      challenges.at(-1)?.parameters.set(name.toLowerCase(), value);
    }
  }
  return challenges;
}
