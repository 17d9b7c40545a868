/**
 * A scripted broker for tests, without a socket. It decodes the frames that the client writes, and sends the frames that
 * the test specifies. By itself it answers only frames for which `replies` has an answer.
 */
import {
  BATCH_HEADER_BYTES,
  checkBatch,
  CONTENT_TYPE,
  decodeAtomic,
  decodeClaims,
  decodeControl,
  decodeExtend,
  decodeHello,
  decodeRanges,
  decodeSettle,
  decodeSubscriptionId,
  DELIVER_FLAG,
  DELIVER_HEADER_BYTES,
  encodeAtomicOk,
  encodeControl,
  encodeDrained,
  encodeFault,
  encodeHelloOk,
  encodeLeasesLost,
  encodeMessages,
  encodePreface,
  encodePublishErr,
  encodeRanges,
  encodeReadAt,
  encodeReadOk,
  encodeSubscribed,
  ERRORS,
  FrameDecoder,
  FRAME_HEADER_BYTES,
  LIMITS,
  LOSS,
  OP,
  opcodeName,
  PUBLISH_NAME_AT,
  publishBatchStart,
  readBatchHeader,
  readRecordOptions,
  readText,
  readU32,
  recordPayloadAt,
  recordSize,
  recordBytes,
  SCATTERED_BYTES,
  writeDeliverHead,
  writeFrameHeader,
  publishOkItemBytes,
  writePublishOkItem,
  writeRecordHead,
  writeScatteredHead,
  type Duplicates,
  type AtomicAck,
  type Claim,
  type ContentType,
  type ErrorCode,
  type ErrorScope,
  type Granted,
  type Hello,
  type HelloOk,
  type PeekPage,
  type Placed,
  type RecordOptions,
  type SettleItem,
  type TagRange,
} from '@sluice/protocol'
import { afterEach, beforeEach, vi } from 'vitest'
import { checkInvariants, type Sluice } from '../client.js'
import { clientThrough, connectThrough } from '../connect.js'
import type { ClientOptions, ConnectOptions } from '../options.js'
import type { Dial, Transport, TransportEvents } from '../transport.js'

export interface Frame {
  readonly opcode: number
  readonly name: string
  readonly channel: number
  readonly correlation: number
  readonly payload: Uint8Array
  /** Number of the socket write that contained the frame. */
  readonly write: number
}

export interface Published {
  readonly queue: string
  readonly number: number
  readonly count: number
  readonly attributes: number
  readonly bodies: readonly string[]
  readonly options: readonly RecordOptions[]
}

const HELLO_OK: HelloOk = {
  version: 1,
  features: 0,
  frameBytesMax: LIMITS.frameBytesDefault,
  heartbeatMs: LIMITS.heartbeatMsDefault,
  messageBytesMax: LIMITS.messageBytesDefault,
  inFlightBatchesMax: LIMITS.inFlightBatchesDefault,
  inFlightBytesMax: LIMITS.inFlightBytesDefault,
  boot: 1,
  durability: 1,
  serverVersion: 'scripted',
}

type Reply = (frame: Frame, link: Link) => void

/** One connection, seen from the broker. */
export class Link {
  readonly frames: Frame[] = []
  hello: Hello | undefined
  writes = 0
  /** The value that the client's calls of `write` return. */
  flowing = true
  closed = false
  /** Whether the client has ended the connection, after a GOODBYE. */
  ended = false
  readonly #peer: Peer
  readonly #events: TransportEvents
  readonly #decoder: FrameDecoder
  #tag = 1

