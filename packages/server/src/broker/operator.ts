/**
 * What people ask of single messages and consumers: looking, bringing back the dead, deleting them, replaying what was
 * settled, and telling what happened to a message. Reading can take a while; each page is done in as many turns as it
 * takes, and what was chosen is looked at again after every wait.
 */
import {
  LIMITS,
  PAGE_HEAD_BYTES,
  PEEKED_HEAD_BYTES,
  SluiceError,
  clipText,
  deathName,
  peekedBytes,
  type ConsumerInfo,
  type ConsumersRequest,
  type DeadSelection,
  type Fault,
  type HistoryRequest,
  type MessageFilter,
  type PeekPage,
  type PeekRequest,
  type PeekedMessage,
  type RedriveRequest,
  type ReplayRequest,
} from '@sluice/protocol'
import type { Log } from '../log/log.js'
import type { Chunk, Queue } from '../queue/index.js'
import { historyOf, type HistoryResult } from './history.js'
import type { Moves } from './moves.js'
import type { Observer } from './observer.js'
import { fittedRecord } from './origin.js'
import { choosesAmong, choosesRecord, needsRecord, redrivesOf, type Records } from './records.js'
import { Replays, type Settled } from './replays.js'

/** Bytes of one answer, unless a single message is larger. */
const PAGE_BYTES = 1 << 20
/** Messages that one page looks at, chosen or not. */
const LOOKED_AT_MAX = 100_000
/** Consumers in one answer: with names of 255 bytes they fit a control frame. */
const PAGE_CONSUMERS = 100
/** Slots for leases that a page of consumers looks at, beside those of its first one: a fraction of a millisecond. */
const PAGE_SLOTS = 1 << 18
/** Requests that read, of all clients: so many are done at a time, and so many are known. */
const RUNNING_MAX = 8
const REQUESTS_MAX = 256

/** Who asks. */
export interface Caller {
  /** Label of the client, for the history of what it does. */
  readonly label: string
  /** False: nothing that is found is wanted any more. */
  readonly isOpen: boolean
}

/** What the operator needs of the broker. */
export interface Premises {
  /** Time of this turn, ms. */
  now(): number
  /** Where the log ends by now. */
  endPosition(): number
  /** A wait is over: a turn begins. @throws SluiceError SHUTTING_DOWN when nothing may be written any more */
  beginTurn(): void
  /** Something was done to the queue. */
  changed(queue: Queue): void
  /** @throws SluiceError QUEUE_NOT_FOUND */
  queue(name: string): Queue
}

/** Why a page ended before its end, after it had done something. What is at its `next` or `cursor` was not done. */
export interface CutShort {
  readonly error?: CutFault
}

export type CutFault = Pick<Fault, 'code' | 'retryable' | 'retryAfterMs' | 'message'>

export interface RedriveResult extends CutShort {
  readonly matched: number
  readonly redriven: number
  /** Left alone: brought back too often, or barred. */
  readonly guarded: number
  /** Of these, those whose id another pending message has, where only one may be pending. */
  readonly barred: number
  readonly next: number | null
}

export interface DiscardResult extends CutShort {
  readonly matched: number
  readonly discarded: number
  readonly next: number | null
}

export interface ReplayResult extends CutShort {
  readonly matched: number
  readonly replayed: number
  readonly cursor: string | null
}

export interface ConsumersResult {
  readonly consumers: ConsumerInfo[]
  readonly next: number | null
}

export class Operator {
  readonly #log: Log
  readonly #records: Records
  readonly #moves: Moves
  readonly #premises: Premises
  readonly #observer: Observer | undefined
  readonly #replays: Replays
  #running = 0
  readonly #waiting: (() => void)[] = []

  constructor(
    log: Log,
    records: Records,
    moves: Moves,
    premises: Premises,
    replayWindowOffsets: number | undefined,
    observer: Observer | undefined,
  ) {
    this.#log = log
    this.#records = records
    this.#moves = moves
    this.#premises = premises
    this.#observer = observer
    this.#replays = new Replays(log, replayWindowOffsets)
  }

