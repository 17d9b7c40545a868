/**
 * A request to the broker to settle messages of one subscription, and its answer. The request is gathered, and sent in as
 * few ranges as possible.
 *
 * Invariant: a caller that waits for the answer about one message gets it once.
 */
import {
  encodeSettle,
  textBytes,
  LIMITS,
  type Outcome,
  type SluiceError,
  type TagRange,
} from '@sluice/protocol'
import { fail } from './failure.js'
import { leaseLost } from './losses.js'

/**
 * What a settle says besides its outcome. `invalid`, of a dead letter: the body is not valid for its queue. `pauseKey`, of a
 * retry: no message of the key is delivered until the retry is due.
 */
export type SettleDetail = 'invalid' | 'pauseKey'

/** A range of tags with one outcome. The range grows while each new tag directly follows its last tag. */
export interface Item {
  firstTag: number
  count: number
  readonly outcome: Outcome
  readonly delayMs: number | undefined
  readonly reason: string | undefined
  readonly invalid: boolean
  readonly pauseKey: boolean
}

/** The message that is settled. */
export interface SettledMessage {
  readonly tag: number
  readonly queue: string
  readonly offset: number
}

interface Waiter {
  readonly message: SettledMessage
  readonly resolve: () => void
}

/**
 * Settles of one subscription that are sent together. The request exists from its first settle until all of its settles
 * are answered.
 */
export class SettleRequest {
  readonly #hurry: () => void
  items: Item[] = []
  /** Items that are sent and not answered. */
  #sent: Item[] = []
  #sorted = true
  #done = false
  #failure: SluiceError | undefined
  #stale: TagRange[] = []
  #waiters: Waiter[] | undefined

  /** `hurry` is called when a caller waits for the answer. */
  constructor(hurry: () => void) {
    this.#hurry = hurry
  }

  add(
    firstTag: number,
    count: number,
    outcome: Outcome,
    delayMs: number | undefined,
    reason: string | undefined,
    detail?: SettleDetail,
  ): void {
    const last = this.items[this.items.length - 1]
    if (last !== undefined) {
      const next = (last.firstTag + last.count) >>> 0
      const isBare = delayMs === undefined && reason === undefined && detail === undefined
      if (firstTag === next && isBare && joins(last, outcome, count)) {
        last.count += count
        return
      }
      if (((firstTag - next) | 0) < 0) this.#sorted = false
    }
    const invalid = detail === 'invalid'
    const pauseKey = detail === 'pauseKey'
    this.items.push({ firstTag, count, outcome, delayMs, reason, invalid, pauseKey })
  }

  /** The payloads of the SETTLE frames, each within `frameBytesMax`. */
  encode(subscriptionId: number, frameBytesMax: number): Uint8Array[] {
    const items = this.#sorted ? this.items : merged(this.items)
    this.items = []
    this.#sent = items
    const bytesMax = Math.min(frameBytesMax, FRAME_BYTES_AIM) - FRAME_OVERHEAD_BYTES
    const payloads: Uint8Array[] = []
    let from = 0
    let bytes = 0
    let tags = 0
    for (let i = 0; i < items.length; i++) {
      const { reason, count } = items[i]!
      const itemBytes = ITEM_BYTES + (reason === undefined ? 0 : textBytes(reason))
      const full =
        bytes + itemBytes > bytesMax ||
        tags + count > LIMITS.creditMessagesMax ||
        i - from === LIMITS.rangesMax
      if (i > from && full) {
        payloads.push(encodeSettle(subscriptionId, items.slice(from, i)))
        from = i
        bytes = 0
        tags = 0
      }
      bytes += itemBytes
      tags += count
    }
    payloads.push(encodeSettle(subscriptionId, from === 0 ? items : items.slice(from)))
    return payloads
  }

  /** Removes from `tags` the tags that the request settles. */
  exclude(tags: Set<number>): void {
    for (const items of [this.items, this.#sent]) {
      for (const { firstTag, count } of items)
        for (let i = 0; i < count; i++) tags.delete((firstTag + i) >>> 0)
    }
  }

  /** Called when the broker answers that these tags no longer belong to the consumer. */
  stale(ranges: readonly TagRange[]): void {
    for (const range of ranges) this.#stale.push(range)
  }

  /** Called when all frames of the request are answered, or cannot be answered any more. */
  finish(failure: SluiceError | undefined): void {
    if (this.#done) return
    this.#done = true
    this.#sent = []
    this.#failure = failure
    const waiters = this.#waiters
    this.#waiters = undefined
    if (waiters !== undefined) for (const waiter of waiters) this.#settle(waiter)
  }

  /** Returns a promise for the answer about one message. */
  answer(message: SettledMessage): Promise<void> {
    return new Promise((resolve) => {
      const waiter = { message, resolve }
      if (this.#done) this.#settle(waiter)
      else {
        ;(this.#waiters ??= []).push(waiter)
        this.#hurry()
      }
    })
  }

  #settle({ message, resolve }: Waiter): void {
    const { tag } = message
    const isStale = this.#stale.some(({ firstTag, count }) => (tag - firstTag) >>> 0 < count)
    const error = this.#failure ?? (isStale ? leaseLost() : undefined)
    if (error === undefined) resolve()
    else fail(resolve, error, { queue: message.queue, offset: message.offset })
  }
}

const ITEM_BYTES = 20
const FRAME_OVERHEAD_BYTES = 16
const FRAME_BYTES_AIM = 512 * 1024

function joins(last: Item, outcome: Outcome, count: number): boolean {
  return (
    last.outcome === outcome &&
    last.delayMs === undefined &&
    last.reason === undefined &&
    !last.invalid &&
    !last.pauseKey &&
    last.count + count <= LIMITS.creditMessagesMax
  )
}

// Concurrent handlers settle out of order. Sorting makes ranges of their tags.
function merged(items: Item[]): Item[] {
  // Tags wrap at 2^32. The tags of one request are less than 2^31 apart, so their signed difference gives their order.
  const origin = items[0]!.firstTag
  items.sort((a, b) => ((a.firstTag - origin) | 0) - ((b.firstTag - origin) | 0))
  const result: Item[] = []
  for (const item of items) {
    const last = result[result.length - 1]
    if (
      last !== undefined &&
      item.delayMs === undefined &&
      item.reason === undefined &&
      !item.invalid &&
      !item.pauseKey &&
      joins(last, item.outcome, item.count) &&
      item.firstTag === (last.firstTag + last.count) >>> 0
    )
      last.count += item.count
    else result.push(item)
  }
  return result
}
