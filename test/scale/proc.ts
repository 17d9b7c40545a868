/** What Linux tells of a running process. */
import { readFileSync } from 'node:fs'

const TICK_MS = 10
const PAGE_KIB = 4

/** Resident memory now, MiB. */
export function residentMib(pid: number): number {
  return (Number(readFileSync(`/proc/${pid}/statm`, 'utf8').split(' ')[1]) * PAGE_KIB) / 1024
}

/** Most resident memory since it started, MiB. */
export function peakMib(pid: number): number {
  return field(`/proc/${pid}/status`, /^VmHWM:\s+(\d+) kB/m) / 1024
}

/** Bytes that it has written to files since it started. */
export function writtenBytes(pid: number): number {
  return field(`/proc/${pid}/io`, /^write_bytes: (\d+)/m)
}

/** CPU since it started, of the process or of one of its threads. */
export function cpuMs(pid: number, thread?: string): { readonly user: number; readonly system: number } {
  const path = thread === undefined ? `/proc/${pid}/stat` : `/proc/${pid}/task/${thread}/stat`
  const fields = readFileSync(path, 'utf8').split(') ')[1]!.split(' ')
  return { user: Number(fields[11]) * TICK_MS, system: Number(fields[12]) * TICK_MS }
}

function field(path: string, pattern: RegExp): number {
  return Number(pattern.exec(readFileSync(path, 'utf8'))?.[1] ?? 0)
}
