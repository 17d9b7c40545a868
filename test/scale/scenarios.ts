/** Scenarios that measure keys, delays and the memory budget at scale. */
import type { Sluice } from '@sluice/client'
import { encodeControl, LIMITS, OP } from '@sluice/protocol'
import { frame } from '../rig/frames.js'
import { Peer } from '../rig/peer.js'
import { keys, later, waiting } from './backlogs.js'
import { connections, steady } from './long.js'
import { queues } from './many.js'
import { Bench, BODY, drain, fill, median, percentile } from './measures.js'
import { peakMib } from './proc.js'
import { requests } from './requests.js'
import { beside, replay } from './retained.js'
import { fixed, whole, type Scenario } from './scenario.js'
import { stream } from './streams.js'

/** A held key with many waiting messages: does a message of another key arrive without delay? `hold` holds the key. */
const behindKey =
  (hold: (client: Sluice) => Promise<void>): Scenario =>
  async (messages) => {
    const bench = await Bench.start()
    try {
      const producer = await bench.client('producer')
      const other = await bench.client('other')
      await hold(await bench.client('holder'))
      let arrived: (() => void) | undefined
      const worker = other.consume('orders', { concurrency: 4 }, () => arrived?.())
      // Both times end in the handler: one starts with the call of publish, the other with the confirm, which follows the sync.
      const rounds = async (name: string): Promise<{ fromPublish: number[]; fromConfirm: number[] }> => {
        const fromPublish: number[] = []
        const fromConfirm: number[] = []
        for (let i = 0; i < 200; i++) {
          const beganMs = performance.now()
          const handled = new Promise<number>((resolve) => {
            arrived = () => resolve(performance.now())
          })
          await producer.publish('orders', 'other', { key: `${name}-${i}` })
          const confirmedMs = performance.now()
          const handledMs = await handled
          fromPublish.push(handledMs - beganMs)
          fromConfirm.push(handledMs - confirmedMs)
        }
        return { fromPublish, fromConfirm }
      }
      await rounds('warm')
      const alone = await rounds('alone')
      await fill(producer, 'orders', messages, () => ({ key: 'blocked' }))
      const behind = await rounds('behind')
      const shown = (times: readonly number[]): string =>
        [median(times), percentile(times, 0.95), Math.max(...times)].map((ms) => fixed(ms, 2)).join(', ')
      await worker.close()
      const info = await producer.queues.get('orders')
      return [
        { what: 'waiting behind the held key', value: whole(info.ready), isMet: info.ready === messages },
        {
          what: 'another key, publish to handler, 200 times: median, p95 and worst, ms',
          value: `${shown(behind.fromPublish)}; before anything waited ${shown(alone.fromPublish)}`,
          isMet: percentile(behind.fromPublish, 0.95) < 10,
        },
        {
          what: 'the same from its confirm, ms',
          value: `${shown(behind.fromConfirm)}; before anything waited ${shown(alone.fromConfirm)}`,
          isMet: Math.max(...behind.fromConfirm) < 10,
        },
      ]
    } finally {
      await bench.dispose()
    }
  }

/** A message of the key is being handled. */
const blocked = behindKey(async (client) => {
  await client.queues.ensure('orders')
  await client.publish('orders', 'first', { key: 'blocked' })
  await client.messages('orders', { prefetch: 1 }).next()
})

/** The key has used up its rate. */
const limited = behindKey(async (client) => {
  await client.queues.ensure('orders', { keyRate: { messages: 1, per: '1h' } })
  await client.publish('orders', 'first', { key: 'blocked' })
  const [message] = await client.pull('orders', { wait: '10s' })
  await message!.ack()
})

/** Ten keys with very unequal backlogs and one consumer: each key gets an equal share. */
const fair: Scenario = async (messages) => {
  const bench = await Bench.start()
  try {
    const client = await bench.client('fair')
    await client.queues.ensure('orders')
    // The backlogs have from 1 to 512 parts.
    const parts = Array.from({ length: 10 }, (_, key) => 2 ** key)
    const unit = Math.max(1, Math.floor(messages / 1023))
    for (const [key, part] of parts.entries())
      await fill(client, 'orders', part * unit, () => ({ key: `key-${key}` }))
    const shares = new Map<string, number>()
    // Until this many messages are delivered, even the smallest backlog is not empty.
    const most = unit * 10
    let seen = 0
    await new Promise<void>((resolve, reject) => {
      const worker = client.consume('orders', { concurrency: 1, prefetch: 20 }, async (message) => {
        if (seen++ < most) shares.set(message.key!, (shares.get(message.key!) ?? 0) + 1)
        if (seen === most) void worker.close().then(resolve, reject)
        await Promise.resolve()
      })
    })
    const counts = parts.map((_, key) => shares.get(`key-${key}`) ?? 0)
    const least = Math.min(...counts)
    const greatest = Math.max(...counts)
    return [
      {
        what: `of the first ${whole(most)} messages, the smallest and largest share of ten keys`,
        value: `${whole(least)} and ${whole(greatest)}`,
        isMet: least > 0 && (greatest - least) / greatest <= 0.1,
      },
    ]
  } finally {
    await bench.dispose()
  }
}

