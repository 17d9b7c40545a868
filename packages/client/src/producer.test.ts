import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  batchFollows,
  ERRORS,
  LIMITS,
  OP,
  publishBatchStart,
  readU32,
} from '@sluice/protocol'
import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { packBody } from './body.js'
import type { Sluice } from './client.js'
import { Peer, published, turns, until } from './testing/peer.js'

let peer: Peer
let sluice: Sluice

beforeEach(() => {
  peer = new Peer()
})

afterEach(async () => {
  await sluice.close({ timeout: 1 }).catch(() => {})
})

describe('batching', () => {
  it('sends the publishes of one turn as one batch per queue, in one write', async () => {
    peer.confirmAll()
    sluice = await peer.connect()
    const before = peer.link.writes
    const receipts = await Promise.all([
      sluice.publish('a', 'one'),
      sluice.publish('b', 'two'),
      sluice.publish('a', 'three'),
      // This publish comes from a continuation of the same turn.
      Promise.resolve().then(() => sluice.publish('b', 'four')),
    ])
    expect(peer.link.writes - before).toBe(1)
    expect(peer.link.published.map(({ queue, number, bodies }) => [queue, number, bodies])).toEqual([
      ['a', 1, ['one', 'three']],
      ['b', 2, ['two', 'four']],
    ])
    expect(receipts.map(({ offset, duplicate }) => [offset, duplicate])).toEqual([
      [0, false],
      [2, false],
      [1, false],
      [3, false],
    ])
  })

  it('starts another batch at the target size, and sends a larger message alone', async () => {
    peer.confirmAll()
    sluice = await peer.connect()
    const text = 'x'.repeat(20_000)
    const large = 'y'.repeat(100_000)
    const results = [1, 2, 3, 4].map(() => sluice.publish('a', text))
    results.push(sluice.publish('a', large), sluice.publish('a', 'last'))
    const receipts = await Promise.all(results)
    expect(receipts.map(({ offset }) => offset)).toEqual([0, 1, 2, 3, 4, 5])
    expect(peer.link.published.map(({ bodies }) => bodies.map((body) => body.length))).toEqual([
      [20_000, 20_000, 20_000],
      [20_000],
      [100_000],
      [4],
    ])
    for (const { payload } of peer.link.named('PUBLISH').slice(0, 2))
      expect(payload.length).toBeLessThanOrEqual(LIMITS.batchBytesTarget + 256)
  })

  it('keeps batches of scheduled messages short', async () => {
    peer.confirmAll()
    sluice = await peer.connect()
    const body = 'x'.repeat(1000)
    const publishes: Promise<unknown>[] = []
    for (let i = 0; i < 40; i++)
      publishes.push(sluice.publish('a', body, i % 2 === 0 ? { delay: '1h' } : { at: new Date(4e12) }))
    await Promise.all(publishes)
    const lengths = peer.link.named('PUBLISH').map(({ payload }) => payload.length)
    expect(lengths).toHaveLength(3)
    for (const length of lengths) expect(length).toBeLessThanOrEqual(LIMITS.batchBytesScheduledTarget + 256)
  })

  it('encodes every option of a message', async () => {
    peer.confirmAll()
    sluice = await peer.connect()
    const at = new Date(1_800_000_000_000)
    await Promise.all([
      sluice.publish('a', 'b', {
        id: 'i',
        key: 'k',
        priority: 7,
        delay: '10m',
        ttl: '1h',
        headers: { h: 'v' },
      }),
      sluice.publish('a', 'b', { at }),
    ])
    const [first, second] = peer.link.published[0]!.options
    expect(first).toEqual({
      id: 'i',
      key: 'k',
      priority: 7,
      delayMs: 600_000,
      ttlMs: 3_600_000,
      headers: Object.assign(Object.create(null), { h: 'v' }),
    })
    expect(second).toEqual({ priority: 0, atMs: at.getTime() })
  })

  it('refuses values out of bounds before it sends them', async () => {
    sluice = await peer.connect()
    const refused: [Promise<unknown>, string][] = [
      [sluice.publish('a', 'b', { priority: 32 }), 'INVALID_PRIORITY'],
      [sluice.publish('a', 'b', { delay: 1, at: 1 }), 'OPTION_CONFLICT'],
      [sluice.publish('a', 'b', { delay: '5 parsecs' as never }), 'INVALID_DELAY'],
      [sluice.publish('a', 'b', { delay: -1 }), 'INVALID_DELAY'],
      [sluice.publish('a', 'b', { at: 1.5 }), 'INVALID_DELAY'],
      [sluice.publish('a', 'b', { at: new Date(NaN) }), 'INVALID_DELAY'],
      [sluice.publish('a', 'b', { ttl: 0 }), 'INVALID_TTL'],
      [sluice.publish('a', 'b', { ttl: 'soon' as never }), 'INVALID_TTL'],
      [sluice.publish('a', 'b', { key: '' }), 'INVALID_KEY'],
      [sluice.publish('a', 'b', { id: 'i'.repeat(256) }), 'INVALID_ID'],
      [sluice.publish('a', 'b', { headers: [] as never }), 'INVALID_HEADERS'],
      [sluice.publish('a', 'b', { colour: 'red' } as never), 'INVALID_ARGUMENT'],
      [sluice.publish('a b', 'b'), 'INVALID_NAME'],
      [sluice.publish('a', () => {}), 'INVALID_BODY'],
      [sluice.publish('a', 'x'.repeat(LIMITS.messageBytesDefault + 1)), 'MESSAGE_TOO_LARGE'],
      [sluice.publish('a', 'x', { signal: AbortSignal.abort() }), 'ABORTED'],
    ]
    for (const [promise, code] of refused) await expect(promise).rejects.toMatchObject({ code })
    await turns()
    expect(peer.link.named('PUBLISH')).toEqual([])
    expect(refused.length).toBe(16)
  })

  it('writes each message completely, even when reading one body publishes another message', async () => {
    peer.confirmAll()
    sluice = await peer.connect()
    const nested: Promise<unknown>[] = []
    const publishNested = (): void => void nested.push(sluice.publish('q', { nested: 'x'.repeat(100) }))
    let reads = 0
    const body = {
      get first() {
        if (++reads === 1) publishNested()
        return 1
      },
      last: { toJSON: () => 'end' },
    }
    const converted = {
      toJSON: () => {
        publishNested()
        return 'text'
      },
    }
    const packed = {
      get first() {
        if (++packs === 2) publishNested()
        return 1
      },
      last: 2,
    }
    let packs = 0
    await Promise.all([
      sluice.publish('q', converted),
      sluice.publish('q', body),
      sluice.publish('q', packed),
    ])
    await sluice.publishBatch('q', [{ body: converted }, { body: 2 }])
    await Promise.all(nested)
    const bytesOf = (value: unknown): string => Buffer.from(packBody(value)).toString()
    const other = bytesOf({ nested: 'x'.repeat(100) })
    const sent = peer.link.published.flatMap(({ bodies }) => bodies)
    expect(sent.filter((one) => one !== other)).toEqual([
      bytesOf('text'),
      bytesOf({ first: 1, last: 'end' }),
      bytesOf({ first: 1, last: 2 }),
      bytesOf('text'),
      bytesOf(2),
    ])
    expect(sent.filter((one) => one === other)).toHaveLength(nested.length)
  })

  it('publishes a batch as one atomic batch, after earlier publishes', async () => {
    peer.confirmAll()
    sluice = await peer.connect()
    const [before, batch, after] = await Promise.all([
      sluice.publish('a', 'before'),
      sluice.publishBatch('a', [{ body: 'x', key: 'k' }, { body: 'y' }]),
      sluice.publish('a', 'after'),
    ])
    expect(peer.link.published.map(({ bodies, attributes }) => [bodies, attributes])).toEqual([
      [['before'], 0],
      [['x', 'y'], BATCH_ATTRIBUTE.atomic],
      [['after'], 0],
    ])
    expect([before, ...batch, after].map(({ offset }) => offset)).toEqual([0, 1, 2, 3])
    expect(await sluice.publishBatch('a', [])).toEqual([])
    await expect(
      sluice.publishBatch('a', [{ body: 'x'.repeat(600_000) }, { body: 'x'.repeat(600_000) }]),
    ).rejects.toMatchObject({ code: 'BATCH_TOO_LARGE' })
  })
})

