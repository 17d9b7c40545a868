/**
 * What each segment of the log still holds: live messages, and so, by their share, live bytes. Derived while the
 * queues' state is built and changed; never stored.
 */
import type { LogUse } from '../queue/index.js'

interface Use {
  live: number
  /** Messages that were ever appended to the segment, and the bytes of their records. */
  messages: number
  bytes: number
}

export class Segments implements LogUse {
  readonly #segmentBytes: number
  readonly #uses = new Map<number, Use>()
  #last: Use | undefined
  #lastNumber = -1

  constructor(segmentBytes: number) {
    this.#segmentBytes = segmentBytes
  }

  add(position: number, messages: number, bytes: number): void {
    const use = this.#use(position)
    use.live += messages
    use.messages += messages
    use.bytes += bytes
  }

  remove(position: number, messages: number): void {
    this.#use(position).live -= messages
  }

  /** Record bytes of live messages, in all segments. */
  get liveBytes(): number {
    let bytes = 0
    for (const use of this.#uses.values()) bytes += liveBytes(use)
    return bytes
  }

  get liveMessages(): number {
    let messages = 0
    for (const use of this.#uses.values()) messages += use.live
    return messages
  }

  /** Start of the oldest segment with a live message at or after `position`; Infinity when there is none. */
  oldestLive(position: number): number {
    let oldest = Infinity
    const from = Math.floor(position / this.#segmentBytes)
    for (const [number, use] of this.#uses) {
      if (use.live > 0 && number >= from && number < oldest) oldest = number
    }
    return oldest * this.#segmentBytes
  }

  /** The segments that end at or before `position` are gone. */
  forgetBefore(position: number): void {
    for (const number of this.#uses.keys()) {
      if ((number + 1) * this.#segmentBytes <= position) this.#uses.delete(number)
    }
    this.#last = undefined
    this.#lastNumber = -1
  }

  #use(position: number): Use {
    const number = Math.floor(position / this.#segmentBytes)
    if (number === this.#lastNumber) return this.#last!
    let use = this.#uses.get(number)
    if (use === undefined) {
      use = { live: 0, messages: 0, bytes: 0 }
      this.#uses.set(number, use)
    }
    this.#last = use
    this.#lastNumber = number
    return use
  }
}

function liveBytes(use: Use): number {
  return use.messages === 0 ? 0 : (use.bytes * use.live) / use.messages
}
