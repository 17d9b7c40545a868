import { BATCH_ATTRIBUTE, DELIVER_FLAG, LIMITS, OP, OUTCOME, type SluiceError } from '@sluice/protocol'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Sluice } from './client.js'
import type { Message } from './message.js'
import { queue } from './options.js'
import { Step } from './step.js'
import { advanceTime, Peer, turns, until } from './testing/peer.js'

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

/** Lets the broker deliver messages with these bodies, and pulls them. */
async function pulled(...bodies: string[]): Promise<{ messages: Message[]; channel: number; tag: number }> {
  const pulling = sluice.pull('q', { max: bodies.length, wait: '5s' })
  const channel = await peer.subscribed()
  const tag = peer.link.deliver(channel, 101, bodies)
  return { messages: await pulling, channel, tag }
}

const codeOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'done',
    (error: SluiceError) => error.code,
  )

const stepped = (count = 1): Promise<void> => until(() => peer.link.named('ATOMIC').length === count)

describe('an atomic step', () => {
  it('is one frame, numbered among the publishes, with one batch per queue', async () => {
    const { messages, channel, tag } = await pulled('a', 'b', 'c')
    const before = sluice.publish('x', 'before')
    const step = sluice.atomic((tx) => {
      tx.publish('x', 'one', { key: 'k', delay: '1m' })
      tx.ack(messages[2]!)
      tx.publish('y', 'two')
      tx.ack(messages[0]!)
      tx.publish('x', 'three')
    })
    await stepped()
    const after = sluice.publish('x', 'after')
    await turns()
    expect(peer.link.published.map(({ number, bodies }) => [number, bodies])).toEqual([
      [1, ['before']],
      [3, ['after']],
    ])
    const [{ number, acks, batches }] = peer.link.atomics as [(typeof peer.link.atomics)[number]]
    expect(number).toBe(2)
    expect(acks).toEqual([
      { channel, subscriptionId: 101, firstTag: tag, count: 1 },
      { channel, subscriptionId: 101, firstTag: tag + 2, count: 1 },
    ])
    expect(batches).toMatchObject([
      { queue: 'x', number: 2, bodies: ['one', 'three'], attributes: BATCH_ATTRIBUTE.atomic },
      { queue: 'y', number: 2, bodies: ['two'] },
    ])
    expect(batches[0]!.options[0]).toMatchObject({ key: 'k', delayMs: 60_000 })
    peer.link.confirm([1, 0])
    peer.link.atomicOk(2, { baseOffset: 10, duplicates: new Map([[1, 7]]) }, 20)
    peer.link.confirm([3, 12])
    expect(await step).toEqual([
      { offset: 10, duplicate: false },
      { offset: 20, duplicate: false },
      { offset: 7, duplicate: true },
    ])
    await Promise.all([before, after])
    // The messages were settled without a SETTLE.
    expect(peer.link.settles).toEqual([])
    expect(await codeOf(messages[0]!.ack())).toBe('ALREADY_SETTLED')
    expect(await codeOf(messages[1]!.ack())).toBe('done')
  })

  it('joins consecutive acknowledgements, and may have no publishes', async () => {
    const { messages, tag } = await pulled('a', 'b', 'c', 'd')
    const step = sluice.atomic(async (tx) => {
      await turns(1)
      for (const message of [3, 1, 0, 2]) tx.ack(messages[message]!)
    })
    await stepped()
    expect(peer.link.atomics[0]!.acks).toMatchObject([{ firstTag: tag, count: 4 }])
    peer.link.atomicOk(1)
    expect(await step).toEqual([])
    expect(await sluice.atomic(() => {})).toEqual([])
    expect(peer.link.named('ATOMIC').length).toBe(1)
  })

  it('is sent again byte for byte after a reconnect, before any SUBSCRIBE', async () => {
    const { messages } = await pulled('a')
    sluice.consume('other', () => {})
    const first = peer.link
    const step = sluice.atomic((tx) => {
      tx.ack(messages[0]!)
      tx.publish('x', 'one')
    })
    await stepped()
    first.cut()
    await peer.dialled()
    await stepped()
    await peer.subscribed()
    const [sent, again] = [first, peer.link].map((link) => link.named('ATOMIC')[0]!)
    expect(again!.payload).toEqual(sent!.payload)
    const names = peer.link.frames.map(({ name }) => name)
    expect(names.indexOf('ATOMIC')).toBeLessThan(names.indexOf('SUBSCRIBE'))
    peer.link.atomicOk(1, 5)
    expect(await step).toEqual([{ offset: 5, duplicate: false }])
    expect(await codeOf(messages[0]!.ack())).toBe('ALREADY_SETTLED')
  })

  it('is not sent on a connection that is later than the one on which its messages were delivered', async () => {
    const { messages } = await pulled('a')
    peer.link.flowing = false
    const blocker = sluice.publish('x', 'fills the socket').catch(() => {})
    await turns()
    const step = codeOf(
      sluice.atomic((tx) => {
        tx.ack(messages[0]!)
        tx.publish('x', 'one')
      }),
    )
    await turns()
    peer.confirmAll()
    peer.link.cut()
    expect(await step).toBe('LEASE_LOST')
    await blocker
    expect(peer.links.flatMap((link) => link.named('ATOMIC'))).toEqual([])
    expect(await codeOf(messages[0]!.ack())).toBe('LEASE_LOST')
  })

  it('is given up when it could name other subscriptions on the new connection', async () => {
    const { messages } = await pulled('a')
    const unanswered = sluice.publish('x', 'one')
    await turns()
    const step = sluice.atomic((tx) => tx.ack(messages[0]!)).catch((error: unknown) => error)
    await stepped()
    peer.replies[OP.HELLO] = (_frame, link) => link.helloOk({ inFlightBatchesMax: 1 })
    peer.link.cut()
    expect(await step).toMatchObject({ code: 'UNKNOWN_OUTCOME', outcome: 'unknown' })
    peer.link.confirm([1, 0])
    await unanswered
    await turns()
    expect(peer.link.named('ATOMIC')).toEqual([])
  })
})

