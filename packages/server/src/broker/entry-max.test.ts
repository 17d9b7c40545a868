/**
 * A broker on a log whose entries are limited to less than a segment, as in a replicated log. `MemoryLog` refuses a
 * larger entry, and the refusal fails the test. Each kind of write is tested at its limit and just above it.
 */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  LIMITS,
  MESSAGE_OVERHEAD_BYTES,
  OUTCOME,
  batchCount,
  batchLength,
  batchType,
  queueName,
  type QueueName,
} from '@sluice/protocol'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { ENTRY_BYTES_MIN, entryLimits } from '../log/entry-limits.js'
import { entryBatches } from '../log/entry.js'
import { MemoryLog } from '../log/memory-log.js'
import { CHUNK_MESSAGES, PAGE } from '../queue/index.js'
import { Bench, CALLER, Q, batchOf, type Message } from '../testing/bench.js'
import { Broker } from './broker.js'
import type { AckRange } from './commands.js'

const ENTRY = ENTRY_BYTES_MIN
const LIMIT = entryLimits(ENTRY)
const HOUR = 3_600_000
const DAY = 24 * HOUR

const many = (count: number, message: (index: number) => Message): Message[] =>
  Array.from({ length: count }, (_, index) => message(index))
const names = (count: number): QueueName[] => many(count, () => ({})).map((_, i) => queueName(`queue-${i}`))
const refusal = (code: string, ...numbers: number[]): Error =>
  expect.objectContaining({
    code,
    message: expect.stringMatching(numbers.map((number) => `\\b${number}\\b`).join('.*')) as string,
  }) as Error

let bench: Bench
/** Size of the largest entry of the test, and of the largest page of each kind, in bytes. */
let largest: number
let pages: Map<number, number>
let entries: number

function look(): void {
  for (const { bytes } of bench.log.entries) {
    entries++
    largest = Math.max(largest, bytes.length)
    expect(bytes.length).toBeLessThanOrEqual(ENTRY)
    for (const at of entryBatches(bytes, 0)) {
      if (batchType(bytes, at) !== BATCH_TYPE.page) continue
      const kind = batchCount(bytes, at)
      pages.set(kind, Math.max(pages.get(kind) ?? 0, batchLength(bytes, at)))
    }
  }
}

async function open(messageBytesMax = 1024): Promise<void> {
  bench = await new Bench({ entryBytesMax: ENTRY, checkpointBytes: 64 << 10, messageBytesMax }).open()
}

/** Writes until the durable log has a checkpoint, and then crashes. */
async function restart(): Promise<void> {
  for (let tries = 0; tries < 10; tries++) {
    await bench.fill(256 << 10)
    look()
    if ((await bench.log.reopened().open()).checkpoint !== undefined) break
  }
  expect(await bench.crash()).toBe(true)
  bench.broker.audit()
}

beforeEach(async () => {
  largest = 0
  entries = 0
  pages = new Map()
  await open()
})

afterEach(() => {
  look()
  expect(entries).toBeGreaterThan(0)
})

it('writes one turn to several entries, and recovers it', async () => {
  bench.ensure()
  for (let i = 0; i < 100; i++) bench.put(many(10, () => ({ bodyBytes: 900 })))
  await bench.settle()
  look()
  expect(largest).toBeGreaterThan(ENTRY - 10_000)
  await bench.crash()
  expect(bench.info().ready).toBe(1_000)
  expect(await bench.drain()).toHaveLength(1_000)
})

it('accepts a message that takes a quarter of an entry with its overhead, and moves the message when it dies', async () => {
  const messageBytesMax = LIMIT.messageBytesMax - MESSAGE_OVERHEAD_BYTES
  await open(messageBytesMax)
  const dead = queueName('d'.repeat(LIMITS.queueNameBytesMax))
  const source = queueName('s'.repeat(LIMITS.queueNameBytesMax))
  bench.ensure({ ttlMs: HOUR }, dead)
  bench.ensure({ deadLetter: dead, ttlMs: HOUR }, source)
  await bench.publish([{ bodyBytes: messageBytesMax - 20, priority: 3 }], source)
  await bench.kill('x'.repeat(LIMITS.reasonBytesMax), source)
  expect(bench.info(dead).ready).toBe(1)
  await bench.crash()
  expect([bench.info(source).dead, bench.info(dead).ready]).toEqual([0, 1])
})

it('refuses to start with messages that do not fit in a quarter of an entry', async () => {
  const messageBytesMax = LIMIT.messageBytesMax - MESSAGE_OVERHEAD_BYTES + 1
  await expect(open(messageBytesMax)).rejects.toThrow(refusal('INVALID_ARGUMENT', messageBytesMax, ENTRY))
  await open()
})

