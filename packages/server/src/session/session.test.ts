/** Sessions of clients that do not read, disconnect early or are refused, and their deadlines after a stall. */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  FRAME_HEADER_BYTES,
  FrameDecoder,
  LIMITS,
  OP,
  OUTCOME,
  SluiceError,
  decodeFault,
  encodeControl,
  encodePreface,
  encodeSettle,
  faultError,
  queueName,
  sealBatch,
  writeRecordHead,
  type PeekPage,
} from '@sluice/protocol'
import { beforeEach, describe, expect, test, vi } from 'vitest'
import { Broker } from '../broker/broker.js'
import { MemoryLog } from '../log/memory-log.js'
import { Session } from './session.js'
import { SESSION_DEFAULTS } from './settings.js'
import { frame, greeting } from '../testing/client.js'
import { readingTransport } from '../testing/transport.js'

let nowMs = 0
let sentBytes = 0
let paused = false
let closed: (string | undefined)[] = []
let session: Session
let broker: Broker
let disk: Promise<void> | undefined

const GREETING = greeting()

beforeEach(async () => {
  nowMs = 1_700_000_000_000
  sentBytes = 0
  closed = []
  paused = false
  disk = undefined
  broker = await Broker.open({
    log: new MemoryLog({ segmentBytes: 8 << 20, beforeAppend: () => disk }),
    now: () => nowMs,
    random: () => 0.5,
    defer: (endTurn) => void setImmediate(endTurn),
    onFatal: (error) => {
      throw error
    },
  })
  const transport = {
    address: '',
    write: (bytes: Uint8Array) => (sentBytes += bytes.length),
    pause: () => (paused = true),
    resume: () => (paused = false),
    end: () => {},
  }
  session = new Session(broker, transport, SESSION_DEFAULTS, nowMs, (_session, why) => closed.push(why?.code))
})

function batch(number: number, payloadBytes: number): Uint8Array {
  const bytes = new Uint8Array(BATCH_HEADER_BYTES + 8 + payloadBytes)
  writeRecordHead(bytes, BATCH_HEADER_BYTES, undefined, 0, payloadBytes)
  sealBatch(bytes, 0, bytes.length, { type: BATCH_TYPE.messages, count: 1, batchNumber: number })
  return bytes
}

async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) {
    broker.turn.wake()
    await new Promise((resolve) => setImmediate(resolve))
  }
}

describe('while the disk is stalled', () => {
  let answer = (): void => {}
  beforeEach(async () => {
    session.receive(GREETING, nowMs)
    broker.catalog.ensure({ name: queueName('q'), options: {}, update: false })
    await turns(5)
    disk = new Promise((resolve) => (answer = resolve))
  })

  test('a paused connection waits for the disk only once, and is read again afterwards', async () => {
    const waits = vi.spyOn(broker, 'whenNotBehind')
    const producer = broker.producers.attach('1'.repeat(32), 0)
    for (let i = 1; i <= 40; i++)
      broker.intake.publish(producer, 'q', batch(i, 1 << 20), 0, 56 + (1 << 20), 0)
    expect(broker.isBehind).toBe(true)
    session.receive(frame(OP.PUBLISH, Buffer.concat([Buffer.from([1, 0x71]), batch(1, 1)])), nowMs)
    expect(paused).toBe(true)
    await turns(100)
    expect(waits.mock.calls.length).toBeLessThan(2)
    answer()
    await turns(100)
    expect(paused).toBe(false)
  })

  test('a settle that was received is applied, but the deliveries that it makes possible wait for the disk', async () => {
    const producer = broker.producers.attach('1'.repeat(32), 0)
    const publish = (from: number, to: number, bytes: number): void => {
      for (let i = from; i <= to; i++) broker.intake.publish(producer, 'q', batch(i, bytes), 0, 56 + bytes, 0)
    }
    publish(1, 4, 1)
    const body = { queue: 'q', messages: 4, bytes: 1 << 24 }
    session.receive(frame(OP.SUBSCRIBE, encodeControl(body), 1), nowMs)
    await turns(5)
    expect(broker.catalog.info(queueName('q')).leased).toBe(4)
    publish(5, 44, 1 << 20)
    expect(broker.isBehind).toBe(true)
    const { id } = broker.catalog.consumers({ name: queueName('q'), from: 0 }).consumers[0]!
    const item = { firstTag: 0, count: 2, outcome: OUTCOME.retry, delayMs: 0, reason: 'x'.repeat(4_000) }
    session.receive(frame(OP.SETTLE, encodeSettle(id, [item]), 1), nowMs)
    expect(paused).toBe(true)
    await turns(20)
    // The settle was already received, so it is applied. The deliveries that the settle makes possible must wait.
    expect(broker.catalog.info(queueName('q'))).toMatchObject({ leased: 2, ready: 42 })
    answer()
    await turns(100)
    expect(paused).toBe(false)
    expect(broker.catalog.info(queueName('q')).leased).toBe(4)
  })

  test('a consumer does not time out for bytes that were not sent to it', async () => {
    const producer = broker.producers.attach('1'.repeat(32), 0)
    const body = { queue: 'q', messages: 10, bytes: 1 << 24 }
    session.receive(frame(OP.SUBSCRIBE, encodeControl(body), 1), nowMs)
    for (let i = 1; i <= 3; i++) broker.intake.publish(producer, 'q', batch(i, 1 << 20), 0, 56 + (1 << 20), 0)
    await turns(5)
    nowMs += SESSION_DEFAULTS.stalledMs + 1
    session.tick(nowMs, 0)
    expect(closed).toEqual([])
    answer()
    await turns(5)
    expect(sentBytes).toBeGreaterThan(1 << 20)
    // The transport never calls `written`, so from now on the client counts as not reading.
    nowMs += SESSION_DEFAULTS.stalledMs + 1
    session.receive(frame(OP.PING), nowMs)
    session.tick(nowMs, 0)
    expect(closed).toEqual(['SLOW_CONSUMER'])
  })
})

