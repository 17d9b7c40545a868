import { BATCH_HEADER_BYTES, SluiceError } from '@sluice/protocol'
import { readFile } from 'node:fs/promises'
import { describe, expect, test } from 'vitest'
import { SimulatedDisk, randomFrom } from '../../../../test/simulation/disk.js'
import type { Fault, Random, SimulatedDiskOptions } from '../../../../test/simulation/disk.js'
import { EntryWriter } from '../../../../test/simulation/entries.js'
import type { MadeEntry } from '../../../../test/simulation/entries.js'
import { DIRECTORY_ROWS, TAIL_ROWS, matchingRows } from './decisions.js'
import type { DirectoryRow, TailRow } from './decisions.js'
import { ENTRY_HEADER_BYTES, readEntryHeader } from './entry.js'
import { FileLog } from './file-log.js'
import type { FileLogOptions } from './file-log.js'
import type { Log, LogBounds, LogEntry } from './log.js'
import type { LogNotice } from './notices.js'
import { META_NAME, SEGMENT_HEADER_BYTES, placeEntry, segmentName } from './segment.js'
import { defaultLowFreeBytes } from './segment-pool.js'
import { IS_LONG, ONE_SEED, seedsFrom, TIMEOUT_MS } from '../../../../test/amount.js'

const SEGMENT = 16 * 1024
const NOW_MS = 1_700_000_000_000
const ROOM = SEGMENT - SEGMENT_HEADER_BYTES
/** Records that make an entry with one batch fill exactly so many sectors. */
const sectors = (count: number): number[] => [count * 512 - ENTRY_HEADER_BYTES - BATCH_HEADER_BYTES]

const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

