/** The leases that a client claims when it subscribes again, and their handlers. */
import { decodeClaims, LIMITS, OP, OUTCOME, type Claim, type SluiceError } from '@sluice/protocol'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { Sluice } from './client.js'
import type { DeliveredMessage, Message } from './message.js'
import type { LeaseLoss } from './losses.js'
import { IDLE } from './pull.js'
import { advanceTime, control, Peer, texts, turns, until } from './testing/peer.js'

advanceTime()

let peer: Peer
let sluice: Sluice
let losses: LeaseLoss[]
let asked: readonly Claim[]

beforeEach(async () => {
  peer = new Peer()
  sluice = await peer.connect()
  losses = []
  sluice.on('leaseLost', (loss) => losses.push(loss))
  grant(() => true)
})

afterEach(async () => {
  await sluice.close({ timeout: 1 }).catch(() => {})
})

/** Lets the broker grant the claims for which `grants` returns true, under the tags from 50 on. */
function grant(grants: (claim: Claim) => boolean): void {
  peer.grants = (claims) => {
    asked = claims
    return claims.flatMap((claim, index) =>
      grants(claim) ? [{ index, tag: 50 + index, attempt: claim.attempt + 1 }] : [],
    )
  }
}

async function reconnected(): Promise<void> {
  const dialled = peer.dialled()
  peer.link.cut()
  await dialled
  await until(() => sluice.connected && peer.link.named('SUBSCRIBE').length > 0)
  await turns(5)
}

/** Like `reconnected`, for a client that has no consumer left to subscribe. */
async function reconnectedWithout(): Promise<void> {
  const dialled = peer.dialled()
  peer.link.cut()
  await dialled
  await until(() => sluice.connected)
  await turns(5)
}

interface Run {
  readonly message: Message
  readonly signal: AbortSignal
  readonly end: (error?: Error) => void
}

/** Makes a worker whose handlers end when the test ends them. */
function consumed(options: { concurrency: number; prefetch?: number; ordering?: 'key' }): Run[] {
  const runs: Run[] = []
  sluice.consume('q', options, (message, { signal }) => {
    return new Promise<void>((resolve, reject) => {
      runs.push({ message, signal, end: (error) => (error === undefined ? resolve() : reject(error)) })
    })
  })
  return runs
}

