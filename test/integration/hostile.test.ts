/**
 * Peers that break the protocol, by accident or on purpose. Each receives the right error code and a sentence with the
 * value and the limit, and loses no more than the scope of the error: one request, one channel or the connection. No
 * other client is affected.
 */
import { connect, type Sluice, type Worker } from '@sluice/client'
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  ERRORS,
  FrameDecoder,
  LIMITS,
  OP,
  OPCODES,
  OUTCOME,
  decodeControl,
  decodeDeliverHead,
  decodeFault,
  decodePublishErr,
  decodePublishOk,
  decodeSubscribed,
  encodeAtomic,
  encodeAuth,
  encodeControl,
  encodeCredit,
  encodeExtend,
  encodePreface,
  encodeRanges,
  encodeSettle,
  encodeSubscriptionId,
  writeU16,
  writeU32,
  type AtomicAck,
  type ErrorCode,
  type ErrorScope,
} from '@sluice/protocol'
import { startServer, type RunningServer, type ServerOptions } from '@sluice/server'
import { randomBytes } from 'node:crypto'
import { connect as dial, type Socket } from 'node:net'
import { crc32 } from 'node:zlib'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { PROCESS_METER } from '../../packages/server/src/memory.js'
import { authFrame, batch, frame, helloFrame, publishFrame } from '../rig/frames.js'
import { Peer } from '../rig/peer.js'
import { scratchDirectory } from '../rig/scratch.js'
import { until } from '../rig/wait.js'
import { Random } from '../fault/random.js'

const SEED = Number(process.env['SLUICE_SEED'] ?? Date.now() % 1_000_000)
const HANDSHAKE_MS = 400
const STALLED_MS = 500
const QUEUE = 'target'
const text = new TextEncoder()
const BODY = text.encode('hello')

const collectGarbage = (): void => PROCESS_METER.collect()

interface Event {
  readonly event: string
  readonly details: Readonly<Record<string, unknown>>
}

let server: RunningServer
let scratch: Awaited<ReturnType<typeof scratchDirectory>>
let honest: Honest
const events: Event[] = []
const peers = new Set<Peer>()

/**
 * A client that works in rounds during each attack: it publishes a message, consumes it, and waits until the publish
 * and the ack are confirmed.
 */
class Honest {
  rounds = 0
  readonly troubles: string[] = []
  readonly #sluice: Sluice
  readonly #worker: Worker
  readonly #running: Promise<void>
  #arrived: (() => void) | undefined
  #stopping = false

  private constructor(sluice: Sluice) {
    this.#sluice = sluice
    for (const name of ['disconnected', 'error', 'handlerError'] as const) {
      sluice.on(name, (event) => this.troubles.push(`${name}: ${JSON.stringify(event)}`))
    }
    this.#worker = sluice.consume<number>('honest', async (message) => {
      if (message.redelivered || message.body !== this.rounds) {
        this.troubles.push(`round ${this.rounds} got ${message.body}, redelivered ${message.redelivered}`)
      }
      await message.ack()
      this.#arrived?.()
    })
    this.#running = this.#run()
  }

  static async start(port: number): Promise<Honest> {
    const sluice = await connect(`sluice://127.0.0.1:${port}`, { name: 'honest' })
    await sluice.queues.ensure('honest')
    return new Honest(sluice)
  }

  async #run(): Promise<void> {
    try {
      while (!this.#stopping) {
        const arrived = new Promise<void>((resolve) => {
          this.#arrived = resolve
        })
        await this.#sluice.publish('honest', this.rounds)
        await arrived
        this.rounds++
      }
    } catch (error) {
      this.troubles.push(String(error))
    }
  }

  /** Expects that new rounds complete without an error. */
  async goesOn(): Promise<void> {
    const reached = this.rounds + 3
    await until('the honest client to continue', () => this.rounds >= reached || this.troubles.length > 0)
    expect(this.troubles).toEqual([])
  }

  async stop(): Promise<void> {
    this.#stopping = true
    await this.#running
    await this.#worker.close()
    await this.#sluice.close()
  }
}

beforeAll(async () => {
  scratch = await scratchDirectory('hostile')
  server = await startServer({
    port: 0,
    dataDir: scratch.path,
    segmentBytes: 8 << 20,
    lowFreeBytes: 1 << 20,
    session: {
      handshakeMs: HANDSHAKE_MS,
      stalledMs: STALLED_MS,
      outboundBytesSoft: 1 << 20,
      outboundBytesHard: 4 << 20,
    },
    onEvent: (event, details) => events.push({ event, details }),
    onFatal: (error) => {
      throw error
    },
  })
  honest = await Honest.start(server.port)
  const sluice = await connect(`sluice://127.0.0.1:${server.port}`)
  for (const queue of [QUEUE, 'slow', 'fuzz']) await sluice.queues.ensure(queue)
  await sluice.close()
})

afterEach(async () => {
  await Promise.all([...peers].map((peer) => peer.dispose()))
  peers.clear()
  await honest.goesOn()
  server.broker.audit()
  expect(server.broker.usage().blockBytes).toBeLessThan(160 << 20)
})

afterAll(async () => {
  await honest.stop()
  await server.stop()
  await scratch.dispose()
})

async function bare(): Promise<Peer> {
  const peer = await Peer.connect(server.port)
  peers.add(peer)
  return peer
}

async function open(
  ...hello: Parameters<typeof Peer.open> extends [number, ...infer Rest] ? Rest : never
): Promise<Peer> {
  const peer = await Peer.open(server.port, ...hello)
  peers.add(peer)
  return peer
}

interface Expected {
  readonly code: ErrorCode
  readonly scope?: ErrorScope
  /** Names and values that the error's `message` must contain. */
  readonly names: readonly (string | number)[]
}

/** Expects this error, and a closed connection if and only if the error's scope is the connection. */
async function expectFault(peer: Peer, { code, scope = ERRORS[code].scope, names }: Expected): Promise<void> {
  const fault = await peer.fault()
  expect({ code: fault.code, scope: fault.scope, retryable: fault.retryable }).toEqual({
    code,
    scope,
    retryable: ERRORS[code].retryable,
  })
  for (const name of names) expect(fault.message).toContain(String(name))
  expectSentence(fault.message)
  if (scope === 'connection') await peer.closed
  else expect(await peer.answers()).toBe(true)
}

/** Expects one line of printable text, of bounded length. */
function expectSentence(sentence: string): void {
  expect(sentence).toMatch(/^[^\p{Cc}\u2028\u2029]+[.:/]$/u)
  expect(sentence.length).toBeLessThan(500)
}

function settlement(subscriptionId: number, firstTag: number, count: number): Uint8Array {
  return encodeSettle(subscriptionId, [{ firstTag, count, outcome: OUTCOME.ack }])
}

function control(opcode: number, body: { readonly [name: string]: unknown }, channel = 0): Uint8Array {
  return frame(opcode, channel, 9, encodeControl(body))
}

