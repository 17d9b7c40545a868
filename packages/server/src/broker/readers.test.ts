/** Readers: order, positions, credit, filters, cold chunks, retention, and their ends. */
import { recordSize, type ReadRequest, type SluiceError, type StreamOptions } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { CHUNK_MESSAGES, type Delivery } from '../queue/index.js'
import { Bench, Q, type BenchOptions, type Message } from '../testing/bench.js'
import type { Reader, ReaderSink } from './reader.js'

const HOUR = 3_600_000
const SMALL = { segmentBytes: 256 * 1024, checkpointBytes: 16 * 1024 }

const many = (count: number, message: (index: number) => Message = () => ({ bodyBytes: 20 })): Message[] =>
  Array.from({ length: count }, (_, index) => message(index))
const upTo = (end: number, from = 0): number[] => Array.from({ length: end - from }, (_, at) => from + at)

/** A client that reads, and what it got. */
class Client implements ReaderSink {
  isReady = true
  readonly offsets: number[] = []
  readonly ungated: boolean[] = []
  bytes = 0
  missed = 0
  isEnd = false
  error: string | undefined
  reader!: Reader
  openingMissed = 0
  readonly #bench: Bench

  constructor(bench: Bench, request: Partial<ReadRequest> = {}) {
    this.#bench = bench
    const none = { fromMs: undefined, until: undefined, filter: undefined }
    const all = { name: Q, from: 'first', follow: false, messages: 65_535, bytes: 1 << 24, ...none } as const
    bench.broker.turn.begin()
    const { reader, missed } = bench.broker.readers.open({ ...all, ...request }, 1, this)
    this.reader = reader
    this.openingMissed = missed
  }

  deliverRead(_reader: Reader, { run, count, bytes, start, end }: Delivery): void {
    let at = start
    for (let i = 0; i < count; i++) {
      this.offsets.push(run.offset + i)
      at += recordSize(bytes, at)
    }
    expect(at).toBe(end)
    this.bytes += end - start
    this.ungated.push(run.ungated)
  }

  readAt(_reader: Reader, missed: number, isEnd: boolean): void {
    this.missed += missed
    this.isEnd = isEnd
  }

  readEnded(_reader: Reader, error: SluiceError): void {
    this.error = error.code
  }

  async giveBack(messages: number, bytes = 1 << 24): Promise<void> {
    this.#bench.broker.turn.begin()
    this.#bench.broker.readers.credit(this.reader, messages, bytes)
    await this.#bench.settle()
  }

  close(): void {
    this.#bench.broker.readers.close(this.reader)
  }
}

/** Publishes messages in batches of `size`. If they are in a queue, acknowledges all of them. */
async function write(bench: Bench, messages: readonly Message[], size = 100): Promise<void> {
  const isStream = bench.broker.catalog.queue(Q).stream !== undefined
  for (let from = 0; from < messages.length; from += size) {
    await bench.publish(messages.slice(from, from + size))
    if (!isStream) await bench.drain()
  }
}

function ensureStream(bench: Bench, options: Partial<StreamOptions> = {}): void {
  bench.broker.turn.begin()
  bench.broker.streams.ensure({ name: Q, options, update: true })
}

/** A stream with `count` messages. */
async function filled(count: number, options: BenchOptions = SMALL, size = 100): Promise<Bench> {
  const bench = await new Bench(options).open()
  ensureStream(bench)
  await write(bench, many(count), size)
  return bench
}

async function read(bench: Bench, request: Partial<ReadRequest> = {}): Promise<Client> {
  const client = new Client(bench, request)
  await bench.settle()
  return client
}

