/**
 * The pages of a queue, as JSON text: its definition, which is written when it changes, and its counters at one position
 * of the log. The newest pages and the facts after them are the whole state of the queue, except for its messages, which
 * are in the pages of its chunks.
 */
import { readText, textBytes, writeText, type QueueCounts } from '@sluice/protocol'
import type { QueueDefinition } from './contents.js'
import type { Queue } from './queue.js'

export interface CountersPage {
  readonly next: number
  readonly redeliveredBelow: number
  /** Subscriptions that ended and returned messages in the boot that wrote the page. */
  readonly ended?: readonly number[]
  readonly carried: number
  readonly counts: QueueCounts
  /** Segments with settled messages that are retained: number, time of the last settle, bytes. */
  readonly retained: readonly (readonly [number, number, number])[]
}

export function encodeDefinition(queue: Queue): string {
  const { name, options, createdAtMs, paused, idsFrom } = queue
  return JSON.stringify({ name, options, createdAtMs, paused, idsFrom } satisfies QueueDefinition)
}

export function encodeDefinitionPage(queue: Queue): Uint8Array {
  return bytesOf(encodeDefinition(queue))
}

export function decodeDefinitionPage(bytes: Uint8Array, start: number, end: number): QueueDefinition {
  return JSON.parse(readText(bytes, start, end)) as QueueDefinition
}

export function encodeCountersPage(queue: Queue, retained: CountersPage['retained']): Uint8Array {
  const page: CountersPage = {
    next: queue.next,
    redeliveredBelow: queue.redeliveredBelow,
    ...(queue.former.ended.length === 0 ? {} : { ended: queue.former.ended }),
    carried: queue.carried,
    // Tallied counters have the values of the last tally fact before the page, so that page and facts agree.
    counts: { ...queue.counts, ...queue.tallied },
    retained,
  }
  return bytesOf(JSON.stringify(page))
}

export function decodeCountersPage(bytes: Uint8Array, start: number, end: number): CountersPage {
  return JSON.parse(readText(bytes, start, end)) as CountersPage
}

function bytesOf(text: string): Uint8Array {
  const bytes = new Uint8Array(textBytes(text))
  writeText(bytes, 0, text)
  return bytes
}