describe('an atomic step that is refused', () => {
  it('reopens messages whose leases remain, and counts them against the credit', async () => {
    const ends: (() => void)[] = []
    const seen: unknown[] = []
    sluice.consume('q', { concurrency: 2, prefetch: 2 }, async (message) => {
      seen.push(message.body)
      const error: unknown = await sluice
        .atomic((tx) => {
          tx.ack(message)
          tx.publish('x', 'one')
        })
        .catch((error: unknown) => error)
      seen.push((error as SluiceError).code)
      await new Promise<void>((resolve) => ends.push(resolve))
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, ['a', 'b'])
    await stepped(2)
    // Once the steps are sent, both messages count as settled, so that the credit has room for the next ones.
    peer.link.deliver(channel, 101, ['c', 'd'])
    await turns()
    expect(peer.link.closed).toBe(false)
    peer.link.atomicOk(1, 0)
    peer.link.refuse(2, 'QUEUE_FULL')
    await until(() => ends.length === 2)
    expect(seen).toEqual(['a', 'b', undefined, 'QUEUE_FULL'])
    ends[1]!()
    await until(() => peer.link.settles.length === 1)
    expect(peer.link.settles).toMatchObject([{ firstTag: tag + 1, outcome: OUTCOME.ack }])
    ends[0]!()
    await stepped(4)
    const dialled = peer.dialled()
    // After these refusals c and d are unsettled again, so e exceeds the credit of two.
    peer.link.refuse(3, 'QUEUE_FULL')
    peer.link.refuse(4, 'QUEUE_FULL')
    peer.link.deliver(channel, 101, ['e'])
    await dialled
    expect(seen).not.toContain('e')
  })

  it('reports a lost lease when the message with that lease is settled', async () => {
    const { messages, channel, tag } = await pulled('a', 'b')
    const step = codeOf(
      sluice.atomic((tx) => {
        for (const message of messages) tx.ack(message)
      }),
    )
    await stepped()
    peer.link.leasesLost(channel, 101, { firstTag: tag, count: 1 })
    peer.link.refuse(1, 'LEASE_LOST')
    expect(await step).toBe('LEASE_LOST')
    expect(await codeOf(messages[0]!.ack())).toBe('LEASE_LOST')
    expect(await codeOf(messages[1]!.ack())).toBe('done')
    expect(peer.link.settles).toMatchObject([{ firstTag: tag + 1, count: 1 }])
  })

  it('lets its message be delivered again when the handler throws or does not await the step', async () => {
    sluice.consume('q', { concurrency: 2 }, async (message) => {
      const step = sluice.atomic((tx) => tx.ack(message))
      if (message.body === 'waits') await step
      else step.catch(() => {})
    })
    sluice.on('handlerError', () => {})
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, ['waits', 'does not'])
    await stepped(2)
    await turns()
    expect(peer.link.settles).toEqual([])
    peer.link.refuse(1, 'DISK_LOW')
    peer.link.refuse(2, 'DISK_LOW')
    await until(() => peer.link.settles.length === 2)
    const retries = peer.link.settles.toSorted((a, b) => a.firstTag - b.firstTag)
    expect(retries).toMatchObject([
      { firstTag: tag, outcome: OUTCOME.retry, reason: 'refused: DISK_LOW' },
      { firstTag: tag + 1, outcome: OUTCOME.retry, reason: 'The atomic step had no effect.' },
    ])
  })

  it('applies any other outcome of the handler', async () => {
    sluice.consume('q', async (message) => {
      void sluice.atomic((tx) => tx.ack(message)).catch(() => {})
      await message.deadLetter('no').catch(() => {})
      throw new Error('it broke')
    })
    sluice.on('handlerError', () => {})
    peer.link.deliver(await peer.subscribed(), 101, ['a'])
    await stepped()
    await turns()
    peer.link.refuse(1, 'DISK_LOW')
    await until(() => peer.link.settles.length === 1)
    expect(peer.link.settles).toMatchObject([{ outcome: OUTCOME.retry, reason: 'it broke' }])
  })

  it('isolates its message again if that message must be handled alone', async () => {
    const begun: unknown[] = []
    sluice.consume('q', { concurrency: 4 }, async (message) => {
      begun.push(message.body)
      await sluice.atomic((tx) => tx.ack(message)).catch(() => {})
      if (message.body === 'suspect') await new Promise(() => {})
    })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, ['suspect'], { flags: DELIVER_FLAG.alone })
    await stepped()
    peer.link.refuse(1, 'DISK_LOW')
    await turns()
    peer.link.deliver(channel, 101, ['next'], { offset: 1 })
    await turns(10)
    expect(begun).toEqual(['suspect'])
  })
})

