/** What a file log does with each state of its directory and its tail when it opens, and with damaged bytes. */
import { SluiceError } from '@sluice/protocol'
import { readFile } from 'node:fs/promises'
import { describe, expect, test } from 'vitest'
import { IS_LONG } from '../../../../test/amount.js'
import { randomFrom, SimulatedDisk } from '../../../../test/simulation/disk.js'
import { EntryWriter } from '../../../../test/simulation/entries.js'
import {
  diskWith,
  entriesOf,
  fileLog,
  openLog,
  refusal,
  sameEntry,
  sectors,
  SEGMENT,
} from '../../../../test/simulation/file-logs.js'
import { DIRECTORY_ROWS, matchingRows, TAIL_ROWS } from './decisions.js'
import type { DirectoryRow, TailRow } from './decisions.js'
import type { LogBounds, LogEntry } from './log.js'
import { META_NAME, SEGMENT_HEADER_BYTES, segmentName } from './segment.js'

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
