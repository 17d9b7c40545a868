import { describe, expect, expectTypeOf, it } from 'vitest'
import type { Sluice } from './client.js'
import type { Message } from './message.js'
import {
  connectSettings,
  workerSettings,
  streamSettings,
  pullSettings,
  queue,
  queueOf,
  recordOptions,
  type Queue,
} from './options.js'

describe('headers', () => {
  it('can be any iterable of text entries', () => {
    const given = [
      { tenant: 'a', ü: '🙂' },
      Object.assign(Object.create(null) as object, { tenant: 'a', ü: '🙂' }),
      new Map([
        ['tenant', 'a'],
        ['ü', '🙂'],
      ]),
      new URLSearchParams({ tenant: 'a', ü: '🙂' }),
    ]
    for (const headers of given)
      expect({ ...recordOptions({ headers })!.headers }).toEqual({ tenant: 'a', ü: '🙂' })
    expect({ ...recordOptions({ headers: new Headers({ tenant: 'a' }) })!.headers }).toEqual({ tenant: 'a' })
    expect({ ...recordOptions({ headers: new Map([['__proto__', 'a']]) })!.headers }).toEqual(
      JSON.parse('{"__proto__": "a"}'),
    )
  })

  it('are refused if a part of them would be lost', () => {
    class Request {
      get tenant(): string {
        return 'a'
      }
    }
    const refused: unknown[] = [
      null,
      'text',
      5,
      ['a'],
      [['a', 'b']],
      new Date(),
      new Request(),
      new Set(['a']),
      new Map([[5, 'a']]),
      new Map([['a', 5]]),
      new URLSearchParams('a=1&a=2'),
      { [Symbol('s')]: 'a' },
    ]
    for (const headers of refused) {
      const call = (): unknown => recordOptions({ headers: headers as never })
      expect(call).toThrow(expect.objectContaining({ code: 'INVALID_HEADERS' }))
    }
    expect(refused.length).toBe(12)
  })
})

describe('queues as values', () => {
  it('have their name and schema', () => {
    const schema = {
      '~standard': { version: 1 as const, vendor: 'x', validate: (value: unknown) => ({ value }) },
    }
    expect(queue('a')).toMatchObject({ name: 'a', schema: undefined })
    expect(queue('a', { schema }).schema).toBe(schema)
    expect(queueOf('a').name).toBe('a')
    expect(queueOf({ name: 'a' }).name).toBe('a')
    const wrong: (() => unknown)[] = [
      () => queue(''),
      () => queue('a b'),
      () => queue('a', { schema: {} as never }),
      () => queue('a', { colour: 1 } as never),
      () => queueOf(undefined as never),
      () => queueOf({} as never),
    ]
    for (const make of wrong) expect(make).toThrow(expect.objectContaining({ name: 'SluiceError' }))
    expect(wrong.length).toBe(6)
  })

  it('type published and consumed bodies', () => {
    interface Order {
      total: number
    }
    const orders = queue<Order>('orders')
    expectTypeOf(orders).toEqualTypeOf<Queue<Order>>()
    const typed = (sluice: Sluice): void => {
      void sluice.publish(orders, { total: 1 })
      // @ts-expect-error -- not an order
      void sluice.publish(orders, { total: 'one' })
      void sluice.publish('orders', 'anything')
      sluice.consume(orders, async (message) => expectTypeOf(message).toEqualTypeOf<Message<Order>>())
      sluice.consume('orders', { concurrency: 2 }, (message) =>
        expectTypeOf(message.body).toEqualTypeOf<unknown>(),
      )
      sluice.consume(orders, { batch: { size: 5 } }, (messages) =>
        expectTypeOf(messages).toEqualTypeOf<Message<Order>[]>(),
      )
      sluice.consume(orders, { ordering: 'key' }, (message) =>
        expectTypeOf(message).toEqualTypeOf<Message<Order>>(),
      )
      const wait = '1s' as const
      // @ts-expect-error -- a batch has a size
      sluice.consume(orders, { batch: { wait } }, () => {})
      void sluice.atomic((tx) => {
        tx.publish(orders, { total: 1 })
        // @ts-expect-error -- not an order
        tx.publish(orders, { total: 'one' })
      })
      expectTypeOf(sluice.pull(orders)).resolves.toEqualTypeOf<Message<Order>[]>()
    }
    expect(typed).toBeTypeOf('function')
  })
})

describe('options', () => {
  it('have their defaults', () => {
    expect(workerSettings({})).toEqual({
      ordered: false,
      batch: undefined,
      concurrency: 1,
      messages: 2,
      bytes: 16 * 1024 * 1024,
      processingTimeoutMs: undefined,
      waitsForQueue: true,
    })
    expect(workerSettings({ concurrency: 60_000 }).messages).toBe(65_535)
    expect(streamSettings({})).toMatchObject({ messages: 10 })
    expect(pullSettings({}, 7)).toEqual({ max: 1, waitMs: 0, timeoutMs: 7 })
    expect(recordOptions({ timeout: 5 } as never)).toBe(undefined)
    expect(recordOptions({ at: 5 })).toMatchObject({ atMs: 5 })
  })

  it('are refused if they are unknown or out of bounds, and the error names them', () => {
    for (const options of [{ processingTimeout: 99 }, { processingTimeout: 'long' as never }]) {
      expect(() => workerSettings(options)).toThrow('processingTimeout')
      expect(() => streamSettings(options)).toThrow('processingTimeout')
      expect(() => pullSettings(options, 1)).toThrow('processingTimeout')
    }
    expect(() => workerSettings({ concurency: 1 } as never)).toThrow('concurency')
    expect(() => workerSettings({ concurrency: 0 })).toThrow('concurrency')
    expect(() => workerSettings({ prefetch: 65_536 })).toThrow('prefetch')
    expect(() => pullSettings({ max: 1.5 }, 1)).toThrow('max')
    expect(() => recordOptions({ headers: [] as never })).toThrow('headers')
    expect(() => recordOptions({ headers: { a: 1 } as never })).toThrow('header')
    expect(() => recordOptions({ at: new Date(NaN) })).toThrow('at')
    for (const half of ['half \ud83c', '\udc00']) {
      expect(() => recordOptions({ id: half })).toThrow('an unpaired surrogate')
      expect(() => recordOptions({ key: half })).toThrow('an unpaired surrogate')
      expect(() => recordOptions({ headers: { [half]: 'x' } })).toThrow('an unpaired surrogate')
      expect(() => recordOptions({ headers: { x: half } })).toThrow('an unpaired surrogate')
      expect(() => connectSettings(undefined, { name: half })).toThrow('an unpaired surrogate')
    }
    expect(workerSettings({ processingTimeout: '1s' }).processingTimeoutMs).toBe(1000)
  })
})
