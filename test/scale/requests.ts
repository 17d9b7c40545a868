/**
 * Requests with replies, compared with what each of them contains: a durable publish and the delivery of the message. In
 * both cases the next message is sent when one is done, and sender and consumer are two clients of one process.
 */
import type { Sluice } from '@sluice/client'
import { Bench, BODY, median, percentile } from './measures.js'
import { cpuMs } from './proc.js'
import { fixed, type Finding, type Scenario } from './scenario.js'

const ROUNDS = 5
const IN_FLIGHT = [1, 16, 64]
/** Maximum of the median time of a request, relative to that of a publish and its delivery. */
const RATIO_MAX = 1.5

/** Sends `count` messages with `inFlight` in flight; returns the median time of one in ms. */
async function sent(count: number, inFlight: number, send: () => Promise<unknown>): Promise<number> {
  const times: number[] = []
  let left = count
  const one = async (): Promise<void> => {
    while (left-- > 0) {
      const beganMs = performance.now()
      await send()
      times.push(performance.now() - beganMs)
    }
  }
  await Promise.all(Array.from({ length: inFlight }, one))
  return percentile(times, 0.5)
}

/** Publishes messages, each of which is done when its consumer has it. */
async function deliveries(
  sender: Sluice,
  consumer: Sluice,
  count: number,
  inFlight: number,
): Promise<number> {
  const arrived: (() => void)[] = []
  // Messages of one producer arrive in the order in which they are published.
  const worker = consumer.consume('plain', { concurrency: 100 }, () => arrived.shift()?.())
  const send = (): Promise<unknown> =>
    new Promise<void>((resolve, reject) => {
      arrived.push(resolve)
      sender.publish('plain', BODY).catch(reject)
    })
  const p50 = await sent(count, inFlight, send)
  await worker.close()
  return p50
}

async function replies(sender: Sluice, consumer: Sluice, count: number, inFlight: number): Promise<number> {
  const worker = consumer.consume('asked', { concurrency: 100 }, (message) => void message.reply(BODY))
  const p50 = await sent(count, inFlight, () => sender.request('asked', BODY))
  await worker.close()
  return p50
}

export const requests: Scenario = async (messages) => {
  const bench = await Bench.start()
  try {
    await bench.warm()
    const sender = await bench.client('sender')
    const consumer = await bench.client('consumer')
    for (const queue of ['plain', 'asked']) await sender.queues.ensure(queue)
    const findings: Finding[] = []
    const kinds = { 'publish and delivery': deliveries, 'request and reply': replies }
    for (const inFlight of IN_FLIGHT) {
      const count = Math.ceil((messages * inFlight) / IN_FLIGHT.at(-1)!)
      const p50s = new Map<string, number>()
      const cpu = new Map<string, number[]>()
      const times = new Map<string, number[]>()
      for (let round = 0; round < ROUNDS; round++) {
        for (const [kind, run] of Object.entries(kinds)) {
          const before = cpuMs(bench.broker.pid)
          times.set(kind, [...(times.get(kind) ?? []), await run(sender, consumer, count, inFlight)])
          const after = cpuMs(bench.broker.pid)
          const usedMs = after.user + after.system - before.user - before.system
          cpu.set(kind, [...(cpu.get(kind) ?? []), (usedMs * 1_000) / count])
        }
      }
      for (const kind of Object.keys(kinds)) {
        p50s.set(kind, median(times.get(kind)!))
        findings.push(
          { what: `${kind}, ${inFlight} in flight, p50 ms`, value: fixed(p50s.get(kind)!, 2), isMet: true },
          {
            what: `${kind}, ${inFlight} in flight, broker CPU µs each`,
            value: fixed(median(cpu.get(kind)!), 1),
            isMet: true,
          },
        )
      }
      const ratio = p50s.get('request and reply')! / p50s.get('publish and delivery')!
      findings.push({
        what: `ratio, ${inFlight} in flight`,
        value: fixed(ratio, 2),
        isMet: ratio <= RATIO_MAX,
      })
    }
    return findings
  } finally {
    await bench.dispose()
  }
}