  constructor(peer: Peer, events: TransportEvents) {
    this.#peer = peer
    this.#events = events
    this.#decoder = new FrameDecoder((opcode, _flags, channel, correlation, bytes, start, end) => {
      const frame = {
        opcode,
        name: opcodeName(opcode) ?? `opcode ${opcode}`,
        channel,
        correlation,
        payload: bytes.slice(start, end),
        write: this.writes,
      }
      this.frames.push(frame)
      if (opcode === OP.HELLO) this.hello = decodeHello(frame.payload, 0, frame.payload.length)
      this.#peer.replies[opcode]?.(frame, this)
    })
    this.#decoder.frameBytesMax = LIMITS.frameBytesMax
  }

  get transport(): Transport {
    return {
      write: (chunks) => {
        this.writes++
        for (const chunk of chunks) this.#decoder.push(chunk)
        this.#peer.check()
        return this.flowing
      },
      end: () => {
        this.ended = true
        this.closed = true
      },
      destroy: () => {
        this.closed = true
      },
    }
  }

  open(): void {
    if (!this.closed) this.#events.opened()
  }

  /** Sends the bytes in a later turn, as a socket does. */
  sendBytes(bytes: Uint8Array): void {
    setImmediate(() => {
      // The chunk is overwritten after the call, like the read buffer of a socket.
      const chunk = new Uint8Array(bytes)
      if (!this.closed) this.#events.data(chunk)
      chunk.fill(0xee)
      this.#peer.check()
    })
  }

  send(opcode: number, channel: number, correlation: number, payload: Uint8Array): void {
    const bytes = new Uint8Array(FRAME_HEADER_BYTES + payload.length)
    bytes.set(payload, writeFrameHeader(bytes, 0, payload.length, opcode, channel, correlation))
    this.sendBytes(bytes)
  }

  helloOk(changes: Partial<HelloOk> = {}): void {
    this.sendBytes(encodePreface())
    this.send(OP.HELLO_OK, 0, 0, encodeHelloOk({ ...HELLO_OK, ...changes }))
  }

  error(code: ErrorCode, scope: ErrorScope, channel = 0, correlation = 0): void {
    this.send(OP.ERROR, channel, correlation, fault(code, scope))
  }

  /** Answers a control frame. */
  result(frame: Frame, body: Record<string, unknown>): void {
    this.send(OP.RESULT, 0, frame.correlation, encodeControl(body))
  }

  /** Answers a PEEK. */
  messages(frame: Frame, page: PeekPage): void {
    this.send(OP.MESSAGES, 0, frame.correlation, encodeMessages(page))
  }

  /** Ends leases because their processing timeout passed. */
  leasesLost(
    channel: number,
    subscriptionId: number,
    ...ranges: readonly (TagRange & { readonly firstOffset?: number })[]
  ): void {
    const payload = encodeLeasesLost({
      subscriptionId,
      reason: LOSS.processingTimeout,
      ranges: ranges.map((range) => ({ firstOffset: 0, ...range })),
    })
    this.send(OP.LEASES_LOST, channel, 0, payload)
  }

  confirm(
    ...batches: readonly (readonly [number: number, baseOffset: number, duplicates?: Duplicates])[]
  ): void {
    const bytes = new Uint8Array(
      batches.reduce((sum, [, , duplicates]) => sum + publishOkItemBytes(duplicates), 0),
    )
    let at = 0
    for (const [number, base, duplicates] of batches)
      at = writePublishOkItem(bytes, at, number, base, duplicates)
    this.send(OP.PUBLISH_OK, 0, 0, bytes)
  }

  /** Confirms an atomic step whose batches begin at these offsets. */
  atomicOk(number: number, ...places: readonly (number | Placed)[]): void {
    const all = places.map((place) =>
      typeof place === 'number' ? { baseOffset: place, duplicates: undefined } : place,
    )
    this.send(OP.ATOMIC_OK, 0, 0, encodeAtomicOk(number, all))
  }

  refuse(number: number, code: ErrorCode): void {
    const { retryable } = ERRORS[code]
    const message = `refused: ${code}`
    const payload = encodePublishErr(number, { code, scope: 'request', retryable, retryAfterMs: 0, message })
    this.send(OP.PUBLISH_ERR, 0, 0, payload)
  }

  /** Delivers texts with consecutive tags and offsets; returns the first tag. */
  deliver(
    channel: number,
    subscriptionId: number,
    bodies: readonly string[],
    {
      offset = 0,
      attempt = 1,
      flags = 0,
      tag = this.#tag,
      options = undefined as RecordOptions | undefined,
      /** Options of each message, instead of `options`. */
      each = undefined as readonly (RecordOptions | undefined)[] | undefined,
      contentType = undefined as ContentType | undefined,
      /** Offsets of a scattered delivery. */
      offsets = undefined as readonly number[] | undefined,
    } = {},
  ): number {
    const records = bodies.map((body, i) =>
      textRecord(body, each === undefined ? options : each[i], contentType),
    )
    const gap = offsets === undefined ? 0 : SCATTERED_BYTES
    const bytes = new Uint8Array(
      DELIVER_HEADER_BYTES + records.reduce((sum, record) => sum + gap + record.length, 0),
    )
    let at = writeDeliverHead(bytes, 0, {
      subscriptionId,
      firstTag: tag,
      firstOffset: offsets?.[0] ?? offset,
      publishedAtMs: 1_700_000_000_000,
      count: bodies.length,
      attempt,
      flags: offsets === undefined ? flags : flags | DELIVER_FLAG.scattered,
    })
    for (const [i, record] of records.entries()) {
      if (offsets !== undefined) at = writeScatteredHead(bytes, at, offsets[i] ?? 0, 1_700_000_000_000 + i)
      bytes.set(record, at)
      at += record.length
    }
    this.send(OP.DELIVER, channel, 0, bytes)
    this.#tag = (tag + bodies.length) >>> 0
    return tag
  }

  /** Reports the position of a reader. */
  readAt(channel: number, readerId: number, offset: number, { missed = 0, isEnd = false } = {}): void {
    this.send(OP.READ_AT, channel, 0, encodeReadAt({ readerId, offset, missed, isEnd }))
  }

  drained(): void {
    setImmediate(() => this.#events.drained())
  }

  /** Breaks the connection. */
  cut(error?: Error): void {
    if (this.closed) return
    this.closed = true
    this.#events.closed(error)
  }

  named(name: string): Frame[] {
    return this.frames.filter((frame) => frame.name === name)
  }

  get published(): Published[] {
    return this.named('PUBLISH').map(({ payload }) => published(payload))
  }

  get atomics(): { number: number; acks: readonly AtomicAck[]; batches: Published[] }[] {
    return this.named('ATOMIC').map(({ payload }) => {
      const { number, acks, batches } = decodeAtomic(payload, 0, payload.length)
      return {
        number,
        acks,
        batches: batches.map(({ queue, bytes, at, end }) => publishedBatch(queue, bytes, at, end)),
      }
    })
  }

  get settles(): SettleItem[] {
    return this.named('SETTLE').flatMap(({ payload }) => decodeSettle(payload, 0, payload.length).items)
  }

  get started(): TagRange[] {
    return this.#ranges('STARTED')
  }

  get starting(): TagRange[] {
    return this.#ranges('STARTING')
  }

  #ranges(name: string): TagRange[] {
    return this.named(name).flatMap(({ payload }) => decodeRanges(name, payload, 0, payload.length).ranges)
  }
}

