/** A stream with many messages: the rate of one reader, how soon it begins at a time, and the memory of the broker. */
import type { Sluice } from '@sluice/client'
import { setTimeout as delay } from 'node:timers/promises'
import { Bench, BODY, median } from './measures.js'
import { fixed, whole, type Finding, type Scenario } from './scenario.js'

const BATCH = Array.from({ length: 100 }, () => ({ body: BODY }))
const IN_FLIGHT = 50
const RATE_MIN = 1_500_000
const BEGIN_MS_MAX = 50
const GROWTH_MIB_MAX = 60

/** Publishes `messages` messages, and returns the time at which half of them had been published. */
async function publishHalves(client: Sluice, messages: number): Promise<Date> {
  let left = Math.floor(messages / BATCH.length)
  const half = Math.floor(left / 2)
  let middle = new Date()
  const one = async (): Promise<void> => {
    while (left > 0) {
      if (--left === half) middle = new Date()
      await client.publishBatch('clicks', BATCH)
    }
  }
  await Promise.all(Array.from({ length: IN_FLIGHT }, one))
  return middle
}

/** Reads the whole stream; returns messages per second. */
async function readAll(client: Sluice, messages: number): Promise<number> {
  const beganMs = performance.now()
  let next = 0
  for await (const batch of client.read('clicks', { prefetch: 65_535 }).batches()) {
    if (batch[0]!.offset !== next) throw new Error(`offset ${batch[0]!.offset} came instead of ${next}`)
    next += batch.length
  }
  if (next !== messages) throw new Error(`${next} messages were read instead of ${messages}`)
  return (messages * 1000) / (performance.now() - beganMs)
}

/** Time until the first message of a reader from the time `time` has arrived, in ms. */
async function beginMs(client: Sluice, time: Date): Promise<number> {
  const beganMs = performance.now()
  for await (const message of client.read('clicks', { from: { time }, prefetch: 1 })) {
    if (message.publishedAt < time)
      throw new Error(`message ${message.offset} is older than ${time.toISOString()}`)
    break
  }
  return performance.now() - beganMs
}

/** One reader of `messages` messages, before and after a kill of the broker. */
export const stream: Scenario = async (messages) => {
  const bench = await Bench.start()
  try {
    await bench.warm()
    const producer = await bench.client('producer')
    await producer.streams.ensure('clicks')
    const before = bench.rss()
    const time = await publishHalves(producer, messages)
    await delay(3_000)
    const grown = bench.rss() - before
    const findings: Finding[] = [
      { what: 'memory of the broker grew, MiB', value: fixed(grown), isMet: grown <= GROWTH_MIB_MAX },
    ]
    for (const when of ['before a kill', 'after kill -9 and start']) {
      if (when !== 'before a kill') await bench.kill()
      const client = await bench.client(when)
      const begins = []
      for (let round = 0; round < 5; round++) begins.push(await beginMs(client, time))
      const rates = []
      for (let round = 0; round < 3; round++) rates.push(await readAll(client, messages))
      const [begin, rate] = [median(begins), median(rates)]
      findings.push(
        {
          what: `from a time, first message, ${when}, ms`,
          value: fixed(begin, 1),
          isMet: begin <= BEGIN_MS_MAX,
        },
        { what: `messages read per second, ${when}`, value: whole(rate), isMet: rate >= RATE_MIN },
      )
    }
    return findings
  } finally {
    await bench.dispose()
  }
}
