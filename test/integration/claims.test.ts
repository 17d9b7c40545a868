/**
 * A handler keeps its messages across a lost connection or a restart of the broker; no message is handled twice at
 * once.
 */
import { connect, type LeaseLoss, type Message, type Sluice } from '@sluice/client'
import { startServer, type RunningServer } from '@sluice/server'
import { afterEach, describe, expect, it } from 'vitest'
import { scratchDirectory } from '../rig/scratch.js'
import { Way } from '../rig/way.js'

const cleanups: (() => Promise<unknown>)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup()
})

async function directory(): Promise<string> {
  const scratch = await scratchDirectory('claims')
  cleanups.push(scratch.dispose)
  return scratch.path
}

async function start(dataDir: string): Promise<RunningServer> {
  const server = await startServer({ port: 0, segmentBytes: 8 << 20, lowFreeBytes: 0, dataDir })
  cleanups.push(() => server.stop())
  return server
}

async function wayTo(port: number): Promise<Way> {
  const way = await Way.to(port)
  cleanups.push(async () => way.close())
  return way
}

async function client(url: string): Promise<Sluice> {
  const sluice = await connect(url)
  cleanups.push(() => sluice.close({ timeout: 1_000 }).catch(() => {}))
  return sluice
}

async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  for (const end = Date.now() + 15_000; !(await holds());) {
    if (Date.now() > end) throw new Error(`waited in vain until ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

/** Handlers that end on request, with a record of their calls. */
class Handlers {
  readonly runs: string[] = []
  readonly ends: (() => void)[] = []
  readonly aborted: unknown[] = []
  readonly #running = new Map<string, number>()
  most = 0

  readonly handle = async (message: Message, { signal }: { readonly signal: AbortSignal }): Promise<void> => {
    const name = message.key ?? String(message.offset)
    const running = (this.#running.get(name) ?? 0) + 1
    this.#running.set(name, running)
    this.most = Math.max(this.most, running)
    this.runs.push(`${String(message.body)} ${message.attempt}`)
    signal.addEventListener('abort', () => this.aborted.push(message.body))
    await new Promise<void>((resolve) => this.ends.push(resolve))
    this.#running.set(name, running - 1)
  }

  end(): void {
    for (const end of this.ends.splice(0)) end()
  }
}

describe.each([
  ['one by one', {}],
  ['in the order of keys', { ordering: 'key' }],
] as const)('a handler, %s', (_name, options) => {
  it('a handler continues under a new lease after its connection was lost, and its acknowledgement counts', async () => {
    const server = await start(await directory())
    const way = await wayTo(server.port)
    const sluice = await client(`sluice://127.0.0.1:${way.ownPort}`)
    const losses: LeaseLoss[] = []
    sluice.on('leaseLost', (loss) => losses.push(loss))
    await sluice.queues.ensure('q')
    await sluice.publishBatch(
      'q',
      [1, 2, 3].map((body) => ({ body, key: `k${body % 2}` })),
    )
    const handlers = new Handlers()
    sluice.consume('q', { concurrency: 4, ...options }, handlers.handle)
    await until('two run', () => handlers.ends.length === 2)
    way.cut()
    await until('the connection is lost', () => !sluice.connected)
    await until('the connection is made again', () => sluice.connected)
    await until('the leases are back', async () => (await sluice.queues.get('q')).leased === 2)
    handlers.end()
    await until('the third message runs', () => handlers.ends.length === 1)
    handlers.end()
    await until('all is acknowledged', async () => (await sluice.queues.get('q')).acked === 3)
    expect(handlers.runs).toEqual(['1 1', '2 1', '3 1'])
    expect([handlers.most, handlers.aborted, losses]).toEqual([1, [], []])
    expect((await sluice.queues.history('q', 0).catch(() => ({ events: [] }))).events).toBeDefined()
  })

  it.each([
    ['an orderly stop', 'stop'],
    ['a crash', 'crash'],
  ])('a handler continues after %s of its broker', async (_what, how) => {
    const dataDir = await directory()
    const server = await start(dataDir)
    const way = await wayTo(server.port)
    const sluice = await client(`sluice://127.0.0.1:${way.ownPort}`)
    await sluice.queues.ensure('q')
    await sluice.publishBatch(
      'q',
      [1, 2].map((body) => ({ body, key: `k${body}` })),
    )
    const handlers = new Handlers()
    sluice.consume('q', { concurrency: 4, ...options }, handlers.handle)
    await until('both run', () => handlers.ends.length === 2)
    if (how === 'crash') {
      way.isOpen = false
      way.cut()
    }
    const stopping = server.stop()
    way.isOpen = false
    await stopping
    way.cut()
    way.port = (await start(dataDir)).port
    // One of the handlers ends while there is no connection.
    handlers.ends.shift()!()
    await new Promise((resolve) => setTimeout(resolve, 20))
    way.isOpen = true
    await until('the connection is made again', () => sluice.connected)
    if (how === 'stop') {
      await until('its outcome counts', async () => (await sluice.queues.get('q')).acked === 1)
      expect((await sluice.queues.get('q')).leased).toBe(1)
    }
    handlers.end()
    await until('all is done', async () => {
      handlers.end()
      return (await sluice.queues.get('q')).acked === 2
    })
    expect(handlers.most).toBe(1)
    if (how === 'stop') expect(handlers.runs).toEqual(['1 1', '2 1'])
  })

  it('a handler learns by signal and event that another consumer has its message, and no message is handled twice at once', async () => {
    const server = await start(await directory())
    const way = await wayTo(server.port)
    const sluice = await client(`sluice://127.0.0.1:${way.ownPort}`)
    const other = await client(`sluice://127.0.0.1:${server.port}`)
    const losses: LeaseLoss[] = []
    sluice.on('leaseLost', (loss) => losses.push(loss))
    await sluice.queues.ensure('q', { retry: { initial: 1, max: 1 } })
    await sluice.publish('q', 'a', { key: 'k' })
    const handlers = new Handlers()
    sluice.consume('q', { concurrency: 4, ...options }, handlers.handle)
    await until('it runs', () => handlers.ends.length === 1)
    await until('the broker knows', async () => (await other.queues.consumers('q'))[0]?.started === 1)
    way.isOpen = false
    way.cut()
    const [taken] = await other.pull('q', { wait: '5s' })
    expect(taken).toMatchObject({ body: 'a', attempt: 2 })
    way.isOpen = true
    await until('the loss is reported', () => losses.length === 1)
    expect(losses).toEqual([{ queue: 'q', offset: 0, reason: 'disconnected' }])
    expect(handlers.aborted).toEqual(['a'])
    // The other consumer releases the message while its handler still runs here. This client must not handle it a
    // second time.
    await taken!.release()
    await other.close()
    await new Promise((resolve) => setTimeout(resolve, 100))
    expect(handlers.runs).toEqual(['a 1'])
    handlers.end()
    await until('it runs again', () => handlers.ends.length === 1)
    handlers.end()
    await until('it is done', async () => (await sluice.queues.get('q')).acked === 1)
    expect([handlers.runs, handlers.most]).toEqual([['a 1', 'a 2'], 1])
  })
})

