/** Topics through the SDK, with a broker in this process over TCP. */
import { createConnection, createServer, type AddressInfo, type Socket } from 'node:net'
import {
  connect,
  topic,
  type PublishAllOptions,
  type Receipt,
  type Routed,
  type Sluice,
  type SluiceError,
  type QueueRef,
} from '@sluice/client'
import { startServer, type RunningServer } from '@sluice/server'
import { afterEach, beforeEach, describe, expect, expectTypeOf, it } from 'vitest'
import { scratchDirectory } from '../rig/scratch.js'

const Created = topic<{ id: number }>('orders.eu.created')

let scratch: { path: string; dispose: () => Promise<void> }
let server: RunningServer
let sluice: Sluice

beforeEach(async () => {
  scratch = await scratchDirectory('topics')
  server = await startServer({ port: 0, segmentBytes: 8 << 20, lowFreeBytes: 0, dataDir: scratch.path })
  sluice = await connect(`sluice://127.0.0.1:${server.port}`)
  for (const name of ['invoices', 'audit', 'vip']) await sluice.queues.ensure(name)
})

afterEach(async () => {
  await sluice.close({ timeout: 1_000 })
  await server.stop()
  await scratch.dispose()
})

/** Connections to the broker that a test can cut. */
class Relay {
  readonly #sockets = new Set<Socket>()
  readonly #server = createServer((near) => {
    const far = createConnection(this.#to, '127.0.0.1')
    for (const socket of [near, far]) {
      this.#sockets.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => this.#sockets.delete(socket))
    }
    near.pipe(far).pipe(near)
  })
  readonly #to: number

  private constructor(to: number) {
    this.#to = to
  }

  static async to(port: number): Promise<Relay> {
    const relay = new Relay(port)
    await new Promise<void>((resolve) => {
      relay.#server.listen(0, '127.0.0.1', resolve)
    })
    return relay
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy()
  }

  /** Cuts the connections, and accepts none until the returned function is called. */
  async part(): Promise<() => Promise<void>> {
    const { port } = this
    this.#server.close()
    this.cut()
    await new Promise((resolve) => setTimeout(resolve, 20))
    return () =>
      new Promise((resolve) => {
        this.#server.listen(port, '127.0.0.1', resolve)
      })
  }

  close(): void {
    this.cut()
    this.#server.close()
  }
}

const refused = (code: string): Error => expect.objectContaining({ code }) as Error

async function ready(): Promise<Record<string, number>> {
  const queues = await sluice.queues.list()
  return Object.fromEntries(queues.map(({ name, ready }) => [name, ready]))
}

