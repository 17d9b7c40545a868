/**
 * Options of messages that affect their delivery: priority, due time, expiry, key and id. The running broker and
 * recovery read them from the records, so the log does not repeat them. Called when messages are published, and by
 * `Replay`.
 */
import {
  ANY_PRIORITY,
  BATCH_HEADER_BYTES,
  LIMITS,
  RECORD_FLAG,
  RECORD_HEADER_BYTES,
  RECORD_TIME_BYTES,
  SluiceError,
  readU48,
  recordFlags,
  recordPriority,
  recordSize,
  type ErrorCode,
  durationText,
} from '@sluice/protocol'
import { ID_WORDS, hashId, hashKey, type Seed, type StreamRules, type Traits } from '../queue/index.js'

/** Record flags of these options. */
const ANY_TRAIT =
  RECORD_FLAG.delay | RECORD_FLAG.at | RECORD_FLAG.ttl | RECORD_FLAG.key | RECORD_FLAG.id | ANY_PRIORITY

/** Whether records with these flags, as `checkRecords` reports them, have one of these options. */
export function hasDeliveryOptions(flagsSeen: number): boolean {
  return (flagsSeen & ANY_TRAIT) !== 0
}

/** The options of a queue on which the options of its messages depend. */
export interface TraitRules {
  /** Time to live of messages without their own; 0: unlimited. */
  readonly ttlMs: number
  /** Byte limit of the queue; 0: unlimited. The sizes of the messages are needed only if there is a limit. */
  readonly maxBytes: number
}

export interface BatchTraits extends Traits {
  /** Whether a message has no time to live of its own. */
  readonly lacksTtl: boolean
}

interface Scratch extends BatchTraits {
  isKeyed: boolean
  hasIds: boolean
  priorities: Uint8Array
  dues: Float64Array
  expiries: Float64Array
  keys: Uint32Array
  ids: Uint32Array
  replaces: Uint8Array
  sizes: Uint32Array | undefined
  lacksTtl: boolean
}

// Each is reused for every batch, and grows to the largest batch of this process.
const scratch = emptyScratch()
/** Options of some records of a batch. */
const selected = emptyScratch()
let sizes = new Uint32Array(0)
let selectedSizes = new Uint32Array(0)

function emptyScratch(): Scratch {
  return {
    priorities: new Uint8Array(0),
    dues: new Float64Array(0),
    expiries: new Float64Array(0),
    isKeyed: false,
    keys: new Uint32Array(0),
    hasIds: false,
    ids: new Uint32Array(0),
    replaces: new Uint8Array(0),
    sizes: undefined,
    lacksTtl: false,
  }
}

// Returns the new room; 0 if the scratch is large enough.
function grow(scratch: Scratch, count: number): number {
  if (count <= scratch.dues.length) return 0
  const room = Math.min(LIMITS.batchCountMax, Math.max(count, scratch.dues.length * 2, 64))
  scratch.priorities = new Uint8Array(room)
  scratch.dues = new Float64Array(room)
  scratch.expiries = new Float64Array(room)
  scratch.keys = new Uint32Array(room * 2)
  scratch.ids = new Uint32Array(room * ID_WORDS)
  scratch.replaces = new Uint8Array(room)
  return room
}

/**
 * The options of the batch at `at`, whose records have passed `checkRecords`. The result is valid until the next call.
 * `timeMs` is the publish time, and `seed` the seed of the log.
 */
export function readTraits(
  bytes: Uint8Array,
  at: number,
  count: number,
  timeMs: number,
  seed: Seed,
  { ttlMs, maxBytes }: TraitRules,
): BatchTraits {
  const room = grow(scratch, count)
  if (room > 0) sizes = new Uint32Array(room)
  const { priorities, dues, expiries, keys, ids } = scratch
  scratch.isKeyed = false
  scratch.hasIds = false
  scratch.lacksTtl = false
  scratch.sizes = maxBytes > 0 ? sizes : undefined
  let record = at + BATCH_HEADER_BYTES
  for (let index = 0; index < count; index++) {
    const flags = recordFlags(bytes, record)
    let next = record + RECORD_HEADER_BYTES
    let dueMs = 0
    if (flags & RECORD_FLAG.delay) {
      const delayMs = readU48(bytes, next)
      if (delayMs > 0) dueMs = timeMs + delayMs
      next += RECORD_TIME_BYTES
    }
    if (flags & RECORD_FLAG.at) {
      const atMs = readU48(bytes, next)
      if (atMs > timeMs) dueMs = atMs
      next += RECORD_TIME_BYTES
    }
    priorities[index] = recordPriority(bytes, record)
    dues[index] = dueMs
    // The time to live starts when the message is due.
    let ownTtlMs = ttlMs
    if (flags & RECORD_FLAG.ttl) {
      ownTtlMs = readU48(bytes, next)
      next += RECORD_TIME_BYTES
    } else scratch.lacksTtl = true
    expiries[index] = ownTtlMs === 0 ? 0 : (dueMs || timeMs) + ownTtlMs
    keys[index * 2] = 0
    keys[index * 2 + 1] = 0
    if (flags & RECORD_FLAG.key) {
      const end = next + 1 + bytes[next]!
      hashKey(bytes, next + 1, end, seed, keys, index * 2)
      scratch.isKeyed = true
      next = end
    }
    const idAt = index * ID_WORDS
    if (flags & RECORD_FLAG.id) {
      hashId(bytes, next + 1, next + 1 + bytes[next]!, seed, ids, idAt)
      scratch.hasIds = true
      scratch.replaces[index] = flags & RECORD_FLAG.replaces ? 1 : 0
    } else ids.fill(0, idAt, idAt + ID_WORDS)
    const size = recordSize(bytes, record)
    sizes[index] = size
    record += size
  }
  return scratch
}

