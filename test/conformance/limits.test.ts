/**
 * Tests each limit at its value and one beyond it, with the error code of the refusal. The tables of docs/LIMITS.md are
 * compared with the same limits and codes, so that the page, the code and the refusals agree.
 */
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  ERRORS,
  FRAME_HEADER_BYTES,
  FrameDecoder,
  LIMITS,
  OUTCOME,
  QUEUE_OPTIONS,
  SluiceError,
  checkBatch,
  checkRecordOptions,
  checkRecords,
  decodeControl,
  decodeCredit,
  decodeExtend,
  decodeSettle,
  durationText,
  encodeAtomic,
  encodeAuth,
  encodeControl,
  encodeCredit,
  encodeClaims,
  encodeExtend,
  encodeRanges,
  encodeSettle,
  headerMatch,
  decodeRanges,
  peekRequest,
  queueName,
  queueOptions,
  recordBytes,
  redriveRequest,
  rescheduleRequest,
  scheduleRequest,
  schedulesRequest,
  sealBatch,
  sizeText,
  subscribeRequest,
  topicName,
  topicPattern,
  writeFrameHeader,
  writeRecordHead,
  type Body,
  type ScheduleRequest,
  writeU16,
  type ErrorCode,
  type QueueOptionName,
  type SettleItem,
} from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { connectSettings } from '../../packages/client/src/options.js'
import { checkAt } from '../../packages/server/src/state/traits.js'
import { SETTINGS } from '../../packages/server/src/cli/settings.js'
import { MEMORY_BYTES_MIN, sharesOf } from '../../packages/server/src/memory.js'
import { SESSION_DEFAULTS } from '../../packages/server/src/session/settings.js'

type Limit = keyof typeof LIMITS

interface Probe {
  readonly limit: Limit
  readonly code: ErrorCode
  /** Performs the limited action with this number, size or time. */
  readonly take: (amount: number) => void
  /** Whether the limit is a lower bound, so that the next lower value is refused. */
  readonly isLeast?: boolean
}

const text = (bytes: number): string => 'x'.repeat(bytes)
const NOW_MS = 1_900_000_000_000

