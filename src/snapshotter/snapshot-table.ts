/** Snapshots in memory, with the indexes that make every question about them a look-up. */
import { refLabel, type Snapshot } from "./snapshot.ts";

/** A set of snapshots with distinct names. */
export class SnapshotTable {
  readonly #byName = new Map<string, Snapshot>();
  readonly #byRef = new Map<string, Set<string>>();
  readonly #children = new Map<string, number>();
  readonly #layers = new Map<number, number>();

  get(name: string): Snapshot | undefined {
    return this.#byName.get(name);
  }

  all(): Snapshot[] {
    return [...this.#byName.values()];
  }

  hasChildren(name: string): boolean {
    return this.#children.has(name);
  }

  findByRef(parent: string, ref: string): Snapshot[] {
    const names = this.#byRef.get(refKey(parent, ref)) ?? [];
    return [...names].flatMap((name) => this.#byName.get(name) ?? []);
  }

  layers(): number[] {
    return [...this.#layers.keys()];
  }

  layerReferences(layer: number): number {
    return this.#layers.get(layer) ?? 0;
  }

  /** Adds a snapshot whose name is free. */
  set(snapshot: Snapshot): void {
    this.#byName.set(snapshot.name, snapshot);
    if (snapshot.parent !== "") count(this.#children, snapshot.parent, 1);
    if (snapshot.layer !== undefined) count(this.#layers, snapshot.layer, 1);
    const ref = snapshot.labels.get(refLabel);
    if (ref === undefined) return;
    const key = refKey(snapshot.parent, ref);
    const names = this.#byRef.get(key) ?? new Set();
    this.#byRef.set(key, names.add(snapshot.name));
  }

  /** Takes out a snapshot that is in it. */
  delete(snapshot: Snapshot): void {
    this.#byName.delete(snapshot.name);
    if (snapshot.parent !== "") count(this.#children, snapshot.parent, -1);
    if (snapshot.layer !== undefined) count(this.#layers, snapshot.layer, -1);
    const ref = snapshot.labels.get(refLabel);
    if (ref === undefined) return;
    const key = refKey(snapshot.parent, ref);
    const names = this.#byRef.get(key);
    names?.delete(snapshot.name);
    if (names?.size === 0) this.#byRef.delete(key);
  }
}

function count<Key>(counts: Map<Key, number>, key: Key, change: number): void {
  const now = (counts.get(key) ?? 0) + change;
  if (now === 0) counts.delete(key);
  else counts.set(key, now);
}

function refKey(parent: string, ref: string): string {
  return JSON.stringify([parent, ref]);
}
