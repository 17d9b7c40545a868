/**
 * The line: the order in which the messages of a queue are delivered. Messages are ordered by priority, then by the
 * time at which they became eligible, then by offset (invariant 12). The line is volatile: recovery builds it from the
 * chunks.
 *
 * A message that has no key and no delay, and has not been tried yet, is in the plain line of its priority. That line
 * has a cursor: it consists of the messages from the cursor on, and of those that returned below the cursor. A message
 * whose due time is in the future is scheduled. A due message with a key is in the line of its key. A due message
 * without a key is in the due queue of its priority. The head of each free key is also in the due queue of its
 * priority, from the time at which it became eligible, so keys take turns (invariant 13).
 */
import { LIMITS } from '@sluice/protocol'
import { PRIORITIES, type Chunk } from './chunk.js'
import { chunkEndAfter, type Chunks } from './chunks.js'
import { DueQueues, type LineOwner } from './due.js'
import { DropOrder } from './drop-order.js'
import type { Expired } from './expiries.js'
import { KeyLines, type KeyRules, type Timed } from './key-lines.js'
import { NONE } from './keys.js'
import { auditLine } from './line-audit.js'
import { MARK } from './marks.js'
import { ReturnedMessages } from './returned.js'
import { FROM_PLAIN_LINE, type Run } from './run.js'
import { STEP, Schedule } from './schedule.js'
import { NO_SUSPECTS } from './suspects.js'
import type { TimeQueue } from './time-queue.js'

/** Shared by all lines that have used only priority 0, as most lines have. Never changed. */
const ZEROS: Float64Array = new Float64Array(PRIORITIES)

export class Line {
  // The fields that are read when a plain message is added are declared first, so that they share cache lines, as in `Contents`.
  /** Offset after the newest message. */
  #end = 0
  /** One bit per priority, set if the plain line of the priority is not empty. */
  #plainMask = 0
  /**
   * Length and cursor of the plain line of priority 0, often the only line in use. `#plainCounts` and `#cursors` have
   * those of the other priorities.
   */
  #ordinary = 0
  #ordinaryCursor = 0
  /** Offsets below this may have been delivered by an earlier run of the broker. */
  #redeliveredBelow = 0
  readonly #chunks: Chunks
  readonly #queue: LineOwner
  // The parts from here to `#schedule` are created when they are first needed. Otherwise, with 100,000 queues, they
  // would take most of the memory and most of the time of a restart, although few queues need them.
  #keyLines: KeyLines | undefined
  #cursors = ZEROS
  #returned: ReturnedMessages | undefined
  dropOrder: DropOrder | undefined
  /** Offset that the last call of `#head` found. */
  #headOffset = 0
  /** Offset of the next message to deliver, if its chunk is cold and has to be read first; otherwise -1. Set by `next`. */
  coldOffset = -1
  #plainCounts = ZEROS
  #due: DueQueues | undefined
  #schedule: Schedule | undefined
  /** The queue replaces `NO_SUSPECTS` when it has its first suspect. */
  suspects = NO_SUSPECTS
  /** The options that concern keys. */
  #rules: KeyRules

  constructor(chunks: Chunks, queue: LineOwner, rules: KeyRules) {
    this.#chunks = chunks
    this.#queue = queue
    this.#rules = rules
  }

