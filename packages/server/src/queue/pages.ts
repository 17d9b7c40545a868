/**
 * State pages: one chunk or one queue as it stood at some position of the log. The newest page of each, together with
 * the facts behind it, is the whole state; so older parts of the log can go.
 *
 * Chunk: u64 base · u64 record bytes · u16 count · u16 batches · u16 waiting · u16 dead · u16 lives · u16 live · u32 flags
 *   (1 gone, 2 priorities, 4 expiries, 8 keys, 16 ids, 32 sizes, 64 narrow, 128 listed) · batches of u16 first index, u64 position,
 *   u48 time, u32 bytes; narrow: u16 first index, u64 position and u48 time of the first one, then all of u16 first index,
 *   u32 position and u32 time above those of that one, u16 bytes ·
 *   128 B of gone bits, index 0 in the lowest; or listed: live × u16 index, all others are gone · then of each message,
 *   or of each that is listed: u8 priority; u48 expiry; two u32 of the key's hash; four u32 of the id's hash; u32 record
 *   size · waiting of u32 index and attempts, u64 due · lives of u16 index, u16 redrives, u32 attempts in earlier
 *   lives · dead of u32 index and attempts, u8 death (128: to be moved), u8 0, u16 reason bytes, u64 time, reason. Index and
 *   attempts as one: index in the low 10 bits.
 * Queue: the definition and the counters as JSON text.
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
  type QueueCounts,
} from '@sluice/protocol'
import { CHUNK_MESSAGES, CHUNK_WORDS } from './bits.js'
import { Chunk, type Death } from './chunk.js'
import type { ColumnName } from './columns.js'
import { DeadMessages } from './dead.js'
import { ID_WORDS } from './hash.js'
import type { Keys } from './keys.js'
import type { QueueDefinition } from './contents.js'
import type { Queue } from './queue.js'

const HEAD_BYTES = 32
const GONE_BYTES = CHUNK_WORDS * 4
const WAITING_BYTES = 12
const INDEX_BYTES = 2
const EXPIRY_BYTES = 6
const KEY_BYTES = 8
const ID_BYTES = ID_WORDS * 4
const SIZE_BYTES = 4
const LIVES_BYTES = 8
const FLAG = {
  gone: 1,
  priorities: 2,
  expiries: 4,
  keys: 8,
  ids: 16,
  sizes: 32,
  narrow: 64,
  listed: 128,
} as const
const DEAD_BYTES = 16
const MOVING = 128
/** Live messages are listed where they are fewer than one of these. */
const LISTED_SHARE = 4
const INDEX_BITS = 10
const ALL_INDEXES: readonly number[] = Array.from({ length: CHUNK_MESSAGES }, (_, index) => index)
const INDEX_MASK = 2 ** INDEX_BITS - 1

