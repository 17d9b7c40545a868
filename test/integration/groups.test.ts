/** Groups of streams through the SDK with a broker in this process over TCP. */
import { connect, stream, type Sluice } from '@sluice/client'
import { startServer } from '@sluice/server'
import { afterEach, expect, it } from 'vitest'
import { scratchDirectory } from '../rig/scratch.js'
import { until } from '../rig/wait.js'

const cleanups: (() => Promise<unknown>)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup()
})

async function client(): Promise<Sluice> {
  const scratch = await scratchDirectory('groups')
  cleanups.push(scratch.dispose)
  const server = await startServer({ port: 0, segmentBytes: 8 << 20, lowFreeBytes: 0, dataDir: scratch.path })
  cleanups.push(() => server.stop())
  const sluice = await connect(`sluice://127.0.0.1:${server.port}`, { name: 'test' })
  cleanups.push(() => sluice.close({ timeout: 1_000 }))
  return sluice
}

const Clicks = stream<number>('clicks')
const Billing = Clicks.group('billing')
const upTo = (end: number, from = 0): number[] => Array.from({ length: end - from }, (_, at) => from + at)

it('each get all messages, and are moved, listed and deleted', async () => {
  const sluice = await client()
  await sluice.streams.ensure(Clicks)
  const { created, group } = await sluice.groups.ensure(Billing, {
    maxDeliveries: 5,
    retry: { initial: '1ms' },
  })
  expect(created).toBe(true)
  expect(group).toMatchObject({
    name: 'clicks@billing',
    stream: 'clicks',
    lag: 0,
    options: { maxDeliveries: 5 },
  })
  await sluice.groups.ensure('clicks@audit', { from: 'last' })
  await Promise.all(upTo(500).map((i) => sluice.publish(Clicks, i, { key: `k${i % 5}` })))
  expect(await sluice.groups.list(Clicks)).toMatchObject([
    { name: 'clicks@audit', lag: 500 },
    { name: 'clicks@billing', lag: 500 },
  ])
  const got: number[] = []
  let failures = 0
  const worker = sluice.consume(Billing, { concurrency: 16 }, async ({ body, attempt }) => {
    if (body === 7 && attempt === 1) {
      failures++
      throw new Error('once')
    }
    got.push(body)
  })
  await until('all messages', () => got.length === 500)
  await worker.close()
  expect(got.toSorted((a, b) => a - b)).toEqual(upTo(500))
  expect(failures).toBe(1)
  for (const key of upTo(5)) {
    const ofKey = got.filter((body) => body % 5 === key)
    expect(ofKey).toEqual(ofKey.toSorted((a, b) => a - b))
  }
  expect(await sluice.groups.get(Billing)).toMatchObject({ position: 500, lag: 0, lagMs: null, missed: 0 })
  expect(await sluice.groups.move(Billing, { to: { offset: 490 } })).toMatchObject({ position: 490, lag: 10 })
  const again: number[] = []
  const second = sluice.consume(Billing, async ({ body }) => void again.push(body))
  await until('the last messages', () => again.length === 10)
  await second.close()
  expect(again.toSorted((a, b) => a - b)).toEqual(upTo(500, 490))
  expect(await sluice.groups.delete('clicks@audit')).toEqual({ messages: 500 })
  await expect(sluice.groups.get('clicks@audit')).rejects.toMatchObject({ code: 'QUEUE_NOT_FOUND' })
  await expect(sluice.groups.ensure('clicks')).rejects.toMatchObject({ code: 'INVALID_NAME' })
})

