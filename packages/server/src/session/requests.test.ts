/** A defect in a request that changes nothing ends that request; a defect in any other request ends the broker. */
import {
  FrameDecoder,
  OP,
  decodeFault,
  encodeAtomic,
  encodeControl,
  faultError,
  type Body,
  type SluiceError,
} from '@sluice/protocol'
import { describe, expect, it, vi } from 'vitest'
import type { Broker } from '../broker/broker.js'
import { Bench, CALLER, Q, batchOf } from '../testing/bench.js'
import { frame, greeting } from '../testing/client.js'
import { encodeAnswer, type Answer } from './answers.js'
import { REQUEST_NAMES, handle, handleLong, isLong, type AnswerOf, type RequestName } from './requests.js'
import { Session } from './session.js'
import { SESSION_DEFAULTS } from './settings.js'
import { readingTransport } from '../testing/transport.js'

const HOUR = 3_600_000
const name = 'q'

const READING: readonly (readonly [RequestName, Body])[] = [
  ['GET', { name }],
  ['LIST', {}],
  ['CONSUMERS', { name }],
  ['SCHEDULES', { name }],
  ['BINDINGS', {}],
  ['ROUTES', { topic: 'a' }],
  ['PEEK', { name }],
  ['HISTORY', { name, offset: 0 }],
  ['EXPLAIN', { name }],
  ['REDRIVE', { name, dryRun: true }],
  ['DISCARD', { name, dryRun: true }],
  ['REPLAY', { name, dryRun: true }],
]

const CHANGING: readonly (readonly [RequestName, Body])[] = [
  ['ENSURE', { name }],
  ['DELETE', { name }],
  ['PURGE', { name }],
  ['PAUSE', { name }],
  ['RESUME', { name }],
  ['BIND', { pattern: '#', target: name }],
  ['UNBIND', { pattern: '#', target: name }],
  ['MOVE', { name: 'clicks@a', to: 'first' }],
  ['CANCEL', { name, offset: 0 }],
  ['RESCHEDULE', { name, offset: 0, delayMs: 1 }],
  ['CLOSE_CONSUMER', { name, id: 1 }],
  ['SCHEDULE', { name, paused: true }],
  ['UNSCHEDULE', { name }],
  ['RUN_SCHEDULE', { name }],
  ['REDRIVE', { name }],
  ['DISCARD', { name, dryRun: false }],
  ['REPLAY', { name }],
]

const GREETING = greeting()

const failure = new RangeError('Set maximum size exceeded')

/** A broker that throws on every access. */
const BROKEN = new Proxy({} as Broker, {
  get: () => {
    throw failure
  },
})

async function ask(request: RequestName, body: Body, broker: Broker): Promise<Answer> {
  const context = { broker, caller: CALLER, payloadBytesMax: 1 << 20 }
  const encode = (answer: AnswerOf<RequestName>): Answer => encodeAnswer(request, answer, 1 << 20)
  return isLong(request, context, body)
    ? handleLong(request, context, body, encode)
    : handle(request, context, body, encode)
}