describe('publish to a topic', () => {
  it('resolves with the number of queues that got the message', async () => {
    await sluice.topics.bind('orders.*.created', 'invoices')
    await sluice.topics.bind('orders.#', 'audit')
    await sluice.topics.bind('#', 'vip', { headers: { any: { vip: 'yes', gold: 'yes' } } })
    const published = [
      sluice.publish(Created, { id: 1 }),
      sluice.publish(Created, { id: 2 }, { headers: { vip: 'yes' } }),
      sluice.publish(Created, { id: 3 }, { headers: { vip: 'no' } }),
      sluice.publish(Created, { id: 4 }),
      sluice.publishBatch(Created, [{ body: { id: 5 } }, { body: { id: 6 }, headers: { gold: 'yes' } }]),
      sluice.publish(topic('orders'), 7),
    ]
    expect(await Promise.all(published)).toEqual([2, 3, 2, 2, 3, 1].map((targets) => ({ targets })))
    expect(await ready()).toEqual({ invoices: 6, audit: 7, vip: 2 })
    const messages = await sluice.pull('vip', { max: 10 })
    expect(messages.map(({ body }) => body)).toEqual([{ id: 2 }, { id: 6 }])
    const all = await sluice.pull('audit', { max: 10 })
    expect(all.map(({ body }) => (body as { id?: number }).id ?? body)).toEqual([1, 2, 3, 4, 5, 6, 7])
  })

  it('is refused or dropped if nothing matches', async () => {
    const none = topic('none')
    await expect(sluice.publish(none, 1)).rejects.toThrow(refused('UNROUTABLE'))
    await expect(Promise.all([sluice.publish(none, 1), sluice.publish(none, 2)])).rejects.toThrow(
      refused('UNROUTABLE'),
    )
    await expect(sluice.publishBatch(none, [{ body: 1 }])).rejects.toThrow(refused('UNROUTABLE'))
    expect(await sluice.publish(none, 1, { unroutable: 'drop' })).toEqual({ targets: 0 })
    expect(await sluice.publishBatch(none, [{ body: 1 }], { unroutable: 'drop' })).toEqual({ targets: 0 })
    expect(await sluice.publishBatch(none, [])).toEqual({ targets: 0 })
    const wrong = 'keep' as 'drop'
    await expect(sluice.publish(none, 1, { unroutable: wrong })).rejects.toThrow(refused('INVALID_ARGUMENT'))
  })

  it('is refused as a whole by a full queue, whose name is in the error', async () => {
    await sluice.queues.ensure('invoices', { maxMessages: 1, update: true })
    for (const target of ['invoices', 'audit']) await sluice.topics.bind('#', target)
    const settled = await Promise.allSettled([1, 2, 3].map((id) => sluice.publish(Created, { id })))
    expect(settled.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'rejected'])
    const [, second] = settled as PromiseRejectedResult[]
    expect((second!.reason as SluiceError).code).toBe('QUEUE_FULL')
    expect(String(second!.reason)).toContain('invoices')
    expect(await ready()).toEqual({ invoices: 1, audit: 1, vip: 0 })
  })

  it('reaches each queue once across lost connections', async () => {
    await sluice.topics.bind('orders.#', 'invoices')
    await sluice.topics.bind('#', 'audit')
    const relay = await Relay.to(server.port)
    const relayed = await connect(`sluice://127.0.0.1:${relay.port}`)
    let lost = 0
    relayed.on('disconnected', () => lost++)
    const published: Promise<Routed>[] = []
    for (let id = 0; id < 300; id++) {
      published.push(relayed.publish(Created, { id }, id % 3 === 0 ? { headers: { id: `${id}` } } : {}))
      if (id % 100 !== 50) continue
      await new Promise(setImmediate)
      relay.cut()
    }
    expect(new Set((await Promise.all(published)).map(({ targets }) => targets))).toEqual(new Set([2]))
    expect(lost).toBeGreaterThan(0)
    await relayed.close()
    relay.close()
    expect(await ready()).toEqual({ invoices: 300, audit: 300, vip: 0 })
    const bodies = (await sluice.pull('invoices', { max: 1_000 })).map(
      ({ body }) => (body as { id: number }).id,
    )
    expect(bodies.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 300 }, (_, id) => id))
  })

  it('checks the body with the schema of the topic', async () => {
    const schema = {
      '~standard': {
        version: 1 as const,
        vendor: 'test',
        validate: (value: unknown) =>
          typeof value === 'number' ? { value } : { issues: [{ message: 'no number' }] },
        types: undefined as unknown as { input: number; output: number },
      },
    }
    const Numbers = topic('numbers', { schema })
    await sluice.topics.bind(Numbers, 'audit')
    expect(await sluice.publish(Numbers, 1)).toEqual({ targets: 1 })
    await expect(sluice.publish(Numbers, 'x' as never)).rejects.toThrow(refused('INVALID_BODY'))
    await expect(sluice.publishBatch(Numbers, [{ body: 'x' as never }])).rejects.toThrow(
      refused('INVALID_BODY'),
    )
  })
})

