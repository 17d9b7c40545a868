/** The SDK with a broker in this process over TCP: first steps, closing, and lost connections. */
import { createConnection, type Socket } from 'node:net'
import {
  DeadLetter,
  Retry,
  type SluiceError,
  connect,
  queue,
  type EnsureOptions,
  type Message,
  type PublishOptions,
  type Sluice,
} from '@sluice/client'
import { startServer, type RunningServer, type ServerOptions } from '@sluice/server'
import { afterEach, describe, expect, it } from 'vitest'
import { scratchDirectory } from '../rig/scratch.js'

const cleanups: (() => Promise<unknown>)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup()
})

async function directory(): Promise<string> {
  const scratch = await scratchDirectory('sdk')
  cleanups.push(scratch.dispose)
  return scratch.path
}

async function start(options: ServerOptions = {}): Promise<RunningServer> {
  const server = await startServer({
    port: 0,
    segmentBytes: 8 << 20,
    lowFreeBytes: 0,
    ...options,
    dataDir: options.dataDir ?? (await directory()),
  })
  cleanups.push(() => server.stop())
  return server
}

async function client(server: { readonly port: number }, name = 'test'): Promise<Sluice> {
  const sluice = await connect(`sluice://127.0.0.1:${server.port}`, { name })
  cleanups.push(() => sluice.close({ timeout: 1_000 }))
  return sluice
}