describe('while all connections together exceed the bound of unread bytes', () => {
  test('each connection gets its next delivery after reading the previous delivery, and is closed if it reads nothing', async () => {
    const outbound = { bytes: 0, bytesMax: 5_000 }
    const MESSAGES = 40
    const BODY_BYTES = 1_000
    broker.catalog.ensure({ name: queueName('q'), options: {}, update: false })
    const producer = broker.producers.attach('1'.repeat(32), 0)
    for (let i = 1; i <= MESSAGES; i++)
      broker.intake.publish(producer, 'q', batch(i, BODY_BYTES), 0, 56 + BODY_BYTES, 0)
    const ends: string[] = []
    const peers = Array.from({ length: 4 }, (_, index) => {
      const peer = { unread: [] as { bytes: number; read: () => void }[], session: undefined! as Session }
      const link = {
        address: '',
        write: (bytes: Uint8Array, read: () => void) => void peer.unread.push({ bytes: bytes.length, read }),
        pause: () => {},
        resume: () => {},
        end: () => {},
      }
      const settings = { ...SESSION_DEFAULTS, outbound }
      const onClosed = (_: Session, why: { code: string } | undefined): void =>
        void ends.push(`${index} ${why?.code ?? ''}`)
      peer.session = new Session(broker, link, settings, nowMs, onClosed)
      peer.session.receive(GREETING, nowMs)
      return peer
    })
    const readAll = (): number => {
      let most = 0
      for (const { unread } of peers.slice(0, 2)) {
        const pieces = unread.splice(0)
        most = Math.max(
          most,
          pieces.reduce((sum, { bytes }) => sum + bytes, 0),
        )
        for (const { read } of pieces) read()
      }
      return most
    }
    await turns(5)
    readAll()
    for (const { session: one } of peers) {
      const body = { queue: 'q', messages: 100, bytes: 1 << 24 }
      one.receive(frame(OP.SUBSCRIBE, encodeControl(body), 1), nowMs)
    }
    await turns(5)
    // Each connection exceeds the bound by at most one message.
    expect(outbound.bytes).toBeGreaterThan(outbound.bytesMax)
    expect(outbound.bytes).toBeLessThan(outbound.bytesMax + 4 * (BODY_BYTES + 200))
    // The clients that read do not wait for the others.
    for (let i = 0; i < MESSAGES && broker.catalog.info(queueName('q')).ready > 0; i++) {
      expect(readAll()).toBeLessThan(outbound.bytesMax + 2 * BODY_BYTES)
      await turns(2)
    }
    expect(broker.catalog.info(queueName('q')).ready).toBe(0)
    readAll()
    nowMs += SESSION_DEFAULTS.stalledMs + 1
    broker.turn.begin()
    for (const { session: one } of peers) {
      one.receive(frame(OP.PING), nowMs)
      one.tick(nowMs, 0)
    }
    expect(ends).toEqual(['2 SLOW_CONSUMER', '3 SLOW_CONSUMER'])
    expect(outbound.bytes).toBe(0)
  })

  test('above the shared bound of unread bytes, a connection that does not read is closed, even if it is below its own bound', async () => {
    const outbound = { bytes: 0, bytesMax: 5_000 }
    broker.catalog.ensure({ name: queueName('q'), options: {}, update: false })
    const producer = broker.producers.attach('1'.repeat(32), 0)
    broker.intake.publish(producer, 'q', batch(1, 6_000), 0, 56 + 6_000, 0)
    await turns(5)
    const ends: string[] = []
    const unread: (() => void)[] = []
    const link = {
      address: '',
      write: (_: Uint8Array, read: () => void) => void unread.push(read),
      pause: () => {},
      resume: () => {},
      end: () => {},
    }
    const open = (name: string): Session => {
      const settings = { ...SESSION_DEFAULTS, outbound }
      const one = new Session(broker, link, settings, nowMs, (_, why) => ends.push(`${name} ${why?.code}`))
      one.receive(GREETING, nowMs)
      return one
    }
    const sleeper = open('sleeper')
    const other = open('other')
    const body = { queue: 'q', messages: 1, bytes: 1 << 24 }
    sleeper.receive(frame(OP.SUBSCRIBE, encodeControl(body), 1), nowMs)
    await turns(5)
    expect(outbound.bytes).toBeGreaterThan(outbound.bytesMax)
    for (const one of [sleeper, other]) one.tick(nowMs, 0)
    nowMs += SESSION_DEFAULTS.stalledMs + 1
    broker.turn.begin()
    for (const one of [sleeper, other]) {
      one.receive(frame(OP.PING), nowMs)
      one.tick(nowMs, 0)
    }
    expect(ends).toEqual(['sleeper SLOW_CONSUMER'])
    expect(outbound.bytes).toBe(0)
  })
})

