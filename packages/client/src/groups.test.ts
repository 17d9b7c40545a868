import { DELIVER_FLAG, OUTCOME } from '@sluice/protocol'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { Sluice } from './client.js'
import { DeadLetter, Retry, type Message } from './message.js'
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

const bodies = (messages: readonly Message[]): unknown[] => messages.map(({ body }) => body)
const settled = (): number => peer.link.settles.reduce((sum, { count }) => sum + count, 0)
const started = (): number => peer.link.started.reduce((sum, { count }) => sum + count, 0)

describe('a worker of batches', () => {
  it('asks for twice the number of messages that its handlers can have', async () => {
    sluice.consume('q', { concurrency: 3, batch: { size: 100 } }, () => {})
    await peer.subscribed()
    expect(control(peer.link.named('SUBSCRIBE')[0]!)).toMatchObject({ messages: 600 })
  })

  it('gathers up to a size, names the whole batch as started, and acknowledges all of it', async () => {
    const batches: unknown[] = []
    sluice.consume('q', { batch: { size: 4, wait: '10s' } }, async (messages) => {
      batches.push([bodies(messages), started()])
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, texts(3))
    await turns(10)
    expect([batches, started()]).toEqual([[], 0])
    peer.link.deliver(channel, 101, texts(5, 3), { offset: 3 })
    await until(() => settled() === 8)
    expect(batches).toEqual([
      [['0', '1', '2', '3'], 4],
      [['4', '5', '6', '7'], 8],
    ])
    expect(peer.link.started).toEqual([
      { firstTag: tag, count: 4 },
      { firstTag: tag + 4, count: 4 },
    ])
    expect(peer.link.settles.every(({ outcome }) => outcome === OUTCOME.ack)).toBe(true)
  })

  it('waits for the set time after the first message, and not at all by default', async () => {
    const took: number[] = []
    sluice.consume('q', { batch: { size: 100, wait: 40 } }, (messages) => {
      took.push(messages.length, performance.now() - beganMs)
    })
    const channel = await peer.subscribed()
    const beganMs = performance.now()
    peer.link.deliver(channel, 101, texts(2))
    setTimeout(() => peer.link.deliver(channel, 101, texts(1, 2), { offset: 2 }), 20)
    await until(() => took.length === 2)
    expect(took[0]).toBe(3)
    expect(took[1]).toBeGreaterThan(35)
    expect(took[1]).toBeLessThan(1000)
    const sizes: number[] = []
    sluice.consume('r', { batch: { size: 100 } }, (messages) => void sizes.push(messages.length))
    peer.link.deliver(await peer.subscribed(2), 102, texts(5))
    await turns(10)
    expect(sizes).toEqual([5])
  })

  it('runs no more handlers than its concurrency', async () => {
    const ends: (() => void)[] = []
    const sizes: number[] = []
    sluice.consume('q', { concurrency: 2, prefetch: 50, batch: { size: 5 } }, (messages) => {
      sizes.push(messages.length)
      return new Promise<void>((resolve) => ends.push(resolve))
    })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, texts(18))
    await turns(10)
    expect([sizes, started()]).toEqual([[5, 5], 10])
    ends[0]!()
    await until(() => sizes.length === 3)
    ends[1]!()
    await until(() => sizes.length === 4)
    expect(sizes).toEqual([5, 5, 5, 3])
    ends[2]!()
    ends[3]!()
    await until(() => settled() === 18)
  })

  it('applies one outcome to all messages of a batch that the handler did not settle itself', async () => {
    const failures: unknown[] = []
    sluice.on('handlerError', ({ offset, messages }) => failures.push([offset, messages]))
    sluice.consume('q', { prefetch: 20, batch: { size: 3 } }, async (messages) => {
      void messages[1]!.ack()
      if (messages[0]!.body === '0') throw new Error('it broke')
      if (messages[0]!.body === '3') throw new Retry({ delay: '1m', reason: 'closed' })
      if (messages[0]!.body === '6') throw new DeadLetter('no')
      await messages[0]!.release()
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, texts(12))
    await until(() => settled() === 12)
    const outcomes = peer.link.settles
      .flatMap(({ firstTag, count, outcome, delayMs, reason }) =>
        Array.from({ length: count }, (_, i) => [firstTag + i - tag, outcome, delayMs, reason] as const),
      )
      .toSorted((a, b) => a[0] - b[0])
    const { ack, retry, release, deadLetter } = OUTCOME
    expect(outcomes.map(([, outcome]) => outcome)).toEqual([
      ...[retry, ack, retry],
      ...[retry, ack, retry],
      ...[deadLetter, ack, deadLetter],
      ...[release, ack, ack],
    ])
    expect([outcomes[0], outcomes[2], outcomes[3], outcomes[5], outcomes[8]]).toEqual([
      [0, retry, undefined, 'it broke'],
      [2, retry, undefined, 'it broke'],
      [3, retry, 60_000, 'closed'],
      [5, retry, 60_000, 'closed'],
      [8, deadLetter, undefined, 'no'],
    ])
    expect(failures).toEqual([[0, 3]])
  })

  it('puts a message that must be alone into its own batch', async () => {
    const batches: unknown[] = []
    const ends: (() => void)[] = []
    sluice.consume('q', { concurrency: 3, prefetch: 20, batch: { size: 4, wait: '10s' } }, (messages) => {
      batches.push(bodies(messages))
      return new Promise<void>((resolve) => ends.push(resolve))
    })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, ['a', 'b'])
    peer.link.deliver(channel, 101, ['suspect'], { flags: DELIVER_FLAG.alone, offset: 2 })
    peer.link.deliver(channel, 101, ['c', 'd', 'e', 'f'], { offset: 3 })
    await turns(10)
    expect(batches).toEqual([['a', 'b']])
    ends[0]!()
    await turns(10)
    expect(batches).toEqual([['a', 'b'], ['suspect']])
    ends[1]!()
    await turns(10)
    expect(batches).toEqual([['a', 'b'], ['suspect'], ['c', 'd', 'e', 'f']])
  })

  it('aborts the signal of a batch when one of its leases is lost, and keeps the other leases', async () => {
    let signal!: AbortSignal
    let late!: AbortSignal
    let batch: Message[] = []
    sluice.consume('q', { batch: { size: 3 } }, async (messages, context) => {
      batch = messages
      ;({ signal } = context)
      await new Promise((resolve) => signal.addEventListener('abort', resolve))
      late = context.signal
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, texts(3))
    await until(() => batch.length === 3)
    peer.link.leasesLost(channel, 101, { firstTag: tag + 1, count: 1 })
    await until(() => settled() === 2)
    expect(signal.reason).toMatchObject({ code: 'LEASE_LOST' })
    expect(late.aborted).toBe(true)
    expect(peer.link.settles).toMatchObject([
      { firstTag: tag, outcome: OUTCOME.ack },
      { firstTag: tag + 2, outcome: OUTCOME.ack },
    ])
  })

  it('drops lost messages that have not started, and frees their credit', async () => {
    const batches: unknown[] = []
    sluice.consume('q', { prefetch: 4, batch: { size: 4, wait: '10s' } }, (messages) => {
      batches.push(bodies(messages))
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, texts(3))
    await turns()
    peer.link.leasesLost(channel, 101, { firstTag: tag, count: 2 })
    peer.link.deliver(channel, 101, ['x', 'y', 'z'], { offset: 3 })
    await until(() => batches.length === 1)
    expect(batches).toEqual([['2', 'x', 'y', 'z']])
    expect(peer.link.closed).toBe(false)
  })

  it('releases gathered messages when it closes, and starts empty on another connection', async () => {
    const batches: unknown[] = []
    const worker = sluice.consume('q', { batch: { size: 4, wait: '10s' } }, (messages) => {
      batches.push(bodies(messages))
    })
    let channel = await peer.subscribed()
    peer.link.deliver(channel, 101, texts(3))
    await turns()
    peer.link.cut()
    await peer.dialled()
    channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, ['a', 'b'])
    await turns()
    await worker.close()
    expect(batches).toEqual([])
    expect(peer.link.settles).toMatchObject([{ firstTag: tag, count: 2, outcome: OUTCOME.release }])
    expect(peer.link.named('STARTED')).toEqual([])
  })

  it('leaves no timer behind when it closes at once', async () => {
    // The process starts and stops other timers in the meantime, but no other timer waits this long.
    const waitMs = 59 * 60_000
    const set = vi.spyOn(globalThis, 'setTimeout')
    const cleared = vi.spyOn(globalThis, 'clearTimeout')
    const own = (): unknown[] =>
      set.mock.results.flatMap(({ value }, i) =>
        set.mock.calls[i]?.[1] === waitMs ? [value as unknown] : [],
      )
    try {
      const worker = sluice.consume('q', { batch: { size: 4, wait: waitMs } }, () => {})
      const channel = await peer.subscribed()
      peer.link.deliver(channel, 101, texts(2))
      await until(() => own().length > 0)
      await worker.close({ timeout: 0 })
      await turns()
      expect(own()).toHaveLength(1)
      expect(cleared.mock.calls.map(([timer]) => timer)).toContain(own()[0])
    } finally {
      set.mockRestore()
      cleared.mockRestore()
    }
  })

  it('waits for its handlers when it closes', async () => {
    let end!: () => void
    const worker = sluice.consume('q', { batch: { size: 2 } }, () => new Promise<void>((r) => (end = r)))
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, texts(3))
    await until(() => end !== undefined)
    let isClosed = false
    const closed = worker.close().then(() => (isClosed = true))
    await turns(10)
    expect(isClosed).toBe(false)
    end()
    await closed
    expect(peer.link.settles).toMatchObject([
      { count: 1, outcome: OUTCOME.release },
      { count: 2, outcome: OUTCOME.ack },
    ])
  })

  it('refuses impossible sizes', () => {
    const wrong: [object, string][] = [
      [{ batch: { size: 0 } }, 'INVALID_ARGUMENT'],
      [{ batch: { size: 65_536 } }, 'INVALID_ARGUMENT'],
      [{ batch: {} }, 'INVALID_ARGUMENT'],
      [{ batch: 5 }, 'INVALID_ARGUMENT'],
      [{ batch: { size: 5, wait: 'long' } }, 'INVALID_ARGUMENT'],
      [{ batch: { size: 5, max: 1 } }, 'INVALID_ARGUMENT'],
      [{ prefetch: 4, batch: { size: 5 } }, 'OPTION_CONFLICT'],
      [{ ordering: 'strict' }, 'INVALID_ARGUMENT'],
    ]
    for (const [options, code] of wrong)
      expect(() => sluice.consume('q', options, () => {})).toThrow(expect.objectContaining({ code }))
    expect(wrong.length).toBe(8)
  })
})

