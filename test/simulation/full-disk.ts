/**
 * A short history in which the disk becomes full after one of its steps and stays full. Then the stored messages are
 * drained one at a time, the broker ends in one of several ways and starts on the full disk, and at last there is space
 * again. The history runs once for every step, so that every state between two entries is tested. There is one client
 * and no network: only the broker, the log and the disk can fail.
 *
 * `reserved`: the file system keeps its size, and publishes fill it up to the reserve; every settle must then be
 * confirmed. `stuffed`: other files use every byte, including the reserve; settles may wait, and must continue once
 * there is space.
 */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  CONTENT_TYPE,
  OUTCOME,
  SluiceError,
  queueName,
  recordBytes,
  sealBatch,
  writeRecordHead,
} from '@sluice/protocol'
import { Broker, type Output } from '../../packages/server/src/broker/broker.js'
import { FileLog } from '../../packages/server/src/log/file-log.js'
import type { LogNotice } from '../../packages/server/src/log/notices.js'
import type { Log } from '../../packages/server/src/log/log.js'
import type { Consumer, Delivery, Subscription } from '../../packages/server/src/queue/index.js'
import type { Defect } from './defect.js'
import { SimulatedDisk, randomFrom } from './disk.js'
import { Violation } from './trace.js'

export type Filling = 'reserved' | 'stuffed'
/** How the broker ends while the disk is full; `none`: it runs until there is space again. */
export type FullEnding = 'none' | 'power' | 'kill' | 'close'

export type FullDiskDefect = Pick<Defect, 'log' | 'broker' | 'install'> & {
  /** Plants a bug: operations of the log that wait for space are never woken. */
  readonly neverWakes?: boolean
}

export interface FullDiskOptions {
  /** The disk becomes full after this step. */
  readonly fillAfter: number
  readonly filling: Filling
  readonly ending: FullEnding
  /** Size of the file system in segments. */
  readonly segments: number
  readonly defect?: FullDiskDefect
}

/** The events of a run, so that a test can assert that something happened. */
export interface FullDiskReport {
  published: number
  refused: number
  /** Messages whose settle was confirmed while the disk was full. */
  drained: number
  /** Whether a settle waited for space. */
  waited: boolean
  /** Whether the start on the full disk was refused. */
  refusedStart: boolean
  /** Settles that were confirmed without a further request once there was space. */
  resumed: number
  readonly notices: Map<string, number>
}

export const SEGMENT_BYTES = 16 * 1024
/** Number of steps of the history; the disk can become full after any of them. */
export const STEPS = 24
const STEP_MS = 25
/** Bytes of a body that is so small that the message, with its headers, takes less than the settle that removes it. */
const SMALL_BYTES = 160
/** Longest wait for anything when there is space, in simulated time. */
const PATIENCE_MS = 20_000
const WAITING_MS = 3_000
const REFUSED_MS = 30_000
const BEATS = 20
const Q = queueName('q')
const IDENTITY = '11'.repeat(16)

/** The answers of the broker, which reach the client once the disk has stored their effect. */
class Answers implements Output {
  confirmed = 0
  #sent = 0
  #waiting: { readonly gate: number; readonly count: number }[] = []
  readonly #confirm: (index: number) => void

  constructor(confirm: (index: number) => void) {
    this.#confirm = confirm
  }

  /** Adds an answer and returns its number. */
  add(): number {
    return this.#sent++
  }

