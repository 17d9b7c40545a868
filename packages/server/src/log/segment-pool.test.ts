/** Segments that are freed and used again, and a disk that is full. */
import { describe, expect, test } from 'vitest'
import { SimulatedDisk } from '../../../../test/simulation/disk.js'
import {
  entriesOf,
  NOW_MS,
  openLog,
  sectors,
  SEGMENT,
  tick,
  until,
} from '../../../../test/simulation/file-logs.js'
import type { LogEntry } from './log.js'
import { META_NAME, SEGMENT_HEADER_BYTES, segmentName } from './segment.js'
import { defaultLowFreeBytes, defaultReserveBytes } from './segment-pool.js'

describe('freeing segments', () => {
  test('segments are recycled or removed, and their old entries never reappear', async () => {
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
      // Each round writes into the segments that the previous one freed.
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

  test('the active segment is never freed', async () => {
    const { log, bounds, writer } = await openLog(new SimulatedDisk())
    await writer.append(sectors(24))
    await log.truncateBefore(Number.MAX_SAFE_INTEGER)
    expect(await entriesOf(log, bounds.firstPosition)).toHaveLength(1)
    await log.close()
  })

  test('a reader keeps the bytes of its segment, which is not recycled', async () => {
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
    await expect(reading.next()).rejects.toThrow('was freed')
    // Only a file without readers is recycled.
    expect(gone).toContain(`remove ${segmentName(1)}`)
    expect(gone).not.toContain(`rename ${segmentName(1)}`)
    expect(gone).toContain(`rename ${segmentName(2)}`)
    await log.close()
    expect(disk.openFiles).toBe(0)
  })

  test('a freed segment is removed when the disk has no room for a rename', async () => {
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

describe('a full disk', () => {
  test('publishes are refused while other entries continue, and accepted again when there is room', async () => {
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
      log.hasRoomFor(0, nowMs)
      for (let turns = 0; turns < 10; turns++) await tick()
      if (!log.hasRoomFor(4 * 512, nowMs)) break
      await writer.append(sectors(4))
    }
    // There is room for seven segments of 24 sectors, minus a reserve of two segments.
    expect(published).toBeGreaterThanOrEqual(4 * 5)
    expect(published).toBeLessThan(6 * 7)
    // Entries other than publishes are not refused, and use the reserve.
    let settled = 0
    for (; settled < 12; settled++) await writer.append(sectors(4))
    expect(log.hasRoomFor(512, nowMs)).toBe(false)
    expect(notices).toContain('no-segment')
    await log.truncateBefore(writer.durable.at(-1)!.position)
    expect(log.usage().segments).toBe(1)
    for (let turns = 0; turns < 10; turns++) await tick()
    nowMs += 1001
    log.hasRoomFor(0, nowMs)
    for (let turns = 0; turns < 10; turns++) await tick()
    expect(log.hasRoomFor(4 * 512, nowMs)).toBe(true)
    await writer.append(sectors(4))
    await log.close()
    expect((await openLog(disk)).bounds.nextLsn).toBe(published + settled + 2)
  })

  test('an entry without a segment waits until there is room', async () => {
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
    expect(log.hasRoomFor(0, NOW_MS)).toBe(false)
    // The failed try leaves no draft.
    expect(disk.names().filter((name) => name.includes('draft'))).toEqual([])
    disk.capacityBytes += SEGMENT
    await waiting
    expect(writer.durable).toHaveLength(3)
    await log.close()
  })

  test('a freed segment is used by the entry that waits', async () => {
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

  test('below the low mark, publishes are refused until a fifth more than the mark is free', async () => {
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
      log.hasRoomFor(0, nowMs)
      for (let turns = 0; turns < 10; turns++) await tick()
      return log.hasRoomFor(512, nowMs)
    }
    expect(await asked(80)).toBe(true)
    expect(await asked(50)).toBe(true)
    expect(await asked(49)).toBe(false)
    expect(await asked(59)).toBe(false)
    expect(await asked(60)).toBe(true)
    expect(await asked(51)).toBe(true)
    expect(notices).toEqual(['disk-low', 'disk-ok'])
    // Within a second the free space is not read again.
    const { space } = disk.counts
    for (let n = 0; n < 1000; n++) log.hasRoomFor(n, nowMs)
    expect(disk.counts.space).toBe(space)
    await log.close()
  })

  test('without the whole reserve, publishes are refused until a fifth more than the reserve is free', async () => {
    const disk = new SimulatedDisk({ capacityBytes: 100 * SEGMENT })
    let nowMs = 1
    const { log } = await openLog(disk, { reserveBytes: 20 * SEGMENT, now: () => nowMs })
    await until(() => disk.names().includes(segmentName(2)))
    const whole = SEGMENT - SEGMENT_HEADER_BYTES
    // Two segments exist; the free space has room for the others.
    const asked = async (segments: number): Promise<boolean> => {
      disk.capacityBytes = disk.usedBytes + (segments - 2) * SEGMENT
      nowMs += 1_000
      log.hasRoomFor(0, nowMs)
      for (let turns = 0; turns < 10; turns++) await tick()
      return log.hasRoomFor(512, nowMs)
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

  test('room that changes many times a second is reported once in ten seconds, with a count', async () => {
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
      log.hasRoomFor(0, nowMs)
      for (let turns = 0; turns < 10; turns++) await tick()
      if (!log.hasRoomFor(512, nowMs)) refused++
    }
    expect(refused).toBe(11)
    const free = (segments: number): string => String(segments * SEGMENT)
    const low = `disk-low: ${free(40)} bytes are free, less than ${free(50)}: publishes are refused.`
    const ok = `disk-ok: ${free(80)} bytes are free: publishes are accepted.`
    const again = `${low} It happened 5 times since the last notice.`
    expect(notices).toEqual([low, ok, again, ok, again, ok])
    await log.close()
  })

  test('the low mark is 5 % of the disk or 1 GiB, whichever is more, but at most a tenth of the disk and 16 GiB', () => {
    const gib = 2 ** 30
    expect(defaultLowFreeBytes(100 * gib)).toBe(5 * gib)
    expect(defaultLowFreeBytes(12 * gib)).toBe(gib)
    expect(defaultLowFreeBytes(2 * gib)).toBe(Math.floor(gib / 5))
    expect(defaultLowFreeBytes(10_000 * gib)).toBe(16 * gib)
  })

  test('the reserve is four segments or a third of the disk, and at least a segment', () => {
    const mib = 2 ** 20
    expect(defaultReserveBytes(4 * mib, 1000 * mib)).toBe(16 * mib)
    expect(defaultReserveBytes(4 * mib, 40 * mib)).toBe(Math.floor((40 * mib) / 3))
    expect(defaultReserveBytes(4 * mib, 6 * mib)).toBe(4 * mib)
  })

  // Both values appear in log lines.
  test.each([1, 40, 41, 2_000, 50_001, 300_007])(
    'the low mark and the reserve are whole bytes on a disk of %i MiB and a few bytes',
    (sizeMib) => {
      for (let more = 0; more < 60; more++) {
        const totalBytes = sizeMib * 2 ** 20 + more
        for (const bytes of [defaultLowFreeBytes(totalBytes), defaultReserveBytes(4 << 20, totalBytes)])
          expect(bytes % 1).toBe(0)
      }
    },
  )

  test('a failed preparation of the next segment does no harm', async () => {
    for (const kind of ['write', 'sync', 'open', 'rename'] as const) {
      const disk = new SimulatedDisk()
      disk.fault = (operation) =>
        operation.kind === kind && operation.name === 'segment.draft' && operation.index > 0
          ? { error: 'EIO' }
          : undefined
      const { log, writer } = await openLog(disk)
      for (let turns = 0; turns < 10; turns++) await tick()
      for (let n = 0; n < 8; n++) await writer.append(sectors(3))
      // Only the draft of the first segment, whose operations have index 0, succeeded.
      expect(disk.names()).not.toContain(segmentName(2))
      disk.fault = undefined
      for (let n = 0; n < 8; n++) await writer.append(sectors(5))
      await log.close()
      expect((await openLog(disk)).bounds.nextLsn).toBe(17)
    }
  })
})