/** An atomic step with a message of five bytes for each of these queues. */
function atomicStep(number: number, queues: readonly string[], acks: readonly AtomicAck[] = []): Uint8Array {
  const batches = queues.map((queue) => {
    const bytes = batch(number, [{ payload: BODY }])
    return { queue, bytes, at: 0, end: bytes.length }
  })
  return encodeAtomic(number, acks, batches)
}

function withU32(bytes: Uint8Array, at: number, value: number): Uint8Array {
  const changed = new Uint8Array(bytes)
  writeU32(changed, at, value)
  return changed
}

function withByte(bytes: Uint8Array, at: number, value: number): Uint8Array {
  const changed = new Uint8Array(bytes)
  changed[at] = value
  return changed
}

/** The batch with a checksum that matches its changed records. */
function resealed(bytes: Uint8Array): Uint8Array {
  const changed = new Uint8Array(bytes)
  writeU32(changed, 44, crc32(changed.subarray(BATCH_HEADER_BYTES)))
  return changed
}

describe('before the handshake is done', () => {
  const foreign: Record<string, Uint8Array> = {
    'an HTTP request': text.encode('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'),
    'a TLS hello': Uint8Array.of(
      0x16,
      0x03,
      0x01,
      0x02,
      0x00,
      0x01,
      0x00,
      0x01,
      0xfc,
      0x03,
      0x03,
      ...randomBytes(64),
    ),
    'an SSH banner': text.encode('SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n'),
    'an AMQP header': Uint8Array.of(0x41, 0x4d, 0x51, 0x50, 0, 0, 9, 1),
    'random bytes': Uint8Array.of(0xff, ...randomBytes(200)),
    'almost our magic': text.encode('SLCX'),
  }
  test.each(Object.entries(foreign))(
    '%s: the connection is closed within 100 ms without an answer in our protocol',
    async (_name, bytes) => {
      const times: number[] = []
      // The fastest of three rounds counts, because other processes share the machine.
      for (let round = 0; round < 3; round++) {
        const peer = await bare()
        const sentMs = performance.now()
        peer.send(bytes)
        times.push((await peer.closed) - sentMs)
        expect(peer.receivedBytes).toBe(0)
      }
      expect(times).toHaveLength(3)
      expect(Math.min(...times)).toBeLessThan(100)
    },
  )

  const tooLarge = 0xffff_ffff + 12
  const cases: Record<string, { readonly sends: () => Uint8Array[] } & Expected> = {
    'a length of 4 GiB': {
      sends: () => [encodePreface(), Uint8Array.of(0xff, 0xff, 0xff, 0xff, OP.HELLO, 0, 0, 0, 1, 0, 0, 0)],
      code: 'FRAME_TOO_LARGE',
      names: [tooLarge, LIMITS.frameBytesUnauthenticated],
    },
    'a frame of 8 KiB and one byte': {
      sends: () => [
        encodePreface(),
        frame(OP.HELLO, 0, 1, new Uint8Array(LIMITS.frameBytesUnauthenticated - 11)),
      ],
      code: 'FRAME_TOO_LARGE',
      names: [LIMITS.frameBytesUnauthenticated + 1, LIMITS.frameBytesUnauthenticated],
    },
    'another major version': {
      sends: () => [withByte(encodePreface(), 4, 9)],
      code: 'PROTOCOL_VERSION',
      names: [9, 1],
    },
    'versions that the broker does not support': {
      sends: () => [encodePreface(), helloFrame({ versionMin: 2, versionMax: 7 })],
      code: 'PROTOCOL_VERSION',
      names: [2, 7, 1],
    },
    'a frame size that is too small for the largest batch': {
      sends: () => [encodePreface(), helloFrame({ frameBytesMax: 65_536 }), authFrame()],
      code: 'INVALID_ARGUMENT',
      scope: 'connection',
      names: [65_536],
    },
    'PUBLISH before HELLO': {
      sends: () => [encodePreface(), publishFrame(QUEUE, batch(1, [{ payload: BODY }]))],
      code: 'UNEXPECTED_FRAME',
      names: ['PUBLISH', 'hello'],
    },
    'PING before HELLO': {
      sends: () => [encodePreface(), frame(OP.PING, 0, 1)],
      code: 'UNEXPECTED_FRAME',
      names: ['PING', 'hello'],
    },
    'a second HELLO in place of AUTH': {
      sends: () => [encodePreface(), helloFrame(), helloFrame()],
      code: 'UNEXPECTED_FRAME',
      names: ['HELLO', 'auth'],
    },
    'AUTH without HELLO': {
      sends: () => [encodePreface(), authFrame()],
      code: 'UNEXPECTED_FRAME',
      names: ['AUTH', 'hello'],
    },
    'ATOMIC before HELLO': {
      sends: () => [encodePreface(), frame(OP.ATOMIC, 0, 1)],
      code: 'UNEXPECTED_FRAME',
      names: ['ATOMIC', 'hello'],
    },
    'a HELLO of one byte': {
      sends: () => [encodePreface(), frame(OP.HELLO, 0, 1, Uint8Array.of(1))],
      code: 'MALFORMED_FRAME',
      names: ['HELLO', 1, 45],
    },
    'an unknown authentication mechanism': {
      sends: () => [encodePreface(), helloFrame(), authFrame(9)],
      code: 'AUTH_FAILED',
      names: [9],
    },
    'a secret of 1,025 bytes': {
      sends: () => {
        const payload = new Uint8Array(4 + 1025)
        writeU16(payload, 2, 1025)
        return [encodePreface(), helloFrame(), frame(OP.AUTH, 0, 2, payload)]
      },
      code: 'MALFORMED_FRAME',
      names: [1025, LIMITS.credentialBytesMax],
    },
    'a secret for a broker without users': {
      sends: () => {
        const payload = encodeAuth({ mechanism: 0, identity: 'root', secret: text.encode('toor') })
        return [encodePreface(), helloFrame(), frame(OP.AUTH, 0, 2, payload)]
      },
      code: 'AUTH_FAILED',
      names: [],
    },
    'numbers that this broker never assigned': {
      sends: () => [encodePreface(), helloFrame({ acceptedNumber: 5 }), authFrame()],
      code: 'PRODUCER_UNKNOWN',
      names: [5, 0],
    },
    'an accepted number of 2^63': {
      sends: () => [encodePreface(), withByte(helloFrame(), 12 + 39, 0x80), authFrame()],
      code: 'MALFORMED_FRAME',
      names: ['HELLO', '2^53'],
    },
  }
  test.each(Object.entries(cases))('%s', async (_name, { sends, ...expected }) => {
    const peer = await bare()
    peer.send(...sends())
    await expectFault(peer, expected)
  })

  test('a HELLO of exactly 8 KiB is accepted', async () => {
    const peer = await bare()
    const hello = helloFrame()
    const payload = new Uint8Array(LIMITS.frameBytesUnauthenticated - 12)
    payload.set(hello.subarray(12))
    peer.send(encodePreface(), frame(OP.HELLO, 0, 1, payload), authFrame())
    await peer.frame(OP.HELLO_OK)
    expect(await peer.answers()).toBe(true)
  })

  test('a peer that sends a byte from time to time is disconnected at the deadline, neither before nor much later', async () => {
    const begunMs = performance.now()
    const peer = await bare()
    peer.send(encodePreface())
    const hello = helloFrame()
    let at = 0
    const drip = setInterval(() => peer.send(hello.subarray(at, ++at)), HANDSHAKE_MS / 20)
    try {
      await expectFault(peer, { code: 'HANDSHAKE_TIMEOUT', names: [HANDSHAKE_MS] })
    } finally {
      clearInterval(drip)
    }
    expect(at).toBeGreaterThan(5)
    expect((await peer.closed) - begunMs).toBeGreaterThanOrEqual(HANDSHAKE_MS)
    expect((await peer.closed) - begunMs).toBeLessThan(HANDSHAKE_MS + 1_500)
  })

  test('a peer that sends nothing is disconnected at the deadline too', async () => {
    const peer = await bare()
    const begunMs = performance.now()
    expect((await peer.closed) - begunMs).toBeLessThan(HANDSHAKE_MS + 1_500)
    expect(peer.frames).toHaveLength(0)
  })
})

