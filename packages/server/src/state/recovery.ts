/**
 * Recovery: restores the state pages of the newest directory that the log points to, then replays every later fact.
 * Without a directory it replays the whole log. It writes nothing, so a crash during recovery changes nothing.
 */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  SluiceError,
  batchIsIntact,
  batchLength,
  batchType,
} from '@sluice/protocol'
import { entryBatches } from '../log/entry.js'
import type { Log, LogBounds } from '../log/log.js'
import type { PageKind } from '../queue/index.js'
import { decodeDirectory, type ListedPages } from './directory.js'
import { decodeNode, type PageEntry, type PageNode } from './page-node.js'
import { type PageTree } from './page-tree.js'
import { Replay } from './replay.js'
import { State } from './state.js'

export interface Recovered {
  readonly state: State
  readonly bounds: LogBounds
  /** The directory that recovery started from; undefined when it replayed the whole log. */
  readonly directory: ListedPages | undefined
  /** Number of entries that were replayed. */
  readonly entries: number
}

/** @throws SluiceError LOG_CORRUPT */
export async function recover(log: Log): Promise<Recovered> {
  const bounds = await log.open()
  const state = new State(log)
  const replay = new Replay(state)
  let from = bounds.firstPosition
  let directory: ListedPages | undefined
  if (bounds.checkpoint !== undefined) {
    const bytes = await readBatch(log, bounds.checkpoint, BATCH_TYPE.directory)
    directory = decodeDirectory(bytes, BATCH_HEADER_BYTES)
    await restoreNodes(log, directory.root)
    replay.restoreDirectory(directory)
    await restorePages(log, replay, state.tree)
    from = directory.replayFrom
  }
  let entries = 0
  if (from < bounds.nextPosition) {
    for await (const entry of log.read(from)) {
      for (const at of entryBatches(entry.bytes, 0)) {
        const position = entry.position + at
        if (replay.hasCold) await restoreEach(log, replay, replay.coldIn(entry.bytes, at, position))
        replay.apply(entry.bytes, at, position)
      }
      entries++
    }
  }
  await restoreEach(log, replay, replay.coldHeads())
  state.segments.forgetBefore(bounds.firstPosition)
  return { state, bounds, directory, entries }
}

/** Maximum length of one read; all pages within it are read together. */
const READ_BYTES = 1 << 20
/** A read does not continue over a gap of this length. Most pages are shorter. */
const GAP_BYTES = 128 << 10

/** Reads the nodes below `root`, level by level, into the tree. */
async function restoreNodes(log: Log, root: PageNode): Promise<void> {
  let nodes = [root]
  for (let { level } = root; level > 0; level--) {
    const children = nodes.flatMap((node) => node.children).sort((a, b) => a.position - b.position)
    const positions = children.map(({ position }) => position)
    await readPages(log, positions, (bytes, at, index) => {
      const node = decodeNode(bytes, at + BATCH_HEADER_BYTES)
      if (node.level !== level - 1) throw damaged(positions[index]!)
      children[index]!.take(node)
    })
    nodes = children
  }
}

async function restorePages(log: Log, replay: Replay, tree: PageTree): Promise<void> {
  let positions: number[] = []
  let kind: PageKind | undefined
  const restore = async (): Promise<void> => {
    const sorted = Float64Array.from(positions).sort()
    await readPages(log, sorted, (bytes, at, index) => replay.restorePage(bytes, at, sorted[index]!))
    if (kind !== undefined) replay.restored(kind)
  }
  // The tree lists the pages of a kind one after another.
  for (const page of tree) {
    if (page.kind !== kind) {
      await restore()
      positions = []
      kind = page.kind
    }
    if (!replay.leavesCold(page)) positions.push(page.position)
  }
  await restore()
  replay.pagesRestored()
}

// Reads and restores single pages, which may be far apart.
async function restoreEach(log: Log, replay: Replay, pages: readonly PageEntry[]): Promise<void> {
  for (const page of pages) {
    const bytes = await log.readRange(page.position, page.bytes)
    checkBatch(bytes, 0, page.position, BATCH_TYPE.page)
    replay.restorePage(bytes, 0, page.position)
  }
}

// Reads the pages at `positions`, which are in ascending order, checks each, and passes it to `visit`.
async function readPages(
  log: Log,
  positions: ArrayLike<number>,
  visit: (bytes: Uint8Array, at: number, index: number) => void,
): Promise<void> {
  // Most reads are much shorter than READ_BYTES.
  let buffer = new Uint8Array(0)
  for (let index = 0; index < positions.length;) {
    const from = positions[index]!
    const length = lengthToRead(log, positions, index)
    if (buffer.length < length) buffer = new Uint8Array(length)
    let bytes = await log.readRange(from, length, buffer.subarray(0, length))
    if (!holdsBatch(bytes, 0)) bytes = await readBatch(log, from, BATCH_TYPE.page)
    do {
      const at = positions[index]! - from
      checkBatch(bytes, at, positions[index]!, BATCH_TYPE.page)
      visit(bytes, at, index++)
    } while (index < positions.length && holdsBatch(bytes, positions[index]! - from))
  }
}

// The length of a read from the page `positions[index]` on. The read ends with the segment or after a page that no other
// page follows closely: the nodes of one checkpoint are neighbours, but the pages between the nodes of two checkpoints
// need not be read.
function lengthToRead(log: Log, positions: ArrayLike<number>, index: number): number {
  const from = positions[index]!
  const segmentEnd = (Math.floor(from / log.segmentBytes) + 1) * log.segmentBytes
  const end = Math.min(from + READ_BYTES, segmentEnd)
  let last = from
  for (let next = index + 1; next < positions.length; next++) {
    const position = positions[next]!
    if (position >= end || position - last > GAP_BYTES) break
    last = position
  }
  return Math.min(end, last + GAP_BYTES) - from
}

function holdsBatch(bytes: Uint8Array, at: number): boolean {
  return at + BATCH_HEADER_BYTES <= bytes.length && at + batchLength(bytes, at) <= bytes.length
}

async function readBatch(log: Log, position: number, type: number): Promise<Uint8Array> {
  const head = await log.readRange(position, BATCH_HEADER_BYTES)
  const length = batchLength(head, 0)
  const segmentEnd = (Math.floor(position / log.segmentBytes) + 1) * log.segmentBytes
  if (length < BATCH_HEADER_BYTES || position + length > segmentEnd) throw damaged(position)
  const bytes = await log.readRange(position, length)
  checkBatch(bytes, 0, position, type)
  return bytes
}

function checkBatch(bytes: Uint8Array, at: number, position: number, type: number): void {
  const length = batchLength(bytes, at)
  if (length < BATCH_HEADER_BYTES || at + length > bytes.length) throw damaged(position)
  if (batchType(bytes, at) !== type || !batchIsIntact(bytes, at, at + length)) throw damaged(position)
}

function damaged(position: number): SluiceError {
  return new SluiceError('LOG_CORRUPT', `The state page at position ${position} of the log is damaged.`)
}
