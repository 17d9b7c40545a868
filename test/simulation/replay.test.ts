/**
 * Replays across crashes: a queue that retains its messages is replayed into another one page by page, on a broker that
 * loses power during pages and between them.
 *
 * The rule: the answered pages together copy each message of the range that was acknowledged before the first page exactly
 * once, byte for byte, and in the order of offsets, and no crash removes a copy that an answer reported. A message of the
 * range that is acknowledged later is copied at most once. Two requests for the same page copy the same messages, unless
 * messages were acknowledged in between; a request that a crash interrupts may copy only the first of them. A page that a
 * full disk cuts short reports what it has copied.
 */
import { OUTCOME, SluiceError, queueName, type QueueOptions } from '@sluice/protocol'
import { expect, test } from 'vitest'
import { Broker } from '../../packages/server/src/broker/broker.js'
import { FileLog } from '../../packages/server/src/log/file-log.js'
import type { Consumer } from '../../packages/server/src/queue/index.js'
import { leastIn, ONE_SEED, seedsFrom, TIMEOUT_MS } from '../amount.js'
import { buildBatch, sameBytes, splitRecords } from './attempts.js'
import { Chance } from './chance.js'
import { SimulatedDisk, type SimulatedDiskOptions } from './disk.js'
import { contentOf, copyOf } from './record.js'

const IN = queueName('in')
const OUT = queueName('out')
const IDENTITY = 'ab'.repeat(16)
const CALLER = { label: 'an operator', isOpen: true }
const RETAIN_MS = 3_600_000
const IDLE_MAX = 1_000
/** Free bytes below which the broker accepts nothing. */
const LOW_FREE_BYTES = 512 * 1024
/** Time after which the log checks the free space again: a little more than its minimum interval. */
const LOOK_MS = 1_100
const CRASHED = Symbol('crashed')

type Page = Awaited<ReturnType<Broker['replays']['page']>>

interface Copy {
  readonly offset: number
  readonly origin: number
  readonly record: Uint8Array
}

interface Published {
  readonly record: Uint8Array
  readonly publishedMs: number
}

/** A planted bug. */
interface Defect {
  /** Number that is added to the offset in the cursor of each page. */
  readonly cursorOffset?: number
  /** Whether the disk confirms syncs without storing anything. */
  readonly syncLies?: boolean
}

class World {
  readonly chance: Chance
  readonly counts = new Map<string, number>()
  /** Published messages, by their offset in `in`. */
  readonly published = new Map<number, Published>()
  readonly acknowledged = new Set<number>()
  nowMs = 1_700_000_000_000
  /** Number of reads that succeed before all further reads fail. */
  readsBeforeFault = Infinity
  broker!: Broker
  #disk: SimulatedDisk
  readonly #defect: Defect
  readonly #segmentBytes: number
  readonly #checkpointBytes: number
  #turns: (() => void)[] = []
  #fatal: unknown
  /** Number of the last batch, and of the last batch that was accepted. */
  #batches = 0
  #accepted = 0

  constructor(seed: number, defect: Defect) {
    this.#defect = defect
    const chance = new Chance(seed)
    this.chance = chance
    this.#segmentBytes = chance.pick([16, 32, 96]) * 1024
    this.#checkpointBytes = chance.pick([4, 16, 48]) * 1024
    this.#disk = new SimulatedDisk(this.#diskOptions())
  }

  #diskOptions(): SimulatedDiskOptions {
    return {
      random: this.chance.random,
      mode: 'queued',
      fault: ({ kind }) => {
        if (kind === 'sync' && this.#defect.syncLies === true) return { lie: true }
        return kind === 'read' && --this.readsBeforeFault < 0 ? { error: 'EIO' } : undefined
      },
    }
  }

  count(what: string, by = 1): void {
    this.counts.set(what, (this.counts.get(what) ?? 0) + by)
  }

