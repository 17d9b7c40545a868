import {
  encodeMessages,
  ERRORS,
  OP,
  ORIGIN_HEADERS,
  QUEUE_OPTION_DEFAULTS,
  type PeekPage,
} from '@sluice/protocol'
import { afterEach, beforeEach, describe, expect, expectTypeOf, it } from 'vitest'
import type { Sluice } from './client.js'
import { queue } from './options.js'
import type { MessagePage, PeekedMessage } from './peeked.js'
import { control, Peer, textRecord, until, type Frame } from './testing/peer.js'

let peer: Peer
let sluice: Sluice

beforeEach(async () => {
  peer = new Peer()
  sluice = await peer.connect()
})

afterEach(async () => {
  await sluice.close({ timeout: 1 }).catch(() => {})
})

/** The bodies of the frames of this name. */
const asked = (name: string): unknown[] =>
  peer.link.named(name).map((frame) => JSON.parse(JSON.stringify(control(frame))) as unknown)

/** Answers each frame of this kind with the next of these answers, and repeats the last one. */
const answer = (opcode: number, ...bodies: Record<string, unknown>[]): void => {
  let at = 0
  peer.replies[opcode] = (frame, link) => link.result(frame, bodies[Math.min(at++, bodies.length - 1)]!)
}

const PEEKED = {
  state: 'ready',
  death: undefined,
  attempts: 0,
  totalAttempts: 0,
  redrives: 0,
  offset: 0,
  publishedAtMs: 1_700_000_000_000,
  timeMs: 1_700_000_000_500,
  expiresAtMs: 0,
  reason: '',
  holder: '',
  record: textRecord('body'),
} as const satisfies PeekPage['messages'][number]

const pages = (...pages: PeekPage[]): void => {
  let at = 0
  peer.replies[OP.PEEK] = (frame, link) => link.messages(frame, pages[Math.min(at++, pages.length - 1)]!)
}