describe('a client that has said GOODBYE', () => {
  const GOODBYE = frame(OP.GOODBYE, Uint8Array.of(0, 0, 0))
  let sent: number[] = []
  let ended = 0
  let one: Session
  beforeEach(() => {
    sent = []
    ended = 0
    const link = {
      address: '',
      write: (bytes: Uint8Array, written: () => void) => {
        decoder.push(bytes)
        written()
      },
      pause: () => {},
      resume: () => {},
      end: () => void ended++,
    }
    const decoder = new FrameDecoder((opcode) => void sent.push(opcode))
    decoder.frameBytesMax = SESSION_DEFAULTS.frameBytesMax
    one = new Session(broker, link, SESSION_DEFAULTS, nowMs, (_, why) => closed.push(why?.code))
    one.receive(GREETING, nowMs)
    broker.catalog.ensure({ name: queueName('q'), options: {}, update: false })
  })

  test.each([false, true])(
    'gets its outstanding answer; its side of the connection is closed: %s',
    async (isHalf) => {
      let answer!: (page: PeekPage) => void
      vi.spyOn(broker.operator, 'peek').mockReturnValue(new Promise((resolve) => (answer = resolve)))
      one.receive(frame(OP.PEEK, encodeControl({ name: 'q' })), nowMs)
      one.receive(GOODBYE, nowMs)
      if (isHalf) one.inputEnded()
      await turns(5)
      expect({ ended, closed }).toEqual({ ended: 0, closed: [] })
      answer({ messages: [], next: undefined })
      await turns(5)
      expect(sent).toContain(OP.MESSAGES)
      expect({ ended, closed }).toEqual({ ended: 1, closed: [undefined] })
    },
  )

  test('gets the error of a failed request, and the confirm of a batch that is not on disk yet', async () => {
    let answer = (): void => {}
    disk = new Promise((resolve) => (answer = resolve))
    one.receive(frame(OP.PEEK, encodeControl({ name: 'none' })), nowMs)
    one.receive(frame(OP.PUBLISH, Buffer.concat([Buffer.from([1, 0x71]), batch(1, 1)])), nowMs)
    one.receive(GOODBYE, nowMs)
    one.inputEnded()
    await turns(5)
    expect(closed).toEqual([])
    answer()
    await turns(5)
    expect(sent).toContain(OP.ERROR)
    expect(sent).toContain(OP.PUBLISH_OK)
    expect({ ended, closed }).toEqual({ ended: 1, closed: [undefined] })
  })

  test('times out after two heartbeats', () => {
    vi.spyOn(broker.operator, 'peek').mockReturnValue(new Promise(() => {}))
    one.receive(frame(OP.PEEK, encodeControl({ name: 'q' })), nowMs)
    one.receive(GOODBYE, nowMs)
    one.tick((nowMs += 2 * SESSION_DEFAULTS.heartbeatMs + 1), 0)
    expect(closed).toEqual(['HEARTBEAT_TIMEOUT'])
  })
})

