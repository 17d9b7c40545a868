import { encodeControl, encodeGoodbye, FRAME_HEADER_BYTES, LIMITS, OP, SluiceError } from '@sluice/protocol'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { Sluice } from './client.js'
import { connectThrough, createClient } from './connect.js'
import { queue } from './options.js'
import { advanceTime, control, Peer, soon, turns, until } from './testing/peer.js'

advanceTime()

let peer: Peer
let sluice: Sluice | undefined

beforeEach(() => {
  peer = new Peer()
  sluice = undefined
})

afterEach(async () => {
  await sluice?.close({ timeout: 1 }).catch(() => {})
})

const PREFACE = Uint8Array.of(0x53, 0x4c, 0x43, 0x45, 1, 0, 0, 0)

describe('connecting', () => {
  it('introduces itself, and reports the broker that it reached', async () => {
    sluice = await peer.connect({ name: 'checkout', heartbeat: '2s' })
    expect(peer.link.hello).toMatchObject({
      name: 'checkout',
      heartbeatMs: 2000,
      acceptedNumber: 0,
      versionMin: 1,
      versionMax: 1,
    })
    expect(peer.link.frames.map(({ name }) => name)).toEqual(['HELLO', 'AUTH'])
    expect(peer.link.writes).toBe(1)
    expect(sluice.connected).toBe(true)
  })

  it('tries again until the broker accepts it', async () => {
    peer.refusals = 3
    sluice = await peer.connect()
    expect(peer.links.length).toBe(1)
  })

  it('gives up with UNREACHABLE after its timeout', async () => {
    peer.refusals = 1000
    const error: unknown = await peer.connect({ connectTimeout: 100 }).catch((error: unknown) => error)
    expect(error).toMatchObject({ code: 'UNREACHABLE' })
    expect((error as SluiceError).message).toContain('ECONNREFUSED')
  })

  it('refuses a value that is not a signal before anything is published', async () => {
    sluice = await peer.connect()
    await expect(sluice.publish('q', 1, { signal: {} as never })).rejects.toThrow('AbortSignal')
    expect(peer.link.named('PUBLISH')).toEqual([])
  })

  it('keeps trying even with the longest timeout', async () => {
    peer.refusals = 1
    sluice = await peer.connect({ connectTimeout: '30d' })
    expect(peer.links.length).toBe(1)
  })

  it('tries once with a timeout of 0', async () => {
    peer.refusals = 1
    await expect(peer.connect({ connectTimeout: 0 })).rejects.toMatchObject({ code: 'UNREACHABLE' })
    sluice = await peer.connect({ connectTimeout: 0 })
    expect(peer.links.length).toBe(1)
  })

  it('reports UNREACHABLE when the peer closes the connection before the handshake is complete', async () => {
    for (const reason of [undefined, new Error('read ECONNRESET')]) {
      peer = new Peer()
      peer.replies[OP.HELLO] = (_frame, link) => void setImmediate(() => link.cut(reason))
      for (const connectTimeout of [0, 500]) {
        const error: unknown = await peer.connect({ connectTimeout }).catch((error: unknown) => error)
        expect(error).toMatchObject({ code: 'UNREACHABLE', outcome: undefined })
        expect((error as SluiceError).message).toContain('closed the connection before the handshake')
      }
      const early = peer.create()
      const reconnecting = new Promise((resolve) =>
        early.on('reconnecting', ({ error }) => resolve(error.code)),
      )
      expect(await soon(reconnecting)).toBe('UNREACHABLE')
      await expect(early.ready({ timeout: 1 })).rejects.toMatchObject({ code: 'UNREACHABLE' })
      await early.close()
    }
  })

  it('reports UNREACHABLE when it does not reconnect in time', async () => {
    sluice = await peer.connect()
    peer.refusals = 1000
    peer.link.cut()
    await expect(sluice.ready({ timeout: 0 })).rejects.toMatchObject({ code: 'UNREACHABLE' })
  })

  it('fails at once with a permanent error', async () => {
    for (const code of ['AUTH_FAILED', 'PROTOCOL_VERSION'] as const) {
      peer = new Peer()
      peer.replies[OP.HELLO] = (_frame, link) => {
        link.sendBytes(PREFACE)
        link.error(code, 'connection')
      }
      await expect(peer.connect()).rejects.toMatchObject({ code })
      expect(peer.links.length).toBe(1)
    }
    peer = new Peer()
    peer.replies[OP.HELLO] = (_frame, link) => link.sendBytes(Buffer.from('HTTP/1.1 400 Bad Request'))
    await expect(peer.connect()).rejects.toMatchObject({ code: 'PROTOCOL_VERSION' })
  })

  it('can be aborted', async () => {
    peer.refusals = 1000
    const controller = new AbortController()
    const connecting = peer.connect({ signal: controller.signal })
    setTimeout(() => controller.abort(), 20)
    await expect(connecting).rejects.toMatchObject({ code: 'ABORTED' })
    await expect(peer.connect({ signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORTED' })
  })

  it('refuses invalid addresses and unknown options', async () => {
    const wrong: [string, object, string][] = [
      ['http://localhost', {}, 'INVALID_URL'],
      ['sluice://h/path', {}, 'INVALID_URL'],
      ['sluice://h:99999', {}, 'INVALID_URL'],
      ['sluice://u:p@h', {}, 'NOT_SUPPORTED'],
      ['sluice://h', { tls: true }, 'NOT_SUPPORTED'],
      ['sluice://h', { colour: 1 }, 'INVALID_ARGUMENT'],
      ['sluice://h', { maxInFlight: 0 }, 'INVALID_ARGUMENT'],
      ['sluice://h', { timeout: '5 parsecs' }, 'INVALID_ARGUMENT'],
      ['sluice://h', { name: 'n'.repeat(256) }, 'INVALID_ARGUMENT'],
    ]
    for (const [url, options, code] of wrong)
      await expect(connectThrough(peer.dial, url, options)).rejects.toMatchObject({ code })
    expect(peer.links.length).toBe(0)
  })
})

describe('a client without a connection', () => {
  it('exists at once, connects in the background, and emits an event', async () => {
    peer.refusals = 3
    peer.confirmAll()
    sluice = peer.create({ name: 'early' })
    const events: unknown[] = []
    sluice.on('connected', ({ again }) => events.push(again))
    sluice.on('reconnecting', ({ error }) => events.push(error.code))
    expect(sluice.connected).toBe(false)
    const publish = sluice.publish('q', 'x')
    const worker = sluice.consume('q', () => {})
    await soon(sluice.ready())
    expect(sluice.connected).toBe(true)
    expect(peer.link.hello?.name).toBe('early')
    expect((await publish).offset).toBe(0)
    await peer.subscribed()
    expect(events).toEqual(['UNREACHABLE', 'UNREACHABLE', 'UNREACHABLE', false])
    await soon(sluice.ready())
    peer.link.cut()
    await soon(sluice.ready())
    expect(events.slice(4)).toEqual(['CONNECTION_LOST', true])
    await worker.close()
  })

  it('can be awaited with a timeout and a signal, and continues to dial after that', async () => {
    peer.refusals = 1000
    sluice = peer.create()
    await expect(soon(sluice.ready({ timeout: 20 }))).rejects.toMatchObject({ code: 'UNREACHABLE' })
    const controller = new AbortController()
    const ready = sluice.ready({ signal: controller.signal })
    controller.abort()
    await expect(ready).rejects.toMatchObject({ code: 'ABORTED' })
    await expect(sluice.ready({ wait: 1 } as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    peer.refusals = 0
    await soon(sluice.ready())
    const waiting = sluice.ready()
    await waiting
    await sluice.close()
    await expect(sluice.ready()).rejects.toMatchObject({ code: 'CLOSED' })
  })

  it('ends with a permanent error, which `ready`, all calls and an event report', async () => {
    peer.replies[OP.HELLO] = (_frame, link) => {
      link.sendBytes(PREFACE)
      link.error('AUTH_FAILED', 'connection')
    }
    sluice = peer.create()
    const errors: string[] = []
    sluice.on('error', ({ code }) => errors.push(code))
    const publish = sluice.publish('q', 'x')
    const ready = [sluice.ready(), sluice.ready()]
    for (const call of [...ready, publish]) await expect(call).rejects.toMatchObject({ code: 'AUTH_FAILED' })
    await expect(sluice.ready()).rejects.toMatchObject({ code: 'AUTH_FAILED' })
    expect(errors).toEqual(['AUTH_FAILED'])
    expect(peer.links.length).toBe(1)
  })

  it('can be closed before it has connected', async () => {
    peer.refusals = 1000
    sluice = peer.create()
    const ready = sluice.ready().catch((error: unknown) => error)
    await sluice.close()
    expect(await ready).toMatchObject({ code: 'CLOSED' })
  })

  it('refuses invalid addresses and unknown options at once', () => {
    expect(() => createClient('http://localhost')).toThrow(SluiceError)
    expect(() => createClient({ connectTimeout: 5 } as never)).toThrow('connectTimeout')
  })
})

describe('a publish that does not wait for a connection', () => {
  const calls: [string, (sluice: Sluice) => Promise<unknown>][] = [
    ['publish', (sluice) => sluice.publish('q', 'x', { offline: 'fail' })],
    ['publishBatch', (sluice) => sluice.publishBatch('q', [{ body: 'x' }], { offline: 'fail' })],
    ['atomic', (sluice) => sluice.atomic((tx) => tx.publish('q', 'x'), { offline: 'fail' })],
  ]
  for (const [name, call] of calls) {
    it(`fails at once without a connection, with a known outcome: ${name}`, async () => {
      peer.refusals = 1000
      sluice = peer.create()
      const waits = sluice.publish('q', 'waits')
      await expect(call(sluice)).rejects.toMatchObject({
        code: 'OFFLINE',
        outcome: undefined,
        retryable: true,
      })
      peer.confirmAll()
      peer.refusals = 0
      await soon(sluice.ready())
      expect((await waits).offset).toBe(0)
      expect(peer.link.published.map(({ bodies }) => bodies)).toEqual([['waits']])
    })

    it(`fails when the connection is lost or the broker stops before the publish is sent: ${name}`, async () => {
      for (const end of ['cut', 'goodbye'] as const) {
        peer = new Peer()
        sluice = await peer.connect({ maxInFlight: 1 })
        const sent = sluice.publish('q', 'sent', { offline: 'fail' })
        await turns()
        const unsent = call(sluice)
        const waits = sluice.publish('q', 'waits')
        await turns()
        if (end === 'cut') peer.link.cut()
        else peer.link.send(OP.GOODBYE, 0, 0, encodeGoodbye(1, 'restarting'))
        await expect(unsent).rejects.toMatchObject({ code: 'OFFLINE', outcome: undefined })
        peer.confirmAll()
        if (end === 'goodbye') peer.link.cut()
        // A publish that was sent is sent again, as always.
        await soon(Promise.all([sent, waits]))
        expect(peer.link.published.map(({ bodies }) => bodies)).toEqual([['sent'], ['waits']])
        await sluice.close()
      }
    })
  }

  it('refuses unknown values of the option', async () => {
    sluice = await peer.connect()
    await expect(sluice.publish('q', 'x', { offline: 'never' as never })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    })
  })
})

describe('a hostile broker', () => {
  const frame = (opcode: number, payload: Uint8Array, length = payload.length): Uint8Array => {
    const bytes = new Uint8Array(FRAME_HEADER_BYTES + payload.length)
    new DataView(bytes.buffer).setUint32(0, length, true)
    bytes[4] = opcode
    bytes.set(payload, FRAME_HEADER_BYTES)
    return bytes
  }
  const nonsense: [string, Uint8Array][] = [
    ['an unknown frame', frame(250, new Uint8Array(4))],
    ['a frame that only clients send', frame(OP.PUBLISH, new Uint8Array(4))],
    ['half an ATOMIC_OK', frame(OP.ATOMIC_OK, new Uint8Array(4))],
    ['a second HELLO_OK', frame(OP.HELLO_OK, new Uint8Array(40))],
    ['a frame longer than agreed', frame(OP.DELIVER, new Uint8Array(0), 0xffff_ffff)],
    ['half a PUBLISH_OK', frame(OP.PUBLISH_OK, new Uint8Array(19))],
    ['a PUBLISH_OK with four billion duplicates', frame(OP.PUBLISH_OK, new Uint8Array(20).fill(0xff))],
    ['a PUBLISH_ERR without a fault', frame(OP.PUBLISH_ERR, new Uint8Array(8))],
    ['an ERROR of an unknown scope', frame(OP.ERROR, Uint8Array.of(1, 0, 9, 0, 0, 0, 0, 0, 0, 0))],
    ['half a GOODBYE', frame(OP.GOODBYE, new Uint8Array(1))],
    ['a PING with a payload', frame(OP.PING, new Uint8Array(1))],
  ]

  for (const [what, bytes] of nonsense) {
    it(`is disconnected, and dialled again, after ${what}`, async () => {
      sluice = await peer.connect()
      const lost: string[] = []
      sluice.on('disconnected', ({ error }) => lost.push(error.code))
      const dialled = peer.dialled()
      const first = peer.link
      first.sendBytes(bytes)
      await dialled
      await until(() => sluice!.connected)
      expect(lost.length).toBe(1)
      expect(first.closed).toBe(true)
    })
  }

  it('is disconnected after malformed deliveries', async () => {
    const deliveries: ((channel: number) => void)[] = [
      (channel) => peer.link.send(OP.DELIVER, channel, 0, new Uint8Array(31)),
      (channel) => {
        // The delivery exceeds the credit of two.
        peer.link.deliver(channel, 101, ['a', 'b', 'c'])
      },
      (channel) => {
        const head = new Uint8Array(40)
        head[0] = 101
        new DataView(head.buffer).setUint32(24, 0xffff_ffff, true)
        peer.link.send(OP.DELIVER, channel, 0, head)
      },
    ]
    sluice = await peer.connect()
    sluice.consume('q', () => {})
    for (const deliver of deliveries) {
      const { link } = peer
      await until(() => link.named('SUBSCRIBE').length === 1)
      await turns()
      const dialled = peer.dialled()
      deliver(link.named('SUBSCRIBE')[0]!.channel)
      await dialled
      expect(link.closed).toBe(true)
    }
    expect(peer.links.length).toBe(deliveries.length + 1)
  })

  it('cannot offer invalid limits', async () => {
    const offers = [
      { inFlightBatchesMax: 0 },
      { inFlightBytesMax: 0 },
      { frameBytesMax: 0xffff_ffff },
      { frameBytesMax: 100 },
      { heartbeatMs: 0 },
    ]
    for (const offer of offers) {
      peer = new Peer()
      peer.replies[OP.HELLO] = (_frame, link) => link.helloOk(offer)
      await expect(peer.connect({ connectTimeout: 0 })).rejects.toMatchObject({ code: 'MALFORMED_FRAME' })
    }
  })

  it('cannot send a large frame before it has introduced itself', async () => {
    peer.replies[OP.HELLO] = (_frame, link) => {
      link.sendBytes(PREFACE)
      link.sendBytes(frame(OP.HELLO_OK, new Uint8Array(0), LIMITS.frameBytesUnauthenticated))
    }
    await expect(peer.connect({ connectTimeout: 0 })).rejects.toMatchObject({ code: 'FRAME_TOO_LARGE' })
  })
})

describe('requests', () => {
  const info = {
    name: 'q',
    options: { maxDeliveries: 5, retryInitialMs: 1000, retryMaxMs: 60_000 },
    ready: 3,
    createdAtMs: 1_900_000_000_000,
  }

  it('ensures, gets, lists, deletes and purges queues', async () => {
    sluice = await peer.connect()
    const answers: Record<number, object> = {
      [OP.ENSURE]: { created: true, queue: info },
      [OP.GET]: { queue: info },
      [OP.LIST]: { queues: [info, info] },
      [OP.DELETE]: { messages: 7 },
      [OP.PURGE]: { messages: 8 },
    }
    for (const [opcode, answer] of Object.entries(answers))
      peer.replies[Number(opcode)] = (frame, link) =>
        link.send(OP.RESULT, 0, frame.correlation, encodeControl(answer as Record<string, unknown>))
    const shaped = {
      name: 'q',
      options: { maxDeliveries: 5, retry: { initial: 1000, max: 60_000 } },
      ready: 3,
      rateUntil: null,
      createdAt: new Date(1_900_000_000_000),
    }
    const ensured = await sluice.queues.ensure(queue('q'), {
      maxDeliveries: 5,
      retry: { initial: '1s', max: '1m' },
      update: true,
    })
    expect(ensured).toEqual({ created: true, queue: shaped })
    expect(JSON.parse(JSON.stringify(control(peer.link.named('ENSURE')[0]!)))).toEqual({
      name: 'q',
      options: { maxDeliveries: 5, retryInitialMs: 1000, retryMaxMs: 60_000 },
      update: true,
    })
    expect(await sluice.queues.get('q')).toEqual(shaped)
    expect(await sluice.queues.list()).toEqual([shaped, shaped])
    peer.replies[OP.LIST] = (frame, link) => {
      const more = control(frame)['after'] === undefined
      link.send(
        OP.RESULT,
        0,
        frame.correlation,
        encodeControl({ queues: [{ ...info, name: more ? 'p' : 'q' }], more }),
      )
    }
    expect((await sluice.queues.list()).map(({ name }) => name)).toEqual(['p', 'q'])
    expect(await sluice.queues.delete('q')).toEqual({ messages: 7 })
    expect(await sluice.queues.purge('q')).toEqual({ messages: 8 })
  })

  it('reject with the error of the broker, when their deadline passes, and when their signal is aborted', async () => {
    sluice = await peer.connect()
    const missing = sluice.queues.get('q')
    await until(() => peer.link.named('GET').length === 1)
    peer.link.error('QUEUE_NOT_FOUND', 'request', 0, peer.link.named('GET')[0]!.correlation)
    await expect(missing).rejects.toMatchObject({ code: 'QUEUE_NOT_FOUND' })
    await expect(sluice.queues.get('q', { timeout: 20 })).rejects.toMatchObject({
      code: 'TIMEOUT',
      outcome: 'unknown',
    })
    const signal = AbortSignal.timeout(20)
    await expect(sluice.queues.get('q', { signal })).rejects.toMatchObject({ code: 'ABORTED' })
    await expect(sluice.queues.get('no such name')).rejects.toMatchObject({ code: 'INVALID_NAME' })
  })

  it('are repeated after a lost connection only if they are repeatable', async () => {
    sluice = await peer.connect()
    const list = sluice.queues.list()
    const purge = sluice.queues.purge('q').catch((error: unknown) => error)
    await until(() => peer.link.named('PURGE').length === 1)
    peer.replies[OP.LIST] = (frame, link) =>
      link.send(OP.RESULT, 0, frame.correlation, encodeControl({ queues: [] }))
    peer.link.cut()
    expect(await purge).toMatchObject({ code: 'CONNECTION_LOST', outcome: 'unknown' })
    expect(await list).toEqual([])
    expect(peer.link.named('PURGE').length).toBe(0)
  })
})

describe('events and closing', () => {
  it('emits events for connections, and survives errors without a listener', async () => {
    const log: unknown[] = []
    sluice = await peer.connect()
    sluice.on('disconnected', ({ error }) => log.push(['disconnected', error.code]))
    sluice.on('reconnecting', ({ attempt }) => log.push(['reconnecting', attempt]))
    sluice.on('connected', ({ again }) => log.push(['connected', again]))
    const off = sluice.on('notice', ({ code }) => log.push(['notice', code]))
    peer.link.error('LEASE_LOST', 'request')
    peer.link.send(OP.GOODBYE, 0, 0, encodeGoodbye(1, 'restarting'))
    await turns()
    off()
    peer.link.send(OP.GOODBYE, 0, 0, encodeGoodbye(1, 'restarting'))
    await turns()
    peer.link.cut()
    await until(() => log.length === 4)
    expect(log).toEqual([
      ['notice', 'SHUTTING_DOWN'],
      ['disconnected', 'CONNECTION_LOST'],
      ['reconnecting', 1],
      ['connected', true],
    ])
  })

  it('sends no new work to a broker that has sent GOODBYE', async () => {
    peer.confirmAll()
    sluice = await peer.connect()
    peer.link.send(OP.GOODBYE, 0, 0, encodeGoodbye(1, 'restarting'))
    await turns()
    const publish = sluice.publish('q', 'x')
    await turns()
    expect(peer.link.named('PUBLISH').length).toBe(0)
    peer.link.cut()
    expect((await publish).offset).toBe(0)
    expect(peer.links.length).toBe(2)
  })

  it('answers a ping', async () => {
    sluice = await peer.connect()
    peer.link.send(OP.PING, 0, 77, new Uint8Array(0))
    await until(() => peer.link.named('PONG').length === 1)
    expect(peer.link.named('PONG')[0]!.correlation).toBe(77)
  })

  it('pings when it sends nothing else, and disconnects from a silent broker', async () => {
    peer.replies[OP.HELLO] = (_frame, link) => link.helloOk({ heartbeatMs: 100 })
    sluice = await peer.connect()
    const lost: string[] = []
    sluice.on('disconnected', ({ error }) => lost.push(error.code))
    await until(() => lost.length === 1)
    expect(peer.links[0]!.named('PING').length).toBeGreaterThanOrEqual(2)
    expect(lost).toEqual(['HEARTBEAT_TIMEOUT'])
  })

  it('flushes what was published before it closes', async () => {
    sluice = await peer.connect()
    const publish = sluice.publish('q', 'x')
    const closed = sluice.close()
    await turns()
    expect(peer.link.ended).toBe(false)
    peer.link.confirm([1, 0])
    await closed
    expect((await publish).offset).toBe(0)
    expect(peer.link.frames.at(-1)!.name).toBe('GOODBYE')
    expect(peer.link.ended).toBe(true)
    await Promise.all([sluice.close(), sluice.close()])
    await expect(sluice.publish('q', 'y')).rejects.toMatchObject({ code: 'CLOSED' })
    await expect(sluice.queues.list()).rejects.toMatchObject({ code: 'CLOSED' })
    await expect(sluice.pull('q')).rejects.toMatchObject({ code: 'CLOSED' })
    expect(() => sluice!.consume('q', () => {})).toThrow(SluiceError)
  })

  it('gives up at the timeout of close, with unknown outcomes', async () => {
    sluice = await peer.connect({ maxInFlight: 1 })
    const sent = sluice.publish('q', 'x').catch((error: unknown) => error)
    const waiting = sluice.publish('q', 'y').catch((error: unknown) => error)
    await turns()
    await expect(sluice.close({ timeout: 20 })).rejects.toMatchObject({ code: 'TIMEOUT' })
    expect(await sent).toMatchObject({ code: 'CLOSED', outcome: 'unknown' })
    expect(await waiting).toMatchObject({ code: 'CLOSED', outcome: undefined })
  })

  it('closes at once, without an error, when the timeout is 0', async () => {
    sluice = await peer.connect()
    let begun = false
    const worker = sluice.consume('q', async (message) => {
      begun = true
      void message.ack()
      await new Promise(() => {})
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, ['done'])
    await until(() => begun)
    const sent = sluice.publish('q', 'x').catch((error: unknown) => error)
    await sluice.close({ timeout: 0 })
    expect(await sent).toMatchObject({ code: 'CLOSED', outcome: 'unknown' })
    await worker.closed
    expect(peer.link.settles).toMatchObject([{ firstTag: tag, count: 1 }])
    expect(peer.link.frames.at(-1)!.name).toBe('GOODBYE')
  })

  it('waits for its publishes even with the longest timeout', async () => {
    sluice = await peer.connect()
    const publish = sluice.publish('q', 'x')
    const closed = sluice.close({ timeout: '30d' })
    // This is long enough for a timer that overflows and fires at once.
    await new Promise((resolve) => setTimeout(resolve, 10))
    peer.link.confirm([1, 7])
    await closed
    expect((await publish).offset).toBe(7)
  })

  it.each<[string, string, (client: Sluice) => Promise<unknown>]>([
    ['was refused', 'INVALID_BODY', (client) => client.publish('q', undefined)],
    ['was aborted', 'ABORTED', (client) => client.publish('q', 'x', { signal: AbortSignal.timeout(5) })],
    ['has timed out', 'TIMEOUT', (client) => client.publish('q', 'x', { timeout: 5 })],
  ])('does not wait for a connection for a publish that %s', async (_, code, publish) => {
    peer.refusals = 1000
    sluice = peer.create()
    await turns()
    const published = publish(sluice)
    const closed = sluice.close()
    await expect(published).rejects.toMatchObject({ code })
    await closed
  })

  it('can be closed by a listener for `disconnected`', async () => {
    sluice = await peer.connect()
    const heard: string[] = []
    let closed: Promise<void> | undefined
    sluice.on('disconnected', () => {
      closed = sluice!.close({ timeout: 0 })
    })
    for (const name of ['connected', 'reconnecting'] as const) sluice.on(name, () => heard.push(name))
    peer.link.cut()
    await until(() => closed !== undefined)
    await closed
    // The first pause takes at most 50 ms.
    await vi.advanceTimersByTimeAsync(100)
    expect([heard, sluice.connected, peer.links.length]).toEqual([[], false, 1])
  })

  it('refuses unknown events and options, and invalid listeners', async () => {
    sluice = await peer.connect()
    const invalid = { code: 'INVALID_ARGUMENT' }
    const wrong = [
      () => sluice!.on('disconect' as never, () => {}),
      () => sluice!.on('toString' as never, () => {}),
      () => sluice!.on('error', undefined as never),
      () => sluice!.consume({ name: 'q', schema: {} as never }, () => {}),
    ]
    for (const call of wrong) expect(call).toThrow(expect.objectContaining(invalid))
    const worker = sluice.consume('q', () => {})
    const rejected: Promise<unknown>[] = [
      sluice.close({ timeOut: 1 } as never),
      sluice.close({ timeout: 'soon' as never }),
      worker.close({ timeout: -1 }),
      worker.close(null as never),
      sluice.publish({ name: 'q', schema: null as never }, 1),
      sluice.publishBatch('q', new Set([{ body: 1 }]) as never),
      // oxlint-disable-next-line no-sparse-arrays -- a hole is the case
      sluice.publishBatch('q', [, { body: 1 }] as never),
    ]
    for (const call of rejected) await expect(call).rejects.toMatchObject(invalid)
    expect(sluice.connected).toBe(true)
  })

  it('emits an event for a lost connection, but not for one that it closed itself', async () => {
    sluice = await peer.connect()
    const lost: string[] = []
    sluice.on('disconnected', ({ error }) => lost.push(error.code))
    peer.link.cut()
    await until(() => sluice!.connected)
    expect(lost).toEqual(['CONNECTION_LOST'])
    await sluice.close()
    expect(lost).toEqual(['CONNECTION_LOST'])
  })

  it('closes its workers, iterators and pulls', async () => {
    sluice = await peer.connect()
    const worker = sluice.consume('q', () => {})
    const next = sluice.messages('q').next()
    const pull = sluice.pull('q', { wait: '20s' }).catch((error: unknown) => error)
    await until(() => peer.link.named('SUBSCRIBE').length === 3)
    await sluice.close()
    await worker.closed
    expect(await next).toEqual({ value: undefined, done: true })
    expect(await pull).toMatchObject({ code: 'CLOSED' })
  })

  it('ends when a broker refuses it permanently after a reconnect', async () => {
    sluice = await peer.connect()
    const errors: string[] = []
    sluice.on('error', ({ code }) => errors.push(code))
    const worker = sluice.consume('q', () => {})
    peer.replies[OP.HELLO] = (_frame, link) => {
      link.sendBytes(PREFACE)
      link.error('AUTH_FAILED', 'connection')
    }
    peer.link.cut()
    await expect(worker.closed).rejects.toMatchObject({ code: 'AUTH_FAILED' })
    expect(errors).toEqual(['AUTH_FAILED'])
    await expect(sluice.publish('q', 'x')).rejects.toMatchObject({ code: 'AUTH_FAILED' })
    await sluice.close()
  })
})

it('a client is checked after each turn in which the broker or the client has sent something', async () => {
  peer.confirmAll()
  sluice = await peer.connect()
  const before = peer.checks
  for (let i = 0; i < 10; i++) await sluice.publish('q', i)
  await turns()
  expect(peer.checks - before).toBeGreaterThanOrEqual(10)
})

describe('schemas', () => {
  const schema = {
    '~standard': {
      version: 1 as const,
      vendor: 'test',
      validate: async (value: unknown) =>
        typeof value === 'number'
          ? { value: `${value}!` }
          : { issues: [{ message: 'not a number', path: ['a', { key: 'b' }] }] },
    },
  }

  it('validate a published body without changing it, and convert it for the consumer', async () => {
    peer.confirmAll()
    sluice = await peer.connect()
    const numbers = queue('n', { schema })
    await sluice.publish(numbers, 5)
    await sluice.publishBatch(numbers, [{ body: 6 }])
    expect(peer.link.named('PUBLISH').map(({ payload }) => [payload.at(-1)])).toEqual([[5], [6]])
    const error: unknown = await sluice.publish(numbers, 'x').catch((error: unknown) => error)
    expect(error).toMatchObject({ code: 'INVALID_BODY' })
    expect((error as SluiceError).message).toContain('a.b: not a number')
  })
})
