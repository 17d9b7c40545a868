/**
 * The directory at the end of a checkpoint: the root of the page tree, which leads to the newest copy of every page,
 * the position from which later facts are replayed, and the seed of the log's hashes. Its size has a fixed limit, however
 * many pages there are.
 */
import { BATCH_HEADER_BYTES, readU32, readU64, writeU32, writeU64 } from '@sluice/protocol'
import { SEED_BYTES, readSeed, writeSeed, type Seed } from '../queue/index.js'
import { decodeNode, encodeNode, type PageNode } from './page-node.js'

/** Maximum number of pages. Messages and queues that would need another page are refused. */
export const PAGES_MAX = 2 ** 22

/** Maximum number of producers that are remembered. */
export const PRODUCERS_MAX = 100_000

export interface Directory {
  /** Facts from this position on may be missing from the pages. */
  readonly replayFrom: number
  readonly boot: number
  /** Repeated here because the boot batches before `replayFrom` are not read, and their segments are freed. */
  readonly seed: Seed
  readonly nextQueueId: number
  readonly nextProducerId: number
  readonly nextDefinitionId: number
  /** See `State.crashedAt`. */
  readonly crashedAt: number
  readonly root: PageNode
}

/** A directory that was read from the log. */
export interface ListedPages extends Directory {
  /** The directory needs no page and no fact before this position. */
  readonly lowWater: number
}

const SEED_AT = 24
const CRASHED_AT = SEED_AT + SEED_BYTES
const HEAD_BYTES = CRASHED_AT + 8
/** Size of a directory in the log without the root node. */
export const DIRECTORY_BYTES = BATCH_HEADER_BYTES + HEAD_BYTES

/**
 * Layout: u64 replay from · u32 boot · u32 next queue id · u32 next producer id · u32 next definition id · 16 bytes seed · u64 crashed at ·
 * the root node.
 */
export function encodeDirectory({
  replayFrom,
  boot,
  seed,
  nextQueueId,
  nextProducerId,
  nextDefinitionId,
  crashedAt,
  root,
}: Directory): Uint8Array {
  const node = encodeNode(root)
  const bytes = new Uint8Array(HEAD_BYTES + node.length)
  writeU64(bytes, 0, replayFrom)
  writeU32(bytes, 8, boot)
  writeU32(bytes, 12, nextQueueId)
  writeU32(bytes, 16, nextProducerId)
  writeU32(bytes, 20, nextDefinitionId)
  writeSeed(bytes, SEED_AT, seed)
  writeU64(bytes, CRASHED_AT, crashedAt)
  bytes.set(node, HEAD_BYTES)
  return bytes
}

export function decodeDirectory(bytes: Uint8Array, start: number): ListedPages {
  const replayFrom = readU64(bytes, start)
  const root = decodeNode(bytes, start + HEAD_BYTES)
  return {
    replayFrom,
    lowWater: Math.min(replayFrom, root.lowestNow),
    boot: readU32(bytes, start + 8),
    seed: readSeed(bytes, start + SEED_AT),
    nextQueueId: readU32(bytes, start + 12),
    nextProducerId: readU32(bytes, start + 16),
    // Directories of earlier versions have 0.
    nextDefinitionId: Math.max(1, readU32(bytes, start + 20)),
    crashedAt: readU64(bytes, start + CRASHED_AT),
    root,
  }
}
