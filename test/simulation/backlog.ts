/**
 * One seeded run with long backlogs: queues of several chunks, many of which are cold, on a log with small segments, a
 * tree of pages with small nodes, and few chunks kept in memory. The broker loses power, is killed or stops, at any use
 * of the disk, and starts again. What happens in the run is decided by its traffic: long backlogs of plain queues
 * (backlog-traffic.ts), or topics, streams, groups and schedules (routed-traffic.ts). See world.ts for runs with connections
 * and with every option of a message.
 *
 * After every step the use of the segments and the tree of pages are recounted. After every start the queues are
 * compared with the log. In the end nothing more may be written, whatever is waiting, scheduled, dead, cold or retained;
 * a replay finds what was retained; and the queues are drained.
 */
import { OUTCOME, type QueueName } from '@sluice/protocol'
import { Broker } from '../../packages/server/src/broker/broker.js'
import type { Disk, Log } from '../../packages/server/src/log/log.js'
import { SEGMENT_HEADER_BYTES } from '../../packages/server/src/log/segment.js'
import { Contents } from '../../packages/server/src/queue/contents.js'
import { CHUNK_MESSAGES, type Consumer } from '../../packages/server/src/queue/index.js'
import { Source } from '../../packages/server/src/queue/source.js'
import { ColdChunks } from '../../packages/server/src/state/cold-chunks.js'
import { PageTree } from '../../packages/server/src/state/page-tree.js'
import { Replay } from '../../packages/server/src/state/replay.js'
import { isExpired } from '../rules/message.js'
import { sameBytes, splitRecords } from './attempts.js'
import { COPIES, LONG, Traffic, type BacklogClients, type BacklogSurroundings } from './backlog-traffic.js'
import { BoundedLog } from './bounded-log.js'
import { Chance } from './chance.js'
import type { Defect } from './defect.js'
import { otherLog, replaced } from './defects.js'
import { SimulatedDisk, type SimulatedDiskOptions } from './disk.js'
import { Ledger, neededBytes, type LedgerMessage, type LedgerQueue, type LedgerState } from './ledger.js'
import { contentOf } from './record.js'
import { compareRecovered } from './recovery.js'
import { SimulationFailure, Trace, Violation } from './trace.js'

export interface BacklogOptions {
  readonly seed: number
  readonly defect?: Defect
  readonly lives?: number
  readonly steps?: number
  /** The clients of the run. Default: `Traffic`. */
  readonly traffic?: (around: BacklogSurroundings) => BacklogClients
  /** Called between steps after the disk was used; it may read images of the disk, and must not change the disk. */
  readonly onDiskUse?: (world: Backlog) => Promise<void>
  readonly file?: string
}

export interface BacklogReport {
  readonly hash: number
  readonly events: number
  readonly counts: ReadonlyMap<string, number>
}

const REST_SECONDS = 60
const LIVES = 3
const STEPS = 500
const CALLER = { label: 'an operator', isOpen: true }
const DRAINED_MAX = 60_000

export class Backlog implements BacklogSurroundings {
  readonly seed: number
  readonly chance: Chance
  readonly ledger: Ledger = new Ledger(undefined, (queueId, records) =>
    this.guard(() => this.traffic.accepted?.(queueId, records)),
  )
  readonly counts = new Map<string, number>()
  readonly batchSizes: readonly number[]
  readonly segmentBytes: number
  readonly entryBytesMax: number
  nowMs = 1_700_000_000_000
  disk: SimulatedDisk
  readonly traffic: BacklogClients
  readonly trace = new Trace()
  readonly #options: BacklogOptions
  readonly #checkpointBytes: number
  readonly #blockBytes: number
  #broker: Broker | undefined
  #turns: (() => void)[] = []
  #diskUses = 0
  #stepped = 0
  #violation: Error | undefined
  /** "queue id:offset" of every message whose ack is durable. */
  readonly #acked = new Set<string>()

