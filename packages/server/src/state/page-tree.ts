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
import { BATCH_HEADER_BYTES } from '@sluice/protocol'
import { PAGE, type ChunkSummary, type PageKind, type Pages } from '../queue/index.js'
import {
  BYTES,
  FIELDS,
  INNER_ENTRY_BYTES,
  LEAF_ENTRY_BYTES,
  NODE_HEAD_BYTES,
  NUMBER,
  OWNER,
  POSITION,
  PageNode,
  ownerOf,
  type PageEntry,
} from './page-node.js'

/**
 * Maximum number of entries of a node. In the log, an inner node takes at most 8 KiB, and a leaf at most 6 KiB, or 28 KiB if
 * each of its entries has a summary.
 */
export const NODE_ENTRIES_MAX = 256
/** Kind of the pages that hold nodes, which the tree does not list. */
export const NODE_PAGE = 6

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
