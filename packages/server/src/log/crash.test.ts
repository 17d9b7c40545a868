/** A file log whose process or machine stops at any step, and the state that the next start finds. */
import { describe, expect, test } from 'vitest'
import { ONE_SEED, seedsFrom, TIMEOUT_MS } from '../../../../test/amount.js'
import { countCrashPoints } from '../../../../test/crash-points.js'
import { randomFrom, SimulatedDisk } from '../../../../test/simulation/disk.js'
import type { Random, SimulatedDiskOptions } from '../../../../test/simulation/disk.js'
import { EntryWriter } from '../../../../test/simulation/entries.js'
import type { MadeEntry } from '../../../../test/simulation/entries.js'
import { fileLog, openLog, sameEntry, SEGMENT, tick } from '../../../../test/simulation/file-logs.js'
import type { LogBounds } from './log.js'
import { SEGMENT_HEADER_BYTES } from './segment.js'

interface History {
  /** Every entry whose append was started and that was not cut off, in the order of LSNs from 1 on. */
  readonly begun: MadeEntry[]
  /** Number of promised entries: those whose append resolved, or that an `open` reported. */
  promised: number
  /** Position up to which truncation was requested. */
  truncating: number
  /** Position up to which truncation was completed. */
  truncated: number
}

const checked = { images: 0, entries: 0, torn: 0, partial: 0, tails: new Set<string>() }

/**
 * Opens a log on the image, compares its entries with the history, and closes the log. Returns the number of entries.
 * These entries count as promised from then on.
 */
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
  if (last < promised) fail(`${last} of ${promised} promised entries are left`)
  if (last > begun.length) fail(`${last} entries were read, but only ${begun.length} were started`)
  if (bounds.firstPosition > Math.max(truncating, SEGMENT + SEGMENT_HEADER_BYTES))
    fail('too much was truncated')
  if (bounds.firstPosition - SEGMENT_HEADER_BYTES + SEGMENT <= truncated) fail('a truncated segment exists')
  let index = begun.findIndex(({ position }) => position >= bounds.firstPosition)
  if (index < 0) index = begun.length
  for await (const entry of log.read(bounds.firstPosition)) {
    const made = begun[index++]
    if (made === undefined || made.lsn !== entry.lsn || made.position !== entry.position) {
      fail(`entry ${entry.lsn} is at a position where it was not written`)
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

/** Simulates a power cut now, and another one during the recovery. Entries that recovery reports count as promised. */
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

/** Runs a log on a queued disk. The run ends during an append or just after it. */
async function run(disk: SimulatedDisk, history: History, random: Random, what: string): Promise<void> {
  const log = fileLog(disk)
  /** Runs the disk until `work` is done, and simulates a crash after the given share of its steps. */
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

const SEEDS = seedsFrom(1, 130, 1_000)

describe('crashes', () => {
  test(
    'a power cut at any step keeps the promised entries, in order, and at most one more',
    { timeout: TIMEOUT_MS },
    async (context) => {
      for (const seed of SEEDS) {
        const random = randomFrom(seed)
        const options: SimulatedDiskOptions = { mode: 'queued', random }
        let disk = new SimulatedDisk(options)
        const history: History = { begun: [], promised: 0, truncating: 0, truncated: 0 }
        for (let number = 1; number <= 4; number++) {
          await run(disk, history, random, `SLUICE_SEED=${seed}, run ${number}`)
          disk = random() < 0.5 ? disk.kill(random, options) : disk.crash(random, options)
        }
      }
      countCrashPoints(context, checked.images)
      // A single seed need not reach every case.
      if (SEEDS.length < 40) return
      expect(checked.images).toBeGreaterThan(90 * SEEDS.length)
      expect(checked.entries).toBeGreaterThan(1000 * SEEDS.length)
      expect(checked.torn).toBeGreaterThan(2 * SEEDS.length)
      expect(checked.partial).toBeGreaterThan(10 * SEEDS.length)
      expect([...checked.tails].sort()).toEqual(['bare', 'clean', 'torn', 'torn-in-next'])
    },
  )

  test('after an interruption at any step, the creation of a log starts again or is complete', async (context) => {
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
          // After `open` the salt is durable, and the log is never created again.
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
    countCrashPoints(context, images)
    expect(images).toBeGreaterThan(ONE_SEED === undefined ? 375 : 0)
    expect([...rows].sort()).toEqual(['create', 'create-again', 'ordinary'])
  })

  test('the same seed gives the same history', async () => {
    const trace = async (): Promise<unknown> => {
      const random = randomFrom(7)
      const disk = new SimulatedDisk({ mode: 'queued', random })
      const history: History = { begun: [], promised: 0, truncating: 0, truncated: 0 }
      await run(disk, history, random, 'seed 7')
      return [disk.counts, history.promised, history.begun.map(({ crc }) => crc), random()]
    }
    expect(await trace()).toEqual(await trace())
  })
})
