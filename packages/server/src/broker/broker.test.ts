/** Properties that the simulator does not check: the cost of one frame, leaks, and damage at rest. */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  LIMITS,
  OUTCOME,
  SluiceError,
  peekRequest,
  queueName,
  readText,
  readU32,
  sealBatch,
  writeRecordHead,
} from '@sluice/protocol'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { MemoryLog } from '../log/memory-log.js'
import { REASON_HEAD_BYTES, TimeHeap, type Consumer, type Subscription } from '../queue/index.js'
import { Broker } from './broker.js'
import { PRODUCER_IDLE_MS } from '../state/checkpoint.js'
import type { Producer } from '../state/producers.js'

const MIB = 1 << 20
const JOBS = queueName('jobs')
const CALLER = { label: '', isOpen: true }
const PEEK = { name: JOBS, state: undefined, limit: 1, filter: {} }

class Rig {
  readonly log: MemoryLog
  readonly fatal: unknown[] = []
  readonly ended: string[] = []
  readonly got: { readonly offset: number; readonly tag: number; readonly text: string }[] = []
  nowMs = 1_700_000_000_000
  broker!: Broker
  producer!: Producer
  number = 0

  constructor(log: MemoryLog) {
    this.log = log
  }

  async open(): Promise<void> {
    this.broker = await Broker.open({
      log: this.log,
      now: () => this.nowMs,
      random: () => 0.5,
      defer: (endTurn) => void setImmediate(endTurn),
      onFatal: (error) => this.fatal.push(error),
      messageBytesMax: 65_536,
      // The blocks are small, so that all but the last few batches must be read back.
      blocks: { blockBytes: 65_536, recentBytes: 65_536 },
    })
    this.broker.catalog.ensure({ name: JOBS, options: { maxDeliveries: 255 }, update: false })
    this.producer = this.broker.producers.attach('0'.repeat(32), 0)
    await turns()
  }

  async publish(texts: readonly string[]): Promise<void> {
    let length = BATCH_HEADER_BYTES
    for (const text of texts) length += 8 + text.length
    const bytes = new Uint8Array(length)
    let at = BATCH_HEADER_BYTES
    for (const text of texts) {
      at = writeRecordHead(bytes, at, undefined, 1, text.length)
      bytes.set(Buffer.from(text), at)
      at += text.length
    }
    sealBatch(bytes, 0, length, {
      type: BATCH_TYPE.messages,
      count: texts.length,
      batchNumber: ++this.number,
    })
    this.broker.intake.publish(this.producer, 'jobs', bytes, 0, length, 0)
    await turns()
  }

  subscribe(messages: number): Subscription {
    const consumer: Consumer = {
      label: '',
      address: '',
      isReady: true,
      deliver: (_subscription, { run, firstTag, count, bytes, start }) => {
        let at = start
        for (let i = 0; i < count; i++) {
          const size = readU32(bytes, at)
          const text = readText(bytes, at + 8, at + size)
          this.got.push({ offset: run.offset + i, tag: firstTag + i, text })
          at += size
        }
      },
      lost: () => {},
      drained: () => {},
      ended: (_subscription, error) => this.ended.push(error.code),
    }
    return this.broker.leases.subscribe({ queue: JOBS, messages, bytes: 2 ** 32 - 1 }, 1, consumer)
  }
}

async function turns(count = 8): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve))
}

afterEach(() => {
  vi.restoreAllMocks()
})

