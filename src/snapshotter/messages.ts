/** The messages of containerd's Snapshots service as they are decoded, and what they stand for. */
import { timestampFromNanoseconds, type Timestamp } from "../containerd/protos.ts";
import type { Mount } from "./mounts.ts";
import type { Labels, Snapshot } from "./snapshot.ts";

type LabelsMessage = Record<string, string>;

export interface PrepareMessage {
  key: string;
  parent: string;
  labels: LabelsMessage;
}

export interface CommitMessage {
  name: string;
  key: string;
  labels: LabelsMessage;
  parent: string;
}

export interface KeyMessage {
  key: string;
}

export interface UpdateMessage {
  info: { name: string; labels: LabelsMessage } | null;
  updateMask: { paths: string[] } | null;
}

export interface ListMessage {
  filters: string[];
}

export interface MountsMessage {
  mounts: Mount[];
}

export interface InfoMessage {
  name: string;
  parent: string;
  kind: "VIEW" | "ACTIVE" | "COMMITTED";
  createdAt: Timestamp;
  updatedAt: Timestamp;
  labels: LabelsMessage;
}

export interface UsageMessage {
  size: number;
  inodes: number;
}

const kinds = { view: "VIEW", active: "ACTIVE", committed: "COMMITTED" } as const;

/** A snapshot as containerd wants to read of it. */
export function infoMessage(snapshot: Snapshot): InfoMessage {
  return {
    name: snapshot.name,
    parent: snapshot.parent,
    kind: kinds[snapshot.kind],
    createdAt: timestampFromNanoseconds(snapshot.createdAt),
    updatedAt: timestampFromNanoseconds(snapshot.updatedAt),
    labels: Object.fromEntries(snapshot.labels),
  };
}

/** Labels as they are worked with. */
export function labelsOf(labels: LabelsMessage): Labels {
  return new Map(Object.entries(labels));
}
