/** Scenarios with large backlogs, meant for ten million messages: memory, publish rate and drain rate. */
import type { PublishOptions, Sluice } from '@sluice/client'
import { Bench, BODY, drain, fill } from './measures.js'
import { fixed, whole, type Finding, type Scenario } from './scenario.js'

/** Number of batches in flight. */
const BATCHES = 200

/** Publishes `count` messages in batches of `size`; returns messages per second. */
async function fillByBatches(client: Sluice, queue: string, count: number, size: number): Promise<number> {
  const batch = Array.from({ length: size }, () => ({ body: BODY }))
  let left = Math.floor(count / size)
  const beganMs = performance.now()
  const one = async (): Promise<void> => {
    while (left > 0) {
      left--
      await client.publishBatch(queue, batch)
    }
  }
  await Promise.all(Array.from({ length: BATCHES }, one))
  return (count * 1000) / (performance.now() - beganMs)
}

/**
 * Messages without options, published in batches of a hundred, and a fifth as many in batches of one: memory, restart time,
 * and drain rate.
 */
export const waiting: Scenario = async (all) => {
  const findings: Finding[] = []
  for (const size of [1, 100]) {
    const messages = size === 1 ? Math.ceil(all / 5) : all
    const bench = await Bench.start()
    try {
      await bench.warm()
      const producer = await bench.client('producer')
      const client = await bench.client('consumer')
      await client.queues.ensure('orders')
      // Drain rate of messages that were just published and are still in memory.
      const hot: number[] = []
      for (let round = 0; round < 5; round++) {
        await fillByBatches(producer, 'orders', 100_000, size)
        hot.push(await drain(client, 'orders', 100_000))
      }
      const hotRate = Math.max(...hot)
      const before = bench.rss()
      const rate = await fillByBatches(producer, 'orders', messages, size)
      const grown = bench.rss() - before
      const readyMs = await bench.kill()
      const drained = await drain(await bench.client('again'), 'orders', messages)
      const from = `${whole(messages)} from batches of ${size}`
      findings.push(
        { what: `${from}, published per second`, value: whole(rate), isMet: true },
        { what: `${from}, memory grew, MiB`, value: fixed(grown), isMet: grown <= 40 },
        { what: `${from}, ready after kill -9, ms`, value: whole(readyMs), isMet: readyMs <= 1_500 },
        {
          what: `${from}, drained per second after the restart, against messages still in memory`,
          value: `${whole(drained)} against ${whole(hotRate)}, ${fixed((100 * drained) / hotRate, 0)} %`,
          isMet: drained >= 0.6 * hotRate,
        },
      )
    } finally {
      await bench.dispose()
    }
  }
  return findings
}

/** Publishes plain messages and messages with options alternately, and compares their rates; `of` returns the options. */
async function irregular(
  messages: number,
  what: string,
  of: (index: number) => PublishOptions,
): Promise<Finding[]> {
  const bench = await Bench.start()
  try {
    await bench.warm()
    const client = await bench.client('producer')
    const SLICE = Math.max(1, Math.floor(messages / 10))
    await client.queues.ensure('irregular')
    const rates = { plain: [] as number[], irregular: [] as number[] }
    let before = 0
    for (let slice = 0; slice < 10; slice++) {
      await client.queues.ensure('plain')
      rates.plain.push(await fill(client, 'plain', SLICE, () => undefined))
      await client.queues.delete('plain')
      if (slice === 0) before = bench.rss()
      rates.irregular.push(await fill(client, 'irregular', SLICE, (index) => of(slice * SLICE + index)))
    }
    const grown = bench.rss() - before
    const readyMs = await bench.kill()
    const mean = (values: readonly number[]): number =>
      values.length / values.reduce((sum, value) => sum + 1 / value, 0)
    const ratio = mean(rates.irregular) / mean(rates.plain)
    return [
      { what: `${whole(messages)} ${what}, memory grew, MiB`, value: fixed(grown), isMet: grown <= 240 },
      {
        what: 'published per second, against plain messages published alternately',
        value: `${whole(mean(rates.irregular))} against ${whole(mean(rates.plain))}, ${fixed(100 * ratio, 0)} %`,
        isMet: ratio >= 0.5,
      },
      { what: 'ready after kill -9, ms', value: whole(readyMs), isMet: true },
    ]
  } finally {
    await bench.dispose()
  }
}

const YEAR_MS = 365 * 86_400_000

/** Delayed messages that are due within a year; none of them is due soon. */
export const later: Scenario = (messages) =>
  irregular(messages, 'messages due within a year', (index) => ({
    delay: 3_600_000 + ((index * 2_654_435_761) % YEAR_MS),
  }))

const CUSTOMERS = Array.from({ length: 10_000 }, (_, key) => ({ key: `customer-${key}` }))

export const keys: Scenario = (messages) =>
  irregular(messages, 'messages over 10,000 keys', (index) => CUSTOMERS[(index * 7_919) % CUSTOMERS.length]!)
