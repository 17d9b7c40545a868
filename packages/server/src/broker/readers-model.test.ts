/** Random histories of streams and their readers, with retention, copies, crashes, and planted defects. */
import { BATCH_HEADER_BYTES, recordSize, type ReadFilter, type ReadRequest } from '@sluice/protocol'
import { expect, test } from 'vitest'
import { leastIn, ONE_SEED, seedsFrom, TIMEOUT_MS } from '../../../../test/amount.js'
import { ModelReader, ModelStream } from '../../../../test/reference/readers.js'
import { Difference } from '../../../../test/reference/state.js'
import { Chance } from '../../../../test/simulation/chance.js'
import type { Delivery } from '../queue/index.js'
import { Bench, Q, batchOf, type Message } from '../testing/bench.js'
import type { Reader, ReaderSink } from './reader.js'

const OPERATIONS = 150
const READERS_MAX = 6
const KEYS = ['a', 'b', undefined, undefined] as const

class History {
  readonly counts = new Map<string, number>()
  readonly #chance: Chance
  readonly #bench = new Bench({ segmentBytes: 64 * 1024, checkpointBytes: 16 * 1024 })
  readonly #stream = new ModelStream()
  readonly #defect: ((bench: Bench) => void) | undefined
  #readers: ModelReader[] = []

  constructor(seed: number, defect: ((bench: Bench) => void) | undefined) {
    this.#chance = new Chance(seed)
    this.#defect = defect
  }

