/**
 * The page of a chunk: its durable state at one position of the log. The newest page of each chunk and the facts after it
 * are the whole state of its messages, so older parts of the log can be deleted. A checkpoint encodes pages, and recovery
 * decodes them.
 *
 * Page: u64 base · u64 record bytes · u16 count · u16 batches · u16 waiting · u16 dead · u16 redriven · u16 live · u32 flags
 *   (1 gone, 2 priorities, 4 expiries, 8 keys, 16 ids, 32 sizes, 64 narrow, 128 listed, 256 retained, 512 shared) · batches
 *   of u16 first index, u64 position, u48 time, u32 bytes; shared: and u16 index in the batch plus 1, 0 if it is not shared; narrow: u16 first index, u64 position and u48 time of the first batch, then for each batch u16
 *   first index, u32 position and u32 time relative to the first batch, u16 bytes ·
 *   128 B of gone bits, index 0 in the lowest bit; or listed: live × u16 index, all other messages are gone · then for each
 *   message, or for each listed one: u8 priority; u48 expiry; two u32 of the key's hash; four u32 of the id's hash; u32 record
 *   size · waiting of u32 index and attempts, u64 due · redriven of u16 index, u16 redrives, u32 attempts before
 *   the last redrive · dead of u32 index and attempts, u8 death (128: to be moved), u8 0, u16 reason bytes, u64 time, reason.
 *   · retained: u64 time of the last acknowledgement, u64 record bytes, 128 B of bits of the retained messages.
 *   A u32 of index and attempts has the index in its low 10 bits.
 */
import {
  readText,
  readU16,
  readU32,
  readU48,
  readU64,
  textBytes,
  writeText,
  writeU16,
  writeU32,
  writeU48,
  writeU64,
} from '@sluice/protocol'
import { CHUNK_MESSAGES, CHUNK_WORDS } from './bits.js'
import { Chunk, type Death } from './chunk.js'
import type { ColumnName } from './columns.js'
import { DeadMessages } from './dead.js'
import { ID_WORDS, isId } from './hash.js'
import { NONE, type KeysOwner } from './keys.js'
import { Retained } from './retained.js'

const HEAD_BYTES = 32
const GONE_BYTES = CHUNK_WORDS * 4
const INDEX_BYTES = 2
const WAITING_BYTES = 12
const REDRIVEN_BYTES = 8
/** Size of a dead message without its reason. */
const DEAD_BYTES = 16
const FLAG = {
  gone: 1,
  priorities: 2,
  expiries: 4,
  keys: 8,
  ids: 16,
  sizes: 32,
  narrow: 64,
  listed: 128,
  retained: 256,
  shared: 512,
} as const
/** Time and bytes, then one bit for each message. */
const RETAINED_BYTES = 16 + CHUNK_WORDS * 4
const FORM_FLAG = { narrow: FLAG.narrow, wide: 0, shared: FLAG.shared } as const
const MOVING = 128
/** Live messages are listed if fewer than one message in this many is live. */
const LISTED_SHARE = 4
const INDEX_BITS = 10
const INDEX_MASK = 2 ** INDEX_BITS - 1
const ALL_INDEXES: readonly number[] = Array.from({ length: CHUNK_MESSAGES }, (_, index) => index)

/** Returns the bytes of the page. A chunk holds the slots of its keys; the hashes of the keys are in the keys of `queue`. */
export function encodeChunkPage(chunk: Chunk, queue: KeysOwner): Uint8Array {
  const { count, live, batches } = chunk
  const isListed = live * LISTED_SHARE < count
  const hasGone = !isListed && live < count
  const columns = PAGE_COLUMNS.filter((column) => column.isIn(chunk))
  const indexes = isListed ? chunk.liveIndexes() : columns.length > 0 ? ALL_INDEXES.slice(0, count) : []
  const waiting = waitingIn(chunk)
  let flags = (hasGone ? FLAG.gone : 0) | (isListed ? FLAG.listed : 0) | FORM_FLAG[batches.form]
  if (chunk.retained !== undefined) flags |= FLAG.retained
  let rowBytes = isListed ? INDEX_BYTES : 0
  for (const { flag, bytes } of columns) {
    flags |= flag
    rowBytes += bytes
  }
  const size = HEAD_BYTES + batches.pageBytes + (hasGone ? GONE_BYTES : 0) + indexes.length * rowBytes
  const bytes = new Uint8Array(
    size + waiting.length * WAITING_BYTES + redrivenBytes(chunk) + deadBytes(chunk) + retainedBytes(chunk),
  )
  encodeHead(bytes, chunk, waiting.length, flags)
  let at = batches.encode(bytes, HEAD_BYTES)
  if (hasGone) at = encodeGone(bytes, at, chunk)
  if (isListed) at = encodeList(bytes, at, indexes)
  for (const column of columns) at = column.encode(bytes, at, chunk, indexes, queue)
  at = encodeWaiting(bytes, at, chunk, waiting)
  at = encodeRedriven(bytes, at, chunk)
  at = encodeDead(bytes, at, chunk)
  encodeRetained(bytes, at, chunk)
  return bytes
}

