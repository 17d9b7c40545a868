/**
 * How many connections the limit of open files leaves room for. A broker without a free file descriptor can neither read
 * its log nor prepare a segment; it is better to refuse a connection.
 */
import { readFileSync } from 'node:fs'

/** Kept for the log, for connections that are on their way out, and for Node itself. */
const FILES_RESERVED = 256

/** Files that this process may have open; undefined where the system does not tell. Node has raised it to the most. */
export function openFilesMax(): number | undefined {
  if (process.platform !== 'linux') return undefined
  let limits: string
  try {
    limits = readFileSync('/proc/self/limits', 'utf8')
  } catch {
    return undefined
  }
  const soft = /^Max open files\s+(\d+)/m.exec(limits)?.[1]
  return soft === undefined ? undefined : Number(soft)
}

/** As many of the wanted connections as fit; with very few files, half of them. */
export function connectionsFor(wanted: number, filesMax: number | undefined): number {
  if (filesMax === undefined) return wanted
  const reserved = Math.min(FILES_RESERVED, Math.ceil(filesMax / 2))
  return Math.max(1, Math.min(wanted, filesMax - reserved))
}