  constructor(options: BacklogOptions) {
    this.#options = options
    this.seed = options.seed
    const chance = new Chance(options.seed ^ 0xbac_106)
    this.chance = chance
    PageTree.entriesMax = chance.pick([4, 4, 6, 12])
    ColdChunks.headChunks = chance.int(0, 2)
    // All chunks of one batch must be in memory at the same time.
    ColdChunks.warmMax = chance.pick([6, 8, 16])
    Replay.headChunks = chance.pick([2, 2, 3])
    const roomBytes = chance.pick([64, 96, 128]) * 1024
    this.entryBytesMax = roomBytes - SEGMENT_HEADER_BYTES
    this.segmentBytes = options.seed % 4 === 3 ? 2 * roomBytes : roomBytes
    this.batchSizes = chance.pick([[100, 500], [200, 700, 1000], [1024], [400, 1200], [60, 1000]])
    this.#checkpointBytes = chance.pick([12, 24, 48]) * 1024
    this.#blockBytes = chance.pick([8, 32, 300]) * 1024
    this.disk = new SimulatedDisk(this.#diskOptions())
    this.traffic = options.traffic?.(this) ?? new Traffic(this)
  }

  get broker(): Broker {
    return this.#broker!
  }

  count(what: string, by = 1): void {
    this.counts.set(what, (this.counts.get(what) ?? 0) + by)
  }

  note(event: string): void {
    this.trace.note(event)
  }

  guard(work: () => void): void {
    if (this.#violation !== undefined) return
    try {
      work()
    } catch (error) {
      this.#violation = error as Error
    }
  }

  /** @throws SimulationFailure */
  async run(): Promise<BacklogReport> {
    const { lives = LIVES, steps = STEPS, file = 'test/simulation/backlog.test.ts' } = this.#options
    const stopCounting = this.#countCold()
    const cool = this.seed % 4 === 0 ? undefined : coolAtOnce()
    try {
      await this.#boot()
      for (let life = 1; life <= lives; life++) {
        await this.#live(steps)
        await this.#end(this.chance.pick(['power', 'power', 'kill', 'close'] as const))
        await this.#boot()
      }
      await this.#live(steps)
      await this.#judge()
      return { hash: this.trace.hash, events: this.trace.count, counts: this.counts }
    } catch (error) {
      throw new SimulationFailure(this.seed, file, error, this.trace)
    } finally {
      cool?.()
      stopCounting()
    }
  }

  // Counts the chunks that leave memory and come back, also those of the brokers on images.
  #countCold(): () => void {
    const count = (what: string): void => this.count(what)
    const restore = [
      replaced(Contents.prototype, (before) => ({
        makeCold(this: Contents, chunk) {
          const isCold = before.makeCold.call(this, chunk)
          if (isCold) count(chunk.isOnlyRetained ? 'made cold as retained' : 'made cold')
          return isCold
        },
      })),
      replaced(Source.prototype, (before) => ({
        makeWarm(this: Source, chunk) {
          before.makeWarm.call(this, chunk)
          count(chunk.isOnlyRetained ? 'read back as retained' : 'read back')
        },
      })),
    ]
    return () => {
      for (const one of restore) one()
    }
  }

  // --- steps ---

  async #live(steps: number): Promise<void> {
    for (let step = 0; step < steps; step++) await this.#step()
    await this.#calm()
  }

  async #step(): Promise<void> {
    const { chance } = this
    const draw = chance.random()
    if (draw < 0.35 && this.#turns.length > 0) this.#turn()
    else if (draw < 0.7 && this.disk.queued > 0) this.#stepDisk()
    else if (draw < 0.92) this.guard(() => this.traffic.act())
    else this.#pass(chance.skewed(400))
    await this.#settle()
  }

  #turn(): void {
    this.trace.note('turn')
    this.guard(this.#turns.shift()!)
  }