  endTurn(gate: number): void {
    const covered = this.#waiting.at(-1)?.count ?? this.confirmed
    if (this.#sent > covered) this.#waiting.push({ gate, count: this.#sent })
  }

  sendDurable(durableLsn: number): boolean {
    while (this.#waiting.length > 0 && this.#waiting[0]!.gate <= durableLsn) {
      const { count } = this.#waiting.shift()!
      while (this.confirmed < count) this.#confirm(this.confirmed++)
    }
    return this.confirmed < this.#sent
  }
}

type Fate = 'unknown' | 'confirmed'

export class FullDisk {
  readonly report: FullDiskReport = {
    published: 0,
    refused: 0,
    drained: 0,
    waited: false,
    refusedStart: false,
    resumed: 0,
    notices: new Map(),
  }
  readonly #options: FullDiskOptions
  readonly #random = randomFrom(1)
  #disk: SimulatedDisk
  #nowMs = 1_700_000_000_000
  #turns: (() => void)[] = []
  #sleepers: { readonly atMs: number; readonly wake: () => void }[] = []
  #fatal: Error | undefined
  #broker: Broker | undefined
  #batches = 0
  /** For each message, by offset: whether its publish and its settle were confirmed. */
  readonly #published = new Map<number, Fate>()
  readonly #settled = new Map<number, Fate>()
  #answers = new Answers(() => {})
  #whenConfirmed: (() => void)[] = []

  constructor(options: FullDiskOptions) {
    this.#options = options
    this.#disk = new SimulatedDisk({ capacityBytes: options.segments * SEGMENT_BYTES })
  }

  /** @throws Violation */
  async run(): Promise<FullDiskReport> {
    const restore = this.#options.defect?.install?.()
    try {
      return await this.#run()
    } finally {
      restore?.()
    }
  }