function fileLog(disk: SimulatedDisk, options: Partial<FileLogOptions> = {}): FileLog {
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

async function openLog(disk: SimulatedDisk, options: Partial<FileLogOptions> = {}): Promise<Opened> {
  const log = fileLog(disk, options)
  const bounds = await log.open()
  return { log, bounds, writer: new EntryWriter(log, bounds) }
}

async function entriesOf(log: Log, position: number): Promise<LogEntry[]> {
  const found: LogEntry[] = []
  for await (const entry of log.read(position)) found.push(entry)
  return found
}

/** A closed log with an entry for each of `entries`, which gives the sizes of its batches' records. */
async function diskWith(
  entries: readonly (readonly number[])[],
): Promise<{ disk: SimulatedDisk; made: MadeEntry[] }> {
  const disk = new SimulatedDisk()
  const { log, writer } = await openLog(disk)
  for (const sizes of entries) await writer.append(sizes)
  await log.close()
  return { disk, made: writer.durable }
}

/** Padding is nobody's and is not compared: a write that was cut short in it is whole. */
function sameEntry(made: MadeEntry, found: LogEntry): boolean {
  const { length } = readEntryHeader(made.bytes, 0)
  return Buffer.compare(made.bytes.subarray(0, length), found.bytes.subarray(0, length)) === 0
}

async function refusal(work: Promise<unknown>): Promise<SluiceError> {
  const error = await work.then(
    () => undefined,
    (thrown: unknown) => thrown,
  )
  if (error instanceof SluiceError) return error
  throw new Error(`expected a refusal, got ${String(error)}`, { cause: error })
}

async function until(condition: () => boolean): Promise<void> {
  for (let turns = 0; !condition(); turns++) {
    if (turns > 10_000) throw new Error('the condition never came true')
    await tick()
  }
}

describe('decision tables', () => {
  test('every combination of facts fits exactly one row', () => {
    let checked = 0
    const met = new Set<string>()
    for (const meta of ['missing', 'damaged', 'valid'] as const) {
      for (const files of ['none', 'blank', 'unstarted', 'headless', 'used'] as const) {
        for (const numbers of ['consecutive', 'gap'] as const) {
          for (const sizes of ['right', 'wrong'] as const) {
            for (const headers of ['agree', 'foreign', 'displaced'] as const) {
              const rows = matchingRows(DIRECTORY_ROWS, { meta, files, numbers, sizes, headers })
              expect(rows).toHaveLength(1)
              met.add(rows[0]!)
              checked++
            }
          }
        }
      }
    }
    for (const entries of ['none', 'some'] as const) {
      for (const behind of ['nothing', 'unfinished'] as const) {
        for (const next of ['nothing', 'unfinished'] as const) {
          for (const later of ['none', 'found'] as const) {
            const rows = matchingRows(TAIL_ROWS, { entries, behind, next, later })
            expect(rows).toHaveLength(1)
            met.add(rows[0]!)
            checked++
          }
        }
      }
    }
    expect(checked).toBe(3 * 5 * 2 * 2 * 3 + 16)
    expect(met.size).toBe(DIRECTORY_ROWS.length + TAIL_ROWS.length)
  })

  test('STORAGE.md has the same rows, in the same order, with the same values', async () => {
    const page = await readFile(new URL('../../../../docs/STORAGE.md', import.meta.url), 'utf8')
    const section = page.slice(page.indexOf('## Finding the end'))
    const rows = [...section.matchAll(/^\| `([a-z-]+)` \|(.*)\|$/gm)].map(([, row, cells]) => [
      row,
      ...cells!.split('|').map((cell) => cell.trim()),
    ])
    const said = (values: readonly string[] | undefined): string => values?.join(', ') ?? ''
    expect(rows.map((row) => row.slice(0, -1))).toEqual([
      ...DIRECTORY_ROWS.map(({ row, meta, files, numbers, sizes, headers }) => [
        row,
        ...[meta, files, numbers, sizes, headers].map(said),
      ]),
      ...TAIL_ROWS.map(({ row, entries, behind, next, later }) => [
        row,
        ...[entries, behind, next, later].map(said),
      ]),
    ])
    for (const row of rows) expect(row.at(-1)!.startsWith('refuse')).toBe(REFUSED.has(row[0]!))
  })

  const REFUSED = new Set<string>([
    'gap',
    'wrong-size',
    'foreign',
    'displaced',
    'segments-lost',
    'salt-lost',
    'head-lost',
    'later-entry',
  ])

  /** Two used segments and a spare: 1 is full, 2 has two entries, 3 is blank. */
  const twoSegments = [sectors(20), sectors(3), sectors(2), sectors(5)]

  interface State {
    readonly directory: DirectoryRow
    readonly tail?: TailRow
    /** File that the refusal names. */
    readonly refuses?: string
    readonly make: () => Promise<SimulatedDisk>
  }

  const states: Record<string, State> = {
    'an empty directory': {
      directory: 'create',
      tail: 'bare',
      make: async () => new SimulatedDisk(),
    },
    'a creation cut short after its segment': {
      directory: 'create-again',
      tail: 'bare',
      make: async () => {
        const { disk } = await diskWith([])
        disk.lose(META_NAME)
        return disk
      },
    },
    'a log that was never written to': {
      directory: 'ordinary',
      tail: 'bare',
      make: async () => (await diskWith([])).disk,
    },
    'a log that was closed': {
      directory: 'ordinary',
      tail: 'clean',
      make: async () => (await diskWith(twoSegments)).disk,
    },
    'no small file': {
      directory: 'rebuild-meta',
      tail: 'clean',
      make: async () => {
        const { disk } = await diskWith(twoSegments)
        disk.lose(META_NAME)
        return disk
      },
    },
    'a damaged small file': {
      directory: 'rebuild-meta',
      tail: 'clean',
      make: async () => {
        const { disk } = await diskWith(twoSegments)
        disk.damage(META_NAME, 9, Uint8Array.of(0xff))
        return disk
      },
    },
    'a small file and no segments': {
      directory: 'segments-lost',
      refuses: META_NAME,
      make: async () => {
        const { disk } = await diskWith(twoSegments)
        for (const name of disk.names()) if (name !== META_NAME) disk.lose(name)
        return disk
      },
    },
    'neither a small file nor a header': {
      directory: 'salt-lost',
      refuses: META_NAME,
      make: async () => {
        const { disk } = await diskWith([sectors(3)])
        disk.lose(META_NAME)
        disk.damage(segmentName(1), 3, Uint8Array.of(0xff))
        return disk
      },
    },
    'no header in a log that has given back segments': {
      directory: 'head-lost',
      refuses: segmentName(2),
      make: async () => {
        const { disk } = await diskWith(twoSegments)
        disk.lose(segmentName(1))
        disk.damage(segmentName(2), 3, Uint8Array.of(0xff))
        return disk
      },
    },
    'a segment missing between others': {
      directory: 'gap',
      refuses: segmentName(2),
      make: async () => {
        const { disk } = await diskWith([...twoSegments, ...twoSegments])
        disk.lose(segmentName(2))
        return disk
      },
    },
    'a shortened newest segment': {
      directory: 'wrong-size',
      refuses: segmentName(2),
      make: async () => {
        const { disk } = await diskWith(twoSegments)
        disk.cut(segmentName(2), SEGMENT - 1)
        return disk
      },
    },
    'an emptied spare': {
      directory: 'wrong-size',
      refuses: segmentName(3),
      make: async () => {
        const { disk } = await diskWith(twoSegments)
        disk.cut(segmentName(3), 0)
        return disk
      },
    },
    'a segment of another log': {
      directory: 'foreign',
      refuses: segmentName(2),
      make: async () => {
        const { disk } = await diskWith(twoSegments)
        const other = new SimulatedDisk()
        const { log, writer } = await openLog(other, { random32: () => 1 })
        for (const sizes of twoSegments) await writer.append(sizes)
        await log.close()
        disk.damage(segmentName(2), 0, other.bytesOf(segmentName(2)))
        return disk
      },
    },
    'a file under the name of a later one': {
      directory: 'displaced',
      refuses: segmentName(3),
      make: async () => {
        const { disk } = await diskWith(twoSegments)
        disk.damage(segmentName(3), 0, disk.bytesOf(segmentName(2)))
        return disk
      },
    },
    'a first entry of which only the header of its segment is there': {
      directory: 'ordinary',
      tail: 'bare',
      make: async () => {
        const { disk } = await diskWith(twoSegments)
        disk.damage(segmentName(2), SEGMENT_HEADER_BYTES, new Uint8Array(7 * 512))
        return disk
      },
    },
    'an unfinished entry': {
      directory: 'ordinary',
      tail: 'torn',
      make: async () => {
        const { disk } = await diskWith(twoSegments)
        disk.damage(segmentName(2), SEGMENT_HEADER_BYTES + 4 * 512, new Uint8Array(3 * 512))
        return disk
      },
    },
    'an unfinished first entry whose segment has no header': {
      directory: 'ordinary',
      tail: 'torn-in-next',
      make: async () => {
        const { disk } = await diskWith(twoSegments.slice(0, 3))
        disk.damage(segmentName(2), 0, new Uint8Array(512))
        return disk
      },
    },
    'a damaged entry before a whole one': {
      directory: 'ordinary',
      tail: 'later-entry',
      refuses: segmentName(2),
      make: async () => {
        const { disk } = await diskWith(twoSegments)
        disk.damage(segmentName(2), SEGMENT_HEADER_BYTES + 8, Uint8Array.of(0xff))
        return disk
      },
    },
  }

  test.each(Object.entries(states))('%s', async (_name, state) => {
    const disk = await state.make()
    const names = disk.names()
    const log = fileLog(disk)
    if (state.refuses === undefined) {
      const bounds = await log.open()
      expect(log.recovery).toEqual({ directory: state.directory, tail: state.tail })
      expect(bounds.cutBytes > 0).toBe(state.tail === 'torn' || state.tail === 'torn-in-next')
      // What was cut or written again is so for good.
      const second = await openLog(disk.clone())
      expect(second.log.recovery.directory).toBe('ordinary')
      expect(second.bounds).toEqual({ ...bounds, cutBytes: 0 })
      await second.log.close()
      // Whatever was found, the log goes on from there.
      const writer = new EntryWriter(log, bounds)
      for (let n = 0; n < 4; n++) await writer.append(sectors(7))
      const found = await entriesOf(log, bounds.firstPosition)
      expect(found.at(-1)?.lsn).toBe(bounds.nextLsn + 3)
      await log.close()
    } else {
      const error = await refusal(log.open())
      expect(error.code).toBe('LOG_CORRUPT')
      expect(error.message).toContain(state.refuses)
      expect(error.message).toMatch(/at byte \d+/)
      expect(log.recovery).toEqual({
        directory: state.directory,
        ...(state.tail === undefined ? {} : { tail: state.tail }),
      })
      // What is refused stays as it is, for whoever looks into it.
      expect(disk.names()).toEqual(names)
      expect(disk.counts.write).toBe((await state.make()).counts.write)
    }
    expect(disk.openFiles).toBe(0)
  })

  test('the states above meet every row', () => {
    const refusing = Object.values(states).filter(({ refuses }) => refuses !== undefined)
    expect(new Set(refusing.map(({ directory, tail }) => tail ?? directory))).toEqual(REFUSED)
    const met = new Set(Object.values(states).flatMap(({ directory, tail }) => [directory, tail]))
    met.delete(undefined)
    expect(met.size).toBe(DIRECTORY_ROWS.length + TAIL_ROWS.length)
  })
})

describe('appending and reading', () => {
  test('entries come back as they were written, from every position, over segment ends', async () => {
    const disk = new SimulatedDisk()
    const { log, bounds, writer } = await openLog(disk)
    expect(bounds).toEqual({
      firstPosition: SEGMENT + SEGMENT_HEADER_BYTES,
      nextPosition: SEGMENT + SEGMENT_HEADER_BYTES,
      nextLsn: 1,
      lastCrc: 0,
      salt: 0xc0ffee,
      checkpoint: undefined,
      cutBytes: 0,
    })
    for (let n = 1; n <= 30; n++) await writer.append([n * 50, 10, n % 7])
    expect(log.usage().segments).toBeGreaterThan(2)
    for (const [index, entry] of writer.durable.entries()) {
      const rest = await entriesOf(log, entry.position)
      expect(rest).toHaveLength(writer.durable.length - index)
      for (const [offset, found] of rest.entries()) {
        const made = writer.durable[index + offset]!
        expect(found.position).toBe(made.position)
        expect(found.lsn).toBe(made.lsn)
        expect(Buffer.compare(found.bytes, made.bytes)).toBe(0)
      }
      const part = await log.readRange(entry.position + 64, 48)
      expect(Buffer.compare(part, entry.bytes.subarray(64, 112))).toBe(0)
    }
    await log.close()
    const again = await openLog(disk)
    expect(again.bounds.nextLsn).toBe(31)
    expect(again.bounds.lastCrc).toBe(writer.previousCrc)
    expect(again.log.recovery).toEqual({ directory: 'ordinary', tail: 'clean' })
    await again.log.close()
    expect(disk.openFiles).toBe(0)
  })

  test('a segment can be filled to its last byte', async () => {
    const { disk, made } = await diskWith([sectors(ROOM / 512), sectors(1), sectors(ROOM / 512)])
    expect(made.map(({ position }) => position)).toEqual([
      SEGMENT + SEGMENT_HEADER_BYTES,
      2 * SEGMENT + SEGMENT_HEADER_BYTES,
      3 * SEGMENT + SEGMENT_HEADER_BYTES,
    ])
    const { log, bounds, writer } = await openLog(disk)
    expect(bounds.nextPosition).toBe(4 * SEGMENT)
    expect(await entriesOf(log, bounds.nextPosition)).toEqual([])
    expect(placeEntry(bounds.nextPosition, 1, SEGMENT)).toBe(4 * SEGMENT + SEGMENT_HEADER_BYTES)
    await writer.append([])
    expect((await entriesOf(log, bounds.nextPosition)).map(({ lsn }) => lsn)).toEqual([4])
    expect(await entriesOf(log, bounds.firstPosition)).toHaveLength(4)
    expect(() => placeEntry(bounds.nextPosition, ROOM + 1, SEGMENT)).toThrow(RangeError)
    await log.close()
  })

  test('a segment can end anywhere, also where entries of a former life stand behind the last one', async () => {
    const disk = new SimulatedDisk()
    let { log, writer } = await openLog(disk)
    for (let round = 0; round < 30; round++) {
      for (let n = 0; n <= (round * 7) % 5; n++) await writer.append(sectors(1 + ((round + n) % 9)))
      writer.next = Math.ceil(writer.next / SEGMENT) * SEGMENT
      const empty = await writer.append([])
      expect(empty.position % SEGMENT).toBe(SEGMENT_HEADER_BYTES)
      const newest = writer.durable.slice(-3)
      const { position } = newest[0]!
      if (round % 3 === 0) await log.truncateBefore(position)
      await log.close()
      const again = await openLog(disk)
      expect(again.bounds).toMatchObject({ nextLsn: empty.lsn + 1, lastCrc: empty.crc, cutBytes: 0 })
      const found = await entriesOf(again.log, position)
      expect(found.map(({ lsn }) => lsn)).toEqual(newest.map(({ lsn }) => lsn))
      const { durable } = writer
      ;({ log, writer } = again)
      writer.durable.push(...durable)
    }
    await log.close()
    expect(disk.counts.rename).toBeGreaterThan(10)
  })

  test('one entry is written at a time, and read once it is durable', async () => {
    const disk = new SimulatedDisk({ mode: 'queued', random: randomFrom(1) })
    const log = fileLog(disk)
    const bounds = await disk.run(log.open())
    const writer = new EntryWriter(log, bounds)
    const first = writer.make(sectors(3))
    const appending = log.append(first.position, first.lsn, first.bytes)
    await expect(log.append(first.position + 3 * 512, 2, first.bytes)).rejects.toThrow('one entry at a time')
    // What is not durable yet is not read.
    expect(await disk.run(entriesOf(log, bounds.firstPosition))).toEqual([])
    await disk.run(appending)
    await disk.run(log.close())
  })

  test('a short entry may go to the next segment when a long one was placed there', async () => {
    const { log, writer } = await openLog(new SimulatedDisk())
    await writer.append(sectors(ROOM / 512 - 4))
    expect(placeEntry(writer.next, 5 * 512, SEGMENT)).toBe(2 * SEGMENT + SEGMENT_HEADER_BYTES)
    expect(placeEntry(writer.next, 4 * 512, SEGMENT)).toBe(2 * SEGMENT - 4 * 512)
    const entry = writer.make(sectors(5))
    await log.append(entry.position, entry.lsn, entry.bytes)
    expect(await entriesOf(log, SEGMENT)).toHaveLength(2)
    await log.close()
  })

  test('an entry that does not continue the log is not written', async () => {
    const disk = new SimulatedDisk()
    const { log, writer } = await openLog(disk)
    await writer.append(sectors(2))
    await until(() => disk.queued === 0)
    const writes = disk.counts.write
    const good = writer.make(sectors(2))
    const changed = (at: number): Uint8Array => {
      const bytes = good.bytes.slice()
      bytes[at]! ^= 1
      return bytes
    }
    const wrong: [number, number, Uint8Array][] = [
      [good.position + 512, 2, good.bytes],
      [good.position, 3, good.bytes],
      [good.position, 2, good.bytes.subarray(0, 512)],
      [good.position, 2, changed(8)],
      [good.position, 2, changed(20)],
      [good.position, 2, changed(40)],
      [good.position, 2, new Uint8Array(512)],
    ]
    for (const [position, lsn, bytes] of wrong) {
      await expect(log.append(position, lsn, bytes)).rejects.toThrow(/continue the log|next entry goes/)
    }
    expect(disk.counts.write).toBe(writes)
    await log.append(good.position, 2, good.bytes)
    await log.close()
  })

  test('a reader follows what is appended behind it, into the next segment', async () => {
    const { log, bounds, writer } = await openLog(new SimulatedDisk())
    await writer.append(sectors(1))
    const seen: number[] = []
    for await (const { lsn } of log.read(bounds.firstPosition)) {
      seen.push(lsn)
      if (lsn < 40) await writer.append(sectors(1 + (lsn % 3)))
    }
    expect(seen).toEqual(Array.from({ length: 40 }, (_, index) => index + 1))
    await log.close()
  })

  test('reads outside of what is durable are refused', async () => {
    const { log, writer } = await openLog(new SimulatedDisk())
    for (let n = 0; n < 3; n++) await writer.append(sectors(20))
    const [first, , third] = writer.durable
    await expect(log.readRange(third!.position + 20 * 512 - 1, 2)).rejects.toThrow(RangeError)
    await expect(log.readRange(first!.position + 24 * 512 - 1, 2)).rejects.toThrow(RangeError)
    await expect(log.readRange(SEGMENT, 1)).rejects.toThrow(RangeError)
    await expect(log.readRange(9 * SEGMENT + 5000, 1)).rejects.toThrow(RangeError)
    await expect(entriesOf(log, first!.position + 512)).rejects.toThrow('no entry begins')
    await log.truncateBefore(third!.position)
    await expect(log.readRange(first!.position, 1)).rejects.toThrow('was given back')
    await expect(entriesOf(log, first!.position)).rejects.toThrow('was given back')
    await log.close()
  })

  test('the checkpoint of the newest segment is told at the next start', async () => {
    const disk = new SimulatedDisk()
    const { log, writer } = await openLog(disk)
    const { position } = await writer.append(sectors(2))
    log.markCheckpoint(position)
    await writer.append(sectors(2))
    await log.close()
    const second = await openLog(disk)
    expect(second.bounds.checkpoint).toBe(undefined)
    second.log.markCheckpoint(position)
    await second.writer.append(sectors(24))
    await second.log.close()
    const third = await openLog(disk)
    expect(third.bounds.checkpoint).toBe(position)
    await third.writer.append(sectors(24))
    await third.log.close()
    const fourth = await openLog(disk)
    expect(fourth.bounds.checkpoint).toBe(position)
    await fourth.log.close()
  })

  test('an old log keeps the segment size and salt that it was made with', async () => {
    const { disk, made } = await diskWith([sectors(2)])
    const { log, bounds } = await openLog(disk, { segmentBytes: 2 * SEGMENT, random32: () => 5 })
    expect(log.segmentBytes).toBe(SEGMENT)
    expect(bounds.salt).toBe(0xc0ffee)
    expect(await entriesOf(log, made[0]!.position)).toHaveLength(1)
    await log.close()
  })
})

describe('giving back', () => {
  test('segments are recycled, then removed, and their old entries never come back', async () => {
    const disk = new SimulatedDisk()
    let { log, writer } = await openLog(disk)
    let first = 1
    let renames = 0
    for (let round = 0; round < 12; round++) {
      for (let n = 0; n < 9; n++) await writer.append(sectors(5 + ((round + n) % 9)))
      const keep = writer.durable.at(-1)!
      await log.truncateBefore(keep.position)
      await log.truncateBefore(keep.position)
      first = Math.floor(keep.position / SEGMENT)
      const { writtenBytes, ...usage } = log.usage()
      expect(usage).toEqual({
        segments: 1,
        bytes: SEGMENT,
        firstPosition: first * SEGMENT + SEGMENT_HEADER_BYTES,
      })
      // A round begins with the segments that the one before gave back; what it writes goes into them.
      expect(writtenBytes % 512).toBe(0)
      renames = disk.counts.rename
      await log.close()
      const again = await openLog(disk)
      expect(again.bounds.nextLsn).toBe(keep.lsn + 1)
      const found = await entriesOf(again.log, again.bounds.firstPosition)
      expect(found.length).toBeGreaterThan(0)
      expect(found.at(-1)!.lsn).toBe(keep.lsn)
      expect(disk.names().length).toBeLessThanOrEqual(1 + 1 + 3)
      ;({ log } = again)
      const { lsn, previousCrc } = writer
      writer = again.writer
      expect(writer.lsn).toBe(lsn)
      expect(writer.previousCrc).toBe(previousCrc)
    }
    await log.close()
    expect(first).toBeGreaterThan(30)
    expect(renames).toBeGreaterThan(20)
    expect(disk.openFiles).toBe(0)
  })

  test('the segment that is written is never given back', async () => {
    const { log, bounds, writer } = await openLog(new SimulatedDisk())
    await writer.append(sectors(24))
    await log.truncateBefore(Number.MAX_SAFE_INTEGER)
    expect(await entriesOf(log, bounds.firstPosition)).toHaveLength(1)
    await log.close()
  })

  test('who reads a segment keeps its bytes, however often the file would have been used again', async () => {
    const disk = new SimulatedDisk()
    const { log, bounds, writer } = await openLog(disk)
    for (let n = 0; n < 4; n++) await writer.append(sectors(11))
    const made = [...writer.durable]
    const reading = log.read(bounds.firstPosition)
    const head = await reading.next()
    const gone: string[] = []
    disk.fault = ({ kind, name }) => {
      if (kind === 'rename' || kind === 'remove') gone.push(`${kind} ${name}`)
      return undefined
    }
    for (let n = 0; n < 8; n++) {
      await writer.append(sectors(20))
      await log.truncateBefore(writer.durable.at(-1)!.position)
    }
    const second = await reading.next()
    for (const [index, { value }] of [head, second].entries()) {
      expect(Buffer.compare((value as LogEntry).bytes, made[index]!.bytes)).toBe(0)
    }
    await expect(reading.next()).rejects.toThrow('was given back')
    // Only a file that nobody reads is used again.
    expect(gone).toContain(`remove ${segmentName(1)}`)
    expect(gone).not.toContain(`rename ${segmentName(1)}`)
    expect(gone).toContain(`rename ${segmentName(2)}`)
    await log.close()
    expect(disk.openFiles).toBe(0)
  })

  test('a rename that the disk has no room for becomes a removal', async () => {
    const disk = new SimulatedDisk()
    const { log, writer } = await openLog(disk)
    for (let n = 0; n < 3; n++) await writer.append(sectors(20))
    await until(() => disk.names().includes(segmentName(4)))
    disk.fault = ({ kind, name }) =>
      kind === 'rename' && name === segmentName(1) ? { error: 'ENOSPC' } : undefined
    await log.truncateBefore(writer.durable[1]!.position)
    expect(disk.names()).not.toContain(segmentName(1))
    expect(log.usage().firstPosition).toBe(2 * SEGMENT + SEGMENT_HEADER_BYTES)
    disk.fault = ({ kind }) => (kind === 'rename' || kind === 'remove' ? { error: 'EIO' } : undefined)
    await expect(log.truncateBefore(writer.durable[2]!.position)).rejects.toThrow('EIO')
    expect(await entriesOf(log, writer.durable[1]!.position)).toHaveLength(2)
    disk.fault = undefined
    await log.truncateBefore(writer.durable[2]!.position)
    expect(log.usage().segments).toBe(1)
    await log.close()
  })
})

describe('damage', () => {
  test('a last entry that ends at any byte is cut, and the log goes on', async () => {
    const { disk, made } = await diskWith([sectors(20), sectors(2), sectors(2), [100, 300, 40]])
    const last = made.at(-1)!
    const name = segmentName(2)
    const at = last.position % SEGMENT
    let cut = 0
    let whole = 0
    for (let kept = 0; kept < last.bytes.length; kept++) {
      const torn = disk.clone()
      torn.damage(name, at + kept, new Uint8Array(last.bytes.length - kept))
      const isWhole = last.bytes.subarray(kept).every((byte) => byte === 0)
      const { log, bounds, writer } = await openLog(torn)
      expect(bounds.nextLsn).toBe(isWhole ? 5 : 4)
      if (isWhole) whole++
      else {
        cut++
        expect(bounds.nextPosition).toBe(last.position)
        // With its first 16 bytes it can be told from what an old entry may have left here.
        if (kept >= 16) {
          expect(bounds.cutBytes).toBe(last.bytes.length)
          expect(
            torn
              .bytesOf(name)
              .subarray(at)
              .every((byte) => byte === 0),
          ).toBe(true)
        }
      }
      await writer.append([kept])
      const found = await entriesOf(log, SEGMENT)
      expect(found.map(({ lsn }) => lsn)).toEqual(isWhole ? [1, 2, 3, 4, 5] : [1, 2, 3, 4])
      await log.close()
    }
    expect(cut + whole).toBe(last.bytes.length)
    // Zeros at the very end, the padding, belong to it either way.
    expect(whole).toBeLessThan(512)
    expect(cut).toBeGreaterThan(600)
  })

  test('a file that ends at any byte is refused: no crash shortens one', async () => {
    const { disk, made } = await diskWith([sectors(20), sectors(5), [100, 300]])
    const name = segmentName(2)
    let refused = 0
    for (let bytes = (made.at(-1)!.position % SEGMENT) - 1024; bytes < SEGMENT; bytes += 7) {
      const image = disk.clone()
      image.cut(name, bytes)
      const error = await refusal(fileLog(image).open())
      expect(error.code).toBe('LOG_CORRUPT')
      expect(error.message).toContain(`${name} at byte ${bytes}`)
      refused++
    }
    expect(refused).toBeGreaterThan(250)
    const older = disk.clone()
    older.cut(segmentName(1), 9000)
    const { log, bounds } = await openLog(older)
    const error = await refusal(entriesOf(log, bounds.firstPosition))
    expect(error.message).toContain(`${segmentName(1)} at byte 9000`)
    await log.close()
  })

  test(
    'a flipped bit is cut at the tail, refused, or harmless; never served',
    { timeout: 120_000 },
    async () => {
      const { disk, made } = await diskWith([
        [200, 1900, 30],
        sectors(18),
        [90, 0, 700],
        sectors(2),
        [40, 20],
      ])
      const last = made.at(-1)!
      const whole = new Map(disk.names().map((name) => [name, disk.bytesOf(name)]))
      const outcomes = { cut: 0, refusedAtOpen: 0, refusedAtRead: 0, harmless: 0 }
      const flip = async (name: string, byte: number, bit: number): Promise<keyof typeof outcomes> => {
        const image = disk.clone()
        image.damage(name, byte, Uint8Array.of(whole.get(name)![byte]! ^ (1 << bit)))
        const log = fileLog(image)
        const where = `bit ${bit} of byte ${byte} of ${name}`
        let error: Error | undefined
        let bounds: LogBounds | undefined
        const found: LogEntry[] = []
        try {
          bounds = await log.open()
          for await (const entry of log.read(bounds.firstPosition)) found.push(entry)
        } catch (thrown) {
          error = thrown as Error
        }
        await log.close()
        for (const [index, entry] of found.entries()) {
          if (!sameEntry(made[index]!, entry)) {
            throw new Error(`${where}: entry ${entry.lsn} was served damaged`)
          }
        }
        if (error !== undefined) {
          if (!(error instanceof SluiceError) || error.code !== 'LOG_CORRUPT') throw error
          if (!/in (log\.meta|\d{20}\.segment) at byte \d+/.test(error.message)) throw error
          return bounds === undefined ? 'refusedAtOpen' : 'refusedAtRead'
        }
        if (found.length === made.length) return 'harmless'
        const at = last.position % SEGMENT
        const isInLast = name === segmentName(2) && byte >= at && byte < at + last.bytes.length
        if (found.length !== made.length - 1 || !isInLast)
          throw new Error(`${where}: ${found.length} entries`)
        if (bounds!.cutBytes === 0) throw new Error(`${where}: cut without a word`)
        return 'cut'
      }
      let flips = 0
      const every = async (
        name: string,
        from: number,
        to: number,
        bits: readonly number[],
        step = 1,
      ): Promise<void> => {
        for (let byte = from; byte < to; byte += step) {
          for (const bit of bits) {
            outcomes[await flip(name, byte, bit)]++
            flips++
          }
        }
      }
      // Every bit of the headers, one in each byte of the rest; in a short run a part of them.
      const allBits = IS_LONG ? [0, 1, 2, 3, 4, 5, 6, 7] : [0, 3, 7]
      const step = IS_LONG ? 1 : 4
      await every(META_NAME, 0, 512, [3], step)
      for (const number of [1, 2, 3]) await every(segmentName(number), 0, 64, allBits)
      for (const entry of made) {
        const name = segmentName(Math.floor(entry.position / SEGMENT))
        const at = entry.position % SEGMENT
        await every(name, at, at + 64 + 48, allBits)
        await every(name, at + 64 + 48, at + Math.min(entry.bytes.length, 3000), [entry.lsn % 8], step)
      }
      expect(flips).toBe(outcomes.cut + outcomes.refusedAtOpen + outcomes.refusedAtRead + outcomes.harmless)
      expect(flips).toBeGreaterThan(IS_LONG ? 14_000 : 4_000)
      expect(outcomes.cut).toBeGreaterThan(IS_LONG ? 900 : 300)
      expect(outcomes.refusedAtOpen).toBeGreaterThan(IS_LONG ? 900 : 700)
      expect(outcomes.refusedAtRead).toBeGreaterThan(IS_LONG ? 4000 : 2000)
    },
  )

  test('a segment that does not continue the one before it is refused', async () => {
    const { disk } = await diskWith([sectors(9), sectors(9), sectors(20), sectors(3)])
    // An entry is gone without a trace: the header of the next segment knows that there was one.
    disk.damage(segmentName(1), SEGMENT_HEADER_BYTES + 9 * 512, new Uint8Array(9 * 512))
    const { log, bounds } = await openLog(disk)
    const error = await refusal(entriesOf(log, bounds.firstPosition))
    expect(error.code).toBe('LOG_CORRUPT')
    expect(error.message).toContain(`${segmentName(1)} at byte ${SEGMENT_HEADER_BYTES + 9 * 512}`)
    await log.close()
  })

  test('a disk that lies about its writes is found out when a later one survives', async () => {
    let refused = 0
    for (let seed = 0; seed < 60; seed++) {
      const random = randomFrom(seed)
      const disk = new SimulatedDisk()
      const { log, writer } = await openLog(disk)
      await writer.append(sectors(3))
      disk.fault = ({ kind, name }) =>
        kind === 'write' && name.endsWith('.segment') ? { lie: true } : undefined
      for (let n = 0; n < 3; n++) await writer.append(sectors(3))
      await log.close()
      const found = fileLog(disk.crash(random))
      try {
        const { nextLsn } = await found.open()
        expect(nextLsn).toBeLessThanOrEqual(5)
        await found.close()
      } catch (error) {
        expect((error as SluiceError).code).toBe('LOG_CORRUPT')
        refused++
      }
    }
    expect(refused).toBeGreaterThan(10)
  })
})

describe('a failing disk', () => {
  const faults: Record<string, Fault> = {
    'EIO on a write': { error: 'EIO' },
    'ENOSPC on a write': { error: 'ENOSPC' },
    'a short write': { short: 700 },
  }

  test.each(Object.entries(faults))('%s of the active segment is the last', async (_name, fault) => {
    let failed = 0
    let recovered = 0
    for (let failing = 1; failing <= 12; failing++) {
      const random = randomFrom(failing)
      const disk = new SimulatedDisk()
      const notices: LogNotice[] = []
      const { log, writer } = await openLog(disk, { onNotice: (notice) => notices.push(notice) })
      let entries = 0
      disk.fault = ({ kind, name }) =>
        kind === 'write' && name.endsWith('.segment') && ++entries === failing ? fault : undefined
      const error = await refusal(
        (async () => {
          for (;;) await writer.append(sectors(5))
        })(),
      )
      expect(error.code).toBe('LOG_FAILED')
      expect(error.message).toContain('.segment')
      expect(writer.durable).toHaveLength(failing - 1)
      const { write, sync, syncDirectory, rename } = disk.counts
      disk.fault = undefined
      const { position, lsn, bytes } = writer.underWay!
      for (let again = 0; again < 3; again++)
        expect(await refusal(log.append(position, lsn, bytes))).toBe(error)
      expect(await refusal(log.truncateBefore(position))).toBe(error)
      expect(log.reserve(0, NOW_MS)).toBe(false)
      for (let turns = 0; turns < 20; turns++) await tick()
      await log.close()
      expect(disk.counts).toMatchObject({ write, sync, syncDirectory, rename })
      expect(disk.openFiles).toBe(0)
      expect(notices.filter(({ kind }) => kind === 'failed')).toHaveLength(1)
      failed++

      // The next process finds it in memory or not; what it finds must be on disk when it says so.
      const survivor = disk.kill(random)
      const next = await openLog(survivor)
      expect([failing - 1, failing]).toContain(next.bounds.nextLsn - 1)
      const afterwards = await openLog(survivor.crash(random))
      expect(afterwards.bounds.nextLsn).toBe(next.bounds.nextLsn)
      const found = await entriesOf(afterwards.log, afterwards.bounds.firstPosition)
      for (const [index, made] of writer.durable.entries()) {
        expect(Buffer.compare(found[index]!.bytes, made.bytes)).toBe(0)
      }
      recovered += found.length
    }
    expect(failed).toBe(12)
    expect(recovered).toBeGreaterThanOrEqual((11 * 12) / 2)
  })

  test('the first failure of the directory is the last as well', async () => {
    const disk = new SimulatedDisk()
    const { log, writer } = await openLog(disk)
    await writer.append(sectors(20))
    await until(() => disk.names().includes(segmentName(2)))
    disk.fault = ({ kind }) => (kind === 'syncDirectory' ? { error: 'EIO' } : undefined)
    const error = await refusal(
      (async () => {
        for (;;) await writer.append(sectors(20))
      })(),
    )
    expect(error.code).toBe('LOG_FAILED')
    const { syncDirectory } = disk.counts
    await log.close()
    expect(disk.counts.syncDirectory).toBe(syncDirectory)
  })

  test('a failure while opening is told as one, and leaves nothing open', async () => {
    const { disk } = await diskWith([sectors(3), sectors(3)])
    disk.damage(segmentName(1), SEGMENT_HEADER_BYTES + 5 * 512, new Uint8Array(512))
    let failed = 0
    for (const kind of ['write', 'syncDirectory'] as const) {
      const image = disk.clone()
      image.fault = (operation) => (operation.kind === kind ? { error: 'EIO' } : undefined)
      const error = await refusal(fileLog(image).open())
      expect(error.code).toBe('LOG_FAILED')
      expect(image.openFiles).toBe(0)
      failed++
    }
    expect(failed).toBe(2)
  })
})

describe('a full disk', () => {
  test('publishes are refused while entries that must go on still do, and taken again when there is room', async () => {
    const disk = new SimulatedDisk()
    const notices: string[] = []
    let nowMs = 0
    const { log, writer } = await openLog(disk, {
      reserveBytes: 2 * SEGMENT,
      now: () => nowMs,
      onNotice: ({ kind }) => notices.push(kind),
    })
    disk.capacityBytes = 7 * SEGMENT + 512
    let published = 0
    for (; published < 100; published++) {
      nowMs += 1001
      log.reserve(0, nowMs)
      for (let turns = 0; turns < 10; turns++) await tick()
      if (!log.reserve(4 * 512, nowMs)) break
      await writer.append(sectors(4))
    }
    // Seven segments of 24 sectors, less the reserve of two.
    expect(published).toBeGreaterThanOrEqual(4 * 5)
    expect(published).toBeLessThan(6 * 7)
    // The reserve is there for what is not refused.
    let settled = 0
    for (; settled < 12; settled++) await writer.append(sectors(4))
    expect(log.reserve(512, nowMs)).toBe(false)
    expect(notices).toContain('no-segment')
    await log.truncateBefore(writer.durable.at(-1)!.position)
    expect(log.usage().segments).toBe(1)
    for (let turns = 0; turns < 10; turns++) await tick()
    nowMs += 1001
    log.reserve(0, nowMs)
    for (let turns = 0; turns < 10; turns++) await tick()
    expect(log.reserve(4 * 512, nowMs)).toBe(true)
    await writer.append(sectors(4))
    await log.close()
    expect((await openLog(disk)).bounds.nextLsn).toBe(published + settled + 2)
  })

  test('an entry without a segment waits for room, and gets it', async () => {
    const disk = new SimulatedDisk()
    const { log, writer } = await openLog(disk)
    await until(() => disk.names().includes(segmentName(2)))
    disk.capacityBytes = disk.usedBytes
    for (let n = 0; n < 2; n++) await writer.append(sectors(24))
    let done = false
    const waiting = writer.append(sectors(24)).then(() => {
      done = true
    })
    for (let turns = 0; turns < 50; turns++) await tick()
    expect(done).toBe(false)
    expect(log.reserve(0, NOW_MS)).toBe(false)
    // What was tried is not left behind.
    expect(disk.names().filter((name) => name.includes('draft'))).toEqual([])
    disk.capacityBytes += SEGMENT
    await waiting
    expect(writer.durable).toHaveLength(3)
    await log.close()
  })

  test('a segment that is given back serves the entry that waits', async () => {
    const disk = new SimulatedDisk()
    const { log, writer } = await openLog(disk)
    await until(() => disk.names().includes(segmentName(2)))
    disk.capacityBytes = disk.usedBytes
    for (let n = 0; n < 2; n++) await writer.append(sectors(24))
    const waiting = writer.append(sectors(24))
    for (let turns = 0; turns < 10; turns++) await tick()
    await log.truncateBefore(writer.durable[1]!.position)
    await waiting
    expect(disk.names()).toEqual([segmentName(2), segmentName(3), META_NAME])
    await log.close()
  })

  test('below the low mark nothing is taken until a fifth more is free', async () => {
    const disk = new SimulatedDisk({ capacityBytes: 100 * SEGMENT })
    let nowMs = 1
    const notices: string[] = []
    const { log } = await openLog(disk, {
      lowFreeBytes: 50 * SEGMENT,
      reserveBytes: SEGMENT,
      now: () => nowMs,
      onNotice: ({ kind }) => notices.push(kind),
    })
    await until(() => disk.names().includes(segmentName(2)))
    const asked = async (freeSegments: number): Promise<boolean> => {
      disk.capacityBytes = disk.usedBytes + freeSegments * SEGMENT
      nowMs += 1_000
      log.reserve(0, nowMs)
      for (let turns = 0; turns < 10; turns++) await tick()
      return log.reserve(512, nowMs)
    }
    expect(await asked(80)).toBe(true)
    expect(await asked(50)).toBe(true)
    expect(await asked(49)).toBe(false)
    expect(await asked(59)).toBe(false)
    expect(await asked(60)).toBe(true)
    expect(await asked(51)).toBe(true)
    expect(notices).toEqual(['disk-low', 'disk-ok'])
    // Within a second the answer comes from memory.
    const { space } = disk.counts
    for (let n = 0; n < 1000; n++) log.reserve(n, nowMs)
    expect(disk.counts.space).toBe(space)
    await log.close()
  })

  test('what was refused for want of the reserve is refused until a fifth more than it is free', async () => {
    const disk = new SimulatedDisk({ capacityBytes: 100 * SEGMENT })
    let nowMs = 1
    const { log } = await openLog(disk, { reserveBytes: 20 * SEGMENT, now: () => nowMs })
    await until(() => disk.names().includes(segmentName(2)))
    const whole = SEGMENT - SEGMENT_HEADER_BYTES
    // Two segments are there; the others are what is free.
    const asked = async (segments: number): Promise<boolean> => {
      disk.capacityBytes = disk.usedBytes + (segments - 2) * SEGMENT
      nowMs += 1_000
      log.reserve(0, nowMs)
      for (let turns = 0; turns < 10; turns++) await tick()
      return log.reserve(512, nowMs)
    }
    const needed = Math.ceil((20 * SEGMENT + 512) / whole)
    const cleared = Math.ceil((24 * SEGMENT + 512) / whole)
    expect(await asked(needed)).toBe(true)
    expect(await asked(needed - 1)).toBe(false)
    expect(await asked(needed)).toBe(false)
    expect(await asked(cleared - 1)).toBe(false)
    expect(await asked(cleared)).toBe(true)
    expect(await asked(needed)).toBe(true)
    await log.close()
  })

  test('room that comes and goes many times a second is reported once in ten seconds, with a count', async () => {
    const disk = new SimulatedDisk({ capacityBytes: 100 * SEGMENT })
    let nowMs = 1
    const notices: string[] = []
    const { log } = await openLog(disk, {
      lowFreeBytes: 50 * SEGMENT,
      now: () => nowMs,
      onNotice: ({ kind, text }) => notices.push(`${kind}: ${text}`),
    })
    await until(() => disk.names().includes(segmentName(2)))
    let refused = 0
    for (let i = 0; i < 22; i++) {
      disk.capacityBytes = disk.usedBytes + (i % 2 === 0 ? 40 : 80) * SEGMENT
      nowMs += 1_000
      log.reserve(0, nowMs)
      for (let turns = 0; turns < 10; turns++) await tick()
      if (!log.reserve(512, nowMs)) refused++
    }
    expect(refused).toBe(11)
    const free = (segments: number): string => String(segments * SEGMENT)
    const low = `disk-low: ${free(40)} bytes are free, less than ${free(50)}: publishes are refused.`
    const ok = `disk-ok: ${free(80)} bytes are free: publishes are accepted.`
    const again = `${low} It happened 5 times since the last notice.`
    expect(notices).toEqual([low, ok, again, ok, again, ok])
    await log.close()
  })

  test('the low mark is five per cent or 1 GiB, within reason', () => {
    const gib = 2 ** 30
    expect(defaultLowFreeBytes(100 * gib)).toBe(5 * gib)
    expect(defaultLowFreeBytes(12 * gib)).toBe(gib)
    expect(defaultLowFreeBytes(2 * gib)).toBe(gib / 5)
    expect(defaultLowFreeBytes(10_000 * gib)).toBe(16 * gib)
  })

  test('a failed preparation of the next segment harms nobody', async () => {
    for (const kind of ['write', 'sync', 'open', 'rename'] as const) {
      const disk = new SimulatedDisk()
      disk.fault = (operation) =>
        operation.kind === kind && operation.name === 'segment.draft' && operation.index > 0
          ? { error: 'EIO' }
          : undefined
      const { log, writer } = await openLog(disk)
      for (let turns = 0; turns < 10; turns++) await tick()
      for (let n = 0; n < 8; n++) await writer.append(sectors(3))
      // Faults are counted per kind: only the draft of the first segment went through.
      expect(disk.names()).not.toContain(segmentName(2))
      disk.fault = undefined
      for (let n = 0; n < 8; n++) await writer.append(sectors(5))
      await log.close()
      expect((await openLog(disk)).bounds.nextLsn).toBe(17)
    }
  })
})

describe('closing', () => {
  test('nothing is open and nothing is written afterwards, wherever it comes', async () => {
    let closings = 0
    for (let steps = 0; steps < 40; steps++) {
      const random = randomFrom(steps)
      const disk = new SimulatedDisk({ mode: 'queued', random })
      const log = fileLog(disk)
      const writer = new EntryWriter(log, await disk.run(log.open()))
      const appending = (async () => {
        for (let n = 0; n < 6; n++) await writer.append(sectors(9))
      })().catch(() => undefined)
      for (let step = 0; step < steps; step++) {
        disk.step()
        await tick()
      }
      await disk.run(log.close())
      await disk.run(appending)
      const { write, open } = disk.counts
      while (disk.step()) await tick()
      for (let turns = 0; turns < 5; turns++) await tick()
      expect(disk.openFiles).toBe(0)
      expect(disk.counts).toMatchObject({ write, open })
      const { bounds } = await openLog(disk.clone({}))
      expect(bounds.nextLsn).toBe(writer.durable.length + 1)
      closings++
    }
    expect(closings).toBe(40)
  })

  test('an entry that waits for a segment is told', async () => {
    const disk = new SimulatedDisk()
    const { log, writer } = await openLog(disk)
    await until(() => disk.names().includes(segmentName(2)))
    disk.capacityBytes = 0
    for (let n = 0; n < 2; n++) await writer.append(sectors(24))
    const waiting = writer.append(sectors(24))
    const told = waiting.then(
      () => 'done',
      (error: Error) => error.message,
    )
    for (let turns = 0; turns < 5; turns++) await tick()
    await log.close()
    expect(await told).toContain('closed while an entry waited')
    expect(disk.openFiles).toBe(0)
    await expect(log.append(0, 0, new Uint8Array(512))).rejects.toThrow('not open')
    await expect(log.readRange(writer.durable[0]!.position, 1)).rejects.toThrow('not open')
  })
})

// ---------------------------------------------------------------------------------------------------------- crashes

interface History {
  /** Every entry that was ever begun and not cut, by number from 1 on. */
  readonly begun: MadeEntry[]
  /** How many of them are promised: resolved, or reported by an `open`. */
  promised: number
  /** What was asked to be given back, and what was reported to be. */
  truncating: number
  truncated: number
}

const checked = { images: 0, entries: 0, torn: 0, partial: 0, tails: new Set<string>() }

/** Opens the image, compares what it holds with the history, and closes it. Returns how many entries it promised. */
async function checkImage(disk: SimulatedDisk, history: History, what: string): Promise<number> {
  const { begun, promised, truncating, truncated } = history
  const fail = (why: string): never => {
    throw new Error(`${what}: ${why}`)
  }
  const log = fileLog(disk)
  let bounds: LogBounds
  try {
    bounds = await log.open()
  } catch (cause) {
    throw new Error(`${what}: ${(cause as Error).message}`, { cause })
  }
  const last = bounds.nextLsn - 1
  if (last < promised) fail(`${last} entries are left of ${promised}`)
  if (last > begun.length) fail(`${last} entries came of ${begun.length}`)
  if (bounds.firstPosition > Math.max(truncating, SEGMENT + SEGMENT_HEADER_BYTES)) fail('too much is gone')
  if (bounds.firstPosition - SEGMENT_HEADER_BYTES + SEGMENT <= truncated) fail('what was given back is there')
  let index = begun.findIndex(({ position }) => position >= bounds.firstPosition)
  if (index < 0) index = begun.length
  for await (const entry of log.read(bounds.firstPosition)) {
    const made = begun[index++]
    if (made === undefined || made.lsn !== entry.lsn || made.position !== entry.position) {
      fail(`entry ${entry.lsn} stands where it never was`)
    } else if (!sameEntry(made, entry)) fail(`entry ${entry.lsn} is not what was written`)
    checked.entries++
  }
  if (index < last) fail(`entry ${index + 1} was not read`)
  checked.images++
  checked.tails.add(log.recovery.tail!)
  if (last > promised) checked.partial++
  if (bounds.cutBytes > 0) checked.torn++
  await log.close()
  if (disk.openFiles > 0) fail(`${disk.openFiles} files stayed open`)
  return last
}

/** One power cut now, and another in what came of it: what recovery reported is a promise as well. */
async function checkCrash(
  disk: SimulatedDisk,
  history: History,
  random: Random,
  what: string,
): Promise<void> {
  const image = disk.crash(random)
  const promised = await checkImage(image, history, what)
  if (random() < 0.2) await checkImage(image.crash(random), { ...history, promised }, `${what}, and again`)
}

function recordSizes(random: Random): number[] {
  const largest = random() < 0.15 ? 3500 : 500
  return Array.from({ length: Math.floor(random() * 4) }, () => Math.floor(random() * largest))
}

/** One life of a log on a queued disk. It ends in the middle of something. */
async function live(disk: SimulatedDisk, history: History, random: Random, what: string): Promise<void> {
  const log = fileLog(disk)
  /** Drives the disk until `work` is done, with a crash at a share of all steps. */
  const drive = async <T>(work: Promise<T>, share: number): Promise<T> => {
    let settled = false
    const mark = (): void => {
      settled = true
    }
    work.then(mark, mark)
    for (let idle = 0; ;) {
      await tick()
      if (settled) return work
      if (random() < share) await checkCrash(disk, history, random, what)
      idle = disk.step() ? 0 : idle + 1
      if (idle > 1000) throw new Error(`${what}: nothing is queued, and the work is not done`)
    }
  }
  const bounds = await drive(log.open(), 0.5)
  const found = bounds.nextLsn - 1
  if (found < history.promised || found > history.begun.length) throw new Error(`${what}: ${found} entries`)
  history.begun.length = found
  history.promised = found
  const writer = new EntryWriter(log, bounds)
  for (let n = 0; n < 20; n++) {
    const entry = writer.make(recordSizes(random))
    history.begun.push(entry)
    await drive(log.append(entry.position, entry.lsn, entry.bytes), 0.4)
    history.promised++
    writer.follow(entry)
    if (random() < 0.1) log.markCheckpoint(entry.position)
    if (random() < 0.08) {
      const target = history.begun[Math.floor(random() * history.begun.length)]!.position
      history.truncating = Math.max(history.truncating, target)
      await drive(log.truncateBefore(target), 0.4)
      history.truncated = Math.max(history.truncated, target)
    }
  }
  const entry = writer.make(recordSizes(random))
  history.begun.push(entry)
  let resolved = false
  void log.append(entry.position, entry.lsn, entry.bytes).then(() => (resolved = true))
  if (random() < 0.3) {
    history.truncating = Math.max(history.truncating, entry.position)
    void log.truncateBefore(entry.position)
  }
  for (let steps = Math.floor(random() * 6); steps > 0; steps--) {
    disk.step()
    await tick()
  }
  if (resolved) history.promised++
}

const SEEDS = seedsFrom(1, 40, 1_000)

describe('crashes', () => {
  test(
    'what any power cut leaves is what was promised, in order, and at most one entry more',
    { timeout: TIMEOUT_MS },
    async () => {
      for (const seed of SEEDS) {
        const random = randomFrom(seed)
        const options: SimulatedDiskOptions = { mode: 'queued', random }
        let disk = new SimulatedDisk(options)
        const history: History = { begun: [], promised: 0, truncating: 0, truncated: 0 }
        for (let life = 1; life <= 4; life++) {
          await live(disk, history, random, `SLUICE_SEED=${seed}, life ${life}`)
          disk = random() < 0.5 ? disk.kill(random, options) : disk.crash(random, options)
        }
      }
      // One seed, run again to look into it, need not meet everything.
      if (SEEDS.length < 40) return
      expect(checked.images).toBeGreaterThan(90 * SEEDS.length)
      expect(checked.entries).toBeGreaterThan(1000 * SEEDS.length)
      expect(checked.torn).toBeGreaterThan(2 * SEEDS.length)
      expect(checked.partial).toBeGreaterThan(10 * SEEDS.length)
      expect([...checked.tails].sort()).toEqual(['bare', 'clean', 'torn', 'torn-in-next'])
    },
  )

  test('a creation that is cut short at any step begins again or is done', async () => {
    const rows = new Set<string>()
    let images = 0
    for (const seed of seedsFrom(1, 15, 200)) {
      const random = randomFrom(seed)
      const disk = new SimulatedDisk({ mode: 'queued', random })
      const log = fileLog(disk)
      let isOpen = false
      const opening = log.open().then(() => {
        isOpen = true
      })
      for (let after = 0; after < 5;) {
        await tick()
        for (let n = 0; n < 3; n++) {
          const image = disk.crash(random)
          const again = await openLog(image)
          rows.add(again.log.recovery.directory!)
          // Once it is open, its number is known and is never drawn again.
          if (isOpen) expect(again.log.recovery.directory).toBe('ordinary')
          await again.writer.append([10])
          await again.log.close()
          images++
        }
        disk.step()
        if (isOpen) after++
      }
      await opening
    }
    expect(images).toBeGreaterThan(ONE_SEED === undefined ? 375 : 0)
    expect([...rows].sort()).toEqual(['create', 'create-again', 'ordinary'])
  })

  test('the same seed gives the same history', async () => {
    const trace = async (): Promise<unknown> => {
      const random = randomFrom(7)
      const disk = new SimulatedDisk({ mode: 'queued', random })
      const history: History = { begun: [], promised: 0, truncating: 0, truncated: 0 }
      await live(disk, history, random, 'seed 7')
      return [disk.counts, history.promised, history.begun.map(({ crc }) => crc), random()]
    }
    expect(await trace()).toEqual(await trace())
  })
})