export class Peer {
  /** Chooses the claims of a SUBSCRIBE that are granted. Default: none. */
  grants: ((claims: readonly Claim[]) => Granted[]) | undefined
  readonly links: Link[] = []
  /** Automatic answers, by opcode. A test deletes the answers that it does not want. */
  readonly replies: Record<number, Reply | undefined> = {
    [OP.HELLO]: (_frame, link) => link.helloOk(),
    [OP.SUBSCRIBE]: (frame, link) => {
      const id = 100 + link.named('SUBSCRIBE').length
      const { claims } = decodeControl(frame.payload, 0, frame.payload.length)
      const asked = claims === undefined ? [] : decodeClaims(claims as Uint8Array)
      const granted = this.grants?.(asked) ?? []
      const payload = encodeSubscribed({ subscriptionId: id, queueNumber: 7, granted })
      link.send(OP.SUBSCRIBE_OK, frame.channel, frame.correlation, payload)
    },
    [OP.READ]: (frame, link) => {
      const readerId = 200 + link.named('READ').length
      const { from } = decodeControl(frame.payload, 0, frame.payload.length)
      const offset = typeof from === 'number' ? from : 0
      const payload = encodeReadOk({ readerId, queueNumber: 7, offset, end: 100, missed: 0 })
      link.send(OP.READ_OK, frame.channel, frame.correlation, payload)
    },
    [OP.SETTLE]: (frame, link) => {
      const { subscriptionId } = decodeSettle(frame.payload, 0, frame.payload.length)
      link.send(OP.SETTLE_OK, frame.channel, frame.correlation, encodeRanges(subscriptionId, []))
    },
    [OP.EXTEND]: (frame, link) => {
      const { subscriptionId } = decodeExtend(frame.payload, 0, frame.payload.length)
      link.send(OP.SETTLE_OK, frame.channel, frame.correlation, encodeRanges(subscriptionId, []))
    },
    [OP.CREDIT]: (frame, link) => {
      const drain = ((frame.payload[12] ?? 0) & 2) !== 0
      if (drain) link.send(OP.DRAINED, frame.channel, 0, encodeDrained(readU32(frame.payload, 0), 0))
    },
    [OP.UNSUBSCRIBE]: (frame, link) => {
      decodeSubscriptionId('UNSUBSCRIBE', frame.payload, 0, frame.payload.length)
      link.send(OP.RESULT, frame.channel, frame.correlation, encodeControl({}))
    },
  }
  /** Number of connection attempts that fail before one succeeds. */
  refusals = 0
  /** Number of checks of the invariants of the clients of this broker. */
  checks = 0
  #isChecking = false
  readonly #clients: Sluice[] = []
  readonly #waiters: (() => void)[] = []

  /** Waits until SUBSCRIBE number `number` on the newest link is answered. Returns the channel of that SUBSCRIBE. */
  async subscribed(number = 1): Promise<number> {
    await until(() => this.link.named('SUBSCRIBE').length >= number)
    await turns()
    return this.link.named('SUBSCRIBE').at(number - 1)!.channel
  }

