/**
 * The clients of a backlog world: they publish long backlogs of small messages, hold leases for a long time, settle
 * messages in every way, and look at, change and remove messages in the middle of a queue. They call the broker without
 * a connection, and check each delivery and each answer.
 */
import {
  OUTCOME,
  SluiceError,
  queueName,
  type Claim,
  type QueueName,
  type QueueOptions,
} from '@sluice/protocol'
import type { Broker } from '../../packages/server/src/broker/broker.js'
import type { Consumer, Subscription } from '../../packages/server/src/queue/index.js'
import { buildBatch, sameBytes, splitRecords } from './attempts.js'
import type { Chance } from './chance.js'
import type { Ledger } from './ledger.js'
import { Violation } from './trace.js'

/** Two queues with long backlogs, a queue whose messages come and go, and a queue for copies of messages. */
export const LONG = [queueName('deep'), queueName('kept')] as const
const BUSY = queueName('busy')
export const COPIES = queueName('copies')
export const NAMES = [...LONG, BUSY, COPIES]

const CALLER = { label: 'an operator', isOpen: true }
/**
 * Maximum number of leases of one reader. After a restart the broker reads cold chunks at the head into memory until
 * they hold at least this many ready messages, so that every lease can be claimed.
 */
const CREDIT_MAX = 900
/** Settled messages are kept this long in queues whose replays are checked; no world lasts as long. */
export const RETAIN_MS = 24 * 3_600_000
/** Maximum number of waiting messages of each long queue. */
const LIVE_MAX: Readonly<Record<string, number>> = { deep: 6_000, kept: 3_500 }

/** Refusals that depend on what else happens to the queue or the message. */
const ALLOWED: ReadonlySet<string> = new Set([
  'QUEUE_NOT_FOUND',
  'QUEUE_FULL',
  'MESSAGE_NOT_FOUND',
  'MESSAGE_LEASED',
  'TOO_MANY_REQUESTS',
])

/** The clients of a run. */
export interface BacklogClients {
  /** Number of requests that wait for a read. */
  readonly waiting: number
  /** Messages whose replay is checked at the end, by queue id. */
  readonly candidates?: ReadonlyMap<number, ReadonlySet<number>>
  /** Does one piece of work. */
  act(): void
  brokerStarted(boot: number): void
  brokerEnded(boot: number): void
  /** Claims the leases of the last broker, and returns how many were granted. */
  claim?(broker: Broker): number
  /** Called with the messages of producers that became durable in a queue. */
  accepted?(queueId: number, records: readonly Uint8Array[]): void
  noticed?(event: string, details: object): void
  /** Called when nothing is under way. */
  calm?(): void
  /** Called before the broker must come to rest, and when it is at rest. */
  ending?(): void
  atRest?(): void
}

/** The parts of the world that the clients use. */
export interface BacklogSurroundings {
  readonly seed: number
  readonly chance: Chance
  readonly ledger: Ledger
  readonly broker: Broker
  /** Batch sizes of the long queues. */
  readonly batchSizes: readonly number[]
  count(what: string, by?: number): void
  note(event: string): void
  /** Calls `work` and reports its violation after the current step. */
  guard(work: () => void): void
}

/** One subscription. */
class Reader implements Consumer {
  readonly label: string
  readonly address = ''
  readonly isReady = true
  readonly name: QueueName
  /** Leased messages: tag → offset. */
  readonly held = new Map<number, number>()
  /** Attempt of each delivery, by tag. */
  readonly attempts = new Map<number, number>()
  subscription!: Subscription
  isOver = false
  readonly #traffic: Traffic

  constructor(traffic: Traffic, name: QueueName, label: string) {
    this.#traffic = traffic
    this.name = name
    this.label = label
  }