describe('options of queues', () => {
  it('are sent with the names and units of the wire, and returned with those of the SDK', async () => {
    const options = {
      maxDeliveries: 5,
      retryInitialMs: 1000,
      retryMaxMs: 60_000,
      processingTimeoutMs: 120_000,
      ttlMs: 3_600_000,
      keyConcurrency: 3,
      onFail: 'skip',
      unique: 'window',
      dedupWindowMs: 300_000,
      dedupMaxIds: 10,
      maxMessages: 100,
      maxBytes: 1000,
      overflow: 'drop-oldest',
      deadLetter: 'failed',
      single: true,
      retainAgeMs: 86_400_000,
      retainBytes: 5000,
      expiresMs: 60_000,
      rateMessages: 100,
      ratePerMs: 1000,
      keyRateMessages: 1,
      keyRatePerMs: 60_000,
    }
    answer(OP.ENSURE, { created: true, queue: { name: 'q', options, createdAtMs: 1_900_000_000_000 } })
    const ensured = await sluice.queues.ensure('q', {
      maxDeliveries: 5,
      retry: { initial: '1s', max: '1m' },
      processingTimeout: '2m',
      ttl: '1h',
      keyConcurrency: 3,
      onFail: 'skip',
      unique: 'window',
      dedupWindow: '5m',
      dedupMaxIds: 10,
      maxMessages: 100,
      maxBytes: 1000,
      overflow: 'drop-oldest',
      deadLetter: queue('failed'),
      single: true,
      retain: { age: '1d', bytes: 5000 },
      expires: '1m',
      rate: { messages: 100, per: '1s' },
      keyRate: { messages: 1, per: '1m' },
    })
    expect(asked('ENSURE')).toEqual([{ name: 'q', options }])
    expect(Object.keys(options).sort()).toEqual(Object.keys(QUEUE_OPTION_DEFAULTS).sort())
    expect(ensured.queue.createdAt).toEqual(new Date(1_900_000_000_000))
    expect(ensured.queue.options).toEqual({
      maxDeliveries: 5,
      retry: { initial: 1000, max: 60_000 },
      processingTimeout: 120_000,
      ttl: 3_600_000,
      keyConcurrency: 3,
      onFail: 'skip',
      unique: 'window',
      dedupWindow: 300_000,
      dedupMaxIds: 10,
      maxMessages: 100,
      maxBytes: 1000,
      overflow: 'drop-oldest',
      deadLetter: 'failed',
      single: true,
      retain: { age: 86_400_000, bytes: 5000 },
      expires: 60_000,
      rate: { messages: 100, per: 1000 },
      keyRate: { messages: 1, per: 60_000 },
    })
  })

  it('have `deadLetter` null without a dead-letter queue, and are sent only if they are set', async () => {
    answer(OP.ENSURE, {
      created: false,
      queue: { name: 'q', options: QUEUE_OPTION_DEFAULTS, createdAtMs: 0 },
    })
    const { queue } = await sluice.queues.ensure('q', {
      deadLetter: null,
      retain: {},
      rate: null,
      update: true,
    })
    expect(asked('ENSURE')).toEqual([
      { name: 'q', options: { deadLetter: '', rateMessages: 0 }, update: true },
    ])
    expect(queue.options).toMatchObject({
      deadLetter: null,
      single: false,
      retain: { age: 0, bytes: 0 },
      rate: null,
      keyRate: null,
    })
  })

  it('are refused with an error that names them', async () => {
    const refused: [object, string, string][] = [
      [{ maxDeliverys: 3 }, 'INVALID_OPTION', 'maxDeliverys'],
      [{ retryInitialMs: 3 }, 'INVALID_OPTION', 'retryInitialMs'],
      [{ retry: { first: 3 } }, 'INVALID_OPTION', 'retry.first'],
      [{ retry: 5 }, 'INVALID_OPTION', 'retry'],
      [{ retain: { age: 'long' } }, 'INVALID_OPTION', 'retain.age'],
      [{ ttl: -1 }, 'INVALID_OPTION', 'ttl'],
      [{ rate: { messages: 0, per: '1s' } }, 'INVALID_OPTION', 'rate.messages` is 0'],
      [{ rate: { messages: 1_000_001 } }, 'INVALID_OPTION', 'from 1 to 1000000'],
      [{ rate: { per: '1s' } }, 'INVALID_OPTION', 'rate.messages` is undefined'],
      [{ keyRate: 5 }, 'INVALID_OPTION', 'keyRate'],
      [{ keyRate: { messages: 1, per: 'x' } }, 'INVALID_OPTION', 'keyRate.per'],
      [{ deadLetter: 'a b' }, 'INVALID_NAME', 'a b'],
      [{ deadLetter: '' }, 'INVALID_NAME', 'name'],
    ]
    for (const [options, code, named] of refused) {
      await expect(sluice.queues.ensure('q', options)).rejects.toMatchObject({
        code,
        message: expect.stringContaining(named) as string,
      })
    }
    expect(refused.length).toBe(13)
    expect(peer.link.named('ENSURE')).toEqual([])
  })
})

