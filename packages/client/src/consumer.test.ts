import {
  DELIVER_FLAG,
  encodeDrained,
  encodeGoodbye,
  encodeRanges,
  ERRORS,
  OP,
  OUTCOME,
  type ErrorCode,
  type SluiceError,
} from '@sluice/protocol'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { Sluice } from './client.js'
import { DeadLetter, Retry, type Message } from './message.js'
import type { ConsumeOptions } from './options.js'
import { IDLE } from './pull.js'
import { RENEWAL } from './renewal.js'
import { advanceTime, control, type Frame, type Link, Peer, texts, turns, until } from './testing/peer.js'
import type { Worker } from './worker.js'

advanceTime()

let peer: Peer
let sluice: Sluice

beforeEach(async () => {
  peer = new Peer()
  sluice = await peer.connect()
})

afterEach(async () => {
  await sluice.close({ timeout: 1 }).catch(() => {})
})

describe('a worker', () => {
  it('asks for twice its concurrency', async () => {
    sluice.consume('q', { concurrency: 4 }, () => {})
    await peer.subscribed()
    expect(control(peer.link.named('SUBSCRIBE')[0]!)).toEqual(
      Object.assign(Object.create(null), { queue: 'q', messages: 8, bytes: 16 * 1024 * 1024 }),
    )
  })

  it('acknowledges messages whose handlers resolve, and a run of them as one range in one frame', async () => {
    const seen: unknown[] = []
    sluice.consume('q', { concurrency: 10 }, async (message) => {
      seen.push(message.body, message.offset)
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, texts(10), { offset: 5 })
    await until(() => peer.link.named('SETTLE').length > 0)
    expect(peer.link.settles).toEqual([
      { firstTag: tag, count: 10, outcome: OUTCOME.ack, delayMs: undefined, reason: undefined },
    ])
    expect(seen).toEqual(texts(10).flatMap((body, i) => [body, 5 + i]))
  })

  it('gathers acknowledgements that no caller waits for, and sends the others at once', async () => {
    let wait = false
    const waited: Promise<void>[] = []
    sluice.consume('q', { concurrency: 100 }, (message) => {
      if (wait) waited.push(message.ack().then(() => {}))
      else void message.ack()
    })
    const channel = await peer.subscribed()
    for (let i = 0; i < 3; i++) {
      peer.link.deliver(channel, 101, texts(1), { offset: i })
      await turns()
    }
    expect(peer.link.named('STARTED')).toHaveLength(3)
    await until(() => peer.link.settles.reduce((sum, { count }) => sum + count, 0) === 3)
    const frames = peer.link.named('SETTLE').length
    wait = true
    peer.link.deliver(channel, 101, texts(1), { offset: 3 })
    await turns()
    expect(peer.link.named('SETTLE')).toHaveLength(frames + 1)
    await Promise.all(waited)
    // Acknowledgements that amount to a quarter of the credit are sent at once too.
    wait = false
    peer.link.deliver(channel, 101, texts(50), { offset: 4 })
    await turns()
    expect(peer.link.settles.reduce((sum, { count }) => sum + count, 0)).toBe(54)
  })

  it('merges settles that are out of order, even where tags wrap', async () => {
    const ends: (() => void)[] = []
    sluice.consume('q', { concurrency: 6 }, () => new Promise<void>((resolve) => ends.push(resolve)))
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, texts(6), { tag: 0xffff_fffd })
    await until(() => ends.length === 6)
    for (const i of [4, 0, 5, 2, 1, 3]) ends[i]!()
    await until(() => peer.link.named('SETTLE').length > 0)
    expect(peer.link.settles).toMatchObject([{ firstTag: 0xffff_fffd, count: 6, outcome: OUTCOME.ack }])
  })

  it('names messages as started in a write before their handlers run', async () => {
    const startedWhenRun: number[] = []
    sluice.consume('q', { concurrency: 2 }, async () => {
      startedWhenRun.push(peer.link.started.reduce((sum, { count }) => sum + count, 0))
      await new Promise((resolve) => setTimeout(resolve, 5))
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, texts(4))
    await until(() => startedWhenRun.length === 4)
    expect(startedWhenRun).toEqual([2, 2, 3, 4].map((least, i) => Math.max(least, startedWhenRun[i]!)))
    expect(peer.link.started[0]).toEqual({ firstTag: tag, count: 2 })
    await until(() => peer.link.settles.reduce((sum, { count }) => sum + count, 0) === 4)
  })

  it('never runs more handlers than its concurrency', async () => {
    let running = 0
    let most = 0
    let done = 0
    sluice.consume('q', { concurrency: 3, prefetch: 50 }, async () => {
      most = Math.max(most, ++running)
      await turns(2)
      running--
      done++
    })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, texts(50))
    await until(() => done === 50)
    expect(most).toBe(3)
  })

  it('refills the places of fast handlers while a slow one runs', async () => {
    const begun: unknown[] = []
    let end!: () => void
    sluice.consume('q', { concurrency: 4, prefetch: 20 }, ({ body }) => {
      begun.push(body)
      return body === '3' ? new Promise<void>((resolve) => (end = resolve)) : undefined
    })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, texts(20))
    await until(() => begun.length === 20)
    expect(begun).toEqual(texts(20))
    end()
  })

  it('announces longer bursts for fast handlers', async () => {
    let done = 0
    sluice.consume('q', { concurrency: 1, prefetch: 2000 }, () => void done++)
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, texts(2000))
    await until(() => done === 2000)
    const named = [...peer.link.started, ...peer.link.starting]
    expect(peer.link.named('STARTED').length + peer.link.named('STARTING').length).toBeLessThan(200)
    expect(named.reduce((sum, { count }) => sum + count, 0)).toBe(2000)
  })

  it('names the started messages of a burst with a slow handler', async () => {
    const begun: unknown[] = []
    let end!: () => void
    sluice.consume('q', { concurrency: 1, prefetch: 2000 }, ({ body }) => {
      begun.push(body)
      return body === '1500' ? new Promise<void>((resolve) => (end = resolve)) : undefined
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, texts(2000))
    await until(() => begun.length === 1501)
    await turns(10)
    expect(begun.length).toBe(1501)
    const burst = peer.link.starting.at(-1)!
    expect(burst.firstTag + burst.count).toBeGreaterThan(tag + 1501)
    // STARTED names the messages of the burst up to and including the one whose handler hangs. The settles of the
    // earlier messages are sent before STARTED.
    const names = peer.link.frames.map(({ name }) => name)
    expect(peer.link.started.at(-1)).toEqual({
      firstTag: burst.firstTag,
      count: tag + 1501 - burst.firstTag,
    })
    expect(peer.link.settles.reduce((sum, { count }) => sum + count, 0)).toBe(1500)
    expect(names.lastIndexOf('SETTLE')).toBeLessThan(names.lastIndexOf('STARTED'))
    end()
    await until(() => begun.length === 2000)
  })

  it('names the started messages when all others of a burst are lost', async () => {
    const ends: (() => void)[] = []
    let hang = false
    let done = 0
    sluice.consume('q', { concurrency: 2, prefetch: 2000 }, () => {
      done++
      return hang ? new Promise<void>((resolve) => ends.push(resolve)) : undefined
    })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, texts(1000))
    await until(() => done === 1000)
    hang = true
    const tag = peer.link.deliver(channel, 101, texts(3), { offset: 1000 })
    await until(() => ends.length === 2)
    await turns(10)
    expect(peer.link.starting.at(-1)).toEqual({ firstTag: tag, count: 3 })
    expect(peer.link.started.at(-1)).toEqual({ firstTag: tag, count: 2 })
    ends[0]!()
    await until(() => ends.length === 3)
    expect(peer.link.started.at(-1)).toEqual({ firstTag: tag + 2, count: 1 })
    for (const end of ends) end()
  })

  it('runs a message that must be alone by itself', async () => {
    const log: string[] = []
    const ends = new Map<unknown, () => void>()
    sluice.consume('q', { concurrency: 4, prefetch: 10 }, async ({ body }) => {
      log.push(String(body))
      await new Promise<void>((resolve) => ends.set(body, resolve))
    })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, ['a'])
    peer.link.deliver(channel, 101, ['b'], { flags: DELIVER_FLAG.alone, offset: 1 })
    peer.link.deliver(channel, 101, ['c', 'd'], { offset: 2 })
    await turns(10)
    expect(log).toEqual(['a'])
    ends.get('a')!()
    await turns(10)
    expect(log).toEqual(['a', 'b'])
    ends.get('b')!()
    await turns(10)
    expect(log).toEqual(['a', 'b', 'c', 'd'])
  })

  it('runs a message that must be alone by itself across all queues', async () => {
    const log: string[] = []
    const ends = new Map<unknown, () => void>()
    const handler = async ({ body }: Message): Promise<void> => {
      log.push(String(body))
      await new Promise<void>((resolve) => ends.set(body, resolve))
    }
    sluice.consume('p', { concurrency: 4 }, handler)
    sluice.consume('q', { concurrency: 4 }, handler)
    await peer.subscribed(2)
    const [p, q] = peer.link.named('SUBSCRIBE').map(({ channel }) => channel)
    peer.link.deliver(p!, 101, ['a'])
    await turns()
    const { writes } = peer.link
    peer.link.deliver(q!, 102, ['b'], { flags: DELIVER_FLAG.alone })
    await turns(20)
    expect(peer.link.writes).toBe(writes)
    ends.get('a')!()
    await turns(10)
    peer.link.deliver(p!, 101, ['c'], { offset: 1 })
    await turns()
    expect(log).toEqual(['a', 'b'])
    ends.get('b')!()
    await turns(10)
    expect(log).toEqual(['a', 'b', 'c'])
  })

  it('starves neither a message that must be alone nor the other queues of its client', async () => {
    const log: string[] = []
    const ends: (() => void)[] = []
    sluice.consume('busy', { concurrency: 2, prefetch: 100 }, async ({ body }) => {
      log.push(String(body))
      await new Promise<void>((resolve) => ends.push(resolve))
    })
    sluice.consume('quiet', { concurrency: 2 }, ({ body }) => void log.push(String(body)))
    await peer.subscribed(2)
    const [busy, quiet] = peer.link.named('SUBSCRIBE').map(({ channel }) => channel)
    peer.link.deliver(busy!, 101, texts(8))
    await until(() => ends.length === 2)
    peer.link.deliver(quiet!, 102, ['a'], { flags: DELIVER_FLAG.alone })
    await turns()
    // Neither a buffered message nor a new one starts before the suspect.
    ends.shift()!()
    peer.link.deliver(busy!, 101, ['8'], { offset: 8 })
    await turns(10)
    expect(log).toEqual(['0', '1'])
    // The next suspect waits until the messages that waited for the first one have started.
    peer.link.deliver(quiet!, 102, ['b'], { offset: 1, flags: DELIVER_FLAG.alone })
    ends.shift()!()
    await until(() => ends.length === 2)
    await turns(10)
    expect(log).toEqual(['0', '1', 'a', '2', '3'])
    ends.shift()!()
    ends.shift()!()
    await until(() => ends.length === 2)
    expect(log).toEqual(['0', '1', 'a', '2', '3', 'b', '4', '5'])
    for (let left = 5; left > 0; left--) {
      await until(() => ends.length > 0)
      ends.shift()!()
    }
  })

  it('blocks no message for one that must be alone and was lost', async () => {
    const log: string[] = []
    const ends: (() => void)[] = []
    sluice.consume('busy', { concurrency: 2 }, async ({ body }) => {
      log.push(String(body))
      await new Promise<void>((resolve) => ends.push(resolve))
    })
    const other = sluice.consume('quiet', () => {})
    await peer.subscribed(2)
    const [busy, quiet] = peer.link.named('SUBSCRIBE').map(({ channel }) => channel)
    peer.link.deliver(busy!, 101, ['0'])
    await until(() => ends.length === 1)
    const tag = peer.link.deliver(quiet!, 102, ['a'], { flags: DELIVER_FLAG.alone })
    await turns()
    peer.link.deliver(busy!, 101, ['1'], { offset: 1 })
    await turns(10)
    expect(log).toEqual(['0'])
    peer.link.leasesLost(quiet!, 102, { firstTag: tag, count: 1 })
    await until(() => ends.length === 2)
    ends.shift()!()
    peer.link.deliver(quiet!, 102, ['b'], { offset: 1, flags: DELIVER_FLAG.alone })
    await turns()
    peer.link.deliver(busy!, 101, ['2'], { offset: 2 })
    await turns(10)
    expect(log).toEqual(['0', '1'])
    await other.close()
    await until(() => ends.length === 2)
    expect(log).toEqual(['0', '1', '2'])
    for (const end of ends) end()
  })

  it('converts each error of a handler to its outcome', async () => {
    const failures: unknown[] = []
    sluice.on('handlerError', ({ offset, error }) => failures.push([offset, (error as Error).message]))
    sluice.consume('q', { concurrency: 1, prefetch: 10 }, async ({ body }) => {
      if (body === '0') throw new Error('it broke')
      if (body === '1') throw new Retry({ delay: '5m', reason: 'closed' })
      if (body === '2') throw new Retry()
      if (body === '3') throw new DeadLetter('no such customer')
    })
    sluice.consume('sync', () => {
      throw new Error('at once')
    })
    const channel = await peer.subscribed(2)
    const first = peer.link.named('SUBSCRIBE')[0]!.channel
    peer.link.deliver(first, 101, texts(5))
    await until(() => peer.link.settles.length === 5)
    expect(peer.link.settles).toMatchObject([
      { outcome: OUTCOME.retry, delayMs: undefined, reason: 'it broke' },
      { outcome: OUTCOME.retry, delayMs: 300_000, reason: 'closed' },
      { outcome: OUTCOME.retry, delayMs: undefined, reason: undefined },
      { outcome: OUTCOME.deadLetter, reason: 'no such customer' },
      { outcome: OUTCOME.ack },
    ])
    peer.link.deliver(channel, 102, ['x'])
    await until(() => peer.link.settles.length === 6)
    expect(failures).toEqual([
      [0, 'it broke'],
      [0, 'at once'],
    ])
  })

  it('lets the first settle win over the end of the handler', async () => {
    const errors: unknown[] = []
    sluice.consume('q', { concurrency: 2 }, async (message) => {
      await message.retry({ delay: 7 })
      await message.ack().catch((error: unknown) => errors.push(error))
    })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, ['x', 'y'])
    await until(() => errors.length === 2)
    await turns()
    expect(peer.link.settles).toMatchObject([
      { count: 1, outcome: OUTCOME.retry, delayMs: 7 },
      { count: 1, outcome: OUTCOME.retry, delayMs: 7 },
    ])
    expect(errors).toMatchObject([{ code: 'ALREADY_SETTLED' }, { code: 'ALREADY_SETTLED' }])
  })

  it('rejects only the settles that the broker reports as stale', async () => {
    const messages: Message[] = []
    sluice.consume('q', { concurrency: 3 }, (message) => {
      messages.push(message)
      return new Promise(() => {})
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, texts(3))
    await until(() => messages.length === 3)
    peer.replies[OP.SETTLE] = (frame, link) =>
      link.send(
        OP.SETTLE_OK,
        frame.channel,
        frame.correlation,
        encodeRanges(101, [{ firstTag: tag + 1, count: 1 }]),
      )
    const outcomes = await Promise.allSettled(messages.map((message) => message.ack()))
    expect(outcomes).toMatchObject([
      { status: 'fulfilled' },
      { status: 'rejected', reason: { code: 'LEASE_LOST' } },
      { status: 'fulfilled' },
    ])
  })

  it("rejects `closed`, and emits an error, when the queue is missing, with missing: 'fail'", async () => {
    const reported: SluiceError[] = []
    sluice.on('error', (error) => reported.push(error))
    peer.replies[OP.SUBSCRIBE] = (frame, link) =>
      link.error('QUEUE_NOT_FOUND', 'request', frame.channel, frame.correlation)
    const worker = sluice.consume('q', { missing: 'fail' }, () => {})
    await expect(worker.closed).rejects.toMatchObject({ code: 'QUEUE_NOT_FOUND' })
    expect(reported.map(({ code }) => code)).toEqual(['QUEUE_NOT_FOUND'])
    await worker.close()
  })

  it("ends when its queue is deleted, with missing: 'fail'", async () => {
    const worker = sluice.consume('q', { missing: 'fail' }, () => {})
    const channel = await peer.subscribed()
    peer.link.error('QUEUE_DELETED', 'channel', channel)
    await expect(worker.closed).rejects.toMatchObject({ code: 'QUEUE_DELETED' })
  })
})