  /** The client is gone: nothing is kept for it. */
  forget(caller: Caller): void {
    this.#replays.forget(caller)
  }

  // Few at a time, because each holds what it found until it is answered; the others wait in line.
  // @throws SluiceError TOO_MANY_REQUESTS; what `work` throws, so that it ends no more than the request
  async #inTurn<Result>(caller: Caller, changes: boolean, work: () => Promise<Result>): Promise<Result> {
    if (this.#running + this.#waiting.length >= REQUESTS_MAX) {
      throw new SluiceError(
        'TOO_MANY_REQUESTS',
        `${REQUESTS_MAX} requests that read from disk are running on this broker; another has to wait.`,
        { retryAfterMs: 1_000 },
      )
    }
    if (this.#running < RUNNING_MAX) this.#running++
    else await new Promise<void>((resolve) => this.#waiting.push(resolve))
    try {
      this.#check(caller)
      return await work()
    } catch (error) {
      throw ofRequest(error, changes)
    } finally {
      const next = this.#waiting.shift()
      if (next === undefined) this.#running--
      else next()
    }
  }

  // After a wait: a turn begins, and whoever asked is still there.
  #check(caller: Caller): void {
    this.#premises.beginTurn()
    if (!caller.isOpen) throw new SluiceError('CONNECTION_LOST', 'The client that asked for it is gone.')
  }

  /** `bytesMax`: what MESSAGES may have. @throws SluiceError QUEUE_NOT_FOUND, CORRUPT, TOO_MANY_REQUESTS */
  peek(request: PeekRequest, caller: Caller, bytesMax = Infinity): Promise<PeekPage> {
    return this.#inTurn(caller, false, () => this.#peek(request, caller, bytesMax))
  }