describe('queues', () => {
  it('are paused and resumed', async () => {
    answer(OP.PAUSE, { changed: true })
    answer(OP.RESUME, { changed: false })
    expect(await sluice.queues.pause('q')).toEqual({ changed: true })
    expect(await sluice.queues.resume(queue('q'))).toEqual({ changed: false })
    expect([asked('PAUSE'), asked('RESUME')]).toEqual([[{ name: 'q' }], [{ name: 'q' }]])
  })

  it('list their consumers, and close one', async () => {
    const told = { id: 7, client: 'c', peer: 'p', active: true, leased: 2 }
    const consumer = { ...told, sinceMs: 1_900_000_000_000, oldestLeaseMs: 1_900_000_001_000 }
    answer(
      OP.CONSUMERS,
      { consumers: [consumer], next: 9 },
      { consumers: [{ ...consumer, id: 9, oldestLeaseMs: null }], next: null },
    )
    answer(OP.CLOSE_CONSUMER, { messages: 2 })
    expect(await sluice.queues.consumers('q')).toEqual([
      { ...told, subscribedAt: new Date(1_900_000_000_000), oldestLeaseAt: new Date(1_900_000_001_000) },
      { ...told, id: 9, subscribedAt: new Date(1_900_000_000_000), oldestLeaseAt: null },
    ])
    expect(asked('CONSUMERS')).toEqual([{ name: 'q' }, { name: 'q', from: 9 }])
    expect(await sluice.queues.closeConsumer('q', 7)).toEqual({ messages: 2 })
    expect(asked('CLOSE_CONSUMER')).toEqual([{ name: 'q', id: 7 }])
    await expect(sluice.queues.closeConsumer('q', -1)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    for (const wrong of [
      { consumers: ['x'], next: null },
      { consumers: [told], next: null },
      { consumers: [consumer], next: 9 },
    ]) {
      answer(OP.CONSUMERS, wrong)
      await expect(sluice.queues.consumers('q')).rejects.toMatchObject({ code: 'MALFORMED_FRAME' })
    }
  })

  it('reject a malformed answer at once, not at the deadline', async () => {
    peer.replies[OP.GET] = (frame, link) => link.send(OP.RESULT, 0, frame.correlation, Uint8Array.of(0xc1))
    await expect(sluice.queues.get('q')).rejects.toMatchObject({ code: 'MALFORMED_FRAME' })
  })
})

describe('peeking', () => {
  it('sends its options, and decodes the page', async () => {
    const headers = {
      a: 'b',
      [ORIGIN_HEADERS.queue]: 'orders',
      [ORIGIN_HEADERS.offset]: '7',
      [ORIGIN_HEADERS.publishedMs]: '1600000000000',
      [ORIGIN_HEADERS.reason]: 'maxDeliveries',
      [ORIGIN_HEADERS.error]: 'it broke',
      [ORIGIN_HEADERS.diedMs]: 'yesterday',
      [ORIGIN_HEADERS.attempts]: '5',
      [ORIGIN_HEADERS.redrives]: '-1',
    }
    pages({
      messages: [
        {
          ...PEEKED,
          state: 'dead',
          death: 'rejected',
          attempts: 2,
          totalAttempts: 12,
          redrives: 1,
          offset: 9,
          expiresAtMs: 1_800_000_000_000,
          reason: 'no such customer',
          record: textRecord('text', { key: 'k', id: 'i', priority: 4, headers }),
        },
        { ...PEEKED, state: 'leased', offset: 10, holder: 'checkout' },
        { ...PEEKED, state: 'scheduled', offset: 11 },
        { ...PEEKED, offset: 12 },
      ],
      next: 13,
    })
    const { messages, next } = await sluice.queues.peek('q', {
      state: 'dead',
      from: 5,
      limit: 4,
      reason: 'rejected',
      error: 'such',
      key: 'k',
      id: 'i',
      header: { a: 'b' },
      attempts: 2,
      olderThan: '1h',
      youngerThan: '2d',
    })
    expect(asked('PEEK')).toEqual([
      {
        name: 'q',
        state: 'dead',
        from: 5,
        limit: 4,
        filter: {
          reason: 'rejected',
          error: 'such',
          key: 'k',
          id: 'i',
          headers: { a: 'b' },
          minAttempts: 2,
          olderThanMs: 3_600_000,
          youngerThanMs: 172_800_000,
        },
      },
    ])
    expect(next).toBe(13)
    const [dead, leased, scheduled, ready] = messages
    expect(dead).toMatchObject({
      queue: 'q',
      offset: 9,
      body: 'text',
      key: 'k',
      id: 'i',
      priority: 4,
      state: 'dead',
      reason: 'rejected',
      error: 'no such customer',
      attempts: 2,
      totalAttempts: 12,
      redrives: 1,
      publishedAt: new Date(1_700_000_000_000),
      diedAt: new Date(1_700_000_000_500),
      expiresAt: new Date(1_800_000_000_000),
      readySince: undefined,
      dueAt: undefined,
      leasedAt: undefined,
      holder: undefined,
    })
    expect(dead!.headers['a']).toBe('b')
    // Values that the broker never writes are ignored.
    expect(dead!.origin).toEqual({
      queue: 'orders',
      offset: 7,
      publishedAt: new Date(1_600_000_000_000),
      reason: 'maxDeliveries',
      error: 'it broke',
      diedAt: undefined,
      attempts: 5,
      redrives: undefined,
    })
    expect(leased).toMatchObject({ holder: 'checkout', leasedAt: new Date(1_700_000_000_500) })
    expect(scheduled).toMatchObject({ dueAt: new Date(1_700_000_000_500), readySince: undefined })
    expect(ready).toMatchObject({ readySince: new Date(1_700_000_000_500), expiresAt: undefined })
    expect(ready!.origin).toBe(undefined)
    expect({ ...ready!.headers }).toEqual({})
    expect(JSON.parse(JSON.stringify(ready))).toMatchObject({ offset: 12, state: 'ready', body: 'body' })
  })

  it('has no next page at the end, and types bodies as published', async () => {
    pages({ messages: [], next: undefined })
    const orders = queue<{ total: number }>('orders')
    expect(await sluice.queues.peek(orders)).toEqual({ messages: [] })
    const typed = (): void => {
      expectTypeOf(sluice.queues.peek(orders)).resolves.toEqualTypeOf<MessagePage<{ total: number }>>()
      expectTypeOf(sluice.dead.get(orders, 1)).resolves.toEqualTypeOf<PeekedMessage<{ total: number }>>()
    }
    expect(typed).toBeTypeOf('function')
  })

  it('refuses a page with malformed records', async () => {
    peer.replies[OP.PEEK] = (frame, link) => {
      const payload = encodeMessages({ messages: [PEEKED], next: undefined })
      payload[payload.length - 'body'.length - 4] = 0xff
      link.send(OP.MESSAGES, 0, frame.correlation, payload)
    }
    await expect(sluice.queues.peek('q')).rejects.toMatchObject({ code: 'MALFORMED_FRAME' })
    for (const wrong of [{ colour: 1 }, { olderThan: 'long' }])
      await expect(sluice.queues.peek('q', wrong as never)).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
      })
  })
})

