/**
 * What the broker must do, in plain Maps: it is told every command that the broker takes, in that order, with what the
 * broker answered at once, and every message at the moment at which it is handed out, and says where that is wrong.
 * It shares no code with the broker; the numbers are those of the invariants in the design.
 *
 * What nobody asks for, the passing of time, it is told when the broker notices it: that something is due, or that its
 * time to live is over. That the broker notices in time is checked whenever it answers or comes to rest.
 *
 * After a restart it begins from what the log says; see ledger.ts. What leaves the broker is judged in witness.ts.
 */
import { SluiceError, readU32, type Placed, type QueueInfo, type QueueOptions } from '@sluice/protocol'
import type { Claim, ErrorCode, Granted, MessageRef, SettleItem, TagRange } from '@sluice/protocol'
import { isAccepted, isDedupFull, planIds, planRoom, type IdPlan, type RoomPlan } from '../rules/admission.js'
import { activeOf, fits, hasRoom, type Load } from '../rules/credit.js'
import { PendingIds, RememberedIds } from '../rules/ids.js'
import {
  CLEARED,
  blameFor,
  deadlineAfterAnnouncement,
  deadlineAfterExtension,
  deadlineAfterStarted,
  deadlineAfterStarting,
  leaseEndFor,
  suspicionAfter,
  type Blame,
} from '../rules/lease.js'
import { Line } from '../rules/line.js'
import {
  NO_EARLIER_LIVES,
  afterFailure,
  afterRelease,
  backoffBoundsMs,
  dueMsOf,
  expiryOf,
  isExpired,
  isListedById,
  isTooFarPast,
  isWaiting,
  livesAfterRedrive,
  rescheduled,
} from '../rules/message.js'
import { changeOf } from '../rules/options.js'
import { messageName, sameBytes, splitRecords, type Attempt } from './attempts.js'
import { COUNTERS, noCounts, type Counters, type LedgerQueue, type LedgerState } from './ledger.js'
import { DEATHS, OVERFLOW, contentOf, copyOf, redrivesBefore } from './record.js'
import type { ModelConsumer, ModelMessage, ModelQueue, ModelSubscription } from './state.js'
import { Violation } from './trace.js'

const REJECTED = 1
const MAX_DELIVERIES = 2
const INVALID = 4

/** Where one batch went. */
interface ModelPlace {
  readonly queueId: number
  readonly base: number
  readonly duplicates: ReadonlyMap<number, number>
}

interface ModelProducer {
  readonly accepted: Map<number, { readonly places: readonly ModelPlace[]; readonly crc: number }>
  /** Of this boot. */
  readonly refused: Map<number, ErrorCode>
  /** Of this boot, those that can be accepted when they come again included; what follows them is refused. */
  readonly open: Set<number>
  /** Results below this are not asked for any more. */
  told: number
}

/** Messages that an atomic step acknowledges. */
export interface ModelAck {
  /** Undefined: the subscription is over. */
  readonly key: object | undefined
  readonly firstTag: number
  readonly count: number
}

/** Offsets that an atomic step acknowledges: they take no room, and their ids are free. */
type Freed = ReadonlySet<number>

const NOTHING_FREED: Freed = new Set()

/** What a batch does to its queue. */
interface Plan {
  readonly ids: IdPlan
  readonly room: RoomPlan<ModelMessage>
}

/** `nobody`: the subscription ended in order. */
export type ModelBlame = 'nobody' | Blame

/** What the model cannot know by itself. */
export interface ModelView {
  /** When the broker means to hand the message out again. */
  dueMs(queueId: number, offset: number): number | undefined
  /** Publishes may be refused for want of space now. */
  diskMayBeLow(): boolean
  /** A message is in another queue now, under this name. */
  copied(queue: string, record: Uint8Array): void
  /** Most bytes of an atomic step. */
  readonly stepBytesMax: number
}

export class Model {
  readonly queues = new Map<number, ModelQueue>()
  readonly names = new Map<string, ModelQueue>()
  readonly subscriptions = new Map<object, ModelSubscription>()
  /** Messages that were refused at least once; after a restart the broker may take them. */
  readonly judgedAnew = new Set<string>()
  /** Messages whose time was changed. */
  readonly rescheduledNames = new Set<string>()
  readonly #byId = new Map<number, ModelSubscription>()
  readonly #producers = new Map<string, ModelProducer>()
  readonly #view: ModelView
  /** What a step acknowledged: "identity:number" → "queue id:offset", for ever. */
  readonly #stepAcks = new Map<string, readonly string[]>()
  /** Leases that were taken away while a queue is being emptied. */
  #purged: Map<ModelSubscription, Set<number>> | undefined
  /** Who was to blame when a connection died. */
  readonly #blamed = new WeakMap<ModelConsumer, ModelBlame>()
  /** What was checked, for tests that want to know. */
  /** Of the broker's life that it judges. */
  boot = 0
  /** By message, the last lease of it that a consumer was told of, across all lives of the broker. */
  readonly holders = new Map<string, { readonly lease: string; readonly claim: Claim }>()
  /** Leases that others have had after. */
  readonly superseded: Claim[] = []
  /** Leases that their consumers ended. */
  readonly #settledLeases = new Set<string>()
  readonly counts = {
    dispatched: 0,
    order: 0,
    keyed: 0,
    prioritized: 0,
    stale: 0,
    retried: 0,
    released: 0,
    died: 0,
    acked: 0,
    charged: 0,
    suspected: 0,
    alone: 0,
    drained: 0,
    repeated: 0,
    calm: 0,
    duplicates: 0,
    'duplicate ids': 0,
    'kept behind': 0,
    replaced: 0,
    expired: 0,
    dropped: 0,
    overflowed: 0,
    moved: 0,
    carried: 0,
    redriven: 0,
    discarded: 0,
    cancelled: 0,
    rescheduled: 0,
    'timed out': 0,
    extended: 0,
    announced: 0,
    claims: 0,
    'claims granted': 0,
    'claims granted after a restart': 0,
    'queue full': 0,
    'dedup full': 0,
    steps: 0,
    'steps repeated': 0,
    'steps refused': 0,
    'step acks': 0,
    'step batches': 0,
    'further batches': 0,
  }

  constructor(view: ModelView) {
    this.#view = view
  }

  // --- restart ---

  /**
   * The broker has recovered to this state of the log. Nothing that was only in memory is left. `latestMs` is the
   * latest time that any life of it has seen.
   */
  recover(state: LedgerState, afterCrash: boolean, nowMs: number, latestMs = nowMs): void {
    const before = new Map(this.queues)
    this.queues.clear()
    this.names.clear()
    this.subscriptions.clear()
    for (const saved of state.queues.values()) {
      const queue = this.#recoverQueue(saved, afterCrash, nowMs, latestMs, before.get(saved.id))
      this.queues.set(queue.id, queue)
      this.names.set(queue.name, queue)
    }
    for (const producer of this.#producers.values()) {
      producer.refused.clear()
      producer.open.clear()
      producer.accepted.clear()
    }
    for (const saved of state.producers.values()) {
      const producer = this.#producer(saved.identity)
      for (const [number, { places, crc }] of saved.accepted) producer.accepted.set(number, { places, crc })
    }
  }

