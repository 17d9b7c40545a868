/** Bugs that simulated runs found: each case is the shortest history that showed one. */
import {
  FrameDecoder,
  FRAME_HEADER_BYTES,
  LIMITS,
  OP,
  OUTCOME,
  decodePublishOk,
  decodeRanges,
  encodeAuth,
  encodeControl,
  encodeHello,
  encodePreface,
  encodeSettle,
  opcodeName,
  writeFrameHeader,
  type QueueName,
} from '@sluice/protocol'
import { expect, test } from 'vitest'
import { Broker } from '../../packages/server/src/broker/broker.js'
import { FileLog } from '../../packages/server/src/log/file-log.js'
import type { Consumer, Subscription } from '../../packages/server/src/queue/index.js'
import { Session } from '../../packages/server/src/session/session.js'
import { SESSION_DEFAULTS, type SessionSettings } from '../../packages/server/src/session/settings.js'
import { buildBatch } from './attempts.js'
import { SimulatedDisk } from './disk.js'

const SEGMENT_BYTES = 16 * 1024
const START_MS = 1_700_000_000_000

/** A broker on a disk whose operations complete at once. The test controls the broker's clock and turns. */
class Bench {
  readonly disk: SimulatedDisk
  broker!: Broker
  log!: FileLog
  nowMs = START_MS
  fatal: unknown
  readonly turns: (() => void)[] = []

  constructor(disk = new SimulatedDisk()) {
    this.disk = disk
  }

  async open(checkpointBytes = 1 << 30): Promise<this> {
    this.log = new FileLog({
      disk: this.disk,
      segmentBytes: SEGMENT_BYTES,
      lowFreeBytes: 0,
      now: () => this.nowMs,
      random32: () => 7,
      sleep: () => new Promise(() => {}),
    })
    this.broker = await Broker.open({
      log: this.log,
      now: () => this.nowMs,
      random: () => 0.5,
      defer: (turn) => this.turns.push(turn),
      onFatal: (error) => (this.fatal = error),
      messageBytesMax: 1024,
      checkpointBytes,
    })
    return this
  }

  /** Runs turns until nothing more happens. */
  async settle(): Promise<void> {
    for (let quiet = 0; quiet < 3; quiet++) {
      for (let turn = this.turns.shift(); turn !== undefined; turn = this.turns.shift()) {
        turn()
        quiet = 0
      }
      await new Promise((resolve) => setImmediate(resolve))
    }
  }

  publish(queue: string, number: number, count: number): void {
    const producer = this.broker.producers.attach('ab'.repeat(16), 0)
    const drafts = Array.from({ length: count }, (_, i) => ({ name: `${number}:${i}`, padding: 0 }))
    const { batch } = buildBatch(number, drafts, false)
    this.broker.intake.publish(producer, queue, batch, 0, batch.length, 0)
  }
}

/** A client: sends frames and keeps the ones that it receives. */
class Peer {
  readonly session: Session
  readonly frames: { readonly name: string | undefined; readonly payload: Uint8Array }[] = []
  isPaused = false
  isEnded = false
  readonly #bench: Bench

  constructor(bench: Bench, settings: Partial<SessionSettings> = {}) {
    this.#bench = bench
    const decoder = new FrameDecoder((opcode, _flags, _channel, _correlation, bytes, start, end) => {
      this.frames.push({ name: opcodeName(opcode), payload: new Uint8Array(bytes.subarray(start, end)) })
    })
    const transport = {
      address: 'peer',
      write: (bytes: Uint8Array, written: () => void) => {
        decoder.push(new Uint8Array(bytes))
        written()
      },
      pause: () => (this.isPaused = true),
      resume: () => (this.isPaused = false),
      end: () => (this.isEnded = true),
    }
    this.session = new Session(
      bench.broker,
      transport,
      { ...SESSION_DEFAULTS, ...settings },
      bench.nowMs,
      () => {},
    )
    this.session.receive(encodePreface(), bench.nowMs)
    const hello = encodeHello({
      versionMin: 1,
      versionMax: 1,
      features: 0,
      frameBytesMax: LIMITS.frameBytesDefault,
      heartbeatMs: 1000,
      producer: new Uint8Array(16).fill(9),
      acceptedNumber: 0,
      inFlightBatchesMax: 0,
      name: 'peer',
    })
    this.send(OP.HELLO, 0, hello)
    this.send(OP.AUTH, 0, encodeAuth({ mechanism: 0, identity: '', secret: new Uint8Array(0) }))
  }