describe('the handlers of a worker', () => {
  it('claim their leases, and continue under the new ones', async () => {
    const runs = consumed({ concurrency: 2, prefetch: 10 })
    peer.link.deliver(await peer.subscribed(), 101, texts(4), { offsets: [7, 3, 4, 5], attempt: 2, tag: 20 })
    await until(() => runs.length === 2)
    await reconnected()
    const lease = { queueNumber: 7, boot: 1, subscriptionId: 101, attempt: 2 }
    expect(asked).toMatchObject([
      { offset: 7, tag: 20, ...lease },
      { offset: 3, tag: 21, ...lease },
    ])
    expect(control(peer.link.named('SUBSCRIBE')[0]!)).toMatchObject({ queue: 'q', messages: 10 })
    // The continued messages count against the credit and the concurrency.
    peer.link.deliver(peer.link.named('SUBSCRIBE')[0]!.channel, 101, texts(8), { offset: 100 })
    await turns(10)
    expect(runs.length).toBe(2)
    runs[1]!.end()
    await until(() => peer.link.settles.length > 0)
    expect(peer.link.settles).toMatchObject([{ firstTag: 51, count: 1, outcome: OUTCOME.ack }])
    await runs[0]!.message.extend()
    await runs[0]!.message.retry({ delay: '1m' })
    expect(peer.link.settles.at(-1)).toMatchObject({ firstTag: 50, outcome: OUTCOME.retry, delayMs: 60_000 })
    expect([losses, runs[0]!.signal.aborted]).toEqual([[], false])
    expect([runs[0]!.message.offset, runs[0]!.message.attempt]).toEqual([7, 2])
  })

  it('claim their leases while their worker closes; the worker waits until their outcomes are durable', async () => {
    const runs: (() => void)[] = []
    const worker = sluice.consume('q', { concurrency: 2 }, () => new Promise<void>((end) => runs.push(end)))
    peer.link.deliver(await peer.subscribed(), 101, texts(2))
    await until(() => runs.length === 2)
    let isClosed = false
    const closed = worker.close().then(() => {
      isClosed = true
    })
    await turns(5)
    peer.refusals = 1
    const dialled = peer.dialled()
    peer.link.cut()
    // One handler ends while there is no connection, and the other on the next connection.
    runs[0]!()
    await dialled
    await until(() => peer.link.named('SUBSCRIBE').length > 0)
    expect(control(peer.link.named('SUBSCRIBE')[0]!)).toMatchObject({ limit: 0 })
    await turns(5)
    expect([isClosed, asked.length]).toEqual([false, 2])
    runs[1]!()
    await closed
    expect(peer.link.settles).toMatchObject([
      { firstTag: 50, count: 1, outcome: OUTCOME.ack },
      { firstTag: 51, count: 1, outcome: OUTCOME.ack },
    ])
    expect([losses, peer.link.frames.at(-1)!.name]).toEqual([[], 'UNSUBSCRIBE'])
  })

  it('wait for the answer to a settle or an extension no longer than the call timeout', async () => {
    await sluice.close({ timeout: 0 })
    sluice = await peer.connect({ timeout: 50 })
    const runs = consumed({ concurrency: 2 })
    peer.link.deliver(await peer.subscribed(), 101, texts(2))
    await until(() => runs.length === 2)
    peer.refusals = 1
    const dialled = peer.dialled()
    peer.replies[OP.SUBSCRIBE] = undefined
    peer.link.cut()
    await dialled
    const late = { code: 'TIMEOUT', outcome: 'unknown' }
    await Promise.all([
      expect(runs[0]!.message.ack()).rejects.toMatchObject({ ...late, queue: 'q', offset: 0 }),
      expect(runs[1]!.message.extend()).rejects.toMatchObject(late),
    ])
  })

  it('claim the granted leases again when the next connection is lost too', async () => {
    const runs = consumed({ concurrency: 1 })
    peer.link.deliver(await peer.subscribed(), 101, texts(1))
    await until(() => runs.length === 1)
    await reconnected()
    await reconnected()
    expect(asked).toMatchObject([{ offset: 0, subscriptionId: 101, tag: 50, attempt: 2 }])
    runs[0]!.end()
    await until(() => peer.link.settles.length > 0)
  })

  it('can settle without a connection; the settle is sent under the new lease', async () => {
    const runs = consumed({ concurrency: 4 })
    peer.link.deliver(await peer.subscribed(), 101, texts(4))
    await until(() => runs.length === 4)
    grant(({ offset }) => offset < 3)
    const dialled = peer.dialled()
    peer.link.cut()
    runs[0]!.end(new Error('it broke'))
    const outcomes: string[] = []
    for (const run of [runs[1]!, runs[3]!]) {
      run.message.ack().then(
        () => outcomes.push('done'),
        (error: SluiceError) => outcomes.push(error.code),
      )
    }
    await dialled
    await until(() => outcomes.length === 2)
    expect(outcomes.toSorted()).toEqual(['LEASE_LOST', 'done'])
    expect(peer.link.settles).toMatchObject([
      { firstTag: 50, outcome: OUTCOME.retry, reason: 'it broke' },
      { firstTag: 51, outcome: OUTCOME.ack },
    ])
    expect(losses).toEqual([{ queue: 'q', offset: 3, reason: 'disconnected' }])
  })

  it('learn of a lost lease by signal and event, and no other handler gets the message before they end', async () => {
    const runs = consumed({ concurrency: 4 })
    peer.link.deliver(await peer.subscribed(), 101, texts(2))
    await until(() => runs.length === 2)
    const signals = runs.map(({ signal }) => signal)
    expect(signals.map(({ aborted }) => aborted)).toEqual([false, false])
    grant(({ offset }) => offset === 1)
    await reconnected()
    expect(signals.map(({ aborted }) => aborted)).toEqual([true, false])
    expect(losses).toEqual([{ queue: 'q', offset: 0, reason: 'disconnected' }])
    const channel = peer.link.named('SUBSCRIBE')[0]!.channel
    peer.link.deliver(channel, 101, ['again', 'other'], { offsets: [0, 9], tag: 60 })
    await until(() => runs.length === 3)
    await turns(10)
    expect(runs.map(({ message }) => message.body)).toEqual(['0', '1', 'other'])
    runs[0]!.end()
    await until(() => runs.length === 4)
    expect(runs[3]!.message.body).toBe('again')
    for (const { end } of runs) end()
    await until(() => peer.link.settles.reduce((sum, { count }) => sum + count, 0) === 3)
  })

  it('delay a message that waits for them only for a limited time', async () => {
    const runs = consumed({ concurrency: 4, ordering: 'key' })
    peer.link.deliver(await peer.subscribed(), 101, texts(1), { options: { key: 'k' } })
    await until(() => runs.length === 1)
    grant(() => false)
    await reconnected()
    const channel = peer.link.named('SUBSCRIBE')[0]!.channel
    // Another message of the key `k` arrives before the lost message is delivered again.
    peer.link.deliver(channel, 101, ['next'], { offset: 1, tag: 60, options: { key: 'k' } })
    peer.link.deliver(channel, 101, ['free'], { offset: 2, tag: 61, options: { key: 'l' } })
    await until(() => runs.length === 2)
    await until(() => peer.link.settles.length > 0)
    expect(peer.link.settles).toMatchObject([{ firstTag: 60, count: 1, outcome: OUTCOME.release }])
    expect(runs.map(({ message }) => message.body)).toEqual(['0', 'free'])
    for (const { end } of runs) end()
  })

  it('lose the leases for which one SUBSCRIBE has no room', async () => {
    const count = LIMITS.claimsMax + 1
    const runs = consumed({ concurrency: count, prefetch: count })
    peer.link.deliver(await peer.subscribed(), 101, texts(count))
    await until(() => runs.length === count)
    await reconnected()
    expect(asked.length).toBe(LIMITS.claimsMax)
    expect(losses).toEqual([{ queue: 'q', offset: count - 1, reason: 'disconnected' }])
    for (const { end } of runs) end()
  })

  it('do not claim settled messages, nor those of a closed worker', async () => {
    const runs = consumed({ concurrency: 4 })
    peer.link.deliver(await peer.subscribed(), 101, texts(2))
    await until(() => runs.length === 2)
    await runs[0]!.message.ack()
    await reconnected()
    expect(asked.map(({ offset }) => offset)).toEqual([1])
    for (const { end } of runs) end()
  })

  it('are lost with their queue', async () => {
    const runs = consumed({ concurrency: 2 })
    sluice.on('error', () => {})
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, texts(1))
    await until(() => runs.length === 1)
    peer.link.error('QUEUE_DELETED', 'channel', channel)
    await until(() => losses.length === 1)
    expect(losses).toEqual([{ queue: 'q', offset: 0, reason: 'queueDeleted' }])
    expect(runs[0]!.signal.aborted).toBe(true)
    runs[0]!.end()
  })
})

