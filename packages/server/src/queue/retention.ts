/**
 * The retained messages of a queue by chunk, and the limits that decide which of them are released: the acknowledged
 * messages that a queue keeps for replay, or all messages of a stream. Each chunk with such messages has an entry here,
 * from its first retained message until its last one is released. While the chunk also has live messages, it is in the
 * list of chunks as well. A chunk whose messages are all gone is only here, and can be cold: then only the summary of its
 * page is in memory (see cold.ts).
 *
 * Messages are released chunk by chunk, when the last message in the chunk was retained before the age limit, or when
 * the newer chunks reach a limit of bytes or messages. `Queue` asks for the next release when its time has come, and
 * stops at a message that a group still needs if the stream waits for its groups. It records each release as a fact. So
 * the log frees a retained batch only after a durable fact, as with any other batch.
 */
import { CHUNK_MESSAGES } from './bits.js'
import type { Budget } from './budget.js'
import type { Chunk } from './chunk.js'
import type { ChunkSummary } from './cold.js'
import { TimeHeap } from './heap.js'
import type { Pages } from './pages.js'
import { RETAINED_EXCESS_BYTES_MAX } from './retained.js'

/** Part of the budget of a turn that the release of one chunk takes. It takes as long as making this many messages ready. */
const RELEASE_COST = 128

/** Minimum time between two rounds of releases in one queue, so that other input is served in between. */
const PAUSE_MS = 1

/** Time between two rounds while retention waits for a group: groups do not report their progress. */
const WAIT_MS = 1_000

/** Entries of released chunks are removed when there are more than twice as many entries as chunks, plus this number. */
const STALE_SLACK = 64

/** The limits of retention. 0 means that there is no such limit. */
export interface RetentionLimits {
  readonly retainAgeMs: number
  readonly retainBytes: number
  /** Only streams have this limit. */
  readonly retainMessages?: number
  /** Only streams have this limit; see `Hold`. */
  readonly waitForGroupsBytes?: number
}

/** Retention wants to release messages that a group has not finished. */
export interface Hold {
  /** Name of the group that is furthest behind. */
  readonly group: string
  /** Whether the round released such messages, because the stream had more bytes than `waitForGroupsBytes`. */
  readonly isExceeded: boolean
}

/** Offsets `[from, end)`. */
export interface OffsetRange {
  readonly from: number
  readonly end: number
}

export class Retention {
  /** Number of all retained messages, and bytes of their records. */
  messages = 0
  bytes = 0
  /** Numbers of all chunks with retained messages, in ascending order. */
  readonly numbers: number[] = []
  readonly #inMemory = new Map<number, Chunk>()
  /** For each chunk the time of its last acknowledgement when the entry was added, which can be too early. */
  readonly #times = new TimeHeap()
  /** Set if the last round of releases met messages that a group has not finished. */
  hold: Hold | undefined
  /** Time of the last round of releases. */
  #releasedMs = -Infinity
  readonly #pages: Pages
  readonly #queueId: number

  constructor(pages: Pages, queueId: number) {
    this.#pages = pages
    this.#queueId = queueId
  }

  get isEmpty(): boolean {
    return this.numbers.length === 0
  }

  /** The chunk, if it has retained messages and is in memory. */
  at(number: number): Chunk | undefined {
    return this.#inMemory.get(number)
  }