  async #peek(request: PeekRequest, caller: Caller, bytesMax: number): Promise<PeekPage> {
    const queue = this.#premises.queue(request.name)
    const pageBytesMax = Math.min(PAGE_BYTES, bytesMax - PAGE_HEAD_BYTES)
    const messages: PeekedMessage[] = []
    let bytes = 0
    let looked = 0
    for (const offset of offsetsFrom(queue, request.from)) {
      if (messages.length === request.limit || bytes >= PAGE_BYTES || ++looked > LOOKED_AT_MAX)
        return { messages: held(queue, messages), next: offset }
      const state = queue.stateAt(offset, this.#premises.now())
      if (state === undefined || (request.state !== undefined && state !== request.state)) continue
      if (!this.#mayChoose(queue, offset, request.filter)) continue
      const record = await this.#records.read(queue, offset)
      this.#check(caller)
      if (record === undefined || !choosesRecord(request.filter, record)) continue
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

  #mayChoose(queue: Queue, offset: number, filter: MessageFilter): boolean {
    const dead = queue.deadAt(offset)
    const chunk = queue.chunkAt(offset)!
    const circumstances = {
      dead,
      attempts: dead?.attempts ?? queue.attemptsOf(offset),
      timeMs: dead?.timeMs ?? chunk.batches.timeAt(offset - chunk.base),
    }
    return choosesAmong(filter, circumstances, this.#premises.now())
  }

  #peeked(queue: Queue, offset: number, record: Uint8Array): PeekedMessage | undefined {
    const state = queue.stateAt(offset, this.#premises.now())
    if (state === undefined) return undefined
    const chunk = queue.chunkAt(offset)!
    const index = offset - chunk.base
    const dead = queue.deadAt(offset)
    const attempts = dead?.attempts ?? queue.attemptsOf(offset)
    return {
      state,
      death: dead === undefined ? undefined : deathName(dead.death),
      attempts,
      totalAttempts: queue.livesOf(offset).attempts + attempts,
      redrives: redrivesOf(queue, offset, record),
      offset,
      publishedAtMs: chunk.batches.timeAt(index),
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
    return this.#forDead(request, caller, counts, 'redriven', async (queue, offset, read) => {
      const { to, force, dryRun } = request
      // It says how often it was brought back elsewhere.
      const record = await read()
      if (record === undefined || queue.deadAt(offset) === undefined) return
      if (to === undefined && !queue.mayRedrive(offset)) {
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
          queue.redrive(offset, this.#premises.now(), caller.label)
          this.#observer?.redriven(queue, offset)
        } else if (!this.#moves.move(queue, offset, record, this.#premises.queue(to), 'carry'))
          throw diskLow()
        this.#premises.changed(queue)
      }
      counts.redriven++
    })
  }

  /** @throws SluiceError QUEUE_NOT_FOUND, CORRUPT, TOO_MANY_REQUESTS */
  discard(request: DeadSelection, caller: Caller): Promise<DiscardResult> {
    const counts = { discarded: 0 }
    return this.#forDead(request, caller, counts, 'discarded', (queue, offset) => {
      if (!request.dryRun) {
        queue.discard(offset, this.#premises.now())
        this.#observer?.discarded(queue, offset)
        this.#premises.changed(queue)
      }
      counts.discarded++
    })
  }

  // Calls `act` for each dead message that is meant, at a moment at which it is dead. Between a read and its reader another
  // request may have been served, so `act` looks again. `counts[done]` says how many messages were changed.
  #forDead<Counts extends Readonly<Record<string, number>>>(
    request: DeadSelection & { readonly to?: string | undefined },
    caller: Caller,
    counts: Counts,
    done: keyof Counts,
    act: (queue: Queue, offset: number, read: () => Promise<Uint8Array | undefined>) => void | Promise<void>,
  ): Promise<Counts & { matched: number; next: number | null } & CutShort> {
    return this.#inTurn(caller, !request.dryRun, async () => {
      const { filter, limit, from, name, to } = request
      const queue = this.#premises.queue(name)
      if (to !== undefined) this.#premises.queue(to)
      if (to === name) throw sameQueue('REDRIVE', name)
      const offsets = request.offsets?.filter((offset) => offset >= from)
      let matched = 0
      let looked = 0
      let next: number | null = null
      try {
        for (const offset of offsets ?? deadFrom(queue, from)) {
          next = offset
          if (matched === limit || ++looked > LOOKED_AT_MAX) return { ...counts, matched, next }
          if (queue.deadAt(offset) === undefined || !this.#mayChoose(queue, offset, filter)) continue
          const read = async (): Promise<Uint8Array | undefined> => {
            const record = await this.#records.read(queue, offset)
            this.#check(caller)
            return record
          }
          if (needsRecord(filter)) {
            const record = await read()
            if (record === undefined || queue.deadAt(offset) === undefined || !choosesRecord(filter, record))
              continue
          }
          await act(queue, offset, read)
          matched++
          // While that was waited for the queue may have been deleted, and the broker stopped.
          this.#check(caller)
        }
      } catch (error) {
        if (request.dryRun || counts[done] === 0) throw error
        return { ...counts, matched, next, error: cutFault(error) }
      }
      return { ...counts, matched, next: null }
    })
  }