describe('the cost of one frame', () => {
  test('the reasons of one settle can be larger than a segment', async () => {
    const rig = new Rig(new MemoryLog({ segmentBytes: MIB }))
    await rig.open()
    await rig.publish(Array.from({ length: 2000 }, () => ''))
    const subscription = rig.subscribe(2000)
    await turns()
    expect(rig.got).toHaveLength(2000)
    const item = { firstTag: 0, count: 2000, outcome: OUTCOME.deadLetter, reason: 'x'.repeat(1000) }
    rig.broker.turn.begin()
    expect(rig.broker.leases.settle(subscription, [item])).toEqual([])
    await turns(20)
    expect(rig.fatal).toEqual([])
    expect(rig.broker.catalog.info(JOBS)).toMatchObject({ dead: 2000, leased: 0 })
    rig.broker.audit()
  })

  test('the reasons of one settle take a bounded part of the log, for any number of messages', async () => {
    const rig = new Rig(new MemoryLog({ segmentBytes: 64 * MIB }))
    await rig.open()
    for (let i = 0; i < 20; i++) await rig.publish(Array.from({ length: 1000 }, () => ''))
    const subscription = rig.subscribe(20_000)
    await turns(40)
    expect(rig.got).toHaveLength(20_000)
    const before = rig.broker.usage().writtenBytes
    const reason = 'x'.repeat(LIMITS.reasonBytesMax)
    const item = { firstTag: 0, count: 20_000, outcome: OUTCOME.deadLetter, reason }
    rig.broker.turn.begin()
    expect(rig.broker.leases.settle(subscription, [item])).toEqual([])
    await turns(20)
    const bytes = rig.broker.usage().writtenBytes - before
    expect(bytes).toBeGreaterThan(20_000 * (24 + 64))
    expect(bytes).toBeLessThan(20_000 * (24 + 64) + 64 * 1024)
    const page = await rig.broker.operator.peek({ ...PEEK, from: 19_999 }, CALLER)
    expect(page.messages[0]!.reason).toBe('x'.repeat(64))
    rig.broker.audit()
  })

  test('reasons that differ are kept in full up to the limit, even after a restart', async () => {
    const rig = new Rig(new MemoryLog({ segmentBytes: 16 * MIB }))
    await rig.open()
    const count = 3_000
    for (let i = 0; i < 3; i++) await rig.publish(Array.from({ length: 1000 }, () => ''))
    const subscription = rig.subscribe(count)
    await turns(20)
    const reasonOf = (offset: number): string => `${offset}: ${'x'.repeat(4_000)}`
    const bury = (offset: number): void => {
      const item = { firstTag: rig.got[offset]!.tag, count: 1, outcome: OUTCOME.deadLetter }
      rig.broker.turn.begin()
      rig.broker.leases.settle(subscription, [{ ...item, reason: reasonOf(offset) }])
    }
    for (let offset = 0; offset < count; offset++) bury(offset)
    await turns(20)
    const check = async (): Promise<void> => {
      const [first] = (await rig.broker.operator.peek({ ...PEEK, from: 0 }, CALLER)).messages
      expect(first!.reason === reasonOf(0)).toBe(true)
      const [last] = (await rig.broker.operator.peek({ ...PEEK, from: count - 1 }, CALLER)).messages
      expect(last!.reason).toBe(reasonOf(count - 1).slice(0, REASON_HEAD_BYTES))
      expect(rig.broker.catalog.info(JOBS)).toMatchObject({ dead: count })
    }
    await check()
    const again = new Rig(rig.log.reopened())
    await again.open()
    Object.assign(rig, { broker: again.broker })
    await check()
  })

  test('a checkpoint can contain a whole chunk of dead messages with the longest reason', async () => {
    const rig = new Rig(new MemoryLog({ segmentBytes: MIB }))
    await rig.open()
    await rig.publish(Array.from({ length: 1024 }, () => ''))
    const subscription = rig.subscribe(1024)
    await turns()
    rig.broker.turn.begin()
    const reason = 'x'.repeat(LIMITS.reasonBytesMax)
    const items = rig.got.map(({ tag }) => ({ firstTag: tag, count: 1, outcome: OUTCOME.deadLetter, reason }))
    rig.broker.leases.settle(subscription, items)
    for (let i = 0; i < 30; i++) await rig.publish(['x'.repeat(60_000)])
    expect(rig.fatal).toEqual([])
    expect((await rig.log.reopened().open()).checkpoint).toBeDefined()
  })

  test('unused credit takes no memory', async () => {
    const rig = new Rig(new MemoryLog({ segmentBytes: MIB }))
    await rig.open()
    const before = process.memoryUsage().arrayBuffers
    for (let i = 0; i < 100; i++) rig.subscribe(65_535)
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(10 * MIB)
  })
})

test('timers that are replaced by earlier timers do not accumulate', async () => {
  const pushes = vi.spyOn(TimeHeap.prototype, 'push')
  const rig = new Rig(new MemoryLog({ segmentBytes: MIB }))
  await rig.open()
  await rig.publish(['far', 'near'])
  const subscription = rig.subscribe(10)
  await turns()
  const retry = (tag: number, delayMs: number): void => {
    rig.broker.turn.begin()
    rig.broker.leases.settle(subscription, [{ firstTag: tag, count: 1, outcome: OUTCOME.retry, delayMs }])
  }
  retry(0, 1e10)
  for (let cycle = 0; cycle < 250; cycle++) {
    retry(rig.got.at(-1)!.tag, 10)
    await turns(2)
    rig.nowMs += 10
    rig.broker.turn.tick()
    await turns(2)
  }
  expect(rig.got).toHaveLength(252)
  expect(Math.max(...pushes.mock.contexts.map((heap) => (heap as TimeHeap).size))).toBeLessThan(100)
})