describe('the window', () => {
  it('holds back publishes beyond maxInFlight, and sends them in order as answers arrive', async () => {
    sluice = await peer.connect({ maxInFlight: 2 })
    const results = [0, 1, 2, 3, 4].map((i) => sluice.publish('a', `${i}`))
    await turns()
    expect(peer.link.published.map(({ bodies }) => bodies)).toEqual([['0', '1']])
    peer.link.confirm([1, 0])
    await turns()
    expect(peer.link.published.map(({ bodies }) => bodies)).toEqual([
      ['0', '1'],
      ['2', '3'],
    ])
    peer.link.confirm([2, 2])
    await turns()
    peer.link.confirm([3, 4])
    expect((await Promise.all(results)).map(({ offset }) => offset)).toEqual([0, 1, 2, 3, 4])
  })

  it('never has more unanswered batches than the broker allows', async () => {
    peer.replies[OP.HELLO] = (_frame, link) => link.helloOk({ inFlightBatchesMax: 2 })
    sluice = await peer.connect()
    const results = ['a', 'b', 'c'].map((queue) => sluice.publish(queue, 'x'))
    await turns()
    expect(peer.link.published.length).toBe(2)
    peer.link.confirm([1, 0])
    await turns()
    expect(peer.link.published.length).toBe(3)
    peer.link.confirm([2, 0], [3, 0])
    await Promise.all(results)
  })

  it('never sends a number that is too far above the lowest unanswered number, even on a reconnect', async () => {
    peer.replies[OP.HELLO] = (_frame, link) =>
      link.helloOk({ inFlightBatchesMax: peer.links.length === 1 ? 3 : 2 })
    sluice = await peer.connect()
    const results = ['a', 'b', 'c', 'd'].map((queue) => sluice.publish(queue, 'x'))
    await turns()
    peer.link.confirm([2, 0], [3, 0])
    await turns()
    // Number 4 would be three above number 1, which is unanswered.
    expect(peer.link.published.map(({ number }) => number)).toEqual([1, 2, 3])
    peer.link.confirm([1, 0])
    await turns()
    expect(peer.link.named('PUBLISH').map(({ correlation }) => correlation)).toEqual([0, 1, 2, 0])
    results.push(sluice.publish('e', 'x'), sluice.publish('f', 'x'))
    await turns()
    peer.link.cut()
    await peer.dialled()
    await until(() => peer.link.published.length === 2)
    await turns()
    expect(peer.link.published.map(({ number }) => number)).toEqual([4, 5])
    peer.link.confirm([4, 0])
    await turns()
    expect(peer.link.published.map(({ number }) => number)).toEqual([4, 5, 6])
    peer.link.confirm([5, 0], [6, 0])
    await Promise.all(results)
  })

  it('limits bytes, and sends a message that is larger than the window alone', async () => {
    peer.replies[OP.HELLO] = (_frame, link) => link.helloOk({ inFlightBytesMax: 10_000 })
    sluice = await peer.connect()
    const results = [sluice.publish('a', 'x'.repeat(50_000)), sluice.publish('b', 'small')]
    await turns()
    expect(peer.link.published.map(({ queue }) => queue)).toEqual(['a'])
    peer.link.confirm([1, 0])
    await turns()
    peer.link.confirm([2, 0])
    await Promise.all(results)
  })

  it('waits for a socket that does not drain', async () => {
    peer.confirmAll()
    sluice = await peer.connect()
    peer.link.flowing = false
    await sluice.publish('a', '1')
    const second = sluice.publish('a', '2')
    await turns()
    expect(peer.link.published.length).toBe(1)
    peer.link.flowing = true
    peer.link.drained()
    expect((await second).offset).toBe(1)
  })

  it('withdraws a waiting message when its signal is aborted, and sends the rest', async () => {
    sluice = await peer.connect({ maxInFlight: 1 })
    const first = sluice.publish('a', 'first')
    await turns()
    const controller = new AbortController()
    const second = sluice.publish('b', 'second', { signal: controller.signal })
    const third = sluice.publish('b', 'third')
    controller.abort(new Error('never mind'))
    const error: unknown = await second.catch((error: unknown) => error)
    expect(error).toMatchObject({ code: 'ABORTED', outcome: undefined })
    peer.link.confirm([1, 0])
    await turns()
    peer.link.confirm([2, 0])
    await Promise.all([first, third])
    expect(peer.link.published.map(({ bodies }) => bodies)).toEqual([['first'], ['third']])
  })

  it('withdraws one message from the middle of a batch', async () => {
    peer.confirmAll()
    sluice = await peer.connect()
    const controller = new AbortController()
    const results = [
      sluice.publish('a', 'one'),
      sluice.publish('a', 'two', { signal: controller.signal }),
      sluice.publish('a', 'three'),
    ]
    controller.abort()
    expect((await Promise.allSettled(results)).map(({ status }) => status)).toEqual([
      'fulfilled',
      'rejected',
      'fulfilled',
    ])
    expect(peer.link.published.map(({ bodies }) => bodies)).toEqual([['one', 'three']])
  })
})

