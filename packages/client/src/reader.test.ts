import { decodeCredit, encodeReadOk, OP, type SluiceError } from '@sluice/protocol'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Sluice } from './client.js'
import type { StreamMessage } from './read-message.js'
import type { Missed } from './reader.js'
import { stream, type MessageReader, type ReadOptions } from './streams.js'
import { advanceTime, control, Peer, texts, turns, until, type Link } from './testing/peer.js'

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

/** What a loop over a reader got, and how it ended. */
interface Loop {
  readonly reader: MessageReader<unknown>
  readonly offsets: number[]
  readonly bodies: unknown[]
  /** 'open', 'done', or the code of an error. */
  ended: string
}

function loop(options: ReadOptions = {}, ref: Parameters<Sluice['read']>[0] = 'clicks'): Loop {
  const reader = sluice.read(ref, options)
  const got: Loop = { reader, offsets: [], bodies: [], ended: 'open' }
  const run = async (): Promise<void> => {
    for await (const message of reader) {
      got.offsets.push(message.offset)
      got.bodies.push(message.body)
    }
  }
  run().then(
    () => (got.ended = 'done'),
    (error: unknown) => (got.ended = (error as SluiceError).code),
  )
  return got
}

async function opened(link: Link = peer.link): Promise<number> {
  await until(() => link.named('READ').length > 0)
  await turns()
  return link.named('READ')[0]!.channel
}

const asked = (link: Link = peer.link): object => ({ ...control(link.named('READ').at(-1)!) })

