import { OP, SluiceError, type ErrorCode } from '@sluice/protocol'
import { describe, expect, it, vi } from 'vitest'
import { Feed, type FeedOptions } from './feed.js'
import type { PublishAllResult } from './options.js'
import type { Receipt } from './sending.js'
import { Peer, turns, until } from './testing/peer.js'

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

function feed(
  publish: (message: number) => Promise<Receipt>,
  options: Partial<FeedOptions<number>> = {},
): Feed<number> {
  return new Feed({
    publish,
    concurrency: 10,
    signal: undefined,
    aborted: () => new SluiceError('ABORTED', 'aborted'),
    onProgress: undefined,
    random: () => 0,
    ...options,
  })
}

function* numbers(count: number): Generator<number> {
  for (let i = 0; i < count; i++) yield i
}

async function* later(count: number): AsyncGenerator<number> {
  for (const i of numbers(count)) {
    if (i % 50 === 0) await turn()
    yield i
  }
}

const accept = async (offset: number): Promise<Receipt> => {
  await turn()
  return { offset, duplicate: offset % 5 === 0 }
}

describe('publishing all', () => {
  it.each([
    ['an array', [...numbers(2500)]],
    ['a generator', numbers(2500)],
    ['an async generator', later(2500)],
  ])('from %s keeps its concurrency and order, counts messages, and reports progress', async (_, source) => {
    let underWay = 0
    let most = 0
    const order: number[] = []
    const progress: PublishAllResult[] = []
    const publish = async (message: number): Promise<Receipt> => {
      order.push(message)
      most = Math.max(most, ++underWay)
      const receipt = await accept(message)
      underWay--
      return receipt
    }
    const onProgress = (told: PublishAllResult): void => void progress.push(told)
    expect(await feed(publish, { onProgress }).run(source)).toEqual({ published: 2000, duplicates: 500 })
    expect(most).toBe(10)
    expect(order).toEqual([...numbers(2500)])
    expect(progress.map(({ published, duplicates }) => published + duplicates)).toEqual([1000, 2000, 2500])
  })

  it('resolves at once if there is nothing to publish', async () => {
    expect(await feed(accept).run([])).toEqual({ published: 0, duplicates: 0 })
  })

  it.each(['QUEUE_FULL', 'DEDUP_FULL', 'DISK_LOW', 'MEMORY_FULL', 'TOO_MANY_WAITING'] as const)(
    'publishes messages refused with %s again, in order, before it reads more',
    async (code) => {
      let read = 0
      let readAtFirst: number | undefined
      const tries = new Map<number, number>()
      const accepted: number[] = []
      const publish = async (message: number): Promise<Receipt> => {
        const attempt = (tries.get(message) ?? 0) + 1
        tries.set(message, attempt)
        await turn()
        if (attempt > 1) expect(read).toBe((readAtFirst ??= read))
        if (message >= 4 && message < 8 && attempt < 3) {
          throw new SluiceError(code, 'full')
        }
        accepted.push(message)
        return { offset: message, duplicate: false }
      }
      function* source(): Generator<number> {
        for (const i of numbers(20)) {
          read++
          yield i
        }
      }
      expect(await feed(publish).run(source())).toEqual({ published: 20, duplicates: 0 })
      expect(accepted.filter((message) => message >= 4 && message < 8)).toEqual([4, 5, 6, 7])
      expect(accepted.toSorted((a, b) => a - b)).toEqual([...numbers(20)])
    },
  )

  it('ends with the first failure that is not a lack of room, reads no more, and waits for unconfirmed messages', async () => {
    let left = false
    let settled = 0
    function* source(): Generator<number> {
      try {
        yield* numbers(100)
      } finally {
        left = true
      }
    }
    const publish = async (message: number): Promise<Receipt> => {
      await turn()
      settled++
      if (message === 3) throw new SluiceError('INVALID_BODY', 'bad')
      await turn()
      return { offset: message, duplicate: false }
    }
    await expect(feed(publish).run(source())).rejects.toMatchObject({ code: 'INVALID_BODY' })
    expect(left).toBe(true)
    expect(settled).toBe(10)
  })

  it('rejects with the error of its source or its listener', async () => {
    const broken = new Error('broken')
    const fail = (): never => {
      throw broken
    }
    const sources: Iterable<number>[] = [
      { [Symbol.iterator]: fail },
      { [Symbol.iterator]: () => ({ next: fail }) },
      { [Symbol.iterator]: () => ({ next: () => Promise.reject(broken) as never, return: fail }) },
    ]
    for (const source of sources) await expect(feed(accept).run(source)).rejects.toBe(broken)
    await expect(feed(accept, { onProgress: fail }).run([1])).rejects.toBe(broken)
    for (const source of [null, undefined, 5, {}]) {
      const invalid = { code: 'INVALID_ARGUMENT' satisfies ErrorCode }
      await expect(feed(accept).run(source as never)).rejects.toMatchObject(invalid)
    }
  })

  it('publishes refused messages again while its source is waiting', async () => {
    let isAccepted = false
    let tries = 0
    async function* source(): AsyncGenerator<number> {
      yield 1
      // The source may wait until the published messages are consumed.
      await until(() => isAccepted)
    }
    const publish = async (message: number): Promise<Receipt> => {
      if (++tries < 3) throw new SluiceError('QUEUE_FULL', 'full')
      isAccepted = true
      return accept(message)
    }
    expect(await feed(publish).run(source())).toEqual({ published: 1, duplicates: 0 })
  })

  it('rejects when its listener rejects, and when the source yields an invalid item', async () => {
    const broken = new Error('broken')
    const onProgress = () => Promise.reject(broken) as never
    await expect(feed(accept, { onProgress }).run(later(3000))).rejects.toBe(broken)
    // At the end the feed does not wait for the listener, and no rejection is unhandled.
    expect(await feed(accept, { onProgress }).run([1])).toMatchObject({ published: 1 })
    const sources = [() => undefined, () => Promise.resolve(undefined)]
    for (const next of sources) {
      const source = { [Symbol.asyncIterator]: () => ({ next }) } as never
      await expect(feed(accept).run(source)).rejects.toThrow(TypeError)
    }
  })

  it('adds one listener to a signal that many feeds share', async () => {
    const { signal } = new AbortController()
    const add = vi.spyOn(signal, 'addEventListener')
    const feeds = Array.from({ length: 20 }, () => feed(accept, { signal }).run(later(10)))
    await Promise.all(feeds)
    expect(add).toHaveBeenCalledOnce()
  })

  it('ends when its signal is aborted, even while it pauses or waits for its source', async () => {
    const cases: [AsyncIterable<number> | Iterable<number>, (message: number) => Promise<Receipt>][] = [
      [{ [Symbol.asyncIterator]: () => ({ next: () => new Promise(() => {}) }) }, accept],
      [numbers(5), () => Promise.reject(new SluiceError('QUEUE_FULL', 'full', { retryAfterMs: 60_000 }))],
      [numbers(5), () => new Promise(() => {})],
    ]
    for (const [source, publish] of cases) {
      const abort = new AbortController()
      const running = feed(publish, { signal: abort.signal }).run(source)
      for (let i = 0; i < 3; i++) await turn()
      abort.abort()
      await expect(running).rejects.toMatchObject({ code: 'ABORTED' })
    }
    await expect(feed(accept, { signal: AbortSignal.abort() }).run([1])).rejects.toMatchObject({
      code: 'ABORTED',
    })
  })
})