test('a refused connection gets the error in answer to HELLO, and no producer is attached', async () => {
  const attach = vi.spyOn(broker.producers, 'attach')
  session.refuse(new SluiceError('TOO_MANY_CONNECTIONS', 'There are 3 connections; at most 3 are allowed.'))
  session.receive(encodePreface(), nowMs)
  expect({ closed, sentBytes }).toEqual({ closed: [], sentBytes: 0 })
  session.receive(GREETING.subarray(encodePreface().length), nowMs)
  expect(closed).toEqual(['TOO_MANY_CONNECTIONS'])
  expect(sentBytes).toBeGreaterThan(FRAME_HEADER_BYTES)
  expect(attach).not.toHaveBeenCalled()
})

// If a refused request were run, a client that repeats the request would have it run twice.
test('a request that is refused because too many are outstanding is not run', async () => {
  session.receive(GREETING, nowMs)
  broker.catalog.ensure({ name: queueName('q'), options: {}, update: false })
  await turns(5)
  let answer = (): void => {}
  const discards = vi.spyOn(broker.operator, 'discard').mockReturnValue(
    new Promise((resolve) => {
      answer = () => resolve({ matched: 0, discarded: 0, next: null })
    }),
  )
  for (let i = 0; i < 20; i++) session.receive(frame(OP.DISCARD, encodeControl({ name: 'q' })), nowMs)
  await turns(5)
  // Requests run one at a time.
  expect(discards).toHaveBeenCalledTimes(1)
  answer()
  await turns(50)
  expect(closed).toEqual([])
  expect(discards).toHaveBeenCalledTimes(16)
})

test('a connection can have subscriptions up to its limit', async () => {
  const codes: string[] = []
  const decoder = new FrameDecoder((opcode, _flags, _channel, _correlation, bytes, start, end) => {
    if (opcode === OP.ERROR) codes.push(faultError(decodeFault(bytes, start, end)).code)
  })
  decoder.frameBytesMax = SESSION_DEFAULTS.frameBytesMax
  const transport = readingTransport(decoder)
  const one = new Session(broker, transport, { ...SESSION_DEFAULTS, subscriptionsMax: 2 }, nowMs, () => {})
  one.receive(GREETING, nowMs)
  broker.catalog.ensure({ name: queueName('q'), options: {}, update: false })
  const subscribe = (channel: number): void =>
    one.receive(frame(OP.SUBSCRIBE, encodeControl({ queue: 'q', messages: 1, bytes: 1 }), channel), nowMs)
  subscribe(1)
  subscribe(2)
  await turns(5)
  expect([codes, broker.catalog.info(queueName('q')).consumers]).toEqual([[], 2])
  subscribe(3)
  await turns(5)
  expect([codes, broker.catalog.info(queueName('q')).consumers]).toEqual([['TOO_MANY_SUBSCRIPTIONS'], 2])
})

test('a client that sends PING and never reads is closed', () => {
  session.receive(GREETING, nowMs)
  const pings = Buffer.concat(Array.from({ length: 1000 }, () => frame(OP.PING)))
  for (let i = 0; i < 9; i++) session.receive(pings, nowMs)
  // HELLO_OK is unread too, so the limit is reached one PING earlier.
  session.receive(pings.subarray(frame(OP.PING).length), nowMs)
  expect(closed).toEqual([])
  session.receive(frame(OP.PING), nowMs)
  expect(closed).toEqual(['SLOW_CONSUMER'])
  for (let i = 0; i < 100; i++) session.receive(pings, nowMs)
  expect(closed).toEqual(['SLOW_CONSUMER'])
  expect(sentBytes).toBeLessThan(200_000)
})

