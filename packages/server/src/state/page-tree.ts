/**
 * The pages of the state and where the newest copy of each is in the log: a B+ tree whose nodes are themselves pages of
 * the log. A checkpoint writes the nodes that changed and a root, so the size of a checkpoint depends on the changes
 * and not on the number of pages that exist (copy on write, as in LMDB: a written node is never changed in place).
 *
 * Invariant: keys are unique and in ascending order across the leaves; every node except an empty root has an entry.
 * While the nodes from `nodesToWrite` are being written, no page is added; removing a page is always allowed. A node
 * that was written before the removal still lists the page, which does no harm: the facts that removed the page follow
 * the start of the checkpoint, so recovery applies them again.
 */
import {
  BATCH_HEADER_BYTES,
  readU16,
  readU32,
  readU48,
  readU64,
  writeU16,
  writeU32,
  writeU48,
  writeU64,
} from '@sluice/protocol'
import { PAGE, type ChunkSummary, type PageKind, type Pages } from '../queue/index.js'

/**
 * Maximum number of entries of a node. In the log, an inner node takes at most 8 KiB, and a leaf at most 6 KiB, or 28 KiB if
 * each of its entries has a summary.
 */
export const NODE_ENTRIES_MAX = 256
/** Leaf entry: u16 kind · u32 id · u48 number · u64 position · u32 bytes. */
const LEAF_ENTRY_BYTES = 24
/**
 * Summary of a chunk, after its entry in a leaf: u8 segments · u8 0 · u64 record bytes · u48 publish time of the first
 * message · u48 time of the last acknowledgement, or 0 if the messages are live · u64 position and u32 bytes of the
 * first batch, and of the last · for each segment u64 position, u32 bytes. The kind of an entry with a summary has
 * bit 15.
 */
const SUMMARY_BYTES = 46
const SUMMARY_SEGMENT_BYTES = 12
const HAS_SUMMARY = 0x8000
/** Inner entry: u16 kind · u32 id · u48 number of the lower bound · u64 position · u32 bytes · u64 lowest position. */
const INNER_ENTRY_BYTES = 32
/** A node begins with u16 level · u16 entries · u32 0. */
const NODE_HEAD_BYTES = 8
/** Kind of the pages that hold nodes, which the tree does not list. */
export const NODE_PAGE = 6

/** Fields of an entry in memory: kind and id, number, position, bytes. */
const FIELDS = 4
const OWNER = 0
const NUMBER = 1
const POSITION = 2
const BYTES = 3
/** Fields of a summary in memory: the number of segments, 0 for an entry without a summary, then as in the log. */
const SUMMARY_HEAD_FIELDS = 8
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
    const { bytes, firstMs, retainedMs, firstPosition, firstBytes, lastPosition, lastBytes, uses } = summary
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

/** The newest copy of a page, and the summary of a chunk that can be cold. */
interface Copy {
  readonly position: number
  readonly bytes: number
  readonly summary: ChunkSummary | undefined
}

export class PageTree implements Pages {
  /** Maximum number of entries of a node. Tests set a lower number, so that few pages make a tree of several levels. */
  static entriesMax = NODE_ENTRIES_MAX
  #root = new PageNode(0)
  #isWriting = false
  /** Number of pages that exist, but have no copy in the log yet. */
  #unwritten = 0
  /** Number of pages with a copy in the log. */
  size = 0
  /** Total size in the log of the newest copies of all pages. The nodes of the tree are not included. */
  bytes = 0
  /** Total size of the summaries in the leaves. */
  #summaryBytes = 0
  /** Number of nodes, the root included. */
  nodes = 1

  /** Number of all pages, including those that have no copy in the log yet. */
  get count(): number {
    return this.size + this.#unwritten
  }

  /** Size of all nodes in the log, with an entry for each page that is not written yet. */
  get nodeBytes(): number {
    const perChild = BATCH_HEADER_BYTES + NODE_HEAD_BYTES + INNER_ENTRY_BYTES
    return this.count * LEAF_ENTRY_BYTES + this.#summaryBytes + (this.nodes - 1) * perChild + NODE_HEAD_BYTES
  }

  get root(): PageNode {
    return this.#root
  }

  /** Called when a page is created. The next checkpoint will write it. */
  created(): void {
    this.#unwritten++
  }

  /** The page, if it has a copy in the log. */
  find(kind: PageKind, id: number, number: number): PageEntry | undefined {
    const found = this.#find(kind, id, number)
    return found?.node.entry(found.index)
  }

  /** Position of the newest copy of the page; -1 if it has none. */
  positionOf(kind: PageKind, id: number, number: number): number {
    const found = this.#find(kind, id, number)
    return found === undefined ? -1 : found.node.fields[found.index * FIELDS + POSITION]!
  }

  summary(queueId: number, chunkNumber: number): ChunkSummary | undefined {
    const found = this.#find(PAGE.chunk, queueId, chunkNumber)
    return found?.node.summary(found.index)
  }

