import { expect, test, describe } from 'vitest'
import { EntryWriter } from '../../../../test/simulation/entries.js'
import type { MadeEntry } from '../../../../test/simulation/entries.js'
import { SimulatedDisk, randomFrom } from '../../../../test/simulation/disk.js'
import type { Random } from '../../../../test/simulation/disk.js'
import { FileLog } from './file-log.js'
import type { FileLogOptions, LogNotice } from './file-log.js'
import type { Log } from './log.js'

const SEGMENT = 16 * 1024

function fileLog(disk: SimulatedDisk, options: Partial<FileLogOptions> = {}): FileLog {
  return new FileLog({
    disk,
    segmentBytes: SEGMENT,
    lowFreeBytes: 0,
    now: () => 1_700_000_000_000,
    random32: () => 0xc0ffee,
    sleep: () => new Promise((resolve) => setImmediate(resolve)),
    ...options,
  })
}

async function entriesOf(log: Log, position: number): Promise<{ position: number; lsn: number; bytes: Uint8Array }[]> {
  const found = []
  for await (const entry of log.read(position)) found.push(entry)
  return found
}

function sizes(random: Random): number[] {
  const batches = Math.floor(random() * 4)
  const largest = random() < 0.15 ? 3500 : 500
  return Array.from({ length: batches }, () => Math.floor(random() * largest))
}

interface History {
  /** Every entry that was ever begun, by number from 1 on. */
  readonly begun: MadeEntry[]
  /** How many of them are promised: resolved, or reported by an `open`. */
  promised: number
  /** The oldest position that must be there, and the one that may be. */
  truncating: number
  truncated: number
}

let imagesChecked = 0
let entriesChecked = 0

/** Opens the image and compares what it holds with the history. Leaves the log open. */
async function checkImage(
  disk: SimulatedDisk,
  history: History,
  what: string,
): Promise<{ log: FileLog; bounds: Awaited<ReturnType<FileLog['open']>> }> {
  const log = fileLog(disk)
  const bounds = await log.open()
  const found = await entriesOf(log, bounds.firstPosition)
  imagesChecked++
  entriesChecked += found.length
  const last = bounds.nextLsn - 1
  const firstKept = history.begun.findIndex(({ position }) => position >= bounds.firstPosition)
  if (last < history.promised || last > history.begun.length) {
    throw new Error(`${what}: ${last} entries, promised ${history.promised}, begun ${history.begun.length}`)
  }
  if (bounds.firstPosition > Math.max(history.truncating, SEGMENT + 4096)) throw new Error(`${what}: too much was given back`)
  if ((bounds.firstPosition + SEGMENT - 4096) <= history.truncated) throw new Error(`${what}: what was given back is there`)
  if (firstKept >= 0 && last >= firstKept + 1) {
    if (found.length !== last - firstKept) throw new Error(`${what}: ${found.length} entries read, expected ${last - firstKept}`)
  } else if (found.length !== 0) throw new Error(`${what}: ${found.length} entries from nowhere`)
  for (const entry of found) {
    const made = history.begun[entry.lsn - 1]!
    if (made.position !== entry.position || Buffer.compare(made.bytes, entry.bytes) !== 0) {
      throw new Error(`${what}: entry ${entry.lsn} is not what was written`)
    }
  }
  return { log, bounds }
}

/** One life of a log on a queued disk: appends, checkpoints, truncation; an image is checked now and then. */
async function live(
  disk: SimulatedDisk,
  history: History,
  random: Random,
  appends: number,
  look: () => Promise<void>,
  lookShare: number,
): Promise<void> {
  const log = fileLog(disk)
  const drive = async <T>(work: Promise<T>): Promise<T> => {
    let settled = false
    const mark = (): void => {
      settled = true
    }
    work.then(mark, mark)
    for (;;) {
      await new Promise((resolve) => setImmediate(resolve))
      if (settled) return work
      if (random() < lookShare) await look()
      disk.step()
    }
  }
  const bounds = await drive(log.open())
  history.begun.length = bounds.nextLsn - 1
  history.promised = bounds.nextLsn - 1
  const writer = new EntryWriter(log, bounds)
  for (let n = 0; n < appends; n++) {
    const entry = writer.make(sizes(random))
    history.begun.push(entry)
    await drive(log.append(entry.position, entry.lsn, entry.bytes))
    history.promised++
    writer.lsn++
    writer.previousCrc = entry.crc
    if (random() < 0.1) log.markCheckpoint(entry.position)
    if (random() < 0.08) {
      const target = history.begun[Math.floor(random() * history.begun.length)]!.position
      history.truncating = Math.max(history.truncating, target)
      await drive(log.truncateBefore(target))
      history.truncated = Math.max(history.truncated, target)
    }
  }
  // Dies in the middle of something: an entry, or what came of it.
  const entry = writer.make(sizes(random))
  history.begun.push(entry)
  let resolved = false
  void log.append(entry.position, entry.lsn, entry.bytes).then(() => (resolved = true))
  if (random() < 0.3) {
    history.truncating = Math.max(history.truncating, entry.position)
    void log.truncateBefore(entry.position)
  }
  for (let steps = Math.floor(random() * 6); steps > 0; steps--) {
    disk.step()
    await new Promise((resolve) => setImmediate(resolve))
  }
  if (resolved) history.promised++
}

describe('crashes', () => {
  test('every image after a power cut holds exactly the promised entries, and at most one more', async () => {
    const t = performance.now()
    for (let seed = 1; seed <= Number(process.env['SEEDS'] ?? 40); seed++) {
      const random = randomFrom(seed)
      let disk = new SimulatedDisk({ mode: 'queued', random })
      const history: History = { begun: [], promised: 0, truncating: 0, truncated: 0 }
      const look = async (): Promise<void> => {
        const snapshot = { ...history, begun: history.begun }
        const image = disk.crash(random)
        const what = `seed ${seed}, image ${imagesChecked}`
        const { log, bounds } = await checkImage(image, snapshot, what)
        await log.close()
        // What recovery reported is a promise too, whatever happens next.
        const again = await checkImage(image.crash(random), { ...snapshot, promised: bounds.nextLsn - 1 }, `${what} again`)
        await again.log.close()
      }
      for (let life = 0; life < 3; life++) {
        await live(disk, history, random, 20, look, 0.1)
        const options = { mode: 'queued', random } as const
        disk = random() < 0.5 ? disk.kill(random, options) : disk.crash(random, options)
      }
    }
    console.log({ imagesChecked, entriesChecked, ms: performance.now() - t })
    expect(imagesChecked).toBeGreaterThan(100)
  }, 600000)
})
