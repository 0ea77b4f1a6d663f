/** Random access to bytes. */

/** Bytes that can be read at any place: a file, or a blob in a registry. */
export interface RangeSource {
  /** Length in bytes. */
  readonly size: number;
  /**
   * Exactly `length` bytes at `offset`.
   * @throws ClipError when they cannot be had.
   */
  read(offset: number, length: number, signal?: AbortSignal): Promise<Buffer>;
}