  /**
   * Publishes messages again that were acknowledged and that the log still holds; see `Replays`.
   * @throws SluiceError QUEUE_NOT_FOUND, INVALID_ARGUMENT, DISK_LOW, MEMORY_FULL, CORRUPT, TOO_MANY_REQUESTS
   */
  replay(request: ReplayRequest, caller: Caller): Promise<ReplayResult> {
    return this.#inTurn(caller, !request.dryRun, async () => {
      const queue = this.#premises.queue(request.name)
      const progress = { matched: 0, replayed: 0, cursor: null }
      const work = {
        now: () => this.#premises.now(),
        check: () => this.#check(caller),
        publish: ({ record, offset, publishedMs }: Settled) => {
          this.#premises.beginTurn()
          const target = this.#premises.queue(request.to ?? request.name)
          const origin = { queue: queue.name, offset, publishedMs, attempts: 0, redrives: 0, dead: undefined }
          this.#moves.copy(record, origin, target)
        },
      }
      try {
        await this.#replays.page(queue, request, this.#premises.endPosition(), caller, work, progress)
      } catch (error) {
        if (request.dryRun || progress.replayed === 0) throw error
        return { ...progress, error: cutFault(error) }
      }
      return progress
    })
  }

  /** What the log says of a message. @throws SluiceError QUEUE_NOT_FOUND, MESSAGE_NOT_FOUND, INVALID_ARGUMENT, CORRUPT */
  history(request: HistoryRequest, caller: Caller): Promise<HistoryResult> {
    return this.#inTurn(caller, false, () => {
      const queue = this.#premises.queue(request.name)
      return historyOf(queue, request, this.#log, () => this.#check(caller))
    })
  }

  /** A page of the queue's consumers, by id, from `request.from` on. @throws SluiceError QUEUE_NOT_FOUND */
  consumers(request: ConsumersRequest): ConsumersResult {
    const queue = this.#premises.queue(request.name)
    const active = queue.soleSubscription
    const all = queue.subscriptions.filter(({ id }) => id >= request.from).toSorted((a, b) => a.id - b.id)
    const consumers: ConsumerInfo[] = []
    let slots = 0
    for (const subscription of all) {
      slots += subscription.slots
      if (consumers.length === PAGE_CONSUMERS || (consumers.length > 0 && slots > PAGE_SLOTS))
        return { consumers, next: subscription.id }
      consumers.push({
        id: subscription.id,
        client: subscription.consumer.label,
        peer: subscription.consumer.peer,
        active: !queue.options.single || subscription === active,
        sinceMs: subscription.sinceMs,
        creditMessages: subscription.creditMessages,
        creditBytes: subscription.creditBytes,
        leased: subscription.unsettled,
        leasedBytes: subscription.unsettledBytes,
        started: subscription.startedCount,
        oldestLeaseMs: subscription.oldestLeaseMs,
        delivered: subscription.delivered,
      })
    }
    return { consumers, next: null }
  }
}

/** The messages, with who holds those that are leased; which are no longer leased says nothing of a holder. */
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

/** Offsets that are not gone, from `from` on, as they are when they are come to. */
function* offsetsFrom(queue: Queue, from: number): IterableIterator<number> {
  for (const chunk of queue.chunks()) {
    if (chunk.base + chunk.count <= from) continue
    for (let index = Math.max(0, from - chunk.base); index < chunk.count; index++)
      if (!chunk.isGone(index)) yield chunk.base + index
  }
}

function* deadFrom(queue: Queue, from: number): IterableIterator<number> {
  for (const chunk of queue.chunks()) {
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
    `${frame} goes to the queue ${name}, where the messages are; without \`to\` they go back into their own.`,
  )
}

function diskLow(): SluiceError {
  return new SluiceError('DISK_LOW', 'The log has no room for more messages.', { retryAfterMs: 1_000 })
}

// An error that ends a request and nothing else: what is stored belongs to no channel of the client that looks at it, and
// where nothing is changed a defect leaves nothing half done.
function ofRequest(error: unknown, changes: boolean): unknown {
  if (!(error instanceof SluiceError)) {
    if (changes) return error
    const why = error instanceof Error ? error.message : String(error)
    return new SluiceError('READ_FAILED', `The request could not be done: ${why}.`, { cause: error })
  }
  if (error.code !== 'CORRUPT' && error.code !== 'LOG_CORRUPT') return error
  return new SluiceError('CORRUPT', error.message, { scope: 'request', cause: error })
}

// What can be answered. Anything else is a defect, after which nothing may be confirmed. @throws the defect
function cutFault(error: unknown): CutFault {
  if (!(error instanceof SluiceError)) throw error
  const { code, retryable, retryAfterMs, message } = error
  return { code, retryable, retryAfterMs, message: clipText(message, LIMITS.reasonBytesMax) }
}