describe('an atomic step that is not sent', () => {
  it('has no effect when its function throws', async () => {
    const { messages } = await pulled('a')
    const step = sluice.atomic((tx) => {
      tx.ack(messages[0]!)
      tx.publish('x', 'one')
      throw new Error('changed my mind')
    })
    await expect(step).rejects.toThrow('changed my mind')
    expect(await codeOf(messages[0]!.ack())).toBe('done')
    expect(peer.link.named('ATOMIC')).toEqual([])
  })

  it('has no effect when a part of it is refused, even if the error is caught', async () => {
    const { messages } = await pulled('a', 'b')
    await messages[1]!.ack()
    const other = new Peer()
    const stranger = await other.connect()
    const parts: [(tx: Parameters<Parameters<Sluice['atomic']>[0]>[0]) => void, string][] = [
      [(tx) => tx.ack(messages[1]!), 'ALREADY_SETTLED'],
      [(tx) => tx.ack({} as Message), 'INVALID_ARGUMENT'],
      [(tx) => tx.publish('a b', 'x'), 'INVALID_NAME'],
      [(tx) => tx.publish('x', () => {}), 'INVALID_BODY'],
      [(tx) => tx.publish('x', 'x', { priority: 99 }), 'INVALID_PRIORITY'],
      [(tx) => tx.publish('x', 'x', { timeout: 1 } as never), 'INVALID_ARGUMENT'],
      [(tx) => tx.publish('x', 'x'.repeat(LIMITS.messageBytesDefault + 1)), 'MESSAGE_TOO_LARGE'],
    ]
    for (const [part, code] of parts) {
      const step = sluice.atomic((tx) => {
        tx.ack(messages[0]!)
        try {
          part(tx)
        } catch {}
      })
      await expect(step).rejects.toMatchObject({ code })
    }
    expect(parts.length).toBe(7)
    await expect(stranger.atomic((tx) => tx.ack(messages[0]!))).rejects.toMatchObject({ code: 'LEASE_LOST' })
    await stranger.close()
    expect(await codeOf(sluice.atomic(undefined as never))).toBe('INVALID_ARGUMENT')
    expect(peer.link.named('ATOMIC')).toEqual([])
    expect(await codeOf(messages[0]!.ack())).toBe('done')
  })

  it('refuses calls after its end', async () => {
    let kept!: Parameters<Parameters<Sluice['atomic']>[0]>[0]
    await sluice.atomic((tx) => void (kept = tx))
    expect(() => kept.publish('x', 'late')).toThrow(expect.objectContaining({ code: 'CLOSED' }))
  })

  it('checks bodies against the schema of their queue', async () => {
    const schema = {
      '~standard': {
        version: 1 as const,
        vendor: 'test',
        validate: async (value: unknown) =>
          typeof value === 'number' ? { value } : { issues: [{ message: 'not a number' }] },
      },
    }
    const numbers = queue<number>('n', { schema })
    const { messages } = await pulled('a')
    const step = sluice.atomic((tx) => {
      tx.ack(messages[0]!)
      tx.publish(numbers, 'x' as never)
      tx.publish(numbers, 1)
    })
    await expect(step).rejects.toMatchObject({ code: 'INVALID_BODY' })
    expect(await codeOf(messages[0]!.ack())).toBe('done')
    const good = sluice.atomic((tx) => tx.publish(numbers, 1))
    await stepped()
    peer.link.atomicOk(1, 3)
    expect(await good).toEqual([{ offset: 3, duplicate: false }])
  })

  it('reopens its message when its deadline passes, and when its signal is aborted', async () => {
    const { messages, tag } = await pulled('a', 'b')
    peer.link.flowing = false
    void sluice.publish('x', 'fills the socket').catch(() => {})
    await turns()
    const controller = new AbortController()
    const late = codeOf(sluice.atomic((tx) => tx.ack(messages[0]!), { timeout: 20 }))
    const aborted = codeOf(sluice.atomic((tx) => tx.ack(messages[1]!), { signal: controller.signal }))
    await turns()
    expect(await codeOf(messages[0]!.release())).toBe('ALREADY_SETTLED')
    controller.abort()
    expect([await late, await aborted]).toEqual(['TIMEOUT', 'ABORTED'])
    peer.link.flowing = true
    peer.link.drained()
    await Promise.all(messages.map((message) => message.ack()))
    expect(peer.link.settles).toMatchObject([{ firstTag: tag, count: 2, outcome: OUTCOME.ack }])
    expect(peer.link.named('ATOMIC')).toEqual([])
  })

  it('is refused when a lease is lost before it is sent, and keeps the other leases', async () => {
    const { messages, channel, tag } = await pulled('a', 'b')
    peer.link.flowing = false
    void sluice.publish('x', 'fills the socket').catch(() => {})
    await turns()
    const step = codeOf(
      sluice.atomic((tx) => {
        for (const message of messages) tx.ack(message)
      }),
    )
    await turns()
    peer.link.leasesLost(channel, 101, { firstTag: tag, count: 1 })
    await turns()
    peer.link.flowing = true
    peer.link.drained()
    expect(await step).toBe('LEASE_LOST')
    expect(peer.link.named('ATOMIC')).toEqual([])
    expect(await codeOf(messages[0]!.ack())).toBe('LEASE_LOST')
    expect(await codeOf(messages[1]!.ack())).toBe('done')
  })

  it('is refused when it is too large', async () => {
    const { messages } = await pulled('a')
    const large = sluice.atomic((tx) => {
      tx.ack(messages[0]!)
      for (let i = 0; i < 5; i++) tx.publish('x', 'x'.repeat(1_000_000))
    })
    await expect(large).rejects.toMatchObject({ code: 'TRANSACTION_TOO_LARGE' })
    const wide = sluice.atomic((tx) => {
      for (let i = 0; i <= LIMITS.atomicBatchesMax; i++) tx.publish(`q${i}`, 'x')
    })
    await expect(wide).rejects.toMatchObject({ code: 'TRANSACTION_TOO_LARGE' })
    expect(await codeOf(messages[0]!.ack())).toBe('done')
    const fits = sluice.atomic((tx) => {
      for (let i = 0; i < 3; i++) tx.publish(`x${i}`, 'x'.repeat(600_000))
    })
    await stepped()
    expect(peer.link.atomics[0]!.batches.map(({ count }) => count)).toEqual([1, 1, 1])
    peer.link.atomicOk(1, 4, 5, 6)
    expect((await fits).map(({ offset }) => offset)).toEqual([4, 5, 6])
  })

  it('has several batches for a queue, in order, when one batch is too small', async () => {
    const receipts = sluice.atomic((tx) => {
      tx.publish('x', 'x'.repeat(600_000))
      tx.publish('x', 'x'.repeat(600_000))
      tx.publish('y', 'y')
      tx.publish('x', 'x'.repeat(200_000))
    })
    await stepped()
    const { batches } = peer.link.atomics[0]!
    expect(batches.map(({ queue, count }) => [queue, count])).toEqual([
      ['x', 1],
      ['x', 2],
      ['y', 1],
    ])
    peer.link.atomicOk(1, 4, 5, 9)
    expect((await receipts).map(({ offset }) => offset)).toEqual([4, 5, 9, 6])
  })
})

