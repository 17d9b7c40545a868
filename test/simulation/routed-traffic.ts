/**
 * The clients of a world with routed traffic: publishes to topics whose bindings come and go, streams with retention and
 * readers, groups whose members come and go and that move, a queue that expires, schedules, and requests with replies. A
 * client that waits for an answer when the broker crashes sends the same batch again.
 *
 * What must hold is checked here when an answer or a delivery is received, and in recovery.ts for the state after each
 * crash: a confirmed publish is in each of its targets exactly once, and an unconfirmed one in all or in none; groups
 * keep the order of each key; readers leave out nothing; an unused queue is deleted, and no other; each request is
 * answered by its own reply or times out.
 */
import {
  CONTENT_TYPE,
  OUTCOME,
  SluiceError,
  queueName,
  readRequest,
  recordBytes,
  scheduleRequest,
  topicPattern,
  writeRecordHead,
  type QueueName,
  type RecordOptions,
} from '@sluice/protocol'
import type { Broker } from '../../packages/server/src/broker/broker.js'
import type { Producer } from '../../packages/server/src/state/producers.js'
import { hasHeaders, matchesTopic } from '../rules/topic.js'
import { buildBatch, nameOf, type RecordDraft } from './attempts.js'
import type { BacklogClients, BacklogSurroundings } from './backlog-traffic.js'
import { Chance } from './chance.js'
import type { LedgerState } from './ledger.js'
import { Follower, Leased, Member, Received, type Receiving } from './routed-clients.js'
import { Violation } from './trace.js'

const WORK = queueName('work')
const AUDIT = queueName('audit')
const ASKS = queueName('asks')
/** A queue that is deleted when it was not used for `EXPIRES_MS`. Dead messages of `work` move to it. */
const SPARE = queueName('spare')
const EXPIRES_MS = 1_500
const CLICKS = queueName('clicks')
const MOVES = queueName('moves')
const GROUPS = ['clicks@a', 'clicks@b', 'moves@c'] as unknown as readonly QueueName[]
const QUEUES = [WORK, AUDIT, ASKS]
const STREAMS = [CLICKS, MOVES]
const TARGETS = [WORK, AUDIT, SPARE, ...STREAMS]
const BOX = 'the mailbox of the client'
const IDENTITY = 'c11e47'.padStart(32, '0')
const MEMBERS_MAX = 8
const UNANSWERED_MAX = 30
/** Maximum number of waiting messages of a queue. */
const LIVE_MAX = 400
/** A tick fires at most this long after its time, if the broker has nothing else to do. */
const TICK_MS = 1_000

/** Refusals that depend on what else happens. */
const ALLOWED: ReadonlySet<string> = new Set([
  'QUEUE_NOT_FOUND',
  'MESSAGE_NOT_FOUND',
  'MESSAGE_LEASED',
  'SCHEDULE_NOT_FOUND',
])

/** A batch that was sent, until it is confirmed. */
interface Sent {
  readonly number: number
  readonly address: string
  readonly batch: Uint8Array
  readonly drafts: readonly RecordDraft[]
  /** For each time it was sent: the ids of the queues that must get each message. */
  readonly expected: string[][]
}

interface Gated {
  readonly gate: number
  readonly work: () => void
}

export class RoutedTraffic implements BacklogClients, Receiving {
  readonly waiting = 0
  readonly #around: BacklogSurroundings
  readonly #chance: Chance
  #producer: Producer | undefined
  #number = 0
  #names = 0
  #confirmed = 0
  readonly #unanswered = new Map<number, Sent>()
  /** Ids of the queues that durably got the message, by its name. */
  readonly #arrivals = new Map<string, number[]>()
  /** What must be true of the arrivals of each message that was not refused: one of these lists of queues, or nothing. */
  readonly #possible = new Map<string, readonly string[]>()
  #members: Member[] = []
  readonly #followers = new Map<QueueName, Follower>()
  /** By "queue id:moves". */
  readonly #received = new Map<string, Received>()
  /** Number of moves of each group, in the state of the running broker. */
  readonly #moves = new Map<number, number>()
  readonly #leased = new Map<number, Leased>()
  #ofTurn: (() => void)[] = []
  #gated: Gated[] = []
  #spareUsedMs = 0
  /** Requests without an answer: name → deadline. */
  readonly #asked = new Map<string, number>()
  /** Number of times that each request was handled, and answered. */
  readonly #handled = new Map<string, number>()
  readonly #answered = new Map<string, number>()