  async #run(): Promise<FullDiskReport> {
    const { fillAfter, filling, ending } = this.#options
    if ((await this.#start()) === undefined)
      throw new Violation('full disk', 'a start on an empty disk was refused')
    this.#live.catalog.ensure({ name: Q, options: {}, update: false })
    for (let step = 0; step < fillAfter; step++) await this.#step(step)
    if (filling === 'reserved') await this.#fill()
    else {
      // Draining these takes more settles than fit into the rest of the existing segments.
      for (let i = 0; i < 5; i++) this.#publish(Array.from({ length: 20 }, () => SMALL_BYTES))
      await this.#pass(STEP_MS)
      this.#stuff()
    }
    const isReserved = filling === 'reserved'
    await this.#drain(isReserved ? 'half' : 'until it waits')
    if (ending !== 'none') {
      await this.#end(ending)
      if (!isReserved) this.#stuff()
      if ((await this.#start()) !== undefined) await this.#drain(isReserved ? 'half' : 'until it waits')
      else this.report.refusedStart = true
    }
    if (isReserved) {
      await this.#drain('all')
      await this.#publishesAgain()
    }
    await this.#makeRoom()
    await this.#drain('all')
    await this.#publishesAgain()
    await this.#end('power')
    await this.#start()
    await this.#judge()
    return this.report
  }

  get #live(): Broker {
    if (this.#broker === undefined) throw new Error('there is no broker')
    return this.#broker
  }

  // ------------------------------------------------------------------------------------------------ the history

  /** Publishes messages of many sizes, and settles some of them. */
  async #step(step: number): Promise<void> {
    this.#publish(Array.from({ length: 1 + (step % 7) * 2 }, (_, i) => 20 + ((step + i) % 11) * 70))
    await this.#pass(STEP_MS)
    if (step % 3 !== 2) return
    const consumer = this.#subscribe(16)
    await this.#pass(STEP_MS)
    const { subscription } = consumer
    for (const { offset, tag } of consumer.got) if (offset % 5 !== 0) this.#settle(subscription, offset, tag)
    await this.#pass(STEP_MS)
    this.#live.turn.begin()
    this.#live.leases.disconnect([subscription])
    await this.#pass(STEP_MS)
  }

  /** Publishes small messages until they are refused: each takes less than the settle that removes it. */
  async #fill(): Promise<void> {
    for (let i = 0; i < 10_000; i++) {
      const isAccepted = this.#publish(Array.from({ length: 20 }, () => SMALL_BYTES))
      await this.#pass(1)
      if (isAccepted) continue
      // Messages of ended subscriptions may become ready again; only a refusal after that ends the filling.
      await this.#pass(1_000)
      if (!this.#publish([SMALL_BYTES])) return
    }
    throw new Violation('full disk', 'a disk of one size accepted messages without end')
  }

  /** Fills the free space with other files. */
  #stuff(): void {
    this.#disk.capacityBytes = Math.min(this.#disk.capacityBytes, this.#disk.usedBytes)
  }

  async #makeRoom(): Promise<void> {
    this.#disk.capacityBytes = 4 * this.#options.segments * SEGMENT_BYTES
    if (this.#broker === undefined) {
      if ((await this.#start()) === undefined)
        throw new Violation('full disk', 'a start with room was refused')
      return
    }
    const before = this.#answers.confirmed
    await this.#until('settles continue once there is space', PATIENCE_MS, () => !this.#isWaiting)
    this.report.resumed += this.#answers.confirmed - before
  }

  /** Settles one message after the other, each in its own entry. */
  async #drain(how: 'all' | 'half' | 'until it waits'): Promise<void> {
    const consumer = this.#subscribe(1)
    let taken = 0
    const most = how === 'half' ? this.#live.catalog.info(Q).ready / 2 : Infinity
    const next = (): boolean => consumer.got.length > taken
    const left = (): boolean => this.#live.catalog.info(Q).ready > 0
    while (taken < most) {
      if (how !== 'until it waits') {
        await this.#until('a message is delivered', PATIENCE_MS, () => next() || !left())
      } else if (!(await this.#whether(WAITING_MS, () => next() || !left()))) {
        this.report.waited = true
        break
      }
      if (!next()) break
      const { offset, tag } = consumer.got[taken++]!
      if (this.#settled.get(offset) === 'confirmed')
        throw new Violation('full disk', `message ${offset} is delivered after its settle was confirmed`)
      this.#settle(consumer.subscription, offset, tag)
      const isConfirmed = (): boolean => !this.#isWaiting && !this.#live.isBehind
      if (how !== 'until it waits')
        await this.#until(`the settle of message ${offset} is confirmed`, PATIENCE_MS, isConfirmed)
      else if (!(await this.#whether(WAITING_MS, isConfirmed))) {
        this.report.waited = true
        break
      }
      this.report.drained++
      this.#live.turn.begin()
      this.#live.leases.credit(consumer.subscription, 1, 1 << 20, undefined, false)
    }
    this.#live.turn.begin()
    this.#live.leases.disconnect([consumer.subscription])
    await this.#pump()
  }

  async #publishesAgain(): Promise<void> {
    await this.#until('publishes are accepted once there is space', REFUSED_MS, () =>
      this.#publish([SMALL_BYTES]),
    )
    await this.#until('a publish is confirmed', PATIENCE_MS, () => !this.#isWaiting)
  }

  /** Checks that no confirmed publish is lost and no confirmed settle is undone. */
  async #judge(): Promise<void> {
    await this.#pass(1_000)
    this.#live.audit()
    const consumer = this.#subscribe(60_000)
    await this.#pass(1_000)
    const there = new Set(consumer.got.map(({ offset }) => offset))
    for (const [offset, fate] of this.#published) {
      const settled = this.#settled.get(offset)
      if (there.has(offset)) {
        if (settled === 'confirmed')
          throw new Violation('full disk', `message ${offset} is back after its settle`)
      } else if (fate === 'confirmed' && settled === undefined)
        throw new Violation('full disk', `message ${offset} was confirmed but is lost`)
    }
    for (const offset of there)
      if (!this.#published.has(offset))
        throw new Violation('full disk', `message ${offset} was never published`)
  }

  // -------------------------------------------------------------------------------------------------- the client

  #publish(bodies: readonly number[]): boolean {
    const broker = this.#live
    broker.turn.begin()
    const producer = broker.producers.attach(IDENTITY, 0)
    try {
      const bytes = batchOf(bodies, ++this.#batches)
      const { baseOffset } = broker.intake.publish(producer, Q, bytes, 0, bytes.length, this.#batches)
      for (let i = 0; i < bodies.length; i++) this.#published.set(baseOffset + i, 'unknown')
      this.#answer(() => {
        for (let i = 0; i < bodies.length; i++) this.#published.set(baseOffset + i, 'confirmed')
      })
      this.report.published += bodies.length
      return true
    } catch (error) {
      if (!(error instanceof SluiceError) || error.code !== 'DISK_LOW') throw error
      this.report.refused++
      return false
    } finally {
      broker.producers.detach(producer)
    }
  }

  #subscribe(messages: number): Taker {
    const broker = this.#live
    broker.turn.begin()
    const taker = new Taker()
    taker.subscription = broker.leases.subscribe({ queue: Q, messages, bytes: 1 << 20 }, 1, taker)
    return taker
  }

