/**
 * Damage at rest: torn entries, truncated files, flipped bits, lost writes. Each `open` cuts off an unfinished entry,
 * refuses the log, or loses nothing.
 */
import { SluiceError } from '@sluice/protocol'
import { describe, expect, test } from 'vitest'
import { IS_LONG } from '../../../../test/amount.js'
import { randomFrom, SimulatedDisk } from '../../../../test/simulation/disk.js'
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
import type { LogBounds, LogEntry } from './log.js'
import { META_NAME, SEGMENT_HEADER_BYTES, segmentName } from './segment.js'

describe('damage', () => {
  test('the last entry is cut off if it is torn at any byte, and the log continues', async () => {
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
        // The first 16 bytes of an entry distinguish it from an old entry of a recycled file.
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
    // The padding at the end of the entry is zeros whether it was written or not.
    expect(whole).toBeLessThan(512)
    expect(cut).toBeGreaterThan(600)
  })

  test('a file that was truncated at any byte is refused, because no crash shortens a file', async () => {
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
    'an entry with a flipped bit is cut off at the end of the log, refused, or still correct, but never returned damaged',
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
            throw new Error(`${where}: entry ${entry.lsn} was returned damaged`)
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
        if (bounds!.cutBytes === 0) throw new Error(`${where}: cut, but cutBytes is 0`)
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
      // A long run flips every bit of the headers, and one bit of every other tested byte; a short run flips only some
      // of these bits.
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

  test('a segment that does not continue the previous segment is refused', async () => {
    const { disk } = await diskWith([sectors(9), sectors(9), sectors(20), sectors(3)])
    // The last entry of a segment is erased. The header of the next segment shows that it existed.
    disk.damage(segmentName(1), SEGMENT_HEADER_BYTES + 9 * 512, new Uint8Array(9 * 512))
    const { log, bounds } = await openLog(disk)
    const error = await refusal(entriesOf(log, bounds.firstPosition))
    expect(error.code).toBe('LOG_CORRUPT')
    expect(error.message).toContain(`${segmentName(1)} at byte ${SEGMENT_HEADER_BYTES + 9 * 512}`)
    await log.close()
  })

  test('a disk that lost a write is detected if a later write survives', async () => {
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
