import { BATCH_HEADER_BYTES, SluiceError } from '@sluice/protocol'
import { describe, expect, test } from 'vitest'
import { SimulatedDisk } from '../../../../test/simulation/disk.js'
import { EntryWriter } from '../../../../test/simulation/entries.js'
import { ENTRY_HEADER_BYTES } from './entry.js'
import { FileLog } from './file-log.js'
import type { Log, LogEntry } from './log.js'
import { MemoryLog } from './memory-log.js'

const SEGMENT = 16 * 1024
const ROOM = SEGMENT - 4096
const SALT = 0xc0ffee

async function entriesOf(log: Log, position: number): Promise<LogEntry[]> {
  const found: LogEntry[] = []
  for await (const entry of log.read(position)) found.push(entry)
  return found
}

/** A log, and a function that opens the log as the next process does. */
const kinds: Record<string, () => { log: Log; reopen: (log: Log) => Log }> = {
  'the log in memory': () => ({
    log: new MemoryLog({ segmentBytes: SEGMENT, salt: SALT }),
    reopen: (log) => (log as MemoryLog).reopened(),
  }),
  'the log on files': () => {
    const disk = new SimulatedDisk()
    const make = (): Log =>
      new FileLog({ disk, segmentBytes: SEGMENT, lowFreeBytes: 0, now: () => 0, random32: () => SALT })
    return { log: make(), reopen: make }
  },
}

/** Appends, truncates and reads, and returns every answer of the log. */
async function story(log: Log, reopen: (log: Log) => Log): Promise<unknown[]> {
  const bounds = await log.open()
  const answers: unknown[] = [bounds]
  const writer = new EntryWriter(log, bounds)
  for (let n = 0; n < 40; n++) {
    const entry = await writer.append([(n * 397) % 3000, n])
    // Only the log on files fills segments and writes headers.
    const { writtenBytes: _, ...usage } = log.usage()
    answers.push(entry.position, usage)
    if (n % 9 === 0) log.markCheckpoint(entry.position)
    if (n === 25) await log.truncateBefore(writer.durable[20]!.position)
  }
  for (const { position, bytes } of writer.durable.slice(-10)) {
    expect(Buffer.compare(await log.readRange(position, 300), bytes.subarray(0, 300))).toBe(0)
  }
  await log.close()
  const again = reopen(log)
  answers.push(await again.open())
  const found = await entriesOf(again, again.usage().firstPosition)
  expect(found.at(-1)!.lsn).toBe(40)
  expect(found.length).toBeGreaterThan(15)
  for (const { lsn, position, bytes } of found) {
    answers.push([lsn, position])
    expect(Buffer.compare(bytes, writer.durable[lsn - 1]!.bytes)).toBe(0)
  }
  await again.close()
  return answers
}

test('the log in memory and the log on files give the same answers, byte for byte', async () => {
  const [inMemory, onFiles] = await Promise.all(
    Object.values(kinds).map((make) => {
      const { log, reopen } = make()
      return story(log, reopen)
    }),
  )
  expect(inMemory!.length).toBeGreaterThan(100)
  expect(inMemory).toEqual(onFiles)
})

describe.each(Object.entries(kinds))('%s', (_name, make) => {
  test('refuses an entry that does not continue the log', async () => {
    const { log } = make()
    const writer = new EntryWriter(log, await log.open())
    const { position } = await writer.append([5])
    const { bytes } = writer.make([5])
    await expect(log.append(position, 2, bytes)).rejects.toThrow(RangeError)
    await expect(log.append(position + 512, 3, bytes)).rejects.toThrow('continue the log')
    await expect(log.append(position + 512, 2, bytes.subarray(0, 300))).rejects.toThrow(
      /512 bytes|continue the log/,
    )
    await expect(log.readRange(position + 512, 1)).rejects.toThrow(RangeError)
    await log.append(position + 512, 2, bytes)
    await log.close()
  })
})

test('a held append is not durable until it is released', async () => {
  let letGo: (() => void) | undefined
  const log = new MemoryLog({ beforeAppend: () => new Promise((resolve) => (letGo = resolve)) })
  const bounds = await log.open()
  const writer = new EntryWriter(log, bounds)
  const appending = writer.append([10])
  expect(log.entries).toHaveLength(0)
  expect(await entriesOf(log.reopened({}), bounds.firstPosition)).toHaveLength(0)
  letGo!()
  await appending
  expect(log.entries).toHaveLength(1)
})

test('no append succeeds after a failed one', async () => {
  let calls = 0
  const log = new MemoryLog({
    beforeAppend: ({ lsn }) => {
      calls++
      if (lsn === 2) throw new Error('no')
    },
  })
  const writer = new EntryWriter(log, await log.open())
  await writer.append([10])
  const failures: unknown[] = []
  for (let n = 0; n < 3; n++) await writer.append([10]).catch((error: unknown) => failures.push(error))
  expect(failures).toHaveLength(3)
  expect(failures[0]).toBeInstanceOf(SluiceError)
  expect((failures[0] as SluiceError).code).toBe('LOG_FAILED')
  expect(failures[2]).toBe(failures[0])
  expect(calls).toBe(2)
  expect(log.hasRoomFor(0)).toBe(false)
  expect((await log.reopened({}).open()).nextLsn).toBe(2)
})

test('room is the free bytes of the segments, minus the reserve', async () => {
  const log = new MemoryLog({ segmentBytes: SEGMENT, segmentsMax: 2, reserveBytes: 4096 })
  const writer = new EntryWriter(log, await log.open())
  const room = 2 * (SEGMENT - 4096) - 4096
  expect(log.hasRoomFor(room)).toBe(false)
  expect(log.hasRoomFor(SEGMENT - 4096)).toBe(true)
  let taken = 0
  for (; log.hasRoomFor(2048); taken++) await writer.append([2048 - 64 - 48])
  expect(taken * 2048).toBeGreaterThan(room - 2 * 2048)
  expect(taken * 2048).toBeLessThanOrEqual(room)
  await writer.append([4096 - 64 - 48])
  await log.truncateBefore(writer.durable.at(-1)!.position)
  expect(log.hasRoomFor(2048)).toBe(true)
  expect(new MemoryLog().hasRoomFor(2 ** 40)).toBe(true)
})

test('an entry has at most entryBytesMax bytes, in the next process too', async () => {
  const log = new MemoryLog({ segmentBytes: SEGMENT, entryBytesMax: 2_048 })
  const writer = new EntryWriter(log, await log.open())
  const entryOf = (bytes: number): number[] => [bytes - ENTRY_HEADER_BYTES - BATCH_HEADER_BYTES]
  await writer.append(entryOf(2_048))
  await expect(writer.append(entryOf(2_049))).rejects.toThrow(
    'An entry has 2560 bytes; entryBytesMax is 2048.',
  )
  expect(log.reopened().entryBytesMax).toBe(2_048)
})

test('entryBytesMax is by default what fits in a segment, and must be a multiple of 512 that fits', () => {
  expect(new MemoryLog({ segmentBytes: SEGMENT }).entryBytesMax).toBe(ROOM)
  const files = new FileLog({
    disk: new SimulatedDisk(),
    segmentBytes: SEGMENT,
    now: () => 0,
    random32: () => 1,
  })
  expect(files.entryBytesMax).toBe(ROOM)
  expect(new MemoryLog({ segmentBytes: SEGMENT, entryBytesMax: ROOM }).entryBytesMax).toBe(ROOM)
  for (const entryBytesMax of [ROOM + 512, 2_000])
    expect(() => new MemoryLog({ segmentBytes: SEGMENT, entryBytesMax })).toThrow(RangeError)
})