export function encodeChunkPage(chunk: Chunk, keys: Keys): Uint8Array {
  const { count, live } = chunk
  const isListed = live * LISTED_SHARE < count
  const waiting: number[] = []
  if (chunk.hasDues) {
    for (const index of chunk.liveIndexes())
      if (chunk.dueAt(index) !== 0 && !chunk.isDead(index)) waiting.push(index)
  }
  const dead = chunk.dead?.size ?? 0
  const lives = chunk.lives?.size ?? 0
  const hasPriorities = !chunk.hasOnly(0)
  const hasGone = !isListed && live < count
  let rowBytes = isListed ? INDEX_BYTES : 0
  if (hasPriorities) rowBytes += 1
  if (chunk.hasExpiries) rowBytes += EXPIRY_BYTES
  if (chunk.hasKeys) rowBytes += KEY_BYTES
  if (chunk.hasIds) rowBytes += ID_BYTES
  if (chunk.hasSizes) rowBytes += SIZE_BYTES
  // Of most chunks nothing is said of single messages.
  const indexes = isListed ? chunk.liveIndexes() : rowBytes > 0 ? ALL_INDEXES.slice(0, count) : []
  let size = HEAD_BYTES + chunk.batches.pageBytes + (hasGone ? GONE_BYTES : 0) + indexes.length * rowBytes
  size += waiting.length * WAITING_BYTES + dead * DEAD_BYTES + lives * LIVES_BYTES
  for (const index of chunk.dead?.indexes() ?? []) size += textBytes(chunk.dead!.get(index)!.reason)
  const bytes = new Uint8Array(size)
  writeU64(bytes, 0, chunk.base)
  writeU64(bytes, 8, Math.round(chunk.bytes))
  writeU16(bytes, 16, count)
  writeU16(bytes, 18, chunk.batches.count)
  writeU16(bytes, 20, waiting.length)
  writeU16(bytes, 22, dead)
  writeU16(bytes, 24, lives)
  writeU16(bytes, 26, live)
  writeU32(
    bytes,
    28,
    (hasGone ? FLAG.gone : 0) |
      (hasPriorities ? FLAG.priorities : 0) |
      (chunk.hasExpiries ? FLAG.expiries : 0) |
      (chunk.hasKeys ? FLAG.keys : 0) |
      (chunk.hasIds ? FLAG.ids : 0) |
      (chunk.hasSizes ? FLAG.sizes : 0) |
      (chunk.batches.isNarrow ? FLAG.narrow : 0) |
      (isListed ? FLAG.listed : 0),
  )
  let at = chunk.batches.encode(bytes, HEAD_BYTES)
  if (hasGone)
    for (let word = 0; word < CHUNK_WORDS; word++) at = writeWord(bytes, at, chunk.marks.goneWord(word))
  if (isListed) for (const index of indexes) at = writeIndex(bytes, at, index)
  if (hasPriorities) for (const index of indexes) bytes[at++] = chunk.priorityAt(index)
  if (chunk.hasExpiries) {
    for (const index of indexes) {
      writeU48(bytes, at, chunk.expiryAt(index))
      at += EXPIRY_BYTES
    }
  }
  if (chunk.hasKeys) {
    for (const index of indexes) {
      // The slot of a message that is gone may be another key's by now.
      const slot = chunk.isGone(index) ? -1 : chunk.keyAt(index)
      at = writeWord(bytes, at, slot === -1 ? 0 : keys.low(slot))
      at = writeWord(bytes, at, slot === -1 ? 0 : keys.high(slot))
    }
  }
  if (chunk.hasIds)
    for (const index of indexes) for (const word of chunk.idAt(index)) at = writeWord(bytes, at, word)
  if (chunk.hasSizes) for (const index of indexes) at = writeWord(bytes, at, chunk.sizeAt(index))
  for (const index of waiting) {
    writeU32(bytes, at, withAttempts(index, chunk.attemptsAt(index)))
    writeU64(bytes, at + 4, chunk.dueAt(index))
    at += WAITING_BYTES
  }
  for (const [index, { redrives, attempts }] of chunk.lives ?? []) {
    writeU16(bytes, at, index)
    writeU16(bytes, at + 2, Math.min(redrives, 0xffff))
    writeU32(bytes, at + 4, attempts)
    at += LIVES_BYTES
  }
  if (chunk.dead !== undefined) {
    for (const index of chunk.dead.indexes()) {
      const { attempts, death, timeMs, reason, isMoving } = chunk.dead.get(index)!
      writeU32(bytes, at, withAttempts(index, attempts))
      bytes[at + 4] = death | (isMoving ? MOVING : 0)
      writeU64(bytes, at + 8, timeMs)
      const reasonBytes = writeText(bytes, at + DEAD_BYTES, reason)
      writeU16(bytes, at + 6, reasonBytes)
      at += DEAD_BYTES + reasonBytes
    }
  }
  return bytes
}

function withAttempts(index: number, attempts: number): number {
  return ((attempts << INDEX_BITS) | index) >>> 0
}

function writeIndex(bytes: Uint8Array, at: number, index: number): number {
  writeU16(bytes, at, index)
  return at + INDEX_BYTES
}

function writeWord(bytes: Uint8Array, at: number, word: number): number {
  writeU32(bytes, at, word)
  return at + 4
}

const COLUMNS_BY_FLAG: readonly (readonly [number, readonly ColumnName[]])[] = [
  [FLAG.priorities, ['charge']],
  [FLAG.expiries, ['expiry', 'expiryHigh']],
  [FLAG.keys, ['key', 'next', 'previous']],
  [FLAG.ids, ['id', 'id1', 'id2', 'id3']],
  [FLAG.sizes, ['size']],
]

