/**
 * Milliseconds since 1970 as this process counts them: steady, whatever is done to the machine's
 * clock meanwhile. For times that are compared with each other, and with those on disk.
 */
export function steadyNow(): number {
  return Math.round(performance.timeOrigin + performance.now());
}
