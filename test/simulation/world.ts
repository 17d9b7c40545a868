/**
 * One seeded run: a simulated clock, disk and network, the production log, broker and sessions, and clients that make
 * trouble. Only the world decides what happens next. Before each decision it waits until every JavaScript promise is
 * settled, so a seed always gives the same history.
 *
 * In a run the broker ends and restarts several times: by a loss of power, a kill, a failing disk or an orderly stop.
 * At the end the trouble stops (the run heals), the queues are drained, and everything is checked.
 */
import { MESSAGE_OVERHEAD_BYTES, SluiceError } from '@sluice/protocol'
import { crc32 } from 'node:zlib'
import { Broker } from '../../packages/server/src/broker/broker.js'
import type { Disk } from '../../packages/server/src/log/log.js'
import type { LogNotice } from '../../packages/server/src/log/notices.js'
import { SEGMENT_HEADER_BYTES } from '../../packages/server/src/log/segment.js'
import { Schedule } from '../../packages/server/src/queue/schedule.js'
import { PageTree } from '../../packages/server/src/state/page-tree.js'
import { Session } from '../../packages/server/src/session/session.js'
import { SESSION_DEFAULTS, type SessionSettings } from '../../packages/server/src/session/settings.js'
import { checkHistory, findingLines, violations, type HistoryEvent, type Report } from '../checker/history.js'
import { Administrator } from './administrator.js'
import { compareWithLog } from './agreement.js'
import { BoundedLog } from './bounded-log.js'
import { Attempts, messageName, nameOf } from './attempts.js'
import { Chance } from './chance.js'
import { characterOf, type Character } from './characters.js'
import type { Client, Surroundings } from './client.js'
import { Consumer } from './consumer.js'
import type { Defect } from './defect.js'
import { SimulatedDisk, type Fault, type Operation, type SimulatedDiskOptions } from './disk.js'
import { Intruder } from './intruder.js'
import { Ledger, type LedgerState } from './ledger.js'
import { Link } from './link.js'
import { Model } from './model.js'
import { checkOrder, ordered } from './order.js'
import { Producer } from './producer.js'
import { compareRecovered } from './recovery.js'
import { TappedLog, Taps, type Listening, type LogListening } from './taps.js'
import { SimulationFailure, Trace, Violation } from './trace.js'
import { Conversation, Witness } from './witness.js'

// The bound is low, so that a few scheduled messages already fill the near part of a schedule.
Schedule.nearMax = 8

export interface WorldOptions {
  readonly seed: number
  /** Number of restarts of the broker, and number of steps before each restart. */
  readonly lives?: number
  readonly steps?: number
  readonly defect?: Defect
  /**
   * Whether the only trouble of the run is that the broker's process is stopped from time to time, for seconds or for
   * hours.
   */
  readonly onlyStalls?: boolean
  /** Called between steps after the disk was used; it may read images of the disk, and must not change the disk. */
  readonly onDiskUse?: (world: World) => Promise<void>
  /** The test file that can run this seed again. */
  readonly file?: string
}

/** The events of a run, so that a test can assert that something happened. */
export interface WorldReport {
  readonly seed: number
  readonly hash: number
  readonly events: number
  readonly counts: ReadonlyMap<string, number>
  readonly history: Report
}

type Ending = 'power' | 'kill' | 'close' | 'fault'

interface Sleeper {
  readonly atMs: number
  readonly wake: () => void
}

/** Interval at which sessions are ticked; the listener uses the same. */
const TICK_MS = 50
const LINGER_MS = 1_000
/** The use of the log is recounted once in this many events. */
const AUDITED_EVENTS = 4
const HOUR_MS = 3_600_000
const HEALING_STEPS_MAX = 150_000
const SLACK_MS = 200
/** Maximum number of seconds until a broker that waits for space notices that its disk has some. */
const LOOKS_MAX = 5
/** The broker must be idle within this time. After that it is observed for the same time. */
const REST_SECONDS = 60

/** A client that numbers its batches and sends unanswered ones again. */
export interface Sender {
  readonly name: string
  readonly identityText: string
  readonly lowestUnanswered: number
}

