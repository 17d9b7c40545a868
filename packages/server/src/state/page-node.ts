/**
 * A node of the page tree, in memory and in the log (see page-tree.ts). A leaf lists pages, with the summaries of those
 * chunks that can be cold; an inner node lists nodes. The entries are numbers in one array, in the order of their keys.
 */
import { readU16, readU32, readU48, readU64, writeU16, writeU32, writeU48, writeU64 } from '@sluice/protocol'
import type { ChunkSummary, PageKind } from '../queue/index.js'

/** Leaf entry: u16 kind · u32 id · u48 number · u64 position · u32 bytes. */
export const LEAF_ENTRY_BYTES = 24
/**
 * Summary of a chunk, after its entry in a leaf: u8 segments · u8 scale of shares · u64 record bytes · u48 publish time of the first
 * message · u48 time of the last acknowledgement, or 0 if the messages are live · u64 position and u32 bytes of the
 * first batch, and of the last · u16 messages · for each segment u64 position, u32 bytes. The kind of an entry with a summary has
 * bit 15.
 */
const SUMMARY_BYTES = 48
const SUMMARY_SEGMENT_BYTES = 12
const HAS_SUMMARY = 0x8000
/** Inner entry: u16 kind · u32 id · u48 number of the lower bound · u64 position · u32 bytes · u64 lowest position. */
export const INNER_ENTRY_BYTES = 32
/** A node begins with u16 level · u16 entries · u32 0. */
export const NODE_HEAD_BYTES = 8
/** Fields of an entry in memory: kind and id, number, position, bytes. */
export const FIELDS = 4
export const OWNER = 0
export const NUMBER = 1
export const POSITION = 2
export const BYTES = 3
/** Fields of a summary in memory: the number of segments, 0 for an entry without a summary, then as in the log. */
const SUMMARY_HEAD_FIELDS = 10
const SUMMARY_FIELDS_FIRST = SUMMARY_HEAD_FIELDS + 2
const ENTRIES_FIRST = 16
/** Shared by all nodes without entries. */
const NO_FIELDS = new Float64Array(0)
const ID_RANGE = 2 ** 32

export interface PageEntry {
  readonly kind: PageKind
  /** Id of the queue, producer or definition. */
  readonly id: number
  /** Distinguishes the pages of one kind and id: for example, the number of a chunk. */
  readonly number: number
  readonly position: number
  /** Size in the log, header included. */
  readonly bytes: number
  /** Whether the page is that of a chunk that can be cold. */
  readonly hasSummary: boolean
}

export class PageNode {
  /** 0 for a leaf. */
  readonly level: number
  count = 0
  fields: Float64Array = NO_FIELDS
  /** The summaries of the entries of a leaf; undefined while there are none. */
  summaries: Float64Array | undefined
  /** Fields of each summary. The batches of most chunks are in one segment, so most leaves need no room for more. */
  summaryFields = SUMMARY_FIELDS_FIRST
  /** One child per entry; empty for a leaf. The key of an entry is a lower bound for the keys of its child. */
  children: PageNode[] = []
  /** Whether the node differs from its newest copy in the log. */
  dirty = true
  position = -1
  bytes = 0
  /** Lower bound for the positions of the nodes and pages below this node, as listed in its newest copy in the log. */
  lowest = 0

  constructor(level: number) {
    this.level = level
  }

  /** Number of entries whose key is less than the given key or, with `orEqual`, equal to it. */
  search(owner: number, number: number, orEqual: boolean): number {
    const { fields } = this
    let low = 0
    let high = this.count
    while (low < high) {
      const middle = (low + high) >>> 1
      const at = middle * FIELDS
      const difference = fields[at + OWNER]! - owner || fields[at + NUMBER]! - number
      if (difference < 0 || (orEqual && difference === 0)) low = middle + 1
      else high = middle
    }
    return low
  }

