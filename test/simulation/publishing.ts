/**
 * Checks publishes, both batches and atomic steps: whether the broker may accept or refuse them, which messages are
 * duplicates, which are replaced, and which are evicted to make room.
 */
import { SluiceError, readU32, type ErrorCode, type Placed } from '@sluice/protocol'
import { isAccepted, isDedupFull, planIds, planRoom, type IdPlan, type RoomPlan } from '../rules/admission.js'
import { isOver, isTooFarPast, isWaiting } from '../rules/message.js'
import type { Attempt } from './attempts.js'
import { endLease } from './leases.js'
import type { Outcomes } from './outcomes.js'
import { OVERFLOW, contentOf } from './record.js'
import { Results, type ModelPlace } from './results.js'
import type { ModelMessage, ModelQueue, ModelState, ModelSubscription } from './state.js'
import { Violation } from './trace.js'

/** Messages that an atomic step acknowledges. */
export interface ModelAck {
  /** Undefined: the subscription has ended. */
  readonly key: object | undefined
  readonly firstTag: number
  readonly count: number
}

/**
 * Offsets of the messages that an atomic step acknowledges: these messages count towards no limit, and their ids are
 * free.
 */
type Freed = ReadonlySet<number>

const NOTHING_FREED: Freed = new Set()

/** Values that the model cannot derive. */
export interface PublishingView {
  /** Whether publishes may be refused now because the disk has little space. */
  diskMayBeLow(): boolean
  /** Whether the queue can have expired messages that the broker has not removed yet. */
  hasMoreExpired(queue: string): boolean
  /** Maximum size of an atomic step in bytes. */
  readonly stepBytesMax: number
  /** Maximum number of messages beyond lowered limits that the publishes of one turn evict. */
  readonly excessMax: number
}

/** The effect of a batch on its queue. */
interface Plan {
  readonly ids: IdPlan
  readonly room: RoomPlan<ModelMessage>
}

export class Publishing {
  readonly results: Results
  readonly #state: ModelState
  readonly #outcomes: Outcomes
  readonly #stepBytesMax: number
  /** The acknowledgements of each step, kept forever: "identity:number" → "queue id:offset". */
  readonly #stepAcks = new Map<string, readonly string[]>()
  readonly #hasMoreExpired: (queue: string) => boolean
  readonly #excessMax: number
  /** Number of messages beyond lowered limits that publishes can still evict in this turn. */
  #excessLeft: number

  constructor(state: ModelState, outcomes: Outcomes, view: PublishingView) {
    this.#state = state
    this.#outcomes = outcomes
    this.#stepBytesMax = view.stepBytesMax
    this.#hasMoreExpired = (queue) => view.hasMoreExpired(queue)
    this.#excessMax = view.excessMax
    this.#excessLeft = view.excessMax
    this.results = new Results(
      state.counts,
      () => view.diskMayBeLow(),
      (attempts) => this.#isUnsure(attempts),
      (attempts) => this.#whileExpiredAreLeft(attempts),
    )
  }

  turnEnded(): void {
    this.#excessLeft = this.#excessMax
  }

  published(attempt: Attempt, unanswered: number, answer: Placed | SluiceError, nowMs: number): void {
    const { identity, number } = attempt
    const crc = readU32(attempt.batch, 44)
    const what = `batch ${number} of ${identity} for ${attempt.queue}`
    const places = answer instanceof SluiceError ? answer : [answer]
    const isFresh = this.results.answered(identity, number, crc, unanswered, what, places, [attempt], () => {
      const queue = this.#state.names.get(attempt.queue)
      return queue === undefined ? 'QUEUE_NOT_FOUND' : this.#refusal(queue, attempt, NOTHING_FREED, nowMs)
    })
    if (!isFresh) return
    const placed = answer as Placed
    const queue = this.#state.named(attempt.queue)
    const plan = this.#planOf(queue, attempt, placed, overIn(queue, NOTHING_FREED, nowMs))
    this.#replace(queue, plan, nowMs)
    this.#makeRoom(queue, plan, nowMs)
    const place = this.#accept(attempt, placed, plan.ids.duplicates, nowMs)
    this.results.accept(identity, number, [place], crc)
  }