it('accepts a batch of half of an entry after facts of a quarter, and refuses more of either', async () => {
  bench.ensure({ unique: 'window', dedupWindowMs: HOUR, ttlMs: HOUR })
  await bench.publish([{ id: 'a', bodyBytes: 0 }])
  const known = Math.floor(LIMIT.aheadBytesMax / 24)
  const batch = (count: number, bytes: number): Uint8Array => {
    const messages = many(count, () => ({ id: 'a', bodyBytes: 0 }))
    const left = bytes - batchOf(messages, 1).length
    const rest = Math.ceil(left / 900)
    return batchOf(
      [...messages, ...many(rest, (i) => ({ bodyBytes: Math.floor((left + i) / rest) - 8 }))],
      ++bench.number,
    )
  }
  expect(() => bench.send(batch(known + 1, LIMIT.batchBytesMax))).toThrow(
    refusal('BATCH_TOO_LARGE', known + 1, known),
  )
  expect(() => bench.send(batch(known, LIMIT.batchBytesMax + 1))).toThrow(
    refusal('BATCH_TOO_LARGE', LIMIT.batchBytesMax + 1, LIMIT.batchBytesMax),
  )
  const most = batch(known, LIMIT.batchBytesMax)
  expect(most).toHaveLength(LIMIT.batchBytesMax)
  const placed = bench.send(most)
  expect(placed.duplicates?.size).toBe(known)
  await bench.settle()
  look()
  expect(largest).toBeGreaterThan(LIMIT.batchBytesMax + LIMIT.aheadBytesMax)
  await bench.crash()
  expect(bench.send(most)).toEqual(placed)
})

it('accepts a batch whose replacements fill a quarter of an entry, and cancels the replaced messages', async () => {
  bench.ensure({ unique: 'pending', ttlMs: HOUR })
  const known = Math.floor(LIMIT.aheadBytesMax / 40)
  // The replaced messages are not adjacent, so each has its own fact.
  for (let i = 0; i < known + 1; i += 50) {
    const part = many(2 * Math.min(50, known + 1 - i), (at) =>
      at % 2 === 0 ? { id: `id-${i + at / 2}`, bodyBytes: 0 } : { bodyBytes: 0 },
    )
    await bench.publish(part)
  }
  const ids = (count: number): Message[] =>
    many(count, (i) => ({ id: `id-${i}`, replaces: true, bodyBytes: 20 }))
  expect(() => bench.put(ids(known + 1))).toThrow(refusal('BATCH_TOO_LARGE', known + 1, known))
  const { baseOffset } = await bench.publish(ids(known))
  await bench.crash()
  expect(bench.info()).toMatchObject({ published: baseOffset + known, cancelled: known })
})

it('accepts an atomic step of a quarter of an entry in the smallest batches, and refuses a larger one', async () => {
  const targets = names(500)
  for (const name of targets) bench.ensure({ ttlMs: HOUR }, name)
  await bench.settle()
  const step = (bytes: number) => {
    const number = ++bench.number
    const smallest = batchOf([{ bodyBytes: 0 }], number)
    const count = Math.floor((bytes - BATCH_HEADER_BYTES) / smallest.length)
    const more = bytes - BATCH_HEADER_BYTES - count * smallest.length
    const batches = many(count, () => ({})).map((_, i) => {
      const batch = i === 0 ? batchOf([{ bodyBytes: more }], number) : smallest
      return { queue: targets[i % targets.length]!, bytes: batch, at: 0, end: batch.length }
    })
    return bench.atomic({ number, crc: 1, acks: [], batches })
  }
  expect(() => step(LIMIT.stepBytesMax + 1)).toThrow(
    refusal('TRANSACTION_TOO_LARGE', LIMIT.stepBytesMax + 1, LIMIT.stepBytesMax),
  )
  const places = step(LIMIT.stepBytesMax)
  expect(places.length).toBeGreaterThan(500)
  await bench.settle()
  look()
  expect(largest).toBeGreaterThan(2 * LIMIT.stepBytesMax)
  await bench.crash()
  expect(targets.reduce((sum, name) => sum + bench.info(name).ready, 0)).toBe(places.length)
})

it('accepts an atomic step that acknowledges one message in each of many queues, and refuses one more', async () => {
  const most = Math.floor((LIMIT.stepBytesMax - BATCH_HEADER_BYTES) / (BATCH_HEADER_BYTES + 16))
  const sources = names(most + 1)
  const acks: AckRange[] = []
  for (const name of sources) {
    bench.ensure({}, name)
    await bench.publish([{}], name)
    const worker = bench.consume(1, { name })
    await bench.settle()
    acks.push({ subscription: worker.subscription, firstTag: worker.tagOf(0), count: 1 })
  }
  const step = (count: number) =>
    bench.atomic({ number: ++bench.number, crc: 1, acks: acks.slice(0, count), batches: [] })
  expect(() => step(most + 1)).toThrow(refusal('TRANSACTION_TOO_LARGE', most + 1, LIMIT.stepBytesMax))
  step(most)
  await bench.settle()
  await bench.crash()
  expect(sources.reduce((sum, name) => sum + bench.info(name).acked, 0)).toBe(most)
})