describe('publishAll to a topic', () => {
  it('publishes each message by itself to the queues that it reaches', async () => {
    await sluice.topics.bind('orders.#', 'audit')
    await sluice.topics.bind('orders.#', 'vip', { headers: { all: { vip: 'yes' } } })
    const messages = [1, 2, 3].map((id) => ({
      body: { id },
      ...(id === 2 ? { headers: { vip: 'yes' } } : {}),
    }))
    expect(await sluice.publishAll(Created, messages)).toEqual({ published: 3, duplicates: 0 })
    expect(await ready()).toEqual({ invoices: 0, audit: 3, vip: 1 })
    const nowhere = topic('users')
    await expect(sluice.publishAll(nowhere, [{ body: 1 }])).rejects.toThrow(refused('UNROUTABLE'))
    const dropped = await sluice.publishAll(nowhere, [{ body: 1 }], { unroutable: 'drop' })
    expect(dropped).toEqual({ published: 1, duplicates: 0 })
    const asQueue = { unroutable: 'drop' } as PublishAllOptions
    await expect(sluice.publishAll('audit', [], asQueue)).rejects.toThrow(refused('INVALID_ARGUMENT'))
  })
})

describe('an atomic step that publishes to a topic', () => {
  it('acknowledges and publishes in one step, and has receipts of the queues', async () => {
    await sluice.topics.bind('orders.#', 'audit')
    await sluice.topics.bind('orders.#', 'vip', { headers: { all: { vip: 'yes' } } })
    await sluice.queues.ensure('orders')
    await sluice.publish('orders', 'order 7')
    const [message] = await sluice.pull('orders')
    const receipts = await sluice.atomic((tx) => {
      tx.ack(message!)
      tx.publish('invoices', 'invoice 7')
      tx.publish(Created, { id: 7 }, { headers: { vip: 'yes' } })
      tx.publish(Created, { id: 8 })
      tx.publish('invoices', 'invoice 8')
    })
    expect(receipts).toEqual([0, 1].map((offset) => ({ offset, duplicate: false })))
    expect(await ready()).toEqual({ invoices: 2, audit: 2, vip: 1, orders: 0 })
    expect((await sluice.queues.get('orders')).leased).toBe(0)
    const [vip] = await sluice.pull('vip')
    expect(vip!.body).toEqual({ id: 7 })
  })

  it('has no effect if no queue is bound to the topic', async () => {
    await sluice.queues.ensure('orders')
    await sluice.publish('orders', 'order 7')
    const [message] = await sluice.pull('orders')
    const nowhere = sluice.atomic((tx) => {
      tx.ack(message!)
      tx.publish('invoices', 'invoice 7')
      tx.publish(Created, { id: 7 })
    })
    await expect(nowhere).rejects.toThrow(refused('UNROUTABLE'))
    expect(await ready()).toMatchObject({ invoices: 0, audit: 0 })
    const dropped = sluice.atomic((tx) => {
      tx.ack(message!)
      tx.publish(Created, { id: 7 }, { unroutable: 'drop' })
    })
    expect(await dropped).toEqual([])
    expect((await sluice.queues.get('orders')).acked).toBe(1)
  })
})

describe('a topic', () => {
  it('is not a queue, and its address is no name', async () => {
    const asQueue = Created as unknown as QueueRef
    expect(() => sluice.consume(asQueue, () => {})).toThrow(refused('INVALID_ARGUMENT'))
    await expect(sluice.publish('#orders', 1)).rejects.toThrow(refused('INVALID_NAME'))
    expect(() => topic('a..b')).toThrow(refused('INVALID_TOPIC'))
    expect(() => topic('a.*')).toThrow(refused('INVALID_TOPIC'))
  })

  it('has another receipt than a queue', () => {
    expectTypeOf(() =>
      sluice.publish(Created, { id: 1 }, { unroutable: 'drop' }),
    ).returns.resolves.toEqualTypeOf<Routed>()
    expectTypeOf(() => sluice.publish('audit', 1)).returns.resolves.toEqualTypeOf<Receipt>()
    expectTypeOf(() =>
      sluice.publishBatch(Created, [{ body: { id: 1 } }]),
    ).returns.resolves.toEqualTypeOf<Routed>()
    expectTypeOf(() => sluice.publishBatch('audit', [{ body: 1 }])).returns.resolves.toEqualTypeOf<
      Receipt[]
    >()
    // @ts-expect-error -- the body of the topic has another type.
    void (() => sluice.publish(Created, { id: 'x' }, { unroutable: 'drop' }))
    // @ts-expect-error -- a topic is not a queue.
    expect(() => sluice.consume(Created, () => {})).toThrow('is a topic')
  })
})

