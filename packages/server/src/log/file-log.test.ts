/** Appending, reading and closing a log on files, and a disk that fails. */
import { describe, expect, test } from 'vitest'
import { randomFrom, SimulatedDisk } from '../../../../test/simulation/disk.js'
import type { Fault } from '../../../../test/simulation/disk.js'
import { EntryWriter } from '../../../../test/simulation/entries.js'
import {
  diskWith,
  entriesOf,
  fileLog,
  NOW_MS,
  openLog,
  refusal,
  ROOM,
  sectors,
  SEGMENT,
  tick,
  until,
} from '../../../../test/simulation/file-logs.js'
import type { LogNotice } from './notices.js'
import { placeEntry, SEGMENT_HEADER_BYTES, segmentName } from './segment.js'

describe('appending and reading', () => {
  test('entries are read as they were written, from every position and across segments', async () => {
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

  test('a segment can end anywhere, even before old entries of a recycled file', async () => {
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

  test('one entry is written at a time, and is readable once it is durable', async () => {
    const disk = new SimulatedDisk({ mode: 'queued', random: randomFrom(1) })
    const log = fileLog(disk)
    const bounds = await disk.run(log.open())
    const writer = new EntryWriter(log, bounds)
    const first = writer.make(sectors(3))
    const appending = log.append(first.position, first.lsn, first.bytes)
    await expect(log.append(first.position + 3 * 512, 2, first.bytes)).rejects.toThrow(
      'Another entry is being appended',
    )
    // An entry that is not durable is not read.
    expect(await disk.run(entriesOf(log, bounds.firstPosition))).toEqual([])
    await disk.run(appending)
    await disk.run(log.close())
  })

  test('an entry that does not fit in the rest of a segment goes to the next segment', async () => {
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
      await expect(log.append(position, lsn, bytes)).rejects.toThrow(
        /continue the log|place of the next entry/,
      )
    }
    expect(disk.counts.write).toBe(writes)
    await log.append(good.position, 2, good.bytes)
    await log.close()
  })

  test('a reader also returns entries that are appended in the meantime, including those in the next segment', async () => {
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

  test('reads outside the durable part are refused', async () => {
    const { log, writer } = await openLog(new SimulatedDisk())
    for (let n = 0; n < 3; n++) await writer.append(sectors(20))
    const [first, , third] = writer.durable
    await expect(log.readRange(third!.position + 20 * 512 - 1, 2)).rejects.toThrow(RangeError)
    await expect(log.readRange(first!.position + 24 * 512 - 1, 2)).rejects.toThrow(RangeError)
    await expect(log.readRange(SEGMENT, 1)).rejects.toThrow(RangeError)
    await expect(log.readRange(9 * SEGMENT + 5000, 1)).rejects.toThrow(RangeError)
    await expect(entriesOf(log, first!.position + 512)).rejects.toThrow('No entry begins')
    await log.truncateBefore(third!.position)
    await expect(log.readRange(first!.position, 1)).rejects.toThrow('was freed')
    await expect(entriesOf(log, first!.position)).rejects.toThrow('was freed')
    await log.close()
  })

  test('the next start finds the checkpoint of the newest segment', async () => {
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

  test('an existing log keeps its segment size and salt', async () => {
    const { disk, made } = await diskWith([sectors(2)])
    const { log, bounds } = await openLog(disk, { segmentBytes: 2 * SEGMENT, random32: () => 5 })
    expect(log.segmentBytes).toBe(SEGMENT)
    expect(bounds.salt).toBe(0xc0ffee)
    expect(await entriesOf(log, made[0]!.position)).toHaveLength(1)
    await log.close()
  })
})

describe('a failing disk', () => {
  const faults: Record<string, Fault> = {
    'EIO on a write': { error: 'EIO' },
    'ENOSPC on a write': { error: 'ENOSPC' },
    'a short write': { short: 700 },
  }

  test.each(Object.entries(faults))('%s of the active segment ends the log', async (_name, fault) => {
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
      expect(log.hasRoomFor(0, NOW_MS)).toBe(false)
      for (let turns = 0; turns < 20; turns++) await tick()
      await log.close()
      expect(disk.counts).toMatchObject({ write, sync, syncDirectory, rename })
      expect(disk.openFiles).toBe(0)
      expect(notices.filter(({ kind }) => kind === 'failed')).toHaveLength(1)
      failed++

      // The page cache may still have the failed entry. If the next process finds that entry, the entry must be on disk
      // from then on.
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

  test('the first failed sync of the directory ends the log', async () => {
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

  test('a failed write during `open` is LOG_FAILED, and leaves no file open', async () => {
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

describe('closing', () => {
  test('at any step leaves no file open and writes nothing afterwards', async () => {
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

  test('rejects the append that waits for a segment', async () => {
    const disk = new SimulatedDisk()
    const { log, writer } = await openLog(disk)
    await until(() => disk.names().includes(segmentName(2)))
    disk.capacityBytes = 0
    for (let n = 0; n < 2; n++) await writer.append(sectors(24))
    const waiting = writer.append(sectors(24))
    const outcome = waiting.then(
      () => 'done',
      (error: Error) => error.message,
    )
    for (let turns = 0; turns < 5; turns++) await tick()
    await log.close()
    expect(await outcome).toContain('closed while an entry waited')
    expect(disk.openFiles).toBe(0)
    await expect(log.append(0, 0, new Uint8Array(512))).rejects.toThrow('not open')
    await expect(log.readRange(writer.durable[0]!.position, 1)).rejects.toThrow('not open')
  })
})