export class World implements Surroundings, Listening, LogListening {
  readonly seed: number
  readonly chance: Chance
  readonly trace = new Trace()
  readonly ledger: Ledger
  readonly attempts = new Attempts()
  readonly history: HistoryEvent[] = []
  readonly model: Model
  readonly queueNames: readonly string[]
  readonly #characters: ReadonlyMap<string, Character>
  /** Whether the queues have only the simplest options. */
  readonly isPlain: boolean
  readonly segmentBytes: number
  /** What fits in a segment, or less in every fourth world. */
  readonly entryBytesMax: number
  readonly messageBytesMax: number
  /** Like EXCESS_MAX, but low, so that even a small excess over a lowered limit is evicted over several turns. */
  readonly excessMax = 4
  readonly batchBytesMax: number
  readonly heartbeatMs: number
  readonly counts = new Map<string, number>()
  readonly #copies = new Set<string>()
  /** Names of accepted messages of producers, by queue, in the order of the log. */
  readonly #accepted = new Map<number, string[]>()
  #isStopping = false
  nowMs = 1_700_000_000_000
  /**
   * The broker's clock minus the world's; it changes when the clock is set between two boots, or when the log is ahead
   * of the clock.
   */
  #offMs = 0
  isHealing = false
  disk: SimulatedDisk
  broker: Broker | undefined
  log: TappedLog | undefined
  witness: Witness
  readonly producers: Producer[] = []
  readonly consumers: Consumer[] = []
  /** The latest time that the broker has seen in any run. */
  #latestMs = 0
  readonly #clients: Client[] = []
  readonly #options: WorldOptions
  readonly #settings: SessionSettings
  readonly #checkpointBytes: number
  readonly #blockBytes: number
  readonly #recentBytes: number
  readonly #kernelBytes: number
  readonly #diskWeight: number
  readonly #troubleWeight: number
  #links: Link[] = []
  #conversations = new Map<Link, { conversation: Conversation; silentMs: number; lastMs: number }>()
  #turns: (() => void)[] = []
  #sleepers: Sleeper[] = []
  #tickedMs = 0
  #linksMade = 0
  #violation: unknown
  #fatal: unknown
  #faultIsDue: ((operation: Operation) => Fault | undefined) | undefined
  #faulted = false
  #directoryFailed = false
  #diskUses = 0
  #fullUntilMs = 0
  #unreadableUntilMs = 0
  /**
   * Whether there is space again but the log has not noticed it yet. The log checks the space when a publish arrives,
   * and the check takes a while.
   */
  #isLowUnnoticed = false
  #roomSinceMs = 0
  #lowUntilMs = 0
  /** Number of operations that the disk completed. */
  #stepped = 0

