/** The disk becomes full at every step of a short history: nothing confirmed is lost, and nothing waits forever. */
import { expect, test } from 'vitest'
import { Space } from '../../packages/server/src/state/space.js'
import { SegmentPool } from '../../packages/server/src/log/segment-pool.js'
import { IS_LONG, TIMEOUT_MS } from '../amount.js'
import { otherLog, replaced } from './defects.js'
import {
  FullDisk,
  SEGMENT_BYTES,
  STEPS,
  type Filling,
  type FullDiskDefect,
  type FullDiskReport,
  type FullEnding,
} from './full-disk.js'
import { Violation } from './trace.js'

const ENDINGS: readonly FullEnding[] = ['none', 'power', 'kill', 'close']

/** Sizes of the file system, in segments. For the smaller sizes the reserve is a third of the size. */
const SEGMENTS = [14, 9, 11]
const RUNS = IS_LONG ? STEPS * SEGMENTS.length : STEPS

/**
 * Runs the history for each step; in each run the disk becomes full after that step. The endings and sizes take turns;
 * in the long mode each step runs with every size.
 */
async function everyStep(filling: Filling, endings: readonly FullEnding[]): Promise<FullDiskReport[]> {
  const reports: FullDiskReport[] = []
  for (let fillAfter = 1; fillAfter <= STEPS; fillAfter++) {
    const ending = endings[fillAfter % endings.length]!
    for (const segments of IS_LONG ? SEGMENTS : [SEGMENTS[fillAfter % SEGMENTS.length]!]) {
      try {
        reports.push(await new FullDisk({ fillAfter, filling, ending, segments }).run())
      } catch (error) {
        const what = `${filling}, ${ending}, ${segments} segments, full after step ${fillAfter}`
        throw new Error(`${what}: ${String(error)}`, { cause: error })
      }
    }
  }
  return reports
}

const count = (reports: FullDiskReport[], holds: (report: FullDiskReport) => boolean): number =>
  reports.filter(holds).length

test.each(IS_LONG ? ENDINGS.map((ending) => [ending]) : [ENDINGS])(
  'full of its own messages: every settle is confirmed, and every start succeeds',
  { timeout: TIMEOUT_MS },
  async (...endings) => {
    const reports = await everyStep('reserved', endings)
    expect(reports.length).toBe(RUNS)
    expect(count(reports, ({ waited, refusedStart }) => waited || refusedStart)).toBe(0)
    expect(count(reports, ({ refused }) => refused > 0)).toBe(RUNS)
    // The entries of these settles take more space than the whole reserve.
    expect(count(reports, ({ drained }) => drained * 512 > 4 * SEGMENT_BYTES)).toBeGreaterThan(RUNS / 3)
  },
)

test.each(ENDINGS)(
  'full of other files, %s: settles wait, and continue once there is space',
  { timeout: TIMEOUT_MS },
  async (ending) => {
    const reports = await everyStep('stuffed', [ending])
    expect(reports.length).toBe(RUNS)
    expect(count(reports, ({ waited }) => waited)).toBeGreaterThan(RUNS / 3)
    if (ending === 'none') expect(count(reports, ({ resumed }) => resumed > 0)).toBeGreaterThan(RUNS / 3)
    else expect(count(reports, ({ refusedStart }) => refusedStart)).toBeGreaterThan(RUNS / 3)
  },
)

interface Planted extends FullDiskDefect {
  readonly name: string
  readonly filling: Filling
  readonly ending: FullEnding
}

const DEFECTS: readonly Planted[] = [
  {
    name: 'the reserve is one segment too small',
    filling: 'reserved',
    ending: 'none',
    log: (log) =>
      otherLog(log, { hasRoomFor: (bytes, nowMs) => log.hasRoomFor(bytes - SEGMENT_BYTES, nowMs) }),
  },
  {
    name: 'publishes use up the reserve',
    filling: 'reserved',
    ending: 'none',
    log: (log) => otherLog(log, { hasRoomFor: (bytes) => bytes <= log.room() }),
  },
  {
    name: 'publishes use up the space for the pages of a checkpoint',
    filling: 'reserved',
    ending: 'none',
    install: () => {
      const before = Object.getOwnPropertyDescriptor(Space.prototype, 'checkpointBytesMax')!
      Object.defineProperty(Space.prototype, 'checkpointBytesMax', {
        ...before,
        get: () => -4 * SEGMENT_BYTES,
      })
      return () => Object.defineProperty(Space.prototype, 'checkpointBytesMax', before)
    },
  },
  {
    name: 'a waiting settle is not woken when there is space',
    filling: 'stuffed',
    ending: 'none',
    neverWakes: true,
    install: () => replaced(SegmentPool.prototype, () => ({ wake: () => {} })),
  },
  {
    name: 'a start waits for space forever',
    filling: 'stuffed',
    ending: 'power',
    log: (log) => otherLog(log, { stuck: () => new Promise(() => {}) }),
  },
  {
    name: 'a stop waits for space forever',
    filling: 'stuffed',
    ending: 'close',
    log: (log) => otherLog(log, { stuck: () => new Promise(() => {}) }),
  },
  {
    name: 'a settle that waits for space is confirmed',
    filling: 'stuffed',
    ending: 'kill',
    log: (log) =>
      otherLog(log, {
        append: (position, lsn, entry) => Promise.race([log.append(position, lsn, entry), log.stuck()]),
      }),
  },
]

test.each(DEFECTS)('found: $name', { timeout: 120_000 }, async ({ filling, ending, ...defect }) => {
  let found: unknown
  for (let fillAfter = 1; fillAfter <= STEPS && found === undefined; fillAfter++) {
    try {
      await new FullDisk({
        fillAfter,
        filling,
        ending,
        defect,
        segments: SEGMENTS[fillAfter % SEGMENTS.length]!,
      }).run()
    } catch (error) {
      found = error
    }
  }
  expect(found).toBeInstanceOf(Violation)
})