describe('after the handshake', () => {
  const cases: Record<string, { readonly sends: () => Uint8Array[] } & Expected> = {
    'an unknown opcode': { sends: () => [frame(200, 0, 1)], code: 'UNKNOWN_OPCODE', names: [200] },
    'opcode 0': { sends: () => [frame(0, 0, 1)], code: 'UNKNOWN_OPCODE', names: [0] },
    'a second HELLO': { sends: () => [helloFrame()], code: 'UNEXPECTED_FRAME', names: ['HELLO', 'open'] },
    'a second AUTH': { sends: () => [authFrame()], code: 'UNEXPECTED_FRAME', names: ['AUTH', 'open'] },
    'a PING with a payload': {
      sends: () => [frame(OP.PING, 0, 1, BODY)],
      code: 'MALFORMED_FRAME',
      names: ['PING', BODY.length],
    },
    'a frame one byte over the agreed size': {
      sends: () => [frame(OP.PUBLISH, 0, 0, new Uint8Array(LIMITS.frameBytesDefault - 11)).subarray(0, 12)],
      code: 'FRAME_TOO_LARGE',
      names: [LIMITS.frameBytesDefault + 1, LIMITS.frameBytesDefault],
    },
    'a PUBLISH whose queue name is truncated': {
      sends: () => [frame(OP.PUBLISH, 0, 0, Uint8Array.of(200, 1, 2))],
      code: 'MALFORMED_FRAME',
      names: [200, 2],
    },
    'an empty PUBLISH': {
      sends: () => [frame(OP.PUBLISH, 0, 0)],
      code: 'MALFORMED_FRAME',
      names: ['PUBLISH', 0],
    },
    'more unanswered batches than were agreed': {
      sends: () => [publishFrame(QUEUE, batch(9_000, [{ payload: BODY }]), LIMITS.inFlightBatchesDefault)],
      code: 'IN_FLIGHT_EXCEEDED',
      names: [LIMITS.inFlightBatchesDefault + 1, LIMITS.inFlightBatchesDefault],
    },
    'a SETTLE of no tags': {
      sends: () => [frame(OP.SETTLE, 1, 1, settlement(1, 0, 0))],
      code: 'MALFORMED_FRAME',
      names: ['SETTLE', LIMITS.creditMessagesMax],
    },
    'a SETTLE of 2^32 - 1 tags': {
      sends: () => [frame(OP.SETTLE, 1, 1, settlement(1, 0, 0xffff_ffff))],
      code: 'MALFORMED_FRAME',
      names: ['SETTLE', 0xffff_ffff, LIMITS.creditMessagesMax],
    },
    'a SETTLE of more tags than a credit has, in two ranges': {
      sends: () => {
        const item = { firstTag: 0, count: 40_000, outcome: OUTCOME.ack }
        return [frame(OP.SETTLE, 1, 1, encodeSettle(1, [item, item]))]
      },
      code: 'MALFORMED_FRAME',
      names: ['SETTLE', 80_000, LIMITS.creditMessagesMax],
    },
    'a SETTLE with an unknown outcome': {
      sends: () => [frame(OP.SETTLE, 1, 1, withByte(settlement(1, 0, 1), 12, 77))],
      code: 'MALFORMED_FRAME',
      names: ['SETTLE', 77],
    },
    'a STARTED with half a range': {
      sends: () => [frame(OP.STARTED, 1, 0, new Uint8Array(9))],
      code: 'MALFORMED_FRAME',
      names: ['STARTED', 5],
    },
    'a STARTED of 70,000 tags': {
      sends: () => [frame(OP.STARTED, 1, 0, encodeRanges(1, [{ firstTag: 0, count: 70_000 }]))],
      code: 'MALFORMED_FRAME',
      names: ['STARTED', 70_000, LIMITS.creditMessagesMax],
    },
    'a CREDIT of 70,000 messages': {
      sends: () => [
        frame(
          OP.CREDIT,
          1,
          0,
          encodeCredit({ subscriptionId: 1, messages: 70_000, bytes: 1, limit: undefined, drain: false }),
        ),
      ],
      code: 'INVALID_ARGUMENT',
      names: [70_000, LIMITS.creditMessagesMax],
    },
    'a CREDIT one byte too long': {
      sends: () => [frame(OP.CREDIT, 1, 0, new Uint8Array(25))],
      code: 'MALFORMED_FRAME',
      names: ['CREDIT', 25, 24],
    },
    'an UNSUBSCRIBE without a subscription': {
      sends: () => [frame(OP.UNSUBSCRIBE, 3, 5, encodeSubscriptionId(77))],
      code: 'SUBSCRIPTION_NOT_FOUND',
      names: [77, 3],
    },
    'a SUBSCRIBE on channel 0': {
      sends: () => [control(OP.SUBSCRIBE, { queue: QUEUE, messages: 1, bytes: 1 })],
      code: 'INVALID_ARGUMENT',
      names: [0, 65_535],
    },
    'a SUBSCRIBE with 65,536 messages': {
      sends: () => [control(OP.SUBSCRIBE, { queue: QUEUE, messages: 65_536, bytes: 1 }, 1)],
      code: 'INVALID_ARGUMENT',
      names: [65_536, LIMITS.creditMessagesMax],
    },
    'a SUBSCRIBE with messages of -1': {
      sends: () => [control(OP.SUBSCRIBE, { queue: QUEUE, messages: -1, bytes: 1 }, 1)],
      code: 'INVALID_ARGUMENT',
      names: [-1],
    },
    'a SUBSCRIBE with an unknown field': {
      sends: () => [control(OP.SUBSCRIBE, { queue: QUEUE, messages: 1, bytes: 1, colour: 'red' }, 1)],
      code: 'INVALID_ARGUMENT',
      names: ['colour'],
    },
    'a SUBSCRIBE to a queue that does not exist': {
      sends: () => [control(OP.SUBSCRIBE, { queue: 'nowhere', messages: 1, bytes: 1 }, 1)],
      code: 'QUEUE_NOT_FOUND',
      names: ['nowhere'],
    },
    'a queue option of a later version': {
      sends: () => [control(OP.ENSURE, { name: QUEUE, options: { mirrors: 5 } })],
      code: 'INVALID_OPTION',
      names: ['mirrors'],
    },
    'a queue option called __proto__': {
      sends: () => [control(OP.ENSURE, { name: QUEUE, options: JSON.parse('{"__proto__": 5}') as unknown })],
      code: 'INVALID_OPTION',
      names: ['__proto__'],
    },
    'a queue option out of bounds': {
      sends: () => [
        control(OP.ENSURE, { name: QUEUE, options: { maxDeliveries: LIMITS.maxDeliveriesMax + 1 } }),
      ],
      code: 'INVALID_OPTION',
      names: ['maxDeliveries', LIMITS.maxDeliveriesMax + 1, LIMITS.maxDeliveriesMax],
    },
    'an unknown value of an option': {
      sends: () => [control(OP.ENSURE, { name: QUEUE, options: { onFail: 'wait' } })],
      code: 'INVALID_OPTION',
      names: ['onFail', 'wait', 'block', 'skip'],
    },
    'a queue as its own dead-letter queue': {
      sends: () => [control(OP.ENSURE, { name: QUEUE, options: { deadLetter: QUEUE }, update: true })],
      code: 'DEAD_LETTER_CYCLE',
      names: [QUEUE],
    },
    'an unknown state': {
      sends: () => [control(OP.PEEK, { name: QUEUE, state: 'lost' })],
      code: 'INVALID_ARGUMENT',
      names: ['state', 'lost'],
    },
    'a redrive into the queue where the messages are': {
      sends: () => [control(OP.REDRIVE, { name: QUEUE, to: QUEUE })],
      code: 'INVALID_ARGUMENT',
      names: [QUEUE],
    },
    'an unknown cursor': {
      sends: () => [control(OP.REPLAY, { name: QUEUE, cursor: '1:2:3' })],
      code: 'INVALID_ARGUMENT',
      names: ['cursor'],
    },
    'the cancellation of a message that does not exist': {
      sends: () => [control(OP.CANCEL, { name: QUEUE, offset: Number.MAX_SAFE_INTEGER })],
      code: 'MESSAGE_NOT_FOUND',
      names: [Number.MAX_SAFE_INTEGER],
    },
    'a message named by offset and by id': {
      sends: () => [control(OP.CANCEL, { name: QUEUE, offset: 1, id: 'x' })],
      code: 'INVALID_ARGUMENT',
      names: ['offset', 'id'],
    },
    'a reschedule to a time far in the past': {
      sends: () => [control(OP.RESCHEDULE, { name: QUEUE, offset: 1, atMs: 5 })],
      code: 'AT_IN_THE_PAST',
      names: ['at', 5],
    },
    'the close of a consumer that does not exist': {
      sends: () => [control(OP.CLOSE_CONSUMER, { name: QUEUE, id: 0xffff_ffff })],
      code: 'CONSUMER_NOT_FOUND',
      names: [0xffff_ffff],
    },
    'ATOMIC of 15 bytes': {
      sends: () => [frame(OP.ATOMIC, 0, 0, new Uint8Array(15))],
      code: 'MALFORMED_FRAME',
      names: ['ATOMIC', 15, 16],
    },
    'ATOMIC with a broken checksum': {
      sends: () => [frame(OP.ATOMIC, 0, 0, withByte(atomicStep(1, [QUEUE]), 20, 7))],
      code: 'BATCH_CORRUPT',
      names: [1],
    },
    'ATOMIC to a queue that does not exist': {
      sends: () => [frame(OP.ATOMIC, 0, 0, atomicStep(1, [QUEUE, 'nowhere']))],
      code: 'QUEUE_NOT_FOUND',
      names: ['nowhere'],
    },
    'ATOMIC with an acknowledgement of a message that is not held': {
      sends: () => [
        frame(
          OP.ATOMIC,
          0,
          0,
          atomicStep(1, [QUEUE], [{ channel: 9, subscriptionId: 7, firstTag: 3, count: 1 }]),
        ),
      ],
      code: 'LEASE_LOST',
      names: [3],
    },
    'an EXTEND of no tags': {
      sends: () => [
        frame(OP.EXTEND, 1, 1, encodeExtend({ subscriptionId: 0, firstTag: 0, count: 0, durationMs: 0 })),
      ],
      code: 'MALFORMED_FRAME',
      names: ['EXTEND', 0, 65_535],
    },
    'a control frame that is not a map': {
      sends: () => [frame(OP.GET, 0, 1, Uint8Array.of(0x93, 1, 2, 3))],
      code: 'MALFORMED_FRAME',
      names: [],
    },
    'a map that announces 2^32 - 1 entries': {
      sends: () => [frame(OP.GET, 0, 1, Uint8Array.of(0xdf, 0xff, 0xff, 0xff, 0xff))],
      code: 'MALFORMED_FRAME',
      names: [],
    },
    'lists 60,000 deep': {
      sends: () => [frame(OP.GET, 0, 1, new Uint8Array(60_000).fill(0x91))],
      code: 'MALFORMED_FRAME',
      names: [],
    },
    'an extension of msgpack': {
      sends: () => [frame(OP.GET, 0, 1, Uint8Array.of(0x81, 0xa4, ...text.encode('name'), 0xd4, 0x72, 0x40))],
      code: 'MALFORMED_FRAME',
      names: [],
    },
    'a control frame of 64 KiB and one byte': {
      sends: () => [frame(OP.GET, 0, 1, new Uint8Array(LIMITS.controlBytesMax + 1))],
      code: 'MALFORMED_FRAME',
      names: [LIMITS.controlBytesMax + 1, LIMITS.controlBytesMax],
    },
    'a batch of no messages': {
      sends: () => [publishFrame(QUEUE, batch(1, [{ payload: BODY }], { count: 0 }))],
      code: 'BATCH_TOO_LARGE',
      names: [0, LIMITS.batchCountMax],
    },
    'a batch of 65,536 messages': {
      sends: () => [publishFrame(QUEUE, batch(1, [{ payload: BODY }], { count: 65_536 }))],
      code: 'BATCH_TOO_LARGE',
      names: [65_536, LIMITS.batchCountMax],
    },
    'a batch of 2^32 - 1 messages': {
      sends: () => [publishFrame(QUEUE, batch(1, [{ payload: BODY }], { count: 0xffff_ffff }))],
      code: 'BATCH_TOO_LARGE',
      names: [0xffff_ffff, LIMITS.batchCountMax],
    },
    'a batch that counts one message too many': {
      sends: () => [publishFrame(QUEUE, batch(1, [{ payload: BODY }], { count: 2 }))],
      code: 'BATCH_MALFORMED',
      names: [1],
    },
    'a batch that counts one message too few': {
      sends: () => [publishFrame(QUEUE, batch(1, [{ payload: BODY }, { payload: BODY }], { count: 1 }))],
      code: 'BATCH_MALFORMED',
      names: [BODY.length + 8],
    },
    'a batch with too large a length': {
      sends: () => [publishFrame(QUEUE, withU32(batch(1, [{ payload: BODY }]), 0, 10_000))],
      code: 'BATCH_MALFORMED',
      names: [10_000, BATCH_HEADER_BYTES + 8 + BODY.length],
    },
    'half a batch header': {
      // The frame has no number that a refusal could name.
      sends: () => [publishFrame(QUEUE, new Uint8Array(24))],
      code: 'MALFORMED_FRAME',
      names: [24, BATCH_HEADER_BYTES],
    },
    'a broken checksum': {
      sends: () => [publishFrame(QUEUE, withByte(batch(1, [{ payload: BODY }]), BATCH_HEADER_BYTES + 9, 0))],
      code: 'BATCH_CORRUPT',
      names: [1],
    },
    'batch number 0': {
      sends: () => [publishFrame(QUEUE, batch(0, [{ payload: BODY }]))],
      code: 'BATCH_MALFORMED',
      names: [0, '2^53'],
    },
    'batch number 2^53': {
      sends: () => [publishFrame(QUEUE, batch(2 ** 53, [{ payload: BODY }]))],
      code: 'MALFORMED_FRAME',
      scope: 'connection',
      names: [2 ** 53],
    },
    'facts of the log as a batch': {
      sends: () => [publishFrame(QUEUE, batch(1, [{ payload: BODY }], { type: BATCH_TYPE.facts }))],
      code: 'BATCH_MALFORMED',
      names: [BATCH_TYPE.facts],
    },
    'a batch that is marked as relocated': {
      sends: () => [
        publishFrame(QUEUE, batch(1, [{ payload: BODY }], { attributes: BATCH_ATTRIBUTE.relocated })),
      ],
      code: 'BATCH_MALFORMED',
      names: [BATCH_ATTRIBUTE.relocated],
    },
    'a record that is larger than its batch': {
      sends: () => [
        publishFrame(
          QUEUE,
          resealed(withU32(batch(1, [{ payload: BODY }]), BATCH_HEADER_BYTES, 0xffff_ffff)),
        ),
      ],
      code: 'BATCH_MALFORMED',
      names: [0xffff_ffff, 8 + BODY.length],
    },
    'a record with an unknown flag': {
      sends: () => [
        publishFrame(QUEUE, resealed(withByte(batch(1, [{ payload: BODY }]), BATCH_HEADER_BYTES + 4, 0x40))),
      ],
      code: 'BATCH_MALFORMED',
      names: [0x40],
    },
    'a message one byte too large': {
      sends: () => [
        publishFrame(QUEUE, batch(1, [{ payload: new Uint8Array(LIMITS.messageBytesDefault + 1) }])),
      ],
      code: 'MESSAGE_TOO_LARGE',
      names: [LIMITS.messageBytesDefault + 1, LIMITS.messageBytesDefault],
    },
    'two messages that together are too large for a batch': {
      sends: () => {
        const payload = new Uint8Array(LIMITS.batchBytesMax / 2)
        return [publishFrame(QUEUE, batch(1, [{ payload }, { payload }]))]
      },
      code: 'BATCH_TOO_LARGE',
      names: [2, LIMITS.batchBytesMax],
    },
    'a queue that does not exist': {
      sends: () => [publishFrame('nowhere', batch(1, [{ payload: BODY }]))],
      code: 'QUEUE_NOT_FOUND',
      names: ['nowhere'],
    },
  }
  // The values are a delay of a hundred years and a millisecond, a time far in the past, and a time to live of zero.
  const times = {
    delayMs: { value: LIMITS.delayMsMax + 1, code: 'INVALID_DELAY' },
    atMs: { value: 5, code: 'AT_IN_THE_PAST' },
    ttlMs: { value: 0, code: 'INVALID_TTL' },
  } as const
  for (const [option, { value, code }] of Object.entries(times)) {
    cases[`a message with ${option} ${value}`] = {
      sends: () => [publishFrame(QUEUE, batch(1, [{ payload: BODY, options: { [option]: value } }]))],
      code,
      names: [option.replace('Ms', ''), value],
    }
  }
  for (const [name, { sender, code }] of Object.entries(OPCODES)) {
    if (sender === 'server') {
      cases[`${name}, which only a broker sends`] = {
        sends: () => [frame(code, 0, 3, BODY)],
        code: 'UNEXPECTED_FRAME',
        names: [name],
      }
    }
  }
  const names: Record<string, string> = {
    'a path': '../x',
    'an absolute path': '/etc/passwd',
    'a NUL': 'a\0b',
    'an escape sequence': 'a\u001b[31mred\u001b[0m',
    'a line break': 'a\nb',
    'a bidirectional override': 'a\u202eb',
    nothing: '',
    '256 bytes': 'n'.repeat(256),
    '60,000 bytes': 'n'.repeat(60_000),
  }
  for (const [what, name] of Object.entries(names)) {
    for (const opcode of [OP.ENSURE, OP.GET, OP.DELETE, OP.PURGE]) {
      cases[`a queue name that is ${what}, in frame ${opcode}`] = {
        sends: () => [control(opcode, { name })],
        code: 'INVALID_NAME',
        names: [],
      }
    }
    if (name.length < 256) {
      cases[`a PUBLISH to a queue name that is ${what}`] = {
        sends: () => [publishFrame(name, batch(1, [{ payload: BODY }]))],
        code: 'QUEUE_NOT_FOUND',
        names: [],
      }
    }
  }

  test.each(Object.entries(cases))('%s', async (_name, { sends, ...expected }) => {
    const peer = await open()
    peer.send(...sends())
    await expectFault(peer, expected)
  })

  test('refused requests leave nothing behind', async () => {
    expect(Object.keys(cases).length).toBeGreaterThan(100)
    expect(server.broker.catalog.list('', Infinity).queues.map(({ name }) => name)).toEqual([
      'fuzz',
      'honest',
      'slow',
      QUEUE,
    ])
    expect(server.broker.catalog.info(QUEUE as never)).toMatchObject({ published: 0, ready: 0, bytes: 0 })
  })

  test('a name with a special meaning in JavaScript is an ordinary name', async () => {
    const peer = await open()
    for (const name of ['__proto__', 'constructor', 'toString']) {
      peer.send(control(OP.ENSURE, { name }))
      const { payload } = await peer.frame(OP.RESULT)
      expect(decodeControl(payload, 0, payload.length)['created']).toBe(true)
      peer.send(control(OP.GET, { name }), control(OP.DELETE, { name }))
      const answer = (await peer.frame(OP.RESULT)).payload
      expect(decodeControl(answer, 0, answer.length)['queue']).toMatchObject({ name, published: 0 })
      const deleted = (await peer.frame(OP.RESULT)).payload
      expect(decodeControl(deleted, 0, deleted.length)).toEqual({ messages: 0 })
    }
    expect(Object.keys(Object.prototype)).toEqual([])
  })

  test('the largest message is accepted and delivered byte for byte', async () => {
    const peer = await open()
    const payload = randomBytes(LIMITS.messageBytesDefault)
    peer.send(publishFrame(QUEUE, batch(1, [{ payload }])))
    await peer.frame(OP.PUBLISH_OK)
    peer.send(control(OP.SUBSCRIBE, { queue: QUEUE, messages: 1, bytes: 1 }, 1))
    const delivery = await peer.frame(OP.DELIVER)
    expect(Buffer.compare(delivery.payload.subarray(32 + 8), payload)).toBe(0)
    const head = decodeDeliverHead(delivery.payload, 0, delivery.payload.length)
    peer.send(frame(OP.SETTLE, 1, 4, settlement(head.subscriptionId, head.firstTag, 1)))
    const { payload: stale } = await peer.frame(OP.SETTLE_OK)
    expect(stale).toHaveLength(4)
  })

  test('a reused number gets the same answer for the same bytes, and a refusal for other bytes', async () => {
    const peer = await open()
    const first = publishFrame(QUEUE, batch(1, [{ payload: BODY }]))
    peer.send(first)
    const answers: number[] = []
    const read = async (): Promise<void> => {
      const { payload } = await peer.frame(OP.PUBLISH_OK)
      decodePublishOk(payload, 0, payload.length, (_number, base) => answers.push(base))
    }
    await read()
    peer.send(first)
    await read()
    expect(answers).toHaveLength(2)
    expect(answers[0]).toBe(answers[1])
    peer.send(publishFrame(QUEUE, batch(1, [{ payload: text.encode('other') }])))
    await expectFault(peer, { code: 'NUMBER_REUSED', names: [1] })
  })

  test('unanswered batches that are sent again on another connection are each accepted once', async () => {
    const producer = randomBytes(16)
    const count = 500
    const send = async (): Promise<number[]> => {
      const peer = await open({ producer })
      const answers: number[] = []
      peer.send(
        ...Array.from({ length: count }, (_, index) =>
          publishFrame(QUEUE, batch(index + 1, [{ payload: BODY }]), index),
        ),
      )
      while (answers.length < count * 2) {
        const { opcode, payload } = await peer.frame(OP.PUBLISH_OK, OP.PUBLISH_ERR)
        expect(opcode).toBe(OP.PUBLISH_OK)
        decodePublishOk(payload, 0, payload.length, (number, base) => answers.push(number, base))
      }
      await peer.dispose()
      return answers
    }
    const { published } = server.broker.catalog.info(QUEUE as never)
    expect(await send()).toEqual(await send())
    expect(server.broker.catalog.info(QUEUE as never).published).toBe(published + count)
  })

  test('unknown tags and subscriptions are reported as stale, without any other effect', async () => {
    const peer = await open()
    peer.send(frame(OP.SETTLE, 1, 1, settlement(12, 0xffff_fff0, 32)))
    const { payload } = await peer.frame(OP.SETTLE_OK)
    expect(payload).toHaveLength(4 + 8)
    peer.send(
      frame(
        OP.CREDIT,
        1,
        0,
        encodeCredit({ subscriptionId: 12, messages: 9, bytes: 9, limit: undefined, drain: true }),
      ),
      frame(OP.STARTED, 1, 0, encodeRanges(12, [{ firstTag: 4, count: 65_535 }])),
    )
    expect(await peer.answers()).toBe(true)
    peer.send(control(OP.SUBSCRIBE, { queue: QUEUE, messages: 0, bytes: 0 }, 7))
    const accepted = await peer.frame(OP.SUBSCRIBE_OK)
    const subscription = decodeSubscribed(accepted.payload, 0, accepted.payload.length).subscriptionId
    peer.send(control(OP.SUBSCRIBE, { queue: QUEUE, messages: 0, bytes: 0 }, 7))
    await expectFault(peer, { code: 'CHANNEL_IN_USE', names: [7] })
    peer.send(frame(OP.SETTLE, 7, 2, settlement(subscription, 0, 65_535)))
    expect((await peer.frame(OP.SETTLE_OK)).payload).toHaveLength(4 + 8)
  })

  test('an incomplete frame has no effect', async () => {
    const whole = publishFrame(QUEUE, batch(1, [{ payload: new Uint8Array(500) }]))
    const published = server.broker.catalog.info(QUEUE as never).published
    let cuts = 0
    for (let end = 1; end < whole.length; end += 7) {
      const peer = await open()
      peer.send(whole.subarray(0, end))
      peer.socket.end()
      await peer.closed
      expect(peer.frames.filter(({ opcode }) => opcode === OP.PUBLISH_OK || opcode === OP.ERROR)).toEqual([])
      cuts++
    }
    expect(cuts).toBeGreaterThan(80)
    expect(server.broker.catalog.info(QUEUE as never).published).toBe(published)
  })
})