describe('single messages', () => {
  it('are cancelled and rescheduled by offset or id', async () => {
    answer(OP.CANCEL, { offset: 5 })
    answer(OP.RESCHEDULE, { offset: 5, dueMs: 1_800_000_000_000 })
    expect(await sluice.queues.cancel('q', { id: 'i' })).toEqual({ offset: 5 })
    expect(await sluice.queues.cancel('q', { offset: 5 })).toEqual({ offset: 5 })
    const due = new Date(1_800_000_000_000)
    expect(await sluice.queues.reschedule('q', { offset: 5 }, { delay: '2d' })).toEqual({ offset: 5, due })
    expect(await sluice.queues.reschedule('q', { id: 'i' }, { at: due })).toEqual({ offset: 5, due })
    expect(asked('CANCEL')).toEqual([
      { name: 'q', id: 'i' },
      { name: 'q', offset: 5 },
    ])
    expect(asked('RESCHEDULE')).toEqual([
      { name: 'q', offset: 5, delayMs: 172_800_000 },
      { name: 'q', id: 'i', atMs: due.getTime() },
    ])
    const wrong: [Promise<unknown>, string][] = [
      [sluice.queues.cancel('q', {} as never), 'INVALID_ARGUMENT'],
      [sluice.queues.cancel('q', { id: 'i', offset: 1 }), 'INVALID_ARGUMENT'],
      [sluice.queues.reschedule('q', { id: 'i' }, {} as never), 'OPTION_CONFLICT'],
      [sluice.queues.reschedule('q', { id: 'i' }, { delay: 1, at: 1 }), 'OPTION_CONFLICT'],
      [sluice.queues.reschedule('q', { id: 'i' }, { delay: -1 }), 'INVALID_DELAY'],
      [sluice.queues.reschedule('q', { id: 'i' }, { at: new Date(NaN) }), 'INVALID_DELAY'],
    ]
    for (const [promise, code] of wrong) await expect(promise).rejects.toMatchObject({ code })
    expect(wrong.length).toBe(6)
  })

  it('return their history over all pages', async () => {
    answer(
      OP.HISTORY,
      { events: [{ event: 'published', atMs: 1000, text: 'shop' }], complete: false, cursor: 'p8' },
      { events: [{ event: 'retried', atMs: 2000, attempts: 1, dueMs: 3000 }], complete: true, cursor: null },
    )
    expect(await sluice.queues.history('q', 4)).toEqual({
      events: [
        { event: 'published', at: new Date(1000), text: 'shop' },
        { event: 'retried', at: new Date(2000), attempts: 1, due: new Date(3000) },
      ],
      complete: true,
    })
    expect(asked('HISTORY')).toEqual([
      { name: 'q', offset: 4 },
      { name: 'q', offset: 4, cursor: 'p8' },
    ])
    answer(OP.HISTORY, { events: [], complete: true, cursor: 'p8' })
    await expect(sluice.queues.history('q', 4)).rejects.toMatchObject({ code: 'MALFORMED_FRAME' })
  })
})