/** A client behind `way`, and a queue `q` with the messages 1, 2 and 3. */
async function clientWithThreeMessages(): Promise<{ way: Way; sluice: Sluice }> {
  const { port } = await start(await directory())
  const way = await wayTo(port)
  const sluice = await client(`sluice://127.0.0.1:${way.ownPort}`)
  await sluice.queues.ensure('q')
  await sluice.publishBatch(
    'q',
    [1, 2, 3].map((body) => ({ body })),
  )
  return { way, sluice }
}

it('messages of an iterator and of a pull are claimed too', async () => {
  const { way, sluice } = await clientWithThreeMessages()
  const [pulled] = await sluice.pull('q')
  const iterator = sluice.messages('q', { prefetch: 1 })
  const yielded = (await iterator.next()).value!
  expect([pulled!.body, yielded.body]).toEqual([1, 2])
  way.cut()
  await until('the connection is lost', () => !sluice.connected)
  await pulled!.ack()
  await yielded.ack()
  expect(await sluice.queues.get('q')).toMatchObject({ acked: 2 })
  expect((await iterator.next()).value!.body).toBe(3)
})

it('messages of a consumer that has ended are claimed too', async () => {
  const { way, sluice } = await clientWithThreeMessages()
  const [first] = await sluice.pull('q', { processingTimeout: '5m' })
  const [second] = await sluice.pull('q')
  const iterator = sluice.messages('q', { prefetch: 1 })
  const third = (await iterator.next()).value!
  await iterator.return!()
  way.cut()
  await until('the connection is lost', () => !sluice.connected)
  await Promise.all([first!.ack(), second!.ack(), third.ack()])
  expect(await sluice.queues.get('q')).toMatchObject({ acked: 3 })
  await until('nothing subscribes', async () => (await sluice.queues.get('q')).consumers === 0)
})

it('with one active consumer, a consumer that has ended claims its message before the next one becomes active', async () => {
  const server = await start(await directory())
  const way = await wayTo(server.port)
  const sluice = await client(`sluice://127.0.0.1:${way.ownPort}`)
  await sluice.queues.ensure('q', { single: true })
  await sluice.publishBatch(
    'q',
    [1, 2].map((body) => ({ body })),
  )
  const iterator = sluice.messages('q', { prefetch: 1 })
  const { value } = await iterator.next()
  const handlers = new Handlers()
  sluice.consume('q', handlers.handle)
  await until('both subscribe', async () => (await sluice.queues.get('q')).consumers === 2)
  await iterator.return!()
  way.cut()
  await until('the connection is lost', () => !sluice.connected)
  await until('both subscribe again', async () => (await sluice.queues.get('q')).consumers === 2)
  expect(handlers.runs).toEqual([])
  await value!.ack()
  await until('the next consumer is active', () => handlers.runs.length === 1)
  expect(handlers.runs).toEqual(['2 1'])
  handlers.end()
  await until('all is acknowledged', async () => (await sluice.queues.get('q')).acked === 2)
})

it('a message whose processing timeout passed is not handled again while its old handler runs', async () => {
  const server = await start(await directory())
  const sluice = await client(`sluice://127.0.0.1:${server.port}`)
  sluice.on('leaseLost', () => {})
  await sluice.queues.ensure('q', { processingTimeout: '200ms', retry: { initial: 1, max: 1 } })
  await sluice.publish('q', 'a')
  await sluice.publish('q', 'b', { delay: '300ms' })
  const handlers = new Handlers()
  sluice.consume('q', { concurrency: 4 }, handlers.handle)
  await until('the other message runs in the meantime', () => handlers.runs.includes('b 1'))
  await new Promise((resolve) => setTimeout(resolve, 100))
  expect(handlers.runs).toEqual(['a 1', 'b 1'])
  handlers.end()
  await until('it runs again', () => handlers.runs.length === 3)
  expect([handlers.runs, handlers.most]).toEqual([['a 1', 'b 1', 'a 2'], 1])
  handlers.end()
})