describe('a client that reads is not closed because of a burst of answers', () => {
  /**
   * Returns a session whose client reads everything one turn later. `came` returns the number of received frames of a
   * kind.
   */
  function reader(frameBytesMax: number): { peer: Session; came: (opcode: number) => number } {
    const opcodes: number[] = []
    const decoder = new FrameDecoder((opcode) => void opcodes.push(opcode))
    decoder.frameBytesMax = frameBytesMax
    const link = {
      address: '',
      write: (bytes: Uint8Array, written: () => void) => {
        decoder.push(bytes)
        setImmediate(written)
      },
      pause: () => {},
      resume: () => {},
      end: () => {},
    }
    const peer = new Session(broker, link, SESSION_DEFAULTS, nowMs, (_session, why) => closed.push(why?.code))
    peer.receive(greeting(frameBytesMax), nowMs)
    return { peer, came: (opcode) => opcodes.filter((other) => other === opcode).length }
  }

  test('with as many pages as can be outstanding', async () => {
    broker.catalog.ensure({ name: queueName('q'), options: {}, update: false })
    const producer = broker.producers.attach('1'.repeat(32), 0)
    for (let i = 1; i <= 20; i++) broker.intake.publish(producer, 'q', batch(i, 100_000), 0, 56 + 100_000, 0)
    await turns(5)
    const { peer, came } = reader(SESSION_DEFAULTS.frameBytesMax)
    const ask = frame(OP.PEEK, encodeControl({ name: 'q', from: 0, limit: 20 }))
    peer.receive(Buffer.concat(Array.from({ length: 16 }, () => ask)), nowMs)
    await turns(200)
    expect(closed).toEqual([])
    expect([came(OP.MESSAGES), came(OP.ERROR)]).toEqual([16, 0])
    expect(peer.isIdle).toBe(true)
  })

  test('with a message above the current limit, which was lowered after the message was published', async () => {
    const bytes = 12 << 20
    const log = new MemoryLog({ segmentBytes: 64 << 20 })
    const shared = {
      now: () => nowMs,
      random: () => 0.5,
      defer: (endTurn: () => void): void => void setImmediate(endTurn),
      onFatal: (error: unknown) => {
        throw error
      },
    }
    broker = await Broker.open({ ...shared, log, messageBytesMax: 15 << 20 })
    broker.catalog.ensure({ name: queueName('q'), options: {}, update: false })
    broker.intake.publish(broker.producers.attach('1'.repeat(32), 0), 'q', batch(1, bytes), 0, 56 + bytes, 0)
    await turns(5)
    const later = log.reopened()
    await later.open()
    broker = await Broker.open({ ...shared, log: later })
    const { peer, came } = reader(LIMITS.frameBytesMax)
    peer.receive(frame(OP.PEEK, encodeControl({ name: 'q', from: 0, limit: 1 })), nowMs)
    await turns(20)
    peer.receive(frame(OP.SUBSCRIBE, encodeControl({ queue: 'q', messages: 1, bytes: 1 }), 1), nowMs)
    await turns(20)
    expect(closed).toEqual([])
    expect([came(OP.MESSAGES), came(OP.DELIVER)]).toEqual([1, 1])
  })
})

describe('the deadline of the handshake', () => {
  test('is `handshakeMs`', () => {
    session.receive(GREETING.subarray(0, 20), nowMs)
    session.tick((nowMs += SESSION_DEFAULTS.handshakeMs), 0)
    expect(closed).toEqual([])
    session.tick((nowMs += 1), 0)
    expect(closed).toEqual(['HANDSHAKE_TIMEOUT'])
  })

  test('moves by the time that the process was stalled, and stays there for all later checks', () => {
    session.receive(GREETING.subarray(0, 20), nowMs)
    session.tick((nowMs += 20_000), 19_900)
    session.tick((nowMs += 50), 0)
    expect(closed).toEqual([])
    session.receive(GREETING.subarray(20), nowMs)
    expect(session.isOpen).toBe(true)
  })
})