  insert(index: number, owner: number, number: number, child?: PageNode): void {
    this.reserve(this.count + 1)
    const at = index * FIELDS
    this.fields.copyWithin(at + FIELDS, at, this.count * FIELDS)
    this.fields.fill(0, at, at + FIELDS)
    if (this.summaries !== undefined) {
      const width = this.summaryFields
      this.summaries.copyWithin((index + 1) * width, index * width, this.count * width)
      this.summaries[index * width] = 0
    }
    this.fields[at + OWNER] = owner
    this.fields[at + NUMBER] = number
    if (child !== undefined) this.children.splice(index, 0, child)
    this.count++
    this.dirty = true
  }

  /** Appends an entry whose key is above all keys of the node. The node has room for it. */
  push(owner: number, number: number, position: number, bytes: number): void {
    const at = this.count++ * FIELDS
    this.fields[at + OWNER] = owner
    this.fields[at + NUMBER] = number
    this.fields[at + POSITION] = position
    this.fields[at + BYTES] = bytes
  }

  removeEntries(from: number, to: number): void {
    if (from === to) return
    this.fields.copyWithin(from * FIELDS, to * FIELDS, this.count * FIELDS)
    const width = this.summaryFields
    this.summaries?.copyWithin(from * width, to * width, this.count * width)
    if (this.level > 0) this.children.splice(from, to - from)
    this.count -= to - from
    this.dirty = true
  }

  /** Makes room for `entries` entries. */
  reserve(entries: number): void {
    let room = this.fields.length / FIELDS
    if (entries <= room) return
    room = Math.max(room, ENTRIES_FIRST)
    while (room < entries) room *= 2
    this.fields = grown(this.fields, room * FIELDS)
    if (this.summaries !== undefined) this.summaries = grown(this.summaries, room * this.summaryFields)
  }