  /** Called when an atomic step arrived, with its batches in order. */
  stepped(
    identity: string,
    number: number,
    crc: number,
    acks: readonly ModelAck[],
    attempts: readonly Attempt[],
    unanswered: number,
    answer: readonly Placed[] | SluiceError,
    nowMs: number,
  ): void {
    const what = `step ${number} of ${identity}`
    const held = this.#heldBy(acks)
    const isFresh = this.results.answered(identity, number, crc, unanswered, what, answer, attempts, () =>
      held === undefined ? 'LEASE_LOST' : this.#stepRefusal(held, attempts, nowMs),
    )
    if (answer instanceof SluiceError) this.#state.counts['steps refused']++
    else if (!isFresh) this.#state.counts['steps repeated']++
    if (!isFresh) return
    const places = answer as readonly Placed[]
    if (places.length !== attempts.length)
      throw new Violation(9, `${what} of ${attempts.length} batches is answered with ${places.length} places`)
    this.#state.counts.steps++
    this.#state.counts['step batches'] += attempts.length
    this.#stepAcks.set(
      `${identity}:${number}`,
      held!.map(({ subscription, message }) => `${subscription.queue.id}:${message.offset}`),
    )
    // Duplicates are decided before the step has any effect.
    const freed = freedBy(held!)
    // Queues in which this step acknowledges a message evict before the others, in the order of those acknowledgements.
    const acked = [...freed.keys()].map(({ name }) => name)
    const rank = ({ attempt: { queue } }: Group): number =>
      acked.includes(queue) ? acked.indexOf(queue) : acked.length
    const groups = byQueue(attempts, places).toSorted((a, b) => rank(a) - rank(b))
    const plans = groups.map(({ attempt, placed }) => {
      const queue = this.#state.named(attempt.queue)
      const gone = overIn(queue, freed.get(queue) ?? NOTHING_FREED, nowMs)
      return { queue, plan: this.#planOf(queue, attempt, placed!, gone) }
    })
    for (const { subscription, tag, message } of held!) {
      this.#state.counts['step acks']++
      endLease(subscription, tag, message)
      this.#outcomes.ack(subscription.queue, message, nowMs)
    }
    for (const { queue, plan } of plans) this.#replace(queue, plan, nowMs)
    for (const { queue, plan } of plans) this.#makeRoom(queue, plan, nowMs)
    const accepted = attempts.map((attempt, i) => {
      const group = groups.findIndex(({ attempt: { queue } }) => queue === attempt.queue)
      const start = groups[group]!.starts.get(i)!
      const own = [...plans[group]!.plan.ids.duplicates].filter(
        ([at]) => at >= start && at < start + attempt.records.length,
      )
      const duplicates = new Map(own.map(([at, first]) => [at - start, first]))
      return this.#accept(attempt, places[i]!, duplicates, nowMs)
    })
    this.#state.counts['further batches'] += attempts.length - groups.length
    this.results.accept(identity, number, accepted, crc)
  }

  /** Invariant 9: the entry with the step has all acknowledgements of the step. */
  stepWritten(identity: string, number: number, acked: ReadonlySet<string>): void {
    for (const ack of this.#stepAcks.get(`${identity}:${number}`) ?? []) {
      if (!acked.has(ack))
        throw new Violation(9, `step ${number} of ${identity} is in the log without its ack of ${ack}`)
    }
  }

  /** Offsets that the step acknowledged, as "queue id:offset"; no offsets if the step was never accepted. */
  acksOf(identity: string, number: number): readonly string[] {
    return this.#stepAcks.get(`${identity}:${number}`) ?? []
  }