  constructor(around: BacklogSurroundings) {
    this.#around = around
    this.#chance = new Chance(around.seed ^ 0x70_91_c5)
  }

  get durable(): LedgerState {
    return this.#around.ledger.durable
  }

  get #broker(): Broker {
    return this.#around.broker
  }

  count(what: string, by = 1): void {
    this.#around.count(what, by)
  }

  guard(work: () => void): void {
    this.#around.guard(work)
  }

  // --- answers that wait for the log, as in the outbox of a session ---

  receive(isGated: boolean, work: () => void): void {
    if (!isGated) {
      work()
      return
    }
    this.#ofTurn.push(work)
    this.#broker.noteOutput(this)
  }

  endTurn(gate: number): void {
    for (const work of this.#ofTurn.splice(0)) this.#gated.push({ gate, work })
  }

  sendDurable(lsn: number): boolean {
    this.guard(() => {
      if (lsn > this.durable.lsn)
        throw new Violation(
          20,
          `entry ${lsn} is reported as durable; the last durable one is ${this.durable.lsn}`,
        )
      const count = this.#gated.filter(({ gate }) => gate <= lsn).length
      for (const { work } of this.#gated.splice(0, count)) work()
    })
    return this.#gated.length > 0
  }

  // --- the start and the end of a broker ---

  brokerEnded(): void {
    this.#ofTurn = []
    this.#gated = []
    this.#members = []
    this.#leased.clear()
    for (const follower of this.#followers.values()) follower.reader = undefined
  }

  brokerStarted(): void {
    const { queues } = this.#around.ledger.written
    this.#moves.clear()
    for (const { id, moves } of queues.values()) this.#moves.set(id, moves)
    this.#broker.turn.begin()
    this.#spareUsedMs = this.#broker.turn.nowMs
    this.#producer = this.#broker.producers.attach(IDENTITY, this.#confirmed)
    this.#openMailbox()
    // Invariant 3: what was not answered is sent again, and has an effect once.
    for (const sent of [...this.#unanswered.values()]) {
      this.count('sent again')
      this.guard(() => this.#try(() => this.#send(sent)))
    }
  }

  accepted(queueId: number, records: readonly Uint8Array[]): void {
    for (const record of records) {
      const name = nameOf(record)
      const queues = this.#arrivals.get(name)
      if (queues === undefined) this.#arrivals.set(name, [queueId])
      else queues.push(queueId)
    }
  }

  // --- one piece of work ---

  act(): void {
    this.#broker.turn.begin()
    this.#timeOut()
    const chance = this.#chance
    const missing = [...QUEUES, ...STREAMS, ...GROUPS].find((name) => !this.#exists(name))
    this.#try(() => {
      if (missing !== undefined) this.#ensure(missing)
      else if (chance.hit(0.3)) this.#publish()
      else if (chance.hit(0.5)) this.#consume()
      else if (chance.hit(0.28)) this.#read()
      else if (chance.hit(0.25)) this.#ask()
      else if (chance.hit(0.35)) this.#route()
      else if (chance.hit(0.32)) this.#schedule()
      else this.#administer()
    })
  }

  #try(work: () => void): void {
    try {
      work()
    } catch (error) {
      if (!(error instanceof SluiceError) || !ALLOWED.has(error.code)) throw error
      this.count(`refused ${error.code}`)
    }
  }

  #exists(name: QueueName): boolean {
    this.#use(name)
    try {
      return this.#broker.catalog.queue(name) !== undefined
    } catch {
      return false
    }
  }

  // As a session reports each call that names a queue.
  #use(name: QueueName): void {
    if (name !== SPARE) return
    this.#broker.unused.usedName(name)
    this.#spareUsedMs = this.#broker.turn.nowMs
  }

  /** Called when a consumer has ended. */
  ended(name: QueueName): void {
    if (name === SPARE) this.#spareUsedMs = this.#broker.turn.nowMs
  }

  #ensure(name: QueueName): void {
    const chance = this.#chance
    const { catalog, streams, groups } = this.#broker
    this.#around.note(`ensure ${name}`)
    this.#use(name)
    if (STREAMS.includes(name)) {
      const limits = [{}, { retainMessages: 300 }, { retainAgeMs: 1_000 }, { retainBytes: 40_000 }]
      const none = { retainMessages: 0, retainAgeMs: 0, retainBytes: 0 }
      streams.ensure({ name, options: { ...none, ...chance.pick(limits) }, update: true })
      return
    }
    // A dead-letter queue must exist when it is named.
    if (name !== SPARE && !this.#exists(SPARE)) this.#ensure(SPARE)
    const retries = { maxDeliveries: chance.int(2, 5), retryInitialMs: chance.int(0, 200) }
    if (GROUPS.includes(name)) {
      const deadLetter = chance.hit(0.3) ? SPARE : ''
      const from = chance.pick(['first', 'last'] as const)
      const { created } = groups.ensure({ name, options: { ...retries, deadLetter }, update: true, from })
      if (created) this.#moves.set(catalog.queue(name).id, 1)
      return
    }
    const options =
      name === SPARE ? { expiresMs: EXPIRES_MS } : name === WORK ? { ...retries, deadLetter: SPARE } : {}
    catalog.ensure({ name, options, update: true })
  }

  // --- publishing ---

  #publish(): void {
    const chance = this.#chance
    if (this.#unanswered.size > UNANSWERED_MAX) return
    const isLarge = chance.hit(0.3)
    const count = isLarge ? chance.int(1, 6) : chance.pick([1, 3, 40, 150])
    const drafts = Array.from({ length: count }, () => ({
      name: `m${++this.#names}`,
      padding: isLarge ? chance.int(0, 3_000) : chance.int(0, 12),
      options: this.#options(),
    }))
    const live = this.#around.ledger.written.queueNamed(WORK)?.live.size ?? 0
    const crowded = live > LIVE_MAX
    if (crowded) this.#broker.catalog.purge(WORK)
    const address = chance.hit(0.7) ? `#?${this.#topic()}` : chance.pick([CLICKS, MOVES, WORK])
    this.#sendNew(address, drafts)
  }

  #options(): RecordOptions {
    const chance = this.#chance
    return {
      ...(chance.hit(0.5) ? { key: chance.pick(['k1', 'k2', 'k3']) } : {}),
      ...(chance.hit(0.3) ? { headers: { x: '1' } } : {}),
    }
  }

  #topic(): string {
    return Array.from({ length: this.#chance.int(1, 2) }, () => this.#chance.pick(['a', 'b'])).join('.')
  }

  #sendNew(address: string, drafts: readonly RecordDraft[]): void {
    const number = ++this.#number
    const { batch } = buildBatch(number, drafts, false)
    const sent: Sent = { number, address, batch, drafts, expected: drafts.map(() => []) }
    this.#unanswered.set(number, sent)
    this.#around.note(`publish ${drafts.length} to ${address}`)
    this.#send(sent)
  }

  // Sends a batch, for the first time or again.
  #send(sent: Sent): void {
    const { number, address, batch, drafts, expected } = sent
    const [lowest] = this.#unanswered.keys()
    const unanswered = number - lowest!
    const isTopic = address.startsWith('#')
    if (address === SPARE) this.#use(SPARE)
    for (const [index, { name, options }] of drafts.entries()) {
      expected[index]!.push(this.#targetsOf(address, options?.headers ?? {}))
      this.#possible.set(name, expected[index]!)
    }
    const { topics, intake } = this.#broker
    const bytes = { bytes: batch, at: 0, end: batch.length }
    try {
      let targets = 1
      if (isTopic) targets = topics.publish(this.#producer!, address, bytes, unanswered)
      else intake.publish(this.#producer!, address, batch, 0, batch.length, unanswered)
      this.count(isTopic ? 'published to topics' : 'published')
      this.receive(true, () => this.#confirm(sent, targets))
    } catch (error) {
      if (!(error instanceof SluiceError) || error.code === 'UNKNOWN_OUTCOME') throw error
      this.receive(true, () => this.#answer(sent))
      throw error
    }
  }

  #answer({ number }: Sent): void {
    this.#unanswered.delete(number)
    this.#confirmed = number
  }

  // Invariants 1 and 9: each target has each of its messages once. The targets are those of one of the times at which the
  // batch was sent.
  #confirm(sent: Sent, targets: number): void {
    this.#answer(sent)
    const reached = new Set<number>()
    for (const [index, { name }] of sent.drafts.entries()) {
      const queues = this.#arrivals.get(name) ?? []
      for (const queue of queues) reached.add(queue)
      if (sent.expected[index]!.includes(idsText(queues))) continue
      throw new Violation(
        9,
        `${name}, published to ${sent.address}, is confirmed and came to the queues ${idsText(queues)}, not to ${sent.expected[index]!.join(' or ')}`,
      )
    }
    if (sent.address.startsWith('#') && reached.size !== targets)
      throw new Violation(
        9,
        `batch ${sent.number} is answered with ${targets} targets; it reached ${reached.size}`,
      )
    this.count('confirmed', sent.drafts.length)
  }

  // The queues that must get a message now, as the bindings say.
  #targetsOf(address: string, headers: Readonly<Record<string, string>>): string {
    const idOf = (name: string): number => this.#broker.catalog.queue(name).id
    if (!address.startsWith('#')) return this.#exists(address as QueueName) ? String(idOf(address)) : ''
    const topic = address.slice(2)
    const { bindings } = this.#broker.topics.list({ pattern: undefined, target: undefined, after: 0 })
    const targets = bindings.filter(
      ({ pattern, headers: required }) =>
        matchesTopic(pattern, topic) &&
        hasHeaders(required === undefined ? undefined : { kind: 'all', headers: { x: '1' } }, headers),
    )
    return idsText([...new Set(targets.map(({ target }) => idOf(target)))])
  }

  /** Adds or removes a binding. */
  #route(): void {
    const chance = this.#chance
    const { topics } = this.#broker
    const levels = Array.from({ length: chance.int(1, 2) }, () => chance.pick(['a', 'b', '*', '#']))
    const match = chance.hit(0.2) ? ({ kind: 'all', headers: { x: '1' } } as const) : undefined
    const { bindings } = topics.list({ pattern: undefined, target: undefined, after: 0 })
    if (bindings.length > 8 || (bindings.length > 2 && chance.hit(0.4))) {
      const { pattern, target, headers } = chance.pick(bindings)
      this.#use(target as QueueName)
      const former = headers === undefined ? undefined : ({ kind: 'all', headers: { x: '1' } } as const)
      this.#around.note(`unbind ${pattern} ${target}`)
      topics.unbind({ pattern: topicPattern(pattern), target: target as QueueName, match: former })
      this.count('unbound')
      return
    }
    const target = chance.pick(TARGETS)
    if (!this.#exists(target)) this.#ensure(target)
    this.#around.note(`bind ${levels.join('.')} ${target}`)
    topics.bind({ pattern: topicPattern(levels.join('.')), target, match })
    this.count('bound')
  }

  // --- consuming ---

  #consume(): void {
    const chance = this.#chance
    this.#members = this.#members.filter(({ isOver }) => !isOver)
    if (this.#members.length < MEMBERS_MAX && chance.hit(0.2)) {
      const name = chance.pick([...GROUPS, ...GROUPS, ...QUEUES, SPARE])
      this.#use(name)
      this.#join(name)
      return
    }
    if (this.#members.length === 0) return
    const member = chance.pick(this.#members)
    if (chance.hit(0.05)) this.#leave(member)
    else this.#settle(member)
  }

  #join(name: QueueName): void {
    const { id } = this.#broker.catalog.queue(name)
    let leased = this.#leased.get(id)
    if (leased === undefined) this.#leased.set(id, (leased = new Leased()))
    const isGroup = GROUPS.includes(name)
    const received = (): Received => {
      const at = `${id}:${this.#moves.get(id) ?? 0}`
      let known = this.#received.get(at)
      if (known === undefined) this.#received.set(at, (known = new Received(isGroup)))
      return known
    }
    const member = new Member(this, name, leased, received)
    const request = { queue: name, messages: this.#chance.pick([3, 50, 400]), bytes: 1 << 20 }
    this.#around.note(`subscribe ${name}`)
    member.subscription = this.#broker.leases.subscribe(request, 1, member)
    this.#members.push(member)
    if (isGroup) this.count('joined groups')
  }

  #leave(member: Member): void {
    const { leases } = this.#broker
    this.#around.note(`leave ${member.name}`)
    member.over()
    if (this.#chance.hit(0.5)) leases.unsubscribe(member.subscription, 'normal')
    else leases.disconnect([member.subscription])
  }

  #settle(member: Member): void {
    const chance = this.#chance
    const tags = [...member.held].filter(([, { isReceived }]) => isReceived)
    for (const [firstTag, { offset, record }] of tags.slice(0, 1 + chance.skewed(80))) {
      if (!member.held.has(firstTag)) continue
      const isAsk = member.name === ASKS
      if (isAsk) this.#reply(nameOf(record))
      const outcome =
        isAsk || chance.hit(0.85)
          ? OUTCOME.ack
          : chance.pick([OUTCOME.retry, OUTCOME.release, OUTCOME.deadLetter] as const)
      member.release(firstTag)
      const { queue } = member.subscription
      const received = this.#received.get(`${queue.id}:${this.#moves.get(queue.id) ?? 0}`)!
      const stale = this.#broker.leases.settle(member.subscription, [{ firstTag, count: 1, outcome }])
      if (stale.length > 0)
        throw new Violation(7, `the settle of offset ${offset} of ${member.name} is reported as stale`)
      this.count(`settled ${outcome}`)
      if (outcome === OUTCOME.ack) this.receive(true, () => received.acked.add(offset))
    }
  }

  // --- readers ---

  #read(): void {
    const chance = this.#chance
    const name = chance.pick(STREAMS)
    const { id, firstKept } = this.#broker.catalog.queue(name)
    let follower = this.#followers.get(name)
    if (follower?.streamId !== id) {
      follower = new Follower(this, id, firstKept)
      this.#followers.set(name, follower)
    }
    const { readers } = this.#broker
    if (follower.reader === undefined) {
      const from = follower.next
      const request = readRequest({
        name,
        from,
        follow: true,
        messages: chance.pick([10, 500]),
        bytes: 1 << 16,
      })
      follower.messages = follower.bytes = 0
      follower.reader = readers.open(request, 1, follower).reader
      this.count('readers opened')
    } else if (chance.hit(0.05)) {
      readers.close(follower.reader)
      follower.reader = undefined
    } else {
      readers.credit(follower.reader, follower.messages, follower.bytes)
      follower.messages = follower.bytes = 0
    }
  }

  // --- requests and replies ---

  #openMailbox(): void {
    const answer = (bytes: Uint8Array, start: number, end: number): void =>
      this.guard(() => this.#gotReply(Buffer.from(bytes.subarray(start, end)).toString()))
    this.#broker.mailboxes.open(BOX, { takesReplies: true, answer })
  }

  #ask(): void {
    const name = `r${++this.#names}`
    const ttlMs = this.#chance.int(100, 3_000)
    this.#asked.set(name, this.#broker.turn.nowMs + ttlMs)
    this.#sendNew(ASKS, [{ name, padding: 10, options: { ttlMs } }])
    this.count('asked')
  }

  #reply(name: string): void {
    const reply = Buffer.from(name)
    this.#handled.set(name, (this.#handled.get(name) ?? 0) + 1)
    this.#broker.mailboxes.reply(BOX, reply, 0, reply.length)
  }

  // A request can be handled again after a crash, and then it is answered again.
  #gotReply(name: string): void {
    const answered = (this.#answered.get(name) ?? 0) + 1
    this.#answered.set(name, answered)
    if (answered > (this.#handled.get(name) ?? 0))
      throw new Violation('reply', `request ${name} is answered ${answered} times; it was handled less often`)
    if (this.#asked.delete(name)) this.count('answered')
  }

  #timeOut(): void {
    for (const [name, deadlineMs] of this.#asked) {
      if (deadlineMs > this.#broker.turn.nowMs) continue
      if (this.#handled.has(name) && !this.#answered.has(name))
        throw new Violation('reply', `the reply to request ${name} is lost`)
      this.#asked.delete(name)
      this.count('requests timed out')
    }
  }

  // --- schedules and operators ---

  #schedule(): void {
    const chance = this.#chance
    const name = chance.pick(['s1', 's2', 's3'])
    const { schedules } = this.#broker
    if (chance.hit(0.15)) {
      schedules.delete(name)
      this.count('schedules deleted')
      return
    }
    const to = chance.hit(0.5) ? WORK : `#?${this.#topic()}`
    const missed = chance.pick(['all', 'all', 'once', 'skip'])
    const everyMs = chance.pick([TICK_MS, 2 * TICK_MS])
    const record = recordOf(`tick of ${name}`)
    schedules.ensure(scheduleRequest({ name, to, everyMs, missed, record, update: true }))
    this.count('schedules changed')
  }

  #administer(): void {
    const chance = this.#chance
    const kind = chance.random()
    if (kind < 0.45) this.#move(chance.pick(GROUPS))
    else if (kind < 0.65) this.#ensure(chance.pick([...STREAMS, ...GROUPS, WORK]))
    else if (kind < 0.7) this.#delete(chance.pick([...GROUPS, ...STREAMS, AUDIT]))
    else if (kind < 0.85) {
      if (!this.#exists(SPARE)) this.#ensure(SPARE)
    } else this.#broker.catalog.purge(chance.pick([WORK, AUDIT]))
  }

  #move(name: QueueName): void {
    const chance = this.#chance
    const group = this.#broker.catalog.queue(name)
    const stream = this.#broker.catalog.queue(group.source!.name)
    const to = chance.pick(['first', 'last', chance.int(stream.firstKept, stream.next)] as const)
    this.#around.note(`move ${name} ${to}`)
    this.#moves.set(group.id, (this.#moves.get(group.id) ?? 0) + 1)
    this.#broker.groups.move({ name, to })
    this.count('moved groups')
  }

  #delete(name: QueueName): void {
    const { catalog, streams, groups } = this.#broker
    this.#around.note(`delete ${name}`)
    if (GROUPS.includes(name)) groups.delete(name)
    else if (STREAMS.includes(name)) streams.delete(name)
    else catalog.delete(name)
    this.count('deleted')
  }

  // --- checks ---

  /** A queue is deleted as unused only if neither a call nor a message has used it for its time. */
  noticed(event: string, details: object): void {
    if (event !== 'unused queue deleted') return
    const { nowMs } = this.#broker.turn
    const { queue } = details as { readonly queue: string }
    const isConsumed = this.#members.some(({ name, isOver }) => name === queue && !isOver)
    const arrivals = [...(this.#around.ledger.written.queueNamed(queue)?.live.values() ?? [])].filter(
      ({ content }) => content.headers.some(([name]) => name === 'sluice-origin-queue'),
    )
    const usedMs = Math.max(this.#spareUsedMs, ...arrivals.map(({ timeMs }) => timeMs))
    if (queue !== SPARE || isConsumed || nowMs < usedMs + EXPIRES_MS)
      throw new Violation('expires', `${queue} was used ${nowMs - usedMs} ms ago and is deleted as unused`)
    this.count('unused queues deleted')
  }

  /** All ticks that are due have fired. */
  calm(): void {
    const { nowMs } = this.#broker.turn
    for (const { name, nextTicksMs, error } of this.#broker.schedules.list('', 100).schedules)
      if (error === null && nextTicksMs[0] !== undefined && nextTicksMs[0] <= nowMs)
        throw new Violation('schedule', `the tick of ${name} at ${nextTicksMs[0]} has not fired at ${nowMs}`)
  }

  ending(): void {
    const { broker } = this.#around
    broker.turn.begin()
    for (const member of this.#members) if (!member.isOver) this.#leave(member)
    for (const { name } of broker.schedules.list('', 100).schedules) {
      this.count('ticks', broker.schedules.delete(name).fired)
    }
    for (const follower of this.#followers.values())
      if (follower.reader !== undefined) {
        broker.readers.close(follower.reader)
        follower.reader = undefined
      }
    for (const name of STREAMS) this.#try(() => this.#readOn(name))
  }

  // Reads on with much credit.
  #readOn(name: QueueName): void {
    const follower = this.#followers.get(name)
    if (follower === undefined || follower.streamId !== this.#broker.catalog.queue(name).id) return
    const request = readRequest({ name, from: follower.next, follow: true, messages: 60_000, bytes: 1 << 26 })
    follower.reader = this.#broker.readers.open(request, 1, follower).reader
  }

  /** At the end everything has been answered, and nothing temporary is left. */
  atRest(): void {
    this.#timeOut()
    if (this.#unanswered.size > 0)
      throw new Violation(16, `${this.#unanswered.size} publishes are not answered`)
    if (this.durable.queueNamed(SPARE) !== undefined)
      throw new Violation('expires', `${SPARE} is not used any more and is not deleted`)
    const asks = this.durable.queueNamed(ASKS)?.live.size ?? 0
    if (asks > 0 || this.#asked.size > 0) throw new Violation('reply', `${asks} requests are left`)
    for (const [name, queues] of this.#arrivals) {
      const possible = this.#possible.get(name)
      if (possible !== undefined && !possible.includes(idsText(queues)))
        throw new Violation(
          9,
          `${name} came to the queues ${idsText(queues)}, not to ${possible.join(' or ')}`,
        )
    }
    for (const [name, follower] of this.#followers) if (follower.reader !== undefined) follower.checkEnd(name)
  }
}

function idsText(ids: readonly number[]): string {
  return ids.toSorted((a, b) => a - b).join()
}

function recordOf(text: string): Uint8Array {
  const payload = Buffer.from(`${text}|`)
  const record = new Uint8Array(recordBytes({}, payload.length))
  record.set(payload, writeRecordHead(record, 0, {}, CONTENT_TYPE.text, payload.length))
  return record
}
