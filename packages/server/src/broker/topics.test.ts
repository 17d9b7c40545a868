/** Bindings and topics: which queues get what, what is refused, and what a crash leaves. */
import {
  BATCH_ATTRIBUTE,
  BATCH_TYPE,
  LIMITS,
  queueName,
  readBatchHeader,
  topicName,
  topicPattern,
  type BindingInfo,
  type Placed,
  type QueueName,
  type QueueOptions,
} from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { entryBatches } from '../log/entry.js'
import { entryLimits } from '../log/entry-limits.js'
import { SHARED_QUEUE_ID } from '../queue/index.js'
import { Bench, batchOf, type BenchOptions, type Message, type Worker } from '../testing/bench.js'
import { drained, numbered, peeked, queueOf, upTo } from '../testing/sharing.js'
import { TARGETS_MAX } from './shared-intake.js'
import { HEADER_CHECKS_MAX, PATTERN_BINDINGS_MAX } from './topics.js'

const [A, B, C] = ['a', 'b', 'c'].map(queueName) as [QueueName, QueueName, QueueName]
const refused = (code: string): Error => expect.objectContaining({ code }) as Error

async function opened(options: BenchOptions = {}): Promise<Bench> {
  const bench = await new Bench(options).open()
  for (const name of [A, B, C]) bench.ensure({}, name)
  await bench.settle()
  return bench
}

type Headers = Readonly<Record<string, string>>

function bind(
  bench: Bench,
  pattern: string,
  target: QueueName,
  headers?: { readonly all?: Headers; readonly any?: Headers },
): { readonly changed: boolean; readonly id: number } {
  bench.broker.turn.begin()
  const match =
    headers === undefined
      ? undefined
      : headers.all === undefined
        ? ({ kind: 'any', headers: headers.any! } as const)
        : ({ kind: 'all', headers: headers.all } as const)
  return bench.broker.topics.bind({ pattern: topicPattern(pattern), target, match })
}

function publish(bench: Bench, address: string, bytes: Uint8Array, unanswered = 0): number {
  bench.broker.turn.begin()
  const batch = { bytes, at: 0, end: bytes.length }
  return bench.broker.topics.publish(bench.producer(), address, batch, unanswered)
}

function send(bench: Bench, address: string, messages: readonly Message[] = [{}]): number {
  return publish(bench, address, batchOf(messages, ++bench.number))
}

const ready = (bench: Bench): number[] => [A, B, C].map((name) => bench.info(name).ready)

function listed(bench: Bench, request: { pattern?: string; target?: QueueName } = {}): string[] {
  const found: BindingInfo[] = []
  for (let more = true; more;) {
    const pattern = request.pattern === undefined ? undefined : topicPattern(request.pattern)
    const page = bench.broker.topics.list({ pattern, target: request.target, after: found.at(-1)?.id ?? 0 })
    found.push(...page.bindings)
    ;({ more } = page)
  }
  return found.map(({ pattern, target }) => `${pattern} ${target}`)
}