describe('read', () => {
  it('asks for what the options say', async () => {
    loop()
    await opened()
    const credit = { messages: 4_096, bytes: 16 * 1024 * 1024 }
    expect(asked()).toEqual({ name: 'clicks', from: 'first', follow: false, ...credit })
    const filter = { key: 'k', headers: { a: 'b' } }
    loop({ from: { time: '2026-11-01T00:00Z' }, follow: true, filter, prefetch: 10, prefetchBytes: 100 })
    await until(() => peer.link.named('READ').length === 2)
    const fromMs = Date.UTC(2026, 10, 1)
    expect(JSON.parse(JSON.stringify(asked()))).toEqual({
      ...{ name: 'clicks', fromMs, follow: true, filter, messages: 10, bytes: 100 },
    })
    loop({ from: { offset: 7 } })
    await until(() => peer.link.named('READ').length === 3)
    expect(asked()).toMatchObject({ from: 7 })
  })

  it.each([
    [{ from: 'middle' }, "must be 'first', 'last', { offset } or { time }"],
    [{ from: { offset: -1 } }, '`from.offset` is -1'],
    [{ from: { offset: 1, time: 1 } }, "must be 'first', 'last'"],
    [{ from: { time: 'soon' } }, '`from.time` is "soon"'],
    [{ follow: 1 }, '`follow` is 1'],
    [{ prefetch: 0 }, '`prefetch` is 0'],
    [{ filter: { id: 'x' } }, 'no option "id"'],
    [{ ack: true }, 'no option "ack"'],
  ])('refuses %o', (options, text) => {
    expect(() => sluice.read('clicks', options as ReadOptions)).toThrow(text)
  })

  it('yields messages with their fields, and ends at the end', async () => {
    const seen: StreamMessage[] = []
    const done = (async () => {
      for await (const message of sluice.read(stream('clicks'))) seen.push(message)
    })()
    const channel = await opened()
    peer.link.deliver(channel, 201, ['a', 'b'], {
      offset: 4,
      options: { key: 'k', id: 'i', headers: { h: 'v' } },
    })
    peer.link.deliver(channel, 201, ['c', 'd'], { offsets: [8, 10] })
    peer.link.readAt(channel, 201, 100, { isEnd: true })
    await done
    expect(seen.map(({ offset, body }) => [offset, body])).toEqual([
      ...[
        [4, 'a'],
        [5, 'b'],
        [8, 'c'],
        [10, 'd'],
      ],
    ])
    const publishedAt = new Date(1_700_000_000_000)
    const first = {
      stream: 'clicks',
      offset: 4,
      id: 'i',
      key: 'k',
      publishedAt,
      headers: { h: 'v' },
      body: 'a',
    }
    expect(JSON.parse(JSON.stringify(seen[0]))).toEqual(JSON.parse(JSON.stringify(first)))
    expect(seen[3]!.publishedAt).toEqual(new Date(1_700_000_000_001))
    expect(seen[3]).toMatchObject({ key: undefined, id: undefined, headers: {} })
    expect(peer.link.named('UNSUBSCRIBE')).toEqual([])
  })

  it('gives back the credit of messages that were taken, not of those that have arrived', async () => {
    const reader = sluice.read('clicks', { prefetch: 8 })
    const channel = await opened()
    peer.link.deliver(channel, 201, texts(8))
    await turns()
    expect(peer.link.named('CREDIT')).toEqual([])
    for (let i = 0; i < 5; i++) await reader.next()
    await turns()
    const credits = peer.link.named('CREDIT').map(({ payload }) => decodeCredit(payload, 0, payload.length))
    expect(credits).toEqual(
      [2, 2].map((messages) => expect.objectContaining({ messages, bytes: messages * 9 }) as unknown),
    )
    peer.link.deliver(channel, 201, texts(5), { offset: 8 })
    await until(() => peer.links[0]!.closed)
  })

  it('after a reconnect continues after the last message that it yielded', async () => {
    const reader = sluice.read('clicks', { follow: true })
    const channel = await opened()
    peer.link.deliver(channel, 201, texts(5), { offset: 20 })
    for (let i = 0; i < 3; i++) expect((await reader.next()).value?.offset).toBe(20 + i)
    const dialled = peer.dialled()
    peer.link.cut()
    await dialled
    const again = await opened()
    expect(asked()).toMatchObject({ from: 23, follow: true })
    peer.link.deliver(again, 201, texts(2), { offset: 23 })
    expect((await reader.next()).value?.offset).toBe(23)
    expect((await reader.next()).value?.offset).toBe(24)
  })

  it('after a reconnect ends where it would have ended, and continues from the beginning that the broker chose', async () => {
    const { offsets } = loop({ from: 'last' })
    await opened()
    const dialled = peer.dialled()
    peer.link.cut()
    await dialled
    await opened()
    expect(asked()).toMatchObject({ from: 0, until: 100 })
    expect(offsets).toEqual([])
  })

  it('reports missed messages in the order of the messages', async () => {
    const missed: Missed[] = []
    sluice.on('missed', (event) => missed.push(event))
    const reader = sluice.read('clicks')
    const channel = await opened()
    peer.link.deliver(channel, 201, texts(1))
    peer.link.readAt(channel, 201, 50, { missed: 49 })
    peer.link.deliver(channel, 201, texts(1), { offset: 50 })
    await reader.next()
    await turns()
    expect(missed).toEqual([])
    expect((await reader.next()).value?.offset).toBe(50)
    expect(missed).toEqual([{ stream: 'clicks', messages: 49, offset: 50 }])
  })

  it('ends with an error when the broker refuses or ends it, or when another stream has its name', async () => {
    peer.replies[OP.READ] = (frame, link) => link.error('QUEUE_NOT_FOUND', 'request', 0, frame.correlation)
    const refused = loop()
    await until(() => refused.ended !== 'open')
    expect(refused.ended).toBe('QUEUE_NOT_FOUND')

    let queueNumber = 7
    peer.replies[OP.READ] = (frame, link) => {
      const opened = { readerId: 201, queueNumber: queueNumber++, offset: 0, end: 100, missed: 0 }
      link.send(OP.READ_OK, frame.channel, frame.correlation, encodeReadOk(opened))
    }
    const other = loop({ follow: true })
    await opened()
    const dialled = peer.dialled()
    peer.link.cut()
    await dialled
    await until(() => other.ended !== 'open')
    expect(other.ended).toBe('QUEUE_DELETED')

    const deleted = loop({ follow: true })
    await until(() => peer.link.named('READ').length === 2)
    await turns()
    peer.link.error('QUEUE_DELETED', 'channel', peer.link.named('READ')[1]!.channel)
    await until(() => deleted.ended !== 'open')
    expect(deleted.ended).toBe('QUEUE_DELETED')
  })

  it('closes at the broker when its loop ends, its signal is aborted, or the client is closed', async () => {
    const reader = sluice.read('clicks')
    await opened()
    await reader.return?.()
    await until(() => peer.link.named('UNSUBSCRIBE').length === 1)
    const controller = new AbortController()
    const abortable = loop({ signal: controller.signal })
    await until(() => peer.link.named('READ').length === 2)
    await turns()
    controller.abort()
    await until(() => abortable.ended !== 'open')
    expect(abortable.ended).toBe('ABORTED')
    expect(peer.link.named('UNSUBSCRIBE').length).toBe(2)
    const open = loop({ follow: true })
    await sluice.close()
    await until(() => open.ended !== 'open')
    expect(open.ended).toBe('done')
    expect(() => sluice.read('clicks')).toThrow('closed')
  })

  it('yields what has arrived in batches', async () => {
    const sizes: number[] = []
    const done = (async () => {
      for await (const messages of sluice.read('clicks').batches(4)) sizes.push(messages.length)
    })()
    const channel = await opened()
    peer.link.deliver(channel, 201, texts(10))
    peer.link.readAt(channel, 201, 100, { isEnd: true })
    await done
    expect(sizes.reduce((sum, size) => sum + size)).toBe(10)
    expect(Math.max(...sizes)).toBe(4)
  })

  it('with a schema yields its output, and ends at a body that does not match', async () => {
    const schema = {
      '~standard': {
        version: 1 as const,
        vendor: 'test',
        validate: (value: unknown) =>
          value === 'bad' ? { issues: [{ message: 'is bad' }] } : { value: `${value as string}!` },
      },
    }
    const got = loop({}, stream('clicks', { schema }))
    const channel = await opened()
    peer.link.deliver(channel, 201, ['a', 'b', 'bad', 'c'])
    await until(() => got.ended !== 'open')
    expect(got.bodies).toEqual(['a!', 'b!'])
    expect(got.ended).toBe('INVALID_BODY')
  })
})