describe('a refused subscription', () => {
  /** Refuses the first `count` subscriptions, with these codes in turn, and accepts all later ones. */
  const refuse = (count: number, ...codes: ErrorCode[]): void => {
    const accept = peer.replies[OP.SUBSCRIBE]!
    let refused = 0
    peer.replies[OP.SUBSCRIBE] = (frame, link) => {
      if (refused >= count) accept(frame, link)
      else link.error(codes[refused++ % codes.length]!, 'request', frame.channel, frame.correlation)
    }
  }
  const waits = (): string[] => {
    const events: string[] = []
    sluice.on('waiting', ({ queue, error }) => events.push(`${queue} ${error.code}`))
    sluice.on('error', ({ code }) => events.push(`error ${code}`))
    return events
  }

  it('is repeated until the queue exists, and again when the queue is deleted, with one event each time', async () => {
    const events = waits()
    refuse(3, 'QUEUE_NOT_FOUND')
    const bodies: unknown[] = []
    const worker = sluice.consume('q', ({ body }) => void bodies.push(body))
    let channel = await peer.subscribed(4)
    peer.link.deliver(channel, 104, ['a'])
    await until(() => bodies.length === 1)
    expect(events).toEqual(['q QUEUE_NOT_FOUND'])
    refuse(2, 'QUEUE_NOT_FOUND')
    peer.link.error('QUEUE_DELETED', 'channel', channel)
    channel = await peer.subscribed(7)
    peer.link.deliver(channel, 107, ['b'])
    await until(() => bodies.length === 2)
    expect(events).toEqual(['q QUEUE_NOT_FOUND', 'q QUEUE_DELETED'])
    await worker.close()
    await worker.closed
  })

  it("is repeated by an iterator, except with missing: 'fail'", async () => {
    const events = waits()
    refuse(2, 'QUEUE_NOT_FOUND')
    const next = sluice.messages('q').next()
    peer.link.deliver(await peer.subscribed(3), 103, ['a'])
    expect((await next).value?.body).toBe('a')
    expect(events).toEqual(['q QUEUE_NOT_FOUND'])
    refuse(1, 'QUEUE_NOT_FOUND')
    await expect(sluice.messages('q', { missing: 'fail' }).next()).rejects.toMatchObject({
      code: 'QUEUE_NOT_FOUND',
    })
  })

  // A SUBSCRIBE is repeated after every retryable error, and after no other error: the client has no list of errors for
  // SUBSCRIBE.
  for (const code of Object.keys(ERRORS) as ErrorCode[]) {
    if (ERRORS[code].number >= 1000 || ['QUEUE_NOT_FOUND', 'QUEUE_DELETED'].includes(code)) continue
    const { retryable } = ERRORS[code]
    it(`with ${code} ${retryable ? 'is repeated' : 'ends the worker'}`, async () => {
      waits()
      refuse(1, code)
      const worker = sluice.consume('q', () => {})
      const ended = worker.closed.then(
        () => 'closed',
        (error: SluiceError) => error.code,
      )
      if (retryable) {
        await peer.subscribed(2)
        await worker.close()
      }
      expect(await ended).toBe(retryable ? 'closed' : code)
    })
  }

  it('is not repeated on a stopping connection, but on the next one', async () => {
    const events = waits()
    peer.link.send(OP.GOODBYE, 0, 0, encodeGoodbye(1, 'restarting'))
    await turns()
    const bodies: unknown[] = []
    sluice.consume('q', ({ body }) => void bodies.push(body))
    const next = sluice.messages('q').next()
    const pull = sluice.pull('q', { wait: '20s' })
    const deleted = sluice.queues.delete('q')
    await turns()
    expect(peer.link.named('SUBSCRIBE')).toEqual([])
    peer.replies[OP.DELETE] = (frame, link) => link.result(frame, { messages: 3 })
    peer.link.cut()
    await peer.dialled()
    await until(() => peer.link.named('SUBSCRIBE').length === 3)
    await turns()
    const channels = peer.link.named('SUBSCRIBE').map(({ channel }) => channel)
    channels.forEach((channel, index) => peer.link.deliver(channel, 101 + index, ['x']))
    await until(() => bodies.length === 1)
    expect((await next).value?.body).toBe('x')
    expect((await pull)[0]?.body).toBe('x')
    expect(await deleted).toEqual({ messages: 3 })
    expect(events).toEqual([])
  })

  it('by a stopping broker is repeated on the next connection, as is a refused request', async () => {
    const events = waits()
    const refuses = (frame: Frame, link: Link): void => {
      link.send(OP.GOODBYE, 0, 0, encodeGoodbye(1, 'restarting'))
      link.error('SHUTTING_DOWN', 'request', frame.channel, frame.correlation)
    }
    const accept = peer.replies[OP.SUBSCRIBE]
    peer.replies[OP.SUBSCRIBE] = refuses
    peer.replies[OP.PURGE] = refuses
    const worker = sluice.consume('q', () => {})
    const purged = sluice.queues.purge('q')
    await until(() => peer.link.named('PURGE').length === 1)
    await turns()
    peer.replies[OP.SUBSCRIBE] = accept
    peer.replies[OP.PURGE] = (frame, link) => link.result(frame, { messages: 2 })
    peer.link.cut()
    await peer.dialled()
    await peer.subscribed()
    expect(await purged).toEqual({ messages: 2 })
    expect(events).toEqual([])
    await worker.close()
  })

  it('is repeated by a pull until its deadline; the pull then rejects with the error', async () => {
    refuse(2, 'MEMORY_FULL')
    const pull = sluice.pull('q', { wait: '20s' })
    peer.link.deliver(await peer.subscribed(3), 103, ['x'])
    expect((await pull)[0]?.body).toBe('x')
    await sluice.close({ timeout: 0 })
    sluice = await peer.connect()
    refuse(Infinity, 'MEMORY_FULL')
    await expect(sluice.pull('q', { timeout: 30 })).rejects.toMatchObject({ code: 'MEMORY_FULL' })
  })

  it('is not repeated by a closed worker', async () => {
    waits()
    refuse(Infinity, 'QUEUE_NOT_FOUND')
    const worker = sluice.consume('q', () => {})
    await peer.subscribed()
    await worker.close()
    const { length } = peer.link.named('SUBSCRIBE')
    await new Promise((resolve) => setTimeout(resolve, RENEWAL.delayMsMin * 2))
    expect(peer.link.named('SUBSCRIBE').length).toBe(length)
  })
})

