/**
 * State pages: one chunk or one queue as it stood at some position of the log. The newest page of each, together with
 * the facts behind it, is the whole state; so older parts of the log can go.
 *
 * Chunk: u64 base · u64 record bytes · u16 count · u16 batches · u16 waiting · u16 dead · u16 lives · u16 0 · u32 flags
 *   (1 gone, 2 priorities, 4 expiries, 8 keys, 16 ids, 32 sizes, 64 narrow) · batches of u16 first index, u64 position,
 *   u48 time, u32 bytes; narrow: u16 first index, u64 position and u48 time of the first one, then all of u16 first index,
 *   u32 position and u32 time above those of that one, u16 bytes ·
 *   128 B of gone bits, index 0 in the lowest · count × u8 priority · count × u48 expiry · count × two u32 of the key's
 *   hash · count × four u32 of the id's hash · count × u32 record size · waiting of u16 index, u8 attempts, u8 0,
 *   u64 due · lives of u16 index, u16 redrives, u32 attempts in earlier lives · dead of u16 index, u8 attempts,
 *   u8 death (128: to be moved), u16 reason bytes, u16 0, u64 time, reason.
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
import { CHUNK_MESSAGES, CHUNK_WORDS, countRange } from './bits.js'
import { Chunk, type Death } from './chunk.js'
import { DeadMessages } from './dead.js'
import { ID_WORDS } from './hash.js'
import type { Keys } from './keys.js'
import type { Queue, QueueDefinition } from './queue.js'

const HEAD_BYTES = 32
const GONE_BYTES = CHUNK_WORDS * 4
const WAITING_BYTES = 12
const EXPIRY_BYTES = 6
const KEY_BYTES = 8
const ID_BYTES = ID_WORDS * 4
const SIZE_BYTES = 4
const LIVES_BYTES = 8
const FLAG = { gone: 1, priorities: 2, expiries: 4, keys: 8, ids: 16, sizes: 32, narrow: 64 } as const
const DEAD_BYTES = 16
const MOVING = 128

export function encodeChunkPage(chunk: Chunk, keys: Keys): Uint8Array {
  const { count, gone, priorities, expiries, ids, sizes } = chunk
  const waiting: number[] = []
  if (chunk.dues !== undefined) {
    for (let index = 0; index < count; index++) {
      if (chunk.dues[index] !== 0 && !chunk.isGone(index) && chunk.dead?.has(index) !== true)
        waiting.push(index)
    }
  }
  const dead = chunk.dead?.size ?? 0
  const lives = chunk.lives?.size ?? 0
  let size = HEAD_BYTES + chunk.batches.pageBytes + waiting.length * WAITING_BYTES + dead * DEAD_BYTES
  size += lives * LIVES_BYTES
  if (gone !== undefined) size += GONE_BYTES
  if (priorities !== undefined) size += count
  if (expiries !== undefined) size += count * EXPIRY_BYTES
  if (chunk.keys !== undefined) size += count * KEY_BYTES
  if (ids !== undefined) size += count * ID_BYTES
  if (sizes !== undefined) size += count * SIZE_BYTES
  for (const index of chunk.dead?.indexes() ?? []) size += textBytes(chunk.dead!.get(index)!.reason)
  const bytes = new Uint8Array(size)
  writeU64(bytes, 0, chunk.base)
  writeU64(bytes, 8, Math.round(chunk.bytes))
  writeU16(bytes, 16, count)
  writeU16(bytes, 18, chunk.batches.count)
  writeU16(bytes, 20, waiting.length)
  writeU16(bytes, 22, dead)
  writeU16(bytes, 24, lives)
  writeU32(
    bytes,
    28,
    (gone === undefined ? 0 : FLAG.gone) |
      (priorities === undefined ? 0 : FLAG.priorities) |
      (expiries === undefined ? 0 : FLAG.expiries) |
      (chunk.keys === undefined ? 0 : FLAG.keys) |
      (ids === undefined ? 0 : FLAG.ids) |
      (sizes === undefined ? 0 : FLAG.sizes) |
      (chunk.batches.isNarrow ? FLAG.narrow : 0),
  )
  let at = chunk.batches.encode(bytes, HEAD_BYTES)
  if (gone !== undefined) for (const word of gone) at = writeWord(bytes, at, word)
  if (priorities !== undefined) {
    bytes.set(priorities.subarray(0, count), at)
    at += count
  }
  if (expiries !== undefined) {
    for (let index = 0; index < count; index++, at += EXPIRY_BYTES) writeU48(bytes, at, expiries[index]!)
  }
  if (chunk.keys !== undefined) {
    for (let index = 0; index < count; index++, at += KEY_BYTES) {
      // The slot of a message that is gone may be another key's by now.
      const slot = chunk.isGone(index) ? -1 : chunk.keyAt(index)
      writeU32(bytes, at, slot === -1 ? 0 : keys.low(slot))
      writeU32(bytes, at + 4, slot === -1 ? 0 : keys.high(slot))
    }
  }
  if (ids !== undefined) for (let i = 0; i < count * ID_WORDS; i++) at = writeWord(bytes, at, ids[i]!)
  if (sizes !== undefined) for (let i = 0; i < count; i++) at = writeWord(bytes, at, sizes[i]!)
  for (const index of waiting) {
    writeU16(bytes, at, index)
    bytes[at + 2] = chunk.attemptsAt(index)
    writeU64(bytes, at + 4, chunk.dues![index]!)
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
      writeU16(bytes, at, index)
      bytes[at + 2] = attempts
      bytes[at + 3] = death | (isMoving ? MOVING : 0)
      writeU64(bytes, at + 8, timeMs)
      const reasonBytes = writeText(bytes, at + DEAD_BYTES, reason)
      writeU16(bytes, at + 4, reasonBytes)
      at += DEAD_BYTES + reasonBytes
    }
  }
  return bytes
}

function writeWord(bytes: Uint8Array, at: number, word: number): number {
  writeU32(bytes, at, word)
  return at + 4
}

/** The bytes have passed their checksum. Each message that is not gone holds its key in `keys`. */
export function decodeChunkPage(bytes: Uint8Array, start: number, keys: Keys): Chunk {
  const chunk = new Chunk(readU64(bytes, start))
  const recordBytes = readU64(bytes, start + 8)
  const count = readU16(bytes, start + 16)
  const batches = readU16(bytes, start + 18)
  const waiting = readU16(bytes, start + 20)
  const dead = readU16(bytes, start + 22)
  const lives = readU16(bytes, start + 24)
  const flags = readU32(bytes, start + 28)
  let at = chunk.batches.decode(bytes, start + HEAD_BYTES, batches, (flags & FLAG.narrow) !== 0)
  if (batches > 0) chunk.restored(count, recordBytes)
  if (flags & FLAG.gone) {
    chunk.gone = new Uint32Array(CHUNK_WORDS)
    for (let word = 0; word < CHUNK_WORDS; word++, at += 4) chunk.gone[word] = readU32(bytes, at)
    chunk.live = count - countRange(chunk.gone, 0, Math.min(count, CHUNK_MESSAGES))
  }
  if (flags & FLAG.priorities) {
    for (let index = 0; index < count; index++, at++) chunk.setPriority(index, bytes[at]!)
  }
  if (flags & FLAG.expiries) {
    for (let index = 0; index < count; index++, at += EXPIRY_BYTES) {
      const expiryMs = readU48(bytes, at)
      if (expiryMs !== 0) chunk.setExpiry(index, expiryMs)
    }
  }
  if (flags & FLAG.keys) {
    for (let index = 0; index < count; index++, at += KEY_BYTES) {
      const low = readU32(bytes, at)
      const high = readU32(bytes, at + 4)
      if ((low | high) !== 0) chunk.setKey(index, keys.hold(low, high))
    }
  }
  if (flags & FLAG.ids) {
    chunk.ids = new Uint32Array(CHUNK_MESSAGES * ID_WORDS)
    for (let i = 0; i < count * ID_WORDS; i++, at += 4) chunk.ids[i] = readU32(bytes, at)
  }
  if (flags & FLAG.sizes) {
    for (let index = 0; index < count; index++, at += SIZE_BYTES) chunk.setSize(index, readU32(bytes, at))
  }
  for (let i = 0; i < waiting; i++, at += WAITING_BYTES) {
    chunk.setDue(readU16(bytes, at), bytes[at + 2]!, readU64(bytes, at + 4))
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
    const reasonBytes = readU16(bytes, at + 4)
    const reasonAt = at + DEAD_BYTES
    chunk.dead!.set(readU16(bytes, at), {
      attempts: bytes[at + 2]!,
      death: (bytes[at + 3]! & ~MOVING) as Death,
      isMoving: (bytes[at + 3]! & MOVING) !== 0,
      bytes: Math.fround(chunk.bytesAt(readU16(bytes, at))),
      timeMs: readU64(bytes, at + 8),
      reason: readText(bytes, reasonAt, reasonAt + reasonBytes),
    })
    at = reasonAt + reasonBytes
  }
  chunk.dirty = false
  return chunk
}

export interface QueuePage extends QueueDefinition {
  readonly next: number
  readonly redeliveredBelow: number
  readonly carried: number
  readonly counts: QueueCounts
  /** Of segments with settled messages that are kept: number, last settle, bytes. */
  readonly retained: readonly (readonly [number, number, number])[]
}

export function encodeDefinition(queue: Queue): string {
  const { name, options, createdAtMs, paused, seed } = queue
  return JSON.stringify({ name, options, createdAtMs, paused, seed } satisfies QueueDefinition)
}

export function encodeQueuePage(queue: Queue, retained: QueuePage['retained']): Uint8Array {
  // Named one by one: spread, the definition took half the time of a page, and a checkpoint writes thousands.
  const page: QueuePage = {
    name: queue.name,
    options: queue.options,
    createdAtMs: queue.createdAtMs,
    paused: queue.paused,
    seed: queue.seed,
    next: queue.next,
    redeliveredBelow: queue.redeliveredBelow,
    carried: queue.carried,
    counts: queue.counts,
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