  // Gives each summary room for the use of `segments` segments.
  #widen(segments: number): void {
    const width = SUMMARY_HEAD_FIELDS + 2 * segments
    const before = this.summaryFields
    if (width <= before) return
    const { summaries } = this
    this.summaryFields = width
    if (summaries === undefined) return
    const wider = new Float64Array((this.fields.length / FIELDS) * width)
    for (let index = 0; index < this.count; index++)
      wider.set(summaries.subarray(index * before, (index + 1) * before), index * width)
    this.summaries = wider
  }

  /** Size of the summary of the entry in the log; 0 if it has none. */
  summaryBytes(index: number): number {
    const segments = this.summaries?.[index * this.summaryFields] ?? 0
    return segments === 0 ? 0 : SUMMARY_BYTES + segments * SUMMARY_SEGMENT_BYTES
  }

  summary(index: number): ChunkSummary | undefined {
    const { summaries } = this
    const at = index * this.summaryFields
    if (summaries === undefined || summaries[at] === 0) return undefined
    const uses: [number, number][] = []
    for (let use = at + SUMMARY_HEAD_FIELDS; uses.length < summaries[at]!; use += 2)
      uses.push([summaries[use]!, summaries[use + 1]!])
    return {
      bytes: summaries[at + 1]!,
      firstMs: summaries[at + 2]!,
      retainedMs: summaries[at + 3]!,
      firstPosition: summaries[at + 4]!,
      firstBytes: summaries[at + 5]!,
      lastPosition: summaries[at + 6]!,
      lastBytes: summaries[at + 7]!,
      messages: summaries[at + 8]!,
      scale: summaries[at + 9]!,
      uses,
    }
  }

  setSummary(index: number, summary: ChunkSummary | undefined): void {
    if (summary === undefined) {
      if (this.summaries !== undefined) this.summaries[index * this.summaryFields] = 0
      return
    }
    this.#widen(summary.uses.length)
    this.summaries ??= new Float64Array((this.fields.length / FIELDS) * this.summaryFields)
    const { messages, bytes, firstMs, retainedMs, uses, scale } = summary
    const { firstPosition, firstBytes, lastPosition, lastBytes } = summary
    this.summaries.set(
      [
        uses.length,
        bytes,
        firstMs,
        retainedMs,
        firstPosition,
        firstBytes,
        lastPosition,
        lastBytes,
        messages,
        scale,
        ...uses.flat(),
      ],
      index * this.summaryFields,
    )
  }

  /**
   * Lowers the key of the first entry, below which a page with a lower key is added. When this node is appended to
   * another node, the entry is no longer the first, and its key decides where a page is searched.
   */
  lowerBound(owner: number, number: number): void {
    this.fields[OWNER] = owner
    this.fields[NUMBER] = number
  }

  isAt(index: number, owner: number, number: number): boolean {
    return this.fields[index * FIELDS + OWNER] === owner && this.fields[index * FIELDS + NUMBER] === number
  }

  place(index: number, position: number, bytes: number): void {
    this.fields[index * FIELDS + POSITION] = position
    this.fields[index * FIELDS + BYTES] = bytes
  }

  /** The entry at `index`: a page or, in an inner node, a child. */
  entry(index: number): PageEntry {
    const at = index * FIELDS
    const owner = this.fields[at + OWNER]!
    const child = this.children[index]
    return {
      kind: Math.floor(owner / ID_RANGE) as PageKind,
      id: owner % ID_RANGE,
      number: this.fields[at + NUMBER]!,
      position: child === undefined ? this.fields[at + POSITION]! : child.position,
      bytes: child === undefined ? this.fields[at + BYTES]! : child.bytes,
      hasSummary: this.summaries !== undefined && this.summaries[index * this.summaryFields]! > 0,
    }
  }

  /** The current lowest position of a page or node below this node; Infinity if the node is empty. */
  get lowestNow(): number {
    let lowest = Infinity
    for (let index = 0; index < this.count; index++) {
      const child = this.children[index]
      const position =
        child === undefined ? this.fields[index * FIELDS + POSITION]! : Math.min(child.position, child.lowest)
      if (position < lowest) lowest = position
    }
    return lowest
  }

  /** Used in recovery: takes the entries of `node`, which was read from the position of this node. */
  take(node: PageNode): void {
    this.fields = node.fields
    this.summaries = node.summaries
    this.summaryFields = node.summaryFields
    this.children = node.children
    this.count = node.count
  }

  /** Moves the entries from `index` on to a new node. */
  split(index: number): PageNode {
    const right = new PageNode(this.level)
    right.append(this, index)
    this.removeEntries(index, this.count)
    return right
  }

  /** Appends the entries of `other` from `index` on. */
  append(other: PageNode, index = 0): void {
    const count = this.count + other.count - index
    this.reserve(count)
    if (other.summaries !== undefined || this.summaries !== undefined) {
      const segments = (other.summaryFields - SUMMARY_HEAD_FIELDS) / 2
      this.#widen(segments)
      other.#widen((this.summaryFields - SUMMARY_HEAD_FIELDS) / 2)
      const width = this.summaryFields
      this.summaries ??= new Float64Array((this.fields.length / FIELDS) * width)
      const more = other.summaries?.subarray(index * width, other.count * width)
      if (more === undefined) this.summaries.fill(0, this.count * width)
      else this.summaries.set(more, this.count * width)
    }
    this.fields.set(other.fields.subarray(index * FIELDS, other.count * FIELDS), this.count * FIELDS)
    this.children.push(...other.children.slice(index))
    this.lowest = Math.min(this.lowest, other.position === -1 ? 0 : other.lowest)
    this.count = count
    this.dirty = true
  }
}

function grown(fields: Float64Array, length: number): Float64Array {
  const longer = new Float64Array(length)
  longer.set(fields)
  return longer
}

/** Kind and id of a page as one number, by which the entries of a node are sorted first. */
export function ownerOf(kind: PageKind, id: number): number {
  return kind * ID_RANGE + id
}

