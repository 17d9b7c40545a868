/**
 * The broker or a client is suspended (SIGSTOP) for longer than the heartbeats allow and then continues. Meanwhile the
 * messages of a suspended consumer may go to other consumers, but no message has two owners at once.
 */
import { connect } from '@sluice/client'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { runs } from '../amount.js'
import { checkHistory, findingLines, violations, type HistoryEvent } from '../checker/history.js'
import { LoadProcess, readHistories } from './load.js'
import type { TimedEvent } from './load-process.js'
import { BrokerProcess } from '../rig/broker.js'
import type { ScriptProcess } from '../rig/process.js'
import { freePort, scratchDirectory } from '../rig/scratch.js'
import { delay, until } from '../rig/wait.js'
import { Random } from './random.js'

const SEED = Number(process.env['SLUICE_SEED'] ?? Date.now() % 1_000_000)
const STOPS = runs(16, 100)
const HEARTBEAT_MS = 120

test(
  `the broker or a client stopped ${STOPS} times for longer than two heartbeats: no message has two owners`,
  async () => {
    const random = new Random(SEED)
    const scratch = await scratchDirectory('stop')
    const port = await freePort()
    const url = `sluice://127.0.0.1:${port}`
    const broker = new BrokerProcess({
      port,
      dataDir: join(scratch.path, 'data'),
      segmentBytes: 1 << 20,
      messageBytesMax: 64 << 10,
      lowFreeBytes: 1 << 20,
      session: { heartbeatMs: HEARTBEAT_MS },
    })
    const loads: LoadProcess[] = []
    try {
      await broker.ready()
      const admin = await connect(url)
      await admin.queues.ensure('q', { maxDeliveries: 255 })
      await admin.close()
      const common = {
        url,
        queues: ['q'],
        bodyBytesMax: 2_000,
        patienceMs: 800,
        heartbeatMs: HEARTBEAT_MS,
        otherSettles: 50,
      }
      const producers = new LoadProcess({
        ...common,
        role: 'produce',
        name: 'p',
        seed: SEED,
        history: join(scratch.path, 'produced.ndjson'),
        clients: [2],
        rate: 400,
      })
      const consumers = [1, 2].map(
        (index) =>
          new LoadProcess({
            ...common,
            role: 'consume',
            name: `c${index}`,
            seed: SEED + index,
            history: join(scratch.path, `consumed${index}.ndjson`),
            clients: [2],
          }),
      )
      loads.push(producers, ...consumers)
      const goesOn = (load: LoadProcess): Promise<true> => {
        const { confirmed, settled } = load.progress
        return until(`process ${load.pid} to continue, seed ${SEED}`, () => {
          if (load.exit !== undefined) throw new Error(`it ended: ${load.stderr}`)
          return load === producers ? load.progress.confirmed > confirmed : load.progress.settled > settled
        })
      }
      await Promise.all(loads.map(goesOn))
      const targets: readonly ScriptProcess[] = [broker, ...loads]
      const stops = targets.map(() => 0)
      for (let stop = 0; stop < STOPS; stop++) {
        const index = random.below(targets.length)
        const target = targets[index]!
        stops[index]!++
        target.signal('SIGSTOP')
        // The process is suspended for longer than two heartbeats, after which its peer considers it dead.
        await delay(HEARTBEAT_MS * (2.2 + random.next() * 2))
        target.signal('SIGCONT')
        await (target instanceof LoadProcess ? goesOn(target) : Promise.all(loads.map(goesOn)))
      }
      expect(broker.exit).toBeUndefined()

      const ending = producers.stop()
      for (const consumer of consumers) consumer.drain()
      await ending
      const reader = await connect(url)
      const left = async (): Promise<number> => {
        const { ready, scheduled, leased } = await reader.queues.get('q')
        return ready + scheduled + leased
      }
      await until(`the queue to be drained, seed ${SEED}`, async () => (await left()) === 0, 30_000).catch(
        () => undefined,
      )
      const end: HistoryEvent = {
        kind: 'end',
        queue: 'q',
        left: await left(),
        dead: (await reader.queues.get('q')).dead,
      }
      await reader.close()
      await Promise.all(consumers.map((consumer) => consumer.stop()))
      expect(loads.map((load) => load.exit?.code)).toEqual([0, 0, 0])
      const events = await readHistories(loads.map(({ history }) => history))
      const report = checkHistory([...events, end])
      const { checked, overlaps } = ownerships(events)
      const failures = consumers.map(({ progress }) => progress.failures)
      const ended = consumers.reduce(
        (sum, { progress }) =>
          sum + (progress.failures['LEASE_LOST'] ?? 0) + (progress.failures['CONNECTION_LOST'] ?? 0),
        0,
      )
      console.log(
        `${stops[0]} stops of the broker, ${stops[1]} of the producers, ${stops[2]! + stops[3]!} of consumers; ` +
          `${report.confirmed} confirmed, ${report.deliveries} deliveries of ${report.delivered} messages, ${report.settles} settles, ` +
          `${ended} of them too late; ${checked} messages with several owners checked; ${JSON.stringify(report.counts)}, seed ${SEED}`,
      )
      expect(overlaps, `seed ${SEED}`).toEqual([])
      expect(findingLines(violations(report)), `seed ${SEED}`).toBe('')
      expect(producers.progress.unresolved, JSON.stringify(producers.progress.failures)).toBe(0)
      // Some leases were lost and some messages changed owners, so the check had something to find.
      expect(ended, JSON.stringify(failures)).toBeGreaterThan(0)
      expect(checked).toBeGreaterThan(0)
      expect(report.confirmed).toBeGreaterThan(STOPS * 10)
    } finally {
      await Promise.all([broker, ...loads].map((process) => process.dispose()))
      await scratch.dispose()
    }
  },
  60_000 + STOPS * 3_000,
)

interface Ownership {
  readonly consumer: string
  readonly fromUs: number
  readonly toUs: number
}

/**
 * A consumer with a confirmed settle owned the message at least from its receipt until its request to settle. These
 * intervals of different consumers never overlap, and at most one ack is confirmed.
 */
function ownerships(events: readonly TimedEvent[]): { checked: number; overlaps: string[] } {
  const received = new Map<string, number>()
  const owned = new Map<string, Ownership[]>()
  const acks = new Map<string, number>()
  const overlaps: string[] = []
  for (const event of events) {
    if (event.kind === 'deliver') received.set(`${event.consumer} ${event.message}`, event.atUs)
    if (event.kind !== 'settle' || event.outcome !== 'ok') continue
    const { consumer, message, action } = event
    const own = {
      consumer,
      fromUs: received.get(`${consumer} ${message}`) ?? Number.NaN,
      toUs: event.sentUs ?? Number.NaN,
    }
    const others = owned.get(message)
    if (others === undefined) owned.set(message, [own])
    else others.push(own)
    if (action === 'ack') acks.set(message, (acks.get(message) ?? 0) + 1)
  }
  for (const [message, count] of acks)
    if (count > 1) overlaps.push(`${message} was acknowledged ${count} times`)
  let checked = 0
  for (const [message, owners] of owned) {
    if (owners.length < 2) continue
    checked++
    owners.sort((a, b) => a.fromUs - b.fromUs)
    for (let i = 1; i < owners.length; i++) {
      const [before, after] = [owners[i - 1]!, owners[i]!]
      if (!(after.fromUs >= before.toUs))
        overlaps.push(`${message} belonged to ${before.consumer} and ${after.consumer} at once`)
    }
  }
  return { checked, overlaps }
}
