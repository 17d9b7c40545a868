/**
 * Requests of an operator about single messages: peek, redrive, discard, cancel, reschedule. Called by sessions.
 *
 * Invariant: a page may take several turns, and the state of a message is checked again after each wait.
 */
import {
  LIMITS,
  PAGE_HEAD_BYTES,
  PEEKED_HEAD_BYTES,
  SluiceError,
  deathName,
  peekedBytes,
  type DeadSelection,
  type MessageFilter,
  type MessageRef,
  type PeekPage,
  type PeekRequest,
  type PeekedMessage,
  type RedriveRequest,
  type RescheduleRequest,
} from '@sluice/protocol'
import { chunkEndAfter, ID_WORDS, hashId, type Chunk, type Queue } from '../queue/index.js'
import type { State } from '../state/state.js'
import { checkAt } from '../state/traits.js'
import {
  EXAMINED_IN_TURN,
  EXAMINED_MAX,
  cutFault,
  type Caller,
  type CutShort,
  type DiskRequests,
} from './disk-requests.js'
import type { Moves } from './moves.js'
import { observed, type Observer } from './observer.js'
import { fittedRecord } from './origin.js'
import { RecordFilter } from './record-filter.js'
import { matchesState, redrivesOf, type Records } from './records.js'
import type { ColdChunks } from '../state/cold-chunks.js'
import type { Turn } from './turn.js'

/** Maximum size of one answer in bytes, unless a single message is larger. */
const PAGE_BYTES = 1 << 20

export interface RedriveResult extends CutShort {
  readonly matched: number
  readonly redriven: number
  /** Number of messages that were not redriven, because they were redriven too often before or are barred. */
  readonly guarded: number
  /**
   * Number of barred messages, which are part of `guarded`. In a queue with unique pending ids, a message is barred
   * if it has the id of a pending message.
   */
  readonly barred: number
  readonly next: number | null
}

export interface DiscardResult extends CutShort {
  readonly matched: number
  readonly discarded: number
  readonly next: number | null
}

export class Operator {
  readonly #state: State
  readonly #records: Records
  readonly #cold: ColdChunks
  readonly #moves: Moves
  readonly #requests: DiskRequests
  readonly #turn: Turn
  readonly #observer: Observer | undefined

  constructor(
    state: State,
    records: Records,
    cold: ColdChunks,
    moves: Moves,
    requests: DiskRequests,
    turn: Turn,
    observer: Observer | undefined,
  ) {
    this.#state = state
    this.#records = records
    this.#cold = cold
    this.#moves = moves
    this.#requests = requests
    this.#turn = turn
    this.#observer = observer
  }

  /**
   * `bytesMax` is the maximum size of the answer's payload.
   * @throws SluiceError QUEUE_NOT_FOUND, CORRUPT, TOO_MANY_REQUESTS
   */
  peek(request: PeekRequest, caller: Caller, bytesMax = Infinity): Promise<PeekPage> {
    return this.#requests.run(caller, () => this.#peek(request, caller, bytesMax))
  }