it('writes the page of a chunk of dead messages with every option and the longest reasons', async () => {
  bench.ensure({ unique: 'pending', maxBytes: 1 << 30, keyConcurrency: 1 })
  const bury = async (): Promise<void> => {
    const worker = bench.consume(CHUNK_MESSAGES)
    await bench.settle()
    expect(worker.got).toHaveLength(CHUNK_MESSAGES)
    const reason = 'x'.repeat(LIMITS.reasonBytesMax)
    for (const { offset } of worker.got) worker.settle(offset, OUTCOME.deadLetter, { reason })
    worker.leave()
    await bench.settle()
  }
  for (let i = 0; i < CHUNK_MESSAGES; i++) {
    // Batches that are far apart in time take more space in the page.
    if (i === 1) bench.now += 100 * DAY
    bench.put([{ key: `key-${i}`, id: `id-${i}`, priority: i % 32, ttlMs: 10_000 * DAY }])
  }
  await bench.settle()
  await bury()
  for (let from = 0; from < CHUNK_MESSAGES; from += 512) await bench.redrive({ from, limit: 512 })
  await bury()
  await restart()
  expect(pages.get(PAGE.chunk)).toBeGreaterThan(100 << 10)
  expect(bench.info().dead).toBe(CHUNK_MESSAGES)
  const peek = { name: Q, state: 'dead' as const, from: 0, limit: 1, filter: {} }
  const [first] = (await bench.answer(bench.broker.operator.peek(peek, CALLER))).messages
  expect(first!.reason).toBe('x'.repeat(LIMIT.reasonsBytesMax / CHUNK_MESSAGES))
})

it('writes the page of a producer with all numbers in flight and the largest result', async () => {
  expect(bench.broker.inFlightBatchesMax).toBe(LIMIT.producerNumbersMax)
  bench.ensure({ unique: 'window', dedupWindowMs: 100 * HOUR })
  const inFlight = LIMIT.producerNumbersMax
  const first = batchOf([{ id: 'a', bodyBytes: 0 }], 1)
  bench.send(first)
  for (let number = 2; number < inFlight; number++)
    bench.send(batchOf([{ bodyBytes: 0 }], number), Q, undefined, number - 1)
  expect(bench.send(first, Q, undefined, 0).baseOffset).toBe(0)
  const known = Math.floor(LIMIT.aheadBytesMax / 24)
  const last = batchOf(
    many(known, () => ({ id: 'a', bodyBytes: 0 })),
    inFlight,
  )
  const placed = bench.send(last, Q, undefined, inFlight - 1)
  expect(placed.duplicates?.size).toBe(known)
  await bench.settle()
  await restart()
  expect(pages.get(PAGE.producer)).toBeGreaterThan(inFlight * 20 + known * 8)
  expect(bench.send(last, Q, undefined, inFlight - 1)).toEqual(placed)
  expect(bench.send(first, Q, undefined, 0)).toEqual({ baseOffset: 0, duplicates: undefined })
  // With one more number in flight, the result of the lowest number is forgotten.
  bench.send(batchOf([{}], inFlight + 1), Q, undefined, inFlight)
  expect(() => bench.send(first, Q, undefined, 0)).toThrow(refusal('UNKNOWN_OUTCOME'))
})

it('writes a checkpoint of many queues and ids to many entries, and recovers from it', async () => {
  const queues = names(1_500)
  for (const name of queues) {
    bench.ensure({}, name)
    bench.put([{}, {}], name)
  }
  bench.ensure({ unique: 'window', dedupWindowMs: 100 * HOUR })
  for (let i = 0; i < 2_048; i += 256) bench.put(many(256, (at) => ({ id: `id-${i + at}`, bodyBytes: 0 })))
  await bench.settle()
  await bench.drain(queues[7])
  await restart()
  expect(pages.get(PAGE.ids)).toBeGreaterThan(32 << 10)
  const ready = queues.map((name) => bench.info(name).ready)
  expect(ready).toEqual(queues.map((_, i) => (i === 7 ? 0 : 2)))
  expect((await bench.publish([{ id: 'id-2047' }])).duplicates?.size).toBe(1)
})

it('removes thousands of expired messages with facts in many entries', async () => {
  bench.ensure()
  for (let i = 0; i < 40; i++)
    bench.put(many(500, (at) => ({ bodyBytes: 0, ...(at % 2 === 0 ? { ttlMs: 1_000 } : {}) })))
  await bench.settle()
  await bench.pass(2_000)
  expect(bench.info()).toMatchObject({ expired: 10_000, ready: 10_000 })
  await bench.crash()
  expect(bench.info()).toMatchObject({ expired: 10_000, ready: 10_000 })
})

it('names the segment instead of the entry in the error if the segment size limits entries', async () => {
  const log = new MemoryLog({ segmentBytes: 1 << 20 })
  const opening = Broker.open({
    log,
    now: () => 1,
    random: () => 0.5,
    defer: () => {},
    onFatal: () => {},
    messageBytesMax: 1 << 20,
  })
  await expect(opening).rejects.toThrow(
    /segment-bytes of this log is 1048576.*segment-bytes of 5 MiB or more/,
  )
})
