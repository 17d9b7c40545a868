/**
 * What each segment of the log still contains: the batches with live messages, or with acknowledged messages that their
 * queues retain. These batches are called live here. They are counted as the queues report changes.
 *
 * Invariant 6: the live bytes of a segment are the bytes of those batches in it that have a live or retained message,
 * headers included. Copying the segment would copy these bytes, without the records that sparse copies leave out. For a
 * shared batch they include its `refer` facts: one for each row of a chunk that has such a message of the batch.
 */
import { BATCH_HEADER_BYTES } from '@sluice/protocol'
import { DIRECTORY_BYTES } from './directory.js'
import { REFER_BYTES, type LogUse, type Queue } from '../queue/index.js'
import type { PageTree } from './page-tree.js'

interface Use {
  liveBytes: number
}

/** A shared batch with live or retained messages. */
interface Shared {
  /** Size of the batch, its header included. */
  bytes: number
  /** Number of rows, in the chunks of all queues, that have such a message of the batch. */
  rows: number
  /** Estimate of the record bytes of these messages. A record that several queues need counts for each of them. */
  neededBytes: number
}

/** Estimate of the bytes that a sparse copy of the batch would leave out, which is too low if queues need the same records. */
function sparableIn({ bytes, neededBytes }: Shared): number {
  return Math.max(0, bytes - BATCH_HEADER_BYTES - neededBytes)
}

/** Bytes that a copy of the batch appends: the batch and a batch with its `refer` facts. */
function sharedBytes({ bytes, rows }: Pick<Shared, 'bytes' | 'rows'>): number {
  return bytes + BATCH_HEADER_BYTES + rows * REFER_BYTES
}

export class Segments implements LogUse {
  readonly pages: PageTree
  /** Bytes of live batches in all segments. */
  liveBytes = 0
  /** Bytes of messages and batches that stopped being live since the broker started. */
  goneBytes = 0
  /** The part of `goneBytes` that is not in a live batch any more. */
  #freedBytes = 0
  readonly #segmentBytes: number
  readonly #uses = new Map<number, Use>()
  /**
   * Shared batches that are needed, by position. Each of them has a row in a chunk that is in memory, so the memory budget
   * bounds this table too.
   */
  readonly #shared = new Map<number, Shared>()
  #last: Use | undefined
  #lastNumber = -1

  constructor(segmentBytes: number, pages: PageTree) {
    this.#segmentBytes = segmentBytes
    this.pages = pages
  }

  segmentOf(position: number): number {
    return Math.floor(position / this.#segmentBytes)
  }

  add(position: number, bytes: number): void {
    this.#use(position).liveBytes += bytes
    this.liveBytes += bytes
  }

  share(position: number, bytes: number, rows: number, neededBytes: number): void {
    const shared = this.#shared.get(position)
    if (shared === undefined) {
      const added = { bytes, rows, neededBytes }
      this.#shared.set(position, added)
      this.add(position, sharedBytes(added))
      this.#freedBytes -= sparableIn(added)
      return
    }
    const before = sparableIn(shared)
    shared.rows += rows
    shared.neededBytes += neededBytes
    this.#freedBytes += before - sparableIn(shared)
    this.add(position, rows * REFER_BYTES)
  }

  remove(position: number, bytes: number, isShared: boolean): void {
    if (isShared) this.#unshare(position)
    else {
      this.#remove(position, bytes)
      this.goneBytes += BATCH_HEADER_BYTES
      this.#freedBytes += bytes
    }
  }

  #unshare(position: number): void {
    const shared = this.#shared.get(position)!
    if (shared.rows === 1) {
      this.#shared.delete(position)
      this.#remove(position, sharedBytes(shared))
      this.goneBytes += sharedBytes(shared) - sparableIn(shared)
      this.#freedBytes += sharedBytes(shared)
      return
    }
    shared.rows--
    this.#remove(position, REFER_BYTES)
    this.goneBytes += REFER_BYTES
    this.#freedBytes += REFER_BYTES
  }

  gone(bytes: number): void {
    this.goneBytes += bytes
  }

  goneShared(position: number, bytes: number): void {
    const shared = this.#shared.get(position)!
    const before = sparableIn(shared)
    shared.neededBytes -= bytes
    this.goneBytes += sparableIn(shared) - before
  }

  /**
   * Estimate of the part of `liveBytes` that sparse copies would leave out. It can be wrong where the sizes of single
   * records are not known, and drifts where messages are not counted one by one, so only differences of it are used.
   */
  get sparableBytes(): number {
    return this.goneBytes - this.#freedBytes
  }