describe('an atomic step without an answer', () => {
  it('has an unknown outcome at its deadline, and keeps its messages claimed until the answer', async () => {
    const { messages, tag } = await pulled('a', 'b')
    const steps = messages.map((message) =>
      sluice.atomic((tx) => tx.ack(message), { timeout: 20 }).catch((error: unknown) => error),
    )
    for (const step of steps) expect(await step).toMatchObject({ code: 'TIMEOUT', outcome: 'unknown' })
    expect(await codeOf(messages[0]!.ack())).toBe('ALREADY_SETTLED')
    peer.link.refuse(1, 'DISK_LOW')
    peer.link.atomicOk(2)
    await turns()
    expect(await codeOf(messages[0]!.ack())).toBe('done')
    expect(await codeOf(messages[1]!.ack())).toBe('ALREADY_SETTLED')
    expect(peer.link.settles).toMatchObject([{ firstTag: tag, count: 1 }])
  })

  it('delays `close` until it is answered', async () => {
    const step = sluice.atomic((tx) => tx.publish('x', 'one'))
    await stepped()
    const closed = sluice.close()
    await turns()
    peer.link.atomicOk(1, 0)
    await closed
    expect(await step).toEqual([{ offset: 0, duplicate: false }])
  })

  it('is not confirmed by the answer to a batch, and its own answer must match it', async () => {
    const lost: string[] = []
    sluice.on('disconnected', ({ error }) => lost.push(error.code))
    const step = sluice.atomic((tx) => tx.publish('x', 'one'))
    for (const answer of [
      () => peer.link.confirm([1, 0]),
      () => peer.link.atomicOk(1),
      () => peer.link.atomicOk(1, 2 ** 60),
    ]) {
      await stepped()
      const dialled = peer.dialled()
      answer()
      await dialled
    }
    await stepped()
    expect(lost).toEqual(['MALFORMED_FRAME', 'MALFORMED_FRAME', 'MALFORMED_FRAME'])
    peer.link.atomicOk(1, 0)
    await step
  })
})

