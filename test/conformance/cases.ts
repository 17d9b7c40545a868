/** What each golden vector means, in terms of our encoders and of what our decoders give. One case for each name. */
import {
  BATCH_HEADER_BYTES,
  CONTENT_TYPE,
  DELIVER_HEADER_BYTES,
  FRAME_HEADER_BYTES,
  OP,
  OUTCOME,
  PUBLISH_OK_ITEM_BYTES,
  encodeAuth,
  encodeControl,
  encodeCredit,
  encodeDrained,
  encodeFault,
  encodeGoodbye,
  encodeHello,
  encodeHelloOk,
  encodePreface,
  encodePublishErr,
  encodeRanges,
  encodeSettle,
  encodeSubscriptionId,
  recordBytes,
  sealBatch,
  stampBatch,
  writeDeliverHead,
  writeFrameHeader,
  writePublishOkItem,
  writeRecordHead,
  writeU32,
  writeU64,
  type Auth,
  type ContentType,
  type Credit,
  type Delivery,
  type Fault,
  type Hello,
  type HelloOk,
  type RecordOptions,
  type SettleItem,
  type TagRange,
} from '@sluice/protocol'
import { concat, fromHex } from './vectors.js'

export interface Case {
  readonly bytes: Uint8Array
  /** What the decoders give for it; of a frame, for its payload. */
  readonly value: unknown
}

const NEW_YEAR_MS = 1_767_225_600_000
const PRODUCER = fromHex('a0 a1 a2 a3 a4 a5 a6 a7 a8 a9 aa ab ac ad ae af')
const SUBSCRIPTION = 0x0007_0001
const NOTHING = new Uint8Array(0)

function text(value: string): Uint8Array {
  return new TextEncoder().encode(value)
}

function frame(opcode: number, channel: number, correlation: number, payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(FRAME_HEADER_BYTES + payload.length)
  bytes.set(payload, writeFrameHeader(bytes, 0, payload.length, opcode, channel, correlation))
  return bytes
}

function record(payload: Uint8Array, contentType: ContentType, options?: RecordOptions): Case {
  const bytes = new Uint8Array(recordBytes(options, payload.length))
  bytes.set(payload, writeRecordHead(bytes, 0, options, contentType, payload.length))
  const { headers, ...others } = options ?? {}
  const read =
    headers === undefined
      ? { priority: 0, ...others }
      : { priority: 0, ...others, headers: Object.assign(Object.create(null), headers) as object }
  return { bytes, value: { options: read, contentType, payload } }
}

interface BatchOf {
  readonly attributes?: number
  readonly batchNumber: number
  readonly stamp?: readonly [queueId: number, baseOffset: number, timeMs: number, producerId: number]
}

function batch(records: readonly Case[], { attributes = 0, batchNumber, stamp }: BatchOf): Case {
  const bytes = concat([new Uint8Array(BATCH_HEADER_BYTES), ...records.map((each) => each.bytes)])
  sealBatch(bytes, 0, bytes.length, { type: 1, attributes, count: records.length, batchNumber })
  if (stamp !== undefined) stampBatch(bytes, 0, ...stamp)
  const [queueId, baseOffset, timeMs, producerId] = stamp ?? [0, 0, 0, 0]
  const header = {
    length: bytes.length,
    type: 1,
    attributes,
    version: 1,
    queueId,
    count: records.length,
    baseOffset,
    batchNumber,
    timeMs,
    producerId,
    recordsCrc: CRC_OF_COUNT[records.length],
  }
  return { bytes, value: { header, records: records.map((each) => each.value) } }
}

// Of the one record `hello`, and of the two records; from python3's zlib.crc32.
const CRC_OF_COUNT: Readonly<Record<number, number>> = { 1: 0x411c_1531, 2: 0x36c2_46ab }

const hello = record(text('hello'), CONTENT_TYPE.text)
const two = [record(NOTHING, CONTENT_TYPE.bytes), record(text('hi'), CONTENT_TYPE.bytes, { priority: 5 })]
const one = batch([hello], { batchNumber: 1 })
const atomic = batch(two, { batchNumber: 2 ** 32 + 2, attributes: 1 })

function publish(queue: string, of: Case, unansweredBelow: number): Case {
  const name = text(queue)
  return {
    bytes: frame(OP.PUBLISH, 0, unansweredBelow, concat([Uint8Array.of(name.length), name, of.bytes])),
    value: { queue, batch: of.value },
  }
}

function helloCase(value: Hello): Case {
  return { bytes: frame(OP.HELLO, 0, 0, encodeHello(value)), value }
}

