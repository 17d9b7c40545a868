/**
 * File logs with small segments on a simulated disk, for the tests of `log`: a log that is opened together with an entry
 * writer, and closed logs with given entries.
 */
import { BATCH_HEADER_BYTES, SluiceError } from '@sluice/protocol'
import { SimulatedDisk } from './disk.js'
import { EntryWriter } from './entries.js'
import type { MadeEntry } from './entries.js'
import { ENTRY_HEADER_BYTES, readEntryHeader } from '../../packages/server/src/log/entry.js'
import { FileLog } from '../../packages/server/src/log/file-log.js'
import type { FileLogOptions } from '../../packages/server/src/log/file-log.js'
import type { Log, LogBounds, LogEntry } from '../../packages/server/src/log/log.js'
import { SEGMENT_HEADER_BYTES } from '../../packages/server/src/log/segment.js'

export const SEGMENT = 16 * 1024
export const NOW_MS = 1_700_000_000_000
export const ROOM = SEGMENT - SEGMENT_HEADER_BYTES
/** Sizes of records with which an entry of one batch fills exactly `count` sectors. */
export const sectors = (count: number): number[] => [count * 512 - ENTRY_HEADER_BYTES - BATCH_HEADER_BYTES]

export const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

export function fileLog(disk: SimulatedDisk, options: Partial<FileLogOptions> = {}): FileLog {
  return new FileLog({
    disk,
    segmentBytes: SEGMENT,
    lowFreeBytes: 0,
    now: () => NOW_MS,
    random32: () => 0xc0ffee,
    sleep: tick,
    ...options,
  })
}

interface Opened {
  readonly log: FileLog
  readonly bounds: LogBounds
  readonly writer: EntryWriter
}

export async function openLog(disk: SimulatedDisk, options: Partial<FileLogOptions> = {}): Promise<Opened> {
  const log = fileLog(disk, options)
  const bounds = await log.open()
  return { log, bounds, writer: new EntryWriter(log, bounds) }
}

export async function entriesOf(log: Log, position: number): Promise<LogEntry[]> {
  const found: LogEntry[] = []
  for await (const entry of log.read(position)) found.push(entry)
  return found
}

/** A closed log with one entry for each item of `entries`; an item lists the record sizes of its batches. */
export async function diskWith(
  entries: readonly (readonly number[])[],
): Promise<{ disk: SimulatedDisk; made: MadeEntry[] }> {
  const disk = new SimulatedDisk()
  const { log, writer } = await openLog(disk)
  for (const sizes of entries) await writer.append(sizes)
  await log.close()
  return { disk, made: writer.durable }
}

/**
 * Compares two entries without their padding, because an entry whose write was cut short in the padding is complete.
 */
export function sameEntry(made: MadeEntry, found: LogEntry): boolean {
  const { length } = readEntryHeader(made.bytes, 0)
  return Buffer.compare(made.bytes.subarray(0, length), found.bytes.subarray(0, length)) === 0
}

export async function refusal(work: Promise<unknown>): Promise<SluiceError> {
  const error = await work.then(
    () => undefined,
    (thrown: unknown) => thrown,
  )
  if (error instanceof SluiceError) return error
  throw new Error(`expected a refusal, got ${String(error)}`, { cause: error })
}

export async function until(condition: () => boolean): Promise<void> {
  for (let turns = 0; !condition(); turns++) {
    if (turns > 10_000) throw new Error('the condition never came true')
    await tick()
  }
}