  async open(): Promise<void> {
    this.#turns = []
    const log = new FileLog({
      disk: this.#disk,
      segmentBytes: this.#segmentBytes,
      lowFreeBytes: LOW_FREE_BYTES,
      now: () => this.nowMs,
      random32: () => 7,
      sleep: (ms) => {
        this.nowMs += ms
        return new Promise((resolve) => setImmediate(resolve))
      },
    })
    const turns = this.#turns
    const opening = Broker.open({
      log,
      now: () => this.nowMs,
      random: () => 0.5,
      defer: (turn) => turns.push(turn),
      onFatal: (error) => (this.#fatal ??= error),
      messageBytesMax: 1024,
      checkpointBytes: this.#checkpointBytes,
    })
    this.broker = await this.drive(opening)
  }

  /** Cuts the power and starts a new broker on what is left on the disk. */
  async crash(): Promise<void> {
    this.count('crashes')
    this.#disk = this.#disk.crash(this.chance.random, this.#diskOptions())
    this.nowMs += this.chance.int(0, 2_000)
    await this.open()
  }

  /** Lets the broker and its disk work until `work` is done and everything written is durable. */
  async drive<T>(work: Promise<T> | T): Promise<T> {
    const result = await this.driveSteps(work, Infinity)
    if (result === CRASHED) throw new Error('a run without a crash point has crashed')
    return result
  }

  /** Like `drive`, but gives up before disk operation number `stepsMax`. */
  async driveSteps<T>(work: Promise<T> | T, stepsMax: number): Promise<T | typeof CRASHED> {
    const outcomes: PromiseSettledResult<Awaited<T>>[] = []
    void Promise.allSettled([work]).then((settled) => outcomes.push(...settled))
    let steps = 0
    for (let idle = 0; ;) {
      await new Promise((resolve) => setImmediate(resolve))
      if (this.#fatal !== undefined) throw new Error('the broker failed', { cause: this.#fatal })
      const turn = this.#turns.shift()
      if (turn !== undefined) turn()
      else if (this.#disk.queued > 0) {
        if (steps++ === stepsMax) return CRASHED
        this.#disk.step()
      } else if (outcomes.length > 0) break
      else if (++idle > IDLE_MAX) throw new Error('the broker waits for an event that never comes')
    }
    const [outcome] = outcomes
    if (outcome!.status === 'rejected') throw outcome!.reason as Error
    return outcome!.value
  }

  async ensure(name: typeof IN, options: Partial<QueueOptions>): Promise<void> {
    this.broker.turn.begin()
    this.broker.catalog.ensure({ name, options, update: true })
    await this.drive(undefined)
  }

  /** Limits the disk to little free space, or removes the limit. */
  async setFull(isFull: boolean): Promise<void> {
    this.#disk.capacityBytes = isFull ? this.#disk.usedBytes + LOW_FREE_BYTES / 2 : Infinity
    await this.pass(LOOK_MS)
  }

  async pass(ms: number): Promise<void> {
    this.nowMs += ms
    this.broker.turn.tick()
    await this.drive(undefined)
  }

  /** Publishes messages to `in`, with keys, ids, priorities, delays, and headers of an earlier move. */
  async publish(messages: number): Promise<void> {
    const { chance } = this
    const drafts = Array.from({ length: messages }, () => {
      const name = `m${this.published.size}:${chance.int(0, 1e9)}`
      const options = {
        ...(chance.hit(0.3) ? { key: chance.pick(['a', 'b']) } : {}),
        ...(chance.hit(0.3) ? { id: name } : {}),
        ...(chance.hit(0.3) ? { priority: chance.int(1, 31) } : {}),
        ...(chance.hit(0.2) ? { delayMs: chance.int(1, 50) } : {}),
        ...(chance.hit(0.2) ? { headers: { kind: 'test', 'sluice-origin-queue': 'elsewhere' } } : {}),
      }
      return { name, padding: chance.skewed(400), options }
    })
    const { batch, records } = buildBatch(++this.#batches, drafts, false)
    this.broker.turn.begin()
    const producer = this.broker.producers.attach(IDENTITY, this.#accepted)
    const { baseOffset } = this.broker.intake.publish(producer, IN, batch, 0, batch.length, 0)
    this.#accepted = this.#batches
    for (const [index, record] of records.entries())
      this.published.set(baseOffset + index, { record, publishedMs: this.nowMs })
    await this.drive(undefined)
  }

  /** Returns whether the broker accepts a message now. */
  async accepts(): Promise<boolean> {
    try {
      await this.publish(1)
      return true
    } catch (error) {
      if (error instanceof SluiceError && error.code === 'DISK_LOW') return false
      throw error
    }
  }

  /** Consumes from `in`: most messages are acknowledged; others are dead, released, or still held at the end. */
  async consume(messages: number): Promise<void> {
    const held: { readonly offset: number; readonly tag: number }[] = []
    const consumer: Consumer = {
      label: '',
      address: '',
      isReady: true,
      deliver: (_subscription, { run, firstTag, bytes, start, end }) => {
        for (const index of splitRecords(bytes, start, end).keys())
          held.push({ offset: run.offset + index, tag: (firstTag + index) >>> 0 })
      },
      lost: () => {},
      drained: () => {},
      ended: () => {},
    }
    this.broker.turn.begin()
    const request = { queue: IN, messages, bytes: 1 << 20 }
    const subscription = this.broker.leases.subscribe(request, 1, consumer)
    await this.drive(undefined)
    this.broker.turn.begin()
    for (const { offset, tag } of held) {
      const outcome = this.chance.pick([
        ...([OUTCOME.ack, OUTCOME.ack, OUTCOME.ack, OUTCOME.ack] as const),
        ...([OUTCOME.deadLetter, OUTCOME.release, undefined] as const),
      ])
      if (outcome === undefined) continue
      this.broker.leases.settle(subscription, [{ firstTag: tag, count: 1, outcome }])
      if (outcome === OUTCOME.ack) this.acknowledged.add(offset)
    }
    this.broker.leases.unsubscribe(subscription, 'normal')
    await this.drive(undefined)
  }

  async page(limit: number, fromOffset: number, cursor: string | undefined): Promise<Page> {
    this.broker.turn.begin()
    const times = { fromMs: undefined, untilMs: undefined }
    const from = cursor === undefined ? fromOffset : undefined
    const request = {
      name: IN,
      fromOffset: from,
      ...times,
      limit,
      cursor,
      filter: {},
      to: OUT,
      dryRun: false,
    }
    const page = await this.broker.replays.page(request, CALLER)
    const { cursorOffset = 0 } = this.#defect
    if (cursorOffset === 0 || page.cursor === null) return page
    const [offset, end] = page.cursor.split(':').map(Number)
    return { ...page, cursor: `${offset! + cursorOffset}:${end}` }
  }

  /** The copies in `out` starting at offset `from`; compares each of them with its original. */
  async copies(from: number): Promise<Copy[]> {
    const copies: Copy[] = []
    for (let next: number | undefined = from; next !== undefined;) {
      this.broker.turn.begin()
      const peek = { name: OUT, state: undefined, from: next, limit: 1000, filter: {} }
      const page: Awaited<ReturnType<Broker['operator']['peek']>> = await this.drive(
        this.broker.operator.peek(peek, CALLER),
      )
      for (const { offset, record } of page.messages) copies.push(this.#copy(offset, record))
      next = page.next
    }
    return copies
  }

  #copy(offset: number, record: Uint8Array): Copy {
    const headers = new Map(contentOf(record).headers)
    const origin = Number(headers.get('sluice-origin-offset'))
    const original = this.published.get(origin)
    if (original === undefined) throw new Error(`message ${offset} of out is a copy of no message`)
    const { publishedMs } = original
    const copied = copyOf(original.record, {
      ...{ queue: IN, offset: origin, publishedMs, attempts: 0, redrives: 0 },
      dead: undefined,
    })
    if (!sameBytes(record, copied))
      throw new Error(`message ${offset} of out is not a copy of message ${origin} of in`)
    this.count('copies compared')
    return { offset, origin, record }
  }
}

async function run(seed: number, defect: Defect = {}): Promise<ReadonlyMap<string, number>> {
  const world = new World(seed, defect)
  const { chance } = world
  await world.open()
  await world.ensure(IN, { retainAgeMs: RETAIN_MS })
  await world.ensure(OUT, {})
  for (let round = 0; round < 6; round++) {
    await world.publish(chance.int(5, 25))
    await world.pass(chance.int(0, 80))
    await world.consume(chance.int(5, 25))
    if (chance.hit(0.2)) await world.crash()
  }
  const fromOffset = chance.hit(0.5) ? 0 : chance.int(0, 40)
  let range: number[] = []
  const answered: Copy[] = []
  const limit = chance.int(1, 9)
  let next = 0
  /** Origins of the copies that an interrupted request for the same page made. */
  let interrupted: number[] = []
  for (let cursor: string | null | undefined, pages = 0; cursor !== null; pages++) {
    if (pages > 1_000) throw new Error('the replay does not end')
    // The replay ends at the offset that was the next one at the request for its first page.
    if (cursor === undefined) {
      const now = [...world.acknowledged].filter((offset) => offset >= fromOffset)
      if (now.length > range.length) interrupted = []
      range = now
    }
    let page: Page | typeof CRASHED | undefined
    const isFull = chance.hit(0.15)
    if (isFull) await world.setFull(true)
    if (chance.hit(0.2)) world.readsBeforeFault = chance.int(0, 1)
    try {
      const stepsMax = chance.hit(0.4) ? chance.int(0, 4) : Infinity
      page = await world.driveSteps(world.page(limit, fromOffset, cursor), stepsMax)
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error
      world.count(`refused with ${error.code}`)
    }
    world.readsBeforeFault = Infinity
    if (page === CRASHED) {
      world.count('pages interrupted')
      await world.crash()
      const copied = await world.copies(next)
      // An earlier interrupted request can have copied more or fewer messages than this one.
      const origins = copied.map(({ origin }) => origin)
      checkPrefix(seed, interrupted, origins)
      if (origins.length > interrupted.length) interrupted = origins
      next += copied.length
      world.count('copies of interrupted pages', copied.length)
      continue
    }
    const copied = await world.copies(next)
    next += copied.length
    expect(copied.length, `seed ${seed}: copies of a page`).toBe(page?.replayed ?? 0)
    answered.push(...copied)
    if (page?.error !== undefined) world.count('pages cut short')
    if (isFull) while (!(await world.accepts())) await world.setFull(false)
    if (page !== undefined) {
      world.count('pages answered')
      const origins = copied.map(({ origin }) => origin)
      checkPrefix(seed, interrupted, origins)
      interrupted = interrupted.slice(origins.length)
      cursor = page.cursor
    }
    // Work between the pages is not part of the replay.
    if (chance.hit(0.3)) await world.publish(chance.int(1, 10))
    if (chance.hit(0.3)) {
      const before = world.acknowledged.size
      await world.consume(chance.int(1, 20))
      // Newly acknowledged messages can precede the copies of an interrupted request.
      if (world.acknowledged.size > before) interrupted = []
    }
    if (chance.hit(0.2)) await world.pass(chance.int(0, 2_000))
    if (chance.hit(0.1)) await world.crash()
  }
  expect(
    interrupted,
    `seed ${seed}: copied by an interrupted page, but not when it was requested again`,
  ).toEqual([])
  const origins = answered.map(({ origin }) => origin)
  const ascending = (a: number, b: number): number => a - b
  expect(origins, `seed ${seed}: order of the copies`).toEqual([...new Set(origins)].toSorted(ascending))
  const copied = new Set(origins)
  const missing = range.filter((offset) => !copied.has(offset))
  expect(missing, `seed ${seed}: not replayed`).toEqual([])
  const wrong = origins.filter((offset) => offset < fromOffset || !world.acknowledged.has(offset))
  expect(wrong, `seed ${seed}: replayed although not acknowledged`).toEqual([])
  await world.crash()
  const left = new Map((await world.copies(0)).map((copy) => [copy.offset, copy]))
  for (const { offset, origin } of answered)
    expect(left.get(offset)?.origin, `seed ${seed}: message ${offset} of out`).toBe(origin)
  world.count('messages replayed', origins.length)
  return world.counts
}

/** Checks that the shorter list is the beginning of the longer one: both requests copied the same messages in order. */
function checkPrefix(seed: number, before: readonly number[], after: readonly number[]): void {
  const length = Math.min(before.length, after.length)
  expect(after.slice(0, length), `seed ${seed}: a page that is requested again`).toEqual(
    before.slice(0, length),
  )
}

const SEEN_IN = 60
/** Minimum number of occurrences of each event in SEEN_IN runs. */
const SEEN: Readonly<Record<string, number>> = {
  crashes: 400,
  'pages interrupted': 200,
  'copies of interrupted pages': 70,
  'pages answered': 800,
  'pages cut short': 5,
  'refused with DISK_LOW': 150,
  'refused with READ_FAILED': 30,
  'messages replayed': 1_700,
}

test('a replay copies each message exactly once across crashes', { timeout: TIMEOUT_MS }, async () => {
  const totals = new Map<string, number>()
  const seeds = seedsFrom(1, 20, 1_000)
  for (const seed of seeds)
    for (const [what, count] of await run(seed)) totals.set(what, (totals.get(what) ?? 0) + count)
  if (ONE_SEED !== undefined) return
  for (const [what, least] of Object.entries(SEEN))
    expect(totals.get(what) ?? 0, what).toBeGreaterThanOrEqual(leastIn(seeds.length, least, SEEN_IN))
})

async function firstFailure(defect: Defect): Promise<unknown> {
  for (let seed = 1; seed <= 10; seed++) {
    try {
      await run(seed, defect)
    } catch (error) {
      return error
    }
  }
  return undefined
}

test.each([
  { name: 'a later page repeats the last message', defect: { cursorOffset: -1 } },
  { name: 'a later page skips a message', defect: { cursorOffset: 1 } },
  { name: 'the disk loses what it has confirmed', defect: { syncLies: true } },
])('found: $name', { timeout: TIMEOUT_MS }, async ({ defect }) => {
  expect(await firstFailure(defect)).toBeInstanceOf(Error)
})