describe('closing a worker', () => {
  it('drains, releases messages without a handler, waits for handlers, then unsubscribes', async () => {
    let end!: () => void
    const worker = sluice.consume('q', { concurrency: 1, prefetch: 5 }, async () => {
      await new Promise<void>((resolve) => (end = resolve))
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, texts(3))
    await until(() => end !== undefined)
    const closed = worker.close()
    await until(() => peer.link.settles.length > 0)
    expect(peer.link.settles).toMatchObject([{ firstTag: tag + 1, count: 2, outcome: OUTCOME.release }])
    expect(peer.link.named('UNSUBSCRIBE')).toEqual([])
    end()
    await closed
    await worker.closed
    expect(peer.link.settles[1]).toMatchObject({ firstTag: tag, count: 1, outcome: OUTCOME.ack })
    expect(peer.link.frames.map(({ name }) => name).filter((name) => name !== 'STARTED')).toEqual([
      'HELLO',
      'AUTH',
      'SUBSCRIBE',
      'CREDIT',
      'SETTLE',
      'SETTLE',
      'UNSUBSCRIBE',
    ])
  })

  it('stops waiting for handlers after its timeout and aborts their signals', async () => {
    let signal!: AbortSignal
    const worker = sluice.consume('q', async (_message, context) => {
      signal = context.signal
      await new Promise(() => {})
    })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, ['x'])
    await until(() => signal !== undefined)
    await expect(worker.close({ timeout: 20 })).rejects.toMatchObject({ code: 'TIMEOUT' })
    expect(signal.aborted).toBe(true)
    await worker.closed
    await until(() => peer.link.named('UNSUBSCRIBE').length === 1)
  })

  it('stops waiting at once, without an error, when its timeout is 0', async () => {
    let signal!: AbortSignal
    const worker = sluice.consume('q', { prefetch: 4 }, async (_message, context) => {
      signal = context.signal
      await new Promise(() => {})
    })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, texts(3))
    await until(() => signal !== undefined)
    await worker.close({ timeout: 0 })
    expect(signal.aborted).toBe(true)
    await worker.closed
    await until(() => peer.link.named('UNSUBSCRIBE').length === 1)
  })

  // If the settle came first, a connection that breaks between the two would lose the publish and keep the settle.
  const closes: [string, (worker: Worker) => void, readonly string[]][] = [
    ['its worker', (worker) => void worker.close({ timeout: 0 }), []],
    ['its client', () => void sluice.close({ timeout: 0 }), ['GOODBYE']],
  ]
  for (const [what, close, after] of closes) {
    it(`sends the publish of a handler before its settle when the handler closes ${what} at once`, async () => {
      const { link } = peer
      const worker = sluice.consume('q', async (message) => {
        await Promise.resolve()
        sluice.publish('next', 'result').catch(() => {})
        void message.ack()
        close(worker)
      })
      const channel = await peer.subscribed()
      link.deliver(channel, 101, ['x'])
      await until(() => link.named('UNSUBSCRIBE').length > 0)
      const names = link.frames.map(({ name }) => name)
      expect(names.slice(names.indexOf('STARTED') + 1)).toEqual([
        'PUBLISH',
        'SETTLE',
        'UNSUBSCRIBE',
        ...after,
      ])
    })
  }

  it('sends the publish of a handler before its settle when its worker releases the rest of a burst', async () => {
    const { link } = peer
    peer.replies[OP.CREDIT] = undefined
    let closed: Promise<void> | undefined
    let end!: () => void
    const closeAndPublish = async (): Promise<void> => {
      closed = worker.close()
      await new Promise<void>((resolve) => (end = resolve))
      sluice.publish('next', 'result').catch(() => {})
    }
    const worker = sluice.consume('q', { concurrency: 1, prefetch: 200 }, ({ body }) =>
      body === '50' ? closeAndPublish() : undefined,
    )
    const channel = await peer.subscribed()
    link.deliver(channel, 101, texts(100))
    await until(() => link.settles.reduce((sum, { count }) => sum + count, 0) === 50)
    await until(() => link.named('CREDIT').length > 0)
    const { length } = link.frames
    // The handler ends and DRAINED arrives in the same turn. STARTED then names the messages of the burst that have
    // started.
    setImmediate(end)
    link.send(OP.DRAINED, channel, 0, encodeDrained(101, 0))
    await closed
    const names = link.frames.slice(length).map(({ name }) => name)
    expect(names).toEqual(['PUBLISH', 'SETTLE', 'STARTED', 'SETTLE', 'UNSUBSCRIBE'])
  })

  it('waits for its handlers even with the longest timeout', async () => {
    let end!: () => void
    const worker = sluice.consume('q', async () => {
      await new Promise<void>((resolve) => (end = resolve))
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, ['x'])
    await until(() => end !== undefined)
    const closed = worker.close({ timeout: '30d' })
    // This is longer than a timer that fires at once would take.
    await new Promise((resolve) => setTimeout(resolve, 10))
    end()
    await closed
    expect(peer.link.settles).toMatchObject([{ firstTag: tag, count: 1, outcome: OUTCOME.ack }])
  })

  const later = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))
  const ways: [string, (worker: () => Worker) => Promise<unknown>][] = [
    ['at once', (worker) => worker().close()],
    [
      'after it waited for something else',
      async (worker) => {
        await later()
        await later()
        await worker().close()
      },
    ],
    [
      'with others, in a function that it calls',
      async (worker) => {
        await later()
        await Promise.all([later(), (async () => worker().close())()])
      },
    ],
  ]
  for (const [how, wait] of ways) {
    for (const options of [{}, { batch: { size: 1 } }, { ordering: 'key', concurrency: 3 }] as const) {
      it(`does not wait for a handler that awaits it, ${how}, with ${JSON.stringify(options)}`, async () => {
        const events: string[] = []
        const worker: Worker = sluice.consume('q', options as ConsumeOptions, async () => {
          await wait(() => worker)
          events.push('closed')
        })
        const channel = await peer.subscribed()
        const tag = peer.link.deliver(channel, 101, ['x', 'y'])
        await worker.closed
        await until(() => peer.link.named('UNSUBSCRIBE').length === 1)
        expect(events).toContain('closed')
        // The outcome of this handler counts like any other outcome, and is durable before the subscription ends.
        expect(peer.link.settles).toContainEqual(
          expect.objectContaining({ firstTag: tag, outcome: OUTCOME.ack }),
        )
        expect(peer.link.frames.at(-1)?.name).toBe('UNSUBSCRIBE')
      })
    }
  }

  it('waits for a handler that does not await it, even if another handler awaits it', async () => {
    let end!: () => void
    const order: string[] = []
    const worker: Worker = sluice.consume('q', { concurrency: 3 }, async ({ body }) => {
      await later()
      if (body === 'slow') await new Promise<void>((resolve) => (end = resolve))
      else if (body === 'awaits') await worker.close()
      else void worker.close()
      order.push(String(body))
    })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, ['slow', 'calls', 'awaits'])
    await until(() => order.includes('calls'))
    for (let turn = 0; turn < 20; turn++) await later()
    expect(order).toEqual(['calls'])
    end()
    await worker.closed
    await until(() => order.length === 3)
    expect(order).toEqual(['calls', 'slow', 'awaits'])
  })

  it('closes with its client when a handler awaits the close of the client', async () => {
    let isClosed = false
    const worker = sluice.consume('q', async (message) => {
      await message.ack()
      await sluice.close()
      isClosed = true
    })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, ['x'])
    await worker.closed
    await until(() => isClosed)
    expect(peer.link.ended).toBe(true)
  })

  it('closes when its signal is aborted', async () => {
    const controller = new AbortController()
    const worker = sluice.consume('q', { signal: controller.signal }, () => {})
    await peer.subscribed()
    controller.abort()
    await worker.closed
    expect(peer.link.named('UNSUBSCRIBE').length).toBe(1)
  })
})