const PROBES: readonly Probe[] = [
  { limit: 'frameBytesUnauthenticated', code: 'FRAME_TOO_LARGE', take: (bytes) => announce(bytes) },
  {
    limit: 'frameBytesDefault',
    code: 'FRAME_TOO_LARGE',
    take: (bytes) => announce(bytes, LIMITS.frameBytesDefault),
  },
  {
    limit: 'frameBytesMax',
    code: 'FRAME_TOO_LARGE',
    take: (bytes) => announce(bytes, LIMITS.frameBytesMax),
  },
  { limit: 'controlBytesMax', code: 'MALFORMED_FRAME', take: receiveControl },
  { limit: 'controlDepthMax', code: 'MALFORMED_FRAME', take: (depth) => nest(depth) },
  {
    limit: 'messageBytesDefault',
    code: 'MESSAGE_TOO_LARGE',
    take: (bytes) => record(bytes, LIMITS.messageBytesDefault),
  },
  {
    limit: 'messageBytesMax',
    code: 'MESSAGE_TOO_LARGE',
    take: (bytes) => record(bytes, LIMITS.messageBytesMax),
  },
  { limit: 'batchBytesMax', code: 'BATCH_TOO_LARGE', take: (bytes) => batch(2, bytes) },
  { limit: 'batchCountMax', code: 'BATCH_TOO_LARGE', take: (count) => batch(count, BATCH_HEADER_BYTES) },
  { limit: 'queueNameBytesMax', code: 'INVALID_NAME', take: (bytes) => void queueName(text(bytes)) },
  {
    limit: 'clientNameBytesMax',
    code: 'INVALID_ARGUMENT',
    take: (bytes) => void connectSettings(undefined, { name: text(bytes) }),
  },
  {
    limit: 'credentialBytesMax',
    code: 'INVALID_ARGUMENT',
    take: (bytes) => void encodeAuth({ mechanism: 1, identity: 'a', secret: new Uint8Array(bytes) }),
  },
  { limit: 'keyBytesMax', code: 'INVALID_KEY', take: (bytes) => checkRecordOptions({ key: text(bytes) }) },
  { limit: 'idBytesMax', code: 'INVALID_ID', take: (bytes) => checkRecordOptions({ id: text(bytes) }) },
  {
    limit: 'headersMax',
    code: 'INVALID_HEADERS',
    take: (count) =>
      checkRecordOptions({
        headers: Object.fromEntries(Array.from({ length: count }, (_, index) => [`h${index}`, ''])),
      }),
  },
  {
    limit: 'headersBytesMax',
    code: 'INVALID_HEADERS',
    // A header takes its name, its value and three bytes for the two lengths.
    take: (bytes) => checkRecordOptions({ headers: { a: text(bytes - 4) } }),
  },
  { limit: 'priorityMax', code: 'INVALID_PRIORITY', take: (priority) => checkRecordOptions({ priority }) },
  {
    limit: 'creditMessagesMax',
    code: 'INVALID_ARGUMENT',
    take: (messages) =>
      void decode(
        encodeCredit({ subscriptionId: 1, messages, bytes: 1, limit: undefined, drain: false }),
        decodeCredit,
      ),
  },
  {
    limit: 'creditBytesMax',
    code: 'INVALID_ARGUMENT',
    take: (bytes) => void subscribeRequest({ queue: 'q', messages: 1, bytes }),
  },
  {
    limit: 'rangesMax',
    code: 'MALFORMED_FRAME',
    take: (count) => void decode(encodeSettle(1, acks(count)), decodeSettle),
  },
  { limit: 'reasonBytesMax', code: 'INVALID_ARGUMENT', take: reason },
  {
    limit: 'heartbeatMsMin',
    code: 'INVALID_ARGUMENT',
    isLeast: true,
    take: (heartbeat) => void connectSettings(undefined, { heartbeat }),
  },
  {
    limit: 'heartbeatMsMax',
    code: 'INVALID_ARGUMENT',
    take: (heartbeat) => void connectSettings(undefined, { heartbeat }),
  },
  { limit: 'delayMsMax', code: 'INVALID_DELAY', take: (delayMs) => checkRecordOptions({ delayMs }) },
  {
    limit: 'atPastMsMax',
    code: 'AT_IN_THE_PAST',
    take: (ms) => checkAt('`at`', NOW_MS - ms, NOW_MS),
  },
  { limit: 'maxDeliveriesMax', code: 'INVALID_OPTION', take: option('maxDeliveries') },
  { limit: 'keyConcurrencyMax', code: 'INVALID_OPTION', take: option('keyConcurrency') },
  { limit: 'rateMessagesMax', code: 'INVALID_OPTION', take: option('keyRateMessages') },
  { limit: 'ratePerMsMax', code: 'INVALID_OPTION', take: option('keyRatePerMs') },
  { limit: 'dedupMaxIdsMax', code: 'INVALID_OPTION', take: option('dedupMaxIds') },
  {
    limit: 'processingTimeoutMsMin',
    code: 'INVALID_ARGUMENT',
    isLeast: true,
    take: (durationMs) =>
      void decode(encodeExtend({ subscriptionId: 1, firstTag: 1, count: 1, durationMs }), decodeExtend),
  },
  { limit: 'expiresMsMin', code: 'INVALID_OPTION', isLeast: true, take: option('expiresMs') },
  {
    limit: 'claimsMax',
    code: 'INVALID_ARGUMENT',
    take: (count) => {
      const claim = { offset: 1, queueNumber: 1, boot: 1, subscriptionId: 1, tag: 1, attempt: 1, bytes: 8 }
      const claims = encodeClaims(Array.from({ length: count }, () => claim))
      subscribeRequest({ queue: 'q', messages: 1, bytes: 1, claims })
    },
  },
  {
    limit: 'atomicAcksMax',
    code: 'TRANSACTION_TOO_LARGE',
    take: (count) => void encodeAtomic(1, [{ channel: 1, subscriptionId: 1, firstTag: 1, count }], []),
  },
  {
    limit: 'atomicBatchesMax',
    code: 'TRANSACTION_TOO_LARGE',
    take: (count) =>
      void encodeAtomic(
        1,
        [],
        Array.from({ length: count }, (_, index) => atomicBatch(`q${index}`, 1)),
      ),
  },
  {
    limit: 'atomicMessagesMax',
    code: 'TRANSACTION_TOO_LARGE',
    take: (count) => void encodeAtomic(1, [], [atomicBatch('q', count)]),
  },
  {
    limit: 'pageMessagesMax',
    code: 'INVALID_ARGUMENT',
    take: (limit) => void peekRequest({ name: 'q', limit }),
  },
  { limit: 'topicBytesMax', code: 'INVALID_TOPIC', take: (bytes) => void topicName(text(bytes)) },
  {
    limit: 'topicLevelsMax',
    code: 'INVALID_PATTERN',
    take: (levels) => void topicPattern(Array.from({ length: levels }, () => '*').join('.')),
  },
  {
    limit: 'bindingHeadersBytesMax',
    code: 'INVALID_ARGUMENT',
    take: (bytes) => void headerMatch({ all: { a: text(bytes - 1) } }),
  },
  {
    limit: 'scheduleBytesMax',
    code: 'MESSAGE_TOO_LARGE',
    take: (bytes) => void scheduled({ everyMs: 1_000, record: recordOf(bytes) }),
  },
  {
    limit: 'everyMsMin',
    code: 'INVALID_INTERVAL',
    isLeast: true,
    take: (everyMs) => void scheduled({ everyMs }),
  },
  {
    limit: 'cronBytesMax',
    code: 'INVALID_CRON',
    take: (bytes) => void scheduled({ cron: 'x'.repeat(bytes) }),
  },
  {
    limit: 'timeZoneBytesMax',
    code: 'UNKNOWN_TIME_ZONE',
    take: (bytes) => void scheduled({ cron: '* * * * *', timeZone: 'x'.repeat(bytes) }),
  },
  {
    limit: 'ticksMax',
    code: 'INVALID_ARGUMENT',
    take: (ticks) => void schedulesRequest({ name: 's', ticks }),
  },
]