  #stepDisk(): void {
    this.trace.note('disk')
    if (this.disk.step()) this.#stepped++
  }

  #pass(ms: number): void {
    this.nowMs += ms
    const { turn } = this.broker
    if (this.nowMs >= turn.nextDeadline) turn.tick()
  }

  /** Runs everything that needs no decision, then checks the law of usage. */
  async #settle(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve))
    this.#check()
    this.#broker?.auditUse()
    const { counts } = this.disk
    const uses =
      counts.write + counts.sync + counts.rename + counts.remove + counts.syncDirectory + this.#stepped
    if (uses === this.#diskUses) return
    this.#diskUses = uses
    await this.#options.onDiskUse?.(this)
  }

  #check(): void {
    if (this.#violation !== undefined) throw this.#violation
  }

  /** Lets the broker and its disk work until nothing is left to do. */
  async #rest(): Promise<void> {
    for (let rounds = 0, quiet = 0; quiet < 2; rounds++) {
      if (rounds > 20_000) throw new Violation(16, 'the broker never comes to rest')
      if (this.#turns.length > 0) this.#turn()
      else if (this.disk.queued > 0) this.#stepDisk()
      else quiet++
      if (this.#turns.length + this.disk.queued > 0) quiet = 0
      await this.#settle()
    }
  }

  async #drive<T>(work: Promise<T>): Promise<T> {
    let isDone = false
    const done = (): void => {
      isDone = true
    }
    work.then(done, done)
    for (let idle = 0; ;) {
      await this.#settle()
      if (isDone) return work
      if (this.#turns.length > 0) this.#turn()
      else if (this.disk.queued > 0) this.#stepDisk()
      else if (++idle > 1_000) throw new Violation(16, 'the broker waits for an event that never comes')
    }
  }

  // --- the start and the end of a broker ---

  #diskOptions(): SimulatedDiskOptions {
    return {
      random: this.chance.random,
      mode: 'queued',
      fault: () => (this.chance.hit(0.03) ? { slow: true } : undefined),
    }
  }

  /** Opens a broker on the disk; `turns` receives its turns. */
  open(
    disk: Disk,
    turns: (() => void)[],
    tap: (log: BoundedLog) => Log = (log) => log,
    isCurrent = false,
  ): { readonly broker: Promise<Broker>; readonly log: Log } {
    const options = {
      disk,
      segmentBytes: this.segmentBytes,
      lowFreeBytes: 0,
      now: () => this.nowMs,
      random32: () => 0x5eed_0000 + this.seed,
      sleep: () => new Promise<void>(() => {}),
    }
    const log = tap(new BoundedLog(options, this.entryBytesMax))
    const broker = Broker.open({
      log,
      now: () => this.nowMs,
      random: () => 0.5,
      defer: (turn) => turns.push(turn),
      onFatal: (error) => {
        this.#violation ??= error as Error
      },
      onNotice: (event, details) => {
        if (isCurrent) this.guard(() => this.traffic.noticed?.(event, details))
      },
      messageBytesMax: 4096,
      blocks: {
        blockBytes: this.#blockBytes,
        recentBytes: 2 * this.#blockBytes,
        coldBytes: 64 * 1024,
        readAheadBytes: 16 * 1024,
      },
      checkpointBytes: this.#checkpointBytes,
    })
    return { broker, log }
  }

  #tapped(inner: Log): Log {
    const { ledger } = this
    return otherLog(inner, {
      open: async () => {
        const bounds = await inner.open()
        this.guard(() => ledger.recovered(bounds.nextLsn - 1))
        return bounds
      },
      append: async (position, lsn, entry) => {
        this.guard(() => void ledger.begin(entry, position))
        await inner.append(position, lsn, entry)
        this.guard(() => {
          ledger.finish()
          for (const acked of ledger.durable.summary.acked) this.#acked.add(acked)
        })
      },
    })
  }

  async #boot(): Promise<void> {
    this.#turns = []
    const { defect } = this.#options
    const { broker, log } = this.open(
      this.disk,
      this.#turns,
      (files) => this.#tapped(defect?.log?.(files) ?? files),
      true,
    )
    const opened = await this.#drive(broker)
    this.#check()
    const { written } = this.ledger
    // The entry that the last broker was writing can have become durable.
    for (const acked of written.summary.acked) this.#acked.add(acked)
    const compared = compareRecovered(
      opened,
      log,
      written,
      opened.status.afterCrash,
      this.nowMs,
      () => Infinity,
    )
    opened.audit()
    this.count('cold after a start', compared.coldChunks)
    this.#broker = opened
    this.traffic.brokerStarted(opened.boot)
    this.count('leases claimed', this.traffic.claim?.(opened) ?? 0)
    this.trace.note(`boot ${opened.boot}`)
  }

  async #end(how: 'power' | 'kill' | 'close'): Promise<void> {
    this.trace.note(`end ${how}`)
    this.count(`end ${how}`)
    const { boot } = this.broker
    if (how === 'close') await this.#drive(this.broker.close())
    this.traffic.brokerEnded(boot)
    this.#broker = undefined
    this.#turns = []
    this.disk =
      how === 'kill'
        ? this.disk.kill(this.chance.random, this.#diskOptions())
        : this.disk.crash(this.chance.random, this.#diskOptions())
    this.#diskUses = 0
    this.#stepped = 0
    this.nowMs += this.chance.skewed(2_000)
  }

  // --- checks ---

  /** Lets everything that is under way end, and compares the counters and the live bytes with the log. */
  async #calm(): Promise<void> {
    this.broker.turn.tick()
    await this.#rest()
    this.broker.audit()
    if (this.traffic.waiting > 0)
      throw new Violation(16, `${this.traffic.waiting} requests of operators are not answered`)
    this.count('cold when calm', this.broker.coldChunks())
    for (const { name, live, next, stream, group } of this.ledger.durable.queues.values()) {
      if (stream !== undefined || group !== undefined) continue
      this.broker.turn.begin()
      const { ready, scheduled, leased, dead, published } = this.broker.catalog.info(name as QueueName)
      const counted = ready + scheduled + leased + dead
      // Messages that have expired are not counted, even if the log still has them.
      const expired = [...live.values()].filter((message) => isExpired(message, this.nowMs)).length
      if (counted > live.size || counted < live.size - expired || published !== next)
        throw new Violation(
          6,
          `${name} counts ${ready + scheduled + leased + dead} of ${published} messages; the log has ${live.size} of ${next}`,
        )
    }
    this.traffic.calm?.()
    this.#check()
    const bytes = neededBytes(this.ledger.durable)
    const { liveBytes } = this.broker.usage()
    if (liveBytes !== bytes)
      throw new Violation(6, `the broker counts ${liveBytes} live bytes; a relocation would copy ${bytes}`)
  }

  async #judge(): Promise<void> {
    this.traffic.ending?.()
    await this.#standStill()
    this.guard(() => this.traffic.atRest?.())
    this.#check()
    await this.#checkReplays()
    await this.#end('close')
    await this.#boot()
    const drained = await drain(this.broker, this.ledger.written, () => this.#rest())
    this.count('drained', drained)
    await this.#calm()
    await this.#standStill()
    const { relocated, directories, pages, sharedBatches, sharedCopies } = this.ledger.durable
    this.count('shared batches', sharedBatches)
    this.count('copies of shared batches', sharedCopies)
    this.count('relocated batches', relocated)
    this.count('directories', directories)
    this.count('state pages', pages)
  }

  /** At rest nothing is written, whatever the queues hold. */
  async #standStill(): Promise<void> {
    const { broker } = this
    const restFor = async (seconds: number): Promise<void> => {
      for (let second = 0; second < seconds; second++) {
        this.nowMs += 1_000
        broker.turn.tick()
        await this.#rest()
      }
    }
    await restFor(REST_SECONDS)
    const { lsn } = this.ledger.written
    const { writtenBytes } = broker.usage()
    await restFor(REST_SECONDS)
    const more = broker.usage().writtenBytes - writtenBytes
    if (more > 0 || this.ledger.written.lsn !== lsn)
      throw new Violation('rest', `${more} bytes were written in ${REST_SECONDS} seconds at rest`)
    for (const { ready, scheduled, dead, retainedBytes } of broker.catalog.list('', Infinity).queues) {
      if (ready > 0) this.count('rests with ready messages')
      if (scheduled > 0) this.count('rests with scheduled messages')
      if (dead > 0) this.count('rests with dead messages')
      if (retainedBytes > 0) this.count('rests with retained messages')
    }
    if (broker.coldChunks() > 0) this.count('rests with cold chunks')
  }

  /**
   * Each message that was acknowledged while its queue kept everything is replayed, and no message is replayed twice. The
   * order, and which other messages are replayed, is not checked.
   */
  async #checkReplays(): Promise<void> {
    const { candidates } = this.traffic
    if (candidates === undefined) return
    for (const name of LONG) {
      const queue = this.ledger.durable.queueNamed(name)
      if (queue === undefined) continue
      const origins = await this.#replay(name)
      this.count('replayed', origins.length)
      const found = new Set(origins)
      if (found.size !== origins.length)
        throw new Violation('replay', `${origins.length - found.size} messages of ${name} are replayed twice`)
      for (const offset of origins)
        if (!this.#acked.has(`${queue.id}:${offset}`))
          throw new Violation('replay', `offset ${offset} of ${name} is replayed and was not acknowledged`)
      for (const offset of candidates.get(queue.id) ?? []) {
        if (!this.#acked.has(`${queue.id}:${offset}`)) continue
        if (!found.has(offset))
          throw new Violation('replay', `offset ${offset} of ${name} is retained and is not replayed`)
        this.count('retained and replayed')
      }
    }
  }

  /** Replays the queue and returns the offsets of the originals. */
  async #replay(name: QueueName): Promise<number[]> {
    const { broker, ledger } = this
    const from = ledger.durable.queueNamed(COPIES)!.next
    let cursor: string | undefined
    for (let pages = 0; ; pages++) {
      if (pages > 1_000) throw new Violation('replay', 'the replay does not end')
      broker.turn.begin()
      const request = {
        ...{ name, fromOffset: cursor === undefined ? 0 : undefined, fromMs: undefined, untilMs: undefined },
        ...{ limit: 1_000, cursor, filter: {}, to: COPIES, dryRun: false },
      }
      const page = await this.#drive(broker.replays.page(request, CALLER))
      if (page.error !== undefined) throw new Violation('replay', page.error.message)
      if (page.cursor === null) break
      cursor = page.cursor
    }
    await this.#rest()
    const origins: number[] = []
    for (const [offset, { record, content }] of ledger.durable.queueNamed(COPIES)!.live) {
      if (offset < from) continue
      const origin = Number(new Map(content.headers).get('sluice-origin-offset'))
      const original = ledger.durable.queueNamed(name)!
      if (original.live.has(origin) || Buffer.compare(contentOf(record).payload, content.payload) !== 0)
        throw new Violation('replay', `offset ${origin} of ${name} is replayed and still there`)
      origins.push(origin)
    }
    return origins
  }
}