  async #peek(request: PeekRequest, caller: Caller, bytesMax: number): Promise<PeekPage> {
    const queue = this.#state.consumable(request.name)
    const pageBytesMax = Math.min(PAGE_BYTES, bytesMax - PAGE_HEAD_BYTES)
    const filter = new RecordFilter(request.filter)
    const messages: PeekedMessage[] = []
    let bytes = 0
    let examined = 0
    for (const offset of offsetsFrom(queue, request.from)) {
      if (messages.length === request.limit || bytes >= PAGE_BYTES || ++examined > EXAMINED_MAX)
        return { messages: held(queue, messages), next: offset }
      if (examined % EXAMINED_IN_TURN === 0 || filter.endsTurn()) await this.#requests.pause(caller)
      const state = queue.stateAt(offset, this.#turn.nowMs)
      if (state === undefined || (request.state !== undefined && state !== request.state)) continue
      while (queue.chunks.isCold(offset)) {
        await this.#cold.load(queue, offset)
        this.#requests.resume(caller)
      }
      if (queue.stateOf(offset) === undefined) continue
      if (!this.#matchesState(queue, offset, request.filter)) continue
      const record = await this.#records.read(queue, offset)
      this.#requests.resume(caller)
      if (record === undefined || !filter.matches(record, 0)) continue
      const found = this.#peeked(queue, offset, record)
      if (found === undefined || (request.state !== undefined && found.state !== request.state)) continue
      const fitted = fittedRecord(record, bytesMax - PAGE_HEAD_BYTES - PEEKED_HEAD_BYTES)
      const message = { ...found, record: fitted }
      bytes += peekedBytes(message)
      if (messages.length > 0 && bytes > pageBytesMax)
        return { messages: held(queue, messages), next: offset }
      messages.push(message)
    }
    return { messages: held(queue, messages), next: undefined }
  }

  #matchesState(queue: Queue, offset: number, filter: MessageFilter): boolean {
    const dead = queue.deadAt(offset)
    const chunk = queue.chunkAt(offset)!
    const state = {
      dead,
      attempts: dead?.attempts ?? queue.attemptsOf(offset),
      timeMs: dead?.timeMs ?? chunk.publishedAt(offset - chunk.base),
    }
    return matchesState(filter, state, this.#turn.nowMs)
  }

  #peeked(queue: Queue, offset: number, record: Uint8Array): PeekedMessage | undefined {
    const state = queue.stateAt(offset, this.#turn.nowMs)
    const chunk = queue.chunkAt(offset)
    if (state === undefined || chunk === undefined) return undefined
    const index = offset - chunk.base
    const dead = queue.deadAt(offset)
    const attempts = dead?.attempts ?? queue.attemptsOf(offset)
    return {
      state,
      death: dead === undefined ? undefined : deathName(dead.death),
      attempts,
      totalAttempts: queue.redriveHistory(offset).attempts + attempts,
      redrives: redrivesOf(queue, offset, record),
      offset,
      publishedAtMs: chunk.publishedAt(index),
      timeMs: dead?.timeMs ?? chunk.lineTimeAt(index),
      expiresAtMs: dead === undefined ? chunk.expiryAt(index) : 0,
      reason: dead?.reason ?? '',
      holder: '',
      record,
    }
  }

  /** @throws SluiceError QUEUE_NOT_FOUND, INVALID_ARGUMENT, DISK_LOW, CORRUPT, TOO_MANY_REQUESTS */
  redrive(request: RedriveRequest, caller: Caller): Promise<RedriveResult> {
    const counts = { redriven: 0, guarded: 0, barred: 0 }
    // A dry run makes no id pending, so it remembers the ids that a real run would have made pending: at most one id
    // for each message of the page.
    const returning = new Set<string>()
    return this.#forDead(request, caller, counts, 'redriven', async (queue, offset, read) => {
      const { to, force, dryRun } = request
      // The record contains the number of redrives in other queues.
      const record = await read()
      if (record === undefined || queue.deadAt(offset) === undefined) return
      const id = to === undefined ? queue.uniqueIdOf(offset) : undefined
      if (
        id !== undefined &&
        (queue.pendingOffset(id, this.#turn.nowMs) !== -1 || returning.has(id.join()))
      ) {
        counts.barred++
        counts.guarded++
        return
      }
      if (redrivesOf(queue, offset, record) >= LIMITS.redrivesMax && !force) {
        counts.guarded++
        return
      }
      if (!dryRun) {
        if (to === undefined) {
          queue.redrive(offset, this.#turn.nowMs, caller.label)
          this.#observer?.redriven(queue, offset)
        } else this.#moves.move(queue, offset, record, this.#state.queue(to), 'carry')
        this.#turn.changed(queue)
      } else if (id !== undefined) returning.add(id.join())
      counts.redriven++
    })
  }

  /** @throws SluiceError QUEUE_NOT_FOUND, CORRUPT, TOO_MANY_REQUESTS */
  discard(request: DeadSelection, caller: Caller): Promise<DiscardResult> {
    const counts = { discarded: 0 }
    return this.#forDead(request, caller, counts, 'discarded', (queue, offset) => {
      if (!request.dryRun) {
        queue.discard(offset)
        this.#observer?.discarded(queue, offset)
        this.#turn.changed(queue)
      }
      counts.discarded++
    })
  }

