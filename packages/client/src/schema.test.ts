import type { StandardSchemaV1 } from '@standard-schema/spec'
import { CONTENT_TYPE, OUTCOME, type SettleItem } from '@sluice/protocol'
import { afterEach, beforeEach, describe, expect, expectTypeOf, it } from 'vitest'
import type { Sluice } from './client.js'
import type { Message } from './message.js'
import { queue, type Queue } from './options.js'
import { Peer, turns, until } from './testing/peer.js'

let peer: Peer
let sluice: Sluice

beforeEach(async () => {
  peer = new Peer()
  sluice = await peer.connect()
})

afterEach(async () => {
  await sluice.close({ timeout: 1 }).catch(() => {})
})

type Validated = { value: number } | { issues: { message: string; path?: string[] }[] }

const validate = (value: unknown): Validated => {
  if (value === 'throws') throw new Error('the schema broke')
  const number = Number(value)
  return Number.isNaN(number) ? { issues: [{ message: 'not a number', path: ['total'] }] } : { value: number }
}

/** A queue whose schema converts text to a number, synchronously or asynchronously. */
const numbers = (how: 'sync' | 'async'): Queue<string, number> =>
  queue('q', {
    schema: {
      '~standard': {
        version: 1 as const,
        vendor: 'test',
        types: undefined as { input: string; output: number } | undefined,
        validate: how === 'sync' ? validate : async (value: unknown) => validate(value),
      },
    },
  })

const settled = (): SettleItem[] => peer.link.settles.toSorted((a, b) => a.firstTag - b.firstTag)
const INVALID = {
  outcome: OUTCOME.deadLetter,
  invalid: true,
  reason: 'The body does not match the schema of its queue: total: not a number.',
}

for (const how of ['sync', 'async'] as const) {
  describe(`consuming through a schema that answers ${how}`, () => {
    it('passes the output of the schema to the handler, and dead-letters messages that do not match', async () => {
      const seen: number[] = []
      sluice.consume(numbers(how), { concurrency: 4 }, (message) => {
        expectTypeOf(message).toEqualTypeOf<Message<number>>()
        seen.push(message.body)
        expect(JSON.parse(JSON.stringify(message))).toMatchObject({ body: message.body })
      })
      const channel = await peer.subscribed()
      const tag = peer.link.deliver(channel, 101, ['1', 'one', '2'])
      await until(() => settled().reduce((sum, { count }) => sum + count, 0) === 3)
      expect(seen).toEqual([1, 2])
      expect(settled()).toMatchObject([
        { firstTag: tag, outcome: OUTCOME.ack },
        { firstTag: tag + 1, count: 1, ...INVALID },
        { firstTag: tag + 2, outcome: OUTCOME.ack },
      ])
    })

    it('dead-letters bodies that cannot be decoded', async () => {
      sluice.consume(numbers(how), () => expect.unreachable())
      peer.link.deliver(await peer.subscribed(), 101, ['\u0001\u0001'], { contentType: CONTENT_TYPE.msgpack })
      await until(() => settled().length === 1)
      expect(settled()).toMatchObject([
        { outcome: OUTCOME.deadLetter, invalid: true, reason: expect.stringContaining('msgpack') as string },
      ])
    })

    it('delivers a message again when the schema throws', async () => {
      const failures: unknown[] = []
      sluice.on('handlerError', ({ error }) => failures.push((error as Error).message))
      sluice.consume(numbers(how), () => expect.unreachable())
      peer.link.deliver(await peer.subscribed(), 101, ['throws'])
      await until(() => settled().length === 1)
      expect(settled()).toMatchObject([{ outcome: OUTCOME.retry, reason: 'the schema broke' }])
      expect(failures).toEqual(['the schema broke'])
    })

    it('removes messages that do not match from a batch, and calls no handler for an empty one', async () => {
      const batches: number[][] = []
      sluice.consume(numbers(how), { prefetch: 10, batch: { size: 3 } }, (messages) => {
        expectTypeOf(messages).toEqualTypeOf<Message<number>[]>()
        batches.push(messages.map(({ body }) => body))
      })
      const channel = await peer.subscribed()
      peer.link.deliver(channel, 101, ['1', 'one', '2', 'x', 'y', 'z'])
      await until(() => settled().reduce((sum, { count }) => sum + count, 0) === 6)
      expect(batches).toEqual([[1, 2]])
      expect(settled().filter(({ invalid }) => invalid === true).length).toBe(4)
    })

    it('yields only messages that match', async () => {
      const seen: number[] = []
      const iterating = (async () => {
        for await (const message of sluice.messages(numbers(how))) {
          seen.push(message.body)
          await message.ack()
          if (seen.length === 2) break
        }
      })()
      peer.link.deliver(await peer.subscribed(), 101, ['one', '1', 'two', '2', 'three'])
      await iterating
      expect(seen).toEqual([1, 2])
      expect(settled().map(({ outcome }) => outcome)).toEqual([
        OUTCOME.deadLetter,
        OUTCOME.ack,
        OUTCOME.deadLetter,
        OUTCOME.ack,
        OUTCOME.release,
      ])
      expect(peer.link.named('UNSUBSCRIBE').length).toBe(1)
    })

    it('returns messages that match, and pulls again when none does', async () => {
      const pulling = sluice.pull(numbers(how), { max: 3, wait: '5s' })
      const channel = await peer.subscribed()
      peer.link.deliver(channel, 101, ['one', 'two', 'three'])
      await until(() => settled().length === 3)
      await turns(10)
      peer.link.deliver(channel, 101, ['four', '5'], { offset: 3 })
      const messages = await pulling
      expect(messages.map(({ body }) => body)).toEqual([5])
      await until(() => settled().length === 4)
      expect(settled().every(({ invalid }) => invalid === true)).toBe(true)
      expect(await sluice.pull(numbers(how), { max: 3 })).toEqual([])
    })
  })
}

it('stops pulling once the client is closed, even if no message matched', async () => {
  let validate!: () => void
  const schema: StandardSchemaV1 = {
    '~standard': {
      version: 1,
      vendor: 'test',
      validate: () =>
        new Promise((resolve) => {
          validate = () => resolve({ issues: [{ message: 'no' }] })
        }),
    },
  }
  const pulling = sluice.pull({ name: 'q', schema }, { wait: '1h' })
  peer.link.deliver(await peer.subscribed(), 101, ['one'])
  await until(() => validate !== undefined)
  await sluice.close({ timeout: 0 })
  validate()
  await expect(pulling).rejects.toMatchObject({ code: 'CLOSED' })
})

it('does not read bodies of a queue without a schema', async () => {
  let message: Message | undefined
  sluice.consume('q', (each) => void (message = each))
  peer.link.deliver(await peer.subscribed(), 101, ['\u0001\u0001'], { contentType: CONTENT_TYPE.msgpack })
  await until(() => message !== undefined)
  expect(() => message!.body).toThrow(expect.objectContaining({ code: 'INVALID_BODY' }))
  await until(() => settled().length === 1)
  expect(settled()).toMatchObject([{ outcome: OUTCOME.ack }])
})