/** Limits at which nothing is refused, each with the reason. */
const NOT_REFUSED: Partial<Record<Limit, string>> = {
  frameBytesMin: 'a bound of HELLO_OK; the client closes the connection with MALFORMED_FRAME',
  batchBytesTarget: 'a client aims at it',
  batchBytesScheduledTarget: 'a client aims at it',
  channelMax: 'the width of its field',
  heartbeatMsDefault: 'a default',
  handshakeMsMax: 'a time; the connection is closed with HANDSHAKE_TIMEOUT',
  inFlightBatchesDefault: 'a default',
  inFlightBatchesMax: 'agreed in the handshake; a client with more unanswered batches loses the connection',
  inFlightBytesDefault: 'a default',
  redrivesMax: 'such messages are skipped and counted',
}

function announce(total: number, frameBytesMax?: number): void {
  const decoder = new FrameDecoder(() => {}, false)
  if (frameBytesMax !== undefined) decoder.frameBytesMax = frameBytesMax
  const header = new Uint8Array(FRAME_HEADER_BYTES)
  writeFrameHeader(header, 0, total - FRAME_HEADER_BYTES, 1, 0, 0)
  decoder.push(header)
}

function receiveControl(bytes: number): void {
  // A map with one field, a long string; 1 + 2 + 3 bytes precede the string.
  const body = new Uint8Array(bytes).fill(0x78)
  body.set([0x81, 0xa1, 0x61, 0xda, (bytes - 6) >>> 8, (bytes - 6) & 255])
  decodeControl(body, 0, bytes)
}

function nest(depth: number): void {
  let value: unknown = 1
  for (let level = 1; level < depth; level++) value = [value]
  decode(encodeControl({ value }), decodeControl)
}

function decode<Result>(
  bytes: Uint8Array,
  decoder: (bytes: Uint8Array, start: number, end: number) => Result,
): Result {
  return decoder(bytes, 0, bytes.length)
}

function scheduled(fields: Body): ScheduleRequest {
  return scheduleRequest({ name: 's', to: 'q', record: recordOf(0), ...fields })
}

/** A record that has no options and a payload of `bytes` bytes. */
function recordOf(bytes: number): Uint8Array {
  const record = new Uint8Array(recordBytes(undefined, bytes))
  writeRecordHead(record, 0, undefined, 0, bytes)
  return record
}

/** Checks a record that has no options and a payload of `bytes` bytes. */
function record(bytes: number, messageBytesMax: number): void {
  const record = recordOf(bytes)
  const fault = checkRecords(record, 0, record.length, 1, messageBytesMax)
  if (typeof fault !== 'number') throw new SluiceError(fault.code, fault.message)
}

function batch(count: number, length: number): void {
  const bytes = new Uint8Array(length)
  sealBatch(bytes, 0, length, { type: BATCH_TYPE.messages, count, batchNumber: 1 })
  checkBatch(bytes, 0, length)
}