  deliver(
    subscription: Subscription,
    { run, firstTag, bytes, start, end }: Parameters<Consumer['deliver']>[1],
  ): void {
    this.#traffic.guard(() => {
      for (const [index, record] of splitRecords(bytes, start, end).entries()) {
        const tag = (firstTag + index) >>> 0
        this.#traffic.checkDelivery(subscription.queue.id, this.name, run.offset + index, record)
        this.held.set(tag, run.offset + index)
        this.attempts.set(tag, run.attempt)
      }
    })
  }

  lost(
    { queue }: Subscription,
    _reason: unknown,
    ranges: readonly { readonly firstTag: number; readonly count: number }[],
  ): void {
    for (const { firstTag, count } of ranges)
      for (let i = 0; i < count; i++) this.release(queue.id, (firstTag + i) >>> 0)
  }

  release(queueId: number, tag: number): void {
    const offset = this.held.get(tag)
    if (offset === undefined) return
    this.held.delete(tag)
    this.#traffic.leased(queueId).delete(offset)
  }

  drained(): void {}

  ended(_subscription: Subscription, error: SluiceError): void {
    this.isOver = true
    this.held.clear()
    // A queue was deleted. Damage is never allowed: this disk loses nothing that it confirmed.
    if (error.code === 'CORRUPT' || error.code === 'READ_FAILED')
      this.#traffic.guard(() => {
        throw new Violation(2, `${this.name} ends its consumers: ${error.message}`)
      })
  }
}

export class Traffic implements BacklogClients {
  readonly #around: BacklogSurroundings
  /** Records that were accepted since the broker started, by queue id and offset. */
  readonly #records = new Map<number, Map<number, Uint8Array>>()
  /** Offsets of leased messages, and of messages that were acknowledged since the broker started, by queue id. */
  readonly #leased = new Map<number, Set<number>>()
  readonly #settled = new Map<number, Set<number>>()
  /** Messages that were acknowledged while their queue kept everything, by queue id. */
  readonly candidates = new Map<number, Set<number>>()
  /** Ids of the queues that keep everything that is settled. */
  readonly #keepers = new Set<number>()
  #readers: Reader[] = []
  #messages = 0
  #batches = 0
  #identity = ''
  /** Number of requests that wait for a read. */
  waiting = 0
  /** Whether the leases of the last broker may be claimed: only one reader held messages of the queue. */
  #former: { readonly name: QueueName; readonly claims: readonly Claim[] }[] = []

  /**
   * Whether the queue `kept` retains settled messages, whether `deep` does too, and whether the limits of retention
   * change. While a queue retains messages, hardly any segment is copied.
   */
  readonly #keeps: boolean
  readonly #keepsDeep: boolean
  readonly #changesRetention: boolean

  constructor(around: BacklogSurroundings) {
    this.#around = around
    this.#keeps = around.chance.hit(0.5)
    this.#keepsDeep = this.#keeps && around.chance.hit(0.4)
    this.#changesRetention = around.chance.hit(0.4)
  }

  guard(work: () => void): void {
    this.#around.guard(work)
  }