  readonly dial: Dial = (_address, events) => {
    const link = new Link(this, events)
    if (this.refusals > 0) {
      this.refusals--
      setImmediate(() => link.cut(new Error('connect ECONNREFUSED')))
      return link.transport
    }
    this.links.push(link)
    setImmediate(() => link.open())
    for (const waiter of this.#waiters.splice(0)) waiter()
    return link.transport
  }

  get link(): Link {
    const link = this.links.at(-1)
    if (link === undefined) throw new Error('no client has connected')
    return link
  }

  async connect(options: ConnectOptions = {}): Promise<Sluice> {
    const sluice = await soon(connectThrough(this.dial, 'sluice://scripted:1', options))
    this.#clients.push(sluice)
    return sluice
  }

  create(options: ClientOptions = {}): Sluice {
    const sluice = clientThrough(this.dial, 'sluice://scripted:1', options)
    this.#clients.push(sluice)
    return sluice
  }

  /** Checks the invariants of the clients after this turn. Called whenever the broker sends and whenever a client writes. */
  check(): void {
    if (this.#isChecking) return
    this.#isChecking = true
    setImmediate(() => {
      this.#isChecking = false
      for (const sluice of this.#clients) checkInvariants(sluice)
      this.checks++
    })
  }

  /** Resolves when the client dials again. */
  dialled(): Promise<void> {
    return soon(new Promise((resolve) => this.#waiters.push(resolve)))
  }

  /** Confirms each batch at the next offset. */
  confirmAll(): void {
    let offset = 0
    this.replies[OP.PUBLISH] = (frame, link) => {
      const { number, count } = published(frame.payload)
      link.confirm([number, offset])
      offset += count
    }
  }
}

export function fault(code: ErrorCode, scope: ErrorScope): Uint8Array {
  const { retryable } = ERRORS[code]
  return encodeFault({ code, scope, retryable, retryAfterMs: 0, message: `told: ${code}` })
}

/** Returns `count` bodies: the numbers from `from` on, as strings. */
export function texts(count: number, from = 0): string[] {
  return Array.from({ length: count }, (_, i) => `${from + i}`)
}

/** A record with a text body. */
export function textRecord(
  body: string,
  options?: RecordOptions,
  contentType: ContentType = CONTENT_TYPE.text,
): Uint8Array {
  const payload = new TextEncoder().encode(body)
  const bytes = new Uint8Array(recordBytes(options, payload.length))
  bytes.set(payload, writeRecordHead(bytes, 0, options, contentType, payload.length))
  return bytes
}

export function published(payload: Uint8Array): Published {
  const at = publishBatchStart(payload, 0, payload.length)
  return publishedBatch(readText(payload, PUBLISH_NAME_AT, at), payload, at, payload.length)
}

function publishedBatch(queue: string, payload: Uint8Array, at: number, end: number): Published {
  checkBatch(payload, at, end)
  const { batchNumber, count, attributes } = readBatchHeader(payload, at)
  const bodies: string[] = []
  const options: RecordOptions[] = []
  let record = at + BATCH_HEADER_BYTES
  for (let i = 0; i < count; i++) {
    const end = record + recordSize(payload, record)
    bodies.push(readText(payload, recordPayloadAt(payload, record), end))
    options.push(readRecordOptions(payload, record))
    record = end
  }
  return { queue, number: batchNumber, count, attributes, bodies, options }
}

/** The body of a control frame. */
export function control(frame: Frame): { readonly [name: string]: unknown } {
  return decodeControl(frame.payload, 0, frame.payload.length)
}

/**
 * Lets the timers of a test file follow a clock that `until` and `soon` advance, so that a test does not wait for the
 * pauses of the client. Between these calls the clock follows the real time.
 */
export function advanceTime(): void {
  beforeEach(() => {
    vi.useFakeTimers({
      toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'performance'],
      shouldAdvanceTime: true,
    })
    // The clock of a process is never 0.
    vi.advanceTimersByTime(1)
  })
  afterEach(() => {
    vi.useRealTimers()
  })
}

/** Waits until `holds` returns true, for a few seconds at most. */
export async function until(holds: () => boolean, what = 'the condition'): Promise<void> {
  const giveUpMs = performance.now() + 5_000
  while (!holds()) {
    if (performance.now() > giveUpMs) throw new Error(`waited in vain for ${what}`)
    await turns()
    if (holds()) return
    if (vi.isFakeTimers()) vi.advanceTimersByTime(5)
    else await new Promise((resolve) => setTimeout(resolve, 1))
  }
}

/** Waits for the promise like `until`. */
export async function soon<T>(promise: Promise<T>): Promise<T> {
  let isSettled = false
  const settled = () => {
    isSettled = true
  }
  promise.then(settled, settled)
  return await Promise.race([promise, until(() => isSettled, 'a promise').then(() => promise)])
}

/** Waits for `count` turns of the event loop, so that everything that is due has happened. */
export async function turns(count = 5): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve))
}