  #find(kind: PageKind, id: number, number: number): { node: PageNode; index: number } | undefined {
    const owner = ownerOf(kind, id)
    let node = this.#root
    while (node.level > 0) node = node.children[Math.max(0, node.search(owner, number, true) - 1)]!
    const index = node.search(owner, number, false)
    return index < node.count && node.isAt(index, owner, number) ? { node, index } : undefined
  }

  /**
   * The newest copy of the page is at `position` and takes `bytes` bytes. `summary` is that of a chunk that can be
   * cold.
   */
  written(
    kind: PageKind,
    id: number,
    number: number,
    position: number,
    bytes: number,
    summary?: ChunkSummary,
  ): void {
    if (this.#isWriting) throw new Error('a page was added to the tree while its nodes were written')
    const owner = ownerOf(kind, id)
    const split = this.#set(this.#root, owner, number, { position, bytes, summary })
    if (split === undefined) return
    const root = new PageNode(this.#root.level + 1)
    root.insert(0, this.#root.fields[OWNER]!, this.#root.fields[NUMBER]!, this.#root)
    root.insert(1, split.fields[OWNER]!, split.fields[NUMBER]!, split)
    this.#root = root
    this.nodes++
  }

  // Returns the right half if the node was split.
  #set(node: PageNode, owner: number, number: number, copy: Copy): PageNode | undefined {
    node.dirty = true
    const index = node.search(owner, number, true) - 1
    if (node.level > 0) {
      const at = Math.max(0, index)
      if (index < 0) node.lowerBound(owner, number)
      const split = this.#set(node.children[at]!, owner, number, copy)
      if (split === undefined) return undefined
      node.insert(at + 1, split.fields[OWNER]!, split.fields[NUMBER]!, split)
    } else if (index >= 0 && node.isAt(index, owner, number)) {
      this.bytes -= node.fields[index * FIELDS + BYTES]!
      this.#place(node, index, copy)
      return undefined
    } else {
      node.insert(index + 1, owner, number)
      this.#place(node, index + 1, copy)
      this.size++
      this.#unwritten--
    }
    if (node.count < PageTree.entriesMax) return undefined
    this.nodes++
    // The pages of a queue are mostly added in ascending order. Then the left node stays full.
    const isLast = index + 2 === node.count || node.fields[(index + 2) * FIELDS + OWNER] !== owner
    const middle = node.count >>> 1
    return node.split(isLast && index + 1 > middle ? index + 1 : middle)
  }

  #place(node: PageNode, index: number, { position, bytes, summary }: Copy): void {
    node.place(index, position, bytes)
    this.bytes += bytes
    this.#summaryBytes -= node.summaryBytes(index)
    node.setSummary(index, summary)
    this.#summaryBytes += node.summaryBytes(index)
  }

  /** Called when the page does not exist any more. */
  removed(kind: PageKind, id: number, number: number): void {
    const owner = ownerOf(kind, id)
    const bytes = this.#remove(this.#root, owner, number)
    if (bytes === 0) {
      this.#unwritten--
      return
    }
    this.size--
    this.bytes -= bytes
    while (this.#root.level > 0 && this.#root.count <= 1) {
      // The old root keeps its child: `#dirtyBelow` may be about to visit it.
      const only = this.#root.children[0] ?? new PageNode(0)
      this.nodes -= this.#root.count
      this.#root = only
      if (only.count === 0) this.nodes = 1
    }
  }

  // Returns the size of the page; 0 if it is not in the tree.
  #remove(node: PageNode, owner: number, number: number): number {
    const index = node.search(owner, number, true) - 1
    if (node.level === 0) {
      if (index < 0 || !node.isAt(index, owner, number)) return 0
      const bytes = node.fields[index * FIELDS + BYTES]!
      this.#summaryBytes -= node.summaryBytes(index)
      node.removeEntries(index, index + 1)
      return bytes
    }
    const child = node.children[Math.max(0, index)]!
    const bytes = this.#remove(child, owner, number)
    if (bytes === 0) return 0
    node.dirty = true
    if (child.count === 0) {
      node.removeEntries(Math.max(0, index), Math.max(0, index) + 1)
      this.nodes--
    }
    return bytes
  }

  /** The first page after the given one, in the order of keys, whose newest copy is before `position`. */
  nextBefore(position: number, after?: PageEntry): PageEntry | undefined {
    const owner = after === undefined ? -1 : ownerOf(after.kind, after.id)
    return this.#nextBefore(this.#root, position, owner, after?.number ?? -1)
  }

  #nextBefore(node: PageNode, position: number, owner: number, number: number): PageEntry | undefined {
    const from = node.search(owner, number, true)
    if (node.level === 0) {
      for (let index = from; index < node.count; index++)
        if (node.fields[index * FIELDS + POSITION]! < position) return node.entry(index)
      return undefined
    }
    for (let index = Math.max(0, from - 1); index < node.count; index++) {
      const child = node.children[index]!
      // The pages of a node can only have moved to later positions since it was written.
      if (child.position !== -1 && child.lowest >= position) continue
      const found = this.#nextBefore(child, position, owner, number)
      if (found !== undefined) return found
    }
    return undefined
  }

  /** Every page with a copy in the log, in the order of keys. The tree must not change meanwhile. */
  *[Symbol.iterator](): IterableIterator<PageEntry> {
    for (const leaf of leavesBelow(this.#root))
      for (let index = 0; index < leaf.count; index++) yield leaf.entry(index)
  }

  // --- checkpoint ---

  /**
   * Yields the nodes to write, each after its children, without the root. The caller appends `encodeNode` and calls
   * `nodeWritten` before it asks for the next one. Nodes at positions before `evacuateBefore` are written again.
   */
  *nodesToWrite(evacuateBefore: number): IterableIterator<PageNode> {
    this.#isWriting = true
    try {
      this.#prepare(this.#root, evacuateBefore)
      yield* this.#dirtyBelow(this.#root)
    } finally {
      this.#isWriting = false
    }
  }

  nodeWritten(node: PageNode, position: number, bytes: number): void {
    node.lowest = node.lowestNow
    node.position = position
    node.bytes = bytes
    node.dirty = false
  }

  // Joins small neighbours, and marks the nodes that are written again because of their position. Returns whether the
  // node is to be written.
  #prepare(node: PageNode, evacuateBefore: number): boolean {
    if (node.position < evacuateBefore) node.dirty = true
    if (node.level === 0) return node.dirty
    for (let index = 0; index < node.count; index++) {
      const child = node.children[index]!
      const next = node.children[index + 1]
      if (child.dirty && next !== undefined && child.count + next.count <= PageTree.entriesMax / 2) {
        child.append(next)
        next.removeEntries(0, next.count)
        node.removeEntries(index + 1, index + 2)
        this.nodes--
        index--
      } else if (this.#prepare(child, evacuateBefore)) node.dirty = true
    }
    return node.dirty
  }

  *#dirtyBelow(node: PageNode): IterableIterator<PageNode> {
    // Pages can be removed while the caller waits, and empty nodes with them. The root can then be a lower node.
    for (const child of node.children.slice()) {
      if (!child.dirty || child.count === 0) continue
      yield* this.#dirtyBelow(child)
      if (child.count > 0 && child.level < this.#root.level) yield child
    }
  }

  // --- recovery ---

  /** Takes over the tree below `root`, all of whose nodes were read. */
  restore(root: PageNode): void {
    this.#root = root
    this.#unwritten = 0
    this.nodes = countNodes(root)
    this.size = 0
    this.bytes = 0
    this.#summaryBytes = summaryBytesBelow(root)
    for (const leaf of leavesBelow(root)) {
      this.size += leaf.count
      for (let index = 0; index < leaf.count; index++) this.bytes += leaf.fields[index * FIELDS + BYTES]!
    }
  }

  /** Recounts pages and nodes and compares the results with the counters. @throws Error with the difference */
  audit(): void {
    let size = 0
    let total = 0
    let last: PageEntry | undefined
    for (const entry of this) {
      size++
      total += entry.bytes
      if (last !== undefined && compare(last, entry) >= 0)
        throw new Error(`page ${text(entry)} is listed after ${text(last)}`)
      last = entry
    }
    const nodes = countNodes(this.#root)
    if (this.#summaryBytes !== summaryBytesBelow(this.#root))
      throw new Error(
        `The summaries have ${summaryBytesBelow(this.#root)} bytes, the counter is ${this.#summaryBytes}.`,
      )
    if (size !== this.size || total !== this.bytes || nodes !== this.nodes)
      throw new Error(
        `The tree has ${size} pages with ${total} bytes in ${nodes} nodes, but the counters are ${this.size}, ${this.bytes} and ${this.nodes}.`,
      )
  }
}

function ownerOf(kind: PageKind, id: number): number {
  return kind * ID_RANGE + id
}

function compare(a: PageEntry, b: PageEntry): number {
  return a.kind - b.kind || a.id - b.id || a.number - b.number
}

function text({ kind, id, number }: PageEntry): string {
  return `${kind}/${id}/${number}`
}

/** The leaves, in the order of keys. */
function leavesBelow(node: PageNode): PageNode[] {
  if (node.level === 0) return [node]
  return node.level === 1 ? node.children.slice() : node.children.flatMap(leavesBelow)
}

function summaryBytesBelow(root: PageNode): number {
  let bytes = 0
  for (const leaf of leavesBelow(root)) {
    if (leaf.summaries === undefined) continue
    for (let index = 0; index < leaf.count; index++) bytes += leaf.summaryBytes(index)
  }
  return bytes
}

function countNodes(node: PageNode): number {
  let count = 1
  for (const child of node.children) count += countNodes(child)
  return count
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
  writeU64(bytes, at + 2, Math.round(summary.bytes))
  writeU48(bytes, at + 10, summary.firstMs)
  writeU48(bytes, at + 16, summary.retainedMs)
  writeU64(bytes, at + 22, summary.firstPosition)
  writeU32(bytes, at + 30, summary.firstBytes)
  writeU64(bytes, at + 34, summary.lastPosition)
  writeU32(bytes, at + 42, summary.lastBytes)
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