  leased(queueId: number): Set<number> {
    return setOf(this.#leased, queueId)
  }

  // --- the start and the end of a broker ---

  /** Called when the broker has ended: the leases that its consumers would claim are remembered. */
  brokerEnded(boot: number): void {
    this.#former = LONG.flatMap((name) => {
      const readers = this.#readers.filter((reader) => reader.name === name && !reader.isOver)
      const [only] = readers
      if (only === undefined || readers.length > 1) return []
      const { id: subscriptionId, queue } = only.subscription
      const claims = [...only.held].map(([tag, offset]) => ({
        ...{ offset, tag, attempt: only.attempts.get(tag)!, bytes: 0, boot },
        ...{ queueNumber: queue.id, subscriptionId },
      }))
      return [{ name, claims }]
    })
    this.#readers = []
    this.#records.clear()
    this.#leased.clear()
    this.#settled.clear()
    this.waiting = 0
  }

  /** Called when a broker has started; `boot` is its number. */
  brokerStarted(boot: number): void {
    this.#identity = boot.toString(16).padStart(32, '0')
    this.#batches = 0
  }

  /**
   * Invariant 7: after a restart, a consumer keeps the messages that it was handling. Returns how many leases were
   * claimed.
   */
  claim(broker: Broker): number {
    let claimed = 0
    for (const { name, claims } of this.#former) {
      const id = claims[0]?.queueNumber ?? 0
      const saved = this.#around.ledger.written.queues.get(id)
      if (saved === undefined) continue
      // The log does not record a delivery, so a lease of a message that is still ready can be claimed.
      const open = claims.filter(({ offset, attempt }) => {
        const message = saved.live.get(offset)
        return message !== undefined && message.dead === undefined && message.attempts + 1 === attempt
      })
      broker.turn.begin()
      const reader = new Reader(this, name, 'claims')
      const request = { queue: name, messages: 60_000, bytes: 1 << 24 }
      const subscription = broker.leases.subscribe(request, 1, reader)
      const granted = new Set(broker.leases.claim(subscription, open).map(({ index }) => open[index]!.offset))
      for (const { offset, attempt } of open) {
        const message = saved.live.get(offset)!
        // A message that was redriven, or that waits for a retry, cannot be claimed.
        if (granted.has(offset) || message.earlier !== undefined || message.dueMs !== undefined) continue
        throw new Violation(
          7,
          `the lease on offset ${offset} of ${name}, attempt ${attempt}, cannot be claimed after a restart`,
        )
      }
      claimed += granted.size
      broker.leases.unsubscribe(subscription, 'normal')
    }
    return claimed
  }

  // --- one piece of work ---

  act(): void {
    const { chance, broker } = this.#around
    const missing = NAMES.find((name) => !this.#exists(name))
    broker.turn.begin()
    this.#try(() => {
      if (missing !== undefined) this.#ensure(missing)
      else if (chance.hit(0.2)) this.#publish(chance.pick(LONG))
      else if (chance.hit(0.25)) this.#publishBusy()
      else if (chance.hit(0.5)) this.#consume()
      else this.#operate()
    })
  }

  #exists(name: QueueName): boolean {
    try {
      return this.#around.broker.catalog.queue(name) !== undefined
    } catch {
      return false
    }
  }

  #try(work: () => void): void {
    try {
      work()
    } catch (error) {
      this.#refused(error)
    }
  }

  #refused(error: unknown): void {
    if (!(error instanceof SluiceError) || !ALLOWED.has(error.code)) throw error
    this.#around.count(`refused ${error.code}`)
  }

  /** Creates a queue, or changes its options. */
  #ensure(name: QueueName): void {
    const { chance, broker } = this.#around
    const options: { -readonly [Name in keyof QueueOptions]?: QueueOptions[Name] } = {
      maxDeliveries: chance.int(2, 5),
      retryInitialMs: chance.int(0, 200),
    }
    if ((name === 'kept' && this.#keeps) || (name === 'deep' && this.#keepsDeep)) {
      const isWeak = this.#changesRetention && chance.hit(0.5)
      options.retainAgeMs = isWeak ? chance.pick([0, 500, 5_000, RETAIN_MS]) : RETAIN_MS
      if (isWeak && chance.hit(0.5)) options.retainBytes = chance.int(1, 100) * 1_000
    }
    if (name === 'deep' && chance.hit(0.06)) {
      options.maxMessages = chance.int(2_000, 6_000)
      options.overflow = chance.pick(['reject', 'drop-oldest'] as const)
    }
    this.#around.note(`ensure ${name} ${JSON.stringify(options)}`)
    broker.catalog.ensure({ name, options: { ...PLAIN, ...options }, update: true })
    const { id } = broker.catalog.queue(name)
    const keepsAll = options.retainAgeMs === RETAIN_MS && options.retainBytes === undefined
    if (keepsAll) this.#keepers.add(id)
    else {
      this.#keepers.delete(id)
      this.candidates.delete(id)
    }
    this.#around.count('options changed')
  }

  #publish(name: QueueName): void {
    const { chance, batchSizes, ledger } = this.#around
    if ((ledger.written.queueNamed(name)?.live.size ?? 0) > LIVE_MAX[name]!) return
    this.#send(name, chance.pick(batchSizes), 12)
  }

  // Large messages, so that the log grows and old segments have to be copied.
  #publishBusy(): void {
    const { chance } = this.#around
    this.#send(BUSY, chance.int(2, 9), 3_500)
  }

  #send(name: QueueName, count: number, paddingMax: number): void {
    const { chance, broker } = this.#around
    const drafts = Array.from({ length: count }, () => ({
      name: `m${++this.#messages}`,
      padding: chance.int(0, paddingMax),
    }))
    const accepted = this.#batches
    const { batch, records } = buildBatch(accepted + 1, drafts, false)
    this.#around.note(`publish ${count} to ${name}`)
    const producer = broker.producers.attach(this.#identity, accepted)
    const { id } = broker.catalog.queue(name)
    const { baseOffset } = broker.intake.publish(producer, name, batch, 0, batch.length, 0)
    this.#batches++
    const known = this.#records.get(id) ?? new Map<number, Uint8Array>()
    this.#records.set(id, known)
    for (const [index, record] of records.entries()) known.set(baseOffset + index, record)
    this.#around.count('published', count)
  }

  /** Every delivery has the bytes that were published, of a message that is neither leased nor acknowledged. */
  checkDelivery(queueId: number, name: string, offset: number, record: Uint8Array): void {
    const what = `offset ${offset} of ${name}`
    const leased = this.leased(queueId)
    if (leased.has(offset)) throw new Violation(7, `${what} is delivered twice`)
    if (this.#settled.get(queueId)?.has(offset) === true)
      throw new Violation(8, `${what} was acknowledged and is delivered again`)
    const saved = this.#around.ledger.written.queues.get(queueId)
    const written = saved?.live.get(offset)
    if (saved !== undefined && offset < saved.next && written === undefined)
      throw new Violation(8, `${what} is gone in the log and is delivered`)
    const original = written?.record ?? this.#records.get(queueId)?.get(offset)
    if (original !== undefined && !sameBytes(original, record))
      throw new Violation(2, `${what} is delivered with other bytes`)
    leased.add(offset)
    this.#around.count('delivered')
  }

  #consume(): void {
    const { chance, broker } = this.#around
    this.#readers = this.#readers.filter(({ isOver }) => !isOver)
    if (this.#readers.length < 3 && chance.hit(0.3)) {
      const name = chance.pick([...LONG, ...LONG, BUSY, COPIES])
      const reader = new Reader(this, name, 'a reader')
      const messages = chance.pick([5, 100, CREDIT_MAX])
      this.#around.note(`subscribe ${name} ${messages}`)
      reader.subscription = broker.leases.subscribe({ queue: name, messages, bytes: 1 << 24 }, 1, reader)
      this.#readers.push(reader)
      return
    }
    if (this.#readers.length === 0) return
    const reader = chance.pick(this.#readers)
    if (chance.hit(0.06)) this.#leave(reader)
    else if (reader.held.size > 0 && chance.hit(reader.name === BUSY ? 0.9 : 0.4)) this.#settle(reader)
  }

  #leave(reader: Reader): void {
    const { chance, broker } = this.#around
    this.#around.note(`leave ${reader.name}`)
    reader.isOver = true
    for (const tag of [...reader.held.keys()]) reader.release(reader.subscription.queue.id, tag)
    if (chance.hit(0.5)) broker.leases.unsubscribe(reader.subscription, 'normal')
    else broker.leases.disconnect([reader.subscription])
  }

  #settle(reader: Reader): void {
    const { chance } = this.#around
    const tags = [...reader.held.keys()]
    const from = chance.hit(0.8) ? 0 : chance.int(0, tags.length - 1)
    const most = chance.hit(0.3) ? tags.length : 1 + chance.skewed(200)
    const isAck = chance.hit(0.8)
    for (const firstTag of tags.slice(from, from + (isAck ? most : Math.min(most, 6)))) {
      const outcome = isAck
        ? OUTCOME.ack
        : chance.pick([OUTCOME.retry, OUTCOME.release, OUTCOME.deadLetter] as const)
      this.#settleOne(reader, firstTag, outcome)
    }
  }

  #settleOne(reader: Reader, firstTag: number, outcome: 1 | 2 | 3 | 4): void {
    const { broker } = this.#around
    const { id } = reader.subscription.queue
    const offset = reader.held.get(firstTag)
    if (offset === undefined) return
    reader.release(id, firstTag)
    if (outcome === OUTCOME.ack) {
      setOf(this.#settled, id).add(offset)
      if (this.#keepers.has(id)) setOf(this.candidates, id).add(offset)
    }
    this.#around.count(`settled ${outcome}`)
    const stale = broker.leases.settle(reader.subscription, [{ firstTag, count: 1, outcome }])
    if (stale.length > 0)
      throw new Violation(7, `the settle of offset ${offset} of ${reader.name} is reported as stale`)
  }

  // --- requests of an operator ---

  #operate(): void {
    const { chance, broker } = this.#around
    const name = chance.pick(LONG)
    const kind = chance.random()
    if (kind < 0.3) this.#peek(name)
    else if (kind < 0.42) this.#change(name, true)
    else if (kind < 0.54) this.#change(name, false)
    else if (kind < 0.62) this.#ensure(chance.pick(NAMES))
    else if (kind < 0.7) this.#redrive(name)
    else if (kind < 0.74) this.#wait(broker.operator.discard({ ...DEAD, name, limit: 3 }, CALLER))
    else if (kind < 0.765) this.#purge(name)
    else if (kind < 0.775) this.#delete(name)
    else this.#purge(BUSY)
  }

  #peek(name: QueueName): void {
    const { chance, broker, ledger } = this.#around
    const { id, next } = broker.catalog.queue(name)
    const from = chance.int(0, next)
    this.#around.note(`peek ${name} ${from}`)
    const request = { name, state: undefined, from, limit: chance.int(1, 300), filter: {} }
    this.#wait(broker.operator.peek(request, CALLER), ({ messages }) => {
      const live = ledger.written.queues.get(id)?.live
      for (const { offset, record } of messages) {
        const written = live?.get(offset)
        if (written !== undefined && !sameBytes(written.record, record))
          throw new Violation(2, `offset ${offset} of ${name} is peeked with other bytes`)
      }
      this.#around.count('peeked', messages.length)
    })
  }

  /** Cancels a message in the middle of the queue, or gives it another time. */
  #change(name: QueueName, isCancel: boolean): void {
    const { chance, broker, ledger } = this.#around
    const { operator } = broker
    const live = ledger.written.queueNamed(name)?.live
    if (live === undefined || live.size === 0) return
    const first = live.keys().next().value!
    const ref = { name, offset: chance.int(first, broker.catalog.queue(name).next), id: undefined }
    const delayMs = chance.pick([50, 1_000, RETAIN_MS])
    this.#around.note(`${isCancel ? 'cancel' : 'reschedule'} ${name} ${ref.offset}`)
    if (operator.mustRead(ref)) this.#around.count('changes of cold chunks')
    const change = isCancel
      ? () => operator.cancel(ref)
      : () => operator.reschedule({ ...ref, delayMs, atMs: undefined })
    this.#wait(Promise.resolve(operator.whenRead(ref, CALLER, change)))
  }

  #redrive(name: QueueName): void {
    const { chance, broker } = this.#around
    const to = chance.hit(0.4) ? COPIES : undefined
    this.#around.note(`redrive ${name}`)
    this.#wait(broker.operator.redrive({ ...DEAD, name, limit: chance.int(1, 20), to, force: false }, CALLER))
  }

  #purge(name: QueueName): void {
    const { broker } = this.#around
    const { id } = broker.catalog.queue(name)
    this.#around.note(`purge ${name}`)
    broker.catalog.purge(name)
    for (const reader of this.#readers) {
      if (reader.name !== name) continue
      for (const tag of [...reader.held.keys()]) reader.release(id, tag)
    }
    this.#around.count(`purged ${name === BUSY ? 'busy' : 'long'}`)
  }

  #delete(name: QueueName): void {
    const { broker } = this.#around
    const { id } = broker.catalog.queue(name)
    this.#around.note(`delete ${name}`)
    broker.catalog.delete(name)
    this.#keepers.delete(id)
    this.candidates.delete(id)
    this.#around.count('deleted')
  }

  /** Checks the answer when it arrives; it never arrives if the broker ends first. */
  #wait<T>(request: Promise<T>, check?: (answer: T) => void): void {
    this.waiting++
    const identity = this.#identity
    const done = (work: () => void): void => {
      if (identity !== this.#identity) return
      this.waiting--
      this.guard(work)
    }
    request.then(
      (answer) => done(() => check?.(answer)),
      (error: unknown) => done(() => this.#refused(error)),
    )
  }
}

const PLAIN = { retainAgeMs: 0, retainBytes: 0, maxMessages: 0, overflow: 'reject' } as const
const DEAD = { from: 0, offsets: undefined, filter: {}, dryRun: false } as const

function setOf(sets: Map<number, Set<number>>, id: number): Set<number> {
  let set = sets.get(id)
  if (set === undefined) sets.set(id, (set = new Set()))
  return set
}
