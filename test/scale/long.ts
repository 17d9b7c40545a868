/** Many connections, and a steady load for a long time. */
import type { Sluice } from '@sluice/client'
import { createHistogram } from 'node:perf_hooks'
import { setTimeout as delay } from 'node:timers/promises'
import { nowMs, pace } from '../load/pacer.js'
import { Bench, BODY, median } from './measures.js'
import { fixed, whole, type Scenario } from './scenario.js'

const CONNECTIONS = 1_000
const IN_FLIGHT = 64
const WINDOW_MS = 4_000

/** Publishes on all connections for a while, each with `inFlight` messages in flight; returns messages per second. */
async function together(clients: readonly Sluice[], queue: string, inFlight: number): Promise<number> {
  let confirmed = 0
  const end = new AbortController()
  const one = async (client: Sluice): Promise<void> => {
    while (!end.signal.aborted) {
      await client.publish(queue, BODY)
      confirmed++
    }
  }
  const loops = clients.flatMap((client) => Array.from({ length: inFlight }, () => one(client)))
  await delay(1_000)
  const before = confirmed
  const beganMs = performance.now()
  await delay(WINDOW_MS)
  const rate = ((confirmed - before) * 1000) / (performance.now() - beganMs)
  end.abort()
  await Promise.all(loops)
  return rate
}

/** A thousand connections: their memory while they are idle, and the rate at which they publish together. */
export const connections: Scenario = async () => {
  const bench = await Bench.start()
  try {
    await bench.warm()
    const alone = await bench.client('alone')
    await alone.queues.ensure('orders')
    await delay(1_000)
    const before = bench.rss()
    const many: Sluice[] = []
    while (many.length < CONNECTIONS) {
      const some = Array.from({ length: 50 }, (_, i) => bench.client(`client-${many.length + i}`))
      many.push(...(await Promise.all(some)))
    }
    await delay(1_000)
    const idleKib = ((bench.rss() - before) * 1024) / CONNECTIONS
    const one: number[] = []
    const all: number[] = []
    for (let round = 0; round < 3; round++) {
      one.push(await together([alone], 'orders', CONNECTIONS))
      all.push(await together(many, 'orders', IN_FLIGHT))
      await alone.queues.purge('orders')
    }
    const share = median(all) / median(one)
    return [
      {
        what: `${whole(CONNECTIONS)} idle connections, broker memory for each, KiB`,
        value: fixed(idleKib),
        isMet: idleKib <= 20,
      },
      {
        what: `published per second by all with ${IN_FLIGHT} in flight each, against one with ${whole(CONNECTIONS)}, medians of 3`,
        value: `${whole(median(all))} against ${whole(median(one))}, ${fixed(100 * share, 0)} %`,
        isMet: share >= 0.6,
      },
    ]
  } finally {
    await bench.dispose()
  }
}

const RATE = 100_000
const RECORD_BYTES = BODY.length + 8
const PART_MS = 60_000
const SEGMENT_MIB = 64

/** A steady load at a fixed rate. `messages` scales the duration: ten minutes for a million. */
export const steady: Scenario = async (messages) => {
  const bench = await Bench.start()
  try {
    await bench.warm()
    const producer = await bench.client('producer')
    const consumer = await bench.client('consumer')
    await producer.queues.ensure('orders')
    const latency = createHistogram()
    let consumed = 0
    let failed = 0
    const worker = consumer.consume('orders', { concurrency: 10_000, prefetch: 10_000 }, ({ body }) => {
      const bytes = body as Uint8Array
      const sentMs = new DataView(bytes.buffer, bytes.byteOffset).getFloat64(0)
      latency.record(Math.max(1, Math.round((nowMs() - sentMs) * 1000)))
      consumed++
    })
    // `publish` copies the body, so one buffer serves all messages.
    const body = new Uint8Array(BODY)
    const view = new DataView(body.buffer)
    const stop = pace(RATE, (dueMs) => {
      view.setFloat64(0, dueMs)
      producer.publish('orders', body).catch(() => failed++)
    })
    await delay(10_000)
    const written = bench.deviceWrittenBytes()
    const before = await bench.broker.disk()
    const from = consumed
    const partMs = Math.max(2_000, (PART_MS * messages) / 1_000_000)
    const parts: { rss: number; disk: number; p99: number }[] = []
    for (let part = 0; part < 10; part++) {
      latency.reset()
      await delay(partMs)
      parts.push({ rss: bench.rss(), disk: await bench.diskMib(), p99: latency.percentile(99) / 1000 })
    }
    const bytes = (consumed - from) * RECORD_BYTES
    const device = (bench.deviceWrittenBytes() - written) / bytes
    const after = await bench.broker.disk()
    const amplification =
      (after.writtenBytes - before.writtenBytes) / (after.recordBytes - before.recordBytes)
    stop()
    await delay(1_000)
    await worker.close()
    const left = (await producer.queues.get('orders')).ready
    const shown = (of: (part: (typeof parts)[number]) => number, digits: number): string =>
      parts.map((part) => fixed(of(part), digits)).join(' ')
    const halves = (of: (part: (typeof parts)[number]) => number): [number, number] => [
      median(parts.slice(0, 5).map((part) => of(part))),
      median(parts.slice(5).map((part) => of(part))),
    ]
    const growth = (of: (part: (typeof parts)[number]) => number): number => {
      const [first, second] = halves(of)
      return second / first
    }
    const grown = (of: (part: (typeof parts)[number]) => number): number => {
      const [first, second] = halves(of)
      return second - first
    }
    const rate = (consumed - from) / ((10 * partMs) / 1000)
    return [
      { what: 'consumed per second', value: whole(rate), isMet: rate > 0.98 * RATE && failed === 0 },
      { what: 'not consumed at the end', value: whole(left), isMet: left === 0 },
      {
        what: 'memory after each part, MiB',
        value: shown(({ rss }) => rss, 0),
        isMet: growth(({ rss }) => rss) < 1.1,
      },
      {
        what: 'disk after each part, MiB',
        value: shown(({ disk }) => disk, 0),
        // Disk space is allocated and freed in whole segments.
        isMet: grown(({ disk }) => disk) <= SEGMENT_MIB,
      },
      {
        what: 'latency of each part, p99, ms',
        value: shown(({ p99 }) => p99, 1),
        isMet: growth(({ p99 }) => p99) < 1.5,
      },
      {
        what: 'bytes written per byte of records, padding included',
        value: fixed(amplification, 2),
        isMet: amplification <= 1.5,
      },
      {
        what: 'bytes that the device wrote per byte of records, in whole pages and with the file system journal',
        value: fixed(device, 2),
        isMet: true,
      },
    ]
  } finally {
    await bench.dispose()
  }
}
