/** Ranges of consecutive tags, as SETTLE_OK and LEASES_LOST list them. Tags are added in their order. */
import type { LostRange, TagRange } from '@sluice/protocol'

export function addTag(ranges: TagRange[], tag: number): void {
  const last = ranges.at(-1)
  if (last !== undefined && (last.firstTag + last.count) >>> 0 === tag) {
    ranges[ranges.length - 1] = { firstTag: last.firstTag, count: last.count + 1 }
  } else {
    ranges.push({ firstTag: tag, count: 1 })
  }
}

/** A range ends where the offsets are not consecutive. */
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