function auth(value: Auth): Case {
  return { bytes: frame(OP.AUTH, 0, 0, encodeAuth(value)), value }
}

function fault(opcode: number, channel: number, correlation: number, value: Fault): Case {
  return { bytes: frame(opcode, channel, correlation, encodeFault(value)), value }
}

function goodbye(reason: number, words: string): Case {
  return { bytes: frame(OP.GOODBYE, 0, 0, encodeGoodbye(reason, words)), value: { reason, text: words } }
}

function credit(value: Credit): Case {
  return { bytes: frame(OP.CREDIT, 1, 0, encodeCredit(value)), value }
}

function deliver(head: Delivery, records: readonly Case[]): Case {
  const bytes = new Uint8Array(DELIVER_HEADER_BYTES)
  const { subscriptionId, firstTag, firstOffset, publishedAtMs, count, attempt, flags } = head
  writeDeliverHead(bytes, 0, subscriptionId, firstTag, firstOffset, publishedAtMs, count, attempt, flags)
  return {
    bytes: frame(OP.DELIVER, 1, 0, concat([bytes, ...records.map((each) => each.bytes)])),
    value: { head, records: records.map((each) => each.value) },
  }
}

function ranges(opcode: number, correlation: number, named: readonly TagRange[]): Case {
  return {
    bytes: frame(opcode, 1, correlation, encodeRanges(SUBSCRIPTION, named)),
    value: { subscriptionId: SUBSCRIPTION, ranges: named },
  }
}

function settle(correlation: number, items: readonly SettleItem[]): Case {
  return {
    bytes: frame(OP.SETTLE, 1, correlation, encodeSettle(SUBSCRIPTION, items)),
    value: {
      subscriptionId: SUBSCRIPTION,
      items: items.map((item) => ({ delayMs: undefined, reason: undefined, ...item })),
    },
  }
}

function subscription(opcode: number, correlation: number): Case {
  return {
    bytes: frame(opcode, 1, correlation, encodeSubscriptionId(SUBSCRIPTION)),
    value: SUBSCRIPTION,
  }
}

function control(
  opcode: number,
  channel: number,
  correlation: number,
  body: { readonly [name: string]: unknown },
  value: unknown,
): Case {
  return { bytes: frame(opcode, channel, correlation, encodeControl(body)), value }
}

function bare(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value
  const entries = Object.entries(value).map(([name, item]) => [name, bare(item)] as const)
  return Object.assign(Object.create(null), Object.fromEntries(entries))
}

function publishOk(
  items: readonly {
    readonly batchNumber: number
    readonly baseOffset: number
    readonly duplicates: [number, number][]
  }[],
): Case {
  const parts = items.map(({ batchNumber, baseOffset, duplicates }) => {
    const bytes = new Uint8Array(PUBLISH_OK_ITEM_BYTES + duplicates.length * 12)
    let at = writePublishOkItem(bytes, 0, batchNumber, baseOffset)
    writeU32(bytes, 16, duplicates.length)
    for (const [index, offset] of duplicates) {
      writeU32(bytes, at, index)
      writeU64(bytes, at + 4, offset)
      at += 12
    }
    return bytes
  })
  return { bytes: frame(OP.PUBLISH_OK, 0, 0, concat(parts)), value: { items } }
}

const queueInfo = {
  name: 'orders',
  options: { maxDeliveries: 5, retryInitialMs: 1_000, retryMaxMs: 300_000 },
  ready: 0,
  scheduled: 0,
  leased: 0,
  dead: 0,
  bytes: 0,
  consumers: 0,
  oldestReadyMs: null,
  published: 0,
  acked: 0,
  redelivered: 0,
  purged: 0,
  createdAtMs: NEW_YEAR_MS,
}

const newHello: Hello = {
  versionMin: 1,
  versionMax: 1,
  features: 0,
  frameBytesMax: 4 * 1024 * 1024,
  heartbeatMs: 10_000,
  producer: PRODUCER,
  acceptedNumber: 0,
  inFlightBatches: 4096,
  name: 'checkout',
}
const helloOk: HelloOk = {
  version: 1,
  features: 0,
  frameBytesMax: 4 * 1024 * 1024,
  heartbeatMs: 10_000,
  messageBytesMax: 1024 * 1024,
  inFlightBatches: 4096,
  inFlightBytes: 16 * 1024 * 1024,
  boot: 7,
  durability: 1,
  serverVersion: '0.1.0',
}
const diskLow: Fault = {
  code: 'DISK_LOW',
  scope: 'request',
  retryable: true,
  retryAfterMs: 5000,
  message: 'disk low',
}