describe('excessive use', () => {
  test('a consumer that stops reading is closed with SLOW_CONSUMER, and all of its messages return to the queue', async () => {
    const peer = await open({ name: 'sleeper' })
    const bytes = 100_000
    const count = 250
    peer.send(control(OP.SUBSCRIBE, { queue: 'slow', messages: count, bytes: 0xffff_ffff }, 1))
    await peer.frame(OP.SUBSCRIBE_OK)
    peer.socket.pause()
    const sluice = await connect(`sluice://127.0.0.1:${server.port}`)
    try {
      collectGarbage()
      const before = process.memoryUsage().arrayBuffers
      const body = new Uint8Array(bytes)
      for (let sent = 0; sent < count; sent += 10) {
        await Promise.all(Array.from({ length: 10 }, () => sluice.publish('slow', body)))
      }
      await until('the sleeper to be closed', () =>
        events.some(({ details }) => details['client'] === 'sleeper' && details['code'] !== undefined),
      )
      const closing = events.find(
        ({ details }) => details['client'] === 'sleeper' && details['code'] !== undefined,
      )
      expect(closing?.details['code']).toBe('SLOW_CONSUMER')
      expectSentence(String(closing?.details['reason']))
      // The outbound buffer of the sleeper and the recent blocks of the log together take far less than this.
      expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(64 << 20)
      const offsets = new Set<number>()
      let marked = 0
      const worker = sluice.consume('slow', { concurrency: 50 }, (message) => {
        offsets.add(message.offset)
        if (message.redelivered) marked++
      })
      await until('all messages to come back', () => offsets.size === count)
      expect(marked).toBeGreaterThan(0)
      await worker.close()
      await until(
        'all messages to be settled',
        () => server.broker.catalog.info('slow' as never).acked === count,
      )
    } finally {
      await sluice.close()
    }
  })

  test('two hundred connections that announce 4 MiB and send 1 KiB take less than 16 MiB', async () => {
    const many = await Promise.all(Array.from({ length: 200 }, () => open()))
    collectGarbage()
    const taken = (): number => {
      const { external, arrayBuffers } = process.memoryUsage()
      return external + arrayBuffers
    }
    const before = taken()
    const head = frame(OP.PUBLISH, 0, 0, new Uint8Array(LIMITS.frameBytesDefault - 12)).subarray(0, 12)
    for (const peer of many) peer.send(head, new Uint8Array(1024))
    // The peers are still connected, and the broker has accepted the messages of the honest client.
    await honest.goesOn()
    collectGarbage()
    const grown = taken() - before
    expect(many.filter((peer) => !peer.isClosed)).toHaveLength(200)
    expect(grown).toBeLessThan(16 << 20)
  })

  test('a thousand subscriptions to one queue end with their connection', async () => {
    const peer = await open()
    const frames = Array.from({ length: 1_000 }, (_, index) =>
      control(OP.SUBSCRIBE, { queue: QUEUE, messages: 10, bytes: 1_000 }, index + 1),
    )
    peer.send(...frames)
    const consumers = (): number => server.broker.catalog.info(QUEUE as never).consumers
    await until('all to be subscribed', () => consumers() === 1_000)
    await peer.dispose()
    await until('all to be gone', () => consumers() < 1_000)
    expect(consumers()).toBe(0)
  })
})

