/**
 * The directory at the end of a checkpoint: the position of the newest copy of every state page.
 *
 * Invariant: a directory fits in one entry. Messages and queues are refused long before a directory becomes too large
 * (see `pagesMax`).
 */
import { readU32, readU64, writeU32, writeU64 } from '@sluice/protocol'

/**
 * Number of pages at which messages and queues are refused: the list of these pages takes five eighths of a segment. A
 * quarter is reserved for producers, and the rest for the pages that one turn can add.
 */
export function pagesMax(segmentBytes: number): number {
  return Math.floor((segmentBytes * 5) / 8 / PAGE_AT_BYTES)
}

/** Maximum number of producers that are remembered, whatever the size of a segment. */
const PRODUCERS_MAX = 100_000

/** Maximum number of producers that are remembered: their list takes at most a quarter of a segment. */
export function producersMax(segmentBytes: number): number {
  return Math.min(PRODUCERS_MAX, segmentBytes / 4 / PAGE_AT_BYTES)
}

/** Kinds of state pages. A page batch has the kind in its count field, and the id of the queue or producer. */
export const PAGE = { queue: 1, chunk: 2, producer: 3, ids: 4 } as const

/** Position of the newest copy of one page. */
export interface PageAt {
  readonly kind: number
  readonly id: number
  readonly position: number
}

export interface Directory {
  /** Facts from this position on may be missing from the pages. */
  readonly replayFrom: number
  readonly boot: number
  readonly nextQueueId: number
  readonly nextProducerId: number
  readonly pages: readonly PageAt[]
}

export const DIRECTORY_HEAD_BYTES = 24
export const PAGE_AT_BYTES = 16

/**
 * Layout: u64 replay from · u32 boot · u32 next queue id · u32 next producer id · u32 pages, then for each page
 * u32 id · u32 kind · u64 position.
 */
export function encodeDirectory(directory: Directory): Uint8Array {
  const bytes = new Uint8Array(DIRECTORY_HEAD_BYTES + directory.pages.length * PAGE_AT_BYTES)
  writeU64(bytes, 0, directory.replayFrom)
  writeU32(bytes, 8, directory.boot)
  writeU32(bytes, 12, directory.nextQueueId)
  writeU32(bytes, 16, directory.nextProducerId)
  writeU32(bytes, 20, directory.pages.length)
  let at = DIRECTORY_HEAD_BYTES
  for (const page of directory.pages) {
    writeU32(bytes, at, page.id)
    writeU32(bytes, at + 4, page.kind)
    writeU64(bytes, at + 8, page.position)
    at += PAGE_AT_BYTES
  }
  return bytes
}

export function decodeDirectory(bytes: Uint8Array, start: number): Directory {
  const pages: PageAt[] = []
  const count = readU32(bytes, start + 20)
  let at = start + DIRECTORY_HEAD_BYTES
  for (let i = 0; i < count; i++, at += PAGE_AT_BYTES) {
    pages.push({ id: readU32(bytes, at), kind: readU32(bytes, at + 4), position: readU64(bytes, at + 8) })
  }
  return {
    replayFrom: readU64(bytes, start),
    boot: readU32(bytes, start + 8),
    nextQueueId: readU32(bytes, start + 12),
    nextProducerId: readU32(bytes, start + 16),
    pages,
  }
}