/** Maximum difference between two clocks that are set from the same wall clock. */
const CLOCK_MS = 2

/**
 * Delayed messages that become due over several minutes, after a kill of the broker; measures how late a sample of
 * these messages arrives.
 */
const delayed: Scenario = async (messages, duePerSecond) => {
  const bench = await Bench.start()
  try {
    const client = await bench.client('delayed')
    await bench.warm()
    await client.queues.ensure('reminders')
    const before = bench.rss()
    const every = Math.max(1, Math.floor(messages / 10_000))
    const leadMs = 15_000 + messages / 50
    const startMs = Date.now() + leadMs
    const spanMs = Math.max(1_000, (messages * 1_000) / duePerSecond)
    // The wall clock of a virtual machine can be set while this runs; the broker uses a clock that cannot be set.
    const offsetMs = Date.now() - performance.now()
    await fill(client, 'reminders', messages, (index) => {
      const at = startMs + Math.floor(((index * 7919) % messages) * (spanMs / messages))
      return { at, headers: index % every === 0 ? { due: String(at) } : {} }
    })
    const filled = bench.rss()
    const readyMs = await bench.kill()
    const again = bench.rss()
    const fillEndedMs = Date.now()
    const late: number[] = []
    let earliestMs = Infinity
    let left = messages
    await new Promise<void>((resolve) => {
      const worker = client.consume('reminders', { concurrency: 2_000, prefetch: 4_000 }, (message) => {
        const { due } = message.headers
        if (due !== undefined) {
          late.push(Date.now() - Number(due))
          earliestMs = Math.min(earliestMs, performance.now() + offsetMs - Number(due))
        }
        if (--left === 0) void worker.close().then(resolve)
      })
    })
    return [
      {
        what: 'ready before the first was due',
        value: `${fixed(startMs - fillEndedMs, 0)} ms`,
        isMet: startMs > fillEndedMs,
      },
      { what: 'memory of the broker grew, MiB', value: fixed(filled - before), isMet: filled - before < 60 },
      { what: 'memory after kill -9 and start, MiB (in all)', value: fixed(again), isMet: true },
      { what: 'ready again after kill -9, ms', value: whole(readyMs), isMet: true },
      {
        what: `lateness of ${whole(late.length)} sampled messages: p50, p99, worst, ms`,
        value: `${percentile(late, 0.5)}, ${percentile(late, 0.99)}, ${Math.max(...late)}`,
        isMet: late.length >= Math.min(messages, 10_000) && Math.max(...late) <= 200,
      },
      {
        what: 'earliest delivery after the due time, by the wall clock and by a clock that was never set, ms',
        value: `${Math.min(...late)} and ${fixed(earliestMs)}`,
        isMet: earliestMs >= -CLOCK_MS,
      },
    ]
  } finally {
    await bench.dispose()
  }
}

/** Many keys: memory, order within each key, and the rate at which they drain. */
const keyed: Scenario = async (messages) => {
  const bench = await Bench.start()
  try {
    const client = await bench.client('keyed')
    await bench.warm()
    await client.queues.ensure('orders')
    const before = bench.rss()
    const keys = Math.min(10_000, messages)
    await fill(client, 'orders', messages, (index) => ({ key: `customer-${(index * 7919) % keys}` }))
    const filled = bench.rss()
    const readyMs = await bench.kill()
    const last = new Map<string, number>()
    let outOfOrder = 0
    let left = messages
    const beganMs = performance.now()
    await new Promise<void>((resolve) => {
      const worker = client.consume('orders', { concurrency: 1_000, prefetch: 2_000 }, (message) => {
        if (message.offset <= (last.get(message.key!) ?? -1)) outOfOrder++
        last.set(message.key!, message.offset)
        if (--left === 0) void worker.close().then(resolve)
      })
    })
    const rate = (messages * 1000) / (performance.now() - beganMs)
    return [
      {
        what: `memory of the broker grew, ${whole(messages)} messages over ${whole(keys)} keys, MiB`,
        value: fixed(filled - before),
        isMet: filled - before < 60,
      },
      { what: 'ready again after kill -9, ms', value: whole(readyMs), isMet: true },
      {
        what: 'out of order within a key',
        value: whole(outOfOrder),
        isMet: outOfOrder === 0 && last.size === keys,
      },
      { what: 'drained after the kill, messages per second', value: whole(rate), isMet: true },
    ]
  } finally {
    await bench.dispose()
  }
}

