/**
 * The messages of one subscription that were delivered and not yet taken, grouped by run. The subscription adds runs,
 * announces messages, and takes them one by one.
 *
 * Invariant: in order of arrival, the first `announced` of the `count` messages are named in STARTED or STARTING, and
 * the isolation counts them as being handled. `bytes` is the size of the records of all `count` messages.
 */
import { DELIVER_FLAG, recordSize, type TagRange } from '@sluice/protocol'
import { Fifo } from './fifo.js'
import type { Isolation } from './isolation.js'
import { DeliveredMessage } from './message.js'
import { eachCopiedPart, partOf, recordsBytes, type Run } from './run.js'

/** Maximum number of ranges in one STARTED or STARTING. */
export const STARTED_RANGES_MAX = 4_096

export class RunBuffer {
  count = 0
  announced = 0
  bytes = 0
  /**
   * Whether the last `announce` stopped at a message that the isolation does not admit. `wake` is called when the
   * isolation may admit that message.
   */
  isBlocked = false
  readonly #isolation: Isolation
  readonly #wake: () => void
  readonly #runs = new Fifo<Run>()
  readonly #push = (run: Run): void => this.push(run)
  /** In the first run, the index of the first message that was not taken, and its position in the records. */
  #index = 0
  #at = 0

  constructor(isolation: Isolation, wake: () => void) {
    this.#isolation = isolation
    this.#wake = wake
  }

  /** Adds a run whose records are in a frame, which the next read overwrites. */
  keep(run: Run): void {
    eachCopiedPart(run, this.#push)
  }

  /** Adds a run whose records have already been copied. */
  push(run: Run): void {
    this.#runs.push(run)
    this.count += run.count
    this.bytes += recordsBytes(run)
  }

  /** Tag of the first message; undefined if the buffer is empty. */
  get firstTag(): number | undefined {
    const run = this.#runs.at(0)
    return run === undefined ? undefined : (run.firstTag + this.#index) >>> 0
  }

  /** Tags of all messages, one range for each run. */
  ranges(): TagRange[] {
    const ranges: TagRange[] = []
    let index = this.#index
    for (const run of this.#runs) {
      ranges.push({ firstTag: (run.firstTag + index) >>> 0, count: run.count - index })
      index = 0
    }
    return ranges
  }

  /**
   * Announces up to `count` further messages and returns their tags. A message that must be alone is announced by
   * itself, when no other message is being handled. With `regardless`, the message is announced even while other
   * messages are being handled.
   */
  announce(count: number, regardless: boolean): TagRange[] {
    this.isBlocked = false
    const isolation = this.#isolation
    const ranges: { firstTag: number; count: number }[] = []
    let skip = this.announced
    let left = Math.min(count, this.count - this.announced)
    let index = this.#index
    for (let r = 0; left > 0 && r < this.#runs.length; r++, index = 0) {
      const run = this.#runs.at(r)!
      let from = index
      if (skip > 0) {
        const skipped = Math.min(skip, run.count - from)
        skip -= skipped
        from += skipped
      }
      if (from === run.count) continue
      const alone = (run.flags & DELIVER_FLAG.alone) !== 0
      if (alone && this.announced > 0 && regardless) break
      if (!regardless && !isolation.admits(alone, this.#wake)) {
        this.isBlocked = true
        break
      }
      const named = alone ? 1 : Math.min(left, run.count - from)
      addRange(ranges, (run.firstTag + from) >>> 0, named)
      isolation.enter(named, alone)
      this.announced += named
      left -= named
      if (alone || ranges.length === STARTED_RANGES_MAX) break
    }
    return ranges
  }

  /** Withdraws all announcements. */
  unannounce(): void {
    const { announced } = this
    this.announced = 0
    if (announced > 0) this.#isolation.leave(announced)
  }

  /** Takes the first message, which must be announced. */
  take(): DeliveredMessage {
    this.announced--
    return this.takeUnannounced()
  }

  /** Takes the first message, which must not be announced. */
  takeUnannounced(): DeliveredMessage {
    const run = this.#runs.at(0)!
    const at = this.#at + run.gap
    const message = new DeliveredMessage(run, this.#index, at)
    const size = recordSize(run.records, at)
    this.count--
    this.bytes -= size
    if (++this.#index < run.count) this.#at = at + size
    else {
      this.#index = 0
      this.#at = 0
      this.#runs.skip(1)
    }
    return message
  }

  /**
   * Drops the messages that have one of `tags`. Removes the tags of these messages from `tags`, and returns the removed
   * tags.
   */
  drop(tags: Set<number>): readonly number[] {
    const dropped: number[] = []
    if (this.count === 0 || tags.size === 0) return dropped
    const runs: Run[] = []
    const keep = (run: Run, from: number, to: number, records: Uint8Array): void => {
      if (from < to) runs.push(partOf(run, from, to, records))
    }
    let announced = 0
    let seen = 0
    let index = this.#index
    let at = this.#at
    for (const run of this.#runs) {
      let keptIndex = index
      let keptAt = at
      for (; index < run.count; index++, seen++) {
        const size = recordSize(run.records, at + run.gap)
        const next = at + run.gap + size
        const tag = (run.firstTag + index) >>> 0
        if (tags.delete(tag)) {
          keep(run, keptIndex, index, run.records.subarray(keptAt, at))
          keptIndex = index + 1
          keptAt = next
          dropped.push(tag)
          if (seen < this.announced) announced++
          this.bytes -= size
        }
        at = next
      }
      keep(run, keptIndex, index, run.records.subarray(keptAt, at))
      index = 0
      at = 0
    }
    this.#runs.replace(runs)
    this.#index = 0
    this.#at = 0
    this.count -= dropped.length
    this.announced -= announced
    if (announced > 0) this.#isolation.leave(announced)
    return dropped
  }

  /** Counts all messages again and compares the results. @throws Error naming what differs */
  invariants(): void {
    let count = 0
    let bytes = 0
    let skipped = this.#index
    for (const run of this.#runs) {
      let at = 0
      for (let index = 0; index < run.count; index++) {
        const size = recordSize(run.records, at + run.gap)
        if (index >= skipped) {
          if (count === 0 && at !== this.#at)
            differs(`the first message is at ${at}; it was expected at ${this.#at}`)
          count++
          bytes += size
        }
        at += run.gap + size
      }
      if (at !== run.records.length) differs(`records of ${run.records.length} bytes end at ${at}`)
      skipped = 0
    }
    if (count !== this.count || bytes !== this.bytes)
      differs(`kept ${this.count} messages, ${this.bytes} bytes; counted ${count} messages, ${bytes} bytes`)
    if (this.announced < 0 || this.announced > count) differs(`${this.announced} of ${count} are announced`)
  }

  /** Drops all messages. */
  clear(): void {
    this.#runs.clear()
    this.#index = 0
    this.#at = 0
    this.count = 0
    this.bytes = 0
    this.unannounce()
  }
}

/** Adds tags to ranges. The last range grows if the tags follow it. */
export function addRange(
  ranges: { firstTag: number; count: number }[],
  firstTag: number,
  count: number,
): void {
  const last = ranges[ranges.length - 1]
  if (last !== undefined && (last.firstTag + last.count) >>> 0 === firstTag) last.count += count
  else ranges.push({ firstTag, count })
}

function differs(what: string): never {
  throw new Error(`buffer: ${what}`)
}
