/**
 * The lines of keys: the order of the messages of each key, and whether the head of a key may be delivered (invariant 13).
 * They are a part of the line. `Keys` holds the counts of each key and the two ends of its line, and the chunks hold
 * the links.
 *
 * Invariant: the head of a key is on offer if and only if the key is free and not held. No other message of a key is on offer. While a
 * change of the rules is under way, this holds for the keys that it has reached.
 */
import type { QueueOptions } from '@sluice/protocol'
import type { Chunk } from './chunk.js'
import { chunkEndAfter, type Chunks } from './chunks.js'
import { KeyHolds } from './key-holds.js'
import { NONE, type Keys } from './keys.js'
import { MARK } from './marks.js'
import { rateOf, type Rate } from './rate.js'

/** Options of a queue that concern keys. If `onFail` is `block`, a message that waits for a retry blocks its key. */
export type KeyRules = Pick<QueueOptions, 'keyConcurrency' | 'onFail' | 'keyRateMessages' | 'keyRatePerMs'>

/** A message, and the time that orders it. */
export interface Timed {
  readonly chunk: Chunk
  readonly index: number
  readonly timeMs: number
}

/** A change of the rules: the new rules, and the time from which they apply. */
interface Change {
  readonly rules: KeyRules
  readonly timeMs: number
}

/**
 * Maximum number of messages that a search for the oldest keyed message visits. A search that reaches this number returns
 * the time of the oldest message that it has found.
 */
const OLDEST_LOOKED_AT_MAX = 16_384
/**
 * Maximum number of changes of the rules that some keys do not take into account. Another change is applied to all keys at
 * once: otherwise a client that keeps changing the rules could delay deliveries without end.
 */
const CHANGES_MAX = 16

export class KeyLines {
  #rules: KeyRules
  /** Changes of the rules that some keys do not take into account yet, the oldest first. */
  readonly #changes: Change[] = []
  /** All slots below this one take all changes into account. */
  #changedSlots = 0
  /** No message below this offset is in the line of its key. */
  from = 0
  readonly #chunks: Chunks
  readonly #keys: Keys
  readonly #offered: (priority: number, sinceMs: number, offset: number) => void
  /** Undefined until keys have a rate, or one is paused. */
  #holds: KeyHolds | undefined

  /** The message that was last inserted before another one, and the slot of its key. */
  #inserted = NONE
  #insertedSlot = NONE

  /** `offered` is called with each head that goes on offer. */
  constructor(
    chunks: Chunks,
    keys: Keys,
    rules: KeyRules,
    offered: (priority: number, sinceMs: number, offset: number) => void,
  ) {
    this.#chunks = chunks
    this.#keys = keys
    this.#rules = rules
    this.#offered = offered
    const rate = rateOf(rules.keyRateMessages, rules.keyRatePerMs)
    if (rate !== undefined) this.#holds = new KeyHolds(rate)
  }