/**
 * The options of some records of a batch, in the order of `ranges`; valid until the next call. `all` are the options of
 * all records.
 */
export function selectTraits(
  all: BatchTraits,
  ranges: readonly { readonly index: number; readonly count: number }[],
): BatchTraits {
  const room = grow(
    selected,
    ranges.reduce((sum, { count }) => sum + count, 0),
  )
  if (room > 0) selectedSizes = new Uint32Array(room)
  const { priorities, dues, expiries, keys, ids, replaces } = selected
  selected.isKeyed = all.isKeyed
  selected.hasIds = all.hasIds
  selected.lacksTtl = all.lacksTtl
  selected.sizes = all.sizes === undefined ? undefined : selectedSizes
  let to = 0
  for (const { index, count } of ranges) {
    const end = index + count
    priorities.set(all.priorities.subarray(index, end), to)
    dues.set(all.dues.subarray(index, end), to)
    expiries.set(all.expiries.subarray(index, end), to)
    keys.set(all.keys.subarray(index * 2, end * 2), to * 2)
    ids.set(all.ids.subarray(index * ID_WORDS, end * ID_WORDS), to * ID_WORDS)
    replaces.set(all.replaces.subarray(index, end), to)
    if (all.sizes !== undefined) selectedSizes.set(all.sizes.subarray(index, end), to)
    to += count
  }
  return selected
}

/**
 * Checks the delays, times and times to live in the batch at `at`.
 * @throws SluiceError INVALID_DELAY, AT_IN_THE_PAST, INVALID_TTL with the message, the value and its limits
 */
export function checkTraits(bytes: Uint8Array, at: number, count: number, nowMs: number): void {
  let record = at + BATCH_HEADER_BYTES
  for (let index = 0; index < count; index++) {
    const flags = recordFlags(bytes, record)
    let next = record + RECORD_HEADER_BYTES
    if (flags & RECORD_FLAG.delay) {
      checkTime('INVALID_DELAY', `\`delay\` of message ${index}`, readU48(bytes, next), 0, LIMITS.delayMsMax)
      next += RECORD_TIME_BYTES
    }
    if (flags & RECORD_FLAG.at) {
      checkAt(`\`at\` of message ${index}`, readU48(bytes, next), nowMs)
      next += RECORD_TIME_BYTES
    }
    if (flags & RECORD_FLAG.ttl)
      checkTime('INVALID_TTL', `\`ttl\` of message ${index}`, readU48(bytes, next), 1, LIMITS.delayMsMax)
    record += recordSize(bytes, record)
  }
}

/**
 * Checks that the messages can be in a stream. Without `traits`, no message has an option.
 * @throws SluiceError OPTION_UNSUPPORTED with the message and the option; KEY_REQUIRED with the message
 */
export function checkStreamTraits(
  { name: stream, stream: rules }: { readonly name: string; readonly stream: StreamRules | undefined },
  traits: Traits | undefined,
  count: number,
): void {
  if (rules?.compact === 'key') checkKeys(stream, traits, count)
  if (traits === undefined) return
  const { priorities, dues, expiries } = traits
  for (let index = 0; index < count; index++) {
    const option =
      dues[index] !== 0 ? 'delay' : priorities[index] !== 0 ? 'priority' : expiries[index] !== 0 ? 'ttl' : ''
    if (option === '') continue
    throw new SluiceError(
      'OPTION_UNSUPPORTED',
      `Message ${index} has a \`${option}\`; the stream ${stream} does not support \`delay\`, \`priority\` and \`ttl\`.`,
    )
  }
}

// @throws SluiceError KEY_REQUIRED
function checkKeys(stream: string, traits: Traits | undefined, count: number): void {
  const keys = traits?.isKeyed === true ? traits.keys : NO_KEYS
  for (let index = 0; index < count; index++) {
    if (((keys[index * 2] ?? 0) | (keys[index * 2 + 1] ?? 0)) !== 0) continue
    throw new SluiceError(
      'KEY_REQUIRED',
      `Message ${index} has no \`key\`; the stream ${stream} keeps the newest message of each key.`,
    )
  }
}

const NO_KEYS = new Uint32Array(0)

function timeText(ms: number): string {
  return new Date(ms).toISOString()
}

/** @throws SluiceError AT_IN_THE_PAST, INVALID_DELAY */
export function checkAt(what: string, atMs: number, nowMs: number): void {
  if (atMs < nowMs - LIMITS.atPastMsMax) {
    throw new SluiceError(
      'AT_IN_THE_PAST',
      `${what} is ${timeText(atMs)}; it may be at most ${durationText(LIMITS.atPastMsMax)} before the current time, ${timeText(nowMs)}.`,
    )
  }
  if (atMs > nowMs + LIMITS.delayMsMax) {
    throw new SluiceError(
      'INVALID_DELAY',
      `${what} is ${timeText(atMs)}; it must be at most ${durationText(LIMITS.delayMsMax)} ahead.`,
    )
  }
}

function checkTime(code: ErrorCode, what: string, valueMs: number, minMs: number, maxMs: number): void {
  if (valueMs >= minMs && valueMs <= maxMs) return
  throw new SluiceError(
    code,
    `${what} is ${durationText(valueMs)}; it must be from ${durationText(minMs)} to ${durationText(maxMs)}.`,
  )
}