  #heldBy(
    acks: readonly ModelAck[],
  ):
    | { readonly subscription: ModelSubscription; readonly tag: number; readonly message: ModelMessage }[]
    | undefined {
    const held = []
    const seen = new Set<ModelMessage>()
    for (const { key, firstTag, count } of acks) {
      const subscription = key === undefined ? undefined : this.#state.subscriptions.get(key)
      for (let i = 0; i < count; i++) {
        const tag = (firstTag + i) >>> 0
        const message = subscription?.held.get(tag)
        if (subscription === undefined || message === undefined || seen.has(message)) return undefined
        seen.add(message)
        held.push({ subscription, tag, message })
      }
    }
    return held
  }

  #stepRefusal(
    held: readonly { readonly subscription: ModelSubscription; readonly message: ModelMessage }[],
    attempts: readonly Attempt[],
    nowMs: number,
  ): ErrorCode | undefined {
    const freed = freedBy(held)
    for (const { attempt } of byQueue(attempts)) {
      const queue = this.#state.names.get(attempt.queue)
      if (queue === undefined) return 'QUEUE_NOT_FOUND'
      const refusal = this.#refusal(queue, attempt, freed.get(queue) ?? NOTHING_FREED, nowMs)
      if (refusal !== undefined) return refusal
    }
    const bytes = attempts.reduce((sum, { batch }) => sum + batch.length, 48 + freed.size * 48)
    return bytes + held.length * 16 > this.#stepBytesMax ? 'TRANSACTION_TOO_LARGE' : undefined
  }

  // Whether the queue of any of these batches may have forgotten some of its ids. Messages with such ids can be
  // duplicates, and the ids can count towards the limit.
  #isUnsure(attempts: readonly Attempt[]): boolean {
    return attempts.some(({ queue }) => (this.#state.names.get(queue)?.unsure.size ?? 0) > 0)
  }

  /** The effect that a batch must have. For ids that the queue can have forgotten, `hint` has the broker's answer. */
  #plan(queue: ModelQueue, attempt: Attempt, freed: Freed, hint?: Placed): Plan {
    const { records } = attempt
    const contents = records.map((record) => contentOf(record))
    const known = (id: string): number | undefined => {
      const offset = this.#firstOf(queue, id, freed)
      const isSaid = (at: number): boolean =>
        contents[at]!.id === id && [offset, queue.next + at].includes(hint?.duplicates?.get(at))
      return !queue.unsure.has(id) || contents.some((_, at) => isSaid(at)) ? offset : undefined
    }
    const ids = planIds(contents, queue.next, queue.options, known, (offset) => {
      const message = queue.live.get(offset)
      return message !== undefined && isWaiting(message) && !freed.has(offset)
    })
    const occupants = [...queue.live.values()].filter(
      ({ state, offset }) => state !== 'dead' && !freed.has(offset) && !ids.replaced.has(offset),
    )
    const accepted = records.filter((_, index) => isAccepted(ids, queue.next, index))
    const sizes = accepted.map(({ length }) => length)
    const room = planRoom(occupants, sizes, queue.options, this.#excessLeft)
    // As long as the broker can make room by removing expired messages, it evicts no others.
    if (this.#hasMoreExpired(queue.name)) return { ids, room: { ...room, evicted: [], excess: 0 } }
    return { ids, room }
  }

  // A batch removes expired messages to make room, but not more messages than it has. That is not enough if the limits
  // were lowered, or if some of these messages have no ids.
  #whileExpiredAreLeft(attempts: readonly Attempt[]): ErrorCode[] {
    return byQueue(attempts).flatMap(({ attempt }) => {
      const queue = this.#state.names.get(attempt.queue)
      if (queue === undefined || !this.#hasMoreExpired(queue.name)) return []
      const { maxMessages, maxBytes, unique } = queue.options
      const occupants = [...queue.live.values()].filter(({ state }) => state !== 'dead')
      const bytes = occupants.reduce((sum, message) => sum + message.bytes, 0)
      const isOver = (maxMessages > 0 && occupants.length > maxMessages) || (maxBytes > 0 && bytes > maxBytes)
      const codes: ErrorCode[] = [...(isOver ? (['QUEUE_FULL'] as const) : [])]
      return unique === 'pending' ? [...codes, 'DEDUP_FULL'] : codes
    })
  }

  #firstOf(queue: ModelQueue, id: string, freed: Freed): number | undefined {
    return queue.options.unique === 'window'
      ? queue.remembered.find(id)?.offset
      : queue.pending.find(id, freed)
  }

  #replace(queue: ModelQueue, { ids }: Plan, nowMs: number): void {
    for (const offset of ids.replaced) {
      const message = queue.live.get(offset)!
      this.#state.counts.replaced++
      queue.counts.cancelled++
      queue.line.leave(message, nowMs)
      this.#outcomes.remove(queue, message)
    }
  }

  #refusal(queue: ModelQueue, attempt: Attempt, freed: Freed, nowMs: number): ErrorCode | undefined {
    for (const record of attempt.records)
      if (isTooFarPast(contentOf(record).atMs, nowMs)) return 'AT_IN_THE_PAST'
    const gone = overIn(queue, freed, nowMs)
    const { ids, room } = this.#plan(queue, attempt, gone)
    const { remembered, pending, options } = queue
    const known = options.unique === 'window' ? remembered.size : pending.sizeWithout(gone)
    if (isDedupFull(known, ids.newIds, options)) return 'DEDUP_FULL'
    return room.isFull ? 'QUEUE_FULL' : undefined
  }

  /** Evicts messages to make room: those of the lowest priority, and of these the oldest. */
  #makeRoom(queue: ModelQueue, { room }: Plan, nowMs: number): void {
    for (const message of room.evicted) {
      queue.line.leave(message, nowMs)
      if (queue.options.overflow === 'drop-oldest') {
        this.#state.counts.dropped++
        queue.counts.dropped++
        this.#outcomes.remove(queue, message)
      } else {
        this.#state.counts.overflowed++
        this.#outcomes.die(queue, message, message.attempts, OVERFLOW, nowMs)
      }
    }
  }

  /** The plan of an accepted batch. Throws a Violation if the plan's duplicates are not those in the answer. */
  #planOf(queue: ModelQueue, attempt: Attempt, placed: Placed, freed: Freed): Plan {
    const plan = this.#plan(queue, attempt, freed, placed)
    const { excess } = plan.room
    this.#excessLeft -= excess
    this.#state.counts.excess += excess
    if (excess > 0 && this.#excessLeft === 0) this.#state.counts['part of an excess']++
    const is = JSON.stringify([...(placed.duplicates ?? [])])
    const must = JSON.stringify([...plan.ids.duplicates])
    if (is !== must)
      throw new Violation(
        'ids',
        `the batch at offset ${placed.baseOffset} of ${queue.name} has the duplicates ${is}, not ${must}`,
      )
    return plan
  }

  #accept(
    attempt: Attempt,
    placed: Placed,
    duplicates: ReadonlyMap<number, number>,
    nowMs: number,
  ): ModelPlace {
    const queue = this.#state.named(attempt.queue)
    const base = placed.baseOffset
    // Invariant 5: offsets are dense.
    if (base !== queue.next)
      throw new Violation(5, `${queue.name} gives offset ${base}; its next one is ${queue.next}`)
    for (const [index, record] of attempt.records.entries()) {
      if (!isAccepted({ duplicates }, base, index)) {
        queue.next++
        queue.counts.duplicates++
        this.#state.counts['duplicate ids']++
        queue.unsure.delete(contentOf(record).id!)
      } else this.#outcomes.add(queue, record, nowMs)
    }
    return { queueId: queue.id, base, duplicates }
  }
}