describe('losing the connection', () => {
  it('drops messages without a handler, aborts running handlers, ignores their late settles, subscribes again', async () => {
    const begun: unknown[] = []
    let reason: unknown
    let late: unknown
    const first = peer.link
    sluice.consume('q', { concurrency: 1, prefetch: 3 }, async (message, { signal }) => {
      begun.push(message.body)
      if (message.body !== '0') return
      await new Promise((resolve) => signal.addEventListener('abort', resolve))
      reason = signal.reason
      late = await message.ack().catch((error: unknown) => error)
    })
    const channel = await peer.subscribed()
    first.deliver(channel, 101, texts(3))
    await until(() => begun.length === 1)
    first.cut()
    await peer.dialled()
    await until(() => late !== undefined)
    expect(reason).toMatchObject({ code: 'LEASE_LOST' })
    expect(late).toMatchObject({ code: 'LEASE_LOST' })
    await peer.subscribed()
    peer.link.deliver(peer.link.named('SUBSCRIBE')[0]!.channel, 101, ['again'], {
      flags: DELIVER_FLAG.redelivered,
    })
    await until(() => peer.link.settles.length > 0)
    expect(begun).toEqual(['0', 'again'])
    expect(peer.link.settles).toMatchObject([{ count: 1, outcome: OUTCOME.ack }])
    expect(first.settles).toEqual([])
  })

  it('reports an unknown outcome for a settle without an answer', async () => {
    delete peer.replies[OP.SETTLE]
    const [message] = await pulled(['x'])
    const ack = message!.ack().catch((error: unknown) => error)
    await until(() => peer.link.named('SETTLE').length === 1)
    peer.link.cut()
    expect(await ack).toMatchObject({ code: 'CONNECTION_LOST', outcome: 'unknown' })
  })
})

