import { type RecordOptions } from '@sluice/protocol'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Bench, Q } from '../testing/bench.js'
import { runs } from '../../../../test/amount.js'

const SMALL = { segmentBytes: 16 * 1024, checkpointBytes: 2 * 1024 }

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
          { minLength: 20, maxLength: 40, size: 'max' },
        ),
        async (steps) => {
          const bench = await new Bench(SMALL).open()
          bench.ensure()
          await bench.settle()
          type Expected = {
            offset: number
            priority: number
            since: number
            expiry: number
            delayed: boolean
          }
          const waiting: Expected[] = []
          // Delivers every ready message, and compares order and times with the published options.
          const drain = async (): Promise<void> => {
            const ready = waiting
              .filter(({ since, expiry }) => since <= bench.now && (expiry === 0 || expiry > bench.now))
              .toSorted((a, b) => b.priority - a.priority || a.since - b.since || a.offset - b.offset)
            const worker = bench.consume(60_000)
            await bench.settle()
            expect(worker.offsets).toEqual(ready.map(({ offset }) => offset))
            worker.ackAll()
            worker.leave()
            await bench.settle()
            compared += ready.length
            for (const done of ready) waiting.splice(waiting.indexOf(done), 1)
          }
          for (const { batch, passMs, crash, consume } of steps) {
            const { baseOffset: base } = await bench.publish(batch)
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
          // Messages expire even if no request arrives.
          await bench.pass(120_000)
          await bench.pass(2_000)
          bench.broker.audit()
          const info = bench.broker.catalog.info(Q)
          expect(info).toMatchObject({ ready: 0, scheduled: 0, leased: 0 })
          expect(info.acked + info.expired).toBe(info.published)
        },
      ),
      { numRuns: runs(12, 800) },
    )
    expect(compared).toBeGreaterThan(1_000)
    expect(crashes).toBeGreaterThan(100)
    expect(fromPages).toBeGreaterThan(5)
  })

  it('are checked before anything is written', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure()
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
    // The error shows dates, because an age of years in milliseconds is unreadable.
    await expect(bench.publish([{ atMs: bench.now - 60_001 }])).rejects.toThrow(
      /is \d{4}-.*Z; it may be at most 1m before the current time, \d{4}-.*Z\.$/,
    )
    for (const options of [
      { delayMs: hundredYears },
      { atMs: bench.now - 60_000 },
      { ttlMs: 1 },
      { priority: 31 },
    ])
      await bench.publish([options])
    expect(bench.broker.catalog.info(Q)).toMatchObject({ published: 4, scheduled: 1 })
  })
})
