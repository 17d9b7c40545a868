/** Queues that retain their acknowledged messages: replay from a time, and the disk space beside a busy queue. */
import type { Sluice } from '@sluice/client'
import { setTimeout as delay } from 'node:timers/promises'
import { drain, Bench, BODY, median } from './measures.js'
import { fixed, whole, type Finding, type Scenario } from './scenario.js'

const BATCH = Array.from({ length: 100 }, () => ({ body: BODY }))
const IN_FLIGHT = 50
const REPLAYED = 1_000
const BEGIN_MS_MAX = 50
const GROWTH_MIB_MAX = 40

/** Publishes `messages` messages, and returns the time at which half of them had been published. */
async function publishHalves(client: Sluice, queue: string, messages: number): Promise<Date> {
  let left = Math.floor(messages / BATCH.length)
  const half = Math.floor(left / 2)
  let middle = new Date()
  const one = async (): Promise<void> => {
    while (left > 0) {
      if (--left === half) middle = new Date()
      await client.publishBatch(queue, BATCH)
    }
  }
  await Promise.all(Array.from({ length: IN_FLIGHT }, one))
  return middle
}

/** Time until the first message of a replay from the time `from` is published, and until REPLAYED are, in ms. */
async function replayTimes(client: Sluice, from: Date): Promise<{ first: number; all: number }> {
  const began = performance.now()
  await client.queues.replay('orders', { from, limit: 1, to: 'copies' })
  const begun = performance.now()
  await client.queues.replay('orders', { from, limit: REPLAYED, to: 'copies' })
  return { first: begun - began, all: performance.now() - begun }
}

/** A replay from the middle of `messages` retained messages: how soon it begins, before and after a kill of the broker. */
export const replay: Scenario = async (messages) => {
  const bench = await Bench.start()
  try {
    await bench.warm()
    const producer = await bench.client('producer')
    const consumer = await bench.client('consumer')
    await producer.queues.ensure('orders', { retain: { age: '7d' } })
    await producer.queues.ensure('copies')
    const before = bench.rss()
    const drained = drain(consumer, 'orders', messages)
    const middle = await publishHalves(producer, 'orders', messages)
    await drained
    await delay(3_000)
    const grown = bench.rss() - before
    const findings: Finding[] = [
      { what: 'memory of the broker grew, MiB', value: fixed(grown), isMet: grown <= GROWTH_MIB_MAX },
    ]
    for (const when of ['before a kill', 'after kill -9 and start']) {
      const isAfter = when !== 'before a kill'
      const readyMs = isAfter ? await bench.kill() : 0
      const client = isAfter ? await bench.client('again') : producer
      const times = []
      for (let round = 0; round < 5; round++) times.push(await replayTimes(client, middle))
      const first = times.map((time) => time.first)
      if (isAfter) findings.push({ what: 'ready, ms', value: whole(readyMs), isMet: readyMs <= 1_500 })
      findings.push({
        what: `${when}: first message of a replay by time, first and median of five, ms`,
        value: `${fixed(first[0]!)} and ${fixed(median(first))}`,
        isMet: first[0]! < BEGIN_MS_MAX,
      })
      findings.push({
        what: `${when}: ${whole(REPLAYED)} messages, median, ms`,
        value: fixed(median(times.map((time) => time.all))),
        isMet: true,
      })
    }
    return findings
  } finally {
    await bench.dispose()
  }
}

const PAYLOAD = Array.from({ length: 50 }, () => ({ body: new Uint8Array(1_000).fill(7) }))
/** One message in this many is published to the retained queue. */
const RETAINED_SHARE = 50
const SEGMENT_MIB = 64
/** Space that the broker may use in any case: two segments in use and four of slack. */
const SLACK_MIB = 6 * SEGMENT_MIB

/** A queue that retains for seven days beside a busy queue, with `messages` messages of 1,000 bytes in total. */
export const beside: Scenario = async (messages) => {
  const bench = await Bench.start()
  try {
    const client = await bench.client('both')
    await client.queues.ensure('audit', { retain: { age: '7d' } })
    await client.queues.ensure('busy')
    const consumer = await bench.client('consumer')
    consumer.consume('busy', { concurrency: 1_000 }, () => {})
    consumer.consume('audit', { concurrency: 100 }, () => {})
    let left = Math.floor(messages / PAYLOAD.length)
    const one = async (): Promise<void> => {
      while (left > 0) {
        if (left-- % RETAINED_SHARE === 0) await client.publishBatch('audit', PAYLOAD)
        else await client.publishBatch('busy', PAYLOAD)
      }
    }
    let worst = 0
    const end = new AbortController()
    const watch = async (): Promise<void> => {
      while (!end.signal.aborted) {
        await delay(500)
        const [audit, busy] = await Promise.all([client.queues.get('audit'), client.queues.get('busy')])
        const live = (audit.retainedBytes + audit.bytes + busy.bytes) / 2 ** 20
        worst = Math.max(worst, (await bench.diskMib()) / (live + SLACK_MIB / 3))
      }
    }
    const watching = watch()
    await Promise.all(Array.from({ length: 20 }, one))
    end.abort()
    await watching
    const { retainedBytes } = await client.queues.get('audit')
    const disk = await bench.diskMib()
    return [
      { what: 'written, GB of messages', value: fixed(messages / 1e6), isMet: true },
      {
        what: 'retained and on the disk at the end, MiB',
        value: `${fixed(retainedBytes / 2 ** 20, 0)} and ${fixed(disk, 0)}`,
        isMet: true,
      },
      {
        what: `largest size on the disk, against live messages and a third of the fixed ${SLACK_MIB} MiB`,
        value: fixed(worst, 2),
        isMet: worst < 3,
      },
    ]
  } finally {
    await bench.dispose()
  }
}