  send(opcode: number, correlation: number, payload: Uint8Array, channel = 0): void {
    const bytes = new Uint8Array(FRAME_HEADER_BYTES + payload.length)
    bytes.set(payload, writeFrameHeader(bytes, 0, payload.length, opcode, channel, correlation))
    this.session.receive(bytes, this.#bench.nowMs)
  }

  publish(queue: string, number: number, padding = 0): void {
    const { batch } = buildBatch(number, [{ name: `peer:${number}`, padding }], false)
    const payload = new Uint8Array(1 + queue.length + batch.length)
    payload[0] = queue.length
    payload.set(Buffer.from(queue), 1)
    payload.set(batch, 1 + queue.length)
    this.send(OP.PUBLISH, 0, payload)
  }

  take(): string[] {
    return this.frames.splice(0).map(({ name }) => name ?? '?')
  }
}

const NAME = 'q' as QueueName

test('a confirm does not join a frame of an earlier turn after the page of that frame is used again', async () => {
  const bench = await new Bench().open()
  const peer = new Peer(bench)
  peer.send(OP.ENSURE, 1, encodeControl({ name: NAME }))
  await bench.settle()
  expect(peer.take()).toEqual(['HELLO_OK', 'RESULT'])
  // A lone confirm takes 32 bytes of its page, and so do two empty answers to settles in the next turn.
  peer.publish(NAME, 1)
  await bench.settle()
  peer.send(OP.SETTLE, 2, encodeSettle(1, []), 1)
  peer.send(OP.SETTLE, 3, encodeSettle(1, []), 1)
  peer.publish(NAME, 2)
  await bench.settle()
  const confirmed: number[] = []
  let settled = 0
  for (const { name, payload } of peer.frames) {
    if (name === 'PUBLISH_OK') decodePublishOk(payload, 0, payload.length, (number) => confirmed.push(number))
    else if (name === 'SETTLE_OK')
      settled += decodeRanges('SETTLE_OK', payload, 0, payload.length).ranges.length + 1
  }
  expect(peer.take()).toEqual(['PUBLISH_OK', 'SETTLE_OK', 'SETTLE_OK', 'PUBLISH_OK'])
  expect(confirmed).toEqual([1, 2])
  expect(settled).toBe(2)
})

test('the mark of an orderly stop is the last entry of the log, even with a turn under way', async () => {
  const bench = await new Bench().open(1)
  bench.broker.catalog.ensure({ name: NAME, options: {}, update: false })
  bench.publish(NAME, 1, 20)
  await bench.settle()
  // A checkpoint is due, and a turn that would write it is open.
  bench.publish(NAME, 2, 20)
  const closing = bench.broker.close()
  await bench.settle()
  await closing
  await bench.settle()
  expect(bench.fatal).toBeUndefined()
  const next = await new Bench(bench.disk.clone()).open()
  expect(next.broker.status.afterCrash).toBe(false)
  expect(next.broker.catalog.info(NAME).ready).toBe(40)
})

test('more settles in one turn than one segment can hold are written in parts', async () => {
  const bench = await new Bench().open()
  bench.broker.catalog.ensure({ name: NAME, options: {}, update: false })
  const tags: number[] = []
  const consumer: Consumer = {
    label: '',
    address: '',
    isReady: true,
    deliver: (_subscription: Subscription, { firstTag, count }) => {
      for (let i = 0; i < count; i++) tags.push(firstTag + i)
    },
    lost: () => {},
    drained: () => {},
    ended: () => {},
  }
  const subscription = bench.broker.leases.subscribe(
    { queue: NAME, messages: 4000, bytes: 1 << 30 },
    1,
    consumer,
  )
  const batches = 40
  for (let number = 1; number <= batches; number++) {
    bench.publish(NAME, number, 100)
    await bench.settle()
  }
  expect(tags).toHaveLength(4000)
  // Every second message is acknowledged, so that no two acks share a fact.
  const odd = tags.filter((tag) => tag % 2 === 1)
  for (let at = 0; at < odd.length; at += 100) {
    const items = odd.slice(at, at + 100).map((firstTag) => ({ firstTag, count: 1, outcome: OUTCOME.ack }))
    expect(bench.broker.leases.settle(subscription, items)).toEqual([])
  }
  await bench.settle()
  expect(bench.fatal).toBeUndefined()
  const next = await new Bench(bench.disk.clone()).open()
  expect(next.broker.catalog.info(NAME).ready).toBe(2000)
})

test('a connection that is not read while its publishes wait for the disk does not count as silent', async () => {
  const disk = new SimulatedDisk({ mode: 'queued' })
  const bench = new Bench(disk)
  await disk.run(bench.open())
  const peer = new Peer(bench, { heartbeatMs: 1000, inFlightBytesMax: 500 })
  peer.send(OP.ENSURE, 1, encodeControl({ name: NAME }))
  peer.publish(NAME, 1, 800)
  expect(peer.isPaused).toBe(true)
  let looked = 0
  for (let i = 0; i < 100; i++) {
    bench.nowMs += 50
    bench.broker.turn.begin()
    peer.session.tick(bench.nowMs, 0)
    looked++
  }
  expect(looked).toBe(100)
  expect(peer.isEnded).toBe(false)
  for (let i = 0; i < 100; i++) {
    disk.step()
    await bench.settle()
  }
  expect(peer.isPaused).toBe(false)
  expect(peer.take()).toContain('PUBLISH_OK')
  // From here on the connection is read again.
  for (let i = 0; i < 100; i++) {
    bench.nowMs += 50
    bench.broker.turn.begin()
    peer.session.tick(bench.nowMs, 0)
  }
  expect(peer.isEnded).toBe(true)
})

/** A queue with `count` dead messages, and an empty one. */
async function withDead(bench: Bench, count: number): Promise<void> {
  bench.broker.catalog.ensure({ name: NAME, options: {}, update: false })
  bench.broker.catalog.ensure({ name: OTHER, options: {}, update: false })
  bench.publish(NAME, 1, count)
  const consumer: Consumer = {
    label: '',
    address: '',
    isReady: true,
    deliver: (subscription, { firstTag, count }) => {
      const item = { firstTag, count, outcome: OUTCOME.deadLetter }
      queueMicrotask(() => bench.broker.leases.settle(subscription, [item]))
    },
    lost: () => {},
    drained: () => {},
    ended: () => {},
  }
  const subscription = bench.broker.leases.subscribe(
    { queue: NAME, messages: 4000, bytes: 1 << 30 },
    1,
    consumer,
  )
  await bench.settle()
  bench.broker.leases.unsubscribe(subscription, 'normal')
  await bench.settle()
  expect(bench.broker.catalog.info(NAME).dead).toBe(count)
}

const OTHER = 'other' as QueueName
const OPERATOR = { label: 'test', isOpen: true }

for (const opcode of [OP.DISCARD, OP.REDRIVE] as const) {
  test(`${opcodeName(opcode)} of a queue that is deleted during the request does nothing more to the queue`, async () => {
    const bench = await new Bench().open()
    await withDead(bench, 20)
    bench.publish(OTHER, 2, 3)
    await bench.settle()
    const peer = new Peer(bench)
    // Both requests arrive in one read of the socket, and the second request is answered before the first one is
    // complete.
    peer.send(opcode, 1, encodeControl({ name: NAME }))
    peer.send(OP.DELETE, 2, encodeControl({ name: NAME }))
    await bench.settle()
    expect(bench.fatal).toBeUndefined()
    bench.broker.audit()
    // The messages of the other queue still count as live.
    expect(bench.broker.usage().liveBytes).toBeGreaterThan(0)
    const next = await new Bench(bench.disk.clone()).open()
    next.broker.audit()
    expect(next.broker.catalog.info(OTHER).ready).toBe(3)
  })
}

test('no entry follows the mark of an orderly stop, even while dead messages are being redriven', async () => {
  const bench = await new Bench().open()
  await withDead(bench, 20)
  const filter = {}
  const asked = bench.broker.operator.redrive(
    { name: NAME, from: 0, limit: 1000, offsets: undefined, filter, to: OTHER, force: false, dryRun: false },
    OPERATOR,
  )
  const closing = bench.broker.close()
  await Promise.allSettled([asked, closing, bench.settle()])
  await bench.settle()
  expect(bench.fatal).toBeUndefined()
  const next = await new Bench(bench.disk.clone()).open()
  expect(next.broker.status.afterCrash).toBe(false)
})

for (const opcode of [OP.HISTORY, OP.REPLAY] as const) {
  test(`${opcodeName(opcode)} that reaches a recycled segment does no harm`, async () => {
    const bench = await new Bench().open()
    bench.broker.catalog.ensure({ name: NAME, options: {}, update: false })
    for (let number = 1; number <= 20; number++) {
      bench.publish(NAME, number, 80)
      await bench.settle()
    }
    const { firstPosition } = bench.log.usage()
    const read = bench.log.read.bind(bench.log)
    // The oldest segments are freed while the request reads the log.
    bench.log.read = async function* (position) {
      for await (const entry of read(position)) {
        yield entry
        await bench.log.truncateBefore(firstPosition + 4 * SEGMENT_BYTES)
      }
    }
    const peer = new Peer(bench)
    const body = opcode === OP.HISTORY ? { name: NAME, offset: 0 } : { name: NAME }
    peer.send(opcode, 1, encodeControl(body))
    await bench.settle()
    expect(bench.fatal).toBeUndefined()
    peer.send(OP.GET, 2, encodeControl({ name: NAME }))
    await bench.settle()
    expect(peer.take()).toContain('RESULT')
  })
}

test('if several messages leave together, the history of each message says how that message left', async () => {
  const bench = await new Bench().open()
  await withDead(bench, 3)
  bench.publish(OTHER, 2, 3)
  const all = { from: 0, limit: 10, offsets: undefined, filter: {}, dryRun: false }
  await Promise.all([bench.broker.operator.discard({ name: NAME, ...all }, OPERATOR), bench.settle()])
  bench.broker.turn.begin()
  for (const offset of [0, 1, 2]) bench.broker.operator.cancel({ name: OTHER, offset, id: undefined })
  await bench.settle()
  for (const [name, how] of [
    [NAME, 'discarded'],
    [OTHER, 'cancelled'],
  ] as const) {
    for (const offset of [0, 1, 2]) {
      const { events } = await bench.broker.history.page({ name, offset, cursor: undefined }, OPERATOR)
      expect(events.at(-1), `offset ${offset} of ${name}`).toMatchObject({ event: how })
    }
  }
})
