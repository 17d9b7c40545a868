import { describe, expect, it } from 'vitest'
import { Bench, CALLER, Q, type Message } from '../testing/bench.js'

const many = (count: number, message: Message = {}): Message[] => Array.from({ length: count }, () => message)

describe('a request that reads', () => {
  it('waits while other requests run, and is refused when too many requests wait', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    await bench.publish(many(3))
    const peek = { name: Q, state: undefined, from: 0, limit: 10, filter: {} }
    const outcomes = await Promise.allSettled(
      Array.from({ length: 300 }, () => bench.broker.operator.peek(peek, CALLER)),
    )
    const refused = outcomes.filter(({ status }) => status === 'rejected')
    expect(refused).toHaveLength(300 - 256)
    for (const outcome of refused)
      expect(outcome).toMatchObject({ reason: { code: 'TOO_MANY_REQUESTS', retryable: true } })
    expect((await bench.broker.operator.peek(peek, CALLER)).messages).toHaveLength(3)
  })
})
