/** Requests and replies over real connections: consumers that end, clients that reconnect, and brokers that restart. */
import { DeadLetter, connect, type Message, type Sluice, type Worker } from '@sluice/client'
import { startServer, type RunningServer } from '@sluice/server'
import { afterEach, describe, expect, it } from 'vitest'
import { scratchDirectory } from '../rig/scratch.js'
import { Way } from '../rig/way.js'

const cleanups: (() => Promise<unknown>)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup()
})

async function start(dataDir?: string): Promise<RunningServer> {
  let path = dataDir
  if (path === undefined) {
    const scratch = await scratchDirectory('requests')
    cleanups.push(scratch.dispose)
    path = scratch.path
  }
  const server = await startServer({ port: 0, segmentBytes: 8 << 20, lowFreeBytes: 0, dataDir: path })
  cleanups.push(() => server.stop())
  return server
}

async function client(port: number): Promise<Sluice> {
  const sluice = await connect(`sluice://localhost:${port}`)
  sluice.on('waiting', () => {})
  sluice.on('leaseLost', () => {})
  sluice.on('handlerError', () => {})
  cleanups.push(() => sluice.close({ timeout: 0 }))
  return sluice
}

async function wayTo(port: number): Promise<Way> {
  const way = await Way.to(port)
  cleanups.push(async () => way.close())
  return way
}

const doubled = (sluice: Sluice, concurrency = 64): Worker =>
  sluice.consume('q', { concurrency }, async (message: Message) => {
    await message.reply({ doubled: (message.body as { n: number }).n * 2 })
  })

async function pair(): Promise<{ server: RunningServer; asker: Sluice; responder: Sluice }> {
  const server = await start()
  const asker = await client(server.port)
  const responder = await client(server.port)
  await asker.queues.ensure('q', { retry: { initial: 0, max: 0 } })
  return { server, asker, responder }
}