  #settle(subscription: Subscription, offset: number, tag: number): void {
    this.#live.turn.begin()
    const stale = this.#live.leases.settle(subscription, [{ firstTag: tag, count: 1, outcome: OUTCOME.ack }])
    if (stale.length > 0) throw new Violation('full disk', `the settle of message ${offset} is stale`)
    this.#settled.set(offset, 'unknown')
    this.#answer(() => this.#settled.set(offset, 'confirmed'))
  }

  #answer(confirmed: () => void): void {
    this.#whenConfirmed[this.#answers.add()] = confirmed
    this.#live.noteOutput(this.#answers)
  }

  get #isWaiting(): boolean {
    return this.#answers.confirmed < this.#whenConfirmed.length
  }

  // ----------------------------------------------------------------------------------------- the broker's process

  /** Starts a broker; undefined if it refuses because the disk is full. */
  async #start(): Promise<Broker | undefined> {
    const { log: change = (log: Log) => log, neverWakes = false, broker: alter } = this.#options.defect ?? {}
    const log = new FileLog({
      disk: this.#disk,
      segmentBytes: SEGMENT_BYTES,
      // The reserve alone must suffice, so nothing is added to it.
      lowFreeBytes: 0,
      now: () => this.#nowMs,
      random32: () => 7,
      sleep: (ms) =>
        new Promise((wake) => {
          if (!neverWakes) this.#sleepers.push({ atMs: this.#nowMs + ms, wake })
        }),
      onNotice: ({ kind }) => this.#noticed(kind),
    })
    const opening = Broker.open({
      log: change(log),
      now: () => this.#nowMs,
      continueFrom: (timeMs) => void (this.#nowMs = Math.max(this.#nowMs, timeMs)),
      random: () => 0.5,
      defer: (endTurn) => this.#turns.push(endTurn),
      onFatal: (error) =>
        (this.#fatal ??= error instanceof Error ? error : new Error('failed', { cause: error })),
      messageBytesMax: 1024,
      checkpointBytes: SEGMENT_BYTES,
    })
    try {
      this.#broker = await this.#driven('a start ends', opening)
      alter?.(this.#broker)
    } catch (error) {
      if (!(error instanceof SluiceError) || error.code !== 'DISK_LOW') throw error
      this.#broker = undefined
      await this.#driven('a refused start leaves nothing behind', log.close())
      return undefined
    }
    this.#answers = new Answers((index) => this.#whenConfirmed[index]!())
    this.#whenConfirmed = []
    return this.#broker
  }

  async #end(ending: Exclude<FullEnding, 'none'>): Promise<void> {
    if (ending === 'close') {
      this.#live.turn.begin()
      await this.#driven('an orderly stop ends', this.#live.close())
    }
    const random = this.#random
    const options = { capacityBytes: this.#disk.capacityBytes }
    this.#disk = ending === 'power' ? this.#disk.crash(random, options) : this.#disk.kill(random, options)
    this.#broker = undefined
    this.#turns = []
    this.#sleepers = []
    this.#nowMs += STEP_MS
  }

  #noticed(kind: LogNotice['kind']): void {
    const { notices } = this.report
    notices.set(kind, (notices.get(kind) ?? 0) + 1)
  }

  // ---------------------------------------------------------------------------------------------------------- time

  /** Runs everything that can run while no time passes. */
  async #pump(): Promise<void> {
    do await this.#beat()
    while (this.#turns.length > 0)
  }

  /** Runs one turn of the broker, if one is due, and the disk operations that it starts. */
  async #beat(): Promise<void> {
    for (const turn of this.#turns.splice(0)) turn()
    await new Promise((resolve) => setImmediate(resolve))
    if (this.#fatal !== undefined)
      throw new Violation('full disk', `the broker failed: ${this.#fatal.message}`)
  }

  async #pass(ms: number): Promise<void> {
    await this.#pump()
    const untilMs = this.#nowMs + ms
    while (this.#nowMs < untilMs) {
      const nextMs = Math.min(
        untilMs,
        this.#broker?.turn.nextDeadline ?? Infinity,
        ...this.#sleepers.map(({ atMs }) => atMs),
      )
      this.#nowMs = Math.max(nextMs, this.#nowMs + 1)
      for (const sleeper of this.#sleepers.filter(({ atMs }) => atMs <= this.#nowMs)) {
        this.#sleepers.splice(this.#sleepers.indexOf(sleeper), 1)
        sleeper.wake()
      }
      if (this.#broker !== undefined && this.#nowMs >= this.#broker.turn.nextDeadline)
        this.#broker.turn.tick()
      await this.#pump()
    }
  }

  /**
   * Whether `condition` becomes true within this time. If it becomes true before any time passes, the broker is left in
   * the middle of its work.
   */
  async #whether(ms: number, condition: () => boolean): Promise<boolean> {
    for (let beat = 0; beat < BEATS; beat++) {
      if (condition()) return true
      await this.#beat()
    }
    for (const untilMs = this.#nowMs + ms; !condition();) {
      if (this.#nowMs >= untilMs) return false
      await this.#pass(STEP_MS)
    }
    return true
  }

  async #until(what: string, ms: number, condition: () => boolean): Promise<void> {
    if (!(await this.#whether(ms, condition)))
      throw new Violation('full disk', `not within ${ms} ms: ${what}`)
  }

  async #driven<T>(what: string, work: Promise<T>): Promise<T> {
    let isDone = false
    const done = (): void => void (isDone = true)
    work.then(done, done)
    await this.#until(what, PATIENCE_MS, () => isDone)
    return work
  }
}

class Taker implements Consumer {
  readonly address = ''
  readonly label = 'drain'
  readonly isReady = true
  readonly got: { readonly offset: number; readonly tag: number }[] = []
  subscription!: Subscription

  deliver(_subscription: Subscription, { run, firstTag, count }: Delivery): void {
    for (let i = 0; i < count; i++) this.got.push({ offset: run.offset + i, tag: (firstTag + i) >>> 0 })
  }

  lost(): void {}
  drained(): void {}
  ended(_subscription: Subscription, error: SluiceError): void {
    throw error
  }
}

/** A batch of messages with bodies of these sizes. */
function batchOf(bodies: readonly number[], number: number): Uint8Array {
  const length = bodies.reduce((sum, bytes) => sum + recordBytes({}, bytes), BATCH_HEADER_BYTES)
  const batch = new Uint8Array(length)
  let at = BATCH_HEADER_BYTES
  for (const bytes of bodies) at = writeRecordHead(batch, at, {}, CONTENT_TYPE.bytes, bytes) + bytes
  sealBatch(batch, 0, at, { type: BATCH_TYPE.messages, count: bodies.length, batchNumber: number })
  return batch
}