  // Read only for messages with keys, so only queues with keys create their lines.
  get #linesOfKeys(): KeyLines {
    return (this.#keyLines ??= new KeyLines(
      this.#chunks,
      this.#queue.keys,
      this.#rules,
      (priority, sinceMs, offset) => this.#dueQueues.push(priority, sinceMs, offset),
    ))
  }

  get #dueQueues(): DueQueues {
    return (this.#due ??= new DueQueues(this.#chunks, this.#queue))
  }

  get #dueMask(): number {
    return this.#due === undefined ? 0 : this.#due.mask
  }

  /**
   * Adds the messages `[from, to)` of `chunk`, which are the newest of the queue. A message with a key follows all messages
   * that are already due: if some of them are not ready yet, it waits with them.
   */
  add(chunk: Chunk, from: number, to: number): void {
    this.#end = Math.max(this.#end, chunk.base + to)
    if (chunk.hasOnly(0) && !chunk.hasDues && !chunk.hasKeys) {
      this.#countPlain(0, to - from)
      return
    }
    const { hasDues, hasKeys } = chunk
    for (let index = from; index < to; index++) {
      const dueMs = hasDues ? chunk.dueAt(index) : 0
      const slot = hasKeys ? chunk.keyAt(index) : NONE
      if (dueMs !== 0) this.#delay(chunk, index, dueMs)
      else if (slot === NONE) this.#countPlain(chunk.priorityAt(index), 1)
      else {
        const timeMs = chunk.publishedAt(index)
        if (this.nextDeadline <= timeMs) {
          this.#delay(chunk, index, timeMs)
          continue
        }
        this.#linesOfKeys.touch(slot, timeMs)
        takeOut(chunk, index, index + 1)
        this.#markDue(chunk, index)
        // Messages of the key that were retried or redriven can be in the line of a group, and follow the ones that enter.
        if (this.#queue.source === undefined) this.#linesOfKeys.append(slot, chunk, index)
        else this.#linesOfKeys.insert(slot, chunk, index)
        this.#linesOfKeys.offer(slot, timeMs)
      }
    }
  }

  /** Notes that every message below `end` was added, or is gone. */
  passed(end: number): void {
    this.#end = Math.max(this.#end, end)
  }

  /** Called when recovery is over: adds every message that is live and not dead. */
  rebuild(rules: KeyRules, end: number, redeliveredBelow: number, nowMs: number): void {
    this.#rules = rules
    this.#end = end
    this.#redeliveredBelow = redeliveredBelow
    const due: Timed[] = []
    if (this.#chunks.coldCount > 0) this.#countPlain(0, this.#chunks.coldMessages)
    for (const chunk of this.#chunks) {
      if (chunk.dead !== undefined) for (const index of chunk.dead.indexes()) takeOut(chunk, index, index + 1)
      if (!chunk.hasKeys) this.#placePlain(chunk)
      if (chunk.hasDues || chunk.hasKeys) this.#placeOthers(chunk, nowMs, due)
    }
    if (due.length > 0) this.#linesOfKeys.rebuild(due)
    this.advance(nowMs)
  }

  /** Called when the rules of keys may have changed; see `KeyLines.change`. `advance` applies the change to all keys. */
  changeRules(rules: KeyRules, nowMs: number): void {
    this.#rules = rules
    this.#keyLines?.change(rules, nowMs)
  }

  /** Delivers no message of the key of this message until `untilMs`. A message without a key changes nothing. */
  pauseKey(offset: number, untilMs: number, nowMs: number): void {
    const chunk = this.#chunks.at(offset)!
    const slot = chunk.keyAt(offset - chunk.base)
    if (slot === NONE) return
    this.#linesOfKeys.touch(slot, nowMs)
    this.#linesOfKeys.pause(slot, untilMs, nowMs)
  }

  /** See `KeyLines`; undefined if the queue has had no keys. */
  get keyLines(): KeyLines | undefined {
    return this.#keyLines
  }

  // Adds the messages that have no due time, of a chunk without keys. Adds whole runs if no message has a due time.
  #placePlain(chunk: Chunk): void {
    if (!chunk.hasDues) {
      for (let index = 0; index < chunk.count;) {
        const from = chunk.marks.firstFree(index, chunk.count)
        const to = chunk.marks.firstTaken(from, chunk.count)
        if (to > from) this.add(chunk, from, to)
        index = Math.max(to, index + 1)
      }
      return
    }
    for (const index of chunk.liveIndexes()) {
      if (chunk.dueAt(index) === 0 && !chunk.has(MARK.out, index))
        this.#countPlain(chunk.priorityAt(index), 1)
    }
  }

  #placeOthers(chunk: Chunk, nowMs: number, due: Timed[]): void {
    for (const index of chunk.liveIndexes()) {
      if (chunk.has(MARK.out, index)) continue
      const dueMs = chunk.dueAt(index)
      const slot = chunk.keyAt(index)
      if (slot === NONE) {
        if (dueMs !== 0) this.#delay(chunk, index, dueMs)
        else if (chunk.hasKeys) this.#countPlain(chunk.priorityAt(index), 1)
      } else if (dueMs > nowMs) this.#delay(chunk, index, dueMs)
      else {
        takeOut(chunk, index, index + 1)
        this.#markDue(chunk, index)
        due.push({ chunk, index, timeMs: chunk.lineTimeAt(index) })
      }
    }
  }

  /**
   * Applies changes of the rules to the keys and ends their holds, then moves messages whose due time is `nowMs` or earlier from the schedule to
   * the line, in the order of due times and offsets. Handles at most `max` keys and messages. Returns the cost in messages.
   * Calls `each` with each message that became ready.
   */
  advance(nowMs: number, max = Infinity, each?: (offset: number) => void): number {
    const schedule = this.#schedule
    const keyLines = this.#keyLines
    let count = keyLines?.isChanging === true ? keyLines.continueChange(max) : 0
    if (keyLines !== undefined) count += keyLines.continueHolds(nowMs, max - count)
    if (schedule === undefined) return count
    // The work of the schedule has a budget of its own, so that it does not delay the messages that it finds.
    let scheduleCost = 0
    while (count < max && scheduleCost < max) {
      const offset = schedule.takeDue(nowMs)
      if (offset === NONE) break
      if (offset === STEP) {
        scheduleCost += schedule.stepCost
        continue
      }
      const chunk = this.#chunks.at(offset)!
      const index = offset - chunk.base
      this.#unschedule(chunk, index)
      this.#becomeDue(chunk, index, chunk.lineTimeAt(index))
      count++
      each?.(offset)
    }
    return Math.max(count, scheduleCost)
  }

  /** Whether `advance` has more to do at `nowMs`. Until it is done, the message to deliver first is unknown. */
  isBehind(nowMs: number): boolean {
    const keyLines = this.#keyLines
    return (
      this.nextDeadline <= nowMs ||
      (keyLines !== undefined && (keyLines.isChanging || keyLines.hasEndedHolds(nowMs)))
    )
  }

  /** Number of messages whose due time is in the future. */
  get scheduled(): number {
    return this.#schedule === undefined ? 0 : this.#schedule.size
  }

  /** See `Schedule.eachDue`. */
  eachDue(nowMs: number, each: (chunk: Chunk, index: number) => void): void {
    this.#schedule?.eachDue(nowMs, each)
  }

  /** Time at which `advance` has work next; Infinity if there is none. */
  get nextWorkMs(): number {
    return this.#keyLines === undefined
      ? this.nextDeadline
      : Math.min(this.nextDeadline, this.#keyLines.nextHoldMs)
  }

  /** Time at which the next message is due; Infinity if nothing is scheduled. */
  get nextDeadline(): number {
    return this.#schedule === undefined ? Infinity : this.#schedule.nextDeadline
  }

  /**
   * Publish or due time of the message that has waited longest; Infinity if no message waits. Messages of blocked keys
   * count too.
   */
  get oldestSince(): number {
    let oldest = Infinity
    for (let mask = this.#plainMask | this.#dueMask; mask !== 0; mask &= mask - 1) {
      const priority = 31 - Math.clz32(mask & -mask)
      const chunk = this.#head(priority)
      if (chunk !== undefined) oldest = Math.min(oldest, chunk.publishedAt(this.#headOffset - chunk.base))
      else if (this.coldOffset !== -1) oldest = Math.min(oldest, this.#chunks.firstMsAt(this.coldOffset))
      oldest = Math.min(oldest, this.#due?.of(priority)?.firstTime ?? Infinity)
    }
    return Math.min(oldest, this.#keyLines?.oldestSince(this.#end) ?? Infinity)
  }

  /** Fills `run` with the next messages, at most `max`. Returns false if none is ready, or if it sets `coldOffset`. */
  next(max: number, nowMs: number, run: Run): boolean {
    this.coldOffset = -1
    for (let mask = this.#plainMask | this.#dueMask; mask !== 0; mask = this.#plainMask | this.#dueMask) {
      const priority = 31 - Math.clz32(mask)
      const chunk = this.#head(priority)
      if (this.coldOffset !== -1) return false
      const offset = this.#headOffset
      const due = this.#due?.of(priority)
      if (due !== undefined) {
        const plainSince = chunk === undefined ? Infinity : chunk.publishedAt(offset - chunk.base)
        if (due.firstTime < plainSince || (due.firstTime === plainSince && due.firstOffset < offset)) {
          this.#dueRun(due, max, nowMs, run)
          return true
        }
      }
      if (chunk === undefined) continue
      this.#plainRun(chunk, priority, max, nowMs, run)
      return true
    }
    return false
  }

  /** See `DueQueues.upcoming`. */
  upcoming(count: number, each: (batchPosition: number) => void): void {
    this.#due?.upcoming(count, each)
  }

  /** Leases the first `count` messages of `run`, which must be the run that `next` filled last. */
  lease(run: Run, count: number, nowMs: number): void {
    const chunk = this.#chunks.at(run.offset)!
    const index = run.offset - chunk.base
    const priority = chunk.priorityAt(index)
    if (run.sinceMs === FROM_PLAIN_LINE) {
      takeOut(chunk, index, index + count)
      const end = run.offset + count
      if (end > this.#cursorOf(priority)) this.#setCursor(priority, end)
      const returned = this.#returned
      if (returned !== undefined && (returned.mask & (1 << priority)) !== 0) returned.dropBelow(priority, end)
      this.#countPlain(priority, -count)
      return
    }
    this.#due!.pop(priority, count)
    chunk.marks.delete(MARK.waiting, index, index + count)
    chunk.marks.delete(MARK.due, index, index + count)
    if (!chunk.hasKeys) return
    for (let at = index; at < index + count; at++) {
      const slot = chunk.keyAt(at)
      if (slot === NONE) continue
      this.#linesOfKeys.unlink(slot, chunk, at)
      this.#queue.keys.countLeased(slot, 1)
      this.#linesOfKeys.take(slot, nowMs)
      this.#linesOfKeys.offer(slot, nowMs)
    }
  }

  /** Returns a leased message to its old place. */
  release(chunk: Chunk, offset: number, sinceMs: number, nowMs: number): void {
    const index = offset - chunk.base
    const priority = chunk.priorityAt(index)
    this.#mark(chunk, index)
    this.dropOrder?.returned(chunk, index)
    if (sinceMs === FROM_PLAIN_LINE) {
      chunk.marks.delete(MARK.out, index, index + 1)
      if (offset < this.#cursorOf(priority))
        (this.#returned ??= new ReturnedMessages(this.#chunks)).add(priority, chunk, index)
      this.#countPlain(priority, 1)
      return
    }
    const slot = chunk.keyAt(index)
    if (slot === NONE) {
      this.#markDue(chunk, index)
      this.#dueQueues.push(priority, sinceMs, offset)
      return
    }
    this.#linesOfKeys.touch(slot, nowMs)
    this.#queue.keys.countLeased(slot, -1)
    this.#markDue(chunk, index)
    this.#linesOfKeys.insert(slot, chunk, index)
    this.#linesOfKeys.offer(slot, nowMs, offset, sinceMs)
  }

  /** Returns a leased message to the line, where it is due at `dueMs`. The chunk already has this time. */
  retry(chunk: Chunk, offset: number, dueMs: number, nowMs: number): void {
    const index = offset - chunk.base
    this.#mark(chunk, index)
    this.suspects.clear(offset, 1)
    const slot = chunk.keyAt(index)
    if (slot !== NONE) {
      this.#linesOfKeys.touch(slot, nowMs)
      this.#queue.keys.countLeased(slot, -1)
    }
    this.enter(chunk, index, dueMs, nowMs)
  }

  /**
   * Adds a message that is not in the line, due at `dueMs`. The chunk already has this time. Like a published message, a
   * message with a key waits for those that are due and not ready yet.
   */
  enter(chunk: Chunk, index: number, dueMs: number, nowMs: number): void {
    this.dropOrder?.returned(chunk, index)
    const slot = chunk.keyAt(index)
    if (slot !== NONE) this.#linesOfKeys.touch(slot, nowMs)
    if (dueMs <= nowMs && (slot === NONE || this.nextDeadline > nowMs)) {
      takeOut(chunk, index, index + 1)
      this.#becomeDue(chunk, index, dueMs)
      return
    }
    this.#delay(chunk, index, dueMs)
    if (slot !== NONE && chunk.attemptsAt(index) > 0) this.#linesOfKeys.offer(slot, nowMs)
  }

  /** Removes a message that is in the line, as of `timeMs`. */
  leave(chunk: Chunk, index: number, timeMs: number): void {
    if (!chunk.isWaiting(index)) {
      this.#countPlain(chunk.priorityAt(index), -1)
      takeOut(chunk, index, index + 1)
      return
    }
    const slot = chunk.keyAt(index)
    if (slot !== NONE) this.#linesOfKeys.touch(slot, timeMs)
    if (!chunk.isDue(index)) {
      this.#unschedule(chunk, index)
      chunk.marks.delete(MARK.waiting, index, index + 1)
      if (chunk.attemptsAt(index) === 0) return
    } else {
      chunk.marks.delete(MARK.waiting, index, index + 1)
      chunk.marks.delete(MARK.due, index, index + 1)
      if (slot !== NONE) this.#linesOfKeys.unlink(slot, chunk, index)
    }
    if (slot !== NONE) this.#linesOfKeys.offer(slot, timeMs)
  }

  /**
   * Removes expired messages that are in the line. Each left when it expired. Heads go on offer only after all of them have
   * left, so that no head goes on offer that leaves at once.
   */
  leaveExpired({ count, offsets, times }: Expired): void {
    const areKeyed = this.#queue.hasKeys
    for (let at = 0; at < count; at++) {
      const chunk = this.#chunks.at(offsets[at]!)!
      const index = offsets[at]! - chunk.base
      if (!areKeyed || !chunk.isDue(index) || chunk.keyAt(index) === NONE) {
        this.leave(chunk, index, times[at]!)
        continue
      }
      chunk.marks.delete(MARK.waiting, index, index + 1)
      chunk.marks.delete(MARK.due, index, index + 1)
      this.#linesOfKeys.leaveEarly(chunk.keyAt(index), chunk, index, times[at]!)
    }
    if (!areKeyed) return
    for (let at = 0; at < count; at++) {
      const chunk = this.#chunks.at(offsets[at]!)!
      const slot = chunk.keyAt(offsets[at]! - chunk.base)
      if (slot !== NONE) this.#linesOfKeys.offer(slot, 0)
    }
  }

  /**
   * Leases a message that is in the line to the consumer that held it before. Returns the time from which the message was
   * eligible, or FROM_PLAIN_LINE. Returns undefined and changes nothing if `keyConcurrency` messages of its
   * key are already leased.
   */
  reclaim(chunk: Chunk, index: number, nowMs: number): number | undefined {
    const slot = chunk.keyAt(index)
    const isPlain = !chunk.isWaiting(index)
    if (slot !== NONE) {
      this.#linesOfKeys.touch(slot, nowMs)
      if (!this.#linesOfKeys.hasRoom(slot)) return undefined
      // The lease is counted before the message leaves, so that its key is not free for another message in between.
      this.#queue.keys.countLeased(slot, 1)
    }
    this.leave(chunk, index, nowMs)
    this.suspects.clear(chunk.base + index, 1)
    return isPlain ? FROM_PLAIN_LINE : chunk.lineTimeAt(index)
  }

  /** Whether the message was delivered and returned since the broker started. */
  isSeen(chunk: Chunk, index: number): boolean {
    return chunk.has(MARK.seen, index)
  }

  /**
   * Called when the leased messages `[offset, offset + count)` are acknowledged, dead or expired. They left the line
   * when they were leased. Now their keys are free for the next message, and the messages are no longer suspects.
   */
  settled(offset: number, count: number, nowMs: number): void {
    this.suspects.clear(offset, count)
    if (!this.#queue.hasKeys) return
    for (let at = offset; at < offset + count; at++) {
      const chunk = this.#chunks.at(at)!
      const slot = chunk.keyAt(at - chunk.base)
      if (slot === NONE) continue
      this.#linesOfKeys.touch(slot, nowMs)
      this.#queue.keys.countLeased(slot, -1)
      this.#linesOfKeys.offer(slot, nowMs)
    }
  }

  /** Offset of the message that is dropped first to make room; -1 if there is none in memory. See `DropOrder.first`. */
  firstToDrop(): number {
    this.dropOrder ??= new DropOrder(this.#chunks)
    return this.dropOrder.first(this.#end)
  }

  /** Called when every message that was in the line or leased is gone. */
  clear(): void {
    this.#ordinary = 0
    this.#plainCounts = ZEROS
    this.#plainMask = 0
    this.#due = undefined
    this.#returned?.clear()
    this.#schedule?.clear()
    this.suspects.clearAll()
    if (this.#queue.hasKeys) this.#queue.keys.clear()
  }

  /** Compares the counters with the messages of the line. @throws Error with the difference */
  invariants(): void {
    auditLine(this.#chunks, {
      end: this.#end,
      keyedFrom: this.#keyLines?.from ?? 0,
      dropOrder: this.dropOrder,
      plainMask: this.#plainMask,
      plainCounts: this.#plainCounts.with(0, this.#ordinary),
      cursors: this.#cursors.with(0, this.#ordinaryCursor),
      scheduled: this.scheduled,
      found: {
        scheduled: this.#schedule?.offsets().size ?? 0,
        due: this.#due?.audit() ?? 0,
        keyed: this.#keyLines?.audit() ?? 0,
      },
    })
  }

  #plainRun(chunk: Chunk, priority: number, max: number, nowMs: number, run: Run): void {
    const offset = this.#headOffset
    const index = offset - chunk.base
    chunk.locate(index, run)
    let end = Math.min(run.batchEnd - chunk.base, index + max)
    end = chunk.marks.firstTaken(index, end)
    const marked = this.#isMarked(chunk, index)
    if (this.#redeliveredBelow > offset) end = Math.min(end, this.#redeliveredBelow - chunk.base)
    else if (marked) end = chunk.marks.firstSeen(false, index, end)
    else end = chunk.marks.firstSeen(true, index, end)
    if (!chunk.hasOnly(priority)) {
      for (let at = index + 1; at < end; at++) if (chunk.priorityAt(at) !== priority) end = at
    }
    run.expired = chunk.isExpired(index, nowMs)
    if (run.expired) end = index + 1
    else if (chunk.hasExpiries) {
      for (let at = index + 1; at < end; at++) if (chunk.isExpired(at, nowMs)) end = at
    }
    if (this.suspects.size > 0) end = this.#untilSuspect(chunk, index, end)
    run.count = end - index
    run.attempt = 1
    run.redelivered = marked
    run.alone = this.suspects.has(offset)
    run.sinceMs = FROM_PLAIN_LINE
  }

  #dueRun(due: TimeQueue, max: number, nowMs: number, run: Run): void {
    const offset = due.firstOffset
    const chunk = this.#chunks.at(offset)!
    const index = offset - chunk.base
    const attempts = chunk.attemptsAt(index)
    chunk.locate(index, run)
    const room = Math.min(max, run.batchEnd - offset)
    run.count = this.#isFirstTry(chunk, index) ? this.#neighbours(due, chunk, index, room) : 1
    run.attempt = Math.min(attempts + 1, LIMITS.maxDeliveriesMax)
    run.redelivered = attempts > 0 || this.#isMarked(chunk, index) || chunk.redriven?.has(index) === true
    run.alone = this.suspects.has(offset)
    run.expired = chunk.isExpired(index, nowMs)
    run.sinceMs = due.firstTime
  }

  // Whether the message has no state of its own that changes its delivery, such as earlier attempts. Neighbours without
  // this state can share a run.
  #isFirstTry(chunk: Chunk, index: number): boolean {
    return (
      this.suspects.size === 0 &&
      !chunk.hasExpiries &&
      chunk.redriven === undefined &&
      chunk.attemptsAt(index) === 0 &&
      !this.#isMarked(chunk, index)
    )
  }

  // Length of the run that starts with the first due message: at most `max` messages of one batch.
  #neighbours(due: TimeQueue, chunk: Chunk, index: number, max: number): number {
    // If several messages of a key may be leased at a time, the lease of one message can put another one on offer, which
    // precedes the neighbour.
    if (chunk.hasKeys && this.#rules.keyConcurrency > 1) return 1
    const end = index + due.firstRun(max)
    const timeMs = due.firstTime
    let at = index + 1
    while (
      at < end &&
      this.#isFirstTry(chunk, at) &&
      this.#due!.chunkOf(timeMs, chunk.base + at) !== undefined
    )
      at++
    return at - index
  }

  // Sets `#headOffset` to the first plain message of the priority and returns its chunk; undefined if there is no such
  // message, or if its chunk is cold. In the latter case, sets `coldOffset`.
  #head(priority: number): Chunk | undefined {
    this.coldOffset = -1
    if ((this.#plainMask & (1 << priority)) === 0) return undefined
    const returned = this.#returned
    if (returned !== undefined && (returned.mask & (1 << priority)) !== 0) {
      const offset = returned.first(priority)
      if (offset !== NONE) {
        this.#headOffset = offset
        return this.#chunks.at(offset)
      }
    }
    let cursor = Math.max(this.#cursorOf(priority), this.#chunks.firstOffset)
    while (cursor < this.#end) {
      const chunk = this.#chunks.at(cursor)
      if (chunk !== undefined && (chunk.priorityMask >>> priority) & 1) {
        const { count } = chunk
        const isOnly = chunk.hasOnly(priority)
        for (let index = cursor - chunk.base; index < count; index++) {
          index = chunk.marks.firstFree(index, count)
          if (index === count) break
          if (isOnly || chunk.priorityAt(index) === priority) {
            this.#headOffset = chunk.base + index
            this.#setCursor(priority, this.#headOffset)
            return chunk
          }
        }
      }
      if (chunk === undefined && priority === 0 && this.#chunks.isCold(cursor))
        return void (this.coldOffset = this.#ordinaryCursor = cursor)
      cursor = Math.min(chunkEndAfter(cursor), this.#end)
    }
    throw new Error(`priority ${priority} counts plain messages, but none was found`)
  }

  // End of the run that starts at `from`, at most `to`. A suspect is delivered alone, so a run ends before the next suspect.
  #untilSuspect(chunk: Chunk, from: number, to: number): number {
    if (this.suspects.has(chunk.base + from)) return from + 1
    return this.suspects.firstIn(chunk.base + from + 1, chunk.base + to) - chunk.base
  }

  #delay(chunk: Chunk, index: number, dueMs: number): void {
    this.#wait(chunk, index)
    takeOut(chunk, index, index + 1)
    ;(this.#schedule ??= new Schedule(this.#chunks)).add(chunk, index, dueMs)
    const slot = chunk.keyAt(index)
    if (slot !== NONE && chunk.attemptsAt(index) > 0) this.#queue.keys.countRetrying(slot, 1)
  }

  // Removes the message from the scheduled messages. The caller puts it where it belongs.
  #unschedule(chunk: Chunk, index: number): void {
    this.#schedule!.remove(chunk, index)
    const slot = chunk.keyAt(index)
    if (slot !== NONE && chunk.attemptsAt(index) > 0) this.#queue.keys.countRetrying(slot, -1)
  }

  // Called when the due time of the message has come.
  #becomeDue(chunk: Chunk, index: number, dueMs: number): void {
    const slot = chunk.keyAt(index)
    const offset = chunk.base + index
    this.#markDue(chunk, index)
    if (slot === NONE) {
      this.#dueQueues.push(chunk.priorityAt(index), dueMs, offset)
      return
    }
    this.#linesOfKeys.touch(slot, dueMs)
    this.#linesOfKeys.insert(slot, chunk, index)
    this.#linesOfKeys.offer(slot, dueMs)
  }

  #wait(chunk: Chunk, index: number): void {
    chunk.marks.add(MARK.waiting, index, index + 1)
  }

  #markDue(chunk: Chunk, index: number): void {
    this.#wait(chunk, index)
    this.#keyLines?.reach(chunk.base + index)
    chunk.marks.add(MARK.due, index, index + 1)
  }

  #countPlain(priority: number, count: number): void {
    const total = priority === 0 ? (this.#ordinary += count) : this.#countOther(priority, count)
    if (total === 0) this.#plainMask &= ~(1 << priority)
    else this.#plainMask |= 1 << priority
  }

  #countOther(priority: number, count: number): number {
    if (this.#plainCounts === ZEROS) this.#plainCounts = new Float64Array(PRIORITIES)
    return (this.#plainCounts[priority]! += count)
  }

  // Offset from which the plain line of the priority continues.
  #cursorOf(priority: number): number {
    return priority === 0 ? this.#ordinaryCursor : this.#cursors[priority]!
  }

  #setCursor(priority: number, offset: number): void {
    if (priority === 0) {
      this.#ordinaryCursor = offset
      return
    }
    if (this.#cursors === ZEROS) this.#cursors = new Float64Array(PRIORITIES)
    this.#cursors[priority] = offset
  }

  #isMarked(chunk: Chunk, index: number): boolean {
    return chunk.base + index < this.#redeliveredBelow || chunk.has(MARK.seen, index)
  }

  #mark(chunk: Chunk, index: number): void {
    chunk.marks.add(MARK.seen, index, index + 1)
  }
}

function takeOut(chunk: Chunk, from: number, to: number): void {
  chunk.marks.add(MARK.out, from, to)
}