describe('a message that is published to a topic', () => {
  it('reaches each queue with a matching binding once', async () => {
    const bench = await opened()
    bind(bench, 'orders.*.created', A)
    bind(bench, 'orders.#', A)
    bind(bench, 'orders.#', B)
    bind(bench, 'users.#', C)
    expect(send(bench, '#orders.eu.created', [{}, {}])).toBe(2)
    expect(send(bench, '#orders')).toBe(2)
    await bench.settle()
    expect(ready(bench)).toEqual([3, 3, 0])
    bench.broker.audit()
  })

  it('follows the bindings as they change', async () => {
    const bench = await opened()
    bind(bench, 'a', A)
    expect(send(bench, '#a')).toBe(1)
    bind(bench, '#', B)
    expect(send(bench, '#a')).toBe(2)
    bench.broker.topics.unbind({ pattern: topicPattern('a'), target: A, match: undefined })
    expect(send(bench, '#a')).toBe(1)
    bench.broker.catalog.delete(B)
    expect(() => send(bench, '#a')).toThrow(refused('UNROUTABLE'))
    await bench.settle()
    expect([A, C].map((name) => bench.info(name).ready)).toEqual([2, 0])
    expect(listed(bench)).toEqual([])
    bench.broker.audit()
  })

  it('is refused by all queues if one of them refuses it, with the name of that queue', async () => {
    const bench = await opened()
    bench.ensure({ maxMessages: 1 }, B)
    for (const name of [A, B, C]) bind(bench, 'a', name)
    expect(send(bench, '#a')).toBe(3)
    expect(() => send(bench, '#a')).toThrow(expect.objectContaining({ code: 'QUEUE_FULL', queue: B }))
    await bench.settle()
    expect(ready(bench)).toEqual([1, 1, 1])
  })

  it('is refused if nothing matches, unless messages without a target are dropped', async () => {
    const bench = await opened()
    bind(bench, 'a.b', A)
    expect(() => send(bench, '#a')).toThrow(refused('UNROUTABLE'))
    expect(send(bench, '#?a')).toBe(0)
    expect(send(bench, '#?a.b')).toBe(1)
    for (const name of ['', '?', '.', 'a..b', 'a b', 'a*', '??a', 'x'.repeat(254)])
      expect(() => send(bench, `#${name}`)).toThrow(refused('INVALID_TOPIC'))
    expect(ready(bench)).toEqual([1, 0, 0])
  })
})

describe('a binding with headers', () => {
  it('takes the messages of a batch that have all of them, or any of them', async () => {
    const bench = await opened()
    bind(bench, 'a', A, { all: { x: '1', y: '1' } })
    bind(bench, '#', B, { any: { x: '1', y: '1' } })
    bind(bench, '*', C)
    const of = (number: number, headers: Headers): Message => ({
      headers: { number: String(number), ...headers },
    })
    const messages = [
      of(0, {}),
      of(1, { x: '1' }),
      of(2, { x: '1', y: '1' }),
      of(3, { x: '1', y: '1', z: '' }),
      of(4, { x: '2', y: '1' }),
      of(5, { x: '2' }),
    ]
    expect(send(bench, '#a', messages)).toBe(3)
    await bench.settle()
    const numbers = async (name: QueueName): Promise<number[]> =>
      (await peeked(bench, name)).map(([, number]) => number)
    expect(await numbers(A)).toEqual([2, 3])
    expect(await numbers(B)).toEqual([1, 2, 3, 4])
    expect(await numbers(C)).toEqual(upTo(6))
    bench.broker.audit()
  })

  it('leaves a message without a target: the batch is refused, or the message dropped', async () => {
    const bench = await opened()
    bind(bench, 'a', A, { all: { x: '1' } })
    bind(bench, 'a', A, { all: { x: '2' } })
    const messages = ['1', '2', '3'].map((x) => ({ headers: { x } }))
    expect(() => send(bench, '#a', messages)).toThrow(
      expect.objectContaining({
        code: 'UNROUTABLE',
        message: expect.stringContaining('message 2 of 3') as string,
      }),
    )
    expect(send(bench, '#?a', messages)).toBe(1)
    expect(send(bench, '#?a', [{}])).toBe(0)
    expect(() => send(bench, '#a', [{}])).toThrow(refused('UNROUTABLE'))
    await bench.settle()
    expect(bench.info(A).ready).toBe(2)
  })
})