describe('deadlines', () => {
  it('rejects an unanswered publish with an unknown outcome, and keeps it for the reconnect', async () => {
    sluice = await peer.connect()
    await expect(sluice.publish('a', 'x', { timeout: 20 })).rejects.toMatchObject({
      code: 'TIMEOUT',
      outcome: 'unknown',
    })
    peer.link.cut()
    await peer.dialled()
    await until(() => peer.link.named('PUBLISH').length === 1)
    expect(peer.link.published[0]).toMatchObject({ number: 1, bodies: ['x'] })
  })

  it('rejects an unsent publish with a known outcome, and never sends it', async () => {
    sluice = await peer.connect({ maxInFlight: 1 })
    const first = sluice.publish('a', 'first')
    const second = sluice.publish('a', 'second', { timeout: 20 })
    await expect(second).rejects.toMatchObject({ code: 'TIMEOUT', outcome: undefined })
    peer.link.confirm([1, 0])
    await first
    await turns()
    expect(peer.link.published.length).toBe(1)
  })
})

describe('refusals', () => {
  it('sends the messages of a refused batch one by one, in order, under new numbers', async () => {
    sluice = await peer.connect()
    const results = ['good', 'bad', 'fine'].map((body) => sluice.publish('a', body))
    await turns()
    peer.link.refuse(1, 'NOT_SUPPORTED')
    await turns()
    expect(peer.link.published.slice(1).map(({ number, bodies }) => [number, bodies])).toEqual([
      [2, ['good']],
      [3, ['bad']],
      [4, ['fine']],
    ])
    peer.link.confirm([2, 0])
    peer.link.refuse(3, 'NOT_SUPPORTED')
    peer.link.confirm([4, 1])
    const [good, bad, fine] = await Promise.allSettled(results)
    expect(good).toMatchObject({ value: { offset: 0 } })
    expect(bad).toMatchObject({ reason: { code: 'NOT_SUPPORTED' } })
    expect(fine).toMatchObject({ value: { offset: 1 } })
  })

  it('gives each message its own result when there is no room for all of them', async () => {
    sluice = await peer.connect()
    let number = 0
    for (const code of ['QUEUE_FULL', 'DEDUP_FULL'] as const) {
      const results = [sluice.publish('a', '1'), sluice.publish('a', '2')]
      await turns()
      peer.link.refuse(++number, code)
      await turns()
      peer.link.confirm([++number, 0])
      peer.link.refuse(++number, code)
      expect(await Promise.allSettled(results)).toMatchObject([
        { value: { offset: 0 } },
        { reason: { code, retryable: true } },
      ])
    }
    expect(peer.link.published.map(({ bodies }) => bodies.length)).toEqual([2, 1, 1, 2, 1, 1])
  })

  it('rejects the whole batch when each message would be refused too', async () => {
    sluice = await peer.connect()
    const codes = ['DISK_LOW', 'MEMORY_FULL', 'UNKNOWN_OUTCOME', 'QUEUE_NOT_FOUND'] as const
    let number = 0
    for (const code of codes) {
      const results = [sluice.publish('a', '1'), sluice.publish('a', '2')]
      await turns()
      peer.link.refuse(++number, code)
      for (const settled of await Promise.allSettled(results)) {
        expect(settled).toMatchObject({
          reason: {
            code,
            retryable: ERRORS[code].retryable,
            outcome: code === 'UNKNOWN_OUTCOME' ? 'unknown' : undefined,
          },
        })
      }
    }
    expect(peer.link.published.length).toBe(codes.length)
  })

  it('never splits an atomic batch', async () => {
    sluice = await peer.connect()
    const batch = sluice.publishBatch('a', [{ body: '1' }, { body: '2' }])
    await turns()
    peer.link.refuse(1, 'NOT_SUPPORTED')
    await expect(batch).rejects.toMatchObject({ code: 'NOT_SUPPORTED' })
    await turns()
    expect(peer.link.published.length).toBe(1)
  })
})

