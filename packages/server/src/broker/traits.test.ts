import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  CONTENT_TYPE,
  OUTCOME,
  queueName,
  recordBytes,
  sealBatch,
  writeRecordHead,
  type RecordOptions,
} from '@sluice/protocol'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { MemoryLog } from '../log/memory-log.js'
import type { Consumer, Run, Subscription } from '../queue/index.js'
import { Broker } from './broker.js'

const Q = queueName('q')

/** A broker on a log in memory, whose time and turns the test drives. */
class Bench {
  log: MemoryLog
  now = 1_000_000
  broker!: Broker
  readonly delivered: { offset: number; atMs: number; attempt: number; redelivered: boolean; tag: number }[] =
    []
  #turns: (() => void)[] = []
  #number = 0

  constructor(segmentBytes = 16 * 1024) {
    this.log = new MemoryLog({ segmentBytes })
  }

  async open(): Promise<void> {
    const opening = Broker.open({
      log: this.log,
      now: () => this.now,
      random: () => 0.5,
      defer: (endTurn) => this.#turns.push(endTurn),
      onFatal: (error) => {
        throw error
      },
      messageBytesMax: 1024,
      checkpointBytes: 4 * 1024,
    })
    this.broker = await opening
  }

  /** Ends turns until nothing more happens. */
  async settle(): Promise<void> {
    for (let quiet = 0; quiet < 20;) {
      const turns = this.#turns.splice(0)
      for (const turn of turns) turn()
      quiet = turns.length > 0 ? 0 : quiet + 1
      await Promise.resolve()
    }
  }

  async publish(messages: readonly RecordOptions[]): Promise<number> {
    const producer = this.broker.attachProducer('00'.repeat(16), 0)
    this.broker.beginTurn()
    const size = messages.reduce((sum, options) => sum + recordBytes(options, 50), BATCH_HEADER_BYTES)
    const bytes = new Uint8Array(size)
    let at = BATCH_HEADER_BYTES
    for (const options of messages) at = writeRecordHead(bytes, at, options, CONTENT_TYPE.bytes, 50) + 50
    sealBatch(bytes, 0, at, {
      type: BATCH_TYPE.messages,
      count: messages.length,
      batchNumber: ++this.#number,
    })
    const { baseOffset } = this.broker.publish(producer, Q, bytes, 0, at, 0)
    await this.settle()
    return baseOffset
  }

  consume(messages: number): Subscription {
    const consumer: Consumer = {
      label: '',
      peer: '',
      isReady: true,
      deliver: (_subscription, run: Run, firstTag, count) => {
        for (let i = 0; i < count; i++) {
          const { attempt, redelivered } = run
          this.delivered.push({
            offset: run.offset + i,
            atMs: this.now,
            attempt,
            redelivered,
            tag: firstTag + i,
          })
        }
      },
      lost: () => {},
      drained: () => {},
      ended: (_subscription, error) => {
        throw error
      },
    }
    return this.broker.subscribe(Q, 1, consumer, messages, 1 << 20, undefined)
  }

  async pass(ms: number): Promise<void> {
    this.now += ms
    this.broker.tick()
    await this.settle()
  }

  /** The process is gone; another one finds what was durable. Returns whether it begins with state pages. */
  async crash(): Promise<boolean> {
    this.log = this.log.reopened()
    const { checkpoint } = await this.log.open()
    this.#turns = []
    await this.open()
    return checkpoint !== undefined
  }
}