describe('bindings', () => {
  it('are the same if pattern, target and headers are the same', async () => {
    const bench = await opened()
    expect(bind(bench, 'a', A)).toEqual({ changed: true, id: 1 })
    expect(bind(bench, 'a', A)).toEqual({ changed: false, id: 1 })
    expect(bind(bench, 'a', A, { all: { x: '1', y: '2' } })).toEqual({ changed: true, id: 2 })
    expect(bind(bench, 'a', A, { all: { y: '2', x: '1' } })).toEqual({ changed: false, id: 2 })
    expect(bind(bench, 'a', A, { any: { x: '1', y: '2' } })).toEqual({ changed: true, id: 3 })
    expect(() => bind(bench, 'a', queueName('none'))).toThrow(refused('QUEUE_NOT_FOUND'))
    const request = { pattern: topicPattern('a'), target: A, match: undefined }
    expect(bench.broker.topics.unbind(request)).toEqual({ changed: true })
    expect(bench.broker.topics.unbind(request)).toEqual({ changed: false })
    expect(listed(bench)).toEqual(['a a', 'a a'])
    bench.broker.audit()
  })

  it('are listed page by page: all, by pattern, by target, and those that match a topic', async () => {
    const bench = await opened()
    const headers = (number: number): Headers => ({ number: `${number}`.padStart(3_000, '0') })
    for (let at = 0; at < 120; at++) bind(bench, `a.${at % 60}`, at % 2 === 0 ? A : B)
    for (let at = 0; at < 30; at++) bind(bench, 'a.*', C, { any: headers(at) })
    expect(listed(bench)).toHaveLength(90)
    expect(listed(bench, { target: B })).toHaveLength(30)
    expect(listed(bench, { pattern: 'a.*' })).toHaveLength(30)
    expect(listed(bench, { pattern: 'a.1', target: B })).toEqual(['a.1 b'])
    expect(listed(bench, { pattern: 'a.1', target: A })).toEqual([])
    expect(() => listed(bench, { target: queueName('none') })).toThrow(refused('QUEUE_NOT_FOUND'))
    const routes = (matching: Headers | undefined, after = 0): readonly BindingInfo[] => {
      const { bindings, more } = bench.broker.topics.routes({
        topic: topicName('a.7'),
        headers: matching,
        after,
      })
      return more ? [...bindings, ...routes(matching, bindings.at(-1)!.id)] : bindings
    }
    expect(routes(undefined)).toHaveLength(31)
    expect(routes({}).map(({ pattern }) => pattern)).toEqual(['a.7'])
    expect(routes(headers(3)).map(({ pattern, target }) => `${pattern} ${target}`)).toEqual([
      'a.7 b',
      'a.* c',
    ])
  })

  it('survive a crash, with and without a checkpoint', async () => {
    const bench = await opened({ segmentBytes: 64 << 10, checkpointBytes: 8 << 10 })
    bind(bench, 'a.#', A)
    bind(bench, 'a.#', B, { any: { x: '1' } })
    bind(bench, 'b', C)
    await bench.settle()
    for (const isFilled of [false, true]) {
      if (isFilled) await bench.fill(300 << 10)
      expect(await bench.crash()).toBe(isFilled)
      expect(listed(bench)).toEqual(['a.# a', 'a.# b', 'b c'])
      expect(send(bench, '#a.b', [{ headers: { x: '1' } }])).toBe(2)
      expect(send(bench, '#a.b', [{}])).toBe(1)
      await bench.settle()
      bench.broker.audit()
    }
    bench.broker.catalog.delete(A)
    await bench.settle()
    await bench.crash()
    expect(listed(bench)).toEqual(['a.# b', 'b c'])
  })
})

describe('a batch that is sent again', () => {
  it.each([false, true])(
    'gets its first answer, whatever the bindings are then; after a crash: %s',
    async (crashes) => {
      const bench = await opened()
      bind(bench, 'a', A)
      const [reached, dropped, missed] = [1, 2, 3].map((number) => batchOf([{}], number)) as [
        Uint8Array,
        Uint8Array,
        Uint8Array,
      ]
      expect(publish(bench, '#a', reached, 0)).toBe(1)
      expect(publish(bench, '#?b', dropped, 1)).toBe(0)
      expect(() => publish(bench, '#b', missed, 2)).toThrow(refused('UNROUTABLE'))
      await bench.settle()
      if (crashes) await bench.crash()
      for (const name of [A, B, C]) bind(bench, '#', name)
      expect(publish(bench, '#a', reached, 0)).toBe(1)
      expect(publish(bench, '#?b', dropped, 1)).toBe(0)
      // A refusal is remembered until the broker stops.
      if (crashes) expect(publish(bench, '#b', missed, 2)).toBe(3)
      else expect(() => publish(bench, '#b', missed, 2)).toThrow(refused('UNROUTABLE'))
      await bench.settle()
      expect(ready(bench)).toEqual(crashes ? [2, 1, 1] : [1, 0, 0])
      bench.broker.audit()
    },
  )

  it('gets its answer from the page of the producer', async () => {
    const bench = await opened({ segmentBytes: 64 << 10, checkpointBytes: 8 << 10 })
    const bytes = batchOf([{}], 1)
    expect(publish(bench, '#?a', bytes)).toBe(0)
    await bench.fill(300 << 10)
    expect(await bench.crash()).toBe(true)
    bind(bench, 'a', A)
    expect(publish(bench, '#?a', bytes)).toBe(0)
    expect(bench.info(A).ready).toBe(0)
  })
})