describe('replaying', () => {
  it('walks over all pages and adds up the counts', async () => {
    answer(
      OP.REPLAY,
      { matched: 1000, replayed: 999, cursor: 'a' },
      { matched: 0, replayed: 0, cursor: 'b' },
      { matched: 5, replayed: 5, cursor: null },
    )
    const from = new Date(1_700_000_000_000)
    const until = new Date(1_700_000_100_000)
    const options = { from, until, to: queue('check'), key: 'k' } as const
    expect(await sluice.queues.replay('q', options)).toEqual({ matched: 1005, replayed: 1004 })
    const common = {
      name: 'q',
      fromMs: from.getTime(),
      untilMs: until.getTime(),
      to: 'check',
      filter: { key: 'k' },
      limit: 1000,
    }
    expect(asked('REPLAY')).toEqual([common, { ...common, cursor: 'a' }, { ...common, cursor: 'b' }])
  })

  it('that the broker stops in a page reports its progress, and where to continue', async () => {
    const error = { code: ERRORS.DISK_LOW.number, retryable: true, retryAfterMs: 500, message: 'No room.' }
    answer(
      OP.REPLAY,
      { matched: 1000, replayed: 1000, cursor: 'a' },
      { matched: 7, replayed: 7, cursor: 'b', error },
    )
    await expect(sluice.queues.replay('q', { to: 'check' })).rejects.toMatchObject({
      code: 'DISK_LOW',
      outcome: 'partial',
      retryable: true,
      retryAfterMs: 500,
      message: 'No room. Before that, 1007 messages were published again.',
      progress: { matched: 1007, replayed: 1007, cursor: 'b' },
    })
    answer(OP.REPLAY, { matched: 3, replayed: 3, cursor: null })
    expect(await sluice.queues.replay('q', { to: 'check', cursor: 'b' })).toEqual({ matched: 3, replayed: 3 })
    expect(asked('REPLAY').at(-1)).toEqual({ name: 'q', to: 'check', limit: 1000, cursor: 'b' })
  })

  it('whose later page is refused reports the progress of the earlier pages', async () => {
    let pages = 0
    peer.replies[OP.REPLAY] = (frame, link) => {
      if (pages++ === 0) link.result(frame, { matched: 1, replayed: 1, cursor: 'a' })
      else link.error('MEMORY_FULL', 'request', 0, frame.correlation)
    }
    await expect(sluice.queues.replay('q')).rejects.toMatchObject({
      code: 'MEMORY_FULL',
      outcome: 'partial',
      message: 'told: MEMORY_FULL Before that, 1 message was published again.',
      progress: { matched: 1, replayed: 1, cursor: 'a' },
    })
    pages = 0
    peer.replies[OP.REPLAY] = (frame, link) => link.error('MEMORY_FULL', 'request', 0, frame.correlation)
    const refused = await sluice.queues.replay('q').catch((error: unknown) => error)
    expect(refused).toMatchObject({ code: 'MEMORY_FULL', outcome: undefined, progress: undefined })
    // A dry run has no partial result.
    peer.replies[OP.REPLAY] = (frame, link) => {
      if (pages++ === 0) link.result(frame, { matched: 1, replayed: 0, cursor: 'a' })
      else link.error('MEMORY_FULL', 'request', 0, frame.correlation)
    }
    const dry = await sluice.queues.replay('q', { dryRun: true }).catch((error: unknown) => error)
    expect(dry).toMatchObject({ code: 'MEMORY_FULL', outcome: undefined, progress: undefined })
  })

  it('that loses its connection after a page reports the page with an unknown outcome', async () => {
    let pages = 0
    peer.replies[OP.REPLAY] = (frame, link) => {
      if (pages++ === 0) link.result(frame, { matched: 2, replayed: 2, cursor: 'a' })
      else link.cut()
    }
    await expect(sluice.queues.replay('q')).rejects.toMatchObject({
      code: 'CONNECTION_LOST',
      outcome: 'unknown',
      progress: { matched: 2, replayed: 2, cursor: 'a' },
    })
    expect(pages).toBe(2)
  })

  it('stops at its limit, and counts in a dry run', async () => {
    answer(OP.REPLAY, { matched: 1000, replayed: 0, cursor: 'a' }, { matched: 200, replayed: 0, cursor: 'b' })
    const options = { from: 7, limit: 1200, dryRun: true }
    expect(await sluice.queues.replay('q', options)).toEqual({ matched: 1200, replayed: 0 })
    expect(asked('REPLAY')).toEqual([
      { name: 'q', fromOffset: 7, dryRun: true, limit: 1000 },
      { name: 'q', fromOffset: 7, dryRun: true, limit: 200, cursor: 'a' },
    ])
  })
})

