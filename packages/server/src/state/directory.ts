/**
 * The directory that ends a checkpoint: which pages hold the state, and where the newest copy of each stands.
 *
 * Invariant: it fits the entry it is in. What would make it longer is refused long before (see `pagesMax`).
 */
import { readU32, readU64, writeU32, writeU64 } from '@sluice/protocol'

/**
 * Pages at which messages and queues are refused: their places take five eighths of a segment. Producers have a quarter
 * for themselves; the rest is for what one turn can add.
 */
export function pagesMax(segmentBytes: number): number {
  return Math.floor((segmentBytes * 5) / 8 / PAGE_AT_BYTES)
}

/** Producers that are remembered: as many as a quarter of a segment lists, and never more than this. */
const PRODUCERS_MAX = 100_000

export function producersMax(segmentBytes: number): number {
  return Math.min(PRODUCERS_MAX, segmentBytes / 4 / PAGE_AT_BYTES)
}

/** Kinds of state pages; a page batch has the kind as its count and the queue's or producer's id. */
export const PAGE = { queue: 1, chunk: 2, producer: 3, ids: 4 } as const

/** Where the newest copy of one page stands. */
export interface PageAt {
  readonly kind: number
  readonly id: number
  readonly position: number
}

export interface Directory {
  /** Facts from here on are not, or not all, in the pages. */
  readonly replayFrom: number
  readonly boot: number
  readonly nextQueueId: number
  readonly nextProducerId: number
  readonly pages: readonly PageAt[]
}

export const DIRECTORY_HEAD_BYTES = 24
export const PAGE_AT_BYTES = 16

/**
 * Layout: u64 replay from · u32 boot · u32 next queue id · u32 next producer id · u32 pages ·
 * of each page u32 id, u32 kind, u64 position.
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