describe('a batch whose only target gets all of its records', () => {
  const batches = (bench: Bench): { queueId: number; attributes: number }[] =>
    bench.log.entries.flatMap(({ bytes }) =>
      [...entryBatches(bytes, 0)]
        .map((at) => readBatchHeader(bytes, at))
        .filter(({ type }) => type === BATCH_TYPE.messages),
    )

  it('is stored as a batch of that queue', async () => {
    const bench = await opened()
    await bench.publish([{}, {}, {}], A)
    bind(bench, 'a', A)
    bind(bench, 'b', A, { all: { x: '1' } })
    expect(send(bench, '#a', [{}, {}])).toBe(1)
    expect(send(bench, '#b', [{ headers: { x: '1' } }])).toBe(1)
    // Here the target does not get all records.
    expect(send(bench, '#?b', [{ headers: { x: '1' } }, {}])).toBe(1)
    await bench.settle()
    const { id } = queueOf(bench, A)
    expect(batches(bench).map(({ queueId }) => queueId)).toEqual([id, id, id, SHARED_QUEUE_ID])
    const whole = batches(bench).map(({ attributes }) => attributes & BATCH_ATTRIBUTE.topic)
    expect(whole).toEqual([0, BATCH_ATTRIBUTE.topic, BATCH_ATTRIBUTE.topic, 0])
    await bench.crash()
    expect(await bench.drain(A)).toEqual(upTo(7))
    expect(bench.broker.usage().liveBytes).toBe(0)
    bench.broker.audit()
  })

  it.each<[string, Partial<QueueOptions>, Message]>([
    ['plain messages', {}, {}],
    ['ids', { dedupWindowMs: 3_600_000 }, { id: 'x' }],
    ['a time to live', { ttlMs: 3_600_000 }, {}],
  ])('gets its first answer again, with %s', async (_, options, message) => {
    const bench = await opened({ segmentBytes: 64 << 10, checkpointBytes: 8 << 10 })
    bench.ensure(options, A)
    await bench.publish([message, {}], A)
    bind(bench, 'a', A)
    const sent = batchOf([message], ++bench.number)
    expect(publish(bench, '#a', sent)).toBe(1)
    const ready = bench.info(A).ready
    expect(ready).toBe(message.id === undefined ? 3 : 2)
    for (const bytes of [0, 0, 300 << 10]) {
      if (bytes > 0) await bench.fill(bytes)
      await bench.settle()
      await bench.crash()
      expect(publish(bench, '#a', sent)).toBe(1)
      expect(bench.info(A).ready).toBe(ready)
      bench.broker.audit()
    }
  })

  it('is refused with the name of the queue', async () => {
    const bench = await opened()
    bench.ensure({ maxMessages: 1 }, B)
    bind(bench, 'a', B)
    expect(send(bench, '#a')).toBe(1)
    expect(() => send(bench, '#a')).toThrow(expect.objectContaining({ code: 'QUEUE_FULL', queue: B }))
  })
})

it('is in all queues or in none after a crash at any entry', async () => {
  const bench = await opened({ keepsSnapshots: true, segmentBytes: 64 << 10, checkpointBytes: 8 << 10 })
  for (const name of [A, B, C]) bind(bench, '#', name)
  for (let number = 0; number < 30; number++) {
    send(bench, '#a', [numbered(number), numbered(number)])
    if (number % 3 === 0) await bench.settle()
    if (number % 10 === 0) await bench.fill(10 << 10)
  }
  await bench.settle()
  let most = 0
  for (const snapshot of bench.snapshots.filter((_, index) => index % 5 === 0)) {
    const next = new Bench()
    await next.restart(snapshot.reopened({}))
    if (listed(next).length < 3) continue
    const [first, ...others] = ready(next)
    expect(others).toEqual([first, first])
    most = Math.max(most, first!)
    next.broker.audit()
  }
  expect(most).toBeGreaterThan(30)
})

