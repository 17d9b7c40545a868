/** Streams through the SDK with a broker in this process over TCP: definition, reading, restarts and retention. */
import { connect, stream, type Missed, type Sluice, type StreamMessage } from '@sluice/client'
import { startServer, type RunningServer } from '@sluice/server'
import { afterEach, describe, expect, it } from 'vitest'
import { scratchDirectory } from '../rig/scratch.js'
import { until } from '../rig/wait.js'

const cleanups: (() => Promise<unknown>)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup()
})

async function start(dataDir?: string, port = 0): Promise<RunningServer & { dataDir: string }> {
  let path = dataDir
  if (path === undefined) {
    const scratch = await scratchDirectory('streams')
    cleanups.push(scratch.dispose)
    path = scratch.path
  }
  const server = await startServer({ port, segmentBytes: 8 << 20, lowFreeBytes: 0, dataDir: path })
  cleanups.push(() => server.stop())
  return Object.assign(server, { dataDir: path })
}

async function client(server: { readonly port: number }): Promise<Sluice> {
  const sluice = await connect(`sluice://127.0.0.1:${server.port}`, { name: 'test' })
  cleanups.push(() => sluice.close({ timeout: 1_000 }))
  return sluice
}

const Clicks = stream<number>('clicks')
const upTo = (end: number, from = 0): number[] => Array.from({ length: end - from }, (_, at) => from + at)

async function publish(sluice: Sluice, count: number, from = 0): Promise<void> {
  await Promise.all(upTo(from + count, from).map((i) => sluice.publish(Clicks, i, { key: `k${i % 10}` })))
}

async function bodies(messages: AsyncIterable<StreamMessage<number>>): Promise<number[]> {
  const got: number[] = []
  for await (const { body } of messages) got.push(body)
  return got
}

