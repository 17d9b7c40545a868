/** What a file log does when it opens, for each state of its directory and its tail. */
import { readFile } from 'node:fs/promises'
import { describe, expect, test } from 'vitest'
import { SimulatedDisk } from '../../../../test/simulation/disk.js'
import { EntryWriter } from '../../../../test/simulation/entries.js'
import {
  diskWith,
  entriesOf,
  fileLog,
  openLog,
  refusal,
  sectors,
  SEGMENT,
} from '../../../../test/simulation/file-logs.js'
import { DIRECTORY_ROWS, matchingRows, TAIL_ROWS } from './decisions.js'
import type { DirectoryRow, TailRow } from './decisions.js'
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
    const cellOf = (values: readonly string[] | undefined): string => values?.join(', ') ?? ''
    expect(rows.map((row) => row.slice(0, -1))).toEqual([
      ...DIRECTORY_ROWS.map(({ row, meta, files, numbers, sizes, headers }) => [
        row,
        ...[meta, files, numbers, sizes, headers].map(cellOf),
      ]),
      ...TAIL_ROWS.map(({ row, entries, behind, next, later }) => [
        row,
        ...[entries, behind, next, later].map(cellOf),
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

  /** Two used segments and a spare: segment 1 is full, segment 2 has two entries, and segment 3 is blank. */
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
    'a creation that was interrupted after its segment': {
      directory: 'create-again',
      tail: 'bare',
      make: async () => {
        const { disk } = await diskWith([])
        disk.lose(META_NAME)
        return disk
      },
    },
    'a new log without entries': {
      directory: 'ordinary',
      tail: 'bare',
      make: async () => (await diskWith([])).disk,
    },
    'a log that was closed': {
      directory: 'ordinary',
      tail: 'clean',
      make: async () => (await diskWith(twoSegments)).disk,
    },
    'no log.meta': {
      directory: 'rebuild-meta',
      tail: 'clean',
      make: async () => {
        const { disk } = await diskWith(twoSegments)
        disk.lose(META_NAME)
        return disk
      },
    },
    'a damaged log.meta': {
      directory: 'rebuild-meta',
      tail: 'clean',
      make: async () => {
        const { disk } = await diskWith(twoSegments)
        disk.damage(META_NAME, 9, Uint8Array.of(0xff))
        return disk
      },
    },
    'a log.meta and no segments': {
      directory: 'segments-lost',
      refuses: META_NAME,
      make: async () => {
        const { disk } = await diskWith(twoSegments)
        for (const name of disk.names()) if (name !== META_NAME) disk.lose(name)
        return disk
      },
    },
    'neither a log.meta nor a header': {
      directory: 'salt-lost',
      refuses: META_NAME,
      make: async () => {
        const { disk } = await diskWith([sectors(3)])
        disk.lose(META_NAME)
        disk.damage(segmentName(1), 3, Uint8Array.of(0xff))
        return disk
      },
    },
    'no header in a log that has freed segments': {
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
    'a first entry of which only the segment header was written': {
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
      // The removal of the unfinished entry and the rewrite of the last entry are durable.
      const second = await openLog(disk.clone())
      expect(second.log.recovery.directory).toBe('ordinary')
      expect(second.bounds).toEqual({ ...bounds, cutBytes: 0 })
      await second.log.close()
      // The log continues from the end that was found.
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
      // A refused directory is left unchanged, for investigation.
      expect(disk.names()).toEqual(names)
      expect(disk.counts.write).toBe((await state.make()).counts.write)
    }
    expect(disk.openFiles).toBe(0)
  })

  test('the states above cover every row', () => {
    const refusing = Object.values(states).filter(({ refuses }) => refuses !== undefined)
    expect(new Set(refusing.map(({ directory, tail }) => tail ?? directory))).toEqual(REFUSED)
    const met = new Set(Object.values(states).flatMap(({ directory, tail }) => [directory, tail]))
    met.delete(undefined)
    expect(met.size).toBe(DIRECTORY_ROWS.length + TAIL_ROWS.length)
  })
})