describe('a defect', () => {
  it('is tested in every request', () => {
    const names = new Set([...READING, ...CHANGING].map(([request]) => request))
    expect([...names].sort()).toEqual([...REQUEST_NAMES].sort())
  })

  it.each(READING)('in %s with %j ends only the request', async (request, body) => {
    await expect(ask(request, body, BROKEN)).rejects.toMatchObject({
      code: 'READ_FAILED',
      scope: 'request',
      cause: failure,
    })
  })

  it.each(CHANGING)('in %s with %j is passed on as a defect', async (request, body) => {
    await expect(ask(request, body, BROKEN)).rejects.toBe(failure)
  })

  it('in the encoding of an answer ends only the request, if the request changes nothing', async () => {
    const page = { messages: [undefined], next: undefined }
    const unused = { usedName: () => {} }
    const broker = { unused, operator: { peek: () => Promise.resolve(page) } } as unknown as Broker
    await expect(ask('PEEK', { name }, broker)).rejects.toMatchObject({ code: 'READ_FAILED' })
  })

  it('in a request that only reads does not close the connection or stop the broker', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainAgeMs: HOUR })
    await bench.publish([{}, {}, {}])
    const worker = bench.consume()
    await bench.settle()
    worker.ackAll()
    worker.leave()
    await bench.settle()
    const errors: (SluiceError | undefined)[] = []
    const closed: unknown[] = []
    const decoder = new FrameDecoder((opcode, _flags, _channel, _correlation, bytes, start, end) => {
      if (opcode === OP.ERROR) errors.push(faultError(decodeFault(bytes, start, end)))
    })
    decoder.frameBytesMax = SESSION_DEFAULTS.frameBytesMax
    const transport = readingTransport(decoder)
    const session = new Session(bench.broker, transport, SESSION_DEFAULTS, bench.now, (_, why) => {
      closed.push(why)
    })
    session.receive(GREETING, bench.now)
    bench.log.read = () => {
      throw failure
    }
    bench.broker.catalog.queue(Q).nextRetained = () => {
      throw failure
    }
    bench.broker.catalog.info = () => {
      throw failure
    }
    session.receive(frame(OP.HISTORY, encodeControl({ name, offset: 0 })), bench.now)
    session.receive(frame(OP.REPLAY, encodeControl({ name, dryRun: true })), bench.now)
    session.receive(frame(OP.GET, encodeControl({ name })), bench.now)
    await bench.settle()
    expect(errors.map((error) => error?.code)).toEqual(['READ_FAILED', 'READ_FAILED', 'READ_FAILED'])
    expect(closed).toEqual([])
    expect((await bench.publish([{}])).baseOffset).toBe(3)
    expect(bench.broker.catalog.queue(Q).live).toBe(1)
    bench.broker.audit()
  })

  it.each([
    { isChange: true, hasLeft: false },
    { isChange: true, hasLeft: true },
    { isChange: false, hasLeft: false },
    { isChange: false, hasLeft: true },
  ])('in a long request ends the broker if the request is a change: %j', async ({ isChange, hasLeft }) => {
    const bench = await new Bench().open()
    bench.ensure()
    let failRequest = (): void => {}
    vi.spyOn(bench.broker.operator, 'discard').mockReturnValue(
      new Promise((_resolve, reject) => (failRequest = () => reject(failure))),
    )
    const fail = vi.spyOn(bench.broker, 'fail').mockReturnValue()
    const decoder = new FrameDecoder(() => {})
    const session = new Session(
      bench.broker,
      readingTransport(decoder),
      SESSION_DEFAULTS,
      bench.now,
      () => {},
    )
    session.receive(GREETING, bench.now)
    session.receive(frame(OP.DISCARD, encodeControl({ name, dryRun: !isChange })), bench.now)
    if (hasLeft) session.disconnected()
    await bench.settle()
    failRequest()
    await bench.settle()
    expect(fail.mock.calls).toEqual(isChange ? [[failure]] : [])
    expect(session.isOpen).toBe(!hasLeft && !isChange)
  })
})

describe('a call', () => {
  const BATCH = batchOf([{}], 1)
  const KEEPING = [...READING, ...CHANGING]
    .filter(([, body]) => 'name' in body || 'target' in body)
    .filter(([request]) => request !== 'DELETE' && request !== 'MOVE')

  it.each(KEEPING)('of %s with %j is a use of the queue', async (request, body) => {
    const bench = await new Bench().open()
    bench.ensure({ expiresMs: 10_000 })
    await bench.pass(9_999)
    bench.broker.turn.begin()
    await bench.answer(ask(request, body, bench.broker).catch(() => {}))
    await bench.pass(9_999)
    expect(bench.broker.catalog.queue(Q).name).toBe(Q)
    await bench.pass(1)
    expect(() => bench.broker.catalog.queue(Q)).toThrow('no queue')
  })

  it.each([
    ['PUBLISH', frame(OP.PUBLISH, Buffer.concat([Buffer.from([1, 0x71]), BATCH]))],
    [
      'ATOMIC',
      frame(OP.ATOMIC, encodeAtomic(1, [], [{ queue: name, bytes: BATCH, at: 0, end: BATCH.length }])),
    ],
  ])('of %s is a use of the queue', async (_, bytes) => {
    const bench = await new Bench().open()
    bench.ensure({ expiresMs: 10_000 })
    const decoder = new FrameDecoder(() => {})
    const session = new Session(
      bench.broker,
      readingTransport(decoder),
      SESSION_DEFAULTS,
      bench.now,
      () => {},
    )
    session.receive(GREETING, bench.now)
    await bench.pass(9_999)
    session.receive(bytes, bench.now)
    await bench.settle()
    await bench.pass(9_999)
    expect(bench.info().published).toBe(1)
    await bench.pass(1)
    expect(() => bench.broker.catalog.queue(Q)).toThrow('no queue')
  })

  it('of LIST does not count as a use of a queue', async () => {
    const bench = await new Bench().open()
    bench.ensure({ expiresMs: 10_000 })
    await bench.pass(9_999)
    await ask('LIST', {}, bench.broker)
    await bench.pass(1)
    expect(() => bench.broker.catalog.queue(Q)).toThrow('no queue')
  })
})