  #recoverQueue(
    saved: LedgerQueue,
    afterCrash: boolean,
    nowMs: number,
    latestMs: number,
    old: ModelQueue | undefined,
  ): ModelQueue {
    const options = saved.options as unknown as QueueOptions
    const queue: ModelQueue = {
      id: saved.id,
      name: saved.name,
      options,
      paused: saved.paused,
      next: saved.next,
      acked: 0,
      counts: { ...saved.counts },
      carried: saved.carried,
      live: new Map(),
      line: new Line<ModelMessage>(options),
      remembered: saved.remembered.clone(),
      unsure: new Set(),
      pending: new PendingIds(),
      subscriptions: new Set(),
      expiring: new Set(),
    }
    queue.acked = queue.next - saved.live.size - goneOtherwise(queue)
    for (const name of ['released', 'redelivered'] as const) {
      const had = old?.counts[name] ?? saved.counts[name]
      if (afterCrash ? saved.counts[name] > had : saved.counts[name] !== had)
        throw new Violation(6, `${saved.name} has ${saved.counts[name]} ${name} messages; it counted ${had}`)
    }
    // What has left its window may be known for longer, and what a later clock said is not forgotten was not.
    queue.remembered.forgetUntil(nowMs - options.dedupWindowMs)
    for (const { id, timeMs } of queue.remembered.entries())
      if (timeMs <= latestMs - options.dedupWindowMs) queue.unsure.add(id)
    for (const [offset, message] of saved.live) {
      const { record, content, timeMs, attempts, earlier, dead, isListed, expiresMs } = message
      const left = old?.live.get(offset)?.left ?? false
      const lineMs = message.dueMs ?? timeMs
      const wasOut = attempts > 0 || earlier !== undefined
      const known: ModelMessage = {
        offset,
        record,
        bytes: record.length,
        content,
        publishedMs: timeMs,
        state: dead === undefined ? 'scheduled' : 'dead',
        lineMs,
        isPlain: message.dueMs === undefined,
        sinceMs: lineMs,
        expiresMs,
        attempts,
        earlier: earlier ?? NO_EARLIER_LIVES,
        dead,
        isListed,
        // 22: after an unclean stop every unsettled older message is marked.
        mustMark: afterCrash || left || wasOut,
        mayMark: afterCrash || offset < saved.redeliveredBelow || wasOut,
        left,
        ...CLEARED,
        former: undefined,
      }
      queue.live.set(offset, known)
      if (dead !== undefined) continue
      if (isListed) queue.pending.add(content.id!, offset)
      // A plain message has no time to wait for, whatever the clock was set to since.
      if (known.isPlain || lineMs <= nowMs) known.state = 'ready'
      else {
        known.state = 'leased'
        queue.line.enter(known, nowMs)
      }
    }
    queue.line.reorder(options, queue.live.values())
    return queue
  }

  // --- producing ---

  published(attempt: Attempt, unanswered: number, answer: Placed | SluiceError, nowMs: number): void {
    const { identity, number } = attempt
    const crc = readU32(attempt.batch, 44)
    const what = `batch ${number} of ${identity} for ${attempt.queue}`
    const places = answer instanceof SluiceError ? answer : [answer]
    const isFresh = this.#answered(identity, number, crc, unanswered, what, places, [attempt], () => {
      const queue = this.names.get(attempt.queue)
      return queue === undefined ? 'QUEUE_NOT_FOUND' : this.#refusal(queue, attempt, NOTHING_FREED, nowMs)
    })
    if (!isFresh) return
    const placed = answer as Placed
    const queue = this.#named(attempt.queue)
    const plan = this.#planOf(queue, attempt, placed, NOTHING_FREED)
    this.#replace(queue, plan, nowMs)
    this.#makeRoom(queue, plan, nowMs)
    const place = this.#accept(attempt, placed, plan.ids.duplicates, nowMs)
    this.#producer(identity).accepted.set(number, { places: [place], crc })
  }

  /** An atomic step came, with these batches in their order. */
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
    const isFresh = this.#answered(identity, number, crc, unanswered, what, answer, attempts, () =>
      held === undefined ? 'LEASE_LOST' : this.#stepRefusal(held, attempts, nowMs),
    )
    if (answer instanceof SluiceError) this.counts['steps refused']++
    else if (!isFresh) this.counts['steps repeated']++
    if (!isFresh) return
    const places = answer as readonly Placed[]
    if (places.length !== attempts.length)
      throw new Violation(9, `${what} of ${attempts.length} batches is answered with ${places.length} places`)
    this.counts.steps++
    this.counts['step batches'] += attempts.length
    this.#stepAcks.set(
      `${identity}:${number}`,
      held!.map(({ subscription, message }) => `${subscription.queue.id}:${message.offset}`),
    )
    // What is a duplicate is judged before anything of the step is done.
    const freed = freedBy(held!)
    const groups = byQueue(attempts, places)
    const plans = groups.map(({ attempt, placed }) => {
      const queue = this.#named(attempt.queue)
      return { queue, plan: this.#planOf(queue, attempt, placed!, freed.get(queue) ?? NOTHING_FREED) }
    })
    for (const { subscription, tag, message } of held!) {
      this.counts['step acks']++
      this.#letGo(subscription, tag, message)
      this.#ack(subscription.queue, message, nowMs)
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
    this.counts['further batches'] += attempts.length - groups.length
    this.#producer(identity).accepted.set(number, { places: accepted, crc })
  }

  /** 9: the entry with the step has all that it acknowledged. */
  stepWritten(identity: string, number: number, acked: ReadonlySet<string>): void {
    for (const ack of this.#stepAcks.get(`${identity}:${number}`) ?? []) {
      if (!acked.has(ack))
        throw new Violation(9, `step ${number} of ${identity} is in the log without its ack of ${ack}`)
    }
  }

  /** Offsets that the step acknowledged, as "queue id:offset"; of one that was never taken, none. */
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
      const subscription = key === undefined ? undefined : this.subscriptions.get(key)
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
      const queue = this.names.get(attempt.queue)
      if (queue === undefined) return 'QUEUE_NOT_FOUND'
      const refusal = this.#refusal(queue, attempt, freed.get(queue) ?? NOTHING_FREED, nowMs)
      if (refusal !== undefined) return refusal
    }
    const bytes = attempts.reduce((sum, { batch }) => sum + batch.length, 48)
    return bytes + held.length * 16 > this.#view.stepBytesMax ? 'TRANSACTION_TOO_LARGE' : undefined
  }

  /** 3: one number, one result. Whether it is an acceptance that is new. */
  #answered(
    identity: string,
    number: number,
    crc: number,
    unanswered: number,
    what: string,
    answer: readonly Placed[] | SluiceError,
    attempts: readonly Attempt[],
    refusalOf: () => ErrorCode | undefined,
  ): boolean {
    const producer = this.#producer(identity)
    producer.told = Math.max(producer.told, number - unanswered)
    const known = producer.accepted.get(number)
    const refused = producer.refused.get(number)
    const isOld = number < producer.told
    const deserved = attempts.flatMap(({ expects }) => expects ?? [])
    for (const old of producer.open) if (old < producer.told) producer.open.delete(old)
    const isBehind = attempts.some(({ follows }) => follows > 0 && producer.open.has(number - follows))
    if (!(answer instanceof SluiceError)) {
      if (known !== undefined) {
        if (known.crc !== crc || !samePlaces(known.places, answer))
          throw new Violation(
            3,
            `${what} is answered ${placesText(answer)}; it was accepted at ${placesText(known.places)}`,
          )
        this.counts.duplicates++
        return false
      }
      if (refused !== undefined && !isOld)
        throw new Violation(3, `${what} is accepted and was refused with ${refused}`)
      if (isOld) throw new Violation(3, `${what} is accepted although it is older than its window`)
      if (deserved.length > 0) throw new Violation(21, `${what} is accepted and deserves ${deserved.join()}`)
      if (isBehind) throw new Violation('order', `${what} is accepted and follows a batch that was refused`)
      const refusal = refusalOf()
      if (refusal === 'LEASE_LOST' || (refusal !== undefined && !this.#isUnsure(attempts)))
        throw new Violation('S8', `${what} is accepted and must be refused with ${refusal}`)
      producer.open.delete(number)
      return true
    }
    const { code } = answer
    const allowed: ErrorCode[] = [...deserved]
    if (isOld) allowed.push('UNKNOWN_OUTCOME')
    if (known !== undefined) {
      if (known.crc !== crc) allowed.push('NUMBER_REUSED')
      // What is known is answered, whatever became of its queue.
      else if (!isOld)
        throw new Violation(
          3,
          `${what} is refused with ${code} and was accepted at ${placesText(known.places)}`,
        )
    } else if (refused !== undefined) {
      allowed.push(refused)
    } else if (isBehind) {
      allowed.push('EARLIER_REFUSED')
      this.counts['kept behind']++
    } else {
      const refusal = refusalOf()
      if (refusal !== undefined) allowed.push(refusal)
      else if (this.#view.diskMayBeLow()) allowed.push('DISK_LOW')
      if (this.#isUnsure(attempts)) allowed.push('DEDUP_FULL', 'QUEUE_FULL', 'DISK_LOW')
      if (code === 'QUEUE_FULL') this.counts['queue full']++
      if (code === 'DEDUP_FULL') this.counts['dedup full']++
    }
    if (!allowed.includes(code))
      throw new Violation(
        3,
        `${what} is refused with ${code}; it deserves ${allowed.join() || 'to be taken'}`,
      )
    // What can succeed later is judged anew when it comes again.
    if (!answer.retryable && code !== 'UNKNOWN_OUTCOME' && code !== 'NUMBER_REUSED' && known === undefined)
      producer.refused.set(number, code)
    if (known === undefined && !isOld) producer.open.add(number)
    // What goes again in the order of the calls is not overtaken.
    if (code === 'EARLIER_REFUSED') return false
    for (const { names, isSplit } of attempts)
      if (!isSplit) for (const name of names) this.judgedAnew.add(name)
    return false
  }

  // Some of the ids that the queue may or may not remember are in here, or count.
  #isUnsure(attempts: readonly Attempt[]): boolean {
    return attempts.some(({ queue }) => (this.names.get(queue)?.unsure.size ?? 0) > 0)
  }

  /**
   * A producer that never had a batch accepted has left. Its refusals go with it: no byte of it is under way any more,
   * so whoever did not hear of a refusal cannot tell that the batch is judged anew.
   */
  forgotten(identity: string): void {
    const producer = this.#producer(identity)
    if (producer.accepted.size > 0)
      throw new Violation(3, `producer ${identity} is forgotten, and had batches accepted`)
    producer.refused.clear()
    producer.open.clear()
    producer.told = 0
  }

  /** Of ids that the queue may have forgotten, `hint` is what the broker says. */
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
      return message !== undefined && isWaiting(message)
    })
    const occupants = [...queue.live.values()].filter(
      ({ state, offset }) => state !== 'dead' && !freed.has(offset) && !ids.replaced.has(offset),
    )
    const accepted = records.filter((_, index) => isAccepted(ids, queue.next, index))
    const sizes = accepted.map(({ length }) => length)
    return { ids, room: planRoom(occupants, sizes, queue.options) }
  }

  #firstOf(queue: ModelQueue, id: string, freed: Freed): number | undefined {
    return queue.options.unique === 'window'
      ? queue.remembered.find(id)?.offset
      : queue.pending.find(id, freed)
  }

  #replace(queue: ModelQueue, { ids }: Plan, nowMs: number): void {
    for (const offset of ids.replaced) {
      const message = queue.live.get(offset)!
      this.counts.replaced++
      queue.counts.cancelled++
      queue.line.leave(message, nowMs)
      this.#remove(queue, message)
    }
  }

  #refusal(queue: ModelQueue, attempt: Attempt, freed: Freed, nowMs: number): ErrorCode | undefined {
    for (const record of attempt.records)
      if (isTooFarPast(contentOf(record).atMs, nowMs)) return 'AT_IN_THE_PAST'
    const { ids, room } = this.#plan(queue, attempt, freed)
    const { remembered, pending, options } = queue
    const known = options.unique === 'window' ? remembered.size : pending.sizeWithout(freed)
    if (isDedupFull(known, ids.newIds, options)) return 'DEDUP_FULL'
    return room.isFull ? 'QUEUE_FULL' : undefined
  }

  /** S8: the least important, and of these the oldest, make room for what is new. */
  #makeRoom(queue: ModelQueue, { room }: Plan, nowMs: number): void {
    for (const message of room.evicted) {
      queue.line.leave(message, nowMs)
      if (queue.options.overflow === 'drop-oldest') {
        this.counts.dropped++
        queue.counts.dropped++
        this.#remove(queue, message)
      } else {
        this.counts.overflowed++
        this.#die(queue, message, message.attempts, OVERFLOW, nowMs)
      }
    }
  }

  /** S7: of an accepted batch. */
  #planOf(queue: ModelQueue, attempt: Attempt, placed: Placed, freed: Freed): Plan {
    const plan = this.#plan(queue, attempt, freed, placed)
    const is = JSON.stringify([...(placed.duplicates ?? [])])
    const must = JSON.stringify([...plan.ids.duplicates])
    if (is !== must)
      throw new Violation(
        'S7',
        `of the batch at offset ${placed.baseOffset} of ${queue.name} these are called duplicates: ${is}, not ${must}`,
      )
    return plan
  }

  #accept(
    attempt: Attempt,
    placed: Placed,
    duplicates: ReadonlyMap<number, number>,
    nowMs: number,
  ): ModelPlace {
    const queue = this.#named(attempt.queue)
    const base = placed.baseOffset
    // 5: offsets are dense.
    if (base !== queue.next)
      throw new Violation(5, `${queue.name} gives offset ${base}; its next one is ${queue.next}`)
    for (const [index, record] of attempt.records.entries()) {
      if (!isAccepted({ duplicates }, base, index)) {
        queue.next++
        queue.counts.duplicates++
        this.counts['duplicate ids']++
        queue.unsure.delete(contentOf(record).id!)
      } else this.#add(queue, record, nowMs)
    }
    return { queueId: queue.id, base, duplicates }
  }

  #add(queue: ModelQueue, record: Uint8Array, nowMs: number): void {
    const { unique, dedupWindowMs, ttlMs } = queue.options
    const offset = queue.next++
    const content = contentOf(record)
    const lineMs = dueMsOf(content, nowMs)
    const isPlain = lineMs === nowMs
    const isListed = isListedById(content, unique, !isPlain)
    const message: ModelMessage = {
      offset,
      record,
      bytes: record.length,
      content,
      publishedMs: nowMs,
      state: 'leased',
      lineMs,
      isPlain,
      sinceMs: lineMs,
      expiresMs: expiryOf(content, ttlMs, lineMs),
      attempts: 0,
      earlier: NO_EARLIER_LIVES,
      dead: undefined,
      isListed,
      mustMark: false,
      mayMark: false,
      left: false,
      ...CLEARED,
      former: undefined,
    }
    queue.live.set(offset, message)
    if (isListed) queue.pending.add(content.id!, offset)
    if (content.id !== undefined && unique === 'window' && dedupWindowMs > 0) {
      queue.remembered.remember(content.id, offset, nowMs)
      queue.unsure.delete(content.id)
    }
    queue.line.add(message, nowMs)
  }

  #producer(identity: string): ModelProducer {
    let producer = this.#producers.get(identity)
    if (producer === undefined) {
      producer = { accepted: new Map(), refused: new Map(), open: new Set(), told: 0 }
      this.#producers.set(identity, producer)
    }
    return producer
  }

  // --- consuming ---

  subscribed(
    key: object,
    id: number,
    queueName: string,
    consumer: ModelConsumer,
    messages: number,
    bytes: number,
    limit: number | undefined,
    processingTimeoutMs?: number,
  ): void {
    const queue = this.#named(queueName)
    // 7: a tag from another life must not mean anything in this one.
    if (this.#byId.has(id)) throw new Violation(7, `two subscriptions have the id ${id}`)
    const subscription: ModelSubscription = {
      id,
      queue,
      consumer,
      processingTimeoutMs,
      creditMessages: messages,
      creditBytes: bytes,
      limit: limit ?? Infinity,
      draining: false,
      delivered: 0,
      lastTag: -1,
      held: new Map(),
      heldBytes: 0,
      holdsSuspect: false,
      started: new Map(),
      granted: new Map(),
      charged: new Map(),
      precharged: new Set(),
      sizes: new Map(),
    }
    this.subscriptions.set(key, subscription)
    this.#byId.set(id, subscription)
    queue.subscriptions.add(subscription)
  }

  /** Leases were claimed with the subscription, and these were granted. */
  claimed(
    key: object,
    claims: readonly Claim[],
    granted: readonly Granted[],
    countedBytes: (tag: number) => number,
    nowMs: number,
  ): void {
    const { boot } = this
    const subscription = this.#subscription(key)
    const { queue } = subscription
    this.counts.claims += claims.length
    const active = activeOf(queue.subscriptions) ?? subscription
    if (queue.options.single && granted.length > 0 && subscription !== active)
      throw new Violation('S13', `${queue.name} grants a claim to another than its active one`)
    for (const { index, tag, attempt } of granted) {
      const claim = claims[index]!
      const lease = leaseName(claim.subscriptionId, claim.tag)
      const message = queue.live.get(claim.offset)
      const what = `the claim of ${lease} on offset ${claim.offset} of ${queue.name}`
      // 7: it belongs to no one, and no one else has had it since.
      if (claim.queueNumber !== queue.id || message === undefined)
        throw new Violation(7, `${what} is granted, and that message is not there`)
      if (message.state === 'leased' || message.state === 'dead')
        throw new Violation(7, `${what} is granted while the message is ${message.state}`)
      const holder = this.holders.get(messageKey(queue.id, claim.offset))
      if (holder?.lease !== lease)
        throw new Violation(7, `${what} is granted; the last that had it is ${holder?.lease}`)
      if (claim.boot === boot && message.former?.lease !== lease)
        throw new Violation(7, `${what} is granted; the last lease is ${message.former?.lease}`)
      if (attempt !== message.attempts + 1)
        throw new Violation(10, `${what} is attempt ${attempt}; ${message.attempts} were charged`)
      // 14: within the credit. After a restart a lease counts what the broker takes for its size, until it ends.
      const bytes = countedBytes(tag)
      if (claim.boot === boot && bytes !== message.former!.bytes)
        throw new Violation(14, `${what} counts ${bytes} bytes; it counted ${message.former!.bytes} before`)
      const counted = { bytes, isSuspect: false }
      if (
        subscription.held.size >= subscription.creditMessages ||
        !fits(subscription, loadOf(subscription), counted)
      )
        throw new Violation(14, `${what} of ${bytes} bytes exceeds ${creditText(subscription)}`)
      if (subscription.held.has(tag) || tag <= subscription.lastTag)
        throw new Violation(7, `${what} has tag ${tag} after ${subscription.lastTag}`)
      subscription.lastTag = tag
      subscription.held.set(tag, message)
      subscription.heldBytes += bytes
      subscription.sizes.set(tag, bytes)
      subscription.granted.set(tag, { offset: message.offset, attempt })
      const deadlineMs = message.former?.deadlineMs ?? Infinity
      subscription.started.set(tag, deadlineMs === Infinity ? nowMs + timeoutOf(subscription) : deadlineMs)
      if (message.former?.isCharged === true) subscription.precharged.add(tag)
      if (claim.boot === boot) this.counts['claims granted']++
      else this.counts['claims granted after a restart']++
      queue.line.retake(message, nowMs)
      const ofKey = queue.line.keyOf(message)
      if (ofKey !== undefined && ofKey.leased > queue.options.keyConcurrency)
        throw new Violation(13, `${what} is one of ${ofKey.leased} of its key that are leased`)
      message.former = undefined
      Object.assign(message, CLEARED)
      message.mustMark = true
      message.mayMark = true
    }
  }

  /** A lease left the broker: from now on its consumer has the message, and none before it. */
  told(subscriptionId: number, tag: number): void {
    const { boot } = this
    const subscription = this.#byId.get(subscriptionId)
    const granted = subscription?.granted.get(tag)
    if (subscription === undefined || granted === undefined) return
    const { queue } = subscription
    // As it was delivered: its try can be over, and charged, before what waits for the disk is sent.
    const { offset, attempt } = granted
    const key = messageKey(queue.id, offset)
    const before = this.holders.get(key)
    // What a consumer gave back itself it does not claim.
    if (before !== undefined && !this.#settledLeases.has(before.lease)) {
      this.superseded.push(before.claim)
      if (this.superseded.length > SUPERSEDED_MAX) this.superseded.shift()
    }
    const message = queue.live.get(offset)
    const claim = {
      ...{ offset, queueNumber: queue.id, boot, subscriptionId, tag },
      ...{ attempt, bytes: message?.record.length ?? 8 },
    }
    this.holders.set(key, { lease: leaseName(subscriptionId, tag), claim })
  }

  credited(key: object, messages: number, bytes: number, limit: number | undefined, drain: boolean): void {
    const subscription = this.#subscription(key)
    subscription.creditMessages = messages
    subscription.creditBytes = bytes
    subscription.limit = limit ?? Infinity
    subscription.draining = drain
  }

  /** A run was handed out, at this moment. */
  dispatched(
    key: object,
    run: {
      offset: number
      publishedAtMs: number
      attempt: number
      redelivered: boolean
      alone: boolean
      sinceMs: number
    },
    firstTag: number,
    count: number,
    records: Uint8Array,
    nowMs: number,
  ): void {
    const subscription = this.#subscription(key)
    const { queue } = subscription
    if (queue.paused) throw new Violation('S9', `${queue.name} hands out offset ${run.offset} and is paused`)
    // S13: only the one that holds messages, or else the first that has credit left.
    if (queue.options.single && subscription !== activeOf(queue.subscriptions))
      throw new Violation(
        'S13',
        `${queue.name} hands out offset ${run.offset} to another than its active one`,
      )
    const parts = splitRecords(records, 0, records.length)
    if (parts.length !== count)
      throw new Violation(2, `a run of ${count} messages of ${queue.name} carries ${parts.length} records`)
    for (let i = 0; i < count; i++) {
      const offset = run.offset + i
      const what = `offset ${offset} of ${queue.name}`
      const message = queue.live.get(offset)
      this.counts.dispatched++
      // 2: what is delivered was published there, byte for byte.
      if (message === undefined) throw new Violation(2, `${what} is handed out and is not there`)
      if (!sameBytes(message.record, parts[i]!))
        throw new Violation(2, `${what} is handed out with other bytes`)
      if (run.publishedAtMs !== message.publishedMs)
        throw new Violation(2, `${what} was published at ${message.publishedMs}, not ${run.publishedAtMs}`)
      // 7, 11: one owner at a time, and nothing early.
      if (message.state === 'leased') throw new Violation(7, `${what} is handed out and belongs to another`)
      if (message.state === 'scheduled')
        throw new Violation(11, `${what} is handed out at ${nowMs} and is due at ${message.lineMs}`)
      if (message.state === 'dead') throw new Violation(6, `${what} is handed out and is dead`)
      if (isExpired(message, nowMs))
        throw new Violation('S4', `${what} is handed out at ${nowMs} and expired at ${message.expiresMs}`)
      this.#judgeOrder(queue, message, run.sinceMs, what)
      // 10: the attempt is one more than was charged.
      if (run.attempt !== message.attempts + 1)
        throw new Violation(10, `${what} is attempt ${run.attempt}; ${message.attempts} were charged`)
      // 22: every repeat is marked, and nothing else is.
      if (message.mustMark && !run.redelivered)
        throw new Violation(22, `${what} is handed out again without the mark`)
      if (run.redelivered && !message.mayMark)
        throw new Violation(22, `${what} is marked as redelivered and never was out`)
      if (run.redelivered) {
        this.counts.repeated++
        queue.counts.redelivered++
      }
      // O8: a suspect has its consumer for itself.
      if (run.alone !== message.isSuspect || (run.alone && count > 1))
        throw new Violation(
          'O8',
          `${what} goes alone: ${run.alone}, in a run of ${count}; it is a suspect: ${message.isSuspect}`,
        )
      if (subscription.holdsSuspect || (run.alone && subscription.held.size > 0))
        throw new Violation('O8', `${what} goes where a suspect is, or is one and goes where others are`)
      this.#grant(subscription, message, (firstTag + i) >>> 0, parts[i]!.length, nowMs)
      if (run.alone) {
        this.counts.alone++
        subscription.holdsSuspect = true
      }
    }
  }

  // 12, 13: none that comes before it is passed over, and none goes before its key lets it.
  #judgeOrder(queue: ModelQueue, message: ModelMessage, runSinceMs: number, what: string): void {
    const sinceMs = queue.line.eligibleSince(message)
    const { priority, key } = message.content
    if (sinceMs === undefined) {
      const { leased, retrying } = queue.line.keyOf(message)!
      throw new Violation(
        13,
        `${what} is handed out before others of its key; ${leased} of them are leased, ${retrying} wait for a retry`,
      )
    }
    const first = queue.line.first(queue.live.values())!
    this.counts.order++
    if (key !== undefined) this.counts.keyed++
    if (priority > 0) this.counts.prioritized++
    if (first !== message)
      throw new Violation(
        12,
        `${what} (priority ${priority}, since ${sinceMs}) passes over offset ${first.offset} (priority ${first.content.priority}, since ${queue.line.eligibleSince(first)})`,
      )
    if (runSinceMs !== -1 && runSinceMs !== sinceMs)
      throw new Violation(12, `${what} is eligible since ${sinceMs}; the broker says ${runSinceMs}`)
  }

  #grant(
    subscription: ModelSubscription,
    message: ModelMessage,
    tag: number,
    bytes: number,
    nowMs: number,
  ): void {
    const { queue } = subscription
    const what = `offset ${message.offset} of ${queue.name}`
    // 14: within the credit, or alone.
    if (!this.#hasRoom(subscription) || !fits(subscription, loadOf(subscription), message))
      throw new Violation(14, `${what} of ${bytes} bytes exceeds ${creditText(subscription)}`)
    if (subscription.held.has(tag) || tag <= subscription.lastTag)
      throw new Violation(7, `${what} has tag ${tag} after ${subscription.lastTag}`)
    subscription.lastTag = tag
    subscription.held.set(tag, message)
    subscription.heldBytes += bytes
    subscription.granted.set(tag, { offset: message.offset, attempt: message.attempts + 1 })
    subscription.delivered++
    message.former = undefined
    queue.line.take(message, nowMs)
    const key = queue.line.keyOf(message)
    if (key !== undefined && key.leased > queue.options.keyConcurrency)
      throw new Violation(13, `${what} is one of ${key.leased} of its key that are leased`)
    message.mustMark = true
    message.mayMark = true
  }

  settled(key: object, items: readonly SettleItem[], stale: readonly TagRange[], nowMs: number): void {
    const subscription = this.#subscription(key)
    const staleTags = new Set<number>()
    for (const { firstTag, count } of stale)
      for (let i = 0; i < count; i++) staleTags.add((firstTag + i) >>> 0)
    let expectedStale = 0
    const named = new Set<number>()
    for (const item of items) {
      for (let i = 0; i < item.count; i++) {
        const tag = (item.firstTag + i) >>> 0
        const message = subscription.held.get(tag)
        // 7: a stale settle changes nothing, and is told; one that holds is not.
        if (message === undefined) {
          expectedStale++
          if (!staleTags.has(tag))
            throw new Violation(7, `tag ${tag} of subscription ${subscription.id} is stale and was settled`)
          continue
        }
        if (staleTags.has(tag) && !named.has(tag)) {
          // Named twice in one frame: the first wins, the second is stale.
          const again =
            items.flatMap(({ firstTag, count }) => ((tag - firstTag) >>> 0 < count ? [1] : [])).length > 1
          if (!again)
            throw new Violation(
              7,
              `tag ${tag} of subscription ${subscription.id} is held and was called stale`,
            )
        }
        named.add(tag)
        this.#settledLeases.add(leaseName(subscription.id, tag))
        this.#settle(subscription, tag, message, item, nowMs)
      }
    }
    this.counts.stale += expectedStale
    const told = stale.reduce((sum, { count }) => sum + count, 0)
    if (told !== expectedStale) throw new Violation(7, `${told} tags are called stale; ${expectedStale} are`)
  }

  #settle(
    subscription: ModelSubscription,
    tag: number,
    message: ModelMessage,
    item: SettleItem,
    nowMs: number,
  ): void {
    const { queue } = subscription
    const isCharged = this.#letGo(subscription, tag, message)
    switch (item.outcome) {
      case 1:
        this.#ack(queue, message, nowMs)
        return
      case 2:
        this.#retry(queue, message, item.delayMs, nowMs, isCharged)
        if (queue.live.has(message.offset) && message.attempts > 0)
          subscription.charged.set(tag, message.attempts)
        return
      case 3:
        this.#release(queue, message, nowMs)
        this.counts.released++
        return
      case 4: {
        const death = item.invalid === true ? INVALID : REJECTED
        queue.line.finish(message, nowMs)
        this.#die(queue, message, message.attempts + (isCharged ? 0 : 1), death, nowMs)
      }
    }
  }

  /** Returns whether the try was charged before. */
  #letGo(subscription: ModelSubscription, tag: number, message: ModelMessage): boolean {
    subscription.held.delete(tag)
    subscription.started.delete(tag)
    subscription.holdsSuspect = false
    subscription.heldBytes -= sizeOf(subscription, tag, message)
    subscription.sizes.delete(tag)
    return subscription.precharged.delete(tag)
  }

  #ack(queue: ModelQueue, message: ModelMessage, nowMs: number): void {
    queue.line.finish(message, nowMs)
    queue.acked++
    this.counts.acked++
    this.#remove(queue, message)
  }

  #release(queue: ModelQueue, message: ModelMessage, nowMs: number): void {
    queue.counts.released++
    if (this.#expiresBack(queue, message, afterRelease(message, nowMs) === 'expired', nowMs)) return
    queue.line.giveBack(message, nowMs)
  }

  // S4: a lease outlives the time to live, and not what comes after it.
  #expiresBack(queue: ModelQueue, message: ModelMessage, mustExpire: boolean, nowMs: number): boolean {
    const wasTold = queue.expiring.delete(message.offset)
    if (mustExpire !== wasTold)
      throw new Violation(
        'S4',
        `offset ${message.offset} of ${queue.name} comes back at ${nowMs} and expires at ${message.expiresMs}; it is gone: ${wasTold}`,
      )
    if (!wasTold) return false
    queue.line.finish(message, nowMs)
    this.#expire(queue, message)
    return true
  }

  #retry(
    queue: ModelQueue,
    message: ModelMessage,
    delayMs: number | undefined,
    nowMs: number,
    isCharged: boolean,
  ): void {
    const attempts = message.attempts + (isCharged ? 0 : 1)
    const becomes = afterFailure(message, attempts, queue.options, nowMs)
    // 10: past the last try means dead.
    if (becomes === 'dead') {
      queue.line.finish(message, nowMs)
      this.#die(queue, message, attempts, MAX_DELIVERIES, nowMs)
      return
    }
    if (this.#expiresBack(queue, message, becomes === 'expired', nowMs)) return
    message.attempts = attempts
    Object.assign(message, CLEARED)
    this.counts.retried++
    const dueMs = this.#view.dueMs(queue.id, message.offset)
    const what = `offset ${message.offset} of ${queue.name} after attempt ${message.attempts}`
    if (dueMs === undefined) throw new Violation(6, `${what} does not come back`)
    if (delayMs !== undefined) {
      if (dueMs !== nowMs + delayMs)
        throw new Violation(11, `${what} comes back at ${dueMs}, not at ${nowMs} + ${delayMs}`)
    } else {
      const { least, most } = backoffBoundsMs(queue.options, attempts)
      const waitMs = dueMs - nowMs
      if (waitMs < least || waitMs > most)
        throw new Violation(11, `${what} waits ${waitMs} ms; its back-off is ${least} to ${most} ms`)
    }
    message.lineMs = dueMs
    message.isPlain = false
    queue.line.comeBack(message, nowMs)
  }

  #die(queue: ModelQueue, message: ModelMessage, attempts: number, death: number, nowMs: number): void {
    const isMoving = queue.options.deadLetter !== ''
    message.dead = { attempts, death, timeMs: nowMs, isMoving }
    message.state = 'dead'
    message.attempts = 0
    Object.assign(message, CLEARED)
    if (message.isListed) queue.pending.done(message.content.id!, message.offset)
    this.counts.died++
  }

  #expire(queue: ModelQueue, message: ModelMessage): void {
    queue.counts.expired++
    this.counts.expired++
    this.#remove(queue, message)
  }

  #remove(queue: ModelQueue, { offset, isListed, content }: ModelMessage): void {
    if (isListed) queue.pending.done(content.id!, offset)
    queue.live.delete(offset)
  }

  started(key: object, ranges: readonly TagRange[], nowMs: number): void {
    const subscription = this.#subscription(key)
    for (const { firstTag, count } of ranges) {
      for (let i = 0; i < count; i++) {
        const tag = (firstTag + i) >>> 0
        if (!subscription.held.has(tag)) continue
        const before = subscription.started.get(tag)
        subscription.started.set(tag, deadlineAfterStarted(before, nowMs, timeoutOf(subscription)))
      }
    }
    endAnnouncement(subscription)
  }

  /** Each may be the next that is handled; none has a deadline. */
  starting(key: object, ranges: readonly TagRange[]): void {
    const subscription = this.#subscription(key)
    endAnnouncement(subscription)
    for (const { firstTag, count } of ranges) {
      for (let i = 0; i < count; i++) {
        const tag = (firstTag + i) >>> 0
        if (!subscription.held.has(tag)) continue
        const before = subscription.started.get(tag)
        if (before === undefined) this.counts.announced++
        subscription.started.set(tag, deadlineAfterStarting(before))
      }
    }
  }

  extended(
    key: object,
    firstTag: number,
    count: number,
    durationMs: number,
    stale: readonly TagRange[],
    nowMs: number,
  ): void {
    const subscription = this.#subscription(key)
    for (let i = 0; i < count; i++) {
      const tag = (firstTag + i) >>> 0
      const isStale = stale.some((range) => (tag - range.firstTag) >>> 0 < range.count)
      if (isStale === subscription.held.has(tag))
        throw new Violation(7, `tag ${tag} of subscription ${subscription.id} is extended: ${!isStale}`)
      if (isStale) continue
      this.counts.extended++
      const before = subscription.started.get(tag)
      const deadlineMs = deadlineAfterExtension(before, nowMs, durationMs, timeoutOf(subscription))
      if (deadlineMs !== undefined) subscription.started.set(tag, deadlineMs)
    }
  }

  /** A subscription is told that it has lost these. */
  lost(key: object, ranges: readonly TagRange[], nowMs: number): void {
    const subscription = this.#subscription(key)
    const { queue } = subscription
    for (const { firstTag, count } of ranges) {
      for (let i = 0; i < count; i++) {
        const tag = (firstTag + i) >>> 0
        const message = subscription.held.get(tag)
        const what = `tag ${tag} of subscription ${subscription.id}`
        if (message === undefined) throw new Violation(7, `${what} is said to be lost and was not held`)
        if (this.#purged !== undefined) {
          const purged = this.#purged.get(subscription) ?? new Set()
          this.#purged.set(subscription, purged.add(tag))
          continue
        }
        const deadlineMs = subscription.started.get(tag)
        if (deadlineMs === undefined || deadlineMs > nowMs)
          throw new Violation('S14', `${what} is taken away at ${nowMs}; it had until ${deadlineMs}`)
        this.counts['timed out']++
        const isCharged = this.#letGo(subscription, tag, message)
        this.#retry(queue, message, undefined, nowMs, isCharged)
      }
    }
  }

  /** To be told after the broker has done it. */
  unsubscribed(key: object, blame: ModelBlame, isStopping: boolean, nowMs: number): void {
    const subscription = this.#subscription(key)
    const { queue, started, consumer, holdsSuspect } = subscription
    if (blame !== 'nobody') this.#judgeBlame(consumer, blame)
    for (const [tag, message] of [...subscription.held]) {
      const wasStarted = started.has(tag)
      const deadlineMs = started.get(tag) ?? Infinity
      const bytes = sizeOf(subscription, tag, message)
      const wasCharged = this.#letGo(subscription, tag, message)
      const end = blame === 'nobody' ? 'released' : leaseEndFor(blame, wasStarted, holdsSuspect)
      const isCharged = end === 'charged'
      const lease = leaseName(subscription.id, tag)
      if (!isStopping) message.former = { lease, bytes, deadlineMs, isCharged: isCharged || wasCharged }
      // S15: the one that was begun with is charged, or the one that went alone.
      if (isCharged) {
        this.counts.charged++
        this.#retry(queue, message, undefined, nowMs, wasCharged)
        continue
      }
      const suspicion = suspicionAfter(end, message)
      if (end !== 'released' && suspicion.isSuspect) this.counts.suspected++
      Object.assign(message, suspicion)
      this.#release(queue, message, nowMs)
    }
    queue.subscriptions.delete(subscription)
    this.subscriptions.delete(key)
  }

  // O8: exactly one that was being handled is charged; of several none is, and they are suspects.
  #judgeBlame(consumer: ModelConsumer, blame: ModelBlame): void {
    let must = this.#blamed.get(consumer)
    if (must === undefined) {
      let started = 0
      let held = 0
      for (const subscription of this.subscriptions.values()) {
        if (subscription.consumer !== consumer) continue
        started += subscription.started.size
        held += subscription.held.size
      }
      must = blameFor(started, held)
      this.#blamed.set(consumer, must)
    }
    if (blame !== must)
      throw new Violation('O8', `when a connection died the blame goes to ${blame}; it deserves ${must}`)
  }

  drained(key: object): void {
    const subscription = this.#subscription(key)
    if (!subscription.draining)
      throw new Violation(16, `subscription ${subscription.id} is drained and did not ask`)
    const waiting = this.#handedNext(subscription)
    if (waiting !== undefined)
      throw new Violation(
        16,
        `subscription ${subscription.id} is drained while offset ${waiting.offset} of ${subscription.queue.name} can go`,
      )
    subscription.draining = false
    subscription.limit = subscription.delivered
    this.counts.drained++
  }

  // --- queues ---

  /** A queue was asked for; of a new one, this is the first that is heard. */
  ensured(id: number, info: QueueInfo, nowMs: number): void {
    const known = this.names.get(info.name)
    if (known === undefined) {
      const queue: ModelQueue = {
        id,
        name: info.name,
        options: info.options,
        paused: false,
        next: 0,
        acked: 0,
        counts: noCounts(),
        carried: 0,
        live: new Map(),
        line: new Line<ModelMessage>(info.options),
        remembered: new RememberedIds(),
        unsure: new Set(),
        pending: new PendingIds(),
        subscriptions: new Set(),
        expiring: new Set(),
      }
      if (this.queues.has(id)) throw new Violation(5, `queue ${info.name} has the id ${id} of another`)
      this.queues.set(id, queue)
      this.names.set(info.name, queue)
    } else if (JSON.stringify(known.options) !== JSON.stringify(info.options))
      throw new Violation(6, `${info.name} has other options than it was given`)
    this.counted(info, nowMs)
  }

  /** The options of a queue have changed. */
  changed(id: number, options: QueueOptions, nowMs: number): void {
    const queue = this.#numbered(id)
    const { reorders, forgetsAfterMs } = changeOf(queue.options, options)
    this.#forgetIds(queue, nowMs)
    queue.options = options
    this.#forgetIds(queue, nowMs, forgetsAfterMs)
    if (!reorders) return
    queue.line.reorder(options, queue.live.values())
    this.#arrive(queue, nowMs)
  }

  setPaused(name: string, paused: boolean, changed: boolean): void {
    const queue = this.#named(name)
    if (changed !== (queue.paused !== paused))
      throw new Violation('S9', `${name} was paused: ${queue.paused}, and says that this is new: ${changed}`)
    queue.paused = paused
  }

  deleted(name: string, messages: number): void {
    const queue = this.#named(name)
    if (messages !== queue.live.size)
      throw new Violation(6, `${name} is deleted with ${messages} messages; it had ${queue.live.size}`)
    for (const subscription of queue.subscriptions) this.#end(subscription)
    this.queues.delete(queue.id)
    this.names.delete(name)
  }

  #end(ended: ModelSubscription): void {
    for (const [key, subscription] of this.subscriptions)
      if (subscription === ended) this.subscriptions.delete(key)
  }

  /** A purge begins: whoever holds something is told. */
  purging(): void {
    this.#purged = new Map()
  }

  purged(name: string, messages: number): void {
    const queue = this.#named(name)
    const told = this.#purged!
    this.#purged = undefined
    for (const subscription of queue.subscriptions) {
      if (subscription.held.size !== (told.get(subscription)?.size ?? 0))
        throw new Violation(
          'S10',
          `subscription ${subscription.id} holds ${subscription.held.size} messages that are purged, and is told of ${told.get(subscription)?.size ?? 0}`,
        )
      subscription.held.clear()
      subscription.started.clear()
      subscription.sizes.clear()
      subscription.heldBytes = 0
      subscription.holdsSuspect = false
    }
    let count = 0
    for (const message of [...queue.live.values()]) {
      if (message.state === 'dead') continue
      this.#remove(queue, message)
      count++
    }
    queue.line.clear()
    queue.counts.purged += count
    if (messages !== count)
      throw new Violation(6, `a purge of ${name} removes ${messages} messages; there were ${count}`)
  }

  // --- single messages ---

  cancelled(ref: MessageRef, answer: { readonly offset: number } | SluiceError, nowMs: number): void {
    const message = this.#referred('cancel', ref, answer)
    if (message === undefined) return
    const queue = this.#named(ref.name)
    this.counts.cancelled++
    queue.counts.cancelled++
    queue.line.leave(message, nowMs)
    this.#remove(queue, message)
  }

  rescheduled(
    ref: MessageRef & { readonly delayMs: number | undefined; readonly atMs: number | undefined },
    answer: { readonly offset: number; readonly dueMs: number } | SluiceError,
    nowMs: number,
  ): void {
    const message = this.#referred('reschedule', ref, answer)
    if (message === undefined) return
    const queue = this.#named(ref.name)
    const { dueMs } = answer as { readonly dueMs: number }
    const mustMs = dueMsOf(ref, nowMs)
    if (dueMs !== mustMs)
      throw new Violation(11, `offset ${message.offset} of ${ref.name} is due at ${dueMs}, not at ${mustMs}`)
    this.counts.rescheduled++
    this.rescheduledNames.add(messageName(ref.name, message.record))
    queue.line.leave(message, nowMs)
    Object.assign(message, rescheduled(message, dueMs))
    message.former = undefined
    message.isPlain = false
    queue.line.enter(message, nowMs)
  }

  // S11: what is meant, or why nothing is done.
  #referred(
    what: string,
    { name, offset, id }: MessageRef,
    answer: { readonly offset: number } | SluiceError,
  ): ModelMessage | undefined {
    const queue = this.names.get(name)
    let must: ErrorCode | number
    let message: ModelMessage | undefined
    if (queue === undefined) must = 'QUEUE_NOT_FOUND'
    else {
      const at = offset ?? this.#offsetOf(queue, id!)
      message = at === undefined ? undefined : queue.live.get(at)
      if (message === undefined || message.state === 'dead') must = 'MESSAGE_NOT_FOUND'
      else must = message.state === 'leased' ? 'MESSAGE_LEASED' : message.offset
      // It may have forgotten the id.
      if (id !== undefined && queue.unsure.has(id) && answer instanceof SluiceError) must = answer.code
    }
    const is = answer instanceof SluiceError ? answer.code : answer.offset
    // A time long past is refused before anything is looked for.
    if (is !== must && is !== 'AT_IN_THE_PAST')
      throw new Violation('S11', `${what} of offset ${offset} or id ${id} in ${name}: ${is}, not ${must}`)
    return answer instanceof SluiceError ? undefined : message
  }

  #offsetOf(queue: ModelQueue, id: string): number | undefined {
    const pending = queue.pending.find(id)
    if (pending !== undefined || queue.options.unique === 'pending') return pending
    return queue.remembered.find(id)?.offset
  }

  /** A dead message begins a new life in its queue. */
  redriven(id: number, offset: number, nowMs: number): void {
    const queue = this.#numbered(id)
    const message = this.#deadAt(queue, offset, 'brought back')
    const { dead, earlier, content } = message
    const other = queue.options.unique === 'pending' ? queue.pending.find(content.id ?? '') : undefined
    if (other !== undefined)
      throw new Violation('S7', `offset ${offset} of ${queue.name} is brought back, and ${other} has its id`)
    message.earlier = livesAfterRedrive(earlier, dead!.attempts)
    message.dead = undefined
    message.former = undefined
    message.attempts = 0
    message.lineMs = nowMs
    message.isPlain = false
    message.expiresMs = 0
    message.mustMark = true
    message.mayMark = true
    if (message.isListed) queue.pending.add(message.content.id!, offset)
    queue.counts.redriven++
    this.counts.redriven++
    queue.line.enter(message, nowMs)
  }

  discarded(id: number, offset: number): void {
    const queue = this.#numbered(id)
    const message = this.#deadAt(queue, offset, 'discarded')
    queue.counts.discarded++
    this.counts.discarded++
    this.#remove(queue, message)
  }

  /** A dead message is in another queue now: dead letters by themselves, others because they were brought back. */
  moved(
    id: number,
    offset: number,
    isCarried: boolean,
    target: { readonly id: number; readonly base: number },
    reason: string,
    nowMs: number,
  ): void {
    const queue = this.#numbered(id)
    const message = this.#deadAt(queue, offset, 'moved')
    const to = this.#numbered(target.id)
    const what = `offset ${offset} of ${queue.name}`
    const { earlier, content } = message
    const dead = message.dead!
    if (!isCarried && (!dead.isMoving || queue.options.deadLetter !== to.name))
      throw new Violation(17, `${what} is moved to ${to.name} and is not meant to`)
    if (target.base !== to.next)
      throw new Violation(5, `${what} is at ${target.base} of ${to.name}, whose next one is ${to.next}`)
    this.#remove(queue, message)
    if (isCarried) {
      queue.carried++
      queue.counts.redriven++
      this.counts.carried++
    } else {
      queue.counts.moved++
      this.counts.moved++
    }
    const record = copyOf(message.record, {
      queue: queue.name,
      offset,
      publishedMs: message.publishedMs,
      attempts: earlier.attempts + dead.attempts,
      redrives: earlier.redrives + redrivesBefore(content) + (isCarried ? 1 : 0),
      death: DEATHS[dead.death]!,
      diedMs: dead.timeMs,
      error: reason,
    })
    this.#add(to, record, nowMs)
    this.#view.copied(to.name, record)
  }

  #deadAt(queue: ModelQueue, offset: number, what: string): ModelMessage {
    const message = queue.live.get(offset)
    if (message?.state !== 'dead')
      throw new Violation(6, `offset ${offset} of ${queue.name} is ${what} and was not dead`)
    return message
  }

  /** 6: each message is in one state, and the broker counts the same: as of now, whatever it has noticed. */
  counted(info: QueueInfo, nowMs: number): void {
    const queue = this.#named(info.name)
    const states = { ready: 0, scheduled: 0, leased: 0, dead: 0 }
    let expired = 0
    for (const message of queue.live.values()) {
      const { state, lineMs } = message
      const isThere = state === 'ready' || (state === 'scheduled' && lineMs <= nowMs)
      if (!isThere) states[state]++
      else if (isExpired(message, nowMs)) expired++
      else states.ready++
    }
    const must = {
      ...states,
      ...queue.counts,
      expired: queue.counts.expired + expired,
      published: queue.next - queue.counts.duplicates,
      acked: queue.acked,
      consumers: queue.subscriptions.size,
      paused: queue.paused,
    }
    const is = Object.fromEntries(Object.keys(must).map((name) => [name, info[name as keyof QueueInfo]]))
    if (JSON.stringify(is) !== JSON.stringify(must))
      throw new Violation(6, `${queue.name} counts ${JSON.stringify(is)}; there are ${JSON.stringify(must)}`)
    const all = states.ready + states.scheduled + states.leased + states.dead + expired
    if (queue.next !== all + queue.acked + goneOtherwise(queue))
      throw new Violation(6, `of ${queue.next} messages of ${queue.name} not all are accounted for`)
  }

  // --- time ---

  /** The broker looks at the time: what is due arrives. */
  looked(id: number, nowMs: number): void {
    this.#arrive(this.#numbered(id), nowMs)
  }

  /** The broker has looked at the time, and for what it means to everything: what has expired is gone. */
  settledTime(id: number, nowMs: number): void {
    const queue = this.#numbered(id)
    if (queue.options.unique === 'window') this.#forgetIds(queue, nowMs)
    for (const message of queue.live.values()) {
      if (message.state === 'ready' && isExpired(message, nowMs))
        throw new Violation(
          'S4',
          `offset ${message.offset} of ${queue.name} expired at ${message.expiresMs} and is there at ${nowMs}`,
        )
    }
  }

  #forgetIds(queue: ModelQueue, nowMs: number, windowMs = queue.options.dedupWindowMs): void {
    queue.remembered.forgetUntil(nowMs - windowMs)
    for (const id of queue.unsure) if (queue.remembered.find(id) === undefined) queue.unsure.delete(id)
  }

  #arrive(queue: ModelQueue, nowMs: number): void {
    const due = [...queue.live.values()].filter(
      ({ state, lineMs }) => state === 'scheduled' && lineMs <= nowMs,
    )
    due.sort((a, b) => a.lineMs - b.lineMs || a.offset - b.offset)
    for (const message of due) queue.line.arrive(message, nowMs)
  }

  /** The broker noticed that the time to live of a message is over. */
  expired(id: number, offset: number, nowMs: number): void {
    const queue = this.#numbered(id)
    const message = queue.live.get(offset)
    const what = `offset ${offset} of ${queue.name}`
    if (message === undefined || message.state === 'dead')
      throw new Violation(6, `${what} expires and was gone or dead`)
    if (!isExpired(message, nowMs))
      throw new Violation('S4', `${what} expires at ${nowMs} and not at ${message.expiresMs}`)
    if (message.state === 'leased') {
      queue.expiring.add(offset)
      return
    }
    if (message.state === 'scheduled') throw new Violation('S4', `${what} expires before it is due`)
    queue.line.leave(message, message.expiresMs)
    this.#expire(queue, message)
  }

  /** Nothing is under way in the broker. 16: then nothing that could be handed out, or has room to move, is waiting. */
  calm(nowMs: number, hasRoom: boolean): void {
    this.counts.calm++
    for (const queue of this.queues.values()) {
      for (const subscription of queue.subscriptions) {
        const waiting = this.#handedNext(subscription)
        // That of one its time is over shows when it would go.
        if (waiting !== undefined && !isExpired(waiting, nowMs))
          throw new Violation(
            16,
            `offset ${waiting.offset} of ${queue.name} waits, and subscription ${subscription.id} has credit for it`,
          )
        if (subscription.draining && subscription.consumer.isReady)
          throw new Violation(16, `subscription ${subscription.id} waits to be told that it is drained`)
        for (const [tag, deadlineMs] of subscription.started) {
          if (deadlineMs < nowMs - TIMER_SLACK_MS)
            throw new Violation(
              'S14',
              `tag ${tag} of subscription ${subscription.id} had until ${deadlineMs}, it is ${nowMs}`,
            )
        }
      }
      for (const { state, lineMs, offset, dead } of queue.live.values()) {
        // 11: in time, too.
        if (state === 'scheduled' && lineMs < nowMs - TIMER_SLACK_MS)
          throw new Violation(11, `offset ${offset} of ${queue.name} was due at ${lineMs}, it is ${nowMs}`)
        if (hasRoom && dead?.isMoving === true && this.names.has(queue.options.deadLetter))
          throw new Violation(
            16,
            `offset ${offset} of ${queue.name} is dead and not in ${queue.options.deadLetter}`,
          )
      }
      if (queue.expiring.size > 0) throw new Violation('S4', `${queue.name} lost what was leased`)
    }
  }

  /** Something could be handed out, if somebody wanted it. */
  get hasEligible(): boolean {
    return [...this.queues.values()].some(({ line, live }) => line.first(live.values()) !== undefined)
  }

  #handedNext(subscription: ModelSubscription): ModelMessage | undefined {
    const { queue } = subscription
    if (queue.paused || !subscription.consumer.isReady || !this.#hasRoom(subscription)) return undefined
    const first = queue.line.first(queue.live.values())
    return first !== undefined && fits(subscription, loadOf(subscription), first) ? first : undefined
  }

  #hasRoom(subscription: ModelSubscription): boolean {
    const { options, subscriptions } = subscription.queue
    return hasRoom(subscription, loadOf(subscription), options.single, subscriptions)
  }

  /** 8, 17: with everything on disk, the log says what was done. */
  agreesWith(state: LedgerState): void {
    if (state.queues.size !== this.queues.size)
      throw new Violation(17, `the log has ${state.queues.size} queues, there are ${this.queues.size}`)
    for (const queue of this.queues.values()) {
      const saved = state.queues.get(queue.id)
      if (saved === undefined || saved.name !== queue.name)
        throw new Violation(17, `the log does not have queue ${queue.name}`)
      compare(`${queue.name} in the log`, sayQueue(saved), sayQueue(queue))
      for (const [offset, message] of queue.live) {
        const written = saved.live.get(offset)
        const what = `offset ${offset} of ${queue.name}`
        if (written === undefined || !sameBytes(written.record, message.record))
          throw new Violation(17, `the log does not have ${what}`)
        const { dead } = written
        compare(
          `${what} in the log`,
          {
            attempts: written.attempts,
            lineMs: dead === undefined ? (written.dueMs ?? written.timeMs) : 0,
            expiresMs: written.expiresMs,
            earlier: written.earlier ?? NO_EARLIER_LIVES,
            dead: dead && [dead.attempts, dead.death, dead.timeMs, dead.isMoving],
          },
          {
            attempts: message.attempts,
            lineMs: message.dead === undefined ? message.lineMs : 0,
            expiresMs: message.expiresMs,
            earlier: message.earlier,
            dead: message.dead && [
              message.dead.attempts,
              message.dead.death,
              message.dead.timeMs,
              message.dead.isMoving,
            ],
          },
        )
      }
    }
  }

  /** The subscription with this id, also when it is over. */
  subscriptionById(id: number): ModelSubscription | undefined {
    return this.#byId.get(id)
  }

  #subscription(key: object): ModelSubscription {
    const subscription = this.subscriptions.get(key)
    if (subscription === undefined)
      throw new Violation(7, 'a subscription is used that was never made, or is over')
    return subscription
  }

  #named(name: string): ModelQueue {
    const queue = this.names.get(name)
    if (queue === undefined) throw new Violation(6, `the broker speaks of queue ${name}, which there is not`)
    return queue
  }

  #numbered(id: number): ModelQueue {
    const queue = this.queues.get(id)
    if (queue === undefined) throw new Violation(6, `the broker speaks of queue ${id}, which there is not`)
    return queue
  }
}