/** The bytes have passed their checksum. Each message that is not gone holds its key in `keys`. */
export function decodeChunkPage(bytes: Uint8Array, start: number, keys: Keys): Chunk {
  const chunk = new Chunk(readU64(bytes, start))
  const recordBytes = readU64(bytes, start + 8)
  const count = readU16(bytes, start + 16)
  const batches = readU16(bytes, start + 18)
  const waiting = readU16(bytes, start + 20)
  const dead = readU16(bytes, start + 22)
  const lives = readU16(bytes, start + 24)
  const live = readU16(bytes, start + 26)
  const flags = readU32(bytes, start + 28)
  let at = chunk.batches.decode(bytes, start + HEAD_BYTES, batches, (flags & FLAG.narrow) !== 0)
  if (batches > 0) chunk.restored(count, recordBytes)
  if (flags & FLAG.gone) {
    for (let word = 0; word < CHUNK_WORDS; word++, at += 4) {
      const gone = readU32(bytes, at)
      if (gone === 0) continue
      for (let bit = 0; bit < 32; bit++)
        if ((gone >>> bit) & 1) chunk.restoreGone(word * 32 + bit, word * 32 + bit + 1)
    }
  }
  const isListed = (flags & FLAG.listed) !== 0
  const indexes: number[] = []
  if (isListed) {
    let from = 0
    for (let i = 0; i < live; i++, at += INDEX_BYTES) {
      const index = readU16(bytes, at)
      indexes.push(index)
      chunk.restoreGone(from, index)
      from = index + 1
    }
    chunk.restoreGone(from, count)
  } else {
    const columns = COLUMNS_BY_FLAG.filter(([flag]) => (flags & flag) !== 0).flatMap(([, names]) => names)
    if (columns.length > 0) {
      for (let index = 0; index < count; index++) indexes.push(index)
      chunk.columns.reserve(columns, count)
    }
  }
  if (flags & FLAG.priorities) for (const index of indexes) chunk.setPriority(index, bytes[at++]!)
  if (flags & FLAG.expiries) {
    for (const index of indexes) {
      const expiryMs = readU48(bytes, at)
      if (expiryMs !== 0) chunk.setExpiry(index, expiryMs)
      at += EXPIRY_BYTES
    }
  }
  if (flags & FLAG.keys) {
    for (const index of indexes) {
      const low = readU32(bytes, at)
      const high = readU32(bytes, at + 4)
      if ((low | high) !== 0) chunk.setKey(index, keys.hold(low, high))
      at += KEY_BYTES
    }
  }
  if (flags & FLAG.ids) {
    const words = new Uint32Array(ID_WORDS)
    for (const index of indexes) {
      for (let word = 0; word < ID_WORDS; word++, at += 4) words[word] = readU32(bytes, at)
      if ((words[0]! | words[1]! | words[2]! | words[3]!) !== 0) chunk.setId(index, words, 0)
    }
  }
  if (flags & FLAG.sizes) {
    for (const index of indexes) {
      chunk.setSize(index, readU32(bytes, at))
      at += SIZE_BYTES
    }
  }
  for (let i = 0; i < waiting; i++, at += WAITING_BYTES) {
    const word = readU32(bytes, at)
    chunk.setDue(word & INDEX_MASK, word >>> INDEX_BITS, readU64(bytes, at + 4))
  }
  if (lives > 0) chunk.lives = new Map()
  for (let i = 0; i < lives; i++, at += LIVES_BYTES) {
    chunk.lives!.set(readU16(bytes, at), {
      redrives: readU16(bytes, at + 2),
      attempts: readU32(bytes, at + 4),
    })
  }
  if (dead > 0) chunk.dead = new DeadMessages()
  for (let i = 0; i < dead; i++) {
    const word = readU32(bytes, at)
    const index = word & INDEX_MASK
    const reasonBytes = readU16(bytes, at + 6)
    const reasonAt = at + DEAD_BYTES
    chunk.dead!.set(index, {
      attempts: word >>> INDEX_BITS,
      death: (bytes[at + 4]! & ~MOVING) as Death,
      isMoving: (bytes[at + 4]! & MOVING) !== 0,
      bytes: Math.round(chunk.bytesAt(index)),
      timeMs: readU64(bytes, at + 8),
      reason: readText(bytes, reasonAt, reasonAt + reasonBytes),
    })
    at = reasonAt + reasonBytes
  }
  chunk.pack(0)
  chunk.dirty = false
  return chunk
}

export interface QueuePage extends QueueDefinition {
  readonly next: number
  readonly redeliveredBelow: number
  /** Subscriptions of the boot in which the page was written that ended and gave messages back. */
  readonly ended?: readonly number[]
  readonly carried: number
  readonly counts: QueueCounts
  /** Of segments with settled messages that are kept: number, last settle, bytes. */
  readonly retained: readonly (readonly [number, number, number])[]
}

export function encodeDefinition(queue: Queue): string {
  const { name, options, createdAtMs, paused, seed, idsFrom } = queue
  return JSON.stringify({ name, options, createdAtMs, paused, seed, idsFrom } satisfies QueueDefinition)
}

export function encodeQueuePage(queue: Queue, retained: QueuePage['retained']): Uint8Array {
  // Named one by one: spread, the definition took half the time of a page, and a checkpoint writes thousands.
  const page: QueuePage = {
    name: queue.name,
    options: queue.options,
    createdAtMs: queue.createdAtMs,
    paused: queue.paused,
    seed: queue.seed,
    idsFrom: queue.idsFrom,
    next: queue.next,
    redeliveredBelow: queue.redeliveredBelow,
    ...(queue.former.ended.length === 0 ? {} : { ended: queue.former.ended }),
    carried: queue.carried,
    // What the facts before the page say, so that the page and they agree.
    counts: { ...queue.counts, ...queue.tallied },
    retained,
  }
  const text = JSON.stringify(page)
  const bytes = new Uint8Array(textBytes(text))
  writeText(bytes, 0, text)
  return bytes
}

export function decodeQueuePage(bytes: Uint8Array, start: number, end: number): QueuePage {
  return JSON.parse(readText(bytes, start, end)) as QueuePage
}
