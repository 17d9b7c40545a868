/** Chunks of groups: the rows of their batches are copies of the rows of the stream. Called by `GroupContents`. */
import { Chunk } from './chunk.js'
import { MARK } from './marks.js'

/**
 * The messages `[count, end)` of `given`, the chunk of the stream with the same offsets, enter the chunk of the group, as far as
 * the stream keeps them. Without `given` none enters.
 */
export function enterChunk(chunk: Chunk, given: Chunk | undefined, end: number): void {
  const from = chunk.count
  chunk.count = end
  chunk.live += end - from
  chunk.priorityMask |= 1
  chunk.dirty = true
  const retained = given?.retained
  if (given === undefined || retained === undefined) {
    chunk.live -= chunk.marks.add(MARK.gone, from, end)
    return
  }
  copyRows(chunk, given, from, end)
  for (let index = from; index < end;) {
    const next = Math.min(retained.next(index), end)
    if (next > index) chunk.live -= chunk.marks.add(MARK.gone, index, next)
    index = next + 1
  }
  chunk.bytes += (retained.bytes * retained.countIn(from, end)) / retained.count
}

// Copies the rows that hold the indexes `[from, end)`, each with its own first index, unless they were copied before.
function copyRows({ batches }: Chunk, { batches: rows }: Chunk, from: number, end: number): void {
  let last = batches.count === 0 ? -1 : batches.first(batches.count - 1)
  for (let row = rows.find(from); row < rows.count && rows.first(row) < end; row++) {
    const first = rows.first(row)
    if (first <= last) continue
    last = first
    batches.push(first, rows.position(row), rows.timeMs(row), rows.bytes(row))
    if (rows.isShared(row)) batches.share(rows.sharedIndex(row), rows.sharedNeeded(row), rows.scale(row))
  }
}

/** A chunk with the indexes `[0, count)` of `chunk`. No message from `count` on may be live, and the others only if dead. */
export function cutChunk(chunk: Chunk, count: number): Chunk {
  const cut = new Chunk(chunk.base)
  cut.count = count
  cut.live = chunk.live
  cut.bytes = chunk.bytes
  cut.priorityMask = chunk.priorityMask
  cut.pagePosition = chunk.pagePosition
  cut.dead = chunk.dead
  cut.redriven = chunk.redriven
  copyRows(cut, chunk, 0, count)
  for (let index = 0; index < count; index++) {
    if (chunk.isGone(index)) cut.marks.add(MARK.gone, index, index + 1)
    else {
      const slot = chunk.keyAt(index)
      if (slot !== -1) cut.setKey(index, slot)
    }
  }
  return cut
}