export const CASES: Readonly<Record<string, Case>> = {
  preface: { bytes: encodePreface(), value: undefined },
  HELLO: helloCase(newHello),
  'HELLO of a reconnect': helloCase({
    ...newHello,
    versionMax: 3,
    features: 0x8000_0001,
    frameBytesMax: 0x1_0000,
    heartbeatMs: 100,
    acceptedNumber: 2 ** 32 + 2,
    inFlightBatches: 1,
    name: '',
  }),
  AUTH: auth({ mechanism: 0, identity: '', secret: NOTHING }),
  'AUTH with a secret': auth({ mechanism: 1, identity: 'ann', secret: Uint8Array.of(1, 2, 255) }),
  HELLO_OK: { bytes: frame(OP.HELLO_OK, 0, 0, encodeHelloOk(helloOk)), value: helloOk },
  PING: { bytes: frame(OP.PING, 0, 3, NOTHING), value: undefined },
  PONG: { bytes: frame(OP.PONG, 0, 3, NOTHING), value: undefined },
  GOODBYE: goodbye(0, ''),
  'GOODBYE of a broker': goodbye(1, 'upgrade'),
  'ERROR of a request': fault(OP.ERROR, 0, 5, {
    code: 'QUEUE_NOT_FOUND',
    scope: 'request',
    retryable: false,
    retryAfterMs: 0,
    message: 'no état',
  }),
  'ERROR of a channel': fault(OP.ERROR, 1, 0, {
    code: 'QUEUE_DELETED',
    scope: 'channel',
    retryable: false,
    retryAfterMs: 0,
    message: 'gone',
  }),
  'ERROR of a connection': fault(OP.ERROR, 0, 0, {
    code: 'SHUTTING_DOWN',
    scope: 'connection',
    retryable: true,
    retryAfterMs: 1500,
    message: '',
  }),
  NOTICE: fault(OP.NOTICE, 65_535, 0, {
    code: 'LEASE_LOST',
    scope: 'request',
    retryable: false,
    retryAfterMs: 0,
    message: 'late',
  }),

  batch: one,
  'batch, atomic': atomic,
  'batch, stamped': batch([hello], { batchNumber: 1, stamp: [3, 2 ** 32, NEW_YEAR_MS, 2] }),

  record: record(NOTHING, CONTENT_TYPE.bytes),
  'record, bytes': record(Uint8Array.of(0, 255, 128), CONTENT_TYPE.bytes),
  'record, text': hello,
  'record, msgpack': record(Uint8Array.of(0x81, 0xa1, 0x6e, 7), CONTENT_TYPE.msgpack),
  'record, priority': record(text('x'), CONTENT_TYPE.bytes, { priority: 31 }),
  'record, delay': record(text('x'), CONTENT_TYPE.bytes, { delayMs: 600_000 }),
  'record, at': record(text('x'), CONTENT_TYPE.bytes, { atMs: NEW_YEAR_MS }),
  'record, ttl': record(text('x'), CONTENT_TYPE.bytes, { ttlMs: 3_155_760_000_000 }),
  'record, key': record(text('x'), CONTENT_TYPE.bytes, { key: 'k' }),
  'record, id': record(text('x'), CONTENT_TYPE.bytes, { id: '\u{1f407}' }),
  'record, headers': record(text('x'), CONTENT_TYPE.bytes, { headers: { ['__proto__']: '1', id: '' } }),
  'record, all options': record(text('hello'), CONTENT_TYPE.text, {
    priority: 5,
    delayMs: 1_000,
    ttlMs: 60_000,
    key: 'ann',
    id: '77',
    headers: { t: '1.23' },
  }),

  PUBLISH: publish('orders', one, 0),
  'PUBLISH, atomic': publish('q', atomic, 2),
  PUBLISH_OK: publishOk([{ batchNumber: 1, baseOffset: 0, duplicates: [] }]),
  'PUBLISH_OK of three': publishOk([
    { batchNumber: 2, baseOffset: 1, duplicates: [] },
    {
      batchNumber: 3,
      baseOffset: 2,
      duplicates: [
        [0, 0],
        [2, 1],
      ],
    },
    { batchNumber: 4, baseOffset: 2 ** 32, duplicates: [] },
  ]),
  PUBLISH_ERR: {
    bytes: frame(OP.PUBLISH_ERR, 0, 0, encodePublishErr(4, diskLow)),
    value: { batchNumber: 4, fault: diskLow },
  },

  SUBSCRIBE: control(
    OP.SUBSCRIBE,
    1,
    2,
    { queue: 'orders', messages: 10, bytes: 1_048_576 },
    { queue: 'orders', messages: 10, bytes: 1_048_576, limit: undefined },
  ),
  'SUBSCRIBE with a limit': control(
    OP.SUBSCRIBE,
    65_535,
    6,
    { queue: 'q', messages: 1, bytes: 0, limit: 1 },
    { queue: 'q', messages: 1, bytes: 0, limit: 1 },
  ),
  SUBSCRIBE_OK: subscription(OP.SUBSCRIBE_OK, 2),
  CREDIT: credit({
    subscriptionId: SUBSCRIPTION,
    messages: 20,
    bytes: 0xffff_ffff,
    limit: undefined,
    drain: false,
  }),
  'CREDIT with a limit': credit({
    subscriptionId: SUBSCRIPTION,
    messages: 65_535,
    bytes: 1024,
    limit: 2 ** 32 + 1,
    drain: false,
  }),
  'CREDIT, drain': credit({
    subscriptionId: SUBSCRIPTION,
    messages: 3,
    bytes: 1024,
    limit: 3,
    drain: true,
  }),
  DELIVER: deliver(
    {
      subscriptionId: SUBSCRIPTION,
      firstTag: 0,
      firstOffset: 0,
      publishedAtMs: NEW_YEAR_MS,
      count: 1,
      attempt: 1,
      flags: 0,
    },
    [hello],
  ),
  'DELIVER, redelivered': deliver(
    {
      subscriptionId: SUBSCRIPTION,
      firstTag: 0xffff_ffff,
      firstOffset: 2 ** 33 - 2,
      publishedAtMs: NEW_YEAR_MS,
      count: 2,
      attempt: 3,
      flags: 3,
    },
    two,
  ),
  STARTED: ranges(OP.STARTED, 0, [{ firstTag: 0, count: 1 }]),
  'STARTED, two ranges': ranges(OP.STARTED, 0, [
    { firstTag: 0xffff_ffff, count: 3 },
    { firstTag: 7, count: 1 },
  ]),
  SETTLE: settle(3, [{ firstTag: 0, count: 1, outcome: OUTCOME.ack }]),
  'SETTLE, all outcomes': settle(6, [
    { firstTag: 1, count: 2, outcome: OUTCOME.ack },
    { firstTag: 3, count: 1, outcome: OUTCOME.retry, delayMs: 1_000, reason: 'busy' },
    { firstTag: 4, count: 1, outcome: OUTCOME.retry },
    { firstTag: 5, count: 4, outcome: OUTCOME.release },
    { firstTag: 9, count: 1, outcome: OUTCOME.deadLetter, reason: 'no one' },
  ]),
  SETTLE_OK: ranges(OP.SETTLE_OK, 3, []),
  'SETTLE_OK with a stale range': ranges(OP.SETTLE_OK, 6, [{ firstTag: 5, count: 4 }]),
  UNSUBSCRIBE: subscription(OP.UNSUBSCRIBE, 7),
  DRAINED: {
    bytes: frame(OP.DRAINED, 1, 0, encodeDrained(SUBSCRIPTION, 2 ** 32 + 3)),
    value: { subscriptionId: SUBSCRIPTION, delivered: 2 ** 32 + 3 },
  },

  ENSURE: control(
    OP.ENSURE,
    0,
    1,
    { name: 'orders', options: { maxDeliveries: 5 } },
    { name: 'orders', options: { maxDeliveries: 5 }, update: false },
  ),
  'ENSURE with update': control(
    OP.ENSURE,
    0,
    8,
    { name: 'q', options: { retryMaxMs: 60_000 }, update: true },
    { name: 'q', options: { retryMaxMs: 60_000 }, update: true },
  ),
  GET: control(OP.GET, 0, 9, { name: 'q' }, 'q'),
  LIST: control(OP.LIST, 0, 10, {}, bare({})),
  'LIST, further': control(OP.LIST, 0, 10, { after: 'b' }, bare({ after: 'b' })),
  DELETE: control(OP.DELETE, 0, 11, { name: 'q' }, 'q'),
  PURGE: control(OP.PURGE, 0, 12, { name: 'q' }, 'q'),
  'RESULT of ENSURE': control(
    OP.RESULT,
    0,
    1,
    { created: true, queue: queueInfo },
    bare({ created: true, queue: queueInfo }),
  ),
  'RESULT of LIST': control(OP.RESULT, 0, 10, { queues: [], more: false }, bare({ queues: [], more: false })),
  'RESULT of PURGE': control(OP.RESULT, 0, 12, { messages: 70_000 }, bare({ messages: 70_000 })),
  'RESULT of UNSUBSCRIBE': control(OP.RESULT, 0, 7, {}, bare({})),
}
