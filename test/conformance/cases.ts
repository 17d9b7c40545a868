/** For each golden vector, by its name: the bytes that our encoders write and the value that our decoders read. */
import {
  BATCH_HEADER_BYTES,
  CONTENT_TYPE,
  DELIVER_HEADER_BYTES,
  LOSS,
  type GroupInfo,
  type StreamInfo,
  OP,
  REPLY_FATE,
  REPLY_KIND,
  OUTCOME,
  SCATTERED_BYTES,
  encodeAtomic,
  encodeAtomicOk,
  encodeAuth,
  encodeClaims,
  encodeControl,
  encodeCredit,
  encodeDrained,
  encodeExtend,
  encodeFault,
  encodeGoodbye,
  encodeHello,
  encodeHelloOk,
  encodeLeasesLost,
  encodeMailbox,
  encodeMessages,
  encodePreface,
  encodePublishErr,
  encodeRanges,
  encodeReadAt,
  encodeReadOk,
  encodeReplied,
  encodeReply,
  failureRecord,
  encodeSettle,
  encodeSubscribed,
  encodeSubscriptionId,
  publishOkItemBytes,
  recordBytes,
  sealBatch,
  stampBatch,
  writeDeliverHead,
  writeU64,
  writePublishOkItem,
  writeRecordHead,
  type AtomicAck,
  type Auth,
  type ConsumerInfo,
  type ContentType,
  type Credit,
  type DeliverHead,
  type Extend,
  type Fault,
  type Granted,
  type Hello,
  type HelloOk,
  type HistoryEvent,
  type PeekPage,
  type Placed,
  type QueueInfo,
  type RecordOptions,
  type ScheduleInfo,
  type ReadOpened,
  type ReadPosition,
  type SettleItem,
  type TagRange,
} from '@sluice/protocol'
import { concat, fromHex } from './vectors.js'
import { frame } from '../rig/frames.js'

export interface Case {
  readonly bytes: Uint8Array
  /** The result of the decoders; for a frame this is the value of its payload. */
  readonly value: unknown
}

const NEW_YEAR_MS = 1_767_225_600_000
const TWO_32 = 2 ** 32
const PRODUCER = fromHex('a0 a1 a2 a3 a4 a5 a6 a7 a8 a9 aa ab ac ad ae af')
const SUBSCRIPTION = 0x0007_0001
const opened: ReadOpened = {
  readerId: SUBSCRIPTION,
  queueNumber: 9,
  offset: 2048,
  end: 2 ** 33,
  missed: 1024,
}
const ended: ReadPosition = { readerId: SUBSCRIPTION, isEnd: true, offset: 2 ** 33, missed: 3 }
const NOTHING = new Uint8Array(0)

function text(value: string): Uint8Array {
  return new TextEncoder().encode(value)
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
  readonly follows?: number
  readonly stamp?: readonly [queueId: number, baseOffset: number, timeMs: number, producerId: number]
}

function batch(records: readonly Case[], { attributes = 0, batchNumber, follows = 0, stamp }: BatchOf): Case {
  const bytes = concat([new Uint8Array(BATCH_HEADER_BYTES), ...records.map((each) => each.bytes)])
  sealBatch(bytes, 0, bytes.length, { type: 1, attributes, count: records.length, batchNumber, follows })
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
  return { bytes, value: { header, follows, records: records.map((each) => each.value) } }
}

// Checksum of a batch's records, by the number of records: one record is `hello`, and two records are `two`. The
// checksums were computed with zlib.crc32 of Python.
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

/** An atomic step with one batch for each queue. `crc` was computed with Python's `zlib.crc32`. */
function atomicStep(
  number: number,
  correlation: number,
  crc: number,
  acks: readonly AtomicAck[],
  queues: readonly (readonly [string, Case])[],
): Case {
  const batches = queues.map(([queue, { bytes }]) => ({ queue, bytes, at: 0, end: bytes.length }))
  return {
    bytes: frame(OP.ATOMIC, 0, correlation, encodeAtomic(number, acks, batches)),
    value: { number, crc, acks, batches: queues.map(([queue, { value }]) => ({ queue, batch: value })) },
  }
}

function atomicOk(number: number, places: readonly Placed[]): Case {
  return { bytes: frame(OP.ATOMIC_OK, 0, 0, encodeAtomicOk(number, places)), value: { number, places } }
}

function extend(correlation: number, value: Extend): Case {
  return { bytes: frame(OP.EXTEND, 1, correlation, encodeExtend(value)), value }
}

