/** Tests that no frame is longer than the HELLO of the client allows. */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  FrameDecoder,
  LIMITS,
  MESSAGE_OVERHEAD_BYTES,
  OP,
  ORIGIN_HEADERS,
  OUTCOME,
  decodeControl,
  decodeMessages,
  encodeControl,
  encodeSettle,
  queueName,
  readRecordOptions,
  readU32,
  recordBytes,
  sealBatch,
  writeRecordHead,
  type RecordOptions,
} from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Broker } from '../broker/broker.js'
import { MemoryLog } from '../log/memory-log.js'
import { SEGMENT_HEADER_BYTES } from '../log/segment.js'
import { Session } from './session.js'
import { SESSION_DEFAULTS } from './settings.js'
import { frame, greeting } from '../testing/client.js'
import { readingTransport } from '../testing/transport.js'

const LARGEST = LIMITS.batchBytesMax
const LEAST = LARGEST + MESSAGE_OVERHEAD_BYTES

/** With segments of 8 MiB, a quarter of an entry has room for 1,024 reasons of this size. */
const REASON_BYTES = Math.floor(((8 << 20) - SEGMENT_HEADER_BYTES) / 4 / 1024)

interface Frame {
  readonly opcode: number
  readonly channel: number
  readonly payload: Uint8Array
}

/** A client that accepts frames of `frameBytesMax` bytes, and the frames that it has received. */
class Peer {
  readonly frames: Frame[] = []
  broker!: Broker
  #session!: Session
  #batches = 0