describe('streams', () => {
  it('are created, changed, described, listed and deleted', async () => {
    const sluice = await client(await start())
    const { created, stream: made } = await sluice.streams.ensure(Clicks, {
      retention: { age: '7d', messages: 1_000_000 },
    })
    expect(created).toBe(true)
    expect(made).toMatchObject({
      ...{ name: 'clicks', messages: 0, bytes: 0, first: 0, next: 0, published: 0, readers: 0 },
      options: {
        retention: { age: 7 * 24 * 3600 * 1000, bytes: 0, messages: 1_000_000 },
        dedupWindow: 600_000,
        dedupMaxIds: 1_000_000,
      },
    })
    expect((await sluice.streams.ensure(Clicks)).created).toBe(false)
    const other = { retention: { age: '8d' } } as const
    await expect(sluice.streams.ensure(Clicks, other)).rejects.toMatchObject({ code: 'QUEUE_CONFLICT' })
    await sluice.streams.ensure(Clicks, { ...other, update: true })
    for (const waitForGroups of [true, {}, { bytes: 0 }, { bytes: '1gb' }] as never[])
      await expect(sluice.streams.ensure(Clicks, { waitForGroups })).rejects.toMatchObject({
        code: 'INVALID_OPTION',
        message: expect.stringMatching(/`waitForGroups.* set `waitForGroups: \{ bytes \}`/) as unknown,
      })
    const waits = await sluice.streams.ensure(Clicks, { waitForGroups: { bytes: 1e9 }, update: true })
    expect(waits.stream).toMatchObject({
      options: { waitForGroups: { bytes: 1e9 } },
      heldBy: null,
      heldBytes: 0,
    })
    const conflict = sluice.streams.ensure(Clicks, { retention: { bytes: 2e9 }, update: true })
    await expect(conflict).rejects.toMatchObject({ code: 'OPTION_CONFLICT' })
    const unset = await sluice.streams.ensure(Clicks, { waitForGroups: null, update: true })
    expect(unset.stream.options.waitForGroups).toBeNull()
    const wrong = { retention: { count: 1 } } as never
    await expect(sluice.streams.ensure(Clicks, wrong)).rejects.toMatchObject({ code: 'INVALID_OPTION' })
    await sluice.queues.ensure('orders')
    await expect(sluice.streams.get('orders')).rejects.toMatchObject({ code: 'WRONG_KIND' })
    await expect(sluice.streams.ensure('orders')).rejects.toMatchObject({ code: 'WRONG_KIND' })
    await expect(sluice.queues.ensure('clicks')).rejects.toMatchObject({ code: 'WRONG_KIND' })
    await publish(sluice, 10)
    expect(await sluice.streams.get(Clicks)).toMatchObject({ messages: 10, next: 10, published: 10 })
    for (let i = 0; i < 50; i++) await sluice.streams.ensure(`s${String(i).padStart(2, '0')}`)
    const names = (await sluice.streams.list()).map(({ name }) => name)
    expect(names).toEqual(['clicks', ...upTo(50).map((i) => `s${String(i).padStart(2, '0')}`)])
    expect(await sluice.streams.delete(Clicks)).toEqual({ messages: 10 })
    await expect(sluice.streams.get(Clicks)).rejects.toMatchObject({ code: 'QUEUE_NOT_FOUND' })
  })

  it('are read from the beginning, an offset, a time and the end, and by key and headers', async () => {
    const sluice = await client(await start())
    await sluice.streams.ensure(Clicks)
    await publish(sluice, 3_000)
    await until('the clock to move', () => Date.now() > startMs + 20 || undefined)
    const middle = new Date()
    await until('the clock to move', () => Date.now() > middle.getTime() || undefined)
    await publish(sluice, 1_000, 3_000)
    await sluice.publish(Clicks, 4_000, { headers: { kind: 'last' } })
    expect(await bodies(sluice.read(Clicks))).toEqual(upTo(4_001))
    expect(await bodies(sluice.read(Clicks, { from: { offset: 3_990 } }))).toEqual(upTo(4_001, 3_990))
    expect(await bodies(sluice.read(Clicks, { from: { time: middle } }))).toEqual(upTo(4_001, 3_000))
    expect(await bodies(sluice.read(Clicks, { from: 'last' }))).toEqual([])
    const keyed = await bodies(sluice.read(Clicks, { filter: { key: 'k7' } }))
    expect(keyed).toEqual(upTo(400).map((i) => i * 10 + 7))
    expect(await bodies(sluice.read(Clicks, { filter: { headers: { kind: 'last' } } }))).toEqual([4_000])
    const all: number[] = []
    for await (const messages of sluice.read(Clicks).batches())
      all.push(...messages.map(({ offset }) => offset))
    expect(all).toEqual(upTo(4_001))
    await expect(bodies(sluice.read(Clicks, { from: { offset: 5_000 } }))).rejects.toMatchObject({
      code: 'MESSAGE_NOT_FOUND',
    })
    await expect(bodies(sluice.read(stream<number>('nowhere')))).rejects.toMatchObject({
      code: 'QUEUE_NOT_FOUND',
    })
  })
  const startMs = Date.now()

  it('are followed across restarts of the broker, each message once and in order', async () => {
    const first = await start()
    const sluice = await client(first)
    await sluice.streams.ensure(Clicks)
    await publish(sluice, 2_000)
    const got: number[] = []
    const following = (async () => {
      for await (const { offset, body } of sluice.read(Clicks, { follow: true, prefetch: 100 })) {
        expect(offset).toBe(body)
        got.push(body)
        if (got.length === 6_000) return
      }
    })()
    await until('half of the messages', () => got.length >= 1_000 || undefined)
    await first.stop()
    const second = await start(first.dataDir, first.port)
    await publish(sluice, 2_000, 2_000)
    await until('the messages of the second run', () => got.length >= 3_000 || undefined)
    await second.stop()
    await start(first.dataDir, first.port)
    await publish(sluice, 2_000, 4_000)
    await following
    expect(got).toEqual(upTo(6_000))
  })

  it('are followed by several readers at once; a slow one holds nothing and is notified of what it missed', async () => {
    const sluice = await client(await start())
    await sluice.streams.ensure(Clicks, { retention: { messages: 2_048 } })
    const missed: Missed[] = []
    sluice.on('missed', (event) => missed.push(event))
    await publish(sluice, 100)
    const slow = sluice.read(Clicks, { prefetch: 10 })
    const eager = sluice.read(Clicks, { follow: true, from: { offset: 50 } })
    expect((await slow.next()).value?.body).toBe(0)
    expect((await sluice.streams.get(Clicks)).readers).toBe(2)
    for (let round = 0; round < 10; round++) {
      const from = 100 + round * 1_000
      await publish(sluice, 1_000, from)
      for (let i = round === 0 ? 50 : from; i < from + 1_000; i++)
        expect((await eager.next()).value?.body).toBe(i)
    }
    const first = async (): Promise<number> => (await sluice.streams.get(Clicks)).first
    await until('retention', async () => (await first()) > 1_024)
    const rest = await bodies(slow)
    expect(rest).toEqual(upTo(10, 1))
    expect(missed).toEqual([{ stream: 'clicks', messages: 90, offset: 100 }])
  })

  it('end the iteration of their readers with an error when they are deleted', async () => {
    const sluice = await client(await start())
    await sluice.streams.ensure(Clicks)
    const reader = sluice.read(Clicks, { follow: true })
    await publish(sluice, 1)
    expect((await reader.next()).value?.body).toBe(0)
    const next = reader.next()
    await sluice.streams.delete(Clicks)
    await expect(next).rejects.toMatchObject({ code: 'QUEUE_DELETED' })
    expect((await reader.next()).done).toBe(true)
  })
})