  has(number: number): boolean {
    return this.numbers[this.#search(number)] === number
  }

  isCold(number: number): boolean {
    return this.has(number) && !this.#inMemory.has(number)
  }

  /** The chunks that are in memory, in any order. */
  get inMemory(): Iterable<Chunk> {
    return this.#inMemory.values()
  }

  get inMemoryCount(): number {
    return this.#inMemory.size
  }

  /** Called when retained messages were added or, with negative numbers, released. */
  add(messages: number, bytes: number): void {
    this.messages += messages
    this.bytes += bytes
  }

  /** Called when a chunk in memory has its first retained message. */
  addChunk(chunk: Chunk): void {
    const { number } = chunk
    this.#inMemory.set(number, chunk)
    this.#insert(number)
    this.#noteTime(chunk.retained!.newestMs, number)
  }

  /** Used in recovery: a chunk stays out of memory. Its page has this summary. */
  restoreCold(number: number, { messages, bytes, retainedMs }: ChunkSummary): void {
    this.#insert(number)
    this.add(messages, bytes)
    this.#noteTime(retainedMs, number)
  }

  /** Called when the page of a cold chunk was read. */
  makeWarm(chunk: Chunk): void {
    this.#inMemory.set(chunk.number, chunk)
    this.bytes += chunk.retained!.bytes - this.#summary(chunk.number).bytes
  }

  /** Removes the chunk from memory. Its page contains all of its state. */
  makeCold(chunk: Chunk): void {
    // The page has whole bytes.
    this.bytes += this.#summary(chunk.number).bytes - chunk.retained!.bytes
    this.#inMemory.delete(chunk.number)
  }

  /** Called when the last retained message of the chunk was released. */
  remove(number: number): void {
    const at = this.#search(number)
    if (this.numbers[at] !== number) return
    this.numbers.splice(at, 1)
    this.#inMemory.delete(number)
    if (this.numbers.length > 0) return
    this.#times.clear()
    this.messages = 0
    // The sum of many fractions is not exact.
    this.bytes = 0
  }

  /**
   * Time at which messages can be released next; Infinity if there is no such time. May be too early, but is never more
   * than `PAUSE_MS` too late or, while retention waits for a group, `WAIT_MS`.
   */
  nextMs(limits: RetentionLimits): number {
    if (this.isEmpty) return Infinity
    const { retainAgeMs } = limits
    const isOver = this.#isOver(limits) && this.#excess(limits) !== undefined
    const dueMs = isOver ? 0 : retainAgeMs > 0 ? this.#times.firstTime + retainAgeMs : Infinity
    const isWaiting = this.hold !== undefined && this.bytes <= (limits.waitForGroupsBytes ?? 0)
    return Math.max(dueMs, this.#releasedMs + (isWaiting ? WAIT_MS : PAUSE_MS))
  }

  /**
   * Begins a round: gives the messages that the limits release at `nowMs` to `release`, until the budget is used up.
   * `release` must release them, or return false to end the round.
   */
  releaseUntil(
    limits: RetentionLimits,
    nowMs: number,
    budget: Budget,
    release: (range: OffsetRange) => boolean,
  ): void {
    const { retainAgeMs } = limits
    this.#releasedMs = nowMs
    this.hold = undefined
    const agedMs = retainAgeMs > 0 ? nowMs - retainAgeMs : -Infinity
    for (; budget.left > 0; budget.left -= RELEASE_COST) {
      const range = this.#aged(agedMs) ?? (this.#isOver(limits) ? this.#excess(limits) : undefined)
      if (range === undefined || !release(range)) return
    }
  }

  // A chunk whose newest message was retained at `untilMs` or before.
  #aged(untilMs: number): OffsetRange | undefined {
    while (this.#times.firstTime <= untilMs) {
      const number = this.#times.firstOffset
      const newestMs = this.has(number) ? this.#newestMs(number) : -1
      // The entry is removed after the release.
      if (newestMs !== -1 && newestMs <= untilMs) return wholeChunk(number)
      this.#times.pop()
      if (newestMs !== -1) this.#times.push(newestMs, number)
    }
    return undefined
  }

  /** Bytes of the chunks that the limits release at `nowMs`. The time it takes grows with their number. */
  dueBytes({ retainAgeMs, retainBytes, retainMessages = 0 }: RetentionLimits, nowMs: number): number {
    const agedMs = retainAgeMs > 0 ? nowMs - retainAgeMs : -Infinity
    let { messages, bytes } = this
    for (const number of this.numbers) {
      const retained = this.#inMemory.get(number)?.retained
      messages -= retained?.count ?? this.#summary(number).messages
      const chunkBytes = retained?.bytes ?? this.#summary(number).bytes
      const isDue =
        this.#newestMs(number) <= agedMs ||
        (retainMessages > 0 && messages >= retainMessages) ||
        (retainBytes > 0 && bytes - chunkBytes >= retainBytes)
      if (!isDue) break
      bytes -= chunkBytes
    }
    return this.bytes - bytes
  }

  #isOver({ retainBytes, retainMessages = 0 }: RetentionLimits): boolean {
    return (
      (retainBytes > 0 && this.bytes > retainBytes) || (retainMessages > 0 && this.messages > retainMessages)
    )
  }