/**
 * Acknowledges every message that can be delivered, and compares the deliveries with the log: each message once, with
 * unchanged bytes. `rest` lets the broker work until it is at rest. Returns the number of messages.
 */
export async function drain(
  broker: Broker,
  { queues, definitions }: LedgerState,
  rest: () => Promise<void>,
): Promise<number> {
  let drained = 0
  for (const queue of queues.values()) {
    if (queue.stream !== undefined) continue
    const { name } = queue
    const waiting = waitingIn(queue, queues)
    // A tick can fire, and messages that died before can move here.
    const mayArrive =
      definitions.size > 0 ||
      [...queues.values()].some(
        ({ options, live }) =>
          options['deadLetter'] === name && [...live.values()].some(({ dead }) => dead?.isMoving === true),
      )
    const { next } = queue.group === undefined ? queue : queues.get(queue.group.streamId)!
    const lastOfKey = new Map<string, number>()
    const held: number[] = []
    const wrong: Error[] = []
    const consumer: Consumer = {
      ...{ label: 'drain', address: 'drain', isReady: true, lost: () => {}, drained: () => {} },
      deliver: (_subscription, { run, firstTag, bytes, start, end }) => {
        for (const [index, record] of splitRecords(bytes, start, end).entries()) {
          const offset = run.offset + index
          const message = waiting.get(offset)
          held.push((firstTag + index) >>> 0)
          if (offset >= next && mayArrive) continue
          if (message === undefined || !sameBytes(message.record, record))
            wrong.push(new Violation(2, `offset ${offset} of ${name} is delivered twice or with other bytes`))
          waiting.delete(offset)
          const key = queue.group === undefined ? undefined : message?.content.key
          if (key !== undefined && message!.earlier === undefined) {
            const last = lastOfKey.get(key) ?? -1
            if (offset < last)
              wrong.push(
                new Violation(13, `offset ${offset} of ${name} is delivered after offset ${last} of its key`),
              )
            lastOfKey.set(key, offset)
          }
        }
      },
      ended: (_subscription, error) => {
        wrong.push(new Violation(2, `${name} cannot be drained: ${error.message}`))
      },
    }
    broker.turn.begin()
    const request = { queue: name as QueueName, messages: 1_000, bytes: 1 << 26 }
    const subscription = broker.leases.subscribe(request, 1, consumer)
    await rest()
    while (held.length > 0 && wrong.length === 0 && drained < DRAINED_MAX) {
      const items = held.splice(0).map((firstTag) => ({ firstTag, count: 1, outcome: OUTCOME.ack }))
      drained += items.length
      broker.turn.begin()
      broker.leases.settle(subscription, items)
      await rest()
    }
    if (wrong[0] !== undefined) throw wrong[0]
    const { nowMs } = broker.turn
    const isLater = ({ dueMs = 0 }: LedgerMessage): boolean => dueMs > nowMs
    // A message that waits for a retry blocks its key.
    const blocked = new Set([...waiting.values()].filter(isLater).map(({ content }) => content.key))
    for (const [offset, message] of waiting)
      if (
        !isLater(message) &&
        !isExpired(message, nowMs) &&
        (message.content.key === undefined || !blocked.has(message.content.key))
      )
        throw new Violation(1, `offset ${offset} of ${name} is not delivered`)
    broker.leases.unsubscribe(subscription, 'normal')
  }
  await rest()
  broker.audit()
  return drained
}