/** How late a timer may be; the world looks at it at least every 50 ms. */
const TIMER_SLACK_MS = 120

const SUPERSEDED_MAX = 300

function leaseName(subscriptionId: number, tag: number): string {
  return `${subscriptionId}:${tag}`
}

function messageKey(queueId: number, offset: number): string {
  return `${queueId}:${offset}`
}

function sizeOf({ sizes }: ModelSubscription, tag: number, { record }: ModelMessage): number {
  return sizes.get(tag) ?? record.length
}

function loadOf({ heldBytes, holdsSuspect }: ModelSubscription): Load {
  return { bytes: heldBytes, isSuspect: holdsSuspect }
}

function creditText(subscription: ModelSubscription): string {
  const { creditMessages, creditBytes, limit, delivered, held, heldBytes } = subscription
  return `a credit of ${creditMessages} messages and ${creditBytes} bytes, of which ${held.size} and ${heldBytes} are held, or the limit ${limit} after ${delivered} deliveries`
}

// What was announced, and is not named as started by now, is not being handled.
function endAnnouncement({ started }: ModelSubscription): void {
  for (const [tag, deadlineMs] of started)
    if (deadlineAfterAnnouncement(deadlineMs) === undefined) started.delete(tag)
}

function timeoutOf({ processingTimeoutMs, queue }: ModelSubscription): number {
  return processingTimeoutMs ?? queue.options.processingTimeoutMs
}