function messages(correlation: number, value: PeekPage): Case {
  return { bytes: frame(OP.MESSAGES, 0, correlation, encodeMessages(value)), value }
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

function deliver(head: DeliverHead, records: readonly Case[]): Case {
  const bytes = new Uint8Array(DELIVER_HEADER_BYTES)
  writeDeliverHead(bytes, 0, head)
  return {
    bytes: frame(OP.DELIVER, 1, 0, concat([bytes, ...records.map((each) => each.bytes)])),
    value: { head, records: records.map((each) => each.value) },
  }
}

/** A DELIVER of messages that are not consecutive; `head` is the head of the first one. */
function scattered(head: DeliverHead, records: readonly (readonly [number, number, Case])[]): Case {
  const parts = records.map(([offset, publishedAtMs, { bytes }]) => {
    const part = new Uint8Array(SCATTERED_BYTES + bytes.length)
    writeU64(part, 0, offset)
    writeU64(part, 8, publishedAtMs)
    part.set(bytes, SCATTERED_BYTES)
    return { bytes: part, value: undefined }
  })
  return {
    bytes: deliver(head, parts).bytes,
    value: {
      head,
      records: records.map(([offset, publishedAtMs, { value }]) => ({
        offset,
        publishedAtMs,
        record: value,
      })),
    },
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

function subscribed(correlation: number, granted: readonly Granted[]): Case {
  const value = { subscriptionId: SUBSCRIPTION, queueNumber: 9, granted }
  return { bytes: frame(OP.SUBSCRIBE_OK, 1, correlation, encodeSubscribed(value)), value }
}

const streamInfo: StreamInfo = {
  name: 'clicks',
  options: {
    retainAgeMs: 604800000,
    retainBytes: 0,
    retainMessages: 0,
    waitForGroupsBytes: 1000000,
    compact: 'key',
    tombstoneAgeMs: 86400000,
    dedupWindowMs: 600000,
    dedupMaxIds: 1000000,
  },
  messages: 3,
  bytes: 300,
  first: 0,
  next: 3,
  published: 3,
  duplicates: 0,
  heldBy: 'clicks@a',
  heldBytes: 300,
  compacted: 2,
  readers: 1,
  createdAtMs: NEW_YEAR_MS,
}

const groupInfo: GroupInfo = {
  name: 'clicks@a',
  stream: 'clicks',
  options: {
    maxDeliveries: 5,
    retryInitialMs: 1000,
    retryMaxMs: 300000,
    processingTimeoutMs: 1800000,
    keyConcurrency: 1,
    onFail: 'block',
    deadLetter: '',
    single: false,
    rateMessages: 0,
    ratePerMs: 1000,
    keyRateMessages: 0,
    keyRatePerMs: 1000,
  },
  paused: false,
  position: 1,
  lag: 2,
  lagMs: 500,
  missed: 0,
  acked: 1,
  discarded: 0,
  scheduled: 0,
  leased: 1,
  dead: 0,
  consumers: 1,
  createdAtMs: NEW_YEAR_MS,
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
  if (Array.isArray(value)) return value.map(bare)
  if (typeof value !== 'object' || value === null) return value
  const entries = Object.entries(value).map(([name, item]) => [name, bare(item)] as const)
  return Object.assign(Object.create(null), Object.fromEntries(entries))
}

function result(correlation: number, body: { readonly [name: string]: unknown }): Case {
  return control(OP.RESULT, 0, correlation, body, bare(body))
}

function publishOk(
  items: readonly {
    readonly batchNumber: number
    readonly baseOffset: number
    readonly duplicates: [number, number][]
  }[],
): Case {
  const parts = items.map(({ batchNumber, baseOffset, duplicates }) => {
    const map = new Map(duplicates)
    const bytes = new Uint8Array(publishOkItemBytes(map))
    writePublishOkItem(bytes, 0, batchNumber, baseOffset, map)
    return bytes
  })
  return { bytes: frame(OP.PUBLISH_OK, 0, 0, concat(parts)), value: { items } }
}

/** The fields are in the order of PROTOCOL.md. */
export const queueInfo: QueueInfo = {
  name: 'orders',
  options: {
    maxDeliveries: 5,
    retryInitialMs: 1_000,
    retryMaxMs: 300_000,
    processingTimeoutMs: 1_800_000,
    ttlMs: 0,
    keyConcurrency: 1,
    onFail: 'block',
    unique: 'window',
    dedupWindowMs: 600_000,
    dedupMaxIds: 1_000_000,
    maxMessages: 0,
    maxBytes: 0,
    overflow: 'reject',
    deadLetter: '',
    single: false,
    retainAgeMs: 0,
    retainBytes: 0,
    expiresMs: 0,
    rateMessages: 0,
    ratePerMs: 1_000,
    keyRateMessages: 0,
    keyRatePerMs: 1_000,
  },
  paused: false,
  ready: 0,
  scheduled: 0,
  leased: 0,
  dead: 0,
  bytes: 0,
  consumers: 0,
  oldestReadyMs: null,
  published: 0,
  acked: 0,
  retainedBytes: 0,
  rateUntilMs: null,
  heldKeys: 0,
  createdAtMs: NEW_YEAR_MS,
  purged: 0,
  expired: 0,
  dropped: 0,
  cancelled: 0,
  duplicates: 0,
  moved: 0,
  discarded: 0,
  redriven: 0,
  released: 0,
  redelivered: 0,
}

export const consumer: ConsumerInfo = {
  id: SUBSCRIPTION,
  client: 'checkout',
  peer: '127.0.0.1:50000',
  active: true,
  sinceMs: NEW_YEAR_MS,
  creditMessages: 10,
  creditBytes: 1_048_576,
  leased: 2,
  leasedBytes: 26,
  started: 1,
  oldestLeaseMs: NEW_YEAR_MS + 7,
  delivered: 12,
}

/** A record with the text "hi". */
/** The record of the text `no`. */
const noRecord = new Uint8Array([10, 0, 0, 0, 0, 0x20, 0, 0, 0x6e, 0x6f])
const mailbox = '000102030405060708090a0b0c0d0e0f'
const hiRecord = new Uint8Array([10, 0, 0, 0, 0, 0x20, 0, 0, 0x68, 0x69])

const scheduleInfo: ScheduleInfo = {
  name: 'nightly',
  cron: '0 3 * * *',
  timeZone: 'Europe/Berlin',
  to: 'q',
  missed: 'once',
  paused: false,
  createdAtMs: NEW_YEAR_MS,
  fired: 2,
  lastTickMs: NEW_YEAR_MS + 7_200_000,
  nextTicksMs: [NEW_YEAR_MS + 93_600_000],
  error: { code: 22, message: 'Full.', sinceMs: NEW_YEAR_MS, tries: 3 },
}

const history: readonly HistoryEvent[] = [
  { event: 'published', atMs: NEW_YEAR_MS, text: 'checkout' },
  { event: 'retried', atMs: NEW_YEAR_MS + 5, attempts: 1, dueMs: NEW_YEAR_MS + 1_005, text: 'busy' },
  { event: 'acked', atMs: NEW_YEAR_MS + 1_010 },
]

const twoClaims = [
  {
    ...{ offset: TWO_32 + 1, queueNumber: 9, boot: 3, subscriptionId: SUBSCRIPTION },
    ...{ tag: 0xffff_fffe, attempt: 1, bytes: 300 },
  },
  {
    ...{ offset: 5, queueNumber: 9, boot: 3, subscriptionId: SUBSCRIPTION },
    ...{ tag: 7, attempt: 2, bytes: 12 },
  },
]

const lostLeases = {
  subscriptionId: SUBSCRIPTION,
  reason: LOSS.processingTimeout,
  ranges: [
    { firstTag: 0xffff_ffff, count: 3, firstOffset: TWO_32 + 4 },
    { firstTag: 7, count: 1, firstOffset: 3 },
  ],
}

const everyFilter = {
  reason: 'rejected',
  error: 'no',
  key: 'k',
  id: '77',
  headers: JSON.parse('{"__proto__":"1","t":""}') as Readonly<Record<string, string>>,
  minAttempts: 2,
  olderThanMs: 60_000,
  youngerThanMs: TWO_32,
}
const ofEveryKind = {
  ttlMs: 3_155_760_000_000,
  maxBytes: 1_048_576,
  overflow: 'drop-oldest',
  deadLetter: 'dead',
  single: true,
}
const noFilterFields = {
  reason: undefined,
  error: undefined,
  key: undefined,
  id: undefined,
  headers: undefined,
  minAttempts: undefined,
  olderThanMs: undefined,
  youngerThanMs: undefined,
}
const peeked = {
  death: undefined,
  attempts: 0,
  totalAttempts: 0,
  redrives: 0,
  publishedAtMs: NEW_YEAR_MS,
  timeMs: NEW_YEAR_MS,
  expiresAtMs: 0,
  reason: '',
  holder: '',
} as const

const newHello: Hello = {
  versionMin: 1,
  versionMax: 1,
  features: 0,
  frameBytesMax: 4 * 1024 * 1024,
  heartbeatMs: 10_000,
  producer: PRODUCER,
  acceptedNumber: 0,
  inFlightBatchesMax: 4096,
  name: 'checkout',
}
const helloOk: HelloOk = {
  version: 1,
  features: 0,
  frameBytesMax: 4 * 1024 * 1024,
  heartbeatMs: 10_000,
  messageBytesMax: 1024 * 1024,
  inFlightBatchesMax: 4096,
  inFlightBytesMax: 16 * 1024 * 1024,
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
const earlierRefused: Fault = {
  code: 'EARLIER_REFUSED',
  scope: 'request',
  retryable: true,
  retryAfterMs: 0,
  message: 'wait',
}
const leaseLost: Fault = {
  code: 'LEASE_LOST',
  scope: 'request',
  retryable: false,
  retryAfterMs: 0,
  message: 'gone',
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
    inFlightBatchesMax: 1,
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
  'ERROR of a closed consumer': fault(OP.ERROR, 2, 0, {
    code: 'CONSUMER_CLOSED',
    scope: 'channel',
    retryable: false,
    retryAfterMs: 0,
    message: 'closed',
  }),
  'ERROR of a connection': fault(OP.ERROR, 0, 0, {
    code: 'SHUTTING_DOWN',
    scope: 'connection',
    retryable: true,
    retryAfterMs: 1500,
    message: '',
  }),

  batch: one,
  'batch, atomic': atomic,
  'batch, following': batch([hello], { batchNumber: 2 ** 32 + 2, follows: 258 }),
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
  'record, replaces': record(text('x'), CONTENT_TYPE.bytes, { id: '77', replaces: true }),
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
  'PUBLISH, following': publish('orders', batch([hello], { batchNumber: 5, follows: 2 }), 2),
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
  'PUBLISH_OK with a replaced message': publishOk([
    {
      batchNumber: 5,
      baseOffset: 8,
      duplicates: [
        [0, 3],
        [1, 9],
      ],
    },
  ]),
  PUBLISH_ERR: {
    bytes: frame(OP.PUBLISH_ERR, 0, 0, encodePublishErr(4, diskLow)),
    value: { batchNumber: 4, fault: diskLow },
  },
  'PUBLISH_ERR of a batch that follows': {
    bytes: frame(OP.PUBLISH_ERR, 0, 0, encodePublishErr(5, earlierRefused)),
    value: { batchNumber: 5, fault: earlierRefused },
  },
  ATOMIC: atomicStep(
    2,
    0,
    0x26a8_2bf2,
    [{ channel: 1, subscriptionId: SUBSCRIPTION, firstTag: 0, count: 1 }],
    [['log', batch([hello], { batchNumber: 2 })]],
  ),
  'ATOMIC, two queues': atomicStep(
    TWO_32 + 2,
    2,
    0x274e_1970,
    [
      { channel: 1, subscriptionId: SUBSCRIPTION, firstTag: 0xffff_ffff, count: 3 },
      { channel: 65_535, subscriptionId: SUBSCRIPTION + 1, firstTag: 7, count: 1 },
    ],
    [
      ['q', atomic],
      ['log', batch([hello], { batchNumber: TWO_32 + 2 })],
    ],
  ),
  'ATOMIC, acknowledgements alone': atomicStep(
    3,
    1,
    0x46d7_96e0,
    [{ channel: 1, subscriptionId: SUBSCRIPTION, firstTag: 1, count: 5 }],
    [],
  ),
  ATOMIC_OK: atomicOk(2, [{ baseOffset: 0, duplicates: undefined }]),
  'ATOMIC_OK with duplicates': atomicOk(TWO_32 + 2, [
    { baseOffset: TWO_32, duplicates: new Map([[1, 9]]) },
    { baseOffset: 5, duplicates: undefined },
  ]),
  'ATOMIC_OK without batches': atomicOk(3, []),
  'PUBLISH_ERR of an atomic step': {
    bytes: frame(OP.PUBLISH_ERR, 0, 0, encodePublishErr(3, leaseLost)),
    value: { batchNumber: 3, fault: leaseLost },
  },

  SUBSCRIBE: control(
    OP.SUBSCRIBE,
    1,
    2,
    { queue: 'orders', messages: 10, bytes: 1_048_576 },
    {
      queue: 'orders',
      messages: 10,
      bytes: 1_048_576,
      limit: undefined,
      processingTimeoutMs: undefined,
      claims: [],
    },
  ),
  'SUBSCRIBE with a limit': control(
    OP.SUBSCRIBE,
    65_535,
    6,
    { queue: 'q', messages: 1, bytes: 0, limit: 1 },
    { queue: 'q', messages: 1, bytes: 0, limit: 1, processingTimeoutMs: undefined, claims: [] },
  ),
  'SUBSCRIBE with a time for handling': control(
    OP.SUBSCRIBE,
    1,
    13,
    { queue: 'q', messages: 1, bytes: 0, processingTimeoutMs: 60_000 },
    { queue: 'q', messages: 1, bytes: 0, limit: undefined, processingTimeoutMs: 60_000, claims: [] },
  ),
  'SUBSCRIBE with claims': control(
    OP.SUBSCRIBE,
    1,
    2,
    { queue: 'q', messages: 2, bytes: 0, claims: encodeClaims(twoClaims) },
    {
      ...{ queue: 'q', messages: 2, bytes: 0, limit: undefined, processingTimeoutMs: undefined },
      claims: twoClaims,
    },
  ),
  SUBSCRIBE_OK: subscribed(2, []),
  'SUBSCRIBE_OK with a grant': subscribed(2, [{ index: 1, tag: 0xffff_ffff, attempt: 3 }]),
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
  'DELIVER, scattered': scattered(
    {
      subscriptionId: SUBSCRIPTION,
      firstTag: 0xffff_ffff,
      firstOffset: 2 ** 33 + 6,
      publishedAtMs: NEW_YEAR_MS + 2,
      count: 2,
      attempt: 3,
      flags: 5,
    },
    [
      [2 ** 33 + 6, NEW_YEAR_MS + 2, two[0]!],
      [3, NEW_YEAR_MS, two[1]!],
    ],
  ),
  STARTED: ranges(OP.STARTED, 0, [{ firstTag: 0, count: 1 }]),
  'STARTED, two ranges': ranges(OP.STARTED, 0, [
    { firstTag: 0xffff_ffff, count: 3 },
    { firstTag: 7, count: 1 },
  ]),
  STARTING: ranges(OP.STARTING, 0, [{ firstTag: 1, count: 256 }]),
  SETTLE: settle(3, [{ firstTag: 0, count: 1, outcome: OUTCOME.ack }]),
  'SETTLE, all outcomes': settle(6, [
    { firstTag: 1, count: 2, outcome: OUTCOME.ack },
    { firstTag: 3, count: 1, outcome: OUTCOME.retry, delayMs: 1_000, reason: 'busy' },
    { firstTag: 4, count: 1, outcome: OUTCOME.retry },
    { firstTag: 5, count: 4, outcome: OUTCOME.release },
    { firstTag: 9, count: 1, outcome: OUTCOME.deadLetter, reason: 'no one' },
  ]),
  'SETTLE, invalid': settle(14, [
    { firstTag: 10, count: 1, outcome: OUTCOME.deadLetter, reason: 'no name', invalid: true },
  ]),
  'SETTLE, pausing the key': settle(17, [
    { firstTag: 11, count: 1, outcome: OUTCOME.retry, delayMs: 60_000, pauseKey: true },
  ]),
  SETTLE_OK: ranges(OP.SETTLE_OK, 3, []),
  'SETTLE_OK with a stale range': ranges(OP.SETTLE_OK, 6, [{ firstTag: 5, count: 4 }]),
  EXTEND: extend(15, {
    subscriptionId: SUBSCRIPTION,
    firstTag: 0xffff_ffff,
    count: 2,
    durationMs: 600_000,
  }),
  'EXTEND, as long as usual': extend(16, {
    subscriptionId: SUBSCRIPTION,
    firstTag: 7,
    count: 1,
    durationMs: 0,
  }),
  LEASES_LOST: {
    bytes: frame(OP.LEASES_LOST, 1, 0, encodeLeasesLost(lostLeases)),
    value: lostLeases,
  },
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
  'ENSURE with options of every kind': control(
    OP.ENSURE,
    0,
    17,
    { name: 'q', options: ofEveryKind },
    { name: 'q', options: ofEveryKind, update: false },
  ),
  GET: control(OP.GET, 0, 9, { name: 'q' }, { name: 'q', kind: 'queue' }),
  LIST: control(OP.LIST, 0, 10, {}, { after: '', kind: 'queue', stream: undefined }),
  'LIST, further': control(OP.LIST, 0, 10, { after: 'b' }, { after: 'b', kind: 'queue', stream: undefined }),
  DELETE: control(OP.DELETE, 0, 11, { name: 'q' }, { name: 'q', kind: 'queue' }),
  PURGE: control(OP.PURGE, 0, 12, { name: 'q' }, 'q'),
  PAUSE: control(OP.PAUSE, 0, 18, { name: 'q' }, 'q'),
  RESUME: control(OP.RESUME, 0, 19, { name: 'q' }, 'q'),
  PEEK: control(
    OP.PEEK,
    0,
    20,
    { name: 'q' },
    { name: 'q', state: undefined, from: 0, limit: 1_000, filter: {} },
  ),
  'PEEK with a filter': control(
    OP.PEEK,
    0,
    21,
    { name: 'q', state: 'dead', from: TWO_32, limit: 2, filter: everyFilter },
    {
      name: 'q',
      state: 'dead',
      from: TWO_32,
      limit: 2,
      filter: { ...everyFilter, headers: bare(everyFilter.headers) },
    },
  ),
  MESSAGES: messages(20, { messages: [], next: undefined }),
  'MESSAGES in every state': messages(21, {
    messages: [
      { ...peeked, state: 'ready', offset: 1, record: hello.bytes },
      {
        ...peeked,
        state: 'scheduled',
        attempts: 1,
        totalAttempts: 1,
        offset: 2,
        timeMs: NEW_YEAR_MS + 60_000,
        expiresAtMs: NEW_YEAR_MS + 120_000,
        reason: 'busy',
        record: two[1]!.bytes,
      },
      {
        ...peeked,
        state: 'leased',
        attempts: 2,
        totalAttempts: 2,
        offset: 3,
        timeMs: NEW_YEAR_MS + 5,
        holder: 'w1',
        record: two[0]!.bytes,
      },
      {
        ...peeked,
        state: 'dead',
        death: 'maxDeliveries',
        attempts: 255,
        totalAttempts: 258,
        redrives: 2,
        offset: TWO_32 + 4,
        timeMs: NEW_YEAR_MS + 9,
        reason: 'état',
        record: record(text('x'), CONTENT_TYPE.bytes, { key: 'k' }).bytes,
      },
    ],
    next: TWO_32 + 5,
  }),
  REDRIVE: control(
    OP.REDRIVE,
    0,
    22,
    { name: 'q' },
    {
      name: 'q',
      from: 0,
      limit: 1_000,
      offsets: undefined,
      filter: {},
      dryRun: false,
      to: undefined,
      force: false,
    },
  ),
  'REDRIVE of some': control(
    OP.REDRIVE,
    0,
    23,
    { name: 'q', offsets: [5, 70_000, TWO_32], to: 'other', dryRun: true, force: true },
    {
      name: 'q',
      from: 0,
      limit: 1_000,
      offsets: [5, 70_000, TWO_32],
      filter: {},
      dryRun: true,
      to: 'other',
      force: true,
    },
  ),
  DISCARD: control(
    OP.DISCARD,
    0,
    24,
    { name: 'q', from: 9, limit: 10, filter: { reason: 'rejected' } },
    {
      name: 'q',
      from: 9,
      limit: 10,
      offsets: undefined,
      filter: { ...noFilterFields, reason: 'rejected' },
      dryRun: false,
    },
  ),
  CANCEL: control(
    OP.CANCEL,
    0,
    25,
    { name: 'q', offset: TWO_32 + 1 },
    { name: 'q', offset: TWO_32 + 1, id: undefined },
  ),
  'CANCEL by id': control(
    OP.CANCEL,
    0,
    26,
    { name: 'q', id: '77' },
    { name: 'q', offset: undefined, id: '77' },
  ),
  RESCHEDULE: control(
    OP.RESCHEDULE,
    0,
    27,
    { name: 'q', offset: 1, delayMs: 600_000 },
    { name: 'q', offset: 1, id: undefined, delayMs: 600_000, atMs: undefined },
  ),
  'RESCHEDULE to a time': control(
    OP.RESCHEDULE,
    0,
    28,
    { name: 'q', id: '77', atMs: NEW_YEAR_MS },
    { name: 'q', offset: undefined, id: '77', delayMs: undefined, atMs: NEW_YEAR_MS },
  ),
  REPLAY: control(
    OP.REPLAY,
    0,
    29,
    { name: 'q', fromOffset: 0 },
    {
      name: 'q',
      fromOffset: 0,
      fromMs: undefined,
      untilMs: undefined,
      limit: 1_000,
      cursor: undefined,
      filter: {},
      to: undefined,
      dryRun: false,
    },
  ),
  'REPLAY of a span': control(
    OP.REPLAY,
    0,
    30,
    {
      name: 'q',
      fromMs: NEW_YEAR_MS,
      untilMs: NEW_YEAR_MS + 3_600_000,
      limit: 100,
      cursor: '300:0',
      filter: { key: 'k' },
      to: 'other',
      dryRun: false,
    },
    {
      name: 'q',
      fromOffset: undefined,
      fromMs: NEW_YEAR_MS,
      untilMs: NEW_YEAR_MS + 3_600_000,
      limit: 100,
      cursor: '300:0',
      filter: { ...noFilterFields, key: 'k' },
      to: 'other',
      dryRun: false,
    },
  ),
  HISTORY: control(OP.HISTORY, 0, 31, { name: 'q', offset: 4 }, { name: 'q', offset: 4, cursor: undefined }),
  'HISTORY, further': control(
    OP.HISTORY,
    0,
    31,
    { name: 'q', offset: 4, cursor: '4294967296:1' },
    { name: 'q', offset: 4, cursor: '4294967296:1' },
  ),
  EXPLAIN: control(OP.EXPLAIN, 0, 38, { name: 'q', offset: 4 }, { name: 'q', offset: 4 }),
  'EXPLAIN of a queue': control(OP.EXPLAIN, 0, 39, { name: 'q' }, { name: 'q', offset: undefined }),
  CONSUMERS: control(OP.CONSUMERS, 0, 32, { name: 'q' }, { name: 'q', from: 0 }),
  'CONSUMERS, further': control(
    OP.CONSUMERS,
    0,
    32,
    { name: 'q', from: SUBSCRIPTION + 1 },
    { name: 'q', from: SUBSCRIPTION + 1 },
  ),
  CLOSE_CONSUMER: control(
    OP.CLOSE_CONSUMER,
    0,
    33,
    { name: 'q', id: SUBSCRIPTION },
    { name: 'q', id: SUBSCRIPTION },
  ),
  READ: control(
    OP.READ,
    1,
    33,
    { name: 'clicks', from: 1024, messages: 100, bytes: 65_536 },
    {
      ...{ name: 'clicks', from: 1024, fromMs: undefined, until: undefined, follow: false },
      ...{ filter: undefined, messages: 100, bytes: 65_536 },
    },
  ),
  'READ with a filter': control(
    OP.READ,
    1,
    34,
    { name: 'q', fromMs: 1, until: 2, follow: true, filter: { key: 'k' }, messages: 1, bytes: 1 },
    {
      ...{ name: 'q', from: 'first', fromMs: 1, until: 2, follow: true },
      ...{ filter: { key: 'k', headers: undefined }, messages: 1, bytes: 1 },
    },
  ),
  READ_OK: { bytes: frame(OP.READ_OK, 1, 33, encodeReadOk(opened)), value: opened },
  READ_AT: { bytes: frame(OP.READ_AT, 1, 0, encodeReadAt(ended)), value: ended },
  MAILBOX: { bytes: frame(OP.MAILBOX, 0, 0, encodeMailbox(mailbox)), value: mailbox },
  REPLY: {
    bytes: frame(OP.REPLY, 0, 41, encodeReply({ mailbox, request: 7 }, REPLY_KIND.answer, hiRecord)),
    value: { mailbox, answer: { request: 7, kind: REPLY_KIND.answer, record: hiRecord } },
  },
  'REPLY, a failure': {
    bytes: frame(
      OP.REPLY,
      0,
      42,
      encodeReply({ mailbox, request: 8 }, REPLY_KIND.failure, failureRecord('no')),
    ),
    value: { mailbox, answer: { request: 8, kind: REPLY_KIND.failure, record: noRecord } },
  },
  REPLIED: { bytes: frame(OP.REPLIED, 0, 41, encodeReplied(REPLY_FATE.kept)), value: REPLY_FATE.kept },
  ANSWER: {
    bytes: frame(OP.ANSWER, 0, 0, new Uint8Array([7, 0, 0, 0, 0, ...hiRecord])),
    value: { request: 7, kind: REPLY_KIND.answer, record: hiRecord },
  },
  BIND: control(
    OP.BIND,
    0,
    34,
    { pattern: 'orders.*.created', target: 'q' },
    { pattern: 'orders.*.created', target: 'q', match: undefined },
  ),
  'BIND, headers': control(
    OP.BIND,
    0,
    34,
    { pattern: 'orders.#', target: 'q', headers: { all: { vip: 'yes', eu: '1' } } },
    {
      pattern: 'orders.#',
      target: 'q',
      match: {
        kind: 'all',
        headers: bare({ vip: 'yes', eu: '1' }),
      },
    },
  ),
  UNBIND: control(
    OP.UNBIND,
    0,
    35,
    { pattern: '#', target: 'q', headers: { any: { vip: 'yes' } } },
    { pattern: '#', target: 'q', match: { kind: 'any', headers: bare({ vip: 'yes' }) } },
  ),
  MOVE: control(OP.MOVE, 0, 37, { name: 'clicks@a', to: 'first' }, { name: 'clicks@a', to: 'first' }),
  'ENSURE of a stream': control(
    OP.ENSURE,
    0,
    41,
    { name: 'clicks', kind: 'stream', options: { retainAgeMs: 604800000, waitForGroupsBytes: 1000000 } },
    { name: 'clicks', options: { retainAgeMs: 604800000, waitForGroupsBytes: 1000000 }, update: false },
  ),
  'ENSURE of a group': control(
    OP.ENSURE,
    0,
    42,
    { name: 'clicks@a', kind: 'group', options: { maxDeliveries: 5 }, fromMs: NEW_YEAR_MS },
    { name: 'clicks@a', options: { maxDeliveries: 5 }, update: false, from: { timeMs: NEW_YEAR_MS } },
  ),
  'GET of a stream': control(
    OP.GET,
    0,
    43,
    { name: 'clicks', kind: 'stream' },
    { name: 'clicks', kind: 'stream' },
  ),
  'GET of a group': control(
    OP.GET,
    0,
    44,
    { name: 'clicks@a', kind: 'group' },
    { name: 'clicks@a', kind: 'group' },
  ),
  'LIST of streams': control(
    OP.LIST,
    0,
    45,
    { kind: 'stream' },
    { after: '', kind: 'stream', stream: undefined },
  ),
  'LIST of groups': control(
    OP.LIST,
    0,
    46,
    { kind: 'group', stream: 'clicks' },
    { after: '', kind: 'group', stream: 'clicks' },
  ),
  'DELETE of a group': control(
    OP.DELETE,
    0,
    47,
    { name: 'clicks@a', kind: 'group' },
    { name: 'clicks@a', kind: 'group' },
  ),
  'MOVE to a time': control(
    OP.MOVE,
    0,
    48,
    { name: 'clicks@a', toMs: NEW_YEAR_MS },
    { name: 'clicks@a', to: { timeMs: NEW_YEAR_MS } },
  ),
  'RESULT of GET of a stream': result(43, { stream: streamInfo }),
  'RESULT of LIST of groups': result(46, { groups: [groupInfo], more: false }),
  BINDINGS: control(OP.BINDINGS, 0, 36, {}, { pattern: undefined, target: undefined, after: 0 }),
  'BINDINGS, further': control(
    OP.BINDINGS,
    0,
    36,
    { pattern: 'orders.#', target: 'q', after: 70_000 },
    { pattern: 'orders.#', target: 'q', after: 70_000 },
  ),
  ROUTES: control(
    OP.ROUTES,
    0,
    37,
    { topic: 'orders.eu.created' },
    { topic: 'orders.eu.created', headers: undefined, after: 0 },
  ),
  'ROUTES, headers': control(
    OP.ROUTES,
    0,
    37,
    { topic: 'orders', headers: { vip: 'no' }, after: 1 },
    { topic: 'orders', headers: bare({ vip: 'no' }), after: 1 },
  ),
  SCHEDULE: control(
    OP.SCHEDULE,
    0,
    34,
    { name: 'nightly', cron: '0 3 * * *', timeZone: 'Europe/Berlin', to: 'q', record: hiRecord },
    {
      name: 'nightly',
      settings: {
        cron: '0 3 * * *',
        timeZone: 'Europe/Berlin',
        to: 'q',
        missed: 'once',
        record: hiRecord,
      },
      paused: undefined,
      update: false,
    },
  ),
  'SCHEDULE of an interval': control(
    OP.SCHEDULE,
    0,
    35,
    {
      name: 'often',
      everyMs: 600_000,
      startMs: NEW_YEAR_MS,
      to: 'q',
      record: hiRecord,
      missed: 'all',
      paused: false,
      update: true,
    },
    {
      name: 'often',
      settings: { everyMs: 600_000, startMs: NEW_YEAR_MS, to: 'q', missed: 'all', record: hiRecord },
      paused: false,
      update: true,
    },
  ),
  'SCHEDULE to pause': control(
    OP.SCHEDULE,
    0,
    36,
    { name: 'nightly', paused: true },
    { name: 'nightly', settings: undefined, paused: true, update: false },
  ),
  SCHEDULES: control(OP.SCHEDULES, 0, 37, { name: 'nightly', ticks: 2 }, { name: 'nightly', ticks: 2 }),
  'SCHEDULES, further': control(
    OP.SCHEDULES,
    0,
    38,
    { after: 'nightly' },
    { name: undefined, after: 'nightly' },
  ),
  UNSCHEDULE: control(OP.UNSCHEDULE, 0, 39, { name: 'nightly' }, 'nightly'),
  RUN_SCHEDULE: control(OP.RUN_SCHEDULE, 0, 40, { name: 'nightly' }, 'nightly'),
  'RESULT of SCHEDULES': result(38, { schedules: [scheduleInfo], more: false }),
  'RESULT of ENSURE': result(1, { created: true, queue: queueInfo }),
  'RESULT of LIST': result(10, { queues: [], more: false }),
  'RESULT of PURGE': result(12, { messages: 70_000 }),
  'RESULT of PAUSE': result(18, { changed: true }),
  'RESULT of REDRIVE': result(22, { matched: 3, redriven: 2, guarded: 1, barred: 1, next: null }),
  'RESULT of DISCARD': result(24, { matched: 10, discarded: 10, next: 70_000 }),
  'RESULT of CANCEL': result(25, { offset: TWO_32 + 1 }),
  'RESULT of RESCHEDULE': result(27, { offset: 1, dueMs: NEW_YEAR_MS + 600_000 }),
  'RESULT of REPLAY': result(29, { matched: 1, replayed: 1, cursor: '300:0' }),
  'RESULT of REPLAY, cut short': result(29, {
    matched: 1,
    replayed: 1,
    cursor: '300:0',
    error: { code: 26, retryable: true, retryAfterMs: 1_000, message: 'No room.' },
  }),
  'RESULT of HISTORY': result(31, { events: history, complete: true, cursor: null }),
  'RESULT of EXPLAIN': result(38, { reasons: [{ code: 'keyRate', untilMs: NEW_YEAR_MS }] }),
  'RESULT of CONSUMERS': result(32, { consumers: [consumer], next: null }),
  'RESULT of CLOSE_CONSUMER': result(33, { messages: 2 }),
  'RESULT of BIND': result(34, { changed: true, id: 7 }),
  'RESULT of BINDINGS': result(36, {
    bindings: [
      { id: 7, pattern: 'orders.#', target: 'q', createdAtMs: 70_000 },
      { id: 9, pattern: '#', target: 'q', headers: { all: { vip: 'yes' } }, createdAtMs: 70_001 },
    ],
    more: true,
  }),
  'RESULT of UNSUBSCRIBE': result(7, {}),
}
