/**
 * The pages of a queue: its definition, which is written when it changes, and its counters at one position of the log. The
 * newest pages and the facts after them are the whole state of the queue, except for its messages, which are in the pages
 * of its chunks.
 *
 * A restart reads both pages of every queue, so reading them creates few objects.
 */
import {
  readText,
  readU16,
  readU32,
  readU64,
  textBytes,
  writeText,
  writeU16,
  writeU32,
  writeU64,
  type QueueCounter,
} from '@sluice/protocol'
import type { QueueDefinition } from './definition.js'
import { NO_COUNTS, type Counts } from './counts.js'
import { ALL_ENDED } from './former.js'
import type { Queue } from './queue.js'
import type { SharedOptions } from './shared-options.js'

/** Two lines of JSON: the options are a line of their own, so that queues with the same line share one object. */
export function encodeDefinition(queue: Queue): string {
  const { name, createdAtMs, paused, idsFrom, stream, group } = queue
  return `${JSON.stringify({ name, createdAtMs, paused, idsFrom, stream, group })}\n${JSON.stringify(queue.options)}`
}

export function decodeDefinition(text: string, shared: SharedOptions): QueueDefinition {
  const end = text.indexOf('\n')
  const head = JSON.parse(text.slice(0, end)) as QueueDefinition
  const { name, createdAtMs, paused, idsFrom, stream, group } = head
  const options = shared.parse(text.slice(end + 1))
  const definition = { name, options, createdAtMs, paused, idsFrom }
  return { ...definition, ...(stream && { stream }), ...(group && { group }) }
}

export function encodeDefinitionPage(queue: Queue): Uint8Array {
  const text = encodeDefinition(queue)
  const bytes = new Uint8Array(textBytes(text))
  writeText(bytes, 0, text)
  return bytes
}

export function decodeDefinitionPage(
  bytes: Uint8Array,
  start: number,
  end: number,
  shared: SharedOptions,
): QueueDefinition {
  return decodeDefinition(readText(bytes, start, end), shared)
}

/** The place of each counter in the page. A new counter gets the next place; older pages do not have it. */
const PLACES = {
  purged: 0,
  expired: 1,
  dropped: 2,
  cancelled: 3,
  duplicates: 4,
  moved: 5,
  discarded: 6,
  redriven: 7,
  released: 8,
  redelivered: 9,
} as const satisfies Record<QueueCounter, number>
const COUNTERS = Object.keys(PLACES) as QueueCounter[]

const HEAD_BYTES = 32
const NUMBER_BYTES = 8
/** Written instead of the number of ended subscriptions: all subscriptions count as ended. */
const ALL = 0xffff

/**
 * Layout: u64 next · u64 redelivered below · u64 carried · u16 counters · u16 ended subscriptions · u32 numbers of the kind ·
 * u64 each counter · u64 id of each ended subscription · of a group: u64 missed · u64 acknowledged · of a stream: u64 released
 * below · u64 compacted · u64 compacted below · u64 time of the oldest tombstone.
 */
export function encodeCountersPage(queue: Queue): Uint8Array {
  const ended = queue.endedSubscriptions
  const isAll = ended[0] === ALL_ENDED
  // Tallied counters have the values of the last tally fact before the page, so that page and facts agree.
  const counts = { ...queue.counts, ...queue.tallied }
  const ofKind = numbersOf(queue)
  const numbers = [...COUNTERS.map((name) => counts[name]), ...(isAll ? [] : ended), ...ofKind]
  const bytes = new Uint8Array(HEAD_BYTES + numbers.length * NUMBER_BYTES)
  writeU64(bytes, 0, queue.next)
  writeU64(bytes, 8, queue.redeliveredBelow)
  writeU64(bytes, 16, queue.carried)
  writeU16(bytes, 24, COUNTERS.length)
  writeU16(bytes, 26, isAll ? ALL : ended.length)
  writeU32(bytes, 28, ofKind.length)
  for (const [index, number] of numbers.entries()) writeU64(bytes, HEAD_BYTES + index * NUMBER_BYTES, number)
  return bytes
}

/** Reads a page into the queue. */
export function restoreCounters(queue: Queue, bytes: Uint8Array, start: number): void {
  queue.next = readU64(bytes, start)
  queue.redeliveredBelow = readU64(bytes, start + 8)
  queue.carried = readU64(bytes, start + 16)
  const counters = readU16(bytes, start + 24)
  const ended = readU16(bytes, start + 26)
  let at = start + HEAD_BYTES
  queue.restoreCounts(readCounts(bytes, at, counters))
  at += counters * NUMBER_BYTES
  if (ended === ALL) queue.former.restoreEnded([ALL_ENDED])
  else if (ended > 0) queue.former.restoreEnded(numbersAt(bytes, at, ended))
  at += (ended === ALL ? 0 : ended) * NUMBER_BYTES
  if (readU32(bytes, start + 28) > 0) restoreNumbers(queue, bytes, at)
}

// The numbers that only a group, or only a stream, has.
function numbersOf({ group, missed, ackedCount, numbers }: Queue): number[] {
  if (group !== undefined) return [missed, ackedCount]
  if (numbers === undefined) return []
  return [numbers.releasedBelow, numbers.compacted, numbers.compactedBelow, numbers.tombstoneMs]
}

function restoreNumbers(queue: Queue, bytes: Uint8Array, at: number): void {
  const { numbers } = queue
  if (numbers === undefined) {
    queue.missed = readU64(bytes, at)
    queue.ackedCount = readU64(bytes, at + NUMBER_BYTES)
    return
  }
  numbers.releasedBelow = readU64(bytes, at)
  numbers.compacted = readU64(bytes, at + NUMBER_BYTES)
  numbers.compactedBelow = readU64(bytes, at + 2 * NUMBER_BYTES)
  numbers.tombstoneMs = readU64(bytes, at + 3 * NUMBER_BYTES)
}

function readCounts(bytes: Uint8Array, at: number, counters: number): Counts {
  let place = 0
  while (place < counters && readU64(bytes, at + place * NUMBER_BYTES) === 0) place++
  if (place === counters) return NO_COUNTS
  const counts = { ...NO_COUNTS }
  for (const name of COUNTERS)
    if (PLACES[name] < counters) counts[name] = readU64(bytes, at + PLACES[name] * NUMBER_BYTES)
  return counts
}

function numbersAt(bytes: Uint8Array, at: number, count: number): number[] {
  return Array.from({ length: count }, (_, index) => readU64(bytes, at + index * NUMBER_BYTES))
}