describe('dead letters', () => {
  it('are listed, and read one by one', async () => {
    pages({ messages: [{ ...PEEKED, state: 'dead', death: 'invalid', offset: 3 }], next: undefined })
    const { messages } = await sluice.dead.list('q', { reason: 'invalid', from: 1, limit: 10 })
    expect(messages.map(({ offset, reason }) => [offset, reason])).toEqual([[3, 'invalid']])
    expect((await sluice.dead.get('q', 3)).body).toBe('body')
    await expect(sluice.dead.get('q', 2)).rejects.toMatchObject({ code: 'MESSAGE_NOT_FOUND' })
    expect(asked('PEEK')).toEqual([
      { name: 'q', state: 'dead', from: 1, limit: 10, filter: { reason: 'invalid' } },
      { name: 'q', state: 'dead', from: 3, limit: 1 },
      { name: 'q', state: 'dead', from: 2, limit: 1 },
    ])
  })

  it('are redriven over all pages', async () => {
    answer(
      OP.REDRIVE,
      { matched: 900, redriven: 890, guarded: 10, barred: 0, next: 5000 },
      { matched: 0, redriven: 0, guarded: 0, barred: 0, next: 9000 },
      { matched: 3, redriven: 3, guarded: 0, barred: 0, next: null },
    )
    const options = { key: 'k', to: 'other', force: true }
    expect(await sluice.dead.redrive('q', options)).toEqual({
      matched: 903,
      redriven: 893,
      guarded: 10,
      barred: 0,
    })
    const common = { name: 'q', filter: { key: 'k' }, to: 'other', force: true, limit: 1000 }
    expect(asked('REDRIVE')).toEqual([
      { ...common, from: 0 },
      { ...common, from: 5000 },
      { ...common, from: 9000 },
    ])
  })

  it('are redriven no faster than the rate, in four pages per second', async () => {
    const times: number[] = []
    peer.replies[OP.REDRIVE] = (frame, link) => {
      times.push(performance.now())
      const from = control(frame)['from'] as number
      const next = from >= 60 ? null : from + 20
      link.result(frame, { matched: 5, redriven: 5, guarded: 0, barred: 0, next })
    }
    const beganMs = performance.now()
    await sluice.dead.redrive('q', { rate: 100 })
    // 20 messages take 200 ms. There is no pause after the last page.
    expect(asked('REDRIVE').map((body) => (body as { limit: number }).limit)).toEqual([25, 25, 25, 25])
    expect(times[3]! - beganMs).toBeGreaterThan(140)
    const controller = new AbortController()
    const slow = sluice.dead.redrive('q', { rate: 0.001 }, { signal: controller.signal })
    await until(() => times.length === 5)
    setTimeout(() => controller.abort(), 10)
    await expect(slow).rejects.toMatchObject({ code: 'ABORTED' })
    await expect(sluice.dead.redrive('q', { rate: 0 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(sluice.dead.redrive('q', { rate: 1_000_001 })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    })
  })

  it('count the page that was on its way when the signal was aborted', async () => {
    const controller = new AbortController()
    peer.replies[OP.REDRIVE] = (frame, link) => {
      controller.abort()
      setTimeout(() => {
        link.result(frame, { matched: 1000, redriven: 1000, guarded: 0, barred: 0, next: 1000 })
      }, 5)
    }
    await expect(sluice.dead.redrive('q', {}, { signal: controller.signal })).rejects.toMatchObject({
      code: 'ABORTED',
      outcome: 'partial',
      progress: { matched: 1000, redriven: 1000 },
    })
    expect(peer.link.named('REDRIVE')).toHaveLength(1)
  })

  it('can be selected by offset, in requests of limited length', async () => {
    const offsets = Array.from({ length: 1500 }, (_, i) => 3000 - i * 2)
    peer.replies[OP.DISCARD] = (frame, link) => {
      const chosen = control(frame)['offsets'] as number[]
      // The broker processes only a part of the first page.
      if (peer.link.named('DISCARD').length === 1)
        link.result(frame, { matched: 10, discarded: 10, next: chosen[9]! + 1 })
      else link.result(frame, { matched: chosen.length, discarded: chosen.length, next: null })
    }
    expect(await sluice.dead.delete('q', { offsets: [...offsets, 2] })).toEqual({
      matched: 1500,
      deleted: 1500,
    })
    const sent = peer.link.named('DISCARD').map((frame) => control(frame)['offsets'] as number[])
    expect(sent.map(({ length }) => length)).toEqual([1000, 1000, 490])
    expect(sent[1]![0]).toBe(22)
    await sluice.dead.delete('q', { offsets: [4, 6, 8], limit: 2 })
    expect(asked('DISCARD').at(-1)).toEqual({ name: 'q', offsets: [4, 6], limit: 2 })
    await expect(sluice.dead.delete('q', { offsets: [-1] })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    })
    expect(await sluice.dead.delete('q', { offsets: [] })).toEqual({ matched: 0, deleted: 0 })
  })

  it('are not redriven twice after a lost connection, but a dry run is repeated', async () => {
    const redrive = sluice.dead.redrive('q').catch((error: unknown) => error)
    const dry = sluice.dead.redrive('q', { dryRun: true })
    await until(() => peer.link.named('REDRIVE').length === 2)
    answer(OP.REDRIVE, { matched: 4, redriven: 0, guarded: 0, barred: 0, next: null })
    peer.link.cut()
    expect(await redrive).toMatchObject({ code: 'CONNECTION_LOST', outcome: 'unknown' })
    expect(await dry).toMatchObject({ matched: 4 })
  })

  it('do not loop with a broker that repeats a page', async () => {
    answer(OP.REDRIVE, { matched: 1, redriven: 1, guarded: 0, barred: 0, next: 5 })
    await expect(sluice.dead.redrive('q')).rejects.toMatchObject({ code: 'MALFORMED_FRAME' })
    answer(OP.REDRIVE, { matched: 'all', redriven: 1, guarded: 0, barred: 0, next: null })
    await expect(sluice.dead.redrive('q')).rejects.toMatchObject({ code: 'MALFORMED_FRAME' })
    const frames: Frame[] = peer.link.named('REDRIVE')
    expect(frames.length).toBe(3)
  })
})
