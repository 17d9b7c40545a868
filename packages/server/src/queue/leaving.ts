/** Messages that leave a group before they are done. Called by `Queue`. */
import { type Loss, type LostRange } from '@sluice/protocol'
import type { Chunks } from './chunks.js'
import type { Line } from './line.js'
import type { Lease } from './subscription.js'

/** A subscription with leases in the group. */
interface Holding {
  loseBelow(end: number, ended: (lease: Lease) => void): LostRange[]
  readonly consumer: { lost(subscription: unknown, reason: Loss, ranges: readonly LostRange[]): void }
}

interface Leaving {
  leased: number
  readonly chunks: Chunks
  readonly subscriptions: readonly Holding[]
}

/** Ends the leases of the messages below `end` for this reason. Calls `ended` with each of them. */
export function endLeasesBelow(
  group: Leaving,
  end: number,
  reason: Loss,
  ended: (lease: Lease) => void = () => {},
): void {
  for (const subscription of group.subscriptions) {
    const lost = subscription.loseBelow(end, (lease) => {
      group.leased--
      ended(lease)
    })
    if (lost.length > 0) subscription.consumer.lost(subscription, reason, lost)
  }
}

/**
 * Ends the leases of the messages below `end` for this reason, and takes the messages out of the line. Returns the number of those
 * that are not dead.
 */
export function leaveBelow(group: Leaving, line: Line, end: number, reason: Loss, nowMs: number): number {
  const { chunks } = group
  endLeasesBelow(group, end, reason, ({ offset, sinceMs }) =>
    line.release(chunks.at(offset)!, offset, sinceMs, nowMs),
  )
  line.suspects.clearBelow(end)
  let count = 0
  for (const chunk of chunks) {
    for (const index of chunk.liveIndexes()) {
      if (chunk.base + index >= end) break
      if (chunk.isDead(index)) continue
      count++
      line.leave(chunk, index, nowMs)
    }
  }
  return count
}