  // Calls `act` for each chosen message that is dead at that moment. `act` may call `read`. Other requests are served
  // during the read, so `act` must then check again whether the message is dead. `counts[done]` is the number of
  // changed messages.
  #forDead<Counts extends Readonly<Record<string, number>>>(
    request: DeadSelection & { readonly to?: string | undefined },
    caller: Caller,
    counts: Counts,
    done: keyof Counts,
    act: (queue: Queue, offset: number, read: () => Promise<Uint8Array | undefined>) => void | Promise<void>,
  ): Promise<Counts & { matched: number; next: number | null } & CutShort> {
    return this.#requests.run(caller, async () => {
      const { filter, limit, from, name, to } = request
      const recordFilter = new RecordFilter(filter)
      const queue = this.#state.consumable(name)
      if (to !== undefined) this.#state.queue(to)
      if (to === name) throw sameQueue('REDRIVE', name)
      const offsets = request.offsets?.filter((offset) => offset >= from)
      let matched = 0
      let examined = 0
      let next: number | null = null
      try {
        for (const offset of offsets ?? deadFrom(queue, from)) {
          next = offset
          if (matched === limit || ++examined > EXAMINED_MAX) return { ...counts, matched, next }
          if (examined % EXAMINED_IN_TURN === 0 || recordFilter.endsTurn()) await this.#requests.pause(caller)
          if (queue.deadAt(offset) === undefined || !this.#matchesState(queue, offset, filter)) continue
          const read = async (): Promise<Uint8Array | undefined> => {
            const record = await this.#records.read(queue, offset)
            this.#requests.resume(caller)
            return record
          }
          if (recordFilter.needsRecord) {
            const record = await read()
            if (
              record === undefined ||
              queue.deadAt(offset) === undefined ||
              !recordFilter.matches(record, 0)
            )
              continue
          }
          await act(queue, offset, read)
          matched++
          // During the wait the broker may have stopped, and the client may have left.
          this.#requests.resume(caller)
        }
      } catch (error) {
        if (request.dryRun || counts[done] === 0) throw error
        return { ...counts, matched, next, error: cutFault(error) }
      }
      return { ...counts, matched, next: null }
    })
  }

  /** Whether the chunk of the message is not in memory, so that a change of the message has to read it first. */
  mustRead({ name, offset }: { readonly name?: unknown; readonly offset?: unknown }): boolean {
    return typeof offset === 'number' && this.#state.queues.get(String(name))?.chunks.isCold(offset) === true
  }

  /**
   * Calls `change` when the chunk of the message is in memory: at once, or after it was read.
   * @throws SluiceError CORRUPT, TOO_MANY_REQUESTS; errors of `change`
   */
  whenRead<Answer>(ref: MessageRef, caller: Caller, change: () => Answer): Answer | Promise<Answer> {
    if (!this.mustRead(ref)) return change()
    return this.#requests.run(caller, async () => {
      const queue = this.#state.consumable(ref.name)
      while (queue.chunks.isCold(ref.offset!)) {
        await this.#cold.load(queue, ref.offset!)
        this.#requests.resume(caller)
      }
      // The queue can have been deleted, and another one created under its name.
      if (this.#state.has(queue)) return change()
      throw new SluiceError('QUEUE_NOT_FOUND', `The queue ${ref.name} was deleted.`)
    })
  }

  /**
   * Removes a scheduled or ready message.
   * @throws SluiceError QUEUE_NOT_FOUND, MESSAGE_NOT_FOUND, MESSAGE_LEASED
   */
  cancel(ref: MessageRef): { readonly offset: number } {
    return observed(
      () => this.#cancel(ref),
      (answer) => this.#observer?.cancelled(ref, answer),
    )
  }

  #cancel(ref: MessageRef): { readonly offset: number } {
    const queue = this.#state.consumable(ref.name)
    const offset = this.#offsetOf(queue, ref)
    queue.cancel(offset, this.#turn.nowMs)
    this.#turn.changed(queue)
    return { offset }
  }

  /**
   * Gives a scheduled or ready message another due time.
   * @throws SluiceError QUEUE_NOT_FOUND, MESSAGE_NOT_FOUND, MESSAGE_LEASED, AT_IN_THE_PAST, INVALID_DELAY
   */
  reschedule(request: RescheduleRequest): { readonly offset: number; readonly dueMs: number } {
    return observed(
      () => this.#reschedule(request),
      (answer) => this.#observer?.rescheduled(request, answer),
    )
  }

  #reschedule(request: RescheduleRequest): { readonly offset: number; readonly dueMs: number } {
    const { delayMs, atMs } = request
    const { nowMs } = this.#turn
    if (atMs !== undefined) checkAt('`at`', atMs, nowMs)
    const queue = this.#state.consumable(request.name)
    const offset = this.#offsetOf(queue, request)
    const dueMs = Math.max(nowMs, atMs ?? nowMs + delayMs!)
    queue.reschedule(offset, dueMs, nowMs)
    this.#turn.changed(queue)
    return { offset, dueMs }
  }

  #offsetOf(queue: Queue, { offset, id }: MessageRef): number {
    this.#turn.catchUp(queue)
    this.#turn.changed(queue)
    if (offset !== undefined) return offset
    const bytes = Buffer.from(id!)
    const words = new Uint32Array(ID_WORDS)
    hashId(bytes, 0, bytes.length, this.#state.seed, words, 0)
    const found = queue.offsetOf(words, this.#turn.nowMs)
    if (found !== -1) return found
    throw new SluiceError(
      'MESSAGE_NOT_FOUND',
      `The queue ${queue.name} has no message with the id ${JSON.stringify(id)}.`,
    )
  }
}