  constructor(options: WorldOptions) {
    this.#options = options
    // A tree of a few pages has several levels.
    PageTree.entriesMax = 4
    this.seed = options.seed
    const chance = new Chance(options.seed)
    this.chance = chance
    this.isPlain = chance.hit(0.35)
    // An entry must have room for a page of a chunk, which is larger with the keys, ids and times of a thousand messages.
    const roomBytes = chance.pick(this.isPlain ? [16, 16, 20, 32, 64] : [96, 112, 128]) * 1024
    this.entryBytesMax = roomBytes - SEGMENT_HEADER_BYTES
    this.segmentBytes = options.seed % 4 === 3 ? 2 * roomBytes : roomBytes
    const messageBytesMost = Math.min(this.entryBytesMax / 4, 16 * 1024) - MESSAGE_OVERHEAD_BYTES
    this.messageBytesMax = chance.int(1000, messageBytesMost)
    this.batchBytesMax = messageBytesMost
    this.heartbeatMs = chance.int(300, 1500)
    this.queueNames = ['alpha', 'beta', 'gamma', 'delta'].slice(0, chance.int(1, 4))
    this.#characters = new Map(
      this.queueNames.map((name, i) => [
        name,
        characterOf(name, this.queueNames.slice(i + 1), this.isPlain || chance.hit(0.1), chance),
      ]),
    )
    this.#checkpointBytes = chance.int(4096, Math.min(roomBytes, 64 * 1024))
    const blockBytes = chance.pick([4, 16, 64, 300]) * 1024
    // An entry also ends with its block.
    this.#blockBytes = this.segmentBytes > roomBytes ? 300 * 1024 : blockBytes
    this.#recentBytes = blockBytes * chance.int(1, 6)
    this.#kernelBytes = chance.pick([2, 8, 64]) * 1024
    this.#diskWeight = chance.pick([4, 20, 40])
    this.#troubleWeight = chance.pick([0.1, 0.3, 0.6])
    this.#settings = {
      ...SESSION_DEFAULTS,
      serverVersion: 'simulated',
      heartbeatMs: this.heartbeatMs,
      handshakeMs: 2_000,
      inFlightBytesMax: chance.pick([4, 64, 1024]) * 1024,
      outboundBytesSoft: chance.int(2, 32) * 1024,
      outboundBytesHard: 256 * 1024,
      stalledMs: 1_000,
    }
    this.disk = new SimulatedDisk(this.#diskOptions())
    this.ledger = new Ledger(
      ({ queue, record, why }) =>
        this.history.push({ kind: 'gone', queue, message: messageName(queue, record), why }),
      (queueId, records) => {
        const names = this.#accepted.get(queueId) ?? []
        this.#accepted.set(queueId, names)
        for (const record of records) names.push(nameOf(record))
      },
    )
    this.model = new Model({
      dueMs: (queueId, offset) => this.#dueMs(queueId, offset),
      hasMoreExpired: (name) => this.broker?.catalog.queue(name).hasMoreExpired === true,
      diskMayBeLow: () => this.#diskMayBeLow(),
      copied: (queue, record) => this.#copied(queue, record),
      stepBytesMax: this.entryBytesMax / 4,
      excessMax: this.excessMax,
    })
    this.witness = new Witness(this.ledger, this.model, this.attempts)
    this.#clients.push(new Administrator('admin', this))
    for (let i = chance.int(1, 4); i > 0; i--) {
      const producer = new Producer(`p${i}`, this, chance.hit(0.4))
      this.producers.push(producer)
      this.#clients.push(producer)
    }
    for (let i = chance.int(1, 4); i > 0; i--) {
      const consumer = new Consumer(`c${i}`, this)
      this.consumers.push(consumer)
      this.#clients.push(consumer)
    }
    if (chance.hit(0.3)) this.#clients.push(new Intruder('x1', this))
  }

  /** The broker's clock. It never goes back while one broker process runs. */
  get brokerMs(): number {
    return this.nowMs + this.#offMs
  }

  /** The latest time that the broker has seen in any run. */
  get latestMs(): number {
    return Math.max(this.#latestMs, this.brokerMs)
  }

  get durable(): LedgerState {
    return this.ledger.durable
  }

  characterOf(queue: string): Character {
    return this.#characters.get(queue)!
  }

  // Called when the broker copied a message to another queue: no client sent it there, but a consumer may receive it.
  #copied(queue: string, record: Uint8Array): void {
    this.attempts.addCopy(queue, record)
    const message = messageName(queue, record)
    // A copy that a crash has undone is made again, with the same bytes.
    if (this.#copies.has(message)) return
    this.#copies.add(message)
    this.history.push({
      kind: 'attempt',
      queue,
      message,
      producer: 'the broker',
      body: String(crc32(record)),
      lane: null,
    })
  }

  // ------------------------------------------------------------------------------------------------ the whole run

  /** @throws SimulationFailure */
  async run(): Promise<WorldReport> {
    const { lives = 3, steps = 1500 } = this.#options
    try {
      await this.#boot()
      for (let life = 1; life <= lives; life++) {
        await this.#live(steps)
        await this.#end(this.chance.pick(['power', 'power', 'kill', 'close', 'fault'] as const))
        await this.#boot()
      }
      await this.#heal()
      const history = await this.#judge()
      return {
        seed: this.seed,
        hash: this.trace.hash,
        events: this.trace.count,
        counts: this.counts,
        history,
      }
    } catch (error) {
      throw new SimulationFailure(
        this.seed,
        this.#options.file ?? 'test/simulation/world.test.ts',
        error,
        this.trace,
      )
    }
  }

  async #live(steps: number): Promise<void> {
    for (let step = 0; step < steps; step++) {
      await this.#step()
      if (this.chance.hit(0.008)) await this.#calm()
      if (this.#fatal !== undefined) return
    }
  }

  // ---------------------------------------------------------------------------------------------------- one step

  async #step(): Promise<void> {
    const { chance } = this
    const trouble = this.isHealing ? 0 : this.#troubleWeight
    const flows = this.#flows()
    const weights = [
      this.#turns.length > 0 ? 20 : 0,
      this.disk.queued > 0 ? (this.isHealing ? 20 : this.#diskWeight) : 0,
      flows.length > 0 ? 40 : 0,
      20,
      8,
      trouble,
    ]
    let draw = chance.random() * weights.reduce((sum, weight) => sum + weight, 0)
    let kind = 0
    while (draw >= weights[kind]!) draw -= weights[kind++]!
    if (kind === 0) this.#turn()
    else if (kind === 1) this.#stepDisk()
    else if (kind === 2) chance.pick(flows)()
    else if (kind === 3) this.#act()
    else if (kind === 4) this.#pass(chance.skewed(60))
    else this.#trouble()
    await this.#settle()
  }

  /** Runs everything that can run without a decision of the world. */
  async #settle(): Promise<void> {
    await drained()
    this.#check()
    for (const { session } of this.#links) session?.invariants()
    if (this.trace.count % AUDITED_EVENTS === 0) this.broker?.auditUse()
    const { counts } = this.disk
    const uses =
      counts.write + counts.sync + counts.rename + counts.remove + counts.syncDirectory + this.#stepped
    if (uses !== this.#diskUses) {
      this.#diskUses = uses
      await this.#options.onDiskUse?.(this)
    }
  }

  #stepDisk(): void {
    if (this.disk.step()) this.#stepped++
    this.trace.note('disk')
  }

  #turn(): void {
    const turn = this.#turns.shift()!
    this.trace.note('turn')
    turn()
    this.model.publishing.turnEnded()
  }

  #act(): void {
    const client = this.chance.pick(this.#clients)
    if (client.stalledUntilMs <= this.nowMs) client.act()
  }

  /** Lets time pass, and runs everything that waits for a time. */
  #pass(ms: number): void {
    this.nowMs += ms
    const { broker } = this
    for (const sleeper of this.#sleepers.filter(({ atMs }) => atMs <= this.nowMs)) {
      this.#sleepers.splice(this.#sleepers.indexOf(sleeper), 1)
      sleeper.wake()
    }
    if (this.#fullUntilMs > 0 && this.nowMs >= this.#fullUntilMs) this.#unfill()
    if (this.#unreadableUntilMs > 0 && this.nowMs >= this.#unreadableUntilMs) this.#unfill()
    if (broker === undefined || this.#fatal !== undefined) return
    if (this.brokerMs >= broker.turn.nextDeadline && this.chance.hit(0.7)) broker.turn.tick()
    if (this.nowMs - this.#tickedMs >= TICK_MS) this.#tick(broker)
  }

  // As in the listener, a late tick knows how late it is, and sockets are read before any peer is declared silent.
  #tick(broker: Broker): void {
    const stallMs = Math.max(0, this.nowMs - this.#tickedMs - 2 * TICK_MS)
    const passedMs = this.nowMs - this.#tickedMs - stallMs
    this.#tickedMs = this.nowMs
    this.trace.note(`tick ${this.nowMs} ${stallMs}`)
    if (this.brokerMs >= broker.turn.nextDeadline) broker.turn.tick()
    for (const link of [...this.#links]) if (link.canReachServer) this.#toServer(link)
    broker.turn.begin()
    for (const link of [...this.#links]) {
      const heard = this.#conversations.get(link)!
      // Silence is not counted while the broker does not read.
      heard.silentMs = link.paused ? 0 : heard.silentMs + passedMs
      const wasOpen = link.session!.isOpen
      link.session!.tick(this.brokerMs, stallMs)
      // A peer that is silent for two heartbeats is disconnected.
      if (wasOpen && link.session!.isOpen && heard.silentMs > this.heartbeatMs * 2 + SLACK_MS) {
        throw new Violation(
          'heartbeat',
          `${link.address} was silent for ${heard.silentMs} ms but is still connected`,
        )
      }
      if (link.ended && this.nowMs - heard.lastMs > LINGER_MS + this.heartbeatMs * 2) this.#sever(link)
    }
    for (const client of this.#clients) if (client.stalledUntilMs <= this.nowMs) client.tick()
  }

  #dueMs(queueId: number, offset: number): number | undefined {
    const queue = this.model.state.queues.get(queueId)
    const chunk = queue === undefined ? undefined : this.broker?.catalog.queue(queue.name).chunkAt(offset)
    if (chunk === undefined || chunk.dead?.has(offset - chunk.base) === true) return undefined
    return chunk.dueAt(offset - chunk.base) || undefined
  }

  // ------------------------------------------------------------------------------------------------- the network

  connect(client: Client): { link: Link; conversation: Conversation } | undefined {
    const { broker } = this
    // A broker that is stopping has closed its port.
    if (broker === undefined || this.#isStopping || this.#fatal !== undefined) return undefined
    const link = new Link(++this.#linksMade, `${client.name}#${this.#linksMade}`, this.#kernelBytes)
    const conversation = new Conversation(client.identityText)
    const watch = this.witness.watch(conversation)
    link.onWrite = (bytes) => {
      this.trace.note(`${link.address} < ${bytes.length} ${crc32(bytes)}`)
      this.guard(() => watch(bytes))
    }
    const { defect } = this.#options
    const transport = defect?.transport?.(link) ?? link
    const session = new Session(broker, transport, this.#settings, this.brokerMs, (_session, why) =>
      this.#closed(link, why),
    )
    defect?.session?.(session)
    this.#taps.tapAnswers(session, conversation)
    link.session = session
    link.slow = !this.isHealing && this.#options.onlyStalls !== true && this.chance.hit(0.15)
    this.#links.push(link)
    this.#conversations.set(link, { conversation, silentMs: 0, lastMs: this.nowMs })
    this.trace.note(`${link.address} connects`)
    this.count('connections')
    return { link, conversation }
  }

  #closed(link: Link, why: SluiceError | undefined): void {
    this.count(`session closed: ${why?.code ?? 'no error'}`)
    this.trace.note(`${link.address} closed ${why?.code ?? ''}`)
    const { silentMs } = this.#conversations.get(link)!
    if (why?.code === 'HEARTBEAT_TIMEOUT' && silentMs <= this.heartbeatMs * 2 - TICK_MS) {
      this.guard(() => {
        throw new Violation(
          'heartbeat',
          `${link.address} is disconnected as silent, ${silentMs} ms after its last bytes`,
        )
      })
    }
  }

  /** The transfers that are possible now. */
  #flows(): (() => void)[] {
    const flows: (() => void)[] = []
    for (const link of this.#links) {
      const { client } = link
      if (link.canReachServer) flows.push(() => this.#toServer(link))
      else if (client === undefined && !link.frozen && link.toServer.length === 0)
        flows.push(() => this.#sever(link))
      if (link.canBeAccepted) {
        flows.push(() => {
          this.broker!.turn.begin()
          link.accept(this.chance)
        })
      }
      if (
        link.canReachClient &&
        (client as Client).stalledUntilMs <= this.nowMs &&
        (!link.slow || this.chance.hit(0.02))
      ) {
        flows.push(() => this.#toClient(link))
      }
    }
    return flows
  }

  #toServer(link: Link): void {
    const bytes = link.takeForServer(this.chance)
    this.trace.note(`${link.address} > ${bytes.length} ${crc32(bytes)}`)
    const heard = this.#conversations.get(link)!
    heard.silentMs = 0
    heard.lastMs = this.nowMs
    link.session!.receive(bytes, this.brokerMs)
  }

  #toClient(link: Link): void {
    const { client } = link
    if (client === undefined) return
    if (link.bytesForClient === 0) {
      this.#sever(link)
      return
    }
    client.receive(link.takeForClient(this.chance))
  }

  /** Breaks both directions, and both sides notice. */
  #sever(link: Link): void {
    this.trace.note(`${link.address} severed`)
    const { client } = link
    link.sever()
    this.#links = this.#links.filter((other) => other !== link)
    this.broker?.turn.begin()
    link.session?.disconnected()
    client?.closed(link)
  }

  // ------------------------------------------------------------------------------------------------------ trouble

  #trouble(): void {
    const { chance } = this
    if (this.#options.onlyStalls === true) {
      this.#make('broker stalled', undefined)
      this.#pass(chance.skewed(chance.hit(0.1) ? HOUR_MS : this.heartbeatMs * 10))
      return
    }
    // If clients are handling messages, the trouble often concerns one of their connections.
    const busy = this.#links.filter(({ client }) => client instanceof Consumer && client.isHandling)
    const among = busy.length > 0 && chance.hit(0.6) ? busy : this.#links
    const link = among.length > 0 ? chance.pick(among) : undefined
    const client = link?.client as Client | undefined
    const kind = chance.int(0, 9)
    if (kind <= 2 && link !== undefined) {
      this.#make('connection cut', link)
      this.#sever(link)
    } else if (kind === 3 && client !== undefined) {
      // The bytes that the client sent still arrive, followed by the end of the stream.
      this.#make('connection left', link)
      client.abandon()
    } else if (kind === 4 && link !== undefined) {
      // The connection is half open: the client reconnects elsewhere, and the broker does not notice.
      this.#make('half open', link)
      link.frozen = true
      client?.abandon()
    } else if (kind === 5 && client !== undefined) {
      this.#make('client stalled', link)
      client.stalledUntilMs = this.nowMs + chance.skewed(this.heartbeatMs * 4)
    } else if (kind === 6) {
      // Packets arrive late.
      for (const frozen of this.#links) {
        if (!frozen.frozen || !chance.hit(0.5)) continue
        this.#make('thawed', frozen)
        frozen.frozen = false
      }
    } else if (kind === 7) {
      this.#make('broker stalled', undefined)
      this.#pass(chance.skewed(this.heartbeatMs * 6))
    } else if (kind === 8 && this.#fullUntilMs === 0 && chance.hit(0.3)) {
      this.#make('disk full', undefined)
      this.disk.capacityBytes = this.disk.usedBytes + chance.int(0, 1) * this.segmentBytes
      this.#fullUntilMs = this.nowMs + chance.skewed(3_000)
    } else if (kind === 9 && this.#unreadableUntilMs === 0 && chance.hit(0.3)) {
      // No file descriptor is free, and reads fail; nothing is damaged.
      this.#make('reads fail', undefined)
      this.#unreadableUntilMs = this.nowMs + chance.skewed(10_000)
    }
  }

  /** Whether a publish may be refused because the disk has little space. */
  #diskMayBeLow(): boolean {
    // The log checks at most once a second, and the publish that triggers the check is still refused.
    if (this.#isLowUnnoticed) {
      this.#lowUntilMs = this.nowMs + 3_000
      if (this.nowMs > this.#roomSinceMs + 1_000) this.#isLowUnnoticed = false
    }
    return (
      this.#fullUntilMs > 0 || this.#unreadableUntilMs > 0 || this.nowMs < this.#lowUntilMs || this.#faulted
    )
  }

  #make(what: string, link: Link | undefined): void {
    this.trace.note(`${what} ${link?.address ?? ''}`)
    this.count(what)
  }

  #unfill(): void {
    this.disk.capacityBytes = Number.POSITIVE_INFINITY
    this.trace.note('disk has room')
    this.#fullUntilMs = 0
    this.#unreadableUntilMs = 0
    this.#isLowUnnoticed = true
    this.#roomSinceMs = this.nowMs
  }

  // ----------------------------------------------------------------------------------------------- birth and death

  #taps = new Taps()

  #diskOptions(): SimulatedDiskOptions {
    return { random: this.chance.random, mode: 'queued', fault: (operation) => this.#fault(operation) }
  }

  #fault(operation: Operation): Fault | undefined {
    const fault = this.#faultIsDue?.(operation)
    if (fault !== undefined) {
      this.#faulted = true
      if (operation.kind === 'syncDirectory') this.#directoryFailed = true
      this.trace.note(`fault ${operation.kind} ${operation.name}`)
      return fault
    }
    if (this.#unreadableUntilMs > 0) {
      if (operation.kind === 'open') return { error: 'EMFILE' }
      if (operation.kind === 'read') return { error: 'EIO' }
    }
    if (operation.kind === 'rename' && operation.name.endsWith('.segment')) this.count('segments recycled')
    return this.chance.hit(0.03) ? { slow: true } : undefined
  }

  /** Opens a log on this disk with the options of the broker's log. */
  openLog(disk: Disk): BoundedLog {
    const { defect } = this.#options
    const options = {
      disk: defect?.disk?.(disk) ?? disk,
      segmentBytes: this.segmentBytes,
      lowFreeBytes: 0,
      now: () => this.brokerMs,
      random32: () => 0x5eed_0000 + this.seed,
      sleep: (ms: number) =>
        new Promise<void>((wake) => this.#sleepers.push({ atMs: this.nowMs + ms, wake })),
      onNotice: (notice: LogNotice) => this.count(`log ${notice.kind}`),
    }
    return new BoundedLog(options, this.entryBytesMax)
  }

  async #boot(): Promise<void> {
    const { defect } = this.#options
    this.#turns = []
    this.#sleepers = []
    this.#fatal = undefined
    this.#faulted = false
    this.#directoryFailed = false
    const taps = new Taps()
    this.witness.isDead = false
    await defect?.beforeOpen?.(this.disk)
    const files = this.openLog(this.disk)
    const log = new TappedLog(defect?.log?.(files) ?? files, this)
    this.log = log
    const wasClosed = (): boolean => this.ledger.written.closed
    let afterClose = true
    const broker = await this.#drive(
      Broker.open({
        log,
        now: () => this.brokerMs,
        continueFrom: (timeMs) => {
          this.#offMs += Math.max(0, timeMs - this.brokerMs)
        },
        random: this.chance.random,
        defer: (turn) => this.#turns.push(turn),
        onFatal: (error) => this.#failed(error),
        onNotice: (event, details) => this.#noticed(event, details),
        messageBytesMax: this.messageBytesMax,
        excessMax: this.excessMax,
        dueMax: 2,
        blocks: {
          blockBytes: this.#blockBytes,
          recentBytes: this.#recentBytes,
          coldBytes: 64 * 1024,
          readAheadBytes: 8 * 1024,
        },
        checkpointBytes: this.#checkpointBytes,
        observer: taps,
      }),
      () => {
        // Until the boot mark is written, the log ends as the previous run left it.
        if (log.bounds !== undefined && this.ledger.written.lsn < log.bounds.nextLsn) afterClose = wasClosed()
      },
    )
    if (this.#fatal !== undefined)
      throw new Violation('recovery', `the broker failed while it started: ${textOf(this.#fatal)}`)
    this.count(files.recovery.tail === undefined ? 'tail unknown' : `tail ${files.recovery.tail}`)
    if (broker.status.afterCrash === afterClose)
      throw new Violation(22, `after ${afterClose ? 'a stop' : 'a crash'} the broker assumes the opposite`)
    defect?.broker?.(broker)
    const { afterCrash } = broker.status
    this.model.recover(this.ledger.written, afterCrash, broker.turn.nowMs, this.latestMs)
    compareRecovered(broker, log, this.ledger.written, afterCrash, this.latestMs, (identity) =>
      this.lowestUnanswered(identity),
    )
    broker.audit()
    taps.attach(broker, this)
    this.#taps = taps
    this.broker = broker
    this.#tickedMs = this.nowMs
    this.model.state.boot = broker.boot
    this.trace.note(`boot ${broker.boot} entries ${broker.status.entries}`)
    this.count('boots')
    if (log.bounds!.checkpoint !== undefined) this.count('recovered from a checkpoint')
    if (broker.status.cutBytes > 0) this.count('torn tail cut')
  }

  /** Lets the disk work until `work` is done. */
  async #drive<T>(work: Promise<T>, look = (): void => {}): Promise<T> {
    let isDone = false
    const done = (): void => {
      isDone = true
    }
    work.then(done, done)
    for (let idle = 0; ;) {
      look()
      await this.#settle()
      look()
      if (isDone) return work
      if (this.disk.queued > 0) {
        this.#stepDisk()
        idle = 0
      } else if (this.#turns.length > 0) {
        this.#turn()
      } else {
        this.#pass(10)
        if (++idle > 1_000) throw new Violation(16, 'the broker waits for an event that never comes')
      }
    }
  }

  lowestUnanswered(identity: string): number {
    const senders: readonly Sender[] = [...this.producers, ...this.consumers]
    return senders.find(({ identityText }) => identityText === identity)?.lowestUnanswered ?? 1
  }

  async #end(ending: Ending): Promise<void> {
    const how = this.#fatal === undefined ? ending : 'fault'
    this.trace.note(`end ${how}`)
    this.count(`end ${how}`)
    if (how === 'fault') await this.#failDisk()
    else if (how === 'close') await this.#stop()
    // A file system stops after a failed write of its directory, so the machine must be restarted.
    const isPowerLost =
      how === 'power' ||
      this.#directoryFailed ||
      (how === 'fault' && this.chance.hit(0.5)) ||
      (how === 'close' && this.chance.hit(0.5))
    this.broker = undefined
    this.#isStopping = false
    this.#turns = []
    for (const link of [...this.#links]) {
      link.session = undefined
      this.#sever(link)
    }
    this.#faultIsDue = undefined
    if (this.#fullUntilMs > 0 || this.#unreadableUntilMs > 0) this.#unfill()
    this.#tallyLife()
    this.disk = isPowerLost
      ? this.disk.crash(this.chance.random, this.#diskOptions())
      : this.disk.kill(this.chance.random, this.#diskOptions())
    this.#diskUses = 0
    this.#stepped = 0
    this.nowMs += this.chance.skewed(5_000)
    this.#latestMs = this.latestMs
    if (this.chance.hit(0.2)) {
      this.#offMs += this.chance.pick([-1, 1]) * HOUR_MS
      this.count('clock set')
    }
  }

  /** Makes a write or sync fail. A batch that is not confirmed by the time of the failure is never confirmed. */
  async #failDisk(): Promise<void> {
    const { chance } = this
    const partial = chance.hit(0.3)
    this.#faultIsDue = ({ kind }) => {
      if (kind !== 'write' && kind !== 'sync' && kind !== 'syncDirectory') return undefined
      if (this.#faulted && chance.hit(0.5)) return undefined
      return partial && kind === 'write'
        ? { short: chance.int(0, 40) * 100 }
        : { error: chance.pick(['EIO', 'ENOSPC'] as const) }
    }
    // The world continues for a while, so that a wrong confirm can be sent and found.
    let after = 0
    for (let step = 0; step < 2_000 && after < 40; step++) {
      await this.#step()
      if (this.#fatal !== undefined) after++
    }
    if (this.#fatal !== undefined) this.count('log failed')
  }

  async #stop(): Promise<void> {
    const broker = this.broker!
    this.#isStopping = true
    broker.turn.begin()
    for (const link of [...this.#links]) link.session!.goodbye('The broker is stopping.')
    for (let step = this.chance.int(0, 60); step > 0; step--) await this.#step()
    if (this.#fatal !== undefined) return
    broker.turn.begin()
    for (const link of [...this.#links]) link.session!.end()
    for (let step = this.chance.int(0, 60); step > 0; step--) await this.#step()
    if (this.#fatal !== undefined) return
    for (const link of [...this.#links]) this.#sever(link)
    const isFull = this.#fullUntilMs > 0
    await this.#drive(broker.close())
    if (!this.ledger.durable.closed && this.#fatal === undefined && !isFull) {
      // An empty entry may follow the mark of the stop; it changes nothing.
      throw new Violation(22, 'the broker has stopped, but the log has no mark of the stop')
    }
  }

  #failed(error: unknown): void {
    this.#fatal = error
    this.witness.isDead = true
    this.trace.note(`fatal ${textOf(error)}`)
    const isDisk = error instanceof SluiceError && error.code === 'LOG_FAILED'
    if (!isDisk || !this.#faulted) this.#violation ??= error
  }

  #noticed(event: string, details: object): void {
    this.count(`notice ${event}`)
    // On an honest disk every stored byte is readable.
    if (event !== 'truncation failed' && event !== 'stopped without a mark')
      this.#violation ??= new Violation(
        16,
        `the broker reports ${event}: ${JSON.stringify(details, errorText)}`,
      )
  }

  guard(work: () => void): void {
    if (this.#violation !== undefined) return
    try {
      work()
    } catch (error) {
      this.#violation = error
    }
  }

  #check(): void {
    const violation = this.#violation
    if (violation !== undefined) throw violation instanceof Error ? violation : new Error(textOf(violation))
  }

  removed(queue: string): void {
    this.history.push({ kind: 'remove', queue, outcome: 'ok' })
  }

  count(what: string): void {
    this.counts.set(what, (this.counts.get(what) ?? 0) + 1)
  }

  // ------------------------------------------------------------------------------------------------ calm and the end

  /** Lets the broker finish everything that is under way, and compares the whole state. */
  async #calm(): Promise<void> {
    const { broker } = this
    if (broker === undefined) return
    this.trace.note('calm')
    broker.turn.tick()
    await this.#rest()
    // An entry can wait for a segment for which the disk has no space, and a delivery can wait for a read that is
    // repeated.
    const isWaiting = (): boolean =>
      this.#fatal !== undefined ||
      this.#fullUntilMs > 0 ||
      this.#unreadableUntilMs > 0 ||
      this.#sleepers.length > 0 ||
      this.ledger.written.lsn !== this.ledger.durable.lsn
    // After a full disk nothing is delivered until the broker has checked the space again.
    for (let looks = 0; broker.isBehind && !isWaiting(); looks++) {
      if (looks === LOOKS_MAX)
        throw new Violation(16, 'the broker waits for space although its disk has some')
      this.count('looked for room')
      this.#pass(1_000)
      await this.#rest()
    }
    if (isWaiting()) return
    const hasRoom = !this.#isLowUnnoticed && this.nowMs >= this.#lowUntilMs && !this.#faulted
    this.model.calm(this.brokerMs, hasRoom)
    // A request for the counters makes the broker notice expired messages.
    broker.catalog.list('', Infinity)
    await this.#rest()
    if (isWaiting()) return
    compareWithLog(this.model.state, this.ledger.durable)
    broker.audit()
    this.#checkLive(broker)
    broker.catalog.list('', Infinity)
    this.#check()
  }

  // Live bytes are those of every batch with at least one message left, as it was copied last.
  #checkLive(broker: Broker): void {
    let bytes = 0
    for (const queue of this.ledger.durable.queues.values()) {
      const bases = new Set([...queue.live.values()].map(({ batchBase }) => batchBase))
      for (const base of bases) bytes += queue.batchBytes.get(base)!
    }
    const { liveBytes } = broker.usage()
    if (liveBytes !== bytes)
      throw new Violation(6, `the broker counts ${liveBytes} live bytes; its live batches have ${bytes}`)
  }

  /** Checks that at rest nothing is written and no timer wakes the broker without need. */
  async #restForGood(): Promise<void> {
    const broker = this.broker!
    for (const link of [...this.#links]) this.#sever(link)
    const restFor = async (seconds: number): Promise<number> => {
      const endMs = this.nowMs + seconds * 1_000
      let wakes = 0
      while (this.nowMs < endMs && this.#fatal === undefined) {
        const dueMs = Math.max(1, broker.turn.nextDeadline - this.brokerMs)
        if (dueMs < 1_000) wakes++
        this.nowMs += Math.min(1_000, dueMs)
        broker.turn.tick()
        await this.#rest()
      }
      return wakes
    }
    await restFor(REST_SECONDS)
    const { lsn } = this.ledger.written
    const wakes = await restFor(REST_SECONDS)
    this.#check()
    const more = this.ledger.written.lsn - lsn
    if (more > 0)
      throw new Violation('rest', `${more} entries were written in ${REST_SECONDS} seconds at rest`)
    if (wakes > 0) throw new Violation('rest', `the broker woke up ${wakes} times in ${REST_SECONDS} seconds`)
    this.#checkLive(broker)
    this.count('rests')
  }

  async #rest(): Promise<void> {
    for (let rounds = 0; this.#turns.length > 0 || this.disk.queued > 0; rounds++) {
      if (rounds > 5_000) throw new Violation(16, 'the broker never comes to rest')
      if (this.#turns.length > 0) this.#turn()
      else this.#stepDisk()
      await this.#settle()
      if (this.#fatal !== undefined) return
    }
  }

  async #heal(): Promise<void> {
    this.isHealing = true
    this.trace.note('heal')
    for (const link of [...this.#links]) {
      link.frozen = false
      link.slow = false
    }
    for (const client of this.#clients) client.stalledUntilMs = 0
    for (let step = 0; ; step++) {
      await this.#step()
      if (step % 50 === 0 && this.#isDrained()) break
      if (step % 500 === 499) this.#leap()
      if (step > HEALING_STEPS_MAX)
        throw new Violation(
          'stuck',
          `not drained after ${HEALING_STEPS_MAX} steps: ${this.#clients
            .filter((client) => !client.isDone)
            .map(({ name }) => name)
            .join()} are not done; ${JSON.stringify(this.broker!.catalog.list('', Infinity).queues.map(({ name, ready, scheduled, leased }) => ({ name, ready, scheduled, leased })))}`,
        )
    }
    await this.#calm()
  }

  // If the clock was set back, scheduled messages can become due later than healing can wait.
  #leap(): void {
    const queues = this.broker?.catalog.list('', Infinity).queues ?? []
    // A ready message can be behind a retry of its key.
    const isWaiting = queues.every(({ leased }) => leased === 0) && !this.model.hasEligible
    if (isWaiting && queues.some(({ scheduled }) => scheduled > 0)) this.#pass(HOUR_MS / 4)
  }

  #isDrained(): boolean {
    if (this.#fatal !== undefined) this.#check()
    if (!this.#clients.every((client) => client.isDone)) return false
    return this.broker!.catalog.list('', Infinity).queues.every(
      ({ ready, scheduled, leased }) => ready + scheduled + leased === 0,
    )
  }

  async #judge(): Promise<Report> {
    for (const { name, ready, scheduled, leased, dead } of this.broker!.catalog.list('', Infinity).queues) {
      this.history.push({ kind: 'end', queue: name, left: ready + scheduled + leased, dead })
    }
    for (const name of ['nowhere', ...this.queueNames]) {
      if (!this.model.state.names.has(name)) this.history.push({ kind: 'end', queue: name, left: 0, dead: 0 })
    }
    const { publishing, rescheduledNames } = this.model
    const { decidedAgain } = publishing.results
    this.counts.set('in order', checkOrder(this.history, this.#accepted, decidedAgain))
    const report = checkHistory(ordered(this.history, decidedAgain, rescheduledNames))
    const wrong = violations(report)
    if (wrong.length > 0) throw new Violation(wrong[0]!.verdict, findingLines(wrong))
    await this.#restForGood()
    await this.#stop()
    this.#tallyLife()
    this.broker = undefined
    this.#turns = []
    this.disk = this.disk.crash(this.chance.random, this.#diskOptions())
    await this.#boot()
    this.#tally()
    return report
  }

  /** Adds the counts of the broker process that has ended. */
  #tallyLife(): void {
    const { log } = this
    for (const [what, count] of Object.entries(log?.counts ?? {}))
      this.counts.set(what, (this.counts.get(what) ?? 0) + count)
  }

  #tally(): void {
    const { durable } = this.ledger
    const add = (what: string, more: number): void => {
      this.counts.set(what, (this.counts.get(what) ?? 0) + more)
    }
    add('crash blame', this.model.state.counts.charged + this.model.state.counts.suspected)
    add('directories', durable.directories)
    add('state pages', durable.pages)
    add('relocated batches', durable.relocated)
    add('sparse copies', durable.sparse)
    add('steps in the log', durable.atomics)
    add('segments begun', Math.floor(durable.nextPosition / this.segmentBytes))
    for (const [what, count] of Object.entries(this.model.state.counts)) add(what, count)
    for (const [what, count] of Object.entries(this.witness.counts))
      if (typeof count === 'number') add(`witnessed ${what}`, count)
    for (const [code, count] of this.witness.counts.errors) add(`error ${code}`, count)
  }
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : JSON.stringify(error)
}

function errorText(_name: string, value: unknown): unknown {
  return value instanceof Error ? value.message : value
}

/** Resolves when every promise that needs no step of the world is settled. */
function drained(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

/** @throws SimulationFailure */
export function runWorld(options: WorldOptions): Promise<WorldReport> {
  return new World(options).run()
}
