/** Ranges of consecutive tags, as in SETTLE_OK and LEASES_LOST. Tags are added in ascending order. */
import type { LostRange, TagRange } from '@sluice/protocol'

export function addTag(ranges: TagRange[], tag: number): void {
  const last = ranges.at(-1)
  if (last !== undefined && (last.firstTag + last.count) >>> 0 === tag) {
    ranges[ranges.length - 1] = { firstTag: last.firstTag, count: last.count + 1 }
  } else {
    ranges.push({ firstTag: tag, count: 1 })
  }
}

/** Like `addTag`, but the offsets of a range are consecutive too. */
export function addLost(ranges: LostRange[], tag: number, offset: number): void {
  const last = ranges.at(-1)
  if (
    last !== undefined &&
    (last.firstTag + last.count) >>> 0 === tag &&
    last.firstOffset + last.count === offset
  ) {
    ranges[ranges.length - 1] = { ...last, count: last.count + 1 }
  } else ranges.push({ firstTag: tag, count: 1, firstOffset: offset })
}