function atomicBatch(
  queue: string,
  count: number,
): { queue: string; bytes: Uint8Array; at: number; end: number } {
  const bytes = new Uint8Array(BATCH_HEADER_BYTES)
  sealBatch(bytes, 0, bytes.length, { type: BATCH_TYPE.messages, count, batchNumber: 1 })
  return { queue, bytes, at: 0, end: bytes.length }
}

function acks(count: number): SettleItem[] {
  return Array.from({ length: count }, (_, index) => ({
    firstTag: index * 2,
    count: 1,
    outcome: OUTCOME.ack,
  }))
}

// Our encoder truncates a reason, so the frame is made with a short reason and then lengthened.
function reason(bytes: number): void {
  const frame = encodeSettle(1, [{ firstTag: 1, count: 1, outcome: OUTCOME.retry, reason: 'x' }])
  const longer = new Uint8Array(frame.length - 1 + bytes).fill(0x78)
  longer.set(frame)
  writeU16(longer, 4 + 10, bytes)
  decodeSettle(longer, 0, longer.length)
}

function option(name: QueueOptionName): (value: number) => void {
  return (value) => void queueOptions({ [name]: value })
}

describe('each limit of the protocol', () => {
  it.each(PROBES)(
    '$limit is accepted, and one beyond it is refused with $code',
    ({ limit, code, take, isLeast }) => {
      const value = LIMITS[limit]
      expect(() => take(value)).not.toThrow()
      const beyond = isLeast === true ? value - 1 : value + 1
      expect(() => take(beyond)).toThrow(expect.objectContaining({ code }))
    },
  )

  it('has a row here', () => {
    const probed = PROBES.map(({ limit }) => limit)
    const rest = Object.keys(NOT_REFUSED)
    expect([...probed, ...rest].toSorted()).toEqual(Object.keys(LIMITS).toSorted())
    expect(new Set(probed).size).toBe(PROBES.length)
  })
})

it.each(
  Object.entries(QUEUE_OPTIONS).flatMap(([name, option]) =>
    option.kind === 'number' ? [[name as QueueOptionName, option] as const] : [],
  ),
)('the queue option %s is kept within its bounds', (name, { min, max }) => {
  const refused = expect.objectContaining({ code: 'INVALID_OPTION' }) as Error
  expect(() => option(name)(min)).not.toThrow()
  expect(() => option(name)(max)).not.toThrow()
  expect(() => option(name)(min - 1)).toThrow(refused)
  expect(() => option(name)(max + 1)).toThrow(refused)
})

describe('requests about messages', () => {
  it('name at most as many offsets as a page has messages', () => {
    const offsets = Array.from({ length: LIMITS.pageMessagesMax + 1 }, (_, index) => index)
    expect(() => redriveRequest({ name: 'q', offsets: offsets.slice(1) })).not.toThrow()
    expect(() => redriveRequest({ name: 'q', offsets })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    )
  })

  it('delay at most 100 years', () => {
    const request = (delayMs: number): unknown => rescheduleRequest({ name: 'q', offset: 0, delayMs })
    expect(() => request(LIMITS.delayMsMax)).not.toThrow()
    expect(() => request(LIMITS.delayMsMax + 1)).toThrow(expect.objectContaining({ code: 'INVALID_DELAY' }))
  })

  it('name at most as many tags as the largest credit', () => {
    const ranges = (count: number): unknown =>
      decode(encodeRanges(1, [{ firstTag: 1, count }]), (bytes, start, end) =>
        decodeRanges('STARTED', bytes, start, end),
      )
    expect(() => ranges(LIMITS.creditMessagesMax)).not.toThrow()
    expect(() => ranges(LIMITS.creditMessagesMax + 1)).toThrow(
      expect.objectContaining({ code: 'MALFORMED_FRAME' }),
    )
  })
})