/** Rates of keyed and plain messages, measured alternately in one run: publish and consume. */
const speed: Scenario = async (messages) => {
  const bench = await Bench.start()
  try {
    const producer = await bench.client('producer')
    const consumer = await bench.client('consumer')
    const rates = {
      plain: { publish: [] as number[], consume: [] as number[] },
      keyed: { publish: [] as number[], consume: [] as number[] },
    }
    const options = Array.from({ length: 10_000 }, (_, key) => ({ key: `customer-${key}` }))
    for (let round = 0; round < 4; round++) {
      for (const kind of ['plain', 'keyed'] as const) {
        const queue = `${kind}-${round}`
        await producer.queues.ensure(queue)
        const of = kind === 'plain' ? () => undefined : (index: number) => options[(index * 7919) % 10_000]
        const publish = await fill(producer, queue, messages, of)
        const consume = await drain(consumer, queue, messages)
        // The first round warms up.
        if (round > 0) {
          rates[kind].publish.push(publish)
          rates[kind].consume.push(consume)
        }
        await producer.queues.delete(queue)
      }
    }
    return (['publish', 'consume'] as const).map((what) => {
      const plain = median(rates.plain[what])
      const keyedRate = median(rates.keyed[what])
      return {
        what: `${what}, 10,000 keys against plain, medians of 3, messages per second`,
        value: `${whole(keyedRate)} against ${whole(plain)}, ${fixed((100 * keyedRate) / plain, 0)} %`,
        isMet: keyedRate * 3 >= plain,
      }
    })
  } finally {
    await bench.dispose()
  }
}

/** A consumer that has the largest credit and reads nothing from its socket. */
async function sleeper(port: number, queue: string): Promise<Peer> {
  const peer = await Peer.open(port)
  const body = encodeControl({ queue, messages: LIMITS.creditMessagesMax, bytes: 0xffff_ffff })
  peer.send(frame(OP.SUBSCRIBE, 1, 3, body))
  peer.socket.pause()
  return peer
}

const BUDGET_MIB = 192

/** A broker with little memory: consumers that do not read, then messages with options until memory is full. */
const budget: Scenario = async (messages) => {
  const bench = await Bench.start({ memoryBytes: BUDGET_MIB << 20 })
  const sleepers: Peer[] = []
  try {
    const client = await bench.client('producer')
    await client.queues.ensure('wide')
    await client.queues.ensure('reminders', { dedupWindow: '1d' })
    for (let i = 0; i < 100; i++) sleepers.push(await sleeper(bench.port, 'wide'))
    const large = new Uint8Array(64 << 10)
    // The unread messages of these consumers use the same budget, so some publishes can be refused.
    let wide = 0
    for (let i = 0; i < 200; i++) {
      const wave = await Promise.allSettled(Array.from({ length: 40 }, () => client.publish('wide', large)))
      wide += wave.filter(({ status }) => status === 'fulfilled').length
    }
    const outbound = peakMib(bench.broker.pid)
    let taken = 0
    let refusal = ''
    const publish = (index: number): Promise<unknown> =>
      client.publish('reminders', BODY, {
        key: `customer-${index}`,
        id: `reminder-${index}`,
        delay: `${30 + (index % 300)}d`,
      })
    while (refusal === '' && taken < messages * 10) {
      const wave = Array.from({ length: 1_000 }, (_, index) => publish(taken + index))
      const results = await Promise.allSettled(wave)
      taken += results.filter(({ status }) => status === 'fulfilled').length
      const refused = results.find((result) => result.status === 'rejected')
      if (refused !== undefined) refusal = (refused.reason as { code: string }).code
    }
    const peak = peakMib(bench.broker.pid)
    await client.queues.purge('reminders')
    const beganMs = performance.now()
    let accepted = false
    while (!accepted && performance.now() - beganMs < 30_000) {
      accepted = await publish(taken).then(
        () => true,
        () => new Promise<boolean>((resolve) => setTimeout(resolve, 100, false)),
      )
    }
    return [
      {
        what: `100 consumers of ${whole(wide)} messages of 64 KiB read nothing: memory at most, MiB`,
        value: fixed(outbound),
        isMet: outbound <= BUDGET_MIB,
      },
      {
        what: 'refusal of further messages with key, id and delay',
        value: refusal,
        isMet: refusal === 'MEMORY_FULL',
      },
      { what: 'messages accepted before it', value: whole(taken), isMet: taken > 50_000 },
      { what: `memory at most, of ${BUDGET_MIB} MiB`, value: fixed(peak), isMet: peak <= BUDGET_MIB },
      {
        what: 'time after a purge until messages are accepted again, ms',
        value: whole(performance.now() - beganMs),
        isMet: accepted,
      },
    ]
  } finally {
    await Promise.all(sleepers.map((peer) => peer.dispose()))
    await bench.dispose()
  }
}

export const SCENARIOS: Readonly<Record<string, Scenario>> = {
  blocked,
  limited,
  fair,
  delayed,
  keyed,
  speed,
  budget,
  waiting,
  later,
  keys,
  replay,
  stream,
  requests,
  beside,
  queues,
  connections,
  steady,
}