  readonly #count = (what: string, count = 1): void => {
    this.counts.set(what, (this.counts.get(what) ?? 0) + count)
  }

  async run(): Promise<void> {
    await this.#bench.open()
    this.#defect?.(this.#bench)
    this.#limit()
    await this.#settle()
    for (let i = 0; i < OPERATIONS; i++) {
      await this.#operation()
      this.#stream.forget(this.#bench.now)
      if (i % 10 === 0) this.#bench.broker.audit()
    }
    await this.#settle()
    for (const reader of this.#readers) {
      reader.isReady = true
      this.#bench.broker.readers.ready(reader.reader)
      for (let before = -1; before !== reader.next;) {
        before = reader.next
        this.#giveBack(reader)
        await this.#settle()
      }
    }
  }

  async #operation(): Promise<void> {
    const chance = this.#chance
    const reader = this.#readers.length === 0 ? undefined : chance.pick(this.#readers)
    const what = chance.int(0, 99)
    if (what < 35) {
      for (let batches = chance.pick([1, 1, 3, 20]); batches > 0; batches--) this.#publish()
      if (chance.hit(0.8)) await this.#settle()
    } else if (what < 55) {
      if (this.#readers.length < READERS_MAX) this.#open(this.#anyRequest())
      if (chance.hit(0.8)) await this.#settle()
    } else if (what < 75 && reader !== undefined) {
      this.#giveBack(reader)
      await this.#settle()
    } else if (what < 80 && reader !== undefined) {
      reader.isReady = !reader.isReady
      this.#bench.broker.turn.begin()
      if (reader.isReady) this.#bench.broker.readers.ready(reader.reader)
      await this.#settle()
    } else if (what < 84 && reader !== undefined) {
      this.#bench.broker.readers.close(reader.reader)
      this.#readers = this.#readers.filter((other) => other !== reader)
    } else if (what < 90) {
      await this.#settle()
      this.#bench.now += chance.pick([1, 100, 1_000, 60_000])
      this.#stream.forget(this.#bench.now)
      await this.#bench.pass(1)
      await this.#settle()
    } else if (what < 93) {
      this.#limit()
      await this.#settle()
    } else if (what < 97) {
      await this.#settle()
      await this.#bench.fill(chance.pick([5_000, 30_000]))
      await this.#settle()
      this.#count('fills')
    } else await this.#crash()
  }

  #publish(): void {
    const chance = this.#chance
    const size = chance.pick([1, 1, 2, 10, 100, 300])
    const messages = Array.from({ length: size }, (): Message => {
      const key = chance.pick(KEYS)
      const id = chance.hit(0.02) ? `i${chance.int(0, 5)}` : undefined
      const headers = chance.hit(0.1) ? { h: chance.pick(['x', 'y']) } : undefined
      return {
        bodyBytes: chance.int(0, 20),
        ...(key === undefined ? {} : { key }),
        ...(id === undefined ? {} : { id }),
        ...(headers === undefined ? {} : { headers }),
      }
    })
    const bytes = batchOf(messages, ++this.#bench.number)
    const { baseOffset, duplicates } = this.#bench.send(bytes)
    expect(baseOffset).toBe(this.#stream.messages.length)
    const publishedMs = this.#bench.broker.turn.nowMs
    let at = BATCH_HEADER_BYTES
    for (const [index, { key, headers = {} }] of messages.entries()) {
      const end = at + recordSize(bytes, at)
      const record = duplicates?.has(index) === true ? undefined : bytes.slice(at, end)
      if (record === undefined) this.#count('duplicates')
      this.#stream.messages.push({ record, publishedMs, key, headers })
      at = end
    }
    this.#stream.forget(this.#bench.now)
  }

  #anyRequest(): ReadRequest {
    const chance = this.#chance
    const { length } = this.#stream.messages
    const isTime = length > 0 && chance.hit(0.3)
    const filter: ReadFilter | undefined = chance.hit(0.3)
      ? chance.pick([{ key: 'a' }, { headers: { h: 'x' } }, { key: 'b', headers: { h: 'y' } }])
      : undefined
    return {
      name: Q,
      from: isTime ? 'first' : chance.pick(['first', 'last', chance.int(0, length)] as const),
      fromMs: isTime
        ? this.#stream.messages[chance.int(0, length - 1)]!.publishedMs + chance.int(0, 1)
        : undefined,
      until: chance.hit(0.1) ? chance.int(0, length + 100) : undefined,
      follow: chance.hit(0.6),
      filter,
      messages: chance.pick([1, 7, 100, 5_000]),
      bytes: chance.pick([1, 100, 5_000, 1_000_000]),
    }
  }

  #open(request: ReadRequest): void {
    const reader = new ModelReader(this.#stream, request, this.#count)
    this.#bench.broker.turn.begin()
    const { reader: opened, missed } = this.#bench.broker.readers.open(request, 1, reader)
    reader.opened(opened, missed)
    this.#readers.push(reader)
    this.#count('readers')
  }

  #giveBack(reader: ModelReader): void {
    const { messages, bytes } = reader.giveBack()
    this.#bench.broker.turn.begin()
    this.#bench.broker.readers.credit(reader.reader, messages, bytes)
  }

  #limit(): void {
    const chance = this.#chance
    const limits = {
      retainAgeMs: chance.pick([0, 0, 60_000, 600_000]),
      retainBytes: chance.pick([0, 0, 0, 50_000]),
      retainMessages: chance.pick([0, 0, 2_000]),
    }
    this.#stream.limits = limits
    this.#stream.forget(this.#bench.now)
    this.#bench.broker.turn.begin()
    this.#bench.broker.streams.ensure({ name: Q, options: limits, update: true })
  }

  async #settle(): Promise<void> {
    await this.#bench.settle()
    this.#stream.forget(this.#bench.now)
    for (const reader of this.#readers) reader.checkProgress()
    this.#readers = this.#readers.filter(({ isEnded }) => !isEnded)
  }

  // Sometimes in the middle of a turn. The readers read on where they were, as clients do.
  async #crash(): Promise<void> {
    if (this.#chance.hit(0.5)) await this.#settle()
    else {
      this.#publish()
      this.#bench.endTurns()
    }
    await this.#bench.crash()
    this.#defect?.(this.#bench)
    const { next } = this.#bench.broker.streams.info(Q)
    for (const { ungatedBelow } of this.#readers) {
      if (ungatedBelow > next)
        throw new Difference(`message ${ungatedBelow - 1} was delivered before it was on disk`)
    }
    if (next < this.#stream.messages.length) this.#count('messages lost before they were on disk')
    this.#stream.truncate(next)
    this.#bench.number += 1_000
    const readers = this.#readers
    this.#readers = []
    for (const { request, next: reached, end } of readers) {
      const until = request.follow && request.until === undefined ? undefined : Math.min(end, next)
      this.#open({ ...request, from: Math.min(reached, next), ...(until === undefined ? {} : { until }) })
    }
    this.#count('crashes')
    await this.#settle()
  }
}