/** Lets the broker deliver messages with these bodies, and pulls them. */
async function pulled(bodies: string[], options = {}): Promise<Message[]> {
  const messages = sluice.pull('q', { max: bodies.length, wait: '5s' })
  peer.link.deliver(await peer.subscribed(), 101, bodies, options)
  return messages
}

describe('settling', () => {
  it('creates a promise only when one is used', async () => {
    peer.replies[OP.SETTLE] = (frame, link) =>
      link.send(
        OP.SETTLE_OK,
        frame.channel,
        frame.correlation,
        encodeRanges(101, [{ firstTag: 0, count: 65_535 }]),
      )
    const unhandled: unknown[] = []
    const listen = (error: unknown): void => void unhandled.push(error)
    process.on('unhandledRejection', listen)
    const messages = await pulled(texts(4))
    const ignored = messages[0]!.ack()
    await turns(10)
    expect(ignored).toBeInstanceOf(Object)
    expect(Object.prototype.toString.call(ignored)).toBe('[object Promise]')
    // This promise is first used after the answer.
    await expect(ignored).rejects.toMatchObject({ code: 'LEASE_LOST' })
    let finalized = false
    await messages[1]!
      .release()
      .finally(() => (finalized = true))
      .catch(() => {})
    expect(finalized).toBe(true)
    expect(await messages[2]!.deadLetter('why').catch((error: SluiceError) => error.code)).toBe('LEASE_LOST')
    await turns(10)
    process.off('unhandledRejection', listen)
    expect(unhandled).toEqual([])
  })

  it('decodes all fields of a message', async () => {
    const [message] = await pulled(['text'], {
      offset: 9,
      attempt: 3,
      flags: DELIVER_FLAG.redelivered,
      options: { key: 'k', id: 'i', priority: 4, headers: { a: 'b' } },
    })
    expect(message).toMatchObject({
      body: 'text',
      key: 'k',
      id: 'i',
      priority: 4,
      offset: 9,
      attempt: 3,
      redelivered: true,
      publishedAt: new Date(1_700_000_000_000),
      queue: 'q',
    })
    expect({ ...message!.headers }).toEqual({ a: 'b' })
  })

  it('truncates long reasons to the length that the broker keeps', async () => {
    const [message] = await pulled(['x'])
    await message!.deadLetter('ü'.repeat(4000))
    expect(peer.link.settles[0]!.reason).toBe('ü'.repeat(2048))
  })
})

