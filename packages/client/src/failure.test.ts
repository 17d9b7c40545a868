import { OP, SluiceError } from '@sluice/protocol'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Sluice } from './client.js'
import { TRACED_MAX } from './failure.js'
import { Peer, turns, until } from './testing/peer.js'

let peer: Peer
let sluice: Sluice

beforeEach(async () => {
  peer = new Peer()
  sluice = await peer.connect()
})

afterEach(async () => {
  await sluice.close({ timeout: 0 })
})

/** Returns the error with which `theCallerOfThis` rejects. The stack of the error must contain that name. */
async function failureOf(call: () => Promise<unknown>): Promise<SluiceError> {
  async function theCallerOfThis(): Promise<void> {
    await call()
  }
  try {
    await theCallerOfThis()
  } catch (error) {
    return error as SluiceError
  }
  throw new Error('it did not fail')
}

describe('an error that comes later', () => {
  const refuse = (opcode: number): void => {
    peer.replies[opcode] = (frame, link) =>
      link.error('QUEUE_NOT_FOUND', 'request', frame.channel, frame.correlation)
  }
  const calls: [string, object, () => Promise<unknown>][] = [
    ['publish', { queue: 'orders' }, () => sluice.publish('orders', 'x')],
    ['publish, too late', { queue: 'orders' }, () => sluice.publish('orders', 'x', { timeout: 1 })],
    [
      'publishBatch',
      { queue: 'orders' },
      () => sluice.publishBatch('orders', [{ body: 'x' }, { body: 'y' }]),
    ],
    ['atomic', {}, () => sluice.atomic((tx) => tx.publish('orders', 'x'))],
    ['queues.get', { queue: 'orders' }, () => sluice.queues.get('orders')],
    ['queues.cancel', { queue: 'orders', offset: 7 }, () => sluice.queues.cancel('orders', { offset: 7 })],
    ['pull', { queue: 'orders' }, () => sluice.pull('orders', { wait: '20s' })],
    [
      'an iterator',
      { queue: 'orders' },
      async () => {
        for await (const message of sluice.messages('orders', { missing: 'fail' })) await message.ack()
      },
    ],
    [
      'closing a worker',
      { queue: 'orders' },
      async () => {
        const worker = sluice.consume('orders', () => new Promise(() => {}))
        peer.link.deliver(await peer.subscribed(), 101, ['x'])
        await until(() => peer.link.started.length > 0)
        await turns()
        await worker.close({ timeout: 10 })
      },
    ],
    [
      'waiting for a connection',
      {},
      async () => {
        peer.refusals = 1000
        peer.link.cut()
        await turns()
        await sluice.ready({ timeout: 10 })
      },
    ],
  ]
  for (const [name, names, call] of calls) {
    it(`has the line of the caller, and names its queue and offset: ${name}`, async () => {
      peer.replies[OP.PUBLISH] = (_frame, link) => {
        const { number } = link.published.at(-1)!
        if (name !== 'publish, too late') link.refuse(number, 'QUEUE_NOT_FOUND')
      }
      peer.replies[OP.ATOMIC] = (_frame, link) => link.refuse(link.atomics.at(-1)!.number, 'QUEUE_NOT_FOUND')
      refuse(OP.GET)
      refuse(OP.CANCEL)
      if (!name.startsWith('closing')) refuse(OP.SUBSCRIBE)
      const error = await failureOf(call)
      expect(error).toBeInstanceOf(SluiceError)
      expect(error).toMatchObject({ queue: undefined, offset: undefined, ...names })
      expect(error.stack).toMatch(/^SluiceError: .*\n/)
      expect(error.stack).toContain('theCallerOfThis')
      expect(error.stack).toContain('failure.test')
    })
  }

  it('has the line of the caller when the client is closed', async () => {
    await sluice.close()
    const closed: (() => Promise<unknown>)[] = [
      () => sluice.publish('orders', 'x'),
      () => sluice.publishBatch('orders', [{ body: 'x' }]),
      () => sluice.queues.get('orders'),
      () => sluice.pull('orders'),
      async () => {
        for await (const message of sluice.messages('orders')) await message.ack()
      },
    ]
    for (const call of closed) {
      const error = await failureOf(call)
      expect(error.code).toBe('CLOSED')
      expect(error.stack).toContain('theCallerOfThis')
    }
    expect(closed).toHaveLength(5)
  })

  it('has the line of the caller when a deep body is invalid', async () => {
    const body = { a: { b: { c: { d: { e: [{ f: new Map() }] } } } } }
    const error = await failureOf(() => sluice.publish('orders', body))
    expect(error.code).toBe('INVALID_BODY')
    expect(error.stack).toContain('theCallerOfThis')
  })

  it('is separate for each caller of a batch, up to a limit per turn', async () => {
    const publishes = Array.from({ length: TRACED_MAX + 10 }, () =>
      sluice.publish('q', 'x').catch((error: unknown) => error),
    )
    await turns()
    await sluice.close({ timeout: 0 })
    const errors = (await Promise.all(publishes)) as SluiceError[]
    expect(new Set(errors).size).toBe(TRACED_MAX + 1)
    for (const error of errors)
      expect(error).toMatchObject({ code: 'CLOSED', outcome: 'unknown', queue: 'q' })
  })

  it('names the message of a settle, and a settle that fails twice rejects once', async () => {
    peer.replies[OP.SETTLE] = undefined
    const [message] = await (async () => {
      const pulled = sluice.pull('q', { wait: '20s' })
      peer.link.deliver(await peer.subscribed(), 101, ['x'], { offset: 31 })
      return pulled
    })()
    const ack = message!.ack()
    const controller = new AbortController()
    const get = sluice.queues.get('q', { signal: controller.signal })
    await turns()
    controller.abort()
    await expect(get).rejects.toMatchObject({ code: 'ABORTED', queue: 'q' })
    peer.link.cut()
    await expect(ack).rejects.toMatchObject({ code: 'CONNECTION_LOST', queue: 'q', offset: 31 })
    await expect(message!.ack()).rejects.toMatchObject({ code: 'ALREADY_SETTLED', queue: 'q', offset: 31 })
  })
})