describe('replacing', () => {
  it('recognizes a message that replaced another one: the duplicates give the message its own offset', async () => {
    sluice = await peer.connect()
    const results = [
      sluice.publish('a', 'one', { id: 'i', onDuplicate: 'replace' }),
      sluice.publish('a', 'two', { id: 'j', onDuplicate: 'keep' }),
      sluice.publish('a', 'three', { id: 'k' }),
    ]
    await turns()
    const replaced = new Map([
      [0, 10],
      [1, 4],
    ])
    peer.link.confirm([1, 10, replaced])
    expect(await Promise.all(results)).toEqual([
      { offset: 10, duplicate: false, replaced: true },
      { offset: 4, duplicate: true },
      { offset: 12, duplicate: false },
    ])
    const { payload } = peer.link.named('PUBLISH')[0]!
    const first = publishBatchStart(payload, 0, payload.length) + BATCH_HEADER_BYTES
    const second = first + readU32(payload, first)
    expect([payload[first + 4], payload[second + 4]]).toEqual([128 | 16, 16])
  })

  it('needs an id, and a known value of `onDuplicate`', async () => {
    sluice = await peer.connect()
    await expect(sluice.publish('a', 1, { onDuplicate: 'replace' })).rejects.toMatchObject({
      code: 'OPTION_CONFLICT',
    })
    await expect(sluice.publish('a', 1, { id: 'i', onDuplicate: 'drop' as never })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    })
  })
})

