/**
 * State pages: one chunk or one queue as it stood at some position of the log. The newest page of each, together with
 * the facts behind it, is the whole state; so older parts of the log can go.
 *
 * Chunk: u64 base · u64 record bytes · u16 count · u16 batches · u16 waiting · u16 dead · u32 flags (1 gone,
 *   2 priorities, 4 expiries) · batches of u16 first index, u64 position, u48 time · 128 B of gone bits, index 0 in the
 *   lowest · count × u8 priority · count × u48 expiry · waiting of u16 index, u8 attempts, u8 0, u64 due · dead of u16 index, u8 attempts, u8 death, u16 reason bytes,
 *   u16 0, u64 time, reason.
 * Queue: the definition as JSON text.
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
  type QueueOptions,
} from '@sluice/protocol'
import { CHUNK_MESSAGES, CHUNK_WORDS, countRange } from './bits.js'
import { Chunk, type Death } from './chunk.js'
import type { Queue } from './queue.js'

const HEAD_BYTES = 28
const BATCH_BYTES = 16
const GONE_BYTES = CHUNK_WORDS * 4
const WAITING_BYTES = 12
const EXPIRY_BYTES = 6
const FLAG = { gone: 1, priorities: 2, expiries: 4 } as const
const DEAD_BYTES = 16

export function encodeChunkPage(chunk: Chunk): Uint8Array {
  const { count, gone, priorities, expiries } = chunk
  const waiting: number[] = []
  if (chunk.dues !== undefined) {
    for (let index = 0; index < count; index++) {
      if (chunk.dues[index] !== 0 && !chunk.isGone(index) && chunk.dead?.has(index) !== true)
        waiting.push(index)
    }
  }
  const dead = chunk.dead?.size ?? 0
  let size = HEAD_BYTES + chunk.batches * BATCH_BYTES + waiting.length * WAITING_BYTES + dead * DEAD_BYTES
  if (gone !== undefined) size += GONE_BYTES
  if (priorities !== undefined) size += count
  if (expiries !== undefined) size += count * EXPIRY_BYTES
  if (chunk.dead !== undefined) for (const { reason } of chunk.dead.values()) size += textBytes(reason)
  const bytes = new Uint8Array(size)
  writeU64(bytes, 0, chunk.base)
  writeU64(bytes, 8, Math.round(chunk.bytes))
  writeU16(bytes, 16, count)
  writeU16(bytes, 18, chunk.batches)
  writeU16(bytes, 20, waiting.length)
  writeU16(bytes, 22, dead)
  writeU32(
    bytes,
    24,
    (gone === undefined ? 0 : FLAG.gone) |
      (priorities === undefined ? 0 : FLAG.priorities) |
      (expiries === undefined ? 0 : FLAG.expiries),
  )
  let at = HEAD_BYTES
  for (let batch = 0; batch < chunk.batches; batch++, at += BATCH_BYTES) {
    writeU16(bytes, at, chunk.batchStart(batch))
    writeU64(bytes, at + 2, chunk.batchPosition(batch))
    writeU48(bytes, at + 10, chunk.batchTime(batch))
  }
  if (gone !== undefined) for (const word of gone) at = writeWord(bytes, at, word)
  if (priorities !== undefined) {
    bytes.set(priorities.subarray(0, count), at)
    at += count
  }
  if (expiries !== undefined) {
    for (let index = 0; index < count; index++, at += EXPIRY_BYTES) writeU48(bytes, at, expiries[index]!)
  }
  for (const index of waiting) {
    writeU16(bytes, at, index)
    bytes[at + 2] = chunk.attemptsAt(index)
    writeU64(bytes, at + 4, chunk.dues![index]!)
    at += WAITING_BYTES
  }
  if (chunk.dead !== undefined) {
    for (const [index, { attempts, death, timeMs, reason }] of chunk.dead) {
      writeU16(bytes, at, index)
      bytes[at + 2] = attempts
      bytes[at + 3] = death
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

/** The bytes have passed their checksum. */
export function decodeChunkPage(bytes: Uint8Array, start: number): Chunk {
  const chunk = new Chunk(readU64(bytes, start))
  const recordBytes = readU64(bytes, start + 8)
  const count = readU16(bytes, start + 16)
  const batches = readU16(bytes, start + 18)
  const waiting = readU16(bytes, start + 20)
  const dead = readU16(bytes, start + 22)
  let at = start + HEAD_BYTES
  if (batches > 0) chunk.count = readU16(bytes, at)
  for (let batch = 0; batch < batches; batch++, at += BATCH_BYTES) {
    const end = batch + 1 < batches ? readU16(bytes, at + BATCH_BYTES) : count
    chunk.append(end, readU64(bytes, at + 2), readU48(bytes, at + 10), 0)
  }
  chunk.bytes = recordBytes
  const flags = readU32(bytes, start + 24)
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
  for (let i = 0; i < waiting; i++, at += WAITING_BYTES) {
    chunk.setDue(readU16(bytes, at), bytes[at + 2]!, readU64(bytes, at + 4))
  }
  if (dead > 0) chunk.dead = new Map()
  for (let i = 0; i < dead; i++) {
    const reasonBytes = readU16(bytes, at + 4)
    const reasonAt = at + DEAD_BYTES
    chunk.dead!.set(readU16(bytes, at), {
      attempts: bytes[at + 2]!,
      death: bytes[at + 3] as Death,
      timeMs: readU64(bytes, at + 8),
      reason: readText(bytes, reasonAt, reasonAt + reasonBytes),
    })
    at = reasonAt + reasonBytes
  }
  chunk.dirty = false
  return chunk
}

/** What makes a queue what it is, beside its messages. */
export interface QueueDefinition {
  readonly name: string
  readonly options: QueueOptions
  readonly createdAtMs: number
}

export interface QueuePage extends QueueDefinition {
  readonly next: number
  readonly redeliveredBelow: number
  readonly purged: number
  readonly expired: number
  readonly redelivered: number
}

export function encodeDefinition(queue: Queue): string {
  const definition: QueueDefinition = {
    name: queue.name,
    options: queue.options,
    createdAtMs: queue.createdAtMs,
  }
  return JSON.stringify(definition)
}

export function encodeQueuePage(queue: Queue): Uint8Array {
  const page: QueuePage = {
    name: queue.name,
    options: queue.options,
    createdAtMs: queue.createdAtMs,
    next: queue.next,
    redeliveredBelow: queue.redeliveredBelow,
    purged: queue.purged,
    expired: queue.expired,
    redelivered: queue.redelivered,
  }
  const text = JSON.stringify(page)
  const bytes = new Uint8Array(textBytes(text))
  writeText(bytes, 0, text)
  return bytes
}

export function decodeQueuePage(bytes: Uint8Array, start: number, end: number): QueuePage {
  return JSON.parse(readText(bytes, start, end)) as QueuePage
}
