/**
 * What each segment of the log still contains: the batches with live messages, or with acknowledged messages that their
 * queues retain. These batches are called live here. They are counted as the queues report changes.
 *
 * Invariant 6: the live bytes of a segment are the bytes of those batches in it that have a live or retained message,
 * headers included. Copying the segment would copy these bytes, without the records that sparse copies leave out. In a
 * shared batch, each row that has such a message counts its share instead (queue/shares.ts). When rows have left the
 * batch, the shares add up to less than its copy.
 */
import { DIRECTORY_BYTES } from './directory.js'
import type { Chunk, Copy, LogUse, Queue } from '../queue/index.js'
import type { PageTree } from './page-tree.js'

interface Use {
  liveBytes: number
  /** The largest scale of the shares that were counted here. It stays when these shares are removed. */
  scale: number
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

  share(position: number, bytes: number, scale: number): void {
    this.add(position, bytes)
    const use = this.#use(position)
    use.scale = Math.max(use.scale, scale)
  }

  remove(position: number, bytes: number): void {
    this.#use(position).liveBytes -= bytes
    this.liveBytes -= bytes
    this.#freedBytes += bytes
  }

  gone(bytes: number): void {
    this.goneBytes += bytes
  }

  /**
   * Estimate of the part of `liveBytes` that sparse copies would leave out. It can be wrong where the sizes of single
   * records are not known, and drifts where messages are not counted one by one, so only differences of it are used.
   */
  get sparableBytes(): number {
    return this.goneBytes - this.#freedBytes
  }

  move({ from, fromBytes, to, toBytes, scale, leftOutBytes }: Copy): void {
    this.#use(from).liveBytes -= fromBytes
    this.liveBytes -= fromBytes
    this.share(to, toBytes, scale)
    this.#freedBytes += leftOutBytes
  }

  /**
   * Maximum size of the copies of the live batches in the segment that contains `position`. A segment has no more to copy than
   * it contains.
   */
  copyBytesAt(position: number): number {
    const use = this.#uses.get(Math.floor(position / this.#segmentBytes))
    return use === undefined ? 0 : Math.min(use.liveBytes * 2 ** use.scale, this.#segmentBytes)
  }

  /**
   * Recounts the live batches of all queues and compares the result with the counters. @throws Error that names the
   * segment that differs
   */
  audit(queues: Iterable<Queue>): void {
    const counted = new Map<number, number>()
    let total = 0
    for (const queue of queues) {
      if (queue.group !== undefined) continue
      queue.chunks.eachNeededBatch((position, bytes) => {
        const number = this.segmentOf(position)
        counted.set(number, (counted.get(number) ?? 0) + bytes)
        total += bytes
      })
      for (const chunk of queue.heldChunks()) this.#auditScales(chunk)
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

  #auditScales(chunk: Chunk): void {
    const { batches } = chunk
    for (let batch = 0; batch < batches.count; batch++) {
      const number = this.segmentOf(batches.position(batch))
      const scale = batches.scale(batch)
      const most = this.#uses.get(number)?.scale ?? 0
      if (scale > most && !chunk.isUnneededHere(batch))
        throw new Error(`A share in segment ${number} has the scale ${scale}, but the largest is ${most}.`)
    }
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
      use = { liveBytes: 0, scale: 0 }
      this.#uses.set(number, use)
    }
    this.#last = use
    this.#lastNumber = number
    return use
  }
}