/** Messages that are gone, and were not acknowledged. */
/** What these count is still in its queue. */
const STAYING: ReadonlySet<string> = new Set(['redriven', 'released', 'redelivered'])

function goneOtherwise({ counts, carried }: { readonly counts: Counters; readonly carried: number }): number {
  let gone = carried
  for (const name of COUNTERS) if (!STAYING.has(name)) gone += counts[name]
  return gone
}

// What was released and delivered again comes to the log later.
function sayQueue({ next, live, counts, carried, paused, options }: ModelQueue | LedgerQueue): object {
  const exact = { ...counts, released: 0, redelivered: 0 }
  return { next, live: live.size, counts: exact, carried, paused, options }
}

/** What leaves the queues with these. */
interface Group {
  readonly attempt: Attempt
  readonly placed: Placed | undefined
  /** By the place of a batch in the step: index of its first message. */
  readonly starts: ReadonlyMap<number, number>
}

/** The batches of a step as one batch for each queue: what they bring counts together. */
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

function compare(what: string, is: object, must: object): void {
  if (JSON.stringify(is) !== JSON.stringify(must))
    throw new Violation(17, `${what} is ${JSON.stringify(is)}; it must be ${JSON.stringify(must)}`)
}

type AnyPlace = ModelPlace | Placed

function say(place: AnyPlace): unknown[] {
  const base = 'base' in place ? place.base : place.baseOffset
  return [base, ...(place.duplicates ?? [])]
}

function placesText(places: readonly AnyPlace[]): string {
  return JSON.stringify(places.map(say))
}

function samePlaces(a: readonly AnyPlace[], b: readonly AnyPlace[]): boolean {
  return placesText(a) === placesText(b)
}