describe('a worker that keeps keys in order', () => {
  interface Run {
    readonly body: unknown
    readonly end: () => void
  }

  const running = (options: object): Run[] => {
    const runs: Run[] = []
    sluice.consume('q', { ordering: 'key', ...options }, ({ body }) => {
      return new Promise<void>((resolve) => runs.push({ body, end: resolve }))
    })
    return runs
  }

  const keyed = (...keys: string[]): { each: { key: string }[] } => ({ each: keys.map((key) => ({ key })) })

  it('handles messages of a key one after the other, and others in parallel', async () => {
    const runs = running({ concurrency: 3, prefetch: 20 })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(
      channel,
      101,
      ['a1', 'a2', 'a3', 'b1', 'c1', 'd1'],
      keyed(...'aaabcd'.split('')),
    )
    await turns(10)
    expect(runs.map(({ body }) => body)).toEqual(['a1', 'b1', 'c1'])
    expect(peer.link.started).toEqual([
      { firstTag: tag, count: 1 },
      { firstTag: tag + 3, count: 2 },
    ])
    runs[1]!.end()
    await turns(10)
    // Another handler may run, but not for the key of a1, whose handler still runs.
    expect(runs.map(({ body }) => body)).toEqual(['a1', 'b1', 'c1', 'd1'])
    runs[2]!.end()
    await turns(10)
    expect(runs.length).toBe(4)
    runs[0]!.end()
    await turns(10)
    expect(runs.map(({ body }) => body)).toEqual(['a1', 'b1', 'c1', 'd1', 'a2'])
    runs[4]!.end()
    await until(() => runs.length === 6)
    runs[3]!.end()
    runs[5]!.end()
    await until(() => settled() === 6)
  })

  it('does not let a key with a long line starve other keys, or messages without a key', async () => {
    const runs = running({ concurrency: 2, prefetch: 100 })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, texts(50), { options: { key: 'busy' } })
    peer.link.deliver(channel, 101, ['x', 'y'], { offset: 50 })
    await turns(10)
    expect(runs.map(({ body }) => body)).toEqual(['0', 'x'])
    runs[1]!.end()
    await turns(10)
    expect(runs.map(({ body }) => body)).toEqual(['0', 'x', 'y'])
  })

  it('frees a key whose message is lost, started or not', async () => {
    const runs = running({ concurrency: 2, prefetch: 20 })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, ['a1', 'a2', 'a3'], keyed('a', 'a', 'a'))
    await turns(10)
    expect(runs.map(({ body }) => body)).toEqual(['a1'])
    peer.link.leasesLost(channel, 101, { firstTag: tag, count: 2 })
    await turns(10)
    expect(runs.map(({ body }) => body)).toEqual(['a1', 'a3'])
    for (const { end } of runs) end()
    await until(() => settled() === 1)
    expect(peer.link.settles).toMatchObject([{ firstTag: tag + 2, outcome: OUTCOME.ack }])
  })

  it('gives each batch at most one message of a key', async () => {
    const batches: unknown[] = []
    sluice.consume('q', { ordering: 'key', batch: { size: 10 } }, async (messages) => {
      batches.push(bodies(messages))
      await turns(1)
    })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, ['a1', 'a2', 'b1', 'a3', 'b2'], keyed('a', 'a', 'b', 'a', 'b'))
    await until(() => settled() === 5)
    expect(batches).toEqual([['a1', 'b1'], ['a2', 'b2'], ['a3']])
  })

  it('releases waiting messages of a key when it closes', async () => {
    const ends: (() => void)[] = []
    const worker = sluice.consume('q', { ordering: 'key', concurrency: 2, prefetch: 9 }, () => {
      return new Promise<void>((resolve) => ends.push(resolve))
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, ['a1', 'a2', 'a3'], keyed('a', 'a', 'a'))
    await until(() => ends.length === 1)
    const closed = worker.close()
    await turns(10)
    ends[0]!()
    await closed
    expect(peer.link.settles).toMatchObject([
      { firstTag: tag + 1, count: 2, outcome: OUTCOME.release },
      { firstTag: tag, count: 1, outcome: OUTCOME.ack },
    ])
  })

  it('counts correctly when its connection is lost with messages in every state', async () => {
    const runs = running({ concurrency: 2, prefetch: 9 })
    let channel = await peer.subscribed()
    peer.link.deliver(channel, 101, ['a1', 'a2', 'b1', 'c1'], keyed('a', 'a', 'b', 'c'))
    await turns(10)
    peer.link.cut()
    await peer.dialled()
    channel = await peer.subscribed()
    // A message that must be alone starts only when no started message is unsettled.
    peer.link.deliver(channel, 101, ['suspect'], { flags: DELIVER_FLAG.alone })
    await turns(10)
    expect(runs.map(({ body }) => body)).toEqual(['a1', 'b1'])
    // The handlers of the lost connection still count against the concurrency.
    runs[0]!.end()
    await until(() => runs.length === 3)
    expect(runs[2]!.body).toBe('suspect')
  })

  it('needs no lines with a concurrency of 1', async () => {
    const runs = running({ concurrency: 1, prefetch: 9 })
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, ['a1', 'a2', 'b1'], keyed('a', 'a', 'b'))
    for (let i = 0; i < 3; i++) {
      await until(() => runs.length === i + 1)
      runs[i]!.end()
    }
    expect(runs.map(({ body }) => body)).toEqual(['a1', 'a2', 'b1'])
  })
})