  async open(frameBytesMax: number, name: Uint8Array = new Uint8Array(0)): Promise<this> {
    this.broker = await Broker.open({
      log: new MemoryLog({ segmentBytes: 8 << 20 }),
      now: () => 1_700_000_000_000,
      random: () => 0.5,
      defer: (endTurn) => void setImmediate(endTurn),
      onFatal: (error) => {
        throw error
      },
      messageBytesMax: LARGEST,
    })
    const decoder = new FrameDecoder((opcode, _flags, channel, _correlation, bytes, start, end) => {
      this.frames.push({ opcode, channel, payload: bytes.slice(start, end) })
    })
    // The decoder throws if a frame is longer than this.
    decoder.frameBytesMax = frameBytesMax
    this.#session = new Session(
      this.broker,
      readingTransport(decoder),
      SESSION_DEFAULTS,
      1_700_000_000_000,
      () => {},
    )
    this.#session.receive(greeting(frameBytesMax, name), 1_700_000_000_000)
    await this.turns()
    return this
  }

  send(opcode: number, payload: Uint8Array, channel = 0): void {
    this.#session.receive(frame(opcode, payload, channel), 1_700_000_000_000)
  }

  publish(queue: string, messageBytes: number, options: RecordOptions = {}, count = 1): void {
    const payloadBytes = messageBytes + 8 - recordBytes(options, 0)
    const bytes = new Uint8Array(BATCH_HEADER_BYTES + count * (messageBytes + 8))
    for (let i = 0, at = BATCH_HEADER_BYTES; i < count; i++, at += messageBytes + 8)
      writeRecordHead(bytes, at, options, 0, payloadBytes)
    sealBatch(bytes, 0, bytes.length, { type: BATCH_TYPE.messages, count, batchNumber: ++this.#batches })
    this.send(OP.PUBLISH, Buffer.concat([Buffer.from([queue.length]), Buffer.from(queue), bytes]))
  }

  async turns(): Promise<void> {
    for (let i = 0; i < 10; i++) {
      this.broker.turn.wake()
      await new Promise((resolve) => setImmediate(resolve))
    }
  }

  /** Returns the frames of this kind that arrived since the last call. */
  take(opcode: number): Frame[] {
    return this.frames.splice(0).filter((frame) => frame.opcode === opcode)
  }

  ensure(name: string, options: object = {}): void {
    this.broker.catalog.ensure({ name: queueName(name), options, update: true })
  }

  async subscribe(queue: string, channel: number): Promise<number> {
    const body = { queue, messages: 1, bytes: 2 ** 32 - 1, limit: 1 }
    this.send(OP.SUBSCRIBE, encodeControl(body), channel)
    await this.turns()
    const ok = this.frames.find((frame) => frame.opcode === OP.SUBSCRIBE_OK && frame.channel === channel)
    return readU32(ok!.payload, 0)
  }
}

describe.each([LEAST, LEAST + 700, SESSION_DEFAULTS.frameBytesMax])(
  'with frames of %i bytes',
  (frameBytesMax) => {
    it('the largest message is delivered and peeked after any number of moves', async () => {
      const peer = await new Peer().open(frameBytesMax)
      const dead = 'd'.repeat(30)
      peer.ensure(dead)
      peer.ensure('q', { deadLetter: dead, keyConcurrency: 1 })
      peer.publish('q', LARGEST, { key: 'k', headers: { mine: 'yes' } })
      let channel = 0
      for (const from of ['q', dead, 'back', dead]) {
        if (from === 'back') {
          peer.ensure('back', { deadLetter: dead })
          const all = {
            name: queueName(dead),
            from: 0,
            limit: 1,
            offsets: undefined,
            filter: {},
            dryRun: false,
          }
          await peer.broker.operator.redrive(
            { ...all, to: queueName('back'), force: false },
            { label: '', isOpen: true },
          )
          await peer.turns()
        }
        peer.take(OP.DELIVER)
        const id = await peer.subscribe(from, ++channel)
        const [delivered, ...others] = peer.take(OP.DELIVER)
        expect(others).toEqual([])
        expect(delivered!.payload.length).toBeGreaterThan(LARGEST)
        const item = {
          firstTag: readU32(delivered!.payload, 4),
          count: 1,
          outcome: OUTCOME.deadLetter,
          reason: 'because '.repeat(500),
        }
        peer.send(OP.SETTLE, encodeSettle(id, [item]), channel)
        await peer.turns()
        peer.send(OP.PEEK, encodeControl({ name: dead }))
        await peer.turns()
        const [shown] = peer.take(OP.MESSAGES)
        const { messages } = decodeMessages(shown!.payload, 0, shown!.payload.length)
        expect(messages).toHaveLength(1)
        const options = readRecordOptions(messages[0]!.record, 0)
        expect(options).toMatchObject({ key: 'k', headers: { mine: 'yes' } })
        const error = options.headers![ORIGIN_HEADERS.error]
        if (frameBytesMax === SESSION_DEFAULTS.frameBytesMax) expect(error).toHaveLength(REASON_BYTES)
        else expect(error?.length ?? 0).toBeLessThan(1_000)
      }
    })

    it('a page of messages fits in a frame', async () => {
      const peer = await new Peer().open(frameBytesMax)
      peer.ensure('q')
      for (let i = 0; i < 4; i++) peer.publish('q', 600_000)
      peer.publish('q', 10)
      await peer.turns()
      const found: number[] = []
      for (let from: number | undefined = 0; from !== undefined;) {
        peer.send(OP.PEEK, encodeControl({ name: 'q', from }))
        await peer.turns()
        const [shown] = peer.take(OP.MESSAGES)
        const { messages, next } = decodeMessages(shown!.payload, 0, shown!.payload.length)
        found.push(...messages.map(({ offset }) => offset))
        from = next
      }
      expect(found).toEqual([0, 1, 2, 3, 4])
    })

    it('a page of consumers whose labels are not valid UTF-8 fits in a frame', async () => {
      const peer = await new Peer().open(frameBytesMax, Buffer.alloc(LIMITS.clientNameBytesMax, 0xff))
      peer.ensure('q')
      for (let channel = 1; channel <= 150; channel++) await peer.subscribe('q', channel)
      const found = new Set<unknown>()
      for (let from: unknown = 0, pages = 0; from !== null && pages < 10; pages++) {
        peer.take(OP.SUBSCRIBE_OK)
        peer.send(OP.CONSUMERS, encodeControl({ name: 'q', from }))
        await peer.turns()
        const [answer] = peer.take(OP.RESULT)
        const { consumers, next } = decodeControl(answer!.payload, 0, answer!.payload.length)
        for (const { id } of consumers as { id: number }[]) found.add(id)
        from = next
      }
      expect(found.size).toBe(150)
    })

    it('confirms of one turn share frames of at most this size', async () => {
      const peer = await new Peer().open(frameBytesMax)
      peer.ensure('q', { dedupWindowMs: 60_000 })
      peer.publish('q', 30, { id: 'x' })
      // All messages are duplicates. The two confirms together are longer than the shortest frame.
      const count = frameBytesMax === LEAST ? 45_000 : 10_000
      for (let i = 0; i < 2; i++) peer.publish('q', 10, { id: 'x' }, count)
      await peer.turns()
      const confirms = peer.take(OP.PUBLISH_OK)
      expect(confirms.reduce((sum, { payload }) => sum + payload.length, 0)).toBe(20 * 3 + 2 * count * 12)
    })
  },
)