describe('a reader', () => {
  it.each([1, 7, 100, 1000])('gets each message once, in order, from batches of %i', async (size) => {
    const bench = await filled(2_500, SMALL, size)
    const { offsets, isEnd } = await read(bench)
    expect(offsets).toEqual(upTo(2_500))
    expect(isEnd).toBe(true)
  })

  it('begins at an offset, and ends before another', async () => {
    const bench = await filled(2_500)
    for (const from of [0, 1, 99, 100, 1023, 1024, 2_499, 2_500])
      expect((await read(bench, { from })).offsets).toEqual(upTo(2_500, from))
    expect((await read(bench, { from: 1_020, until: 1_030 })).offsets).toEqual(upTo(1_030, 1_020))
    const last = await read(bench, { from: 'last' })
    expect(last.offsets).toEqual([])
    expect(last.isEnd).toBe(true)
    expect(() => new Client(bench, { from: 2_501 })).toThrow('has no message 2501 yet')
  })

  it('begins at the first message that was published at a time', async () => {
    const bench = await new Bench(SMALL).open()
    ensureStream(bench)
    const times: number[] = []
    for (let i = 0; i < 25; i++) {
      times.push(bench.now)
      await write(bench, many(100))
      await bench.pass(1_000)
    }
    for (const at of [0, 1, 12, 24]) {
      expect((await read(bench, { fromMs: times[at]! })).offsets).toEqual(upTo(2_500, at * 100))
      expect((await read(bench, { fromMs: times[at]! + 1 })).offsets).toEqual(upTo(2_500, (at + 1) * 100))
    }
  })

  it('gets no more than its credit, and at least one message however large', async () => {
    const bench = await filled(1_000)
    const recordBytes = 28
    const client = await read(bench, { messages: 10 })
    expect(client.offsets).toEqual(upTo(10))
    await client.giveBack(3)
    expect(client.offsets).toEqual(upTo(13))
    await client.giveBack(1_000)
    expect(client.offsets).toEqual(upTo(23))
    client.close()
    await client.giveBack(10)
    expect(client.offsets).toEqual(upTo(23))

    const bytes = await read(bench, { bytes: recordBytes * 5 })
    expect(bytes.offsets).toEqual(upTo(5))
    await bytes.giveBack(2, recordBytes * 2)
    expect(bytes.offsets).toEqual(upTo(7))
    const tiny = await read(bench, { bytes: 1 })
    expect(tiny.offsets).toEqual([0])
    await tiny.giveBack(1, recordBytes - 1)
    expect(tiny.offsets).toEqual([0])
    await tiny.giveBack(1, recordBytes)
    expect(tiny.offsets).toEqual([0, 1])
  })

  it('waits while its client does not read', async () => {
    const bench = await filled(1_000)
    const client = new Client(bench)
    client.isReady = false
    await bench.settle()
    expect(client.offsets).toEqual([])
    client.isReady = true
    bench.broker.turn.begin()
    bench.broker.readers.ready(client.reader)
    await bench.settle()
    expect(client.offsets).toEqual(upTo(1_000))
  })

  it('with a filter gets only the messages that match, and is charged only for these', async () => {
    const bench = await new Bench(SMALL).open()
    ensureStream(bench)
    const headers = (index: number) => (index % 7 === 0 ? { kind: 'a', other: 'x' } : { kind: 'b' })
    await write(
      bench,
      many(1_400, (index) => ({ bodyBytes: 20, key: `k${index % 10}`, headers: headers(index) })),
    )
    const keyed = await read(bench, { filter: { key: 'k3' }, messages: 100 })
    expect(keyed.offsets).toEqual(upTo(100).map((at) => at * 10 + 3))
    await keyed.giveBack(100)
    expect(keyed.offsets).toEqual(upTo(140).map((at) => at * 10 + 3))
    expect(keyed.isEnd).toBe(true)
    const both = await read(bench, { filter: { key: 'k0', headers: { kind: 'a' } } })
    expect(both.offsets).toEqual(upTo(20).map((at) => at * 70))
    expect((await read(bench, { filter: { key: 'k' } })).offsets).toEqual([])
  })

  it('examines a limited number of messages in one turn', async () => {
    const bench = await filled(10_000, { segmentBytes: 8 << 20 })
    const client = new Client(bench, { filter: { key: 'none' } })
    let turns = 0
    for (; !client.isEnd; turns++) {
      const before = client.reader.next
      bench.endTurns()
      await new Promise(setImmediate)
      expect(client.reader.next - before).toBeLessThanOrEqual(4_097)
      if (turns > 20) throw new Error('the reader does not end')
    }
    expect(turns).toBeGreaterThan(2)
  })

  it('examines fewer messages in one turn if its filter takes longer', async () => {
    const bench = await new Bench({ ...SMALL, segmentBytes: 8 << 20 }).open()
    ensureStream(bench)
    const headers = Object.fromEntries(upTo(64).map((at) => [`h${at}`, 'v']))
    await write(
      bench,
      many(1_000, () => ({ bodyBytes: 20, headers })),
    )
    const client = new Client(bench, { filter: { headers: { ...headers, h63: 'x' } } })
    for (let before = 0; !client.isEnd; before = client.reader.next) {
      bench.endTurns()
      await new Promise(setImmediate)
      expect(client.reader.next - before).toBeLessThan(200)
    }
    expect(client.offsets).toEqual([])
  })

  it('reads cold chunks, also after a restart and when several readers are at different positions', async () => {
    const bench = await filled(12 * CHUNK_MESSAGES)
    await bench.fill(40_000)
    const { numbers, inMemoryCount } = bench.broker.catalog.queue(Q).chunks.retention!
    expect(numbers.length - inMemoryCount).toBeGreaterThanOrEqual(10)
    const clients = [0, 3_000, 7_777, 12_000].map((from) => new Client(bench, { from }))
    await bench.settle()
    clients.forEach(({ offsets, reader, isEnd }) => {
      expect(offsets).toEqual(upTo(12 * CHUNK_MESSAGES, offsets[0]))
      expect(isEnd).toBe(true)
      expect(reader.isClosed).toBe(true)
    })
    bench.broker.audit()
    expect(await bench.crash()).toBe(true)
    expect((await read(bench)).offsets).toEqual(upTo(12 * CHUNK_MESSAGES))
    bench.broker.audit()
  })

  it('ends with an error when its queue is deleted', async () => {
    const bench = await filled(100)
    const client = await read(bench, { messages: 10 })
    bench.broker.turn.begin()
    bench.broker.streams.delete(Q)
    await bench.settle()
    expect(client.error).toBe('QUEUE_DELETED')
    await client.giveBack(10)
    expect(client.offsets).toEqual(upTo(10))
  })

  it('that follows gets new messages, and those that are not on disk only through the gate', async () => {
    const bench = await filled(100)
    const client = await read(bench, { follow: true })
    expect(client.offsets).toEqual(upTo(100))
    expect(client.isEnd).toBe(false)
    client.ungated.length = 0
    await write(bench, many(50))
    expect(client.offsets).toEqual(upTo(150))
    expect(client.ungated).toEqual([false])
    const late = await read(bench, { from: 120, until: 155, follow: true })
    expect(late.offsets).toEqual(upTo(150, 120))
    expect(late.ungated.every(Boolean)).toBe(true)
    await write(bench, many(50))
    expect(late.offsets).toEqual(upTo(155, 120))
    expect(late.isEnd).toBe(true)
    const other = await read(bench, { from: 'last', follow: true })
    await write(bench, many(5))
    expect(other.offsets).toEqual(upTo(205, 200))
    expect(bench.broker.catalog.queue(Q).listeners).toBe(2)
    client.close()
    other.close()
    expect(bench.broker.catalog.queue(Q).listeners).toBe(0)
  })

  it('leaves out duplicates, which are not missed', async () => {
    const bench = await filled(0)
    await write(bench, [{ id: 'a' }, { id: 'b' }])
    await write(bench, [{ id: 'a' }, { id: 'c' }, { id: 'b' }, {}])
    const client = await read(bench)
    expect(client.offsets).toEqual([0, 1, 3, 5])
    expect(client.missed).toBe(0)
  })

  it('continues after what retention removes, and is notified of how many messages it missed', async () => {
    const bench = await filled(
      10 * CHUNK_MESSAGES,
      { segmentBytes: 256 * 1024, checkpointBytes: 16 * 1024 },
      128,
    )
    const slow = await read(bench, { messages: 100 })
    const waiting = await read(bench, { messages: 1, from: 5 })
    ensureStream(bench, { retainMessages: 3 * CHUNK_MESSAGES })
    await bench.pass(100)
    const first = 7 * CHUNK_MESSAGES
    await slow.giveBack(100)
    expect(slow.offsets).toEqual([...upTo(100), ...upTo(first + 100, first)])
    expect(slow.missed).toBe(first - 100)
    await waiting.giveBack(1)
    expect(waiting.offsets).toEqual([5, first])
    expect(waiting.missed).toBe(first - 6)
    const late = await read(bench, { from: 10 })
    expect(late.openingMissed).toBe(first - 10)
    expect(late.offsets).toEqual(upTo(10 * CHUNK_MESSAGES, first))
    expect((await read(bench)).openingMissed).toBe(0)

    // Everything that the reader has not got is removed.
    ensureStream(bench, { retainMessages: 0, retainAgeMs: 1 })
    await bench.pass(100)
    await slow.giveBack(100)
    expect(slow.missed).toBe(first - 100 + 3 * CHUNK_MESSAGES - 100)
    expect(slow.isEnd).toBe(true)
    expect(bench.broker.streams.info(Q).messages).toBe(0)
  })

  it('of a queue leaves out messages that are not acknowledged, and cannot follow', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure({ retainAgeMs: HOUR })
    await write(bench, many(50))
    await bench.publish(many(10))
    const worker = bench.consume(10)
    await bench.settle()
    worker.settle(55, 1)
    await bench.settle()
    const client = await read(bench)
    expect(client.offsets).toEqual([...upTo(50), 55])
    expect(client.missed).toBe(0)
    expect(() => new Client(bench, { follow: true })).toThrow('no reader can follow it')
    bench.ensure({ retainAgeMs: 0 })
    expect(() => new Client(bench)).toThrow('nothing to read')
  })
})