describe('bindings', () => {
  it('are added, listed, tested and removed', async () => {
    const headers = { all: { vip: 'yes' } }
    expect(await sluice.topics.bind('orders.#', 'audit')).toEqual({ changed: true })
    expect(await sluice.topics.bind('orders.#', 'audit')).toEqual({ changed: false })
    await sluice.topics.bind('orders.*.created', 'audit')
    await sluice.topics.bind('#', 'vip', { headers })
    const plain = { pattern: 'orders.#', target: 'audit', createdAt: expect.any(Date) as Date }
    expect(await sluice.topics.list({ pattern: 'orders.#' })).toEqual([plain])
    expect(await sluice.topics.list({ target: 'vip' })).toEqual([
      { pattern: '#', target: 'vip', headers, createdAt: expect.any(Date) as Date },
    ])
    const targets = async (given?: Record<string, string>): Promise<[string, number][]> =>
      (await sluice.topics.test(Created, given)).map(({ target, bindings }) => [target, bindings.length])
    expect(await targets()).toEqual([
      ['audit', 2],
      ['vip', 1],
    ])
    expect(await targets({})).toEqual([['audit', 2]])
    expect(await targets({ vip: 'yes', x: '' })).toEqual([
      ['audit', 2],
      ['vip', 1],
    ])
    expect(await sluice.topics.unbind('#', 'vip')).toEqual({ changed: false })
    expect(await sluice.topics.unbind('#', 'vip', { headers })).toEqual({ changed: true })
    await sluice.queues.delete('audit')
    expect(await sluice.topics.list()).toEqual([])
    await expect(sluice.topics.bind('#', 'audit')).rejects.toThrow(refused('QUEUE_NOT_FOUND'))
    await expect(sluice.topics.bind('a.b*', 'vip')).rejects.toThrow(refused('INVALID_PATTERN'))
    await expect(sluice.topics.bind('a', 'vip', { headers: { all: {} } })).rejects.toThrow(
      refused('INVALID_ARGUMENT'),
    )
  })

  it('are listed over several pages', async () => {
    const all = Array.from({ length: 250 }, (_, at) => `a.${at}.#`)
    await Promise.all(all.map((pattern) => sluice.topics.bind(pattern, 'audit')))
    expect((await sluice.topics.list()).map(({ pattern }) => pattern)).toEqual(all)
    expect((await sluice.topics.test('a.7')).map(({ target }) => target)).toEqual(['audit'])
  })
})