test('a producer is remembered for a week after its connection ended, not after its last message', async () => {
  const rig = new Rig(new MemoryLog({ segmentBytes: MIB }))
  await rig.open()
  const other = rig.broker.producers.attach('1'.repeat(32), 0)
  await rig.publish(['hello'])
  rig.nowMs += PRODUCER_IDLE_MS + 1
  rig.broker.turn.begin()
  rig.broker.producers.detach(rig.producer)
  rig.producer = other
  rig.number = 0
  for (let i = 0; i < 30; i++) await rig.publish(['x'.repeat(60_000)])
  expect((await rig.log.reopened().open()).checkpoint).toBeDefined()
  expect(rig.broker.producers.attach('0'.repeat(32), 1).highest).toBe(1)
})

test('a broker does not open on a log that cannot be written', async () => {
  const log = new MemoryLog({ segmentBytes: MIB, beforeAppend: () => Promise.reject(new Error('EIO')) })
  await expect(new Rig(log).open()).rejects.toMatchObject({ code: 'LOG_FAILED' })
})

describe('a log with a temporary read failure', () => {
  async function filled(): Promise<{ rig: Rig; break: () => void; mend: () => void; reads: () => number }> {
    const log = new MemoryLog({ segmentBytes: MIB })
    const rig = new Rig(log)
    await rig.open()
    for (let i = 0; i < 20; i++)
      await rig.publish(Array.from({ length: 10 }, (_, j) => `m${i * 10 + j}`.padEnd(1000, '.')))
    const readRange = log.readRange.bind(log)
    let broken = false
    let reads = 0
    log.readRange = async (position, length) => {
      if (!broken) return readRange(position, length)
      reads++
      // Like the file log, this log pauses between tries.
      await turns(1)
      throw new SluiceError('READ_FAILED', 'The segment could not be read: EMFILE: too many open files.')
    }
    return { rig, break: () => (broken = true), mend: () => (broken = false), reads: () => reads }
  }

  test('ends no consumer, and messages are delivered once the log can be read again', async () => {
    const { rig, break: breakIt, mend, reads } = await filled()
    breakIt()
    rig.subscribe(200)
    await turns(50)
    expect(reads()).toBeGreaterThan(3)
    expect(rig.ended).toEqual([])
    expect(rig.fatal).toEqual([])
    mend()
    await turns(200)
    expect(rig.got.map(({ offset }) => offset)).toEqual(Array.from({ length: 200 }, (_, offset) => offset))
    rig.broker.audit()
  })

  test('makes operator requests fail with a retryable code, without changing anything', async () => {
    const { rig, break: breakIt, mend } = await filled()
    breakIt()
    const peek = peekRequest({ name: JOBS, state: 'ready', limit: 5 })
    await expect(rig.broker.operator.peek(peek, CALLER)).rejects.toMatchObject({
      code: 'READ_FAILED',
      retryable: true,
      scope: 'request',
    })
    expect(rig.fatal).toEqual([])
    mend()
    expect((await rig.broker.operator.peek(peek, CALLER)).messages).toHaveLength(5)
  })
})

describe('damage at rest to the header of a batch', () => {
  // The damaged field, the index of its damaged byte in the header, and the mask of the flipped bits.
  const flips: readonly (readonly [string, number, number])[] = [
    ['length', 3, 0x10],
    ['queue', 8, 1],
    ['count', 12, 4],
    ['base offset, up', 16, 2],
    ['base offset, far up', 20, 1],
  ]
  test.each(flips)('%s: no message of the batch is delivered', async (_what, byte, bit) => {
    const log = new MemoryLog({ segmentBytes: MIB })
    const rig = new Rig(log)
    await rig.open()
    for (let i = 0; i < 20; i++)
      await rig.publish(Array.from({ length: 10 }, (_, j) => `m${i * 10 + j}`.padEnd(1000, '.')))
    const entry = log.entries.find(({ bytes }) => Buffer.from(bytes).includes('m10.'))!
    const at = entry.position + Buffer.from(entry.bytes).indexOf('m10.') - 8 - BATCH_HEADER_BYTES + byte
    const readRange = log.readRange.bind(log)
    let reads = 0
    log.readRange = async (position, length) => {
      reads++
      const bytes = Uint8Array.from(await readRange(position, length))
      if (at >= position && at < position + length) bytes[at - position]! ^= bit
      return bytes
    }
    const subscription = rig.subscribe(15)
    await turns(50)
    expect(subscription.unsettled).toBe(0)
    expect(rig.got.map(({ offset }) => offset)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    for (const { offset, text } of rig.got) expect(text).toBe(`m${offset}`.padEnd(1000, '.'))
    expect(rig.ended).toEqual(['CORRUPT'])
    expect(reads).toBeLessThan(10)
    expect(rig.fatal).toEqual([])
  })
})