describe('a client', () => {
  it('publishes all messages with their options', async () => {
    const peer = new Peer()
    peer.confirmAll()
    const sluice = await peer.connect()
    const messages = [...numbers(5)].map((i) => ({ body: `m${i}`, key: 'k', id: `${i}` }))
    expect(await sluice.publishAll('a', messages, { concurrency: 2 })).toEqual({
      published: 5,
      duplicates: 0,
    })
    expect(peer.link.published.flatMap(({ bodies }) => bodies)).toEqual(messages.map(({ body }) => body))
    await expect(sluice.publishAll('a', [{ body: 1, id: '' }])).rejects.toMatchObject({ code: 'INVALID_ID' })
    await expect(sluice.publishAll('a', [], { concurrency: 0 })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    })
    await sluice.close({ timeout: 1 })
  })

  it('limits waiting publishes, and accepts more once those are sent', async () => {
    const peer = new Peer()
    const sluice = await peer.connect({ maxInFlight: 1, maxWaitingBytes: 2048 })
    const results = [sluice.publish('a', 'first')]
    await turns()
    const sizes = 'x'.repeat(400)
    for (let i = 0; i < 3; i++) results.push(sluice.publish('a', sizes))
    await expect(sluice.publish('a', 'over')).rejects.toMatchObject({
      code: 'TOO_MANY_WAITING',
      retryable: true,
    })
    await expect(sluice.publishBatch('a', [{ body: 'over' }])).rejects.toMatchObject({
      code: 'TOO_MANY_WAITING',
    })
    peer.confirmAll()
    peer.link.confirm([1, 0])
    await Promise.all(results)
    await sluice.publish('a', 'again')
    await sluice.close({ timeout: 1 })
  })

  it('frees the memory of publishes whose callers gave up while there was no connection', async () => {
    const peer = new Peer()
    const sluice = await peer.connect({ maxWaitingBytes: 2048 })
    delete peer.replies[OP.HELLO]
    peer.link.cut()
    const lost = [...numbers(3)].map(() => sluice.publish('a', 'x'.repeat(400), { timeout: 5 }))
    await expect(sluice.publish('a', 'over')).rejects.toMatchObject({ code: 'TOO_MANY_WAITING' })
    for (const result of lost) await expect(result).rejects.toMatchObject({ code: 'TIMEOUT' })
    let taken: Promise<Receipt> | undefined
    await until(() => {
      taken = sluice.publish('a', 'again', { timeout: 60_000 })
      taken.catch(() => {})
      return true
    })
    await turns()
    expect(sluice.connected).toBe(false)
    await sluice.close({ timeout: 1 }).catch(() => {})
    await expect(taken).rejects.toMatchObject({ code: 'CLOSED' })
  })
})
