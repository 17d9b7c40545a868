/** Recounts the messages of a line and compares the results with its counters. Called by `Line.invariants`, in tests. */
import { PRIORITIES, type Chunk } from './chunk.js'
import type { Chunks } from './chunks.js'
import type { DropOrder } from './drop-order.js'
import { NONE } from './keys.js'
import { MARK } from './marks.js'

/** The counters of a line. The plain counts and cursors are by priority. */
export interface LineCounters {
  readonly end: number
  /** No message below this offset is in the line of its key. */
  readonly keyedFrom: number
  readonly dropOrder: DropOrder | undefined
  readonly plainMask: number
  readonly plainCounts: Float64Array
  readonly cursors: Float64Array
  readonly scheduled: number
  /** Numbers of messages that the parts of the line have found in themselves. */
  readonly found: { readonly scheduled: number; readonly due: number; readonly keyed: number }
}

/** @throws Error with the difference */
export function auditLine(chunks: Chunks, line: LineCounters): void {
  const plain = new Float64Array(PRIORITIES)
  plain[0] = chunks.coldMessages
  const waiting = { scheduled: 0, due: 0, keyed: 0 }
  for (const chunk of chunks) {
    for (const index of chunk.liveIndexes()) {
      if (!chunk.isInLine(index)) continue
      checkMessage(chunk, index, line)
      if (!chunk.isWaiting(index)) plain[chunk.priorityAt(index)]!++
      else if (!chunk.isDue(index)) waiting.scheduled++
      else if (chunk.keyAt(index) === NONE) waiting.due++
      else waiting.keyed++
    }
  }
  for (const [priority, count] of line.plainCounts.entries()) {
    const isInMask = ((line.plainMask >>> priority) & 1) === 1
    if (count !== plain[priority] || count > 0 !== isInMask)
      differs(`${count} plain of priority ${priority}, counted ${plain[priority]}, in the mask: ${isInMask}`)
  }
  const { scheduled, due, keyed } = line.found
  if (scheduled !== waiting.scheduled || scheduled !== line.scheduled)
    differs(`${line.scheduled} scheduled, found ${scheduled}, counted ${waiting.scheduled}`)
  if (due !== waiting.due) differs(`${due} due without a key, counted ${waiting.due}`)
  if (keyed !== waiting.keyed) differs(`${keyed} in lines of keys, counted ${waiting.keyed}`)
}

function checkMessage(
  chunk: Chunk,
  index: number,
  { end, keyedFrom, dropOrder, cursors }: LineCounters,
): void {
  const offset = chunk.base + index
  const priority = chunk.priorityAt(index)
  if (offset >= end) differs(`offset ${offset} is in the line, but the line ends at ${end}`)
  if (dropOrder?.finds(chunk, index) === false)
    differs(`offset ${offset} of priority ${priority} is missing from the drop order`)
  if (!chunk.isWaiting(index)) {
    if (offset < cursors[priority]! && !chunk.has(MARK.returned, index))
      differs(`offset ${offset} is plain, but below the cursor of priority ${priority}`)
  } else if (chunk.isDue(index) && chunk.keyAt(index) !== NONE && offset < keyedFrom)
    differs(`offset ${offset} has a key, but is below the first keyed message`)
}

function differs(what: string): never {
  throw new Error(`line: ${what}`)
}