it('a batch continues as a whole, and its signal is aborted when one lease is not granted', async () => {
  const signals: AbortSignal[] = []
  const batches: Message[][] = []
  sluice.consume('q', { batch: { size: 2, wait: 0 }, concurrency: 2 }, (messages, { signal }) => {
    batches.push(messages)
    signals.push(signal)
    return new Promise(() => {})
  })
  peer.link.deliver(await peer.subscribed(), 101, texts(4))
  await until(() => batches.length === 2)
  grant(({ offset }) => offset !== 2)
  await reconnected()
  expect(signals.map(({ aborted }) => aborted)).toEqual([false, true])
  expect(losses.map(({ offset }) => offset)).toEqual([2])
  await batches[1]![1]!.ack()
  expect(peer.link.settles).toMatchObject([{ firstTag: 53 }])
})

it('pulled messages are claimed without credit, and the next pull uses the same subscription', async () => {
  const pulling = sluice.pull('q', { max: 2, wait: '5s' })
  peer.link.deliver(await peer.subscribed(), 101, texts(2))
  const [one, two] = await pulling
  await one!.ack()
  await reconnected()
  const subscribe = control(peer.link.named('SUBSCRIBE')[0]!)
  expect(subscribe).toMatchObject({ limit: 0 })
  expect(decodeClaims(subscribe['claims'] as Uint8Array)).toMatchObject([{ offset: 1 }])
  const next = sluice.pull('q', { wait: '5s' })
  await until(() => peer.link.named('CREDIT').length > 0)
  peer.link.deliver(peer.link.named('SUBSCRIBE')[0]!.channel, 101, ['2'], { offset: 2, tag: 90 })
  expect((await next)[0]!.body).toBe('2')
  await two!.ack()
  expect(peer.link.settles).toMatchObject([{ firstTag: 50 }])
})