describe('limits', () => {
  it('bound the bindings in all, and per pattern', async () => {
    const bench = await opened({ bindingsMax: 2 })
    bind(bench, 'a', A)
    bind(bench, 'b', A)
    expect(() => bind(bench, 'c', A)).toThrow(refused('TOO_MANY_BINDINGS'))
    bind(bench, 'b', A)
    const other = await opened()
    for (let at = 0; at < PATTERN_BINDINGS_MAX; at++) bind(other, 'a', A, { all: { x: `${at}` } })
    expect(() => bind(other, 'a', B)).toThrow(refused('TOO_MANY_BINDINGS'))
    bind(other, 'b', B)
    other.broker.audit()
  })

  it('bound the targets of a publish', async () => {
    const bench = await new Bench({ queuesMax: 2_000 }).open()
    const names = upTo(TARGETS_MAX + 1).map((at) => queueName(`q${at}`))
    for (const name of names) bench.ensure({}, name)
    for (const [at, name] of names.slice(0, -1).entries()) bind(bench, at % 2 === 0 ? '#' : 'a', name)
    expect(send(bench, '#a')).toBe(TARGETS_MAX)
    bind(bench, 'a', names.at(-1)!)
    expect(() => send(bench, '#a')).toThrow(refused('TOO_MANY_TARGETS'))
    expect(queueOf(bench, names.at(-1)!).next).toBe(0)
  })

  it('bound the comparisons of headers in a batch', async () => {
    const bench = await opened({ messageBytesMax: 64 })
    const headers = Object.fromEntries(upTo(LIMITS.headersMax).map((at) => [`h${at}`, '1']))
    for (let at = 0; at < 16; at++) bind(bench, `${'#.'.repeat(at)}#`, A, { any: headers })
    const most = HEADER_CHECKS_MAX / 16 / LIMITS.headersMax
    const messages = (count: number): Message[] =>
      upTo(count).map(() => ({ headers: { h1: '1' }, bodyBytes: 1 }))
    expect(send(bench, '#a', messages(most))).toBe(1)
    expect(() => send(bench, '#a', messages(most + 1))).toThrow(refused('BATCH_TOO_LARGE'))
  })

  it('bound the remembered routes, which changes no answer', async () => {
    const bench = await opened()
    bind(bench, '#.1', A)
    bind(bench, '#', B)
    for (let at = 0; at < 3_000; at++) expect(send(bench, `#${at}.${at % 2}`)).toBe(1 + (at % 2))
    await bench.settle()
    expect(ready(bench)).toEqual([1_500, 3_000, 0])
    expect(await drained(bench, A)).toHaveLength(1_500)
  })
})