async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  for (const end = Date.now() + 15_000; !(await holds());) {
    if (Date.now() > end) throw new Error(`waited in vain until ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

const Orders = queue('orders')

describe('publishing', () => {
  it('gives dense offsets, in order, for publishes of one turn and for atomic batches', async () => {
    const sluice = await client(await start())
    await sluice.queues.ensure(Orders)
    const receipts = await Promise.all(Array.from({ length: 500 }, (_, i) => sluice.publish(Orders, { i })))
    expect(receipts.map(({ offset }) => offset)).toEqual(Array.from({ length: 500 }, (_, i) => i))
    const batch = await sluice.publishBatch(Orders, [{ body: 'a' }, { body: 'b', headers: { trace: 'x' } }])
    expect(batch.map(({ offset }) => offset)).toEqual([500, 501])
    const info = await sluice.queues.get(Orders)
    expect(info).toMatchObject({ name: 'orders', ready: 502, published: 502, leased: 0, dead: 0 })
  })

  it('refuses an unknown queue, options that are out of bounds or contradict each other, and a message that is too large', async () => {
    const sluice = await client(await start())
    await sluice.queues.ensure(Orders)
    const refused = async (call: Promise<unknown>): Promise<SluiceError> =>
      call.then(
        () => Promise.reject(new Error('was accepted')),
        (error: unknown) => error as SluiceError,
      )
    expect((await refused(sluice.publish(queue('nowhere'), 1))).code).toBe('QUEUE_NOT_FOUND')
    const year = 365 * 24 * 3600 * 1000
    const options: readonly [string, string, PublishOptions][] = [
      ['priority', 'INVALID_PRIORITY', { priority: 32 }],
      ['key', 'INVALID_KEY', { key: 'k'.repeat(256) }],
      ['key', 'INVALID_KEY', { key: '' }],
      ['id', 'INVALID_ID', { id: 'i'.repeat(256) }],
      ['delay', 'INVALID_DELAY', { delay: 300 * year }],
      ['at', 'INVALID_DELAY', { at: Date.now() + 300 * year }],
      ['at', 'AT_IN_THE_PAST', { at: Date.now() - 61_000 }],
      ['at', 'OPTION_CONFLICT', { at: Date.now(), delay: 1 }],
      ['ttl', 'INVALID_TTL', { ttl: 0 }],
      ['header', 'INVALID_HEADERS', { headers: { a: 'x'.repeat(20_000) } }],
    ]
    for (const [name, code, option] of options) {
      const error = await refused(sluice.publish(Orders, 1, option))
      expect(error.code, error.message).toBe(code)
      expect(error.message).toContain(name)
    }
    const conflicts: readonly [string, EnsureOptions][] = [
      ['OPTION_CONFLICT', { retry: { initial: '1h', max: '1m' } }],
      ['OPTION_CONFLICT', { overflow: 'drop-oldest' }],
      ['OPTION_CONFLICT', { unique: 'pending', dedupWindow: '1m' }],
      ['DEAD_LETTER_CYCLE', { deadLetter: 'options' }],
      ['QUEUE_NOT_FOUND', { deadLetter: 'nowhere' }],
      ['INVALID_OPTION', { keyConcurrency: 0 }],
      ['INVALID_OPTION', { maxDeliveries: 65_536 }],
    ]
    for (const [code, option] of conflicts)
      expect((await refused(sluice.queues.ensure('options', option))).code).toBe(code)
    expect((await sluice.queues.list()).map(({ name }) => name)).toEqual(['orders'])
    const large = await refused(sluice.publish(Orders, new Uint8Array((1 << 20) + 1)))
    expect(large.code).toBe('MESSAGE_TOO_LARGE')
    await sluice.publish(Orders, new Uint8Array(1 << 20))
    expect((await sluice.queues.get(Orders)).published).toBe(1)
  })

  it('keeps independent publishes of one turn independent', async () => {
    const sluice = await client(await start())
    await sluice.queues.ensure(Orders)
    const results = await Promise.allSettled([
      sluice.publish(Orders, 1),
      sluice.publish(Orders, 2, { at: Date.now() - 120_000 }),
      sluice.publish(Orders, 3),
    ])
    expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled'])
    expect((await sluice.queues.get(Orders)).published).toBe(2)
  })
})

describe('consuming', () => {
  it('delivers in order, bytes as bytes, text as text, data as data', async () => {
    const sluice = await client(await start())
    await sluice.queues.ensure(Orders)
    const bodies = [new Uint8Array([1, 2, 3]), 'text ✓', { a: [1, null, 'x'], b: new Date(5) }, 42, null]
    for (const body of bodies) await sluice.publish(Orders, body, { headers: { kind: typeof body } })
    const seen: Message[] = []
    const worker = sluice.consume(Orders, {}, (message) => {
      seen.push(message)
    })
    await until('all came', () => seen.length === bodies.length)
    expect(seen.map(({ body }) => body)).toEqual(bodies)
    expect(seen.map(({ offset, attempt, redelivered }) => [offset, attempt, redelivered])).toEqual(
      bodies.map((_, i) => [i, 1, false]),
    )
    expect(seen.map(({ headers }) => headers['kind'])).toEqual(bodies.map((body) => typeof body))
    await worker.close()
    expect(await sluice.queues.get(Orders)).toMatchObject({ ready: 0, leased: 0, acked: 5, consumers: 0 })
  })

  it('delivers by priority, waits for the due time, and drops expired messages', async () => {
    const sluice = await client(await start())
    await sluice.queues.ensure(Orders)
    const dueMs = Date.now() + 300
    await sluice.publishBatch(Orders, [
      { body: 'late', delay: '200ms', priority: 31 },
      { body: 'at', at: new Date(dueMs) },
      { body: 'short', ttl: 50 },
      { body: 'low' },
      { body: 'high', priority: 9 },
      { body: 'high too', priority: 9, ttl: '1h' },
    ])
    expect((await sluice.queues.get(Orders)).published).toBe(6)
    await new Promise((resolve) => setTimeout(resolve, 60))
    const seen: [unknown, number, boolean][] = []
    const times: number[] = []
    const worker = sluice.consume(Orders, {}, (message) => {
      seen.push([message.body, message.priority, message.redelivered])
      times.push(Date.now())
    })
    await until('the delayed message arrived', () => seen.length === 5)
    expect(seen).toEqual([
      ['high', 9, false],
      ['high too', 9, false],
      ['low', 0, false],
      ['late', 31, false],
      ['at', 0, false],
    ])
    expect(times[4]).toBeGreaterThanOrEqual(dueMs)
    await worker.close()
    expect(await sluice.queues.get(Orders)).toMatchObject({ acked: 5, expired: 1, ready: 0, scheduled: 0 })
  })

  it('retries a message whose handler throws, with back-off, and keeps a message that failed too often as a dead message', async () => {
    const sluice = await client(await start())
    await sluice.queues.ensure(Orders, { maxDeliveries: 3, retry: { initial: 10, max: 20 } })
    await sluice.publish(Orders, 'bad')
    await sluice.publish(Orders, 'good')
    await sluice.publish(Orders, 'rejected')
    const tries: [unknown, number, boolean][] = []
    const worker = sluice.consume(Orders, { concurrency: 2 }, (message) => {
      tries.push([message.body, message.attempt, message.redelivered])
      if (message.body === 'bad') throw message.attempt === 1 ? new Error('first') : new Retry({ delay: 5 })
      if (message.body === 'rejected') throw new DeadLetter('no such customer')
    })
    await until('it is dead', async () => (await sluice.queues.get(Orders)).dead === 2)
    expect(tries.filter(([body]) => body === 'bad')).toEqual([
      ['bad', 1, false],
      ['bad', 2, true],
      ['bad', 3, true],
    ])
    await worker.close()
    expect(await sluice.queues.get(Orders)).toMatchObject({ ready: 0, scheduled: 0, dead: 2, acked: 1 })
  })

  it('shares a queue among consumers, each message to one of them', async () => {
    const server = await start()
    const sluice = await client(server)
    await sluice.queues.ensure(Orders)
    const counts = [0, 0, 0]
    const seen = new Set<number>()
    for (const i of counts.keys()) {
      ;(await client(server, `worker ${i}`)).consume(Orders, { concurrency: 4 }, async (message) => {
        seen.add(message.offset)
        counts[i]!++
        await new Promise((resolve) => setImmediate(resolve))
      })
    }
    await until('all are there', async () => (await sluice.queues.get(Orders)).consumers === 3)
    await Promise.all(Array.from({ length: 3_000 }, (_, i) => sluice.publish(Orders, i)))
    await until('all are done', async () => (await sluice.queues.get(Orders)).acked === 3_000)
    expect(seen.size).toBe(3_000)
    for (const count of counts) expect(count).toBeGreaterThan(300)
    expect(counts.reduce((a, b) => a + b)).toBe(3_000)
  })

  it('delivers each message with its own options, whether or not its neighbours are in the same frame', async () => {
    const sluice = await client(await start())
    await sluice.queues.ensure(Orders)
    // Runs of messages with new keys, which are delivered together, alternate with runs of messages that share keys.
    // Some messages have a delay.
    const sent = Array.from({ length: 3_000 }, (_, i) => ({
      body: `message ${i}`,
      key: (i >>> 5) % 3 === 0 ? `shared-${i % 7}` : `own-${i}`,
      ...(i % 500 < 40 ? { delay: 50 } : {}),
    }))
    await sluice.publishBatch(Orders, sent)
    const seen = new Map<number, string>()
    let wrong = 0
    const last = new Map<string, number>()
    const worker = sluice.consume(Orders, { concurrency: 300, prefetch: 300 }, (message) => {
      const { offset, key = '', attempt } = message
      const body = String(message.body)
      const expected = sent[offset]!
      if (body !== expected.body || key !== expected.key || attempt !== 1 || seen.has(offset)) wrong++
      if (expected.delay === undefined && (last.get(key) ?? -1) > offset) wrong++
      if (expected.delay === undefined) last.set(key, offset)
      seen.set(offset, body)
    })
    await until('all have arrived', () => seen.size === sent.length)
    expect(wrong).toBe(0)
    await worker.close()
  })

  it('holds no more than its credit, in messages and in bytes', async () => {
    const sluice = await client(await start())
    await sluice.queues.ensure(Orders)
    for (let i = 0; i < 20; i++) await sluice.publish(Orders, new Uint8Array(1_000))
    const held: Message[] = []
    const abort = new AbortController()
    const reading = (async () => {
      for await (const message of sluice.messages(Orders, { prefetch: 7, signal: abort.signal }))
        held.push(message)
    })().catch((error: unknown) => (error as SluiceError).code)
    await until('the credit is used', () => held.length === 7)
    expect((await sluice.queues.get(Orders)).leased).toBe(7)
    await held[3]!.ack()
    await until('one more arrived', () => held.length === 8)
    expect((await sluice.queues.get(Orders)).leased).toBe(7)
    abort.abort()
    expect(await reading).toBe('ABORTED')
  })

  it('pulls the messages that are ready, waits for more, and gives up at the end of the wait', async () => {
    const sluice = await client(await start())
    await sluice.queues.ensure(Orders)
    expect(await sluice.pull(Orders, { max: 5 })).toEqual([])
    for (let i = 0; i < 8; i++) await sluice.publish(Orders, i)
    const first = await sluice.pull(Orders, { max: 5, wait: '5s' })
    expect(first.map(({ body }) => body)).toEqual([0, 1, 2, 3, 4])
    await Promise.all(first.map((message) => message.ack()))
    const second = await sluice.pull(Orders, { max: 5, wait: '5s' })
    expect(second.map(({ body }) => body)).toEqual([5, 6, 7])
    await second[0]!.release()
    await second[1]!.deadLetter('no')
    await second[2]!.ack()
    const again = await sluice.pull(Orders, { max: 5, wait: '5s' })
    expect(again.map(({ body, redelivered, attempt }) => [body, redelivered, attempt])).toEqual([
      [5, true, 1],
    ])
    await again[0]!.ack()
    expect(await sluice.pull(Orders, { max: 1, wait: 30 })).toEqual([])
    const late = sluice.pull(Orders, { max: 1, wait: '10s' })
    await sluice.publish(Orders, 'late')
    expect((await late).map(({ body }) => body)).toEqual(['late'])
  })
})

describe('queues', () => {
  it('are created once, changed only on demand, listed, purged and deleted', async () => {
    const sluice = await client(await start())
    expect((await sluice.queues.ensure(Orders, { maxDeliveries: 4 })).created).toBe(true)
    expect((await sluice.queues.ensure(Orders)).created).toBe(false)
    await expect(sluice.queues.ensure(Orders, { maxDeliveries: 5 })).rejects.toMatchObject({
      code: 'QUEUE_CONFLICT',
    })
    const changed = await sluice.queues.ensure(Orders, { maxDeliveries: 5, update: true })
    expect(changed.queue.options.maxDeliveries).toBe(5)
    for (let i = 0; i < 120; i++) await sluice.queues.ensure(queue(`q/${String(i).padStart(3, '0')}`))
    expect((await sluice.queues.list()).map(({ name }) => name)).toHaveLength(121)
    await sluice.publish(Orders, 1)
    expect(await sluice.queues.purge(Orders)).toMatchObject({ messages: 1 })
    await sluice.publish(Orders, 2)
    expect(await sluice.queues.delete(Orders)).toMatchObject({ messages: 1 })
    await expect(sluice.queues.get(Orders)).rejects.toMatchObject({ code: 'QUEUE_NOT_FOUND' })
  })

  it("end their workers when they are missing or deleted, with missing: 'fail'", async () => {
    const sluice = await client(await start())
    await sluice.queues.ensure(Orders)
    const worker = sluice.consume(Orders, { missing: 'fail' }, () => {})
    const closed = worker.closed.catch((error: unknown) => (error as SluiceError).code)
    await until('it consumes', async () => (await sluice.queues.get(Orders)).consumers === 1)
    await sluice.queues.delete(Orders)
    expect(await closed).toBe('QUEUE_DELETED')
    const missing = sluice.consume(queue('missing'), { missing: 'fail' }, () => {})
    await expect(missing.closed).rejects.toMatchObject({ code: 'QUEUE_NOT_FOUND' })
  })

  it('are awaited by workers and iterators until they exist, and again after they are deleted', async () => {
    const sluice = await client(await start())
    const waiting: string[] = []
    sluice.on('waiting', ({ queue, error }) => waiting.push(`${queue} ${error.code}`))
    const seen: unknown[] = []
    const worker = sluice.consume('later', ({ body }) => void seen.push(body))
    const next = sluice.messages('later-too').next()
    await until('both wait', async () => waiting.length === 2)
    await sluice.queues.ensure('later-too')
    await sluice.publish('later-too', 'b')
    expect((await next).value?.body).toBe('b')
    for (const body of ['a', 'again']) {
      await sluice.queues.ensure('later')
      await sluice.publish('later', body)
      await until(body, async () => seen.includes(body))
      await sluice.queues.delete('later')
    }
    expect(waiting.slice(0, 3)).toEqual([
      'later QUEUE_NOT_FOUND',
      'later-too QUEUE_NOT_FOUND',
      'later QUEUE_DELETED',
    ])
    await worker.close()
  })

  it('can be pulled from one after the other, and consumed, even if there are more queues than a connection may subscribe to', async () => {
    const sluice = await client(await start({ session: { subscriptionsMax: 300 } }))
    for (let n = 0; n < 320; n++) await sluice.queues.ensure(`q${n}`)
    for (let n = 0; n < 320; n++) expect(await sluice.pull(`q${n}`)).toEqual([])
    await sluice.publish('q7', 'x')
    expect((await sluice.pull('q7', { wait: '5s' }))[0]?.body).toBe('x')
    const seen: unknown[] = []
    const worker = sluice.consume('q319', ({ body }) => void seen.push(body))
    await sluice.publish('q319', 'y')
    await until('it consumes', async () => seen.length === 1)
    await until('no pull is still subscribed', async () => (await sluice.queues.get('q318')).consumers === 0)
    await worker.close()
  })

  it('with a single active consumer are consumed by others after a pull', async () => {
    const server = await start()
    const puller = await client(server)
    const sluice = await client(server)
    await sluice.queues.ensure(Orders, { single: true })
    await sluice.publish(Orders, 1)
    const [message] = await puller.pull(Orders, { wait: '5s' })
    const seen: unknown[] = []
    const worker = sluice.consume(Orders, ({ body }) => void seen.push(body))
    await sluice.publish(Orders, 2)
    await message!.ack()
    await until('the other consumes', async () => seen.length === 1)
    expect(seen).toEqual([2])
    await worker.close()
  })

  it('keep the workers that were started while the broker was stopping', async () => {
    const dataDir = await directory()
    const server = await start({ dataDir })
    const sluice = await client(server)
    await sluice.queues.ensure(Orders)
    await sluice.queues.ensure('other')
    await sluice.publish(Orders, 1)
    let end!: () => void
    sluice.consume(Orders, async () => {
      await new Promise<void>((resolve) => (end = resolve))
    })
    await until('it handles', async () => end !== undefined)
    const stopping = new Promise<void>((resolve) => sluice.on('notice', () => resolve()))
    const stopped = server.stop()
    await stopping
    const seen: unknown[] = []
    const worker = sluice.consume('other', ({ body }) => void seen.push(body))
    end()
    await stopped
    await start({ dataDir, port: server.port })
    await sluice.publish('other', 'x')
    await until('it consumes', async () => seen.length === 1)
    expect(seen).toEqual(['x'])
    await worker.close()
  })
})

describe('a key', () => {
  it('that a retry pauses waits, and the others go on', async () => {
    const sluice = await client(await start())
    await sluice.queues.ensure('paused-keys', { onFail: 'skip' })
    for (const [body, key] of ['x', 'x', 'y'].entries()) await sluice.publish('paused-keys', body, { key })
    const handled: unknown[] = []
    const worker = sluice.consume('paused-keys', ({ body, key }) => {
      handled.push(body)
      if (key === 'x') throw new Retry({ delay: '1h', pauseKey: true, reason: '429' })
    })
    await until('the other key is done', async () => (await sluice.queues.get('paused-keys')).acked === 1)
    expect(handled).toEqual([0, 2])
    expect(await sluice.queues.get('paused-keys')).toMatchObject({ heldKeys: 1, ready: 1, scheduled: 1 })
    const { deliverable, reasons } = await sluice.queues.explain('paused-keys', { offset: 1 })
    expect([deliverable, reasons[0]!.code]).toEqual([false, 'keyPaused'])
    expect(reasons[0]!.until!.getTime()).toBeGreaterThan(Date.now() + 3_500_000)
    await worker.close()
  })

  it('at its rate waits, and the others go on', async () => {
    const sluice = await client(await start())
    await sluice.queues.ensure('limited-keys', { keyRate: { messages: 1, per: '1h' } })
    for (const [body, key] of ['x', 'x', 'y'].entries()) await sluice.publish('limited-keys', body, { key })
    const messages = await sluice.pull('limited-keys', { max: 5 })
    expect(messages.map(({ body }) => body)).toEqual([0, 2])
    await Promise.all(messages.map((message) => message.ack()))
    expect(await sluice.pull('limited-keys', { max: 5 })).toEqual([])
    await sluice.queues.ensure('limited-keys', { keyRate: null, update: true })
    expect((await sluice.pull('limited-keys', { max: 5 })).map(({ body }) => body)).toEqual([1])
  })
})

describe('connections and restarts', () => {
  it('keeps everything across an orderly stop, and marks what may have been delivered', async () => {
    const dataDir = await directory()
    const server = await start({ dataDir })
    const sluice = await client(server)
    await sluice.queues.ensure(Orders, { retry: { initial: '1h', max: '1h' } })
    for (let i = 0; i < 10; i++) await sluice.publish(Orders, i)
    const held = await sluice.pull(Orders, { max: 5 })
    await held[0]!.ack()
    await held[1]!.deadLetter('no')
    await held[2]!.retry()
    await server.stop()
    const again = await start({ dataDir, port: server.port })
    expect(again.status).toMatchObject({ afterCrash: false, cutBytes: 0, boot: 2, messages: 9 })
    // The client still has the messages that it was handling.
    await until('it claims', async () => (await sluice.queues.get(Orders)).leased === 2)
    expect(await sluice.queues.get(Orders)).toMatchObject({ ready: 5, scheduled: 1, dead: 1, acked: 1 })
    await Promise.all(held.slice(3).map((message) => message.release()))
    const rest = await sluice.pull(Orders, { max: 10, wait: '5s' })
    expect(rest.map(({ body, redelivered }) => [body, redelivered])).toEqual([
      [3, true],
      [4, true],
      [5, false],
      [6, false],
      [7, false],
      [8, false],
      [9, false],
    ])
    again.broker.audit()
  })

  it('charges the one message that was being handled when its connection died, and no other', async () => {
    const server = await start()
    const sluice = await client(server)
    await sluice.queues.ensure(Orders, { retry: { initial: 1, max: 1 } })
    for (let i = 0; i < 10; i++) await sluice.publish(Orders, i)
    const proxy = await breakable(server.port)
    const fragile = await client(proxy, 'fragile')
    let begun = 0
    fragile.consume(Orders, { concurrency: 1, prefetch: 10 }, (_message, { signal }) => {
      begun++
      return new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()))
    })
    await until('it handles one', async () => begun === 1 && (await sluice.queues.get(Orders)).leased === 10)
    await proxy.cut()
    await until('all are back', async () => (await sluice.queues.get(Orders)).ready === 10)
    const back = await sluice.pull(Orders, { max: 10 })
    expect(
      back
        .map(({ body, attempt, redelivered }) => [body, attempt, redelivered])
        .toSorted((a, b) => Number(a[0]) - Number(b[0])),
    ).toEqual(Array.from({ length: 10 }, (_, i) => [i, i === 0 ? 2 : 1, true]))
    server.broker.audit()
    await fragile.close({ timeout: 0 })
  })

  it('after a connection died, delivers the messages that were being handled, one at a time, and charges none of them', async () => {
    const server = await start()
    const sluice = await client(server)
    await sluice.queues.ensure(Orders)
    for (let i = 0; i < 10; i++) await sluice.publish(Orders, i)
    const proxy = await breakable(server.port)
    const fragile = await client(proxy, 'fragile')
    let begun = 0
    fragile.consume(Orders, { concurrency: 4, prefetch: 10 }, (_message, { signal }) => {
      begun++
      return new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()))
    })
    await until('it handles four', async () => begun === 4 && (await sluice.queues.get(Orders)).leased === 10)
    await proxy.cut()
    await until('all are back', async () => (await sluice.queues.get(Orders)).ready === 10)
    let running = 0
    const together = new Map<unknown, number>()
    const worker = sluice.consume(Orders, { concurrency: 4, prefetch: 10 }, async (message) => {
      running++
      expect(message.attempt).toBe(1)
      await new Promise((resolve) => setTimeout(resolve, 5))
      together.set(message.body, running)
      running--
    })
    await until('all are done', async () => (await sluice.queues.get(Orders)).acked === 10)
    await worker.close()
    expect(together.size).toBe(10)
    for (let i = 0; i < 4; i++) expect(together.get(i), `offset ${i}`).toBe(1)
    server.broker.audit()
    await fragile.close({ timeout: 0 })
  })

  it('publishes each message once across broken connections', async () => {
    const server = await start()
    const sluice = await client(server)
    await sluice.queues.ensure(Orders)
    const proxy = await breakable(server.port)
    const fragile = await client(proxy, 'fragile')
    const confirmed: Promise<{ offset: number }>[] = []
    for (let round = 0; round < 20; round++) {
      for (let i = 0; i < 200; i++) confirmed.push(fragile.publish(Orders, round * 200 + i))
      await new Promise((resolve) => setImmediate(resolve))
      if (round % 4 === 1) proxy.break()
    }
    const receipts = await Promise.all(confirmed)
    expect(new Set(receipts.map(({ offset }) => offset)).size).toBe(4_000)
    expect((await sluice.queues.get(Orders)).published).toBe(4_000)
    expect(proxy.broken()).toBe(5)
  })
})

/** A proxy in front of the broker; the test can cut the proxy's connections. */
async function breakable(
  target: number,
): Promise<{ port: number; break(): void; broken(): number; cut(): Promise<void> }> {
  const { createServer } = await import('node:net')
  const sockets = new Set<Socket>()
  let broken = 0
  const server = createServer((near) => {
    const far = createConnection(target, '127.0.0.1')
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(one)
      one.on('error', () => {})
      one.on('close', () => {
        sockets.delete(one)
        other.destroy()
      })
      one.pipe(other)
    }
  })
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve)
  })
  const address = server.address()
  const breakAll = (): void => {
    broken++
    for (const socket of sockets) socket.resetAndDestroy()
  }
  const cut = async (): Promise<void> => {
    const closed = new Promise((resolve) => server.close(resolve))
    breakAll()
    await closed
  }
  cleanups.push(async () => {
    if (server.listening) await cut()
  })
  return { port: (address as { port: number }).port, break: breakAll, broken: () => broken, cut }
}