it('refuse what they cannot do, with a sentence', async () => {
  const sluice = await client()
  await sluice.streams.ensure(Clicks)
  await sluice.groups.ensure(Billing)
  await sluice.queues.ensure('orders')
  await sluice.publish(Clicks, 0)
  const refused: [calls: (() => Promise<unknown>)[], code: string, sentence: RegExp][] = [
    [
      [() => sluice.groups.move(Billing, { to: { offset: 2 } })],
      'MESSAGE_NOT_FOUND',
      /no message 2 yet; its next offset is 1/,
    ],
    [[() => sluice.groups.ensure('orders@a')], 'WRONG_KIND', /^orders is a queue, not a stream/],
    [[() => sluice.groups.ensure('none@a')], 'QUEUE_NOT_FOUND', /"none"/],
    [
      [() => sluice.groups.ensure('clicks@a@b')],
      'INVALID_NAME',
      /"clicks@a@b" must have the form stream@group/,
    ],
    [
      [() => sluice.groups.ensure(`clicks@${'a'.repeat(249)}`)],
      'INVALID_NAME',
      /256 bytes; it must take at most 255/,
    ],
    [
      [
        () => sluice.publish('clicks@billing', 1),
        () => sluice.read('clicks@billing').next(),
        () => sluice.queues.replay('clicks@billing', { to: 'orders' }),
        () => sluice.streams.get('clicks@billing'),
      ],
      'WRONG_KIND',
      /clicks@billing is a group( of the stream clicks|: publish to its stream clicks\.)/,
    ],
    [
      [() => sluice.queues.history(Billing, 1)],
      'MESSAGE_NOT_FOUND',
      /^The stream clicks has no message 1 yet/,
    ],
  ]
  let checked = 0
  for (const [calls, code, sentence] of refused) {
    for (const call of calls) {
      await expect((async () => call())()).rejects.toMatchObject({
        code,
        message: expect.stringMatching(sentence) as unknown,
      })
      checked++
    }
  }
  expect(checked).toBe(10)
  await sluice.groups.ensure(`clicks@${'a'.repeat(248)}`)
  const [message] = await sluice.pull(Billing)
  await message!.ack()
  const { events } = await sluice.queues.history(Billing, 0)
  expect(events.map(({ event }) => event).filter((event) => event !== 'groupMoved')).toEqual([
    'published',
    'acked',
  ])
})

it('are paused, peeked at, explained and cancelled like queues', async () => {
  const sluice = await client()
  await sluice.streams.ensure(Clicks)
  await sluice.groups.ensure(Billing)
  await sluice.publishBatch(
    Clicks,
    upTo(4).map((body) => ({ body })),
  )
  const codes = async (offset?: number): Promise<string[]> => {
    const { reasons } = await sluice.queues.explain(Billing, offset === undefined ? {} : { offset })
    return reasons.map(({ code }) => code)
  }
  expect(await codes()).toEqual(['noConsumer'])
  expect(await codes(3)).toEqual(['noConsumer'])
  expect(await codes(4)).toEqual(['unpublished'])
  expect(await sluice.queues.pause(Billing)).toEqual({ changed: true })
  expect(await sluice.pull(Billing)).toEqual([])
  expect((await codes())[0]).toBe('paused')
  expect(await sluice.queues.resume(Billing)).toEqual({ changed: true })
  const [message] = await sluice.pull(Billing)
  expect(message).toMatchObject({ queue: 'clicks@billing', offset: 0, body: 0 })
  const { messages } = await sluice.queues.peek(Billing)
  expect(messages.map(({ offset, state }) => [offset, state])).toEqual([
    [0, 'leased'],
    [1, 'ready'],
    [2, 'ready'],
    [3, 'ready'],
  ])
  expect(await sluice.queues.cancel(Billing, { offset: 2 })).toEqual({ offset: 2 })
  expect((await sluice.queues.reschedule(Billing, { offset: 3 }, { delay: '1h' })).offset).toBe(3)
  expect(await codes(2)).toEqual(['gone'])
  expect((await codes(3))[0]).toBe('scheduled')
  await message!.ack()
  const [last, ...others] = await sluice.pull(Billing, { max: 9 })
  expect([last!.offset, others]).toEqual([1, []])
  await sluice.atomic((tx) => {
    tx.ack(last!)
    tx.publish(Clicks, 9)
  })
  expect(await sluice.groups.get(Billing)).toMatchObject({ position: 3, lag: 2, scheduled: 1 })
})

it('are refused where a queue or a stream is needed', async () => {
  const sluice = await client()
  await sluice.streams.ensure(Clicks)
  await sluice.groups.ensure(Billing)
  const calls: (() => unknown)[] = [
    () => sluice.publish('clicks@billing', 1),
    () => sluice.queues.get(Billing),
    () => sluice.queues.ensure(Billing),
    () => sluice.queues.purge(Billing),
    () => sluice.queues.delete(Billing),
    () => sluice.queues.replay(Billing),
    () => sluice.streams.get(Billing),
    () => sluice.read(Billing).next(),
    () => sluice.topics.bind('a', Billing),
    () => sluice.queues.explain(Clicks),
  ]
  for (const call of calls)
    await expect((async () => call())(), String(call)).rejects.toMatchObject({ code: 'WRONG_KIND' })
  expect(calls.length).toBe(10)
})