it.each([
  ['pulled', async () => (await sluice.pull('q', { max: 1, wait: '5s' }))[0]!],
  ['iterated', async () => (await sluice.messages('q')[Symbol.asyncIterator]().next()).value!],
] as const)(
  'messages that are %s are claimed again when the next connection is lost too',
  async (_, take) => {
    const taking = take()
    peer.link.deliver(await peer.subscribed(), 101, texts(1), { tag: 20 })
    const message = await taking
    await reconnected()
    expect(asked).toMatchObject([{ offset: 0, tag: 20, attempt: 1 }])
    await reconnected()
    expect(asked).toMatchObject([{ offset: 0, tag: 50, attempt: 2 }])
    await message.ack()
    expect([peer.link.settles.length, losses]).toEqual([1, []])
    expect(peer.link.settles).toMatchObject([{ firstTag: 50, outcome: OUTCOME.ack }])
  },
)

/** Pulls one message with tag 20 and offset 0. */
async function pulledOne(queue = 'q'): Promise<DeliveredMessage> {
  const before = peer.link.named('SUBSCRIBE').length
  const pulling = sluice.pull(queue, { wait: '5s' })
  const channel = await peer.subscribed(before + 1)
  peer.link.deliver(channel, 101 + before, texts(1), { tag: 20 })
  return (await pulling)[0] as DeliveredMessage
}

