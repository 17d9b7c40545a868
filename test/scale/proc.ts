/** The state of a running process, from Linux's /proc. */
import { readFileSync, statSync } from 'node:fs'

const TICK_MS = 10
const PAGE_KIB = 4
const SECTOR_BYTES = 512

/** Current resident memory in MiB. */
export function residentMib(pid: number): number {
  return (Number(readFileSync(`/proc/${pid}/statm`, 'utf8').split(' ')[1]) * PAGE_KIB) / 1024
}

/** Maximum resident memory since the process started, in MiB. */
export function peakMib(pid: number): number {
  return field(`/proc/${pid}/status`, /^VmHWM:\s+(\d+) kB/m) / 1024
}

/**
 * Bytes written by all processes to the device that holds `path`. `/proc/PID/io` is no substitute: it counts a whole
 * page even if only one byte of the page changed in the page cache.
 */
export function deviceWrittenBytes(path: string): number {
  const { dev } = statSync(path)
  const major = (dev >>> 8) & 0xfff
  const minor = (dev & 0xff) | ((dev >>> 12) & 0xfff00)
  const fields = readFileSync(`/sys/dev/block/${major}:${minor}/stat`, 'utf8').trim().split(/\s+/)
  return Number(fields[6]) * SECTOR_BYTES
}

/** CPU time since the start, of the process or of one of its threads. */
export function cpuMs(pid: number, thread?: string): { readonly user: number; readonly system: number } {
  const path = thread === undefined ? `/proc/${pid}/stat` : `/proc/${pid}/task/${thread}/stat`
  const fields = readFileSync(path, 'utf8').split(') ')[1]!.split(' ')
  return { user: Number(fields[11]) * TICK_MS, system: Number(fields[12]) * TICK_MS }
}

function field(path: string, pattern: RegExp): number {
  return Number(pattern.exec(readFileSync(path, 'utf8'))?.[1] ?? 0)
}