describe('priority, delay and time to live', () => {
  it('keep their meaning across crashes, checkpoints and truncated segments', async () => {
    let compared = 0
    let crashes = 0
    let fromPages = 0
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.record({
            batch: fc.array(
              fc.record(
                {
                  priority: fc.constantFrom(0, 1, 31),
                  delayMs: fc.constantFrom(0, 100, 5_000),
                  ttlMs: fc.constantFrom(200, 60_000),
                },
                { requiredKeys: [] },
              ),
              { minLength: 1, maxLength: 12 },
            ),
            passMs: fc.constantFrom(0, 1, 150, 3_000),
            crash: fc.boolean(),
            consume: fc.boolean(),
          }),
          { minLength: 5, maxLength: 40, size: 'max' },
        ),
        async (steps) => {
          const bench = new Bench()
          await bench.open()
          bench.broker.ensure({ name: Q, options: {}, update: false })
          await bench.settle()
          type Expected = {
            offset: number
            priority: number
            since: number
            expiry: number
            delayed: boolean
          }
          const waiting: Expected[] = []
          // Hands out everything that is ready now, and compares order and times with what was asked for.
          const drain = async (): Promise<void> => {
            const ready = waiting
              .filter(({ since, expiry }) => since <= bench.now && (expiry === 0 || expiry > bench.now))
              .toSorted((a, b) => b.priority - a.priority || a.since - b.since || a.offset - b.offset)
            const subscription = bench.consume(60_000)
            bench.delivered.length = 0
            await bench.settle()
            expect(bench.delivered.map(({ offset }) => offset)).toEqual(ready.map(({ offset }) => offset))
            for (const { tag } of bench.delivered)
              bench.broker.settle(subscription, [{ firstTag: tag, count: 1, outcome: OUTCOME.ack }])
            bench.broker.unsubscribe(subscription, 'nobody')
            await bench.settle()
            compared += ready.length
            for (const done of ready) waiting.splice(waiting.indexOf(done), 1)
          }
          for (const { batch, passMs, crash, consume } of steps) {
            const base = await bench.publish(batch)
            for (const [i, { priority = 0, delayMs = 0, ttlMs = 0 }] of batch.entries()) {
              const since = bench.now + delayMs
              const expiry = ttlMs === 0 ? 0 : since + ttlMs
              waiting.push({ offset: base + i, priority, since, expiry, delayed: delayMs > 0 })
            }
            await bench.pass(passMs)
            if (crash) {
              if (await bench.crash()) fromPages++
              crashes++
            }
            if (consume) await drain()
            bench.broker.audit()
          }
          await bench.pass(10_000)
          await drain()
          // What has expired goes by itself, also when nobody asks for it.
          await bench.pass(120_000)
          await bench.pass(2_000)
          bench.broker.audit()
          const info = bench.broker.info(Q)
          expect(info).toMatchObject({ ready: 0, scheduled: 0, leased: 0 })
          expect(info.acked + info.expired).toBe(info.published)
        },
      ),
      { numRuns: 40 },
    )
    expect(compared).toBeGreaterThan(1_000)
    expect(crashes).toBeGreaterThan(100)
    expect(fromPages).toBeGreaterThan(5)
  })

  it('are checked before anything is written', async () => {
    const bench = new Bench()
    await bench.open()
    bench.broker.ensure({ name: Q, options: {}, update: false })
    const hundredYears = 100 * 365.25 * 24 * 3600 * 1000
    const refused: [RecordOptions, string, string][] = [
      [{ delayMs: hundredYears + 1 }, 'delay', 'INVALID_DELAY'],
      [{ atMs: bench.now - 60_001 }, 'at', 'AT_IN_THE_PAST'],
      [{ atMs: bench.now + hundredYears + 1 }, 'at', 'INVALID_DELAY'],
      [{ ttlMs: 0 }, 'ttl', 'INVALID_TTL'],
      [{ ttlMs: hundredYears + 1 }, 'ttl', 'INVALID_TTL'],
    ]
    for (const [options, name, code] of refused) {
      await expect(bench.publish([{}, options])).rejects.toMatchObject({ code })
      await expect(bench.publish([{}, options])).rejects.toThrow(`\`${name}\` of message 1`)
    }
    for (const options of [
      { delayMs: hundredYears },
      { atMs: bench.now - 60_000 },
      { ttlMs: 1 },
      { priority: 31 },
    ])
      await bench.publish([options])
    expect(bench.broker.info(Q)).toMatchObject({ published: 4, scheduled: 1 })
  })
})