describe('a message whose consumer has ended', () => {
  const takes = {
    'was pulled with another processing timeout': async () => {
      const message = await pulledOne()
      await sluice.pull('q', { processingTimeout: '5m' })
      return message
    },
    'was yielded by an iterator that was left': async () => {
      const messages = sluice.messages('q')
      const next = messages.next()
      peer.link.deliver(await peer.subscribed(), 101, texts(1), { tag: 20 })
      const { value } = await next
      await messages.return!()
      return value as DeliveredMessage
    },
    'was pulled from one queue of too many': async () => {
      const message = await pulledOne()
      for (let i = 0; i < IDLE.subscriptionsMax; i++) await sluice.pull(`q${i}`)
      return message
    },
    'has a handler that awaits the close of its worker': async () => {
      let message: Message | undefined
      const worker = sluice.consume('q', async (one) => {
        message = one
        await worker.close()
        await new Promise(() => {})
      })
      peer.link.deliver(await peer.subscribed(), 101, texts(1), { tag: 20 })
      await worker.closed
      return message as unknown as DeliveredMessage
    },
  }

  it.each(Object.entries(takes))('is claimed on the next connections when it %s', async (_, take) => {
    const message = await take()
    expect(message.signal.aborted).toBe(false)
    await reconnected()
    expect(asked).toMatchObject([{ offset: 0, tag: 20, attempt: 1 }])
    const claiming = peer.link.named('SUBSCRIBE').map(control)
    expect(claiming.filter(({ claims }) => claims !== undefined)).toMatchObject([{ queue: 'q', limit: 0 }])
    await reconnected()
    expect(asked).toMatchObject([{ offset: 0, tag: 50, attempt: 2 }])
    await message.ack()
    expect(peer.link.settles).toMatchObject([{ firstTag: 50, outcome: OUTCOME.ack }])
    // The client has kept nothing of the message.
    await until(() => peer.link.named('UNSUBSCRIBE').length === 1)
    expect([message.signal.aborted, losses]).toEqual([false, []])
    grant(() => true)
    asked = []
    await reconnectedWithout()
    expect(asked).toEqual([])
  })

  it('is claimed before any other consumer of the client subscribes', async () => {
    sluice.consume('q', () => {})
    await peer.subscribed()
    const messages = sluice.messages('q')
    const next = messages.next()
    peer.link.deliver(await peer.subscribed(2), 102, texts(1), { tag: 20 })
    const { value } = await next
    await messages.return!()
    await reconnected()
    const subscribes = peer.link.named('SUBSCRIBE').map((frame) => control(frame)['claims'] !== undefined)
    expect(subscribes).toEqual([true, false])
    await value!.ack()
  })

  it('is lost when its lease is not granted again', async () => {
    const message = await takes['was yielded by an iterator that was left']()
    const { signal } = message
    grant(() => false)
    await reconnected()
    expect([signal.aborted, losses]).toEqual([true, [{ queue: 'q', offset: 0, reason: 'disconnected' }]])
    await expect(message.ack()).rejects.toMatchObject({ code: 'LEASE_LOST' })
    await until(() => peer.link.named('UNSUBSCRIBE').length === 1)
  })

  it('is claimed when its iterator is left while there is no connection, or before SUBSCRIBE is answered', async () => {
    for (const leavesOffline of [true, false]) {
      const messages = sluice.messages('q')
      const next = messages.next()
      const before = peer.link.named('SUBSCRIBE').length
      peer.link.deliver(await peer.subscribed(before + 1), 101 + before, texts(1), { tag: 20 })
      const message = (await next).value!
      const answer = peer.replies[OP.SUBSCRIBE]!
      peer.replies[OP.SUBSCRIBE] = undefined
      const dialled = peer.dialled()
      peer.link.cut()
      if (leavesOffline) await messages.return!()
      await dialled
      await until(() => peer.link.named('SUBSCRIBE').length === 1)
      const returned = messages.return!()
      await turns()
      answer(peer.link.named('SUBSCRIBE')[0]!, peer.link)
      await returned
      peer.replies[OP.SUBSCRIBE] = answer
      await message.ack()
      expect(peer.link.settles).toMatchObject([{ firstTag: 50, outcome: OUTCOME.ack }])
      await until(() => peer.link.named('UNSUBSCRIBE').length === 1)
    }
    expect(losses).toEqual([])
  })

  it('is lost at once when the client is closed', async () => {
    const kept = await takes['was yielded by an iterator that was left']()
    await sluice.pull('q')
    const { signal } = kept
    await sluice.close()
    expect([signal.aborted, losses]).toEqual([true, [{ queue: 'q', offset: 0, reason: 'disconnected' }]])
    await expect(kept.ack()).rejects.toMatchObject({ code: 'LEASE_LOST' })
  })
})

describe('a pulled message', () => {
  it.each([undefined, 0])('is lost at once when the client is closed, with timeout %s', async (timeout) => {
    const message = await pulledOne()
    const { signal } = message
    await sluice.close(timeout === undefined ? {} : { timeout })
    expect([signal.aborted, losses]).toEqual([true, [{ queue: 'q', offset: 0, reason: 'disconnected' }]])
    await expect(message.ack()).rejects.toMatchObject({ code: 'LEASE_LOST' })
  })

  it('is lost at once when the client is closed without a connection, even if it was settled', async () => {
    const message = await pulledOne()
    peer.refusals = 100
    peer.link.cut()
    const settled = message.ack().catch((error: SluiceError) => error.code)
    await sluice.close()
    expect(await settled).toBe('LEASE_LOST')
  })

  it('can be settled while close waits, also over a new connection', async () => {
    const message = await pulledOne()
    const other = await pulledOne('p')
    const runs = consumed({ concurrency: 1 })
    peer.link.deliver(await peer.subscribed(3), 103, texts(1), { tag: 30 })
    await until(() => runs.length === 1)
    const closed = sluice.close()
    await turns()
    await other.ack()
    await reconnected()
    await message.ack()
    runs[0]!.end()
    await closed
    expect(peer.link.settles).toMatchObject([
      { firstTag: 50, outcome: OUTCOME.ack },
      { firstTag: 50, outcome: OUTCOME.ack },
    ])
    expect(losses).toEqual([])
  })

  it('stays claimed when SUBSCRIBE is answered later than an idle subscription ends', async () => {
    const message = await pulledOne()
    const answer = peer.replies[OP.SUBSCRIBE]!
    peer.replies[OP.SUBSCRIBE] = undefined
    await reconnected()
    await vi.advanceTimersByTimeAsync(IDLE.ms * 2.5)
    answer(peer.link.named('SUBSCRIBE')[0]!, peer.link)
    await message.ack()
    expect(peer.link.settles).toMatchObject([{ firstTag: 50, outcome: OUTCOME.ack }])
    expect([losses, message.signal.aborted]).toEqual([[], false])
  })

  it('stays claimed when a pull with another processing timeout is made before SUBSCRIBE is answered', async () => {
    const message = await pulledOne()
    const answer = peer.replies[OP.SUBSCRIBE]!
    peer.replies[OP.SUBSCRIBE] = undefined
    await reconnected()
    peer.replies[OP.SUBSCRIBE] = answer
    await sluice.pull('q', { processingTimeout: '5m' })
    answer(peer.link.named('SUBSCRIBE')[0]!, peer.link)
    await message.ack()
    expect([peer.link.settles.length, losses]).toEqual([1, []])
  })
})

