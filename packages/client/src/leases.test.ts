import {
  decodeExtend,
  encodeLeasesLost,
  encodeRanges,
  LOSS,
  OP,
  OUTCOME,
  type SluiceError,
} from '@sluice/protocol'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Sluice } from './client.js'
import type { Message } from './message.js'
import { control, Peer, texts, turns, until } from './testing/peer.js'

let peer: Peer
let sluice: Sluice

beforeEach(async () => {
  peer = new Peer()
  sluice = await peer.connect()
})

afterEach(async () => {
  await sluice.close({ timeout: 1 }).catch(() => {})
})

/** Lets the broker deliver messages with these bodies, and pulls them. */
async function pulled(bodies: string[]): Promise<{ messages: Message[]; channel: number; tag: number }> {
  const pulling = sluice.pull('q', { max: bodies.length, wait: '5s' })
  const channel = await peer.subscribed()
  const tag = peer.link.deliver(channel, 101, bodies)
  return { messages: await pulling, channel, tag }
}

const codes = async (promises: Promise<unknown>[]): Promise<string[]> =>
  (await Promise.allSettled(promises)).map((outcome) =>
    outcome.status === 'fulfilled' ? 'done' : (outcome.reason as SluiceError).code,
  )

describe('extending a lease', () => {
  it('sends the tag and the duration', async () => {
    const { messages, tag } = await pulled(texts(2))
    await messages[1]!.extend('2m')
    await messages[0]!.extend()
    const extends_ = peer.link.named('EXTEND').map(({ payload }) => decodeExtend(payload, 0, payload.length))
    expect(extends_).toEqual([
      { subscriptionId: 101, firstTag: tag + 1, count: 1, durationMs: 120_000 },
      { subscriptionId: 101, firstTag: tag, count: 1, durationMs: 0 },
    ])
    expect(() => messages[0]!.extend(99)).toThrow('`duration` is 99ms; it must be at least 100ms.')
    expect(() => messages[0]!.extend('soon' as never)).toThrow('duration')
    await messages[0]!.ack()
  })

  it('is refused for a settled or lost message, without an unhandled rejection', async () => {
    const unhandled: unknown[] = []
    const listen = (error: unknown): void => void unhandled.push(error)
    process.on('unhandledRejection', listen)
    const { messages, tag } = await pulled(texts(3))
    peer.replies[OP.EXTEND] = (frame, link) =>
      link.send(
        OP.SETTLE_OK,
        frame.channel,
        frame.correlation,
        encodeRanges(101, [{ firstTag: tag, count: 1 }]),
      )
    expect(await codes([messages[0]!.extend()])).toEqual(['LEASE_LOST'])
    await messages[1]!.ack()
    expect(await codes([messages[1]!.extend()])).toEqual(['ALREADY_SETTLED'])
    void messages[0]!.extend()
    peer.link.cut()
    await peer.dialled()
    expect(await codes([messages[2]!.extend()])).toEqual(['LEASE_LOST'])
    void messages[2]!.extend()
    await turns(10)
    process.off('unhandledRejection', listen)
    expect(unhandled).toEqual([])
  })
})

describe('a processing timeout', () => {
  it('is sent to the broker by every kind of consumer', async () => {
    sluice.consume('q', { processingTimeout: '1m' }, () => {})
    void sluice.messages('q', { processingTimeout: '2m' }).next()
    const pull = sluice.pull('q', { processingTimeout: '3m' })
    await peer.subscribed(3)
    expect(peer.link.named('SUBSCRIBE').map((frame) => control(frame)['processingTimeoutMs'])).toEqual([
      60_000, 120_000, 180_000,
    ])
    expect(await pull).toEqual([])
  })

  it('gives a pull a subscription of its own; the earlier subscription remains until its messages are settled', async () => {
    const { messages } = await pulled(texts(1))
    expect(await sluice.pull('q', { processingTimeout: '1m' })).toEqual([])
    expect(await sluice.pull('q', { processingTimeout: '1m' })).toEqual([])
    expect(peer.link.named('SUBSCRIBE').length).toBe(2)
    expect(peer.link.named('UNSUBSCRIBE').length).toBe(0)
    await messages[0]!.ack()
    await until(() => peer.link.named('UNSUBSCRIBE').length === 1)
    expect(await sluice.pull('q', { processingTimeout: '1m' })).toEqual([])
    expect(peer.link.named('SUBSCRIBE').length).toBe(2)
  })
})

