/**
 * The number of connections that the limit of open files allows. A broker without a free file descriptor can neither
 * read its log nor prepare a segment, so it refuses connections before the descriptors run out. Called by the server
 * when it starts.
 */
import { readFileSync } from 'node:fs'

/** Descriptors reserved for the log, for connections that are being closed, and for Node. */
const FILES_RESERVED = 256

/**
 * Returns the limit of open files of this process, which Node has raised to the hard limit. Returns undefined if the
 * system does not report the limit.
 */
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

/**
 * Returns the wanted number of connections, but at most as many as the limit of open files allows. If that limit is
 * very low, connections get half of it.
 */
export function connectionsFor(wanted: number, filesMax: number | undefined): number {
  if (filesMax === undefined) return wanted
  const reserved = Math.min(FILES_RESERVED, Math.ceil(filesMax / 2))
  return Math.max(1, Math.min(wanted, filesMax - reserved))
}