describe('order', () => {
  type Refusal = 'EARLIER_REFUSED' | 'AT_IN_THE_PAST' | 'QUEUE_FULL'

  /**
   * A broker that follows PROTOCOL.md: it refuses batches with a bad message, and batches that follow a refused batch.
   */
  class Order {
    readonly accepted = new Map<string, string[]>()
    readonly #results = new Map<number, number>()
    readonly #refused = new Map<number, Refusal>()

    constructor(script: Peer) {
      script.replies[OP.PUBLISH] = ({ payload, correlation }, link) => {
        const { queue, number, bodies } = published(payload)
        const distance = batchFollows(payload, publishBatchStart(payload, 0, payload.length))
        const list = this.accepted.get(queue) ?? []
        this.accepted.set(queue, list)
        for (const old of this.#refused.keys()) if (old < number - correlation) this.#refused.delete(old)
        const before = this.#refused.get(number)
        if (this.#results.has(number)) this.#confirm(link, number)
        else if (before !== undefined && !ERRORS[before].retryable) this.#refuse(link, number, before)
        else if (distance > 0 && this.#refused.has(number - distance))
          this.#refuse(link, number, 'EARLIER_REFUSED')
        else if (bodies.some((body) => body.startsWith('bad'))) this.#refuse(link, number, 'AT_IN_THE_PAST')
        else if (bodies.length > 1 && bodies.some((body) => body.startsWith('full')))
          this.#refuse(link, number, 'QUEUE_FULL')
        else {
          list.push(...bodies)
          this.#refused.delete(number)
          this.#results.set(number, list.length - bodies.length)
          this.#confirm(link, number)
        }
      }
    }

    /** Forgets all refusals, because they are only in memory. */
    restart(): void {
      this.#refused.clear()
    }

    #confirm(link: Peer['link'], number: number): void {
      setImmediate(() => link.confirm([number, this.#results.get(number)!]))
    }

    #refuse(link: Peer['link'], number: number, code: Refusal): void {
      this.#refused.set(number, code)
      setImmediate(() => link.refuse(number, code))
    }
  }

  const call = fc.record({
    queue: fc.constantFrom('a', 'b'),
    kind: fc.constantFrom('good', 'good', 'good', 'bad', 'full'),
    /** Turns of the event loop before the next call. */
    turns: fc.constantFrom(0, 0, 0, 1, 1, 2),
    how: fc.constantFrom('one', 'one', 'one', 'batch'),
  })

  const calls = fc.array(call, { minLength: 2, maxLength: 30 })

  /**
   * Makes the calls, and causes the `trouble` before the call at its index. Returns the number of refused messages and
   * of sent batches.
   */
  async function orderOf(
    made: readonly (typeof calls extends fc.Arbitrary<(infer Call)[]> ? Call : never)[],
    trouble?: { readonly at: number; readonly turns: number; readonly what: 'cut' | 'restart' },
  ): Promise<{ refused: number; sent: number }> {
    const script = new Peer()
    const order = new Order(script)
    const client = await script.connect({ maxInFlight: 1000 })
    const results: Promise<unknown>[] = []
    const expected = new Map<string, string[]>()
    const pause = async (count: number): Promise<void> => {
      for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve))
    }
    for (const [index, { queue, kind, turns: after, how }] of made.entries()) {
      if (trouble?.at === index) {
        await pause(trouble.turns)
        script.link.cut()
        if (trouble.what === 'restart') order.restart()
      }
      const body = `${kind} ${index}`
      const result: Promise<unknown> =
        how === 'batch' ? client.publishBatch(queue, [{ body }]) : client.publish(queue, body)
      result.catch(() => {})
      results.push(result)
      if (kind !== 'bad') expected.set(queue, [...(expected.get(queue) ?? []), body])
      await pause(after)
    }
    const settled = await Promise.allSettled(results)
    for (const [queue, bodies] of expected) expect(order.accepted.get(queue)).toEqual(bodies)
    expect(settled.map(({ status }) => status === 'fulfilled')).toEqual(
      made.map(({ kind }) => kind !== 'bad'),
    )
    await client.close({ timeout: 1 })
    return {
      refused: settled.filter(({ status }) => status === 'rejected').length,
      sent: script.links.reduce((sum, link) => sum + link.named('PUBLISH').length, 0),
    }
  }

  it('of accepted messages is the order of the calls, for any refusals', async () => {
    let refused = 0
    let sent = 0
    await fc.assert(
      fc.asyncProperty(calls, async (made) => {
        const order = await orderOf(made)
        refused += order.refused
        sent += order.sent
      }),
      { numRuns: 180 },
    )
    expect(refused).toBeGreaterThan(200)
    expect(sent).toBeGreaterThan(1000)
    sluice = await peer.connect()
  })

  it('of accepted messages is the order of the calls, even if refusals are lost with the connection or the broker', async () => {
    const trouble = fc.record({
      at: fc.integer({ min: 1, max: 12 }),
      turns: fc.integer({ min: 0, max: 5 }),
      what: fc.constantFrom('cut', 'restart'),
    })
    let refused = 0
    // Several cases run at once, so that their waits for a reconnect overlap.
    const several = fc.array(fc.tuple(calls, trouble), { minLength: 40, maxLength: 40 })
    await fc.assert(
      fc.asyncProperty(several, async (each) => {
        for (const order of await Promise.all(each.map(([made, what]) => orderOf(made, what))))
          refused += order.refused
      }),
      { numRuns: 8, endOnFailure: true },
    )
    expect(refused).toBeGreaterThan(200)
    sluice = await peer.connect()
  })

  it('is kept when the broker restarts between a refusal and the next answer', async () => {
    sluice = await peer.connect()
    const results: Promise<unknown>[] = [sluice.publish('a', 'bad'), sluice.publish('a', 'good')]
    await turns()
    results.push(sluice.publish('a', 'last'))
    await turns()
    peer.link.refuse(1, 'AT_IN_THE_PAST')
    await turns()
    peer.link.cut()
    await peer.dialled()
    await until(() => peer.link.published.length === 2)
    expect(peer.link.published.map(({ number, bodies }) => [number, bodies])).toEqual([
      [1, ['bad', 'good']],
      [2, ['last']],
    ])
    expect(peer.link.named('PUBLISH').map(({ correlation }) => correlation)).toEqual([0, 1])
    peer.link.refuse(1, 'AT_IN_THE_PAST')
    peer.link.refuse(2, 'EARLIER_REFUSED')
    await until(() => peer.link.published.length === 5)
    expect(peer.link.published.slice(2).map(({ number, bodies }) => [number, bodies])).toEqual([
      [3, ['bad']],
      [4, ['good']],
      [5, ['last']],
    ])
    peer.link.refuse(3, 'AT_IN_THE_PAST')
    peer.link.confirm([4, 0], [5, 1])
    const settled = await Promise.allSettled(results)
    expect(settled.map(({ status }) => status)).toEqual(['rejected', 'fulfilled', 'fulfilled'])
  })

  it('is kept in a smaller window, where batches that cannot be sent again are given up', async () => {
    sluice = await peer.connect()
    const first = [sluice.publish('a', 'bad'), sluice.publish('a', 'good')]
    await turns()
    const later: Promise<unknown>[] = []
    for (const body of ['1', '2', '3']) {
      later.push(sluice.publish('a', body))
      await turns()
    }
    const outcomes = Promise.allSettled([...first, ...later])
    peer.replies[OP.HELLO] = (_frame, link) => link.helloOk({ inFlightBatchesMax: 2 })
    peer.link.cut()
    await peer.dialled()
    await until(() => peer.link.published.length === 2)
    peer.link.refuse(1, 'AT_IN_THE_PAST')
    peer.link.refuse(2, 'EARLIER_REFUSED')
    await until(() => peer.link.published.length === 4)
    peer.link.refuse(5, 'AT_IN_THE_PAST')
    peer.link.confirm([6, 0])
    await until(() => peer.link.published.length === 5)
    peer.link.confirm([7, 1])
    const codes = (await outcomes).map((one) =>
      one.status === 'rejected' ? (one.reason as { code: string }).code : one.status,
    )
    expect(codes).toEqual(['AT_IN_THE_PAST', 'fulfilled', 'fulfilled', 'UNKNOWN_OUTCOME', 'UNKNOWN_OUTCOME'])
    expect(peer.link.published.map(({ bodies }) => bodies)).toEqual([
      ['bad', 'good'],
      ['1'],
      ['bad'],
      ['good'],
      ['1'],
    ])
  })

  it('is kept by an atomic step that was sent after a refused batch', async () => {
    sluice = await peer.connect()
    const results: Promise<unknown>[] = [sluice.publish('a', 'bad'), sluice.publish('a', 'good')]
    await turns()
    results.push(sluice.atomic((tx) => tx.publish('a', 'step')))
    await turns()
    results.push(sluice.publish('a', 'last'))
    await turns()
    peer.link.refuse(1, 'AT_IN_THE_PAST')
    peer.link.refuse(2, 'EARLIER_REFUSED')
    peer.link.refuse(3, 'EARLIER_REFUSED')
    await turns()
    expect(peer.link.published.map(({ number, bodies }) => [number, bodies])).toEqual([
      [1, ['bad', 'good']],
      [3, ['last']],
      [4, ['bad']],
      [5, ['good']],
      [7, ['last']],
    ])
    expect(peer.link.atomics.map(({ number }) => number)).toEqual([2, 6])
    peer.link.refuse(4, 'AT_IN_THE_PAST')
    peer.link.confirm([5, 0], [7, 2])
    peer.link.atomicOk(6, 1)
    const settled = await Promise.allSettled(results)
    expect(settled.map(({ status }) => status)).toEqual(['rejected', 'fulfilled', 'fulfilled', 'fulfilled'])
  })
})

describe('reconnecting', () => {
  it('sends every unanswered batch again, byte for byte, before new ones', async () => {
    sluice = await peer.connect()
    const results = [sluice.publish('a', '1')]
    await turns()
    results.push(sluice.publish('b', '2'))
    await turns()
    results.push(sluice.publish('a', '3'))
    await turns()
    const first = peer.link
    first.confirm([2, 0])
    await results[1]
    first.cut()
    results.push(sluice.publish('c', 'new'))
    peer.confirmAll()
    await peer.dialled()
    await Promise.all(results)
    expect(peer.link).not.toBe(first)
    const sent = first.named('PUBLISH').map(({ payload }) => Buffer.from(payload).toString('hex'))
    const again = peer.link.named('PUBLISH').map(({ payload }) => Buffer.from(payload).toString('hex'))
    expect(again.slice(0, 2)).toEqual([sent[0], sent[2]])
    expect(first.named('PUBLISH').map(({ correlation }) => correlation)).toEqual([0, 1, 2])
    expect(peer.link.named('PUBLISH').map(({ correlation }) => correlation)).toEqual([0, 2, 3])
    expect(peer.link.published.map(({ number }) => number)).toEqual([1, 3, 4])
    expect(peer.link.hello!.producer).toEqual(first.hello!.producer)
    expect(peer.link.hello!.acceptedNumber).toBe(2)
  })

  it('takes a new identity when the broker no longer knows its numbers', async () => {
    sluice = await peer.connect()
    const lost = sluice.publish('a', '1')
    await turns()
    const identity = peer.link.hello!.producer
    peer.confirmAll()
    peer.replies[OP.HELLO] = (_frame, link) => {
      if (link === peer.links[1]) {
        link.sendBytes(Uint8Array.of(0x53, 0x4c, 0x43, 0x45, 1, 0, 0, 0))
        link.error('PRODUCER_UNKNOWN', 'connection')
      } else link.helloOk()
    }
    peer.link.cut()
    const waiting = sluice.publish('a', '2')
    await expect(lost).rejects.toMatchObject({ code: 'UNKNOWN_OUTCOME', outcome: 'unknown' })
    await waiting
    expect(peer.link.published.map(({ number, bodies }) => [number, bodies])).toEqual([[1, ['2']]])
    expect(peer.link.hello!.acceptedNumber).toBe(0)
    expect(peer.link.hello!.producer).not.toEqual(identity)
  })
})