/** Adds the messages that have expired: for a publish they are gone, even if the broker has not removed them. */
function overIn({ live }: ModelQueue, freed: Freed, nowMs: number): Freed {
  const over = [...live.values()].filter((message) => isOver(message, nowMs))
  return over.length === 0 ? freed : new Set([...freed, ...over.map(({ offset }) => offset)])
}

/** The batches of a step for one queue. */
interface Group {
  readonly attempt: Attempt
  readonly placed: Placed | undefined
  /** Maps the index of a batch in the step to the index of its first message in the group. */
  readonly starts: ReadonlyMap<number, number>
}

/** Groups the batches of a step by queue, because limits count them together. */
function byQueue(attempts: readonly Attempt[], places?: readonly Placed[]): Group[] {
  const queues = [...new Set(attempts.map(({ queue }) => queue))]
  return queues.map((queue) => {
    const own = [...attempts.entries()].filter(([, attempt]) => attempt.queue === queue)
    const [first, { names, options, ...rest }] = own[0]!
    const records: Uint8Array[] = []
    const starts = new Map<number, number>()
    const duplicates = new Map<number, number>()
    for (const [i, attempt] of own) {
      starts.set(i, records.length)
      for (const [index, offset] of places?.[i]?.duplicates ?? [])
        duplicates.set(records.length + index, offset)
      records.push(...attempt.records)
    }
    const baseOffset = places?.[first]?.baseOffset
    const placed = baseOffset === undefined ? undefined : { baseOffset, duplicates }
    return { attempt: { ...rest, names, options, records }, placed, starts }
  })
}

function freedBy(
  held: readonly { readonly subscription: ModelSubscription; readonly message: ModelMessage }[],
): Map<ModelQueue, Set<number>> {
  const freed = new Map<ModelQueue, Set<number>>()
  for (const { subscription, message } of held) {
    const offsets = freed.get(subscription.queue) ?? new Set()
    freed.set(subscription.queue, offsets.add(message.offset))
  }
  return freed
}