  #remove(position: number, bytes: number): void {
    this.#use(position).liveBytes -= bytes
    this.liveBytes -= bytes
  }

  move(from: number, to: number, bytes: number, copyBytes: number): void {
    this.#use(from).liveBytes -= bytes
    this.#use(to).liveBytes += copyBytes
    this.liveBytes += copyBytes - bytes
    this.#freedBytes += bytes - copyBytes
  }

  /**
   * The shared batch at `from` was copied to `to`, where it takes `copyBytes`, with the facts about its rows that are
   * needed.
   */
  moveShared(from: number, to: number, copyBytes: number): void {
    const shared = this.#shared.get(from)!
    const bytes = sharedBytes(shared)
    this.#shared.delete(from)
    this.#shared.set(to, shared)
    this.#freedBytes += sparableIn(shared)
    shared.bytes = copyBytes
    this.#freedBytes -= sparableIn(shared)
    this.#use(from).liveBytes -= bytes
    this.add(to, sharedBytes(shared))
    this.liveBytes -= bytes
  }

  /** Bytes of live batches in the segment that contains `position`. */
  liveBytesAt(position: number): number {
    return this.#uses.get(Math.floor(position / this.#segmentBytes))?.liveBytes ?? 0
  }

  /**
   * Recounts the live batches of all queues and compares the result with the counters. @throws Error that names the
   * segment that differs
   */
  audit(queues: Iterable<Queue>): void {
    const counted = new Map<number, number>()
    const shared = new Map<number, Pick<Shared, 'bytes' | 'rows'>>()
    let total = 0
    const count = (position: number, bytes: number): void => {
      const number = Math.floor(position / this.#segmentBytes)
      counted.set(number, (counted.get(number) ?? 0) + bytes)
      total += bytes
    }
    for (const queue of queues) {
      if (queue.group !== undefined) continue
      queue.chunks.eachNeededBatch((position, bytes, isShared) => {
        if (!isShared) count(position, bytes)
        else shared.set(position, { bytes, rows: (shared.get(position)?.rows ?? 0) + 1 })
      })
    }
    for (const [position, batch] of shared) count(position, sharedBytes(batch))
    for (const position of new Set([...shared.keys(), ...this.#shared.keys()])) {
      const rows = shared.get(position)?.rows ?? 0
      const known = this.#shared.get(position)?.rows ?? 0
      if (rows !== known)
        throw new Error(
          `The shared batch at ${position} has ${rows} needed rows, but its counter is ${known}.`,
        )
    }
    for (const number of new Set([...counted.keys(), ...this.#uses.keys()])) {
      const bytes = counted.get(number) ?? 0
      const { liveBytes } = this.#uses.get(number) ?? { liveBytes: 0 }
      if (bytes !== liveBytes)
        throw new Error(`Segment ${number} has ${bytes} live bytes, but its counter is ${liveBytes}.`)
    }
    if (total !== this.liveBytes)
      throw new Error(`All segments have ${total} live bytes, but the counter is ${this.liveBytes}.`)
  }

  /** Bytes of a checkpoint that writes every page, every node and the directory. */
  get upkeepBytes(): number {
    return this.pages.bytes + this.pages.nodeBytes + DIRECTORY_BYTES
  }

  /** Start of the oldest segment with a live message at or after `position`; Infinity when no message is live there. */
  oldestLive(position: number): number {
    let oldest = Infinity
    const from = Math.floor(position / this.#segmentBytes)
    for (const [number, use] of this.#uses) {
      if (use.liveBytes > 0 && number >= from && number < oldest) oldest = number
    }
    return oldest * this.#segmentBytes
  }

  /** Forgets the segments that end at or before `position`; they no longer exist. */
  forgetBefore(position: number): void {
    for (const [number, { liveBytes }] of this.#uses) {
      if ((number + 1) * this.#segmentBytes > position) continue
      this.liveBytes -= liveBytes
      this.#uses.delete(number)
    }
    this.#last = undefined
    this.#lastNumber = -1
  }

  #use(position: number): Use {
    const number = Math.floor(position / this.#segmentBytes)
    if (number === this.#lastNumber) return this.#last!
    let use = this.#uses.get(number)
    if (use === undefined) {
      use = { liveBytes: 0 }
      this.#uses.set(number, use)
    }
    this.#last = use
    this.#lastNumber = number
    return use
  }
}