/** Decodes a page whose checksum was verified. Each message that is not gone holds its key in `queue`. */
export function decodeChunkPage(bytes: Uint8Array, start: number, queue: KeysOwner): Chunk {
  const head = decodeHead(bytes, start)
  const { count, flags } = head
  const chunk = new Chunk(head.base)
  const form = flags & FLAG.narrow ? 'narrow' : flags & FLAG.shared ? 'shared' : 'wide'
  let at = chunk.batches.decode(bytes, start + HEAD_BYTES, head.batches, form)
  if (head.batches > 0) chunk.restored(count, head.recordBytes)
  if (flags & FLAG.gone) at = decodeGone(bytes, at, chunk)
  const columns =
    (flags & ANY_COLUMN) === 0 ? NO_COLUMNS : PAGE_COLUMNS.filter(({ flag }) => (flags & flag) !== 0)
  let indexes: readonly number[] = []
  if (flags & FLAG.listed) {
    indexes = decodeList(bytes, at, chunk, head.live)
    at += head.live * INDEX_BYTES
  } else if (columns.length > 0) {
    indexes = ALL_INDEXES.slice(0, count)
    chunk.columns.reserve(
      columns.flatMap(({ names }) => names),
      count,
    )
  }
  for (const column of columns) at = column.decode(bytes, at, chunk, indexes, queue)
  at = decodeWaiting(bytes, at, chunk, head.waiting)
  at = decodeRedriven(bytes, at, chunk, head.redriven)
  at = decodeDead(bytes, at, chunk, head.dead)
  if (flags & FLAG.retained) decodeRetained(bytes, at, chunk)
  if (chunk.isOnlyRetained) chunk.marks.list()
  else chunk.pack(0)
  chunk.dirty = false
  return chunk
}

// --- head ---

function encodeHead(bytes: Uint8Array, chunk: Chunk, waiting: number, flags: number): void {
  writeU64(bytes, 0, chunk.base)
  writeU64(bytes, 8, Math.round(chunk.bytes))
  writeU16(bytes, 16, chunk.count)
  writeU16(bytes, 18, chunk.batches.count)
  writeU16(bytes, 20, waiting)
  writeU16(bytes, 22, chunk.dead?.size ?? 0)
  writeU16(bytes, 24, chunk.redriven?.size ?? 0)
  writeU16(bytes, 26, chunk.live)
  writeU32(bytes, 28, flags)
}

interface Head {
  readonly base: number
  readonly recordBytes: number
  readonly count: number
  readonly batches: number
  readonly waiting: number
  readonly dead: number
  readonly redriven: number
  readonly live: number
  readonly flags: number
}

function decodeHead(bytes: Uint8Array, at: number): Head {
  return {
    base: readU64(bytes, at),
    recordBytes: readU64(bytes, at + 8),
    count: readU16(bytes, at + 16),
    batches: readU16(bytes, at + 18),
    waiting: readU16(bytes, at + 20),
    dead: readU16(bytes, at + 22),
    redriven: readU16(bytes, at + 24),
    live: readU16(bytes, at + 26),
    flags: readU32(bytes, at + 28),
  }
}

// --- which messages are gone ---

function encodeGone(bytes: Uint8Array, at: number, chunk: Chunk): number {
  for (let word = 0; word < CHUNK_WORDS; word++) at = writeWord(bytes, at, chunk.marks.goneWord(word))
  return at
}

function decodeGone(bytes: Uint8Array, at: number, chunk: Chunk): number {
  for (let word = 0; word < CHUNK_WORDS; word++, at += 4) {
    const gone = readU32(bytes, at)
    if (gone === 0) continue
    for (let bit = 0; bit < 32; bit++)
      if ((gone >>> bit) & 1) chunk.restoreGone(word * 32 + bit, word * 32 + bit + 1)
  }
  return at
}

function encodeList(bytes: Uint8Array, at: number, indexes: readonly number[]): number {
  for (const index of indexes) {
    writeU16(bytes, at, index)
    at += INDEX_BYTES
  }
  return at
}

function decodeList(bytes: Uint8Array, at: number, chunk: Chunk, live: number): number[] {
  const indexes: number[] = []
  let from = 0
  for (let i = 0; i < live; i++, at += INDEX_BYTES) {
    const index = readU16(bytes, at)
    indexes.push(index)
    chunk.restoreGone(from, index)
    from = index + 1
  }
  chunk.restoreGone(from, chunk.count)
  return indexes
}

