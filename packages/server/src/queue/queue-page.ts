/**
 * The page of a queue: its definition and counters at one position of the log, as JSON text. The newest page and the facts
 * after it are the whole state of the queue, except for its messages, which are in the pages of its chunks.
 */
import { readText, textBytes, writeText, type QueueCounts } from '@sluice/protocol'
import type { QueueDefinition } from './contents.js'
import type { Queue } from './queue.js'

export interface QueuePage extends QueueDefinition {
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
  const { name, options, createdAtMs, paused, seed, idsFrom } = queue
  return JSON.stringify({ name, options, createdAtMs, paused, seed, idsFrom } satisfies QueueDefinition)
}

export function encodeQueuePage(queue: Queue, retained: QueuePage['retained']): Uint8Array {
  // The fields are listed by name, because spreading the definition took half the time of a page, and a checkpoint writes
  // thousands of pages.
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
    // Tallied counters have the values of the last tally fact before the page, so that page and facts agree.
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