  /** Builds the lines from these messages, and puts the head of each line on offer. The lines must be empty before. */
  rebuild(messages: Timed[]): void {
    for (const { chunk, index } of messages) this.#setRank(chunk, index)
    const rank = ({ chunk, index }: Timed): number => rankOf(chunk, index)
    // The messages are sorted, so that each is appended at the end of its line.
    messages.sort(
      (a, b) => rank(a) - rank(b) || a.timeMs - b.timeMs || a.chunk.base + a.index - (b.chunk.base + b.index),
    )
    for (const { chunk, index } of messages) this.append(chunk.keyAt(index), chunk, index)
    for (const slot of this.#keys.slots()) this.offer(slot, 0)
  }

  // --- changes of the rules ---

  /**
   * Changes the rules at `timeMs`. A key that becomes free is eligible from then on. The rank of a message does not
   * change while it is in the line. `continueChange` applies the change to all keys; any other method that concerns a key
   * requires that `touch` was called before.
   */
  change(rules: KeyRules, timeMs: number): void {
    const { keyConcurrency, onFail, keyRateMessages, keyRatePerMs } = this.#rules
    if (keyRateMessages !== rules.keyRateMessages || keyRatePerMs !== rules.keyRatePerMs)
      this.#changeRate(rateOf(rules.keyRateMessages, rules.keyRatePerMs), timeMs)
    if (keyConcurrency !== rules.keyConcurrency || onFail !== rules.onFail) this.#change(rules, timeMs)
    this.#rules = rules
  }

  #change(rules: KeyRules, timeMs: number): void {
    // A hold that ended before the change ends under the rules of that time.
    this.continueHolds(timeMs, Infinity)
    this.#rules = rules
    this.#keys.changes++
    this.#changes.push({ rules, timeMs })
    this.#changedSlots = 0
    if (this.#changes.length > CHANGES_MAX) this.continueChange(Infinity)
  }

  /** Whether some keys may not take all changes of the rules into account. */
  get isChanging(): boolean {
    return this.#changes.length > 0
  }

  /** Applies changes of the rules to the next keys. Visits at most `max` slots, and returns their number. */
  continueChange(max: number): number {
    const keys = this.#keys
    const from = this.#changedSlots
    const end = Math.max(from, Math.min(from + max, keys.slotsEnd))
    for (let slot = from; slot < end; slot++) if (keys.isUsed(slot)) this.#applyChanges(slot)
    this.#changedSlots = end
    if (end >= keys.slotsEnd) this.#changes.length = 0
    return end - from
  }

  /**
   * Called before a change of the key or of its line at `timeMs`: applies the changes of the rules that were made before, and
   * ends the hold of the key if it is over.
   */
  touch(slot: number, timeMs: number): void {
    if (this.#changes.length > 0) this.#applyChanges(slot)
    if (this.#holds === undefined) return
    const untilMs = this.#holds.end(this.#keys.low(slot), this.#keys.high(slot), timeMs)
    if (untilMs > 0) this.#freed(slot, untilMs)
  }

  #applyChanges(slot: number): void {
    const keys = this.#keys
    const latest = this.#rules
    const missing = keys.changes - keys.changesOf(slot)
    for (const { rules, timeMs } of this.#changes.slice(this.#changes.length - missing)) {
      this.#rules = rules
      this.offer(slot, timeMs)
    }
    this.#rules = latest
    keys.changed(slot)
  }

  // --- holds ---

  // Changes the rate of all keys. Their buckets are full then.
  #changeRate(rate: Rate | undefined, nowMs: number): void {
    if (this.#holds !== undefined) this.#holds.changeRate(rate, nowMs)
    else if (rate !== undefined) this.#holds = new KeyHolds(rate)
  }

  /** Called when a message of the key is delivered at `nowMs`. The caller then calls `offer`. */
  take(slot: number, nowMs: number): void {
    this.#holds?.take(this.#keys.low(slot), this.#keys.high(slot), nowMs)
  }

  /** Delivers no message of the key until `untilMs`. */
  pause(slot: number, untilMs: number, nowMs: number): void {
    this.#holds ??= new KeyHolds(undefined)
    this.#holds.pause(this.#keys.low(slot), this.#keys.high(slot), untilMs, nowMs)
    this.offer(slot, nowMs)
  }

  /** Puts the heads of keys on offer whose hold is over at `nowMs`. Returns the cost, at most `max`. */
  continueHolds(nowMs: number, max: number): number {
    const holds = this.#holds
    if (holds === undefined || holds.nextMs > nowMs) return 0
    return holds.continue(nowMs, max, (low, high, untilMs) => {
      const slot = this.#keys.slotOf(low, high)
      if (slot === NONE) return
      if (this.#changes.length > 0) this.#applyChanges(slot)
      this.#freed(slot, untilMs)
    })
  }

  // Called when the hold of the key ended at `untilMs`. No message of the key has been eligible since an earlier time.
  #freed(slot: number, untilMs: number): void {
    this.#keys.freeAt(slot, untilMs)
    this.offer(slot, untilMs)
  }

  /** Time at which `continueHolds` has work next; Infinity if there is none. */
  get nextHoldMs(): number {
    return this.#holds === undefined ? Infinity : this.#holds.nextMs
  }

  /** Whether a hold is over at `nowMs` and the head of its key may not be on offer yet. */
  hasEndedHolds(nowMs: number): boolean {
    return this.#holds !== undefined && this.#holds.nextEndMs <= nowMs
  }

  /** Number of keys that are held at `nowMs`. */
  heldAt(nowMs: number): number {
    return this.#holds === undefined ? 0 : this.#holds.heldAt(nowMs)
  }

  /** The hold of the key at `nowMs`; undefined if it is not held. */
  holdOf(slot: number, nowMs: number): { readonly untilMs: number; readonly isPause: boolean } | undefined {
    const low = this.#keys.low(slot)
    const high = this.#keys.high(slot)
    const untilMs = this.#holds === undefined ? 0 : this.#holds.heldUntil(low, high)
    return untilMs <= nowMs ? undefined : { untilMs, isPause: this.#holds!.isPaused(low, high) }
  }

  /** Number of messages before this one in the line of its key; at most `max` are counted. */
  countBefore(chunk: Chunk, index: number, max: number): number {
    let count = 0
    for (let at = chunk.previousAt(index); at !== NONE && count < max; count++) at = this.#before(at)
    return count
  }

  #isHeld(slot: number): boolean {
    return this.#holds !== undefined && this.#holds.heldUntil(this.#keys.low(slot), this.#keys.high(slot)) > 0
  }

  /** Called when the message at `offset`, with a key or without, is due. */
  reach(offset: number): void {
    if (offset < this.from) this.from = offset
  }

  /**
   * Publish or due time of the oldest message in the lines; Infinity if they are empty. `end` is the end of the queue's line.
   * Searches the messages by offset, from the lowest offset that can be in a line. The search ends at a message that
   * was published after the oldest time found so far, because no later message can be older.
   */
  oldestSince(end: number): number {
    let oldest = Infinity
    let isFirst = true
    let left = OLDEST_LOOKED_AT_MAX
    if (this.#keys.size === 0) return oldest
    for (let offset = Math.max(this.from, this.#chunks.firstOffset); offset < end;) {
      const chunk = this.#chunks.at(offset)
      const chunkEnd = chunkEndAfter(offset)
      if (chunk?.hasKeys !== true) {
        offset = chunkEnd
        continue
      }
      for (; offset < Math.min(chunkEnd, end); offset++) {
        const index = offset - chunk.base
        if (!isFirst && (--left === 0 || chunk.publishedAt(index) >= oldest)) return oldest
        if (!chunk.isDue(index) || !chunk.isWaiting(index) || chunk.isGone(index)) continue
        if (chunk.keyAt(index) === NONE) continue
        if (isFirst) this.from = offset
        isFirst = false
        oldest = Math.min(oldest, chunk.lineTimeAt(index))
      }
    }
    if (isFirst) this.from = end
    return oldest
  }

  /** Counts the messages in all lines. @throws Error if a link or an offer is wrong */
  audit(): number {
    this.#holds?.audit()
    let count = 0
    for (const slot of this.#keys.slots()) {
      let before = NONE
      for (let offset = this.#keys.headOf(slot); offset !== NONE;) {
        const chunk = this.#chunks.at(offset)!
        if (chunk.previousAt(offset - chunk.base) !== before)
          throw new Error(
            `offset ${offset} follows ${before} in the line of its key, but does not link back to it`,
          )
        count++
        before = offset
        offset = chunk.nextAt(offset - chunk.base)
      }
      if (this.#keys.changesOf(slot) !== this.#keys.changes) {
        if (!this.isChanging) throw new Error(`slot ${slot} was not reached by a change of the rules`)
        continue
      }
      const head = this.#keys.headOf(slot)
      const expected = head !== NONE && this.isFree(slot) && !this.#isHeld(slot) ? head : NONE
      if (this.#keys.offeredOf(slot) !== expected)
        throw new Error(
          `the head of a key is offset ${head}, but offset ${this.#keys.offeredOf(slot)} is on offer`,
        )
    }
    return count
  }

  /** Whether another message of the key may be delivered. */
  isFree(slot: number): boolean {
    const { keyConcurrency, onFail } = this.#rules
    return (
      this.#keys.leasedOf(slot) < keyConcurrency && !(onFail === 'block' && this.#keys.retryingOf(slot) > 0)
    )
  }

  /** Whether fewer messages of the key are leased than `keyConcurrency` allows. */
  hasRoom(slot: number): boolean {
    return this.#keys.leasedOf(slot) < this.#rules.keyConcurrency
  }

  // If failed messages block their key, they precede the messages that have not been tried. The rank of a message is
  // decided when it enters the line, so that the lines stay in order when the rules change.
  #setRank(chunk: Chunk, index: number): void {
    const isFirst = this.#rules.onFail === 'block' && chunk.attemptsAt(index) > 0
    if (isFirst === chunk.has(MARK.first, index)) return
    if (isFirst) chunk.marks.add(MARK.first, index, index + 1)
    else chunk.marks.delete(MARK.first, index, index + 1)
  }

  /**
   * After a change at `timeMs`: puts the head of the key on offer if the key is free and not held, and otherwise withdraws the offer. The
   * head has been eligible since the latest of these times: its publish or due time, the time from which the key has
   * been free, and the time at which the message before it left. So it does not matter how late a due message is noticed.
   * Only the message at `released`, which returned to its place, has been eligible since `releasedSinceMs`.
   */
  offer(slot: number, timeMs: number, released = NONE, releasedSinceMs = 0): void {
    const keys = this.#keys
    const head = keys.headOf(slot)
    if (!this.isFree(slot) || this.#isHeld(slot)) {
      keys.withdraw(slot)
      return
    }
    if (head === NONE) {
      keys.freeAt(slot, timeMs)
      return
    }
    if (keys.offeredOf(slot) === head) return
    const chunk = this.#chunks.at(head)!
    const sinceMs =
      head === released
        ? releasedSinceMs
        : Math.max(timeMs, keys.sinceOf(slot), chunk.lineTimeAt(head - chunk.base))
    keys.offer(slot, head, sinceMs)
    this.#offered(chunk.priorityAt(head - chunk.base), sinceMs, head)
  }

  /** Adds the message, which has not failed, at the end of the line. */
  append(slot: number, chunk: Chunk, index: number): void {
    this.#link(slot, chunk, index, this.#keys.tailOf(slot), NONE)
  }

  /** Adds the message at its place, which is usually the end. A message that returns belongs near the front. */
  insert(slot: number, chunk: Chunk, index: number): void {
    this.#setRank(chunk, index)
    const tail = this.#keys.tailOf(slot)
    if (tail === NONE || this.#isBehind(tail, chunk, index)) {
      this.append(slot, chunk, index)
      return
    }
    const next = this.#nextOf(slot, chunk, index)
    this.#link(slot, chunk, index, this.#before(next), next)
    this.#insertedSlot = slot
    this.#inserted = chunk.base + index
  }

  // Finds the message that must follow the one at `index`. Searches from the head and from the last inserted message at the
  // same time, so that messages that return in order take one step each.
  #nextOf(slot: number, chunk: Chunk, index: number): number {
    let next = this.#keys.headOf(slot)
    let other = this.#isInserted(slot, chunk.base + index) ? this.#inserted : NONE
    const isAfter = other !== NONE && this.#isBehind(other, chunk, index)
    while (this.#isBehind(next, chunk, index)) {
      next = this.#after(next)
      if (other === NONE) continue
      if (isAfter) {
        other = this.#after(other)
        if (!this.#isBehind(other, chunk, index)) return other
      } else {
        const previous = this.#before(other)
        if (previous === NONE || this.#isBehind(previous, chunk, index)) return other
        other = previous
      }
    }
    return next
  }

  // Whether the last inserted message is still in the line of this key, and is not the message at `offset`.
  #isInserted(slot: number, offset: number): boolean {
    const inserted = this.#inserted
    if (this.#insertedSlot !== slot || inserted === offset) return false
    const chunk = this.#chunks.at(inserted)
    if (chunk === undefined) return false
    const index = inserted - chunk.base
    return chunk.isWaiting(index) && chunk.isDue(index) && !chunk.isGone(index) && chunk.keyAt(index) === slot
  }

  #after(offset: number): number {
    const chunk = this.#chunks.at(offset)!
    return chunk.nextAt(offset - chunk.base)
  }

  #before(offset: number): number {
    const chunk = this.#chunks.at(offset)!
    return chunk.previousAt(offset - chunk.base)
  }

  // Whether the message at `index` belongs after the one at `offset` in the line of their key.
  #isBehind(offset: number, chunk: Chunk, index: number): boolean {
    const other = this.#chunks.at(offset)!
    const otherIndex = offset - other.base
    const rank = rankOf(chunk, index) - rankOf(other, otherIndex)
    if (rank !== 0) return rank > 0
    const timeMs = chunk.lineTimeAt(index) - other.lineTimeAt(otherIndex)
    return timeMs === 0 ? chunk.base + index > offset : timeMs > 0
  }

  #link(slot: number, chunk: Chunk, index: number, previous: number, next: number): void {
    const offset = chunk.base + index
    chunk.setPrevious(index, previous)
    chunk.setNext(index, next)
    this.#setNext(slot, previous, offset)
    this.#setPrevious(slot, next, offset)
  }

  /** Removes the message from the line. */
  unlink(slot: number, chunk: Chunk, index: number): void {
    const previous = chunk.previousAt(index)
    const next = chunk.nextAt(index)
    this.#setNext(slot, previous, next)
    this.#setPrevious(slot, next, previous)
    if (this.#keys.offeredOf(slot) === chunk.base + index) this.#keys.withdraw(slot)
  }

  /** Removes a message that left at `timeMs`. The caller calls `offer` later. */
  leaveEarly(slot: number, chunk: Chunk, index: number, timeMs: number): void {
    this.touch(slot, timeMs)
    const isHead = this.#keys.headOf(slot) === chunk.base + index && this.isFree(slot)
    this.unlink(slot, chunk, index)
    if (isHead) this.#keys.freeAt(slot, Math.max(timeMs, chunk.lineTimeAt(index)))
  }

  #setNext(slot: number, offset: number, next: number): void {
    if (offset === NONE) this.#keys.setHead(slot, next)
    else {
      const chunk = this.#chunks.at(offset)!
      chunk.setNext(offset - chunk.base, next)
    }
  }

  #setPrevious(slot: number, offset: number, previous: number): void {
    if (offset === NONE) this.#keys.setTail(slot, previous)
    else {
      const chunk = this.#chunks.at(offset)!
      chunk.setPrevious(offset - chunk.base, previous)
    }
  }
}

function rankOf(chunk: Chunk, index: number): number {
  return chunk.has(MARK.first, index) ? 0 : 1
}