  // The oldest messages beyond a limit: a whole chunk or, in a chunk with many bytes, its first messages.
  #excess({ retainBytes, retainMessages = 0 }: RetentionLimits): OffsetRange | undefined {
    const number = this.numbers[0]
    if (number === undefined) return undefined
    const retained = this.#inMemory.get(number)?.retained
    const messages = retained?.count ?? this.#summary(number).messages
    if (retainMessages > 0 && this.messages - messages >= retainMessages) return wholeChunk(number)
    const excessBytes = retainBytes > 0 ? this.bytes - retainBytes : 0
    if (excessBytes <= 0) return undefined
    const bytes = retained?.bytes ?? this.#summary(number).bytes
    if (bytes <= excessBytes) return wholeChunk(number)
    if (retained === undefined || bytes <= RETAINED_EXCESS_BYTES_MAX) return undefined
    let released = Math.floor((excessBytes * retained.count) / bytes)
    if (released === 0) return undefined
    let index = retained.next(0)
    for (; released > 1; released--) index = retained.next(index + 1)
    return { from: number * CHUNK_MESSAGES, end: number * CHUNK_MESSAGES + index + 1 }
  }

  /**
   * Offset of the next retained message at or after `offset`; -1 if there is none. If the chunk of that message is cold,
   * returns the lowest offset in the chunk that the message can have.
   */
  next(offset: number): number {
    const first = Math.floor(offset / CHUNK_MESSAGES)
    for (let at = this.#search(first); at < this.numbers.length; at++) {
      const number = this.numbers[at]!
      const base = number * CHUNK_MESSAGES
      const retained = this.#inMemory.get(number)?.retained
      if (retained === undefined) return Math.max(base, offset)
      const index = retained.next(Math.max(0, offset - base))
      if (index < CHUNK_MESSAGES) return base + index
    }
    return -1
  }

  /** An offset at or before that of the first retained message that was published at `timeMs` or later. */
  offsetAt(timeMs: number): number {
    let low = 0
    let high = this.numbers.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#firstMs(this.numbers[middle]!) < timeMs) low = middle + 1
      else high = middle
    }
    // The message can be in the chunk before the first one that begins at that time.
    return low === 0 ? 0 : this.numbers[low - 1]! * CHUNK_MESSAGES
  }

  /** The highest number below `number` of a chunk with retained messages; -1 if there is none. */
  numberBefore(number: number): number {
    return this.numbers[this.#search(number) - 1] ?? -1
  }

  /** Numbers of the chunks with retained messages that `[from, end)` reaches. */
  numbersIn(from: number, end: number): number[] {
    const first = this.#search(Math.floor(from / CHUNK_MESSAGES))
    return this.numbers.slice(first, this.#search(Math.ceil(end / CHUNK_MESSAGES)))
  }

  /** Compares the counts of the chunks with their sets. @throws Error with the difference */
  audit(): void {
    let messages = 0
    let bytes = 0
    for (const number of this.numbers) {
      const chunk = this.#inMemory.get(number)
      if (chunk !== undefined && !((chunk.retained?.count ?? 0) > 0))
        throw new Error(`chunk ${number} is listed as retained, but has no retained message`)
      messages += chunk?.retained?.count ?? this.#summary(number).messages
      bytes += chunk?.retained?.bytes ?? this.#summary(number).bytes
    }
    if (messages !== this.messages)
      throw new Error(`${messages} messages are retained, but the counter is ${this.messages}`)
    if (Math.abs(bytes - this.bytes) > 1)
      throw new Error(`the retained messages have ${bytes} bytes, but the counter is ${this.bytes}`)
  }

  #summary(number: number): ChunkSummary {
    return this.#pages.summary(this.#queueId, number)!
  }

  #newestMs(number: number): number {
    return this.#inMemory.get(number)?.retained?.newestMs ?? this.#summary(number).retainedMs
  }

  #firstMs(number: number): number {
    return this.#inMemory.get(number)?.batches.timeMs(0) ?? this.#summary(number).firstMs
  }

  // Index of the first number that is at least `number`.
  #search(number: number): number {
    const { numbers } = this
    let low = 0
    let high = numbers.length
    if (high === 0 || numbers[high - 1]! < number) return high
    while (low < high) {
      const middle = (low + high) >>> 1
      if (numbers[middle]! < number) low = middle + 1
      else high = middle
    }
    return low
  }

  // Without a limit of age, or after a release by bytes, entries of released chunks would pile up.
  #noteTime(timeMs: number, number: number): void {
    this.#times.push(timeMs, number)
    if (this.#times.size > 2 * this.numbers.length + STALE_SLACK)
      this.#times.keep((_, other) => this.has(other))
  }

  #insert(number: number): void {
    const at = this.#search(number)
    if (at === this.numbers.length) this.numbers.push(number)
    else if (this.numbers[at] !== number) this.numbers.splice(at, 0, number)
  }
}

function wholeChunk(number: number): OffsetRange {
  return { from: number * CHUNK_MESSAGES, end: (number + 1) * CHUNK_MESSAGES }
}