/** Returns the messages. Messages that are still leased are returned with their holders. */
function held(queue: Queue, messages: readonly PeekedMessage[]): PeekedMessage[] {
  const leased = new Set<number>()
  for (const { state, offset } of messages) if (state === 'leased') leased.add(offset)
  if (leased.size === 0) return [...messages]
  const holders = new Map<number, { readonly holder: string; readonly timeMs: number }>()
  for (const subscription of queue.subscriptions) {
    for (const { offset, leasedAtMs } of subscription.held())
      if (leased.has(offset)) holders.set(offset, { holder: subscription.consumer.label, timeMs: leasedAtMs })
  }
  return messages.map((message) =>
    message.state === 'leased' ? { ...message, timeMs: 0, ...holders.get(message.offset) } : message,
  )
}

/**
 * Iterates over the offsets of messages that are not gone, from `from` on. Each message is checked when the iteration
 * reaches it.
 */
function* offsetsFrom(queue: Queue, from: number): IterableIterator<number> {
  const { next } = queue
  for (let offset = Math.max(from, queue.chunks.firstOffset); offset < next; offset++) {
    const chunk = queue.chunkAt(offset)
    if (chunk !== undefined ? !chunk.isGone(offset - chunk.base) : queue.chunks.isCold(offset)) yield offset
    else if (chunk === undefined) offset = chunkEndAfter(offset) - 1
  }
}

function* deadFrom(queue: Queue, from: number): IterableIterator<number> {
  for (const chunk of queue.chunks) {
    if (chunk.dead === undefined || chunk.base + chunk.count <= from) continue
    for (const offset of deadIn(chunk)) if (offset >= from) yield offset
  }
}

function deadIn(chunk: Chunk): number[] {
  return [...chunk.dead!.indexes()].map((index) => chunk.base + index)
}

function sameQueue(frame: string, name: string): SluiceError {
  return new SluiceError(
    'INVALID_ARGUMENT',
    `The target of ${frame} is the queue ${name} itself. Omit \`to\` to return messages to their own queue.`,
  )
}