describe('settings at their limits', () => {
  async function withServer(
    options: ServerOptions,
    run: (sluice: Sluice, server: RunningServer) => Promise<void>,
  ): Promise<void> {
    const scratch = await scratchDirectory('edges')
    const server = await startServer({ port: 0, dataDir: scratch.path, lowFreeBytes: 1 << 20, ...options })
    const sluice = await connect(`sluice://127.0.0.1:${server.port}`)
    try {
      await sluice.queues.ensure(QUEUE)
      await run(sluice, server)
      server.broker.audit()
    } finally {
      await sluice.close()
      await server.stop()
      await scratch.dispose()
    }
  }

  test('a connection beyond the limit is refused with the reason, which the SDK reports', async () => {
    await withServer({ connectionsMax: 2 }, async (_, server) => {
      const url = `sluice://127.0.0.1:${server.port}`
      const second = await connect(url)
      for (const connectTimeout of [0, '300ms'] as const) {
        await expect(connect(url, { connectTimeout })).rejects.toMatchObject({
          code: 'TOO_MANY_CONNECTIONS',
          message: expect.stringContaining('at most 2') as string,
        })
      }
      const peer = await Peer.connect(server.port)
      peers.add(peer)
      peer.send(encodePreface(), helloFrame(), authFrame())
      await expectFault(peer, { code: 'TOO_MANY_CONNECTIONS', names: [2] })
      await second.close()
      await (await connect(url, { connectTimeout: '5s' })).close()
    })
  })

  test('connections that are refused, or closed by one side only, do not count towards the limit', async () => {
    await withServer({ connectionsMax: 4 }, async (_, server) => {
      const url = `sluice://127.0.0.1:${server.port}`
      const lingering: Socket[] = []
      const linger = async (...sends: Uint8Array[]): Promise<void> => {
        const socket = dial({ port: server.port, host: '127.0.0.1', allowHalfOpen: true })
        lingering.push(socket)
        socket.on('error', () => {})
        await new Promise((resolve) => socket.once('connect', resolve))
        socket.write(Buffer.concat([encodePreface(), ...sends]))
      }
      try {
        // The broker closes these connections; the peers never close their side.
        for (let i = 0; i < 3; i++) await linger(helloFrame(), authFrame(), frame(200, 0, 1))
        await Promise.all(
          lingering.map((socket) => new Promise((resolve) => socket.once('end', resolve).resume())),
        )
        const three = await Promise.all([1, 2, 3].map(() => connect(url, { connectTimeout: 0 })))
        // More connections than may wait for a refusal; they send nothing.
        for (let i = 0; i < 150; i++) await linger()
        await expect(connect(url, { connectTimeout: 0 })).rejects.toMatchObject({
          code: 'TOO_MANY_CONNECTIONS',
        })
        await three[0]!.close()
        const again = await connect(url, { connectTimeout: '5s' })
        await Promise.all([again, three[1]!, three[2]!].map((client) => client.close()))
      } finally {
        for (const socket of lingering) socket.destroy()
      }
    })
  })

  test('requests before GOODBYE are answered, even on a half-closed connection', async () => {
    await withServer({}, async (sluice, server) => {
      await sluice.publish(QUEUE, 1)
      for (const halfClosed of [false, true]) {
        const socket = dial({ port: server.port, host: '127.0.0.1', allowHalfOpen: true })
        const opcodes: number[] = []
        const decoder = new FrameDecoder((opcode) => void opcodes.push(opcode))
        decoder.frameBytesMax = LIMITS.frameBytesMax
        socket.on('data', (chunk) => decoder.push(chunk))
        const ended = new Promise((resolve) => socket.once('end', resolve))
        socket.write(
          Buffer.concat([
            encodePreface(),
            helloFrame(),
            authFrame(),
            publishFrame(QUEUE, batch(1, [{ payload: BODY }])),
            control(OP.PEEK, { name: QUEUE, state: 'ready', limit: 10 }),
            control(OP.HISTORY, { name: QUEUE, offset: 0 }),
            control(OP.REPLAY, { name: QUEUE, dryRun: true }),
            control(OP.REDRIVE, { name: QUEUE }),
            control(OP.LIST, {}),
            control(OP.GET, { name: 'none' }),
            frame(OP.GOODBYE, 0, 0, Uint8Array.of(0, 0, 0)),
          ]),
        )
        if (halfClosed) socket.end()
        await ended
        socket.destroy()
        const count = (opcode: number): number => opcodes.filter((one) => one === opcode).length
        expect(count(OP.PUBLISH_OK)).toBe(1)
        expect(count(OP.MESSAGES)).toBe(1)
        expect(count(OP.RESULT) + count(OP.ERROR)).toBe(5)
      }
    })
  })

  test('a message larger than all outbound bounds is delivered', async () => {
    const messageBytesMax = 12 << 20
    const session = { frameBytesMax: LIMITS.frameBytesMax }
    await withServer({ segmentBytes: 64 << 20, messageBytesMax, session }, async (sluice) => {
      const body = randomBytes(messageBytesMax)
      await sluice.publish(QUEUE, body)
      const [message] = await sluice.pull<Uint8Array>(QUEUE, { wait: '10s' })
      expect(message?.redelivered).toBe(false)
      expect(Buffer.compare(message!.body, body)).toBe(0)
      await message!.ack()
    })
  })

  test('a message of the largest possible size is delivered and shown after each of its moves', async () => {
    const messageBytesMax = LIMITS.messageBytesMax
    await withServer({ segmentBytes: 64 << 20, messageBytesMax }, async (sluice) => {
      const body = randomBytes(messageBytesMax)
      await sluice.queues.ensure('buried')
      await sluice.queues.ensure(QUEUE, { deadLetter: 'buried', update: true })
      await sluice.queues.ensure('again', { deadLetter: 'buried' })
      await sluice.publish(QUEUE, body)
      for (const from of [QUEUE, 'buried', 'again', 'buried']) {
        if (from === 'again')
          expect(await sluice.dead.redrive('buried', { to: 'again' })).toMatchObject({ redriven: 1 })
        const [message] = await sluice.pull<Uint8Array>(from, { wait: '10s' })
        expect(Buffer.compare(message!.body, body)).toBe(0)
        await message!.deadLetter('because '.repeat(500))
        const { messages } = await sluice.queues.peek<Uint8Array>('buried')
        expect(Buffer.compare(messages[0]!.body, body)).toBe(0)
        expect(messages[0]!.origin?.error).toHaveLength(4_000)
      }
    })
  })

  test('a batch larger than a segment is refused with the reason, and the broker continues', async () => {
    await withServer({ segmentBytes: 256 << 10, messageBytesMax: 32 << 10 }, async (sluice) => {
      const messages = Array.from({ length: 30 }, () => ({ body: new Uint8Array(30 << 10) }))
      await expect(sluice.publishBatch(QUEUE, messages)).rejects.toMatchObject({
        code: 'BATCH_TOO_LARGE',
        message: expect.stringContaining(String(126 << 10)) as string,
      })
      expect(await sluice.publishBatch(QUEUE, messages.slice(0, 4))).toHaveLength(4)
    })
  })
})