export function encodeNode(node: PageNode): Uint8Array {
  let size = NODE_HEAD_BYTES
  for (let index = 0; index < node.count; index++)
    size += node.level === 0 ? LEAF_ENTRY_BYTES + node.summaryBytes(index) : INNER_ENTRY_BYTES
  const bytes = new Uint8Array(size)
  writeU16(bytes, 0, node.level)
  writeU16(bytes, 2, node.count)
  let at = NODE_HEAD_BYTES
  for (let index = 0; index < node.count; index++) {
    const { kind, id, number, position, bytes: pageBytes } = node.entry(index)
    const summary = node.summary(index)
    writeU16(bytes, at, summary === undefined ? kind : kind | HAS_SUMMARY)
    writeU32(bytes, at + 2, id)
    writeU48(bytes, at + 6, number)
    writeU64(bytes, at + 12, position)
    writeU32(bytes, at + 20, pageBytes)
    at += LEAF_ENTRY_BYTES
    if (node.level > 0) {
      writeU64(bytes, at, node.children[index]!.lowest)
      at += INNER_ENTRY_BYTES - LEAF_ENTRY_BYTES
    } else if (summary !== undefined) at = encodeSummary(bytes, at, summary)
  }
  return bytes
}

function encodeSummary(bytes: Uint8Array, at: number, summary: ChunkSummary): number {
  bytes[at] = summary.uses.length
  bytes[at + 1] = summary.scale
  writeU64(bytes, at + 2, Math.round(summary.bytes))
  writeU48(bytes, at + 10, summary.firstMs)
  writeU48(bytes, at + 16, summary.retainedMs)
  writeU64(bytes, at + 22, summary.firstPosition)
  writeU32(bytes, at + 30, summary.firstBytes)
  writeU64(bytes, at + 34, summary.lastPosition)
  writeU32(bytes, at + 42, summary.lastBytes)
  writeU16(bytes, at + 46, summary.messages)
  at += SUMMARY_BYTES
  for (const [position, useBytes] of summary.uses) {
    writeU64(bytes, at, position)
    writeU32(bytes, at + 8, useBytes)
    at += SUMMARY_SEGMENT_BYTES
  }
  return at
}

function decodeSummary(bytes: Uint8Array, at: number): ChunkSummary {
  const uses: [number, number][] = []
  for (let use = at + SUMMARY_BYTES; uses.length < bytes[at]!; use += SUMMARY_SEGMENT_BYTES)
    uses.push([readU64(bytes, use), readU32(bytes, use + 8)])
  return {
    bytes: readU64(bytes, at + 2),
    firstMs: readU48(bytes, at + 10),
    retainedMs: readU48(bytes, at + 16),
    firstPosition: readU64(bytes, at + 22),
    firstBytes: readU32(bytes, at + 30),
    lastPosition: readU64(bytes, at + 34),
    lastBytes: readU32(bytes, at + 42),
    messages: readU16(bytes, at + 46),
    scale: bytes[at + 1]!,
    uses,
  }
}

/** Decodes a node. The children of an inner node have a position, but no entries yet. */
export function decodeNode(bytes: Uint8Array, start: number): PageNode {
  const node = new PageNode(readU16(bytes, start))
  const count = readU16(bytes, start + 2)
  node.reserve(count)
  let at = start + NODE_HEAD_BYTES
  for (let index = 0; index < count; index++) {
    const kind = readU16(bytes, at)
    const owner = ownerOf((kind & ~HAS_SUMMARY) as PageKind, readU32(bytes, at + 2))
    const number = readU48(bytes, at + 6)
    const position = readU64(bytes, at + 12)
    const pageBytes = readU32(bytes, at + 20)
    at += LEAF_ENTRY_BYTES
    if (node.level > 0) {
      node.push(owner, number, 0, 0)
      const child = new PageNode(node.level - 1)
      child.position = position
      child.bytes = pageBytes
      child.lowest = readU64(bytes, at)
      child.dirty = false
      node.children.push(child)
      at += INNER_ENTRY_BYTES - LEAF_ENTRY_BYTES
      continue
    }
    node.push(owner, number, position, pageBytes)
    if ((kind & HAS_SUMMARY) === 0) continue
    node.setSummary(index, decodeSummary(bytes, at))
    at += node.summaryBytes(index)
  }
  node.dirty = false
  return node
}
