/** Many queues with small segments: memory for each queue, and the time and processor time of a restart. */
import type { Sluice } from '@sluice/client'
import { Bench } from './measures.js'
import { cpuMs } from './proc.js'
import { fixed, whole, type Scenario } from './scenario.js'

/** The maximum number of queues of one broker. */
const QUEUES_MAX = 100_000
const IN_FLIGHT = 500
const READY_MS_MAX = 2_000
const QUEUE_KIB_MAX = 3
/** What the broker needs once, for its code and buffers. */
const WARM_MIB = 50
const SMALL = { segmentBytes: 1 << 20, messageBytesMax: 100 << 10 }
const KIB = 1 << 10

async function inWaves(count: number, each: (index: number) => Promise<unknown>): Promise<void> {
  for (let from = 0; from < count; from += IN_FLIGHT) {
    const wave = Math.min(IN_FLIGHT, count - from)
    await Promise.all(Array.from({ length: wave }, (_, index) => each(from + index)))
  }
}

async function readyIn(client: Sluice, queues: number): Promise<number> {
  let ready = 0
  await inWaves(queues, async (index) => {
    const info = await client.queues.get(`queue-${index}`)
    ready += info.ready
  })
  return ready
}

/** `messages` queues, at most 100,000, with one message each; the broker is killed and restarted twice. */
export const queues: Scenario = async (messages) => {
  const count = Math.min(messages, QUEUES_MAX)
  const bench = await Bench.start(SMALL)
  try {
    const client = await bench.client('producer')
    const before = bench.rss()
    await inWaves(count, (index) => client.queues.ensure(`queue-${index}`))
    const empty = bench.rss()
    await inWaves(count, (index) => client.publish(`queue-${index}`, 'x'))
    const filled = bench.rss()
    const restarts: { readyMs: number; processorMs: number; rss: number }[] = []
    for (let restart = 0; restart < 2; restart++) {
      const readyMs = await bench.kill()
      restarts.push({ readyMs, processorMs: cpuMs(bench.broker.pid).user, rss: bench.rss() })
    }
    const ready = await readyIn(await bench.client('again'), count)
    const each = ((empty - before) * KIB) / count
    const shown = (of: (restart: (typeof restarts)[number]) => number): string =>
      restarts.map((restart) => whole(of(restart))).join(' and ')
    return [
      {
        what: `memory for each of ${whole(count)} empty queues, KiB`,
        value: fixed(each),
        isMet: empty - before < WARM_MIB + (count * QUEUE_KIB_MAX) / KIB,
      },
      { what: 'memory with one message in each queue, MiB', value: whole(filled), isMet: true },
      { what: 'memory after kill -9 and start, MiB', value: shown(({ rss }) => rss), isMet: true },
      {
        what: 'ready after kill -9, ms',
        value: shown(({ readyMs }) => readyMs),
        isMet: restarts.every(({ readyMs }) => readyMs < READY_MS_MAX),
      },
      // On a busy machine the time until it is ready is several times as long, and the processor time hardly longer.
      {
        what: 'processor time until it was ready, ms',
        value: shown(({ processorMs }) => processorMs),
        isMet: true,
      },
      { what: 'messages that are ready after two restarts', value: whole(ready), isMet: ready === count },
    ]
  } finally {
    await bench.dispose()
  }
}