describe('the iterator', () => {
  it('yields messages, names them as started, and settles them in the loop', async () => {
    const seen: unknown[] = []
    const iterating = (async () => {
      for await (const message of sluice.messages('q', { prefetch: 3 })) {
        const named = [...peer.link.started, ...peer.link.starting]
        seen.push([message.body, named.reduce((sum, { count }) => sum + count, 0) > seen.length])
        await message.ack()
        if (seen.length === 2) break
      }
    })()
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, texts(3))
    await iterating
    expect(seen).toEqual([
      ['0', true],
      ['1', true],
    ])
    expect(peer.link.settles).toMatchObject([
      { firstTag: tag, outcome: OUTCOME.ack },
      { firstTag: tag + 1, outcome: OUTCOME.ack },
      { firstTag: tag + 2, outcome: OUTCOME.release },
    ])
    expect(peer.link.named('UNSUBSCRIBE').length).toBe(1)
  })

  it('names only yielded messages as started once the loop is slow', async () => {
    const iterator = sluice.messages('q', { prefetch: 500 })
    const channel = peer.subscribed()
    let next = iterator.next()
    const tag = peer.link.deliver(await channel, 101, texts(400))
    for (let i = 0; i < 250; i++) {
      void (await next).value!.ack()
      next = iterator.next()
    }
    const slow = (await next).value!
    await turns(10)
    const burst = peer.link.starting.at(-1)!
    expect(burst.count).toBeGreaterThan(1)
    expect(slow.body).toBe('250')
    const named = peer.link.started.at(-1)!
    expect(named.firstTag + named.count).toBe(tag + 251)
    await slow.ack()
    expect((await iterator.next()).value!.body).toBe('251')
  })

  it('keeps the lease of a message that is settled after the loop was left', async () => {
    let kept: Message | undefined
    const iterating = (async () => {
      for await (const message of sluice.messages('q')) {
        kept = message
        break
      }
    })()
    peer.link.deliver(await peer.subscribed(), 101, texts(1))
    await iterating
    expect(peer.link.named('UNSUBSCRIBE').length).toBe(0)
    await kept!.ack()
    await until(() => peer.link.named('UNSUBSCRIBE').length === 1)
  })

  it('ends with ABORTED when its signal is aborted, and with the error that ended its subscription', async () => {
    const controller = new AbortController()
    const stream = sluice.messages('q', { signal: controller.signal })
    const next = stream.next()
    await peer.subscribed()
    controller.abort()
    await expect(next).rejects.toMatchObject({ code: 'ABORTED' })
    expect(await stream.next()).toEqual({ value: undefined, done: true })
    const other = sluice.messages('q', { missing: 'fail' })
    const channel = await peer.subscribed(2)
    peer.link.error('QUEUE_DELETED', 'channel', channel)
    await turns()
    await expect(other.next()).rejects.toMatchObject({ code: 'QUEUE_DELETED' })
    expect(await other.next()).toEqual({ value: undefined, done: true })
  })

  it('continues after a reconnect', async () => {
    const stream = sluice.messages('q')
    const first = stream.next()
    await peer.subscribed()
    peer.link.cut()
    await peer.dialled()
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, ['x'])
    expect((await first).value!.body).toBe('x')
  })
})