it('a waiting step is sent with the leases that its messages have at that time', async () => {
  peer.grants = (claims) => claims.map(({ attempt }, index) => ({ index, tag: 70 + 2 * index, attempt }))
  await sluice.close({ timeout: 1 }).catch(() => {})
  sluice = await peer.connect({ maxInFlight: 1 })
  const { messages } = await pulled('a', 'b')
  const first = sluice.publish('q', 'first')
  await turns()
  const done = sluice.atomic((tx) => {
    for (const message of messages) tx.ack(message)
    tx.publish('q', 'second')
  })
  await turns()
  const dialled = peer.dialled()
  peer.link.cut()
  await dialled
  await until(() => peer.link.named('SUBSCRIBE').length > 0)
  await turns(10)
  expect(peer.link.atomics).toEqual([])
  peer.link.confirm([1, 0])
  await first
  await until(() => peer.link.atomics.length > 0)
  expect(peer.link.atomics[0]!.acks).toMatchObject([
    { firstTag: 70, count: 1 },
    { firstTag: 72, count: 1 },
  ])
  peer.link.atomicOk(2, 1)
  expect(await done).toMatchObject([{ offset: 1 }])
})

it('a step that is refused because an earlier sending was refused drops its reference to the shared frames', () => {
  const step = new Step([], [{ queue: 'q', record: new Uint8Array(8) }])
  const frames = Buffer.alloc(step.end + 4096)
  step.number = 1
  step.seal(frames, 100, 0)
  step.unsend()
  expect([step.bytes.length, step.at, step.number]).toEqual([0, 0, 0])
})