describe('an atomic step that publishes to topics', () => {
  interface Part {
    readonly to: string
    readonly messages: readonly Message[]
  }

  /** Sends the step with this number, which acknowledges the messages that the worker holds. */
  function step(bench: Bench, number: number, parts: readonly Part[], worker?: Worker): readonly Placed[] {
    const batches = parts.map(({ to, messages }) => {
      const bytes = batchOf(messages, number)
      return { queue: to, bytes, at: 0, end: bytes.length }
    })
    const acks = (worker?.got ?? []).map(({ tag }) => ({
      subscription: worker!.subscription,
      firstTag: tag,
      count: 1,
    }))
    return bench.atomic({ number, crc: number, acks, batches })
  }

  it('gives each target its messages, and answers with the number of targets', async () => {
    const bench = await opened()
    bind(bench, 'orders.#', A)
    bind(bench, 'orders.created', A)
    bind(bench, 'orders.created', B, { all: { number: '1' } })
    const messages = [numbered(0), numbered(1), numbered(2)]
    const parts = [
      { to: A, messages: [numbered(7)] },
      { to: '#orders.created', messages },
      { to: '#?users', messages: [numbered(8)] },
      { to: A, messages: [numbered(9)] },
    ]
    const answer = step(bench, ++bench.number, parts)
    expect(answer.map(({ baseOffset }) => baseOffset)).toEqual([0, 2, 0, 4])
    await bench.settle()
    const contents = async (): Promise<unknown> => [await peeked(bench, A), await peeked(bench, B)]
    const expected = [
      [
        [0, 7],
        [1, 0],
        [2, 1],
        [3, 2],
        [4, 9],
      ],
      [[0, 1]],
    ]
    expect(await contents()).toEqual(expected)
    bench.broker.audit()
    // Sent again after other bindings and a crash, it has the same answer and no further effect.
    bind(bench, 'users', C)
    await bench.settle()
    for (const isCrash of [false, true]) {
      if (isCrash) await bench.crash()
      expect(step(bench, bench.number, parts)).toEqual(answer)
      await bench.settle()
      expect(await contents()).toEqual(expected)
      expect(bench.info(C).ready).toBe(0)
      bench.broker.audit()
    }
  })

  it('has no effect if one of the queues refuses it, or no queue is bound', async () => {
    const bench = await opened()
    bench.ensure({ maxMessages: 1 }, B)
    for (const name of [A, B]) bind(bench, 'full', name)
    await bench.publish([{}], B)
    const worker = bench.consume(1_000, { name: A })
    const full = [
      { to: C, messages: [{}] },
      { to: '#full', messages: [{}] },
    ]
    expect(() => step(bench, ++bench.number, full, worker)).toThrow(
      expect.objectContaining({ code: 'QUEUE_FULL', queue: B }),
    )
    const nowhere = [
      { to: C, messages: [{}] },
      { to: '#nowhere', messages: [{}] },
    ]
    expect(() => step(bench, ++bench.number, nowhere)).toThrow(refused('UNROUTABLE'))
    await bench.settle()
    expect(ready(bench)).toEqual([0, 1, 0])
    bench.broker.audit()
  })

  it('is bounded in the messages and bytes of all targets together', async () => {
    const bench = await opened({ segmentBytes: 16 << 20, checkpointBytes: 1 << 20, messageBytesMax: 2 << 20 })
    for (const name of [A, B, C]) bind(bench, 'a', name)
    const third = LIMITS.atomicMessagesMax / 3
    const parts = (count: number): Part[] => [
      { to: '#a', messages: upTo(count).map(() => ({ bodyBytes: 1 })) },
    ]
    expect(() => step(bench, ++bench.number, parts(third + 1))).toThrow(refused('TRANSACTION_TOO_LARGE'))
    expect(step(bench, ++bench.number, parts(third))[0]!.baseOffset).toBe(3)
    const { stepBytesMax } = entryLimits(bench.log.entryBytesMax)
    const large = [{ to: '#a', messages: [{ bodyBytes: Math.ceil(stepBytesMax / 3) }] }]
    expect(() => step(bench, ++bench.number, large)).toThrow(refused('TRANSACTION_TOO_LARGE'))
    await bench.settle()
    expect(ready(bench)).toEqual([third, third, third])
  })
})

it('adds no binding while the memory is full, and still finds and removes those that exist', async () => {
  const bench = await opened()
  const { id } = bind(bench, 'a.#', A)
  bench.broker.memoryFull = { usedBytes: 2 << 20, budgetBytes: 1 << 20 }
  expect(() => bind(bench, 'b.#', A)).toThrow(refused('MEMORY_FULL'))
  expect(bind(bench, 'a.#', A)).toEqual({ changed: false, id })
  expect(listed(bench)).toEqual(['a.# a'])
  expect(bench.broker.topics.unbind({ pattern: topicPattern('a.#'), target: A, match: undefined })).toEqual({
    changed: true,
  })
  bench.broker.memoryFull = undefined
  expect(bind(bench, 'b.#', A).changed).toBe(true)
  await bench.settle()
  await bench.crash()
  expect(listed(bench)).toEqual(['b.# a'])
})