describe('pulling', () => {
  const credits = (): Frame[] => peer.link.named('CREDIT')

  it('returns all messages up to DRAINED after the first delivery', async () => {
    const first = sluice.pull('q', { max: 10, wait: '20s' })
    const channel = await peer.subscribed()
    expect(control(peer.link.named('SUBSCRIBE')[0]!)).toMatchObject({ limit: 10, messages: 65_535 })
    peer.link.deliver(channel, 101, texts(3))
    const messages = await first
    expect(messages.map(({ body }) => body)).toEqual(texts(3))
    expect(credits().length).toBe(1)
    expect(peer.link.started).toMatchObject([{ count: 3 }])
    // The second pull uses the same subscription, with its limit raised.
    const second = sluice.pull('q', { max: 2, wait: '20s' })
    await until(() => credits().length === 2)
    expect(credits()[1]!.payload[16]).toBe(5)
    peer.link.deliver(channel, 101, ['3', '4'], { offset: 3 })
    expect((await second).length).toBe(2)
    expect(peer.link.named('SUBSCRIBE').length).toBe(1)
  })

  it('ends its subscription when it is idle and all messages are settled', async () => {
    const pull = sluice.pull('q', { wait: '20s' })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, ['a'])
    const [message] = await pull
    expect(await sluice.pull('q')).toEqual([])
    expect(peer.link.named('SUBSCRIBE').length).toBe(1)
    await vi.advanceTimersByTimeAsync(IDLE.ms * 1.5)
    expect(peer.link.named('UNSUBSCRIBE').length).toBe(0)
    await message!.ack()
    await until(() => peer.link.named('UNSUBSCRIBE').length === 1)
    expect(await sluice.pull('q')).toEqual([])
    expect(peer.link.named('SUBSCRIBE').length).toBe(2)
  })

  it('keeps a bounded number of idle subscriptions, namely those that were used last', async () => {
    // The clock is stopped, so that no subscription ends because it is idle for too long.
    vi.setTimerTickMode('manual')
    for (let n = 0; n < IDLE.subscriptionsMax + 50; n++) await sluice.pull(`q${n}`)
    await turns()
    const open = peer.link.named('SUBSCRIBE').length - peer.link.named('UNSUBSCRIBE').length
    expect(open).toBe(IDLE.subscriptionsMax)
    const { length } = peer.link.named('SUBSCRIBE')
    await sluice.pull(`q${IDLE.subscriptionsMax + 49}`)
    expect(peer.link.named('SUBSCRIBE').length).toBe(length)
    await sluice.pull('q0')
    expect(peer.link.named('SUBSCRIBE').length).toBe(length + 1)
  })

  it('returns an empty array at the end of its wait', async () => {
    const beganMs = performance.now()
    expect(await sluice.pull('q', { max: 10, wait: 50 })).toEqual([])
    expect(performance.now() - beganMs).toBeGreaterThan(40)
    expect(await sluice.pull('q')).toEqual([])
  })

  it('serves pulls of one queue one after the other', async () => {
    const pulls = [1, 2].map(() => sluice.pull('q', { max: 1, wait: '20s' }))
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, ['a'])
    expect((await pulls[0]!)[0]!.body).toBe('a')
    await turns()
    peer.link.deliver(channel, 101, ['b'])
    expect((await pulls[1]!)[0]!.body).toBe('b')
  })

  it('releases messages that arrive after its signal was aborted, and serves the next pull', async () => {
    const controller = new AbortController()
    const first = sluice.pull('q', { max: 5, wait: '20s', signal: controller.signal })
    const channel = await peer.subscribed()
    controller.abort()
    await expect(first).rejects.toMatchObject({ code: 'ABORTED' })
    await turns()
    const second = sluice.pull('q', { max: 5, wait: '20s' })
    await turns()
    peer.link.deliver(channel, 101, ['x'])
    expect((await second).length).toBe(1)
  })

  it('skips pulls that were aborted while they waited, and serves the others in their order', async () => {
    const kept: Promise<Message[]>[] = []
    const codes: Promise<string>[] = []
    const few = new AbortController()
    for (let i = 0; i < 8; i++) {
      kept.push(sluice.pull('q', { wait: '20s' }))
      const { signal } = i < 4 ? few : new AbortController()
      const pull = sluice.pull('q', { wait: i === 5 ? 0 : '20s', timeout: i === 5 ? 1 : '20s', signal })
      if (i < 4 || i === 5) codes.push(pull.then(String, (error: SluiceError) => error.code))
      else kept.push(pull)
    }
    const channel = await peer.subscribed()
    few.abort()
    expect(await Promise.all(codes)).toEqual([...Array(4).fill('ABORTED'), 'TIMEOUT'])
    expect(kept.length).toBe(11)
    for (const [i, pull] of kept.entries()) {
      peer.link.deliver(channel, 101, [`${i}`], { offset: i })
      expect((await pull)[0]!.body).toBe(`${i}`)
    }
  })

  it('aborts thousands of waiting pulls of one signal at once', async () => {
    // The clock that `until` advances would sort the timers of all pulls for each millisecond.
    vi.useRealTimers()
    const controller = new AbortController()
    const { signal } = controller
    const count = 10_000
    const pulls = Array.from({ length: count }, () => sluice.pull('q', { wait: '20s', signal }))
    const outcomes = Promise.allSettled(pulls)
    const next = sluice.pull('q', { wait: '20s' })
    const channel = await peer.subscribed()
    const beganMs = performance.now()
    controller.abort()
    // With a search of the list for each aborted pull, this would take more than five seconds.
    expect(performance.now() - beganMs).toBeLessThan(2_500)
    const aborted = (await outcomes).filter(
      ({ status, ...rest }) =>
        status === 'rejected' && (rest as PromiseRejectedResult).reason.code === 'ABORTED',
    )
    expect(aborted.length).toBe(count)
    // The first CREDIT drains the subscription for the first pull, and the last CREDIT is for the next pull.
    await until(() => peer.link.named('CREDIT').length === 2)
    peer.link.deliver(channel, 101, ['x'])
    expect((await next)[0]!.body).toBe('x')
  })

  it('rejects each pull from a missing queue', async () => {
    peer.replies[OP.SUBSCRIBE] = (frame, link) =>
      link.error('QUEUE_NOT_FOUND', 'request', frame.channel, frame.correlation)
    for (let i = 0; i < 2; i++)
      await expect(sluice.pull('q', { wait: '1s' })).rejects.toMatchObject({ code: 'QUEUE_NOT_FOUND' })
  })

  it('continues after a reconnect', async () => {
    const pull = sluice.pull('q', { wait: '20s' })
    await peer.subscribed()
    peer.link.cut()
    await peer.dialled()
    peer.link.deliver(await peer.subscribed(), 101, ['x'])
    expect((await pull).length).toBe(1)
  })
})