/** What a consumer must get: the messages of a queue or, of a group, also those that have not entered it yet. */
function waitingIn({ live, group, next }: LedgerQueue, queues: LedgerState['queues']): LedgerQueue['live'] {
  const waiting = new Map([...live].filter(([, { dead }]) => dead === undefined))
  if (group === undefined) return waiting
  const { retained } = queues.get(group.streamId)!
  for (const offset of waiting.keys()) if (!retained.has(offset)) waiting.delete(offset)
  for (const [offset, message] of retained)
    if (offset >= next && message.timeMs >= group.fromMs) waiting.set(offset, message)
  return waiting
}

/** @throws SimulationFailure */
export function runBacklog(options: BacklogOptions): Promise<BacklogReport> {
  return new Backlog(options).run()
}

// Chunks leave memory as soon as their pages are durable, so that short backlogs have cold chunks. Returns how to undo this.
function coolAtOnce(): () => void {
  return replaced(ColdChunks.prototype, () => ({
    written({ queue, number }) {
      const chunk = queue.heldChunk(number * CHUNK_MESSAGES)
      if (chunk === undefined) return
      if (chunk.isOnlyRetained || number >= queue.chunks.firstNumber + ColdChunks.headChunks)
        queue.makeCold(chunk)
    },
  }))
}