describe('a request', () => {
  it('is answered with the body and the headers of the reply', async () => {
    const { asker, responder } = await pair()
    const seen: unknown[] = []
    responder.consume('q', async (message) => {
      seen.push([message.isRequest, message.body, message.headers['who'], message.key, message.priority])
      const receipt = await message.reply(new Uint8Array([1, 2]), { headers: { kind: 'bytes' } })
      seen.push(receipt)
    })
    const reply = await asker.request('q', { n: 1 }, { headers: { who: 'me' }, key: 'k', priority: 3 })
    expect([...(reply.body as Uint8Array)]).toEqual([1, 2])
    expect(reply.headers).toMatchObject({ kind: 'bytes' })
    await expect.poll(() => seen.length).toBe(2)
    expect(seen).toEqual([[true, { n: 1 }, 'me', 'k', 3], { delivered: true }])
    await expect.poll(async () => (await asker.queues.get('q')).acked).toBe(1)
  })

  it('fails at its deadline, and leaves nothing in the queue', async () => {
    const { asker } = await pair()
    const began = performance.now()
    await expect(asker.request('q', 1, { timeout: '300ms' })).rejects.toMatchObject({
      code: 'REQUEST_TIMEOUT',
      outcome: 'unknown',
      queue: 'q',
    })
    expect(performance.now() - began).toBeGreaterThanOrEqual(299)
    await expect
      .poll(async () => asker.queues.get('q'), { timeout: 5_000 })
      .toMatchObject({ ready: 0, scheduled: 0, leased: 0, dead: 0, expired: 1 })
  })

  it('ignores a late reply, and the client goes on', async () => {
    const { asker, responder } = await pair()
    const held: Message[] = []
    const worker = responder.consume('q', { concurrency: 2 }, async (message) => {
      held.push(message)
      if (message.body !== 'late') await message.reply('in time')
    })
    await expect(asker.request('q', 'late', { timeout: 200 })).rejects.toMatchObject({
      code: 'REQUEST_TIMEOUT',
    })
    await held[0]!.reply('too late')
    expect((await asker.request('q', 'early')).body).toBe('in time')
    await worker.close()
  })

  it('fails at once when its consumer makes it a dead letter', async () => {
    const { asker, responder } = await pair()
    const worker = responder.consume('q', async () => {
      throw new DeadLetter('no such customer')
    })
    const failed = asker.request('q', 1, { timeout: '1m' })
    await expect(failed).rejects.toMatchObject({
      code: 'REQUEST_FAILED',
      message: 'A consumer of the queue q gave up the request: no such customer.',
    })
    await worker.close()
    responder.consume('q', async (message) => message.deadLetter('again'))
    await expect(asker.request('q', 2, { timeout: '1m' })).rejects.toMatchObject({ code: 'REQUEST_FAILED' })
    expect((await asker.queues.get('q')).dead).toBe(2)
  })

  it('ends with its signal, and with the client', async () => {
    const { asker } = await pair()
    const abort = new AbortController()
    const aborted = asker.request('q', 1, { signal: abort.signal })
    abort.abort()
    await expect(aborted).rejects.toMatchObject({ code: 'ABORTED' })
    const closed = asker.request('q', 1).then(
      () => undefined,
      (error: unknown) => error,
    )
    await asker.close({ timeout: 0 })
    expect(await closed).toMatchObject({ code: 'CLOSED' })
    await expect(asker.request('q', 1)).rejects.toMatchObject({ code: 'CLOSED' })
  })

  it('to a missing queue, or with a wrong option, is refused', async () => {
    const { asker } = await pair()
    await expect(asker.request('missing', 1)).rejects.toMatchObject({ code: 'QUEUE_NOT_FOUND' })
    const options = { ttl: 5 } as object
    await expect(asker.request('q', 1, options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })

  it('is delivered again when its consumer ends, and answered within its deadline', async () => {
    const { server, asker, responder } = await pair()
    let isTaken = (): void => {}
    const taken = new Promise<void>((resolve) => {
      isTaken = resolve
    })
    responder.consume('q', async () => {
      isTaken()
      await new Promise(() => {})
    })
    const reply = asker.request('q', { n: 4 }, { timeout: '30s' })
    await taken
    await responder.close({ timeout: 0 })
    doubled(await client(server.port))
    expect((await reply).body).toEqual({ doubled: 8 })
  })
})

describe('a reply', () => {
  it('to a message that is no request, and a second reply, are refused', async () => {
    const { asker, responder } = await pair()
    await asker.publish('q', 1)
    const [plain] = await responder.pull('q', { wait: '5s' })
    expect(plain!.isRequest).toBe(false)
    await expect(plain!.reply(1)).rejects.toMatchObject({ code: 'NOT_A_REQUEST', queue: 'q', offset: 0 })
    await plain!.ack()
    const answered = asker.request('q', 2)
    const [request] = await responder.pull('q', { wait: '5s' })
    await request!.ack()
    // A reply is possible after the settle.
    expect(await request!.reply('first')).toEqual({ delivered: true })
    await expect(request!.reply('second')).rejects.toMatchObject({ code: 'ALREADY_REPLIED' })
    expect((await answered).body).toBe('first')
  })

  it('of any size up to the largest message is delivered', async () => {
    const { asker, responder } = await pair()
    const large = new Uint8Array(900_000).fill(7)
    responder.consume('q', async (message) => {
      await message.reply(large)
    })
    const { body } = await asker.request('q', 1)
    expect((body as Uint8Array).length).toBe(large.length)
    const [reply] = await Promise.all([asker.request('q', 2), asker.request('q', 3), asker.request('q', 4)])
    expect((reply.body as Uint8Array)[899_999]).toBe(7)
  })
})

describe('a client that reconnects', () => {
  it('gets the replies that came while it was away', async () => {
    const server = await start()
    const way = await wayTo(server.port)
    const asker = await client(way.ownPort)
    const responder = await client(server.port)
    await responder.queues.ensure('q')
    const replies = Array.from({ length: 20 }, (_, n) => asker.request('q', { n }, { timeout: '30s' }))
    const requests: Message[] = []
    while (requests.length < 20) requests.push(...(await responder.pull('q', { max: 20, wait: '5s' })))
    way.isOpen = false
    way.cut()
    await expect.poll(() => asker.connected).toBe(false)
    for (const request of requests.toReversed()) {
      await request.reply({ n: (request.body as { n: number }).n })
      await request.ack()
    }
    way.isOpen = true
    const bodies = (await Promise.all(replies)).map(({ body }) => body)
    expect(bodies).toEqual(Array.from({ length: 20 }, (_, n) => ({ n })))
  })

  it('gets replies after a restart of the broker', async () => {
    const scratch = await scratchDirectory('requests')
    cleanups.push(scratch.dispose)
    const first = await start(scratch.path)
    const way = await wayTo(first.port)
    const asker = await client(way.ownPort)
    const responder = await client(way.ownPort)
    await asker.queues.ensure('q')
    const reply = asker.request('q', { n: 21 }, { timeout: '30s' })
    const [request] = await responder.pull('q', { wait: '5s' })
    await first.stop()
    way.cut()
    const second = await start(scratch.path)
    way.port = second.port
    way.cut()
    expect(await request!.reply({ doubled: 42 })).toEqual({ delivered: true })
    expect((await reply).body).toEqual({ doubled: 42 })
  })
})

it(
  'answers 20,000 requests, or fails them at their deadline, while consumers end',
  { timeout: 120_000 },
  async () => {
    const count = 20_000
    const timeoutMs = 20_000
    const { server, asker } = await pair()
    const over = { now: false }
    const kill = async (): Promise<number> => {
      let killed = 0
      while (!over.now) {
        const responder = await client(server.port)
        doubled(responder)
        const other = await client(server.port)
        doubled(other)
        await new Promise((resolve) => setTimeout(resolve, 150))
        await other.close({ timeout: 0 })
        await responder.close({ timeout: 0 })
        killed += 2
      }
      return killed
    }
    const killing = kill()
    let next = 0
    const outcomes = { answered: 0, late: 0, wrong: 0 }
    const ask = async (): Promise<void> => {
      for (let n = next++; n < count; n = next++) {
        const began = performance.now()
        try {
          const { body } = await asker.request('q', { n }, { timeout: timeoutMs })
          if ((body as { doubled: number }).doubled === n * 2) outcomes.answered++
          else outcomes.wrong++
        } catch (error) {
          if ((error as { code: string }).code !== 'REQUEST_TIMEOUT') throw error
          expect(performance.now() - began).toBeGreaterThanOrEqual(timeoutMs - 1)
          outcomes.late++
        }
      }
    }
    await Promise.all(Array.from({ length: 64 }, ask))
    over.now = true
    expect(await killing).toBeGreaterThan(2)
    expect(outcomes.wrong).toBe(0)
    expect(outcomes.answered + outcomes.late).toBe(count)
    expect(outcomes.answered).toBeGreaterThan(count * 0.9)
  },
)