describe('a subscriber', () => {
  async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
    for (const end = Date.now() + 15_000; !(await holds());) {
      if (Date.now() > end) throw new Error('waited in vain')
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
  }
  const temporary = async (): Promise<string[]> =>
    (await sluice.queues.list()).map(({ name }) => name).filter((name) => name.startsWith('subscribe/'))

  it('gets what is published to matching topics, until it is closed', async () => {
    const got: unknown[] = []
    const subscriber = sluice.subscribe('orders.#', ({ body }) => got.push(body), { concurrency: 2 })
    await subscriber.ready
    const headers = { all: { vip: 'yes' } }
    const vip: unknown[] = []
    const other = sluice.subscribe(Created, ({ body: { id } }) => vip.push(id), { headers, expires: '5s' })
    await other.ready
    expect(await temporary()).toHaveLength(2)
    expect((await sluice.queues.get(other.queue)).options.expires).toBe(5_000)
    expect((await sluice.queues.get(subscriber.queue)).options.expires).toBe(60_000)
    expect(await sluice.publish(Created, { id: 1 })).toEqual({ targets: 1 })
    expect(await sluice.publish(Created, { id: 2 }, { headers: { vip: 'yes' } })).toEqual({ targets: 2 })
    await until(() => got.length === 2 && vip.length === 1)
    expect([got, vip]).toEqual([[{ id: 1 }, { id: 2 }], [2]])
    await subscriber.close()
    await subscriber.closed
    expect(await temporary()).toEqual([other.queue])
    expect(await sluice.publish(Created, { id: 3 }, { unroutable: 'drop' })).toEqual({ targets: 0 })
    const controller = new AbortController()
    const third = sluice.subscribe('#', () => {}, { signal: controller.signal })
    await third.ready
    controller.abort()
    await third.closed
    expect(await temporary()).toEqual([other.queue])
  })

  it('ends with its client, which deletes the queue', async () => {
    const second = await connect(`sluice://127.0.0.1:${server.port}`)
    await second.subscribe('#', () => {}).ready
    expect(await temporary()).toHaveLength(1)
    await second.close()
    expect(await temporary()).toEqual([])
  })

  it('loses nothing across a lost connection', async () => {
    const relay = await Relay.to(server.port)
    const relayed = await connect(`sluice://127.0.0.1:${relay.port}`)
    const got = new Set<number>()
    const subscriber = relayed.subscribe(Created, ({ body: { id } }) => got.add(id), { concurrency: 4 })
    await subscriber.ready
    const again: unknown[] = []
    relayed.on('resubscribed', (event) => again.push(event))
    for (let id = 0; id < 200; id++) {
      await sluice.publish(Created, { id })
      if (id % 50 === 25) relay.cut()
    }
    await until(() => got.size === 200)
    expect(again).toEqual([])
    await relayed.close()
    relay.close()
  })

  it('makes its queue again when it is gone, and reports that', async () => {
    const relay = await Relay.to(server.port)
    const relayed = await connect(`sluice://127.0.0.1:${relay.port}`)
    const got: number[] = []
    const subscriber = relayed.subscribe(Created, ({ body: { id } }) => got.push(id), { expires: '1s' })
    await subscriber.ready
    const again: unknown[] = []
    const waiting: unknown[] = []
    relayed.on('resubscribed', (event) => again.push(event))
    relayed.on('waiting', (event) => waiting.push(event))
    await sluice.queues.delete(subscriber.queue)
    await until(() => again.length === 1)
    expect(await sluice.publish(Created, { id: 1 })).toEqual({ targets: 1 })
    await until(() => got.length === 1)
    const open = await relay.part()
    await until(async () => (await temporary()).length === 0)
    await open()
    await until(() => again.length === 2)
    expect(again[1]).toEqual({ pattern: 'orders.eu.created', queue: subscriber.queue })
    expect(await sluice.publish(Created, { id: 2 })).toEqual({ targets: 1 })
    await until(() => got.length === 2)
    expect(got).toEqual([1, 2])
    expect(waiting).toEqual([])
    await relayed.close()
    expect(await temporary()).toEqual([])
    relay.close()
  })

  it('can be closed before its queue is made, and without a connection', async () => {
    const early = sluice.subscribe('#', () => {})
    await early.close()
    await expect(early.ready).rejects.toThrow(refused('CLOSED'))
    const relay = await Relay.to(server.port)
    const relayed = await connect(`sluice://127.0.0.1:${relay.port}`)
    const subscriber = relayed.subscribe('#', () => {})
    await subscriber.ready
    relay.close()
    await until(() => !relayed.connected)
    await subscriber.close()
    await relayed.close({ timeout: 0 })
  })

  it('is refused with wrong arguments', async () => {
    expect(() => sluice.subscribe('a..b', () => {})).toThrow(refused('INVALID_PATTERN'))
    expect(() => sluice.subscribe('a', undefined as never)).toThrow(refused('INVALID_ARGUMENT'))
    expect(() => sluice.subscribe('a', () => {}, { concurrency: 0 })).toThrow(refused('INVALID_ARGUMENT'))
    expect(() => sluice.subscribe('a', () => {}, { missing: 'fail' } as object)).toThrow(
      refused('INVALID_ARGUMENT'),
    )
    const errors: SluiceError[] = []
    sluice.on('error', (error) => errors.push(error))
    const soon = sluice.subscribe('a', () => {}, { expires: '1ms' })
    await expect(soon.ready).rejects.toThrow(refused('INVALID_OPTION'))
    await expect(soon.closed).rejects.toThrow(refused('INVALID_OPTION'))
    expect(errors.map(({ code }) => code)).toEqual(['INVALID_OPTION'])
  })
})