describe('losing leases', () => {
  it('aborts only the signals of the lost messages, and refuses their settles locally', async () => {
    const aborted: unknown[] = []
    const messages: Message[] = []
    sluice.consume('q', { concurrency: 4 }, (message, { signal }) => {
      messages.push(message)
      signal.addEventListener('abort', () =>
        aborted.push([message.body, (signal.reason as SluiceError).code]),
      )
      return new Promise(() => {})
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, texts(4))
    await until(() => messages.length === 4)
    peer.link.leasesLost(channel, 101, { firstTag: tag, count: 1 }, { firstTag: tag + 2, count: 1 })
    await until(() => aborted.length === 2)
    expect(aborted).toEqual([
      ['0', 'LEASE_LOST'],
      ['2', 'LEASE_LOST'],
    ])
    const outcomes = codes(messages.map((message) => message.ack()))
    expect(await outcomes).toEqual(['LEASE_LOST', 'done', 'LEASE_LOST', 'done'])
    expect(peer.link.settles).toMatchObject([
      { firstTag: tag + 1, count: 1 },
      { firstTag: tag + 3, count: 1 },
    ])
    expect(await codes([messages[0]!.retry(), messages[0]!.extend()])).toEqual(['LEASE_LOST', 'LEASE_LOST'])
    // A signal that is first read afterwards is aborted too.
    expect((messages[0] as unknown as { signal: AbortSignal }).signal.aborted).toBe(true)
  })

  it('emits an event for each message that a handler had or settled too late', async () => {
    delete peer.replies[OP.SETTLE]
    const losses: unknown[] = []
    sluice.on('leaseLost', (loss) => losses.push(loss))
    const messages: Message[] = []
    sluice.consume('q', { concurrency: 3, prefetch: 10 }, (message) => {
      messages.push(message)
      return new Promise(() => {})
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, texts(6), { offsets: [70, 3, 900, 4, 60, 61] })
    await until(() => messages.length === 3)
    void messages[1]!.ack().catch(() => {})
    await until(() => peer.link.named('SETTLE').length === 1)
    // The last message was only buffered.
    peer.link.leasesLost(
      channel,
      101,
      { firstTag: tag, count: 1, firstOffset: 70 },
      { firstTag: tag + 1, count: 1, firstOffset: 3 },
      { firstTag: tag + 4, count: 2, firstOffset: 60 },
    )
    await until(() => losses.length > 0)
    expect(losses).toEqual([
      { queue: 'q', offset: 70, reason: 'processingTimeout' },
      { queue: 'q', offset: 3, reason: 'processingTimeout' },
    ])
    const payload = encodeLeasesLost({
      subscriptionId: 101,
      reason: LOSS.purged,
      ranges: [{ firstTag: tag + 2, count: 1, firstOffset: 900 }],
    })
    peer.link.send(OP.LEASES_LOST, channel, 0, payload)
    await until(() => losses.length > 2)
    expect(losses.at(-1)).toEqual({ queue: 'q', offset: 900, reason: 'purged' })
  })

  it.each([
    ['processingTimeout', 'its processing timeout passed.'],
    ['purged', 'its queue was purged.'],
    ['groupMoved', 'its group was moved to another place of the stream.'],
    ['retention', 'retention removed it from its stream.'],
  ] as const)('by %s is named by the error of a late settle', async (name, sentence) => {
    const { channel, tag, messages } = await pulled(texts(1))
    const lost = new Promise<string>((resolve) => sluice.on('leaseLost', ({ reason }) => resolve(reason)))
    const ranges = [{ firstTag: tag, count: 1, firstOffset: 40 }]
    const payload = encodeLeasesLost({ subscriptionId: 101, reason: LOSS[name], ranges })
    peer.link.send(OP.LEASES_LOST, channel, 0, payload)
    expect(await lost).toBe(name)
    const text: unknown = expect.stringContaining(sentence)
    await expect(messages[0]!.ack()).rejects.toMatchObject({ code: 'LEASE_LOST', message: text })
  })

  it('causes a warning if there is no listener, and one more warning for all later losses', async () => {
    const warnings: Error[] = []
    const listen = (warning: Error): void => void warnings.push(warning)
    process.on('warning', listen)
    try {
      const { channel, tag } = await pulled(texts(3))
      peer.link.leasesLost(channel, 101, { firstTag: tag, count: 3, firstOffset: 40 })
      await until(() => warnings.length > 0)
      await turns(10)
    } finally {
      process.off('warning', listen)
    }
    expect(warnings.map(({ name, message }) => [name, message])).toEqual([
      [
        'SluiceWarning',
        'The lease on message 40 of q was lost (processingTimeout). What its handler did does not count, and the message may be delivered again.',
      ],
    ])
  })

  it('ignores how a handler of a lost message ends, and uses the freed credit', async () => {
    const ends: (() => void)[] = []
    const begun: unknown[] = []
    sluice.consume('q', { concurrency: 2, prefetch: 2 }, ({ body }) => {
      begun.push(body)
      return new Promise<void>((resolve) => ends.push(resolve))
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, texts(2))
    await until(() => ends.length === 2)
    peer.link.leasesLost(channel, 101, { firstTag: tag, count: 2 })
    // This delivery uses the whole credit again. Without the loss, the delivery would exceed the credit.
    const next = peer.link.deliver(channel, 101, ['a', 'b'])
    await turns(10)
    expect(peer.link.closed).toBe(false)
    expect(begun).toEqual(['0', '1'])
    ends[0]!()
    ends[1]!()
    await until(() => ends.length === 4)
    ends[2]!()
    ends[3]!()
    await until(() => peer.link.settles.length > 0)
    expect(peer.link.settles).toMatchObject([{ firstTag: next, count: 2, outcome: OUTCOME.ack }])
  })

  it('removes lost messages anywhere in the buffer', async () => {
    const begun: unknown[] = []
    const ends: (() => void)[] = []
    const worker = sluice.consume('q', { concurrency: 1, prefetch: 20 }, ({ body, offset, key }) => {
      begun.push(`${String(body)}@${offset}${key ?? ''}`)
      return new Promise<void>((resolve) => ends.push(resolve))
    })
    const channel = await peer.subscribed()
    const first = peer.link.deliver(channel, 101, ['a', 'b', 'c', 'd', 'e', 'f'], { options: { key: 'k' } })
    const second = peer.link.deliver(channel, 101, ['g', 'h', 'i'], { offset: 6 })
    peer.link.deliver(channel, 101, ['j', 'k'], { offset: 9 })
    await until(() => begun.length === 1)
    // These are the middle and the end of the first run, and the whole second run.
    peer.link.leasesLost(
      channel,
      101,
      { firstTag: first + 2, count: 1 },
      { firstTag: first + 5, count: 1 },
      { firstTag: second, count: 3 },
    )
    await turns()
    for (let i = 0; i < 6; i++) {
      await until(() => ends.length === i + 1)
      ends[i]!()
    }
    await turns(10)
    expect(begun).toEqual(['a@0k', 'b@1k', 'd@3k', 'e@4k', 'j@9', 'k@10'])
    expect(peer.link.settles.reduce((sum, { count }) => sum + count, 0)).toBe(6)
    await worker.close()
    expect(peer.link.settles.some(({ outcome }) => outcome === OUTCOME.release)).toBe(false)
  })

  it('removes lost messages from a scattered delivery, and keeps the offsets of the others', async () => {
    const begun: unknown[] = []
    const ends: (() => void)[] = []
    sluice.consume('q', { concurrency: 1, prefetch: 20 }, ({ body, offset, publishedAt }) => {
      begun.push([body, offset, publishedAt.getTime() - 1_700_000_000_000])
      return new Promise<void>((resolve) => ends.push(resolve))
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, texts(5), { offsets: [70, 3, 900, 4, 60] })
    await until(() => begun.length === 1)
    peer.link.leasesLost(channel, 101, { firstTag: tag + 1, count: 1 }, { firstTag: tag + 3, count: 1 })
    await turns()
    for (let i = 0; i < 3; i++) {
      await until(() => ends.length === i + 1)
      ends[i]!()
    }
    await until(() => peer.link.settles.reduce((sum, { count }) => sum + count, 0) === 3)
    expect(begun).toEqual([
      ['0', 70, 0],
      ['2', 900, 2],
      ['4', 60, 4],
    ])
  })

  it('does not count messages that were settled before the loss was known', async () => {
    delete peer.replies[OP.SETTLE]
    const { messages, channel, tag } = await pulled(texts(4))
    const sent = messages[0]!.ack()
    sent.catch(() => {})
    await until(() => peer.link.named('SETTLE').length === 1)
    peer.link.leasesLost(channel, 101, { firstTag: tag, count: 2 }, { firstTag: tag, count: 2 })
    await turns()
    peer.link.send(
      OP.SETTLE_OK,
      channel,
      peer.link.named('SETTLE')[0]!.correlation,
      encodeRanges(101, [{ firstTag: tag, count: 1 }]),
    )
    expect(await codes([sent, messages[1]!.ack()])).toEqual(['LEASE_LOST', 'LEASE_LOST'])
    peer.link.leasesLost(channel, 101, { firstTag: tag + 2, count: 2 })
    await turns()
    expect(peer.link.closed).toBe(false)
    expect(await codes([messages[2]!.ack(), messages[3]!.ack()])).toEqual(['LEASE_LOST', 'LEASE_LOST'])
  })

  it('starts a message that waited to be alone', async () => {
    const begun: unknown[] = []
    sluice.consume('p', () => new Promise(() => {}))
    sluice.consume('q', ({ body }) => void begun.push(body))
    const q = await peer.subscribed(2)
    const p = peer.link.named('SUBSCRIBE')[0]!.channel
    const tag = peer.link.deliver(p, 101, ['hung'])
    await turns()
    peer.link.deliver(q, 102, ['suspect'], { flags: 2 })
    await turns(10)
    expect(begun).toEqual([])
    peer.link.leasesLost(p, 101, { firstTag: tag, count: 1 })
    await until(() => begun.length === 1)
  })

  it('starts the next message when the one that had to be alone is lost', async () => {
    const begun: unknown[] = []
    sluice.consume('p', () => new Promise(() => {}))
    sluice.consume('q', ({ body }) => void begun.push(body))
    const q = await peer.subscribed(2)
    peer.link.deliver(peer.link.named('SUBSCRIBE')[0]!.channel, 101, ['hung'])
    await turns()
    const suspect = peer.link.deliver(q, 102, ['suspect'], { flags: 2 })
    peer.link.deliver(q, 102, ['next'], { offset: 1 })
    await turns(10)
    peer.link.leasesLost(q, 102, { firstTag: suspect, count: 1 })
    await until(() => begun.length === 1)
    expect(begun).toEqual(['next'])
  })

  it('is not confused by tags that are used again', async () => {
    const { channel } = await pulled(['x'])
    peer.link.leasesLost(channel, 101, { firstTag: 1, count: 1 })
    await turns()
    const again = sluice.pull('q', { max: 1, wait: '5s' })
    await turns()
    peer.link.deliver(channel, 101, ['y'], { tag: 1 })
    expect(await codes([(await again)[0]!.ack()])).toEqual(['done'])
  })

  it('disconnects from a broker that ends more leases than there are', async () => {
    const { channel } = await pulled(['x'])
    const dialled = peer.dialled()
    peer.link.leasesLost(channel, 101, { firstTag: 1, count: 5 })
    await dialled
    expect(peer.links[0]!.closed).toBe(true)
  })

  it('of another subscription on the same channel is ignored', async () => {
    const { messages, channel } = await pulled(['x'])
    peer.link.leasesLost(channel, 999, { firstTag: 1, count: 1 })
    await turns()
    expect(await codes([messages[0]!.ack()])).toEqual(['done'])
  })
})

describe('a consumer that an operator closes', () => {
  it('ends with CONSUMER_CLOSED', async () => {
    const reported: string[] = []
    sluice.on('error', ({ code }) => reported.push(code))
    const worker = sluice.consume('q', () => {})
    const channel = await peer.subscribed()
    peer.link.error('CONSUMER_CLOSED', 'channel', channel)
    await expect(worker.closed).rejects.toMatchObject({ code: 'CONSUMER_CLOSED' })
    expect(reported).toEqual(['CONSUMER_CLOSED'])
    peer.link.cut()
    await peer.dialled()
    await until(() => sluice.connected)
    await turns()
    expect(peer.link.named('SUBSCRIBE')).toEqual([])
  })

  it('ends an iterator, and the next pull subscribes again', async () => {
    const stream = sluice.messages('q')
    const next = stream.next()
    peer.link.error('CONSUMER_CLOSED', 'channel', await peer.subscribed())
    await expect(next).rejects.toMatchObject({ code: 'CONSUMER_CLOSED' })
    const pull = sluice.pull('q', { wait: '5s' })
    peer.link.error('CONSUMER_CLOSED', 'channel', await peer.subscribed(2))
    await expect(pull).rejects.toMatchObject({ code: 'CONSUMER_CLOSED' })
    expect(await sluice.pull('q')).toEqual([])
  })
})