describe('docs/LIMITS.md', () => {
  const root = fileURLToPath(new URL('../..', import.meta.url))
  const page = readFileSync(join(root, 'docs/LIMITS.md'), 'utf8')
  const rows = page
    .split('\n')
    .filter((line) => line.startsWith('| `'))
    .map((line) =>
      line
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim()),
    )

  it('has each limit of the protocol, with its value and its code', () => {
    const told = new Map(rows.map(([name, value, , code]) => [name!.replaceAll('`', ''), [value, code]]))
    for (const [name, value] of Object.entries(LIMITS)) {
      const probe = PROBES.find(({ limit }) => limit === name)
      const [text, code] = told.get(name) ?? []
      expect(text, name).toBe(valueText(name, value))
      if (probe === undefined) expect(code, name).not.toBe('')
      else expect(code, name).toContain(`\`${probe.code}\``)
    }
    expect(told.size).toBeGreaterThanOrEqual(Object.keys(LIMITS).length)
  })

  it('has each constant that ends with _MAX, with its value, unless NO_LIMIT names it', () => {
    const told = new Map(rows.map(([name, value]) => [name!.replaceAll('`', ''), value]))
    const constants = constantsOf(join(root, 'packages'))
    let checked = 0
    for (const [name, values] of constants) {
      const isListed = told.has(name)
      const why = NO_LIMIT[name]
      if (why === undefined && !isListed && name.endsWith('_MIN')) continue
      expect(isListed, `${name} is either in docs/LIMITS.md or in NO_LIMIT`).toBe(why === undefined)
      if (!isListed) continue
      for (const value of values) expect(told.get(name), name).toBe(valueText(name, value))
      checked++
    }
    for (const name of Object.keys(NO_LIMIT)) expect([...constants.keys()], name).toContain(name)
    expect(checked).toBeGreaterThanOrEqual(25)
    // Every row of the page is a limit of the protocol, a constant, or one of SETTINGS_AND_SHARES.
    for (const [name, value] of told) {
      if (Object.hasOwn(LIMITS, name) || constants.has(name)) continue
      expect(Object.keys(SETTINGS_AND_SHARES), name).toContain(name)
      expect(value, name).toBe(SETTINGS_AND_SHARES[name])
    }
  })

  it('names only error codes and tests that exist', () => {
    let checked = 0
    for (const [name, , , code, test] of rows) {
      for (const [, word] of code!.matchAll(/`([A-Z_]+)`/g)) expect(Object.keys(ERRORS), name).toContain(word)
      for (const [, file] of test!.matchAll(/\(\.\.\/([^)]+)\)/g)) {
        expect(existsSync(join(root, file!)), `${name}: ${file}`).toBe(true)
        checked++
      }
    }
    expect(checked).toBeGreaterThanOrEqual(Object.keys(LIMITS).length)
  })
})

function valueText(name: string, value: number): string {
  if (name === 'delayMsMax') return '100 years'
  if (/Ms(Min|Max|Default)$/.test(name)) return durationText(value)
  if (
    /(Bytes(Min|Max|Default|Target|ScheduledTarget|Unauthenticated)|BYTES_(MIN|MAX|LEAST))$/.test(name) &&
    value % 1024 === 0
  )
    return sizeText(value)
  return value.toLocaleString('en-US')
}

const shares = sharesOf(Number.MAX_SAFE_INTEGER)

/** Rows of LIMITS.md that are neither limits of the protocol nor constants, with their values. */
const SETTINGS_AND_SHARES: Readonly<Record<string, string>> = {
  '--max-connections': Number(SETTINGS['max-connections'].default).toLocaleString('en-US'),
  '--memory': sizeText(MEMORY_BYTES_MIN),
  subscriptionsMax: SESSION_DEFAULTS.subscriptionsMax.toLocaleString('en-US'),
  outboundBytesSoft: sizeText(SESSION_DEFAULTS.outboundBytesSoft),
  outboundBytesHard: sizeText(SESSION_DEFAULTS.outboundBytesHard),
  stalledMs: durationText(SESSION_DEFAULTS.stalledMs),
  receiveBytesMax: sizeText(shares.receiveBytesMax),
  outboundBytesMax: sizeText(shares.outboundBytesMax),
  pendingBytesMax: sizeText(shares.pendingBytesMax),
  queuesMax: '100,000',
  maxInFlight: connectSettings(undefined, {}).maxInFlight.toLocaleString('en-US'),
  maxWaitingBytes: sizeText(connectSettings(undefined, {}).maxWaitingBytes),
  // These are shares of an entry; see packages/server/src/log/entry-limits.ts.
  '--max-message-bytes': 'a quarter',
  batch: 'half',
  'known ids': 'a quarter',
  refer: 'an eighth',
  'atomic step': 'a quarter',
  reasons: 'a quarter',
  results: 'a quarter',
  producerNumbersMax: 'half',
}

/**
 * Constants that need no row on the page, because nothing is refused and nothing ends when they are reached. Each has
 * the reason.
 */