// --- columns: one value for each of `indexes`; a column is present if any message of the chunk has a value in it ---

interface PageColumn {
  readonly flag: number
  /** Size of one value. */
  readonly bytes: number
  /** Columns of the chunk that hold the value. They are reserved together before a whole page is decoded. */
  readonly names: readonly ColumnName[]
  isIn(chunk: Chunk): boolean
  /** Returns the position after the last value, as `decode` does. */
  encode(bytes: Uint8Array, at: number, chunk: Chunk, indexes: readonly number[], queue: KeysOwner): number
  decode(bytes: Uint8Array, at: number, chunk: Chunk, indexes: readonly number[], queue: KeysOwner): number
}

const PRIORITY_COLUMN: PageColumn = {
  flag: FLAG.priorities,
  bytes: 1,
  names: ['charge'],
  isIn: (chunk) => !chunk.hasOnly(0),
  encode(bytes, at, chunk, indexes) {
    for (const index of indexes) bytes[at++] = chunk.priorityAt(index)
    return at
  },
  decode(bytes, at, chunk, indexes) {
    for (const index of indexes) chunk.setPriority(index, bytes[at++]!)
    return at
  },
}

const EXPIRY_COLUMN: PageColumn = {
  flag: FLAG.expiries,
  bytes: 6,
  names: ['expiry', 'expiryHigh'],
  isIn: (chunk) => chunk.hasExpiries,
  encode(bytes, at, chunk, indexes) {
    for (const index of indexes) {
      writeU48(bytes, at, chunk.expiryAt(index))
      at += 6
    }
    return at
  },
  decode(bytes, at, chunk, indexes) {
    for (const index of indexes) {
      const expiryMs = readU48(bytes, at)
      if (expiryMs !== 0) chunk.setExpiry(index, expiryMs)
      at += 6
    }
    return at
  },
}

const KEY_COLUMN: PageColumn = {
  flag: FLAG.keys,
  bytes: 8,
  names: ['key', 'next', 'previous'],
  isIn: (chunk) => chunk.hasKeys,
  encode(bytes, at, chunk, indexes, queue) {
    for (const index of indexes) {
      // The slot of a message that is gone may belong to another key by now.
      const slot = chunk.isGone(index) ? NONE : chunk.keyAt(index)
      at = writeWord(bytes, at, slot === NONE ? 0 : queue.keys.low(slot))
      at = writeWord(bytes, at, slot === NONE ? 0 : queue.keys.high(slot))
    }
    return at
  },
  decode(bytes, at, chunk, indexes, queue) {
    for (const index of indexes) {
      const low = readU32(bytes, at)
      const high = readU32(bytes, at + 4)
      if ((low | high) !== 0) chunk.setKey(index, queue.keys.hold(low, high))
      at += 8
    }
    return at
  },
}

const ID_COLUMN: PageColumn = {
  flag: FLAG.ids,
  bytes: ID_WORDS * 4,
  names: ['id', 'id1', 'id2', 'id3'],
  isIn: (chunk) => chunk.hasIds,
  encode(bytes, at, chunk, indexes) {
    for (const index of indexes) for (const word of chunk.idAt(index)) at = writeWord(bytes, at, word)
    return at
  },
  decode(bytes, at, chunk, indexes) {
    const words = new Uint32Array(ID_WORDS)
    for (const index of indexes) {
      for (let word = 0; word < ID_WORDS; word++, at += 4) words[word] = readU32(bytes, at)
      if (isId(words, 0)) chunk.setId(index, words, 0)
    }
    return at
  },
}

const SIZE_COLUMN: PageColumn = {
  flag: FLAG.sizes,
  bytes: 4,
  names: ['size'],
  isIn: (chunk) => chunk.hasSizes,
  encode(bytes, at, chunk, indexes) {
    for (const index of indexes) at = writeWord(bytes, at, chunk.sizeAt(index))
    return at
  },
  decode(bytes, at, chunk, indexes) {
    for (const index of indexes) {
      chunk.setSize(index, readU32(bytes, at))
      at += 4
    }
    return at
  },
}

/** The columns, in the order of the page. */
const PAGE_COLUMNS: readonly PageColumn[] = [
  PRIORITY_COLUMN,
  EXPIRY_COLUMN,
  KEY_COLUMN,
  ID_COLUMN,
  SIZE_COLUMN,
]
const ANY_COLUMN = PAGE_COLUMNS.reduce((flags, { flag }) => flags | flag, 0)
const NO_COLUMNS: readonly PageColumn[] = []

// --- messages with a due time ---