test(`10,000 mutated frames, seed ${SEED}`, async () => {
  const random = new Random(SEED)
  const codes = new Map<ErrorCode, number>()
  const subscribed = encodeCredit({ subscriptionId: 0, messages: 5, bytes: 5_000, limit: 9, drain: true })
  const valid: readonly (() => Uint8Array)[] = [
    () =>
      publishFrame(
        'fuzz',
        batch(1 + random.below(3), [{ payload: BODY }, { payload: BODY, options: { headers: { a: 'b' } } }]),
      ),
    () =>
      publishFrame(
        'fuzz',
        batch(1 + random.below(3), [{ payload: BODY, options: { key: 'k', delayMs: 5 } }]),
      ),
    () => control(OP.SUBSCRIBE, { queue: 'fuzz', messages: 5, bytes: 5_000, limit: 3 }, 1),
    () => frame(OP.CREDIT, 1, 0, subscribed),
    () =>
      frame(
        OP.SETTLE,
        1,
        3,
        encodeSettle(0, [{ firstTag: 0, count: 3, outcome: OUTCOME.retry, delayMs: 5, reason: 'because' }]),
      ),
    () => frame(OP.STARTED, 1, 0, encodeRanges(0, [{ firstTag: 0, count: 2 }])),
    () =>
      frame(
        OP.ATOMIC,
        0,
        0,
        atomicStep(
          1 + random.below(3),
          ['fuzz'],
          random.below(2) === 0 ? [] : [{ channel: 1, subscriptionId: 0, firstTag: 0, count: 1 }],
        ),
      ),
    () => frame(OP.EXTEND, 1, 5, encodeExtend({ subscriptionId: 0, firstTag: 0, count: 2, durationMs: 500 })),
    () => control(OP.PEEK, { name: 'fuzz', state: 'ready', limit: 3, filter: { key: 'k', minAttempts: 1 } }),
    () => control(OP.REDRIVE, { name: 'fuzz', offsets: [1, 2], filter: { reason: 'rejected' }, to: 'fuzz2' }),
    () => control(OP.DISCARD, { name: 'fuzz', limit: 5, filter: { headers: { a: 'b' } } }),
    () => control(OP.CANCEL, { name: 'fuzz', offset: 3 }),
    () => control(OP.RESCHEDULE, { name: 'fuzz', id: 'x', delayMs: 500 }),
    () => control(OP.REPLAY, { name: 'fuzz', fromOffset: 1, limit: 2, dryRun: true }),
    () => control(OP.HISTORY, { name: 'fuzz', offset: 1 }),
    () => control(OP.CONSUMERS, { name: 'fuzz' }),
    () => control(OP.CLOSE_CONSUMER, { name: 'fuzz', id: 1 }),
    () => control(OP.PAUSE, { name: 'fuzz' }),
    () => control(OP.RESUME, { name: 'fuzz' }),
    () => frame(OP.UNSUBSCRIBE, 1, 4, encodeSubscriptionId(0)),
    () => control(OP.ENSURE, { name: 'fuzz', options: { maxDeliveries: 10 } }),
    () => control(OP.GET, { name: 'fuzz' }),
    () => control(OP.LIST, {}),
    () => control(OP.PURGE, { name: 'fuzz' }),
    () => control(OP.DELETE, { name: 'fuzzy' }),
    () => frame(OP.PING, 0, 1),
    () => frame(OP.GOODBYE, 0, 0, Uint8Array.of(0, 0, 0)),
  ]
  const edges = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]
  const mutate = (original: Uint8Array): Uint8Array => {
    let bytes = new Uint8Array(original)
    for (let times = random.below(4); times >= 0; times--) {
      const at = random.below(bytes.length)
      const kind = random.below(6)
      if (kind === 0) bytes[at] = bytes[at]! ^ (1 << random.below(8))
      else if (kind === 1) bytes[at] = random.below(256)
      else if (kind === 2 && at + 4 <= bytes.length) writeU32(bytes, at, edges[random.below(edges.length)]!)
      else if (kind === 3) bytes = bytes.slice(0, Math.max(1, at))
      else if (kind === 4)
        bytes = new Uint8Array([
          ...bytes,
          ...Array.from({ length: random.below(40) }, () => random.below(256)),
        ])
      else bytes.copyWithin(at, random.below(bytes.length))
    }
    // Most frames get their correct length again, so that they reach the later checks.
    if (bytes.length >= 12 && random.below(8) > 0) writeU32(bytes, 0, bytes.length - 12)
    return bytes
  }
  let sent = 0
  let closedByBroker = 0
  while (sent < 10_000) {
    // Each connection sends few frames, because the first malformed one ends it.
    const crew = await Promise.all(Array.from({ length: 50 }, () => open()))
    for (const peer of crew) {
      const frames = Array.from({ length: 4 }, () => mutate(valid[random.below(valid.length)]!()))
      sent += frames.length
      peer.send(...frames)
      peer.socket.end()
    }
    await Promise.all(crew.map((peer) => peer.closed))
    for (const peer of crew) {
      peers.delete(peer)
      for (const { opcode, payload } of peer.frames) {
        if (opcode !== OP.ERROR && opcode !== OP.PUBLISH_ERR) continue
        const fault =
          opcode === OP.ERROR
            ? decodeFault(payload, 0, payload.length)
            : decodePublishErr(payload, 0, payload.length).fault
        expectSentence(fault.message)
        codes.set(fault.code, (codes.get(fault.code) ?? 0) + 1)
        if (fault.scope === 'connection') closedByBroker++
      }
    }
  }
  expect(sent).toBe(10_000)
  expect(closedByBroker).toBeGreaterThan(100)
  // Many different error codes show that some frames passed the first check.
  expect([...codes.keys()].sort().join(' '), `seed ${SEED}`).toMatch(
    /BATCH_.*MALFORMED_FRAME.*UNKNOWN_OPCODE/,
  )
  expect(codes.size).toBeGreaterThanOrEqual(8)
}, 60_000)