const NO_LIMIT: Readonly<Record<string, string>> = {
  PAUSE_MS_MAX: 'publishAll pauses at most this long between two attempts',
  SHARED_BODY_BYTES_MAX: 'larger bodies are not copied',
  NODE_ENTRIES_MAX: 'a full node is split',
  SUMMARY_SEGMENTS_MAX: 'a chunk in more segments stays in memory',
  CHANGES_MAX: 'the next change is applied to all keys at once',
  DROPS_MAX: 'later turns drop further entries',
  NAMED_MAX: 'EXPLAIN names no further consumers',
  VISITED_MAX: 'EXPLAIN searches no further, and leaves the value out',
  FOUND_MAX: 'further searches find the other expired messages',
  PASSED_MAX: 'the next step passes further chunks',
  WARM_MAX: 'chunks beyond it leave memory again',
  WARM_BYTES_MAX: 'chunks beyond it leave memory again',
  DRAINED_MAX: 'a full chunk with more messages left is not packed',
  PATIENCE_MS_MAX: 'a redelivered message waits at most this long for a handler that still has it',
  END_MS_MAX: 'a socket that closes more slowly is destroyed',
  STARTED_RANGES_MAX: 'the client sends several frames',
  BURST_MAX: 'the rest is started in the next turn',
  CHAIN_MAX: 'the search for the caller ends there',
  DOUBLINGS_MAX: 'keeps the wait before a retry a finite number; retryMax is the limit',
  SPARE_SIZE_MAX: 'buffers that are kept',
  SPARE_BYTES_MAX: 'further buffers are not kept',
  SPARE_COLD_MAX: 'buffers that are kept',
  SPARES_MAX: 'no more segments are created in advance',
  COUNT_MAX: 'the width of a field; higher counts are shown as this',
  TEXT_BYTES_MAX: 'the width of a field; longer texts are truncated first',
  TIMER_PART_MS_MAX: 'longer times are divided into several timers',
  READERS_OPEN_MAX: 'further files are closed',
  READS_MAX: 'further reads wait',
  AHEAD_PARTS_MAX: 'the read-ahead shrinks at most to this fraction',
  TRIES_MAX: 'attempts to get the lock while its files change',
  LOCK_BYTES_MAX: 'a longer lock file is not parsed',
  LISTED_MAX: 'the layout of a chunk changes',
  OLDEST_LOOKED_AT_MAX: 'beyond it a displayed number is a bound, not an exact value',
  CONFIRMS_BYTES_MAX: 'further confirms go into the next frame',
  IN_FLIGHT_MESSAGES_MAX: 'the command waits for confirms',
  IN_FLIGHT_BYTES_MAX: 'the command waits for confirms',
  STOP_MS_MAX: 'the process exits if stopping takes longer',
  START_MS_MAX: 'a stop during startup ends the process after this time',
  BODY_CHARACTERS_MAX: 'a table shows only this much',
  TEXT_CHARACTERS_MAX: 'a table shows only this much',
  SAMPLES_MAX: 'further values replace earlier ones at random',
  WIDTH_MAX: 'the help is wrapped at this width',
}

/** The values of constants whose names have _MAX, _MIN or _LEAST, by name; several constants can share a name. */
function constantsOf(directory: string): Map<string, number[]> {
  const found = new Map<string, number[]>()
  for (const file of readdirSync(directory, { recursive: true, encoding: 'utf8' })) {
    if (!/^[a-z]+\/src\/(?!.*testing\/).*(?<!\.test|\.d)\.ts$/.test(file)) continue
    const source = readFileSync(join(directory, file), 'utf8')
    for (const [, name, text] of source.matchAll(
      /^(?:export )?const ([A-Z][A-Z_]*_(?:MAX|MIN|LEAST)) = ([\dxa-f_ *<]+)$/gm,
    ))
      found.set(name!, [...(found.get(name!) ?? []), valueOf(text!)])
  }
  return found
}

/** The value of a constant that is written as `16 << 20`, `2 ** 40`, `4 * 1024` or `0xffff`. */
function valueOf(text: string): number {
  const shift = text.split(' << ').map((part) =>
    part
      .split(' ** ')
      .map((factor) =>
        factor.split(' * ').reduce((product, number) => product * Number(number.replaceAll('_', '')), 1),
      )
      .reduce((base, exponent) => base ** exponent),
  )
  return shift.reduce((value, bits) => value * 2 ** bits)
}