// The due time of a dead message has no meaning.
function waitingIn(chunk: Chunk): number[] {
  if (!chunk.hasDues) return []
  return chunk.liveIndexes().filter((index) => chunk.dueAt(index) !== 0 && !chunk.isDead(index))
}

function encodeWaiting(bytes: Uint8Array, at: number, chunk: Chunk, waiting: readonly number[]): number {
  for (const index of waiting) {
    writeU32(bytes, at, withAttempts(index, chunk.attemptsAt(index)))
    writeU64(bytes, at + 4, chunk.dueAt(index))
    at += WAITING_BYTES
  }
  return at
}

function decodeWaiting(bytes: Uint8Array, at: number, chunk: Chunk, waiting: number): number {
  for (let i = 0; i < waiting; i++, at += WAITING_BYTES) {
    const word = readU32(bytes, at)
    chunk.setDue(word & INDEX_MASK, word >>> INDEX_BITS, readU64(bytes, at + 4))
  }
  return at
}

// --- redriven messages ---

function redrivenBytes({ redriven }: Chunk): number {
  return redriven === undefined ? 0 : redriven.size * REDRIVEN_BYTES
}

function encodeRedriven(bytes: Uint8Array, at: number, chunk: Chunk): number {
  for (const [index, { redrives, attempts }] of chunk.redriven ?? []) {
    writeU16(bytes, at, index)
    writeU16(bytes, at + 2, Math.min(redrives, 0xffff))
    writeU32(bytes, at + 4, attempts)
    at += REDRIVEN_BYTES
  }
  return at
}

function decodeRedriven(bytes: Uint8Array, at: number, chunk: Chunk, redriven: number): number {
  if (redriven > 0) chunk.redriven = new Map()
  for (let i = 0; i < redriven; i++, at += REDRIVEN_BYTES) {
    chunk.redriven!.set(readU16(bytes, at), {
      redrives: readU16(bytes, at + 2),
      attempts: readU32(bytes, at + 4),
    })
  }
  return at
}

// --- dead messages ---

function deadBytes({ dead }: Chunk): number {
  if (dead === undefined) return 0
  let bytes = dead.size * DEAD_BYTES
  for (const index of dead.indexes()) bytes += textBytes(dead.get(index)!.reason)
  return bytes
}

function encodeDead(bytes: Uint8Array, at: number, { dead }: Chunk): number {
  for (const index of dead?.indexes() ?? []) {
    const { attempts, death, timeMs, reason, isMoving } = dead!.get(index)!
    writeU32(bytes, at, withAttempts(index, attempts))
    bytes[at + 4] = death | (isMoving ? MOVING : 0)
    writeU64(bytes, at + 8, timeMs)
    const reasonBytes = writeText(bytes, at + DEAD_BYTES, reason)
    writeU16(bytes, at + 6, reasonBytes)
    at += DEAD_BYTES + reasonBytes
  }
  return at
}

function decodeDead(bytes: Uint8Array, at: number, chunk: Chunk, count: number): number {
  if (count === 0) return at
  const dead = (chunk.dead = new DeadMessages())
  for (let i = 0; i < count; i++) {
    const word = readU32(bytes, at)
    const index = word & INDEX_MASK
    const reasonAt = at + DEAD_BYTES
    const reasonEnd = reasonAt + readU16(bytes, at + 6)
    dead.set(index, {
      attempts: word >>> INDEX_BITS,
      death: (bytes[at + 4]! & ~MOVING) as Death,
      isMoving: (bytes[at + 4]! & MOVING) !== 0,
      bytes: Math.round(chunk.bytesAt(index)),
      timeMs: readU64(bytes, at + 8),
      reason: readText(bytes, reasonAt, reasonEnd),
    })
    at = reasonEnd
  }
  return at
}

// --- retained messages ---

function retainedBytes({ retained }: Chunk): number {
  return retained === undefined ? 0 : RETAINED_BYTES
}

function encodeRetained(bytes: Uint8Array, at: number, { retained }: Chunk): void {
  if (retained === undefined) return
  writeU64(bytes, at, retained.newestMs)
  writeU64(bytes, at + 8, Math.round(retained.bytes))
  at += 16
  for (const word of retained.words) at = writeWord(bytes, at, word)
}

function decodeRetained(bytes: Uint8Array, at: number, chunk: Chunk): void {
  const words = Uint32Array.from({ length: CHUNK_WORDS }, (_, word) => readU32(bytes, at + 16 + word * 4))
  chunk.retained = new Retained(words, readU64(bytes, at + 8), readU64(bytes, at))
}

function withAttempts(index: number, attempts: number): number {
  return ((attempts << INDEX_BITS) | index) >>> 0
}

function writeWord(bytes: Uint8Array, at: number, word: number): number {
  writeU32(bytes, at, word)
  return at + 4
}