/** Passes what the sinks of readers get through `bend`. */
function bent(bench: Bench, bend: (sink: ReaderSink, reader: () => Reader) => Partial<ReaderSink>): void {
  const { readers } = bench.broker
  const open = readers.open.bind(readers)
  readers.open = (request, channel, sink) => {
    const own: ReaderSink = {
      get isReady() {
        return sink.isReady
      },
      deliverRead: (reader, delivery) => sink.deliverRead(reader, delivery),
      readAt: (reader, missed, isEnd) => sink.readAt(reader, missed, isEnd),
      readEnded: (reader, error) => sink.readEnded(reader, error),
    }
    const opened = open(
      request,
      channel,
      Object.assign(
        own,
        bend(sink, () => opened.reader),
      ),
    )
    return opened
  }
}

function afterDelivery(bench: Bench, change: (reader: Reader, delivery: Delivery) => void): void {
  bent(bench, (sink) => ({
    deliverRead: (reader, delivery) => {
      sink.deliverRead(reader, delivery)
      change(reader, delivery)
    },
  }))
}

const DEFECTS: Readonly<Record<string, (bench: Bench) => void>> = {
  'a reader repeats the last message of a chunk': (bench) =>
    afterDelivery(bench, (reader) => {
      if (reader.next % 1024 === 0) reader.next--
    }),
  'a reader leaves out the first message of a chunk': (bench) =>
    afterDelivery(bench, (reader) => {
      if (reader.next % 1024 === 0) reader.next++
    }),
  'a publish wakes no reader': (bench) => {
    bench.broker.readers.wake = () => {}
  },
  'a reader is not told what it missed': (bench) =>
    bent(bench, (sink) => ({
      readAt: (reader, _missed, isEnd) => sink.readAt(reader, 0, isEnd),
    })),
  'a reader ignores its filter': (bench) => {
    const { readers } = bench.broker
    const open = readers.open.bind(readers)
    readers.open = (request, channel, sink) => open({ ...request, filter: undefined }, channel, sink)
  },
  'a reader begins a millisecond late': (bench) => {
    const { readers } = bench.broker
    const open = readers.open.bind(readers)
    readers.open = ({ fromMs, ...request }, channel, sink) =>
      open({ ...request, fromMs: fromMs === undefined ? undefined : fromMs + 1 }, channel, sink)
  },
  'a delivery does not wait for the disk': (bench) =>
    bent(bench, (sink) => ({
      deliverRead: (reader, delivery) => {
        delivery.run.ungated = true
        sink.deliverRead(reader, delivery)
      },
    })),
  'a delivery takes no credit': (bench) => {
    const { readers } = bench.broker
    const open = readers.open.bind(readers)
    readers.open = (request, channel, sink) => {
      const opened = open(request, channel, sink)
      opened.reader.spend = () => {}
      return opened
    }
  },
}

async function failureOf(seed: number, defect?: (bench: Bench) => void): Promise<unknown> {
  try {
    await new History(seed, defect).run()
    return undefined
  } catch (error) {
    return error
  }
}

/** The minimum counts below are for this many seeds. */
const SEEN_IN = 8
const SEEDS = seedsFrom(1, SEEN_IN, 2_000)
const SEEN: Readonly<Record<string, number>> = {
  'messages read': 100_000,
  'beginnings of chunks read': 100,
  readers: 150,
  'readers that ended': 25,
  'gaps reported': 30,
  duplicates: 1_000,
  crashes: 20,
  fills: 30,
  'messages lost before they were on disk': 5,
}

test('readers agree with the model', { timeout: TIMEOUT_MS }, async () => {
  const counts = new Map<string, number>()
  for (const seed of SEEDS) {
    const history = new History(seed, undefined)
    await history.run().catch((error: unknown) => {
      throw new Error(`seed ${seed}: ${(error as Error).message}`, { cause: error })
    })
    for (const [what, count] of history.counts) counts.set(what, (counts.get(what) ?? 0) + count)
  }
  if (ONE_SEED !== undefined) return
  for (const [what, least] of Object.entries(SEEN))
    expect(counts.get(what) ?? 0, what).toBeGreaterThanOrEqual(leastIn(SEEDS.length, least, SEEN_IN))
})

test.each(Object.keys(DEFECTS))('found: %s', { timeout: TIMEOUT_MS }, async (name) => {
  let failure: unknown
  for (let seed = 1; failure === undefined && seed <= 20; seed++)
    failure = await failureOf(seed, DEFECTS[name])
  expect(failure).toBeInstanceOf(Difference)
})