it('closing the client releases the messages that were delivered for a pull, before it waits for handlers', async () => {
  const runs = consumed({ concurrency: 1 })
  peer.link.deliver(await peer.subscribed(), 101, texts(1), { tag: 30 })
  await until(() => runs.length === 1)
  const before = await pulledOne('p')
  const channel = await peer.subscribed(2)
  const code = (error: SluiceError): string => error.code
  const pulling = [sluice.pull('p', { wait: '5s' }).catch(code), sluice.pull('o', { wait: '5s' }).catch(code)]
  const otherChannel = await peer.subscribed(3)
  const closed = sluice.close()
  // These messages were under way when the pulls were cancelled.
  peer.link.deliver(channel, 102, texts(1), { tag: 21 })
  peer.link.deliver(otherChannel, 103, texts(1), { tag: 40 })
  expect(await Promise.all(pulling)).toEqual(['CLOSED', 'CLOSED'])
  await until(() => peer.link.settles.length > 0)
  expect(peer.link.settles).toMatchObject([{ firstTag: 21, count: 1, outcome: OUTCOME.release }])
  const left = (): number[] => peer.link.named('UNSUBSCRIBE').map((frame) => frame.channel)
  expect(left()).toEqual([otherChannel])
  await before.ack()
  await until(() => left().length === 2)
  runs[0]!.end()
  await closed
  expect([left().slice(0, 2), losses]).toEqual([[otherChannel, channel], []])
})

it('a worker that is closed at once gives up its leases before they are granted', async () => {
  const messages: DeliveredMessage[] = []
  const worker = sluice.consume('q', { concurrency: 2 }, (one) => {
    messages.push(one as DeliveredMessage)
    return new Promise(() => {})
  })
  peer.link.deliver(await peer.subscribed(), 101, texts(2))
  await until(() => messages.length === 2)
  const { signal } = messages[0]!
  peer.replies[OP.SUBSCRIBE] = undefined
  await reconnected()
  const settled = messages[1]!.ack().catch((error: SluiceError) => error.code)
  await worker.close({ timeout: 0 })
  expect([signal.aborted, signal.reason.code, await settled]).toEqual([true, 'CLOSED', 'LEASE_LOST'])
})

it('an answer that grants an unclaimed lease is refused, and the claimed leases are lost', async () => {
  const runs = consumed({ concurrency: 1 })
  sluice.on('error', () => {})
  peer.link.deliver(await peer.subscribed(), 101, texts(1))
  await until(() => runs.length === 1)
  peer.grants = () => [{ index: 5, tag: 1, attempt: 1 }]
  const dialled = peer.dialled()
  peer.link.cut()
  await dialled
  await until(() => losses.length === 1)
  expect(losses).toEqual([{ queue: 'q', offset: 0, reason: 'other' }])
  expect(peer.links[1]!.closed).toBe(true)
  runs[0]!.end()
})
