/**
 * The pages of the state and where the newest copy of each is in the log: a B+ tree whose nodes are themselves pages of
 * the log. A checkpoint writes the nodes that changed and a root, so its size follows the changes and not the number of
 * pages that exist (copy on write, as in LMDB: a written node is never changed in place).
 *
 * Invariant: keys are unique and in ascending order across the leaves; every node except an empty root has an entry.
 * Between `beginWriting` and the last node that is written nothing is added; removing a page is always allowed. A node
 * that was written before the removal still lists the page, which does no harm: the facts by which the page went follow
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
import type { PageKind, Pages } from '../queue/index.js'

/** Maximum number of entries of a node: a leaf takes at most 6 KiB in the log, an inner node at most 8 KiB. */
export const NODE_ENTRIES_MAX = 256
/** Leaf entry: u16 kind · u32 id · u48 number · u64 position · u32 bytes. */
const LEAF_ENTRY_BYTES = 24
/** Inner entry: u16 kind · u32 id · u48 number of the lower bound · u64 position · u32 bytes · u64 lowest position. */
const INNER_ENTRY_BYTES = 32
/** A node begins with u16 level · u16 entries · u32 0. */
const NODE_HEAD_BYTES = 8
/** Kind of the pages that hold nodes. It follows the kinds of pages that the tree lists. */
export const NODE_PAGE = 6

/** Fields of an entry in memory: kind and id, number, position, bytes. */
const FIELDS = 4
const OWNER = 0
const NUMBER = 1
const POSITION = 2
const BYTES = 3
const ENTRIES_FIRST = 16
const ID_RANGE = 2 ** 32

export interface PageEntry {
  readonly kind: PageKind
  /** Id of the queue or producer. */
  readonly id: number
  /** Which of several pages of that kind, for example the number of the chunk. */
  readonly number: number
  readonly position: number
  /** Size in the log, header included. */
  readonly bytes: number
}

export class PageNode {
  /** 0 for a leaf. */
  readonly level: number
  count = 0
  fields = new Float64Array(ENTRIES_FIRST * FIELDS)
  /** One child per entry; empty for a leaf. The key of an entry is a lower bound for the keys of its child. */
  children: PageNode[] = []
  /** Whether the node differs from its newest copy in the log. */
  dirty = true
  position = -1
  bytes = 0
  /** No copy of a node or page below this node is before this position, as the newest copy of the node lists them. */
  lowest = 0

  constructor(level: number) {
    this.level = level
  }

  /** Number of entries whose key is less than the given one, or also equal to it with `orEqual`. */
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
    if ((this.count + 1) * FIELDS > this.fields.length) {
      const { fields } = this
      this.fields = new Float64Array(fields.length * 2)
      this.fields.set(fields)
    }
    const at = index * FIELDS
    this.fields.copyWithin(at + FIELDS, at, this.count * FIELDS)
    this.fields.fill(0, at, at + FIELDS)
    this.fields[at + OWNER] = owner
    this.fields[at + NUMBER] = number
    if (child !== undefined) this.children.splice(index, 0, child)
    this.count++
    this.dirty = true
  }

  removeEntries(from: number, to: number): void {
    if (from === to) return
    this.fields.copyWithin(from * FIELDS, to * FIELDS, this.count * FIELDS)
    if (this.level > 0) this.children.splice(from, to - from)
    this.count -= to - from
    this.dirty = true
  }

  isAt(index: number, owner: number, number: number): boolean {
    return this.fields[index * FIELDS + OWNER] === owner && this.fields[index * FIELDS + NUMBER] === number
  }

  place(index: number, position: number, bytes: number): void {
    this.fields[index * FIELDS + POSITION] = position
    this.fields[index * FIELDS + BYTES] = bytes
  }

  /** The page or, in an inner node, the child. */
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
    }
  }

  /** The lowest position of a page or node below this node, as it would be written now; Infinity if it is empty. */
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
    let room = this.fields.length / FIELDS
    while (room < count) room *= 2
    if (room * FIELDS > this.fields.length) {
      const { fields } = this
      this.fields = new Float64Array(room * FIELDS)
      this.fields.set(fields)
    }
    this.fields.set(other.fields.subarray(index * FIELDS, other.count * FIELDS), this.count * FIELDS)
    this.children.push(...other.children.slice(index))
    this.lowest = Math.min(this.lowest, other.position === -1 ? 0 : other.lowest)
    this.count = count
    this.dirty = true
  }
}

export class PageTree implements Pages {
  #root = new PageNode(0)
  #isWriting = false
  /** Number of pages that exist, but have no copy in the log yet. */
  #unwritten = 0
  /** Number of pages with a copy in the log. */
  size = 0
  /** Total size in the log of the newest copies of all pages. The nodes of the tree are not included. */
  bytes = 0
  /** Number of nodes, the root included. */
  nodes = 1

  /** Number of pages that exist, or will exist after the next checkpoint. */
  get count(): number {
    return this.size + this.#unwritten
  }

  /** Size of all nodes in the log, with an entry for each page that is not written yet. */
  get nodeBytes(): number {
    const perChild = BATCH_HEADER_BYTES + NODE_HEAD_BYTES + INNER_ENTRY_BYTES
    return this.count * LEAF_ENTRY_BYTES + (this.nodes - 1) * perChild + NODE_HEAD_BYTES
  }

  get root(): PageNode {
    return this.#root
  }

  /** A page came into existence, which the next checkpoint will write. */
  created(): void {
    this.#unwritten++
  }

  /** The newest copy of the page is at `position` and takes `bytes`. */
  written(kind: PageKind, id: number, number: number, position: number, bytes: number): void {
    if (this.#isWriting) throw new Error('a page was added to the tree while its nodes were written')
    const owner = ownerOf(kind, id)
    const split = this.#set(this.#root, owner, number, position, bytes)
    if (split === undefined) return
    const root = new PageNode(this.#root.level + 1)
    root.insert(0, this.#root.fields[OWNER]!, this.#root.fields[NUMBER]!, this.#root)
    root.insert(1, split.fields[OWNER]!, split.fields[NUMBER]!, split)
    this.#root = root
    this.nodes++
  }

  // Returns the right half if the node was split.
  #set(node: PageNode, owner: number, number: number, position: number, bytes: number): PageNode | undefined {
    node.dirty = true
    const index = node.search(owner, number, true) - 1
    if (node.level > 0) {
      const at = Math.max(0, index)
      const split = this.#set(node.children[at]!, owner, number, position, bytes)
      if (split === undefined) return undefined
      node.insert(at + 1, split.fields[OWNER]!, split.fields[NUMBER]!, split)
    } else if (index >= 0 && node.isAt(index, owner, number)) {
      this.bytes += bytes - node.fields[index * FIELDS + BYTES]!
      node.place(index, position, bytes)
      return undefined
    } else {
      node.insert(index + 1, owner, number)
      node.place(index + 1, position, bytes)
      this.size++
      this.#unwritten--
      this.bytes += bytes
    }
    if (node.count < NODE_ENTRIES_MAX) return undefined
    this.nodes++
    // Pages are often added in ascending order. Then the left node stays full.
    return node.split(index + 2 === node.count ? node.count - 1 : node.count >>> 1)
  }

  /** The page does not exist any more. */
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
      const only = this.#root.children[0] ?? new PageNode(0)
      this.nodes -= this.#root.count
      this.#root.removeEntries(0, this.#root.count)
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
    yield* entriesOf(this.#root)
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
      if (child.dirty && next !== undefined && child.count + next.count <= NODE_ENTRIES_MAX / 2) {
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
    // Pages can be removed while the caller waits, and empty nodes with them.
    for (const child of node.children.slice()) {
      if (!child.dirty || child.count === 0) continue
      yield* this.#dirtyBelow(child)
      if (child.count > 0 && child !== this.#root) yield child
    }
  }

  // --- recovery ---

  /** Takes over the tree below `root`, whose nodes were all read. */
  restore(root: PageNode): void {
    this.#root = root
    this.#unwritten = 0
    this.nodes = countNodes(root)
    this.size = 0
    this.bytes = 0
    for (const { bytes } of this) {
      this.size++
      this.bytes += bytes
    }
  }

  /** Recounts everything and compares. @throws Error with the difference */
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

function* entriesOf(node: PageNode): IterableIterator<PageEntry> {
  for (let index = 0; index < node.count; index++) {
    if (node.level === 0) yield node.entry(index)
    else yield* entriesOf(node.children[index]!)
  }
}

function countNodes(node: PageNode): number {
  let count = 1
  for (const child of node.children) count += countNodes(child)
  return count
}

export function encodeNode(node: PageNode): Uint8Array {
  const entryBytes = node.level === 0 ? LEAF_ENTRY_BYTES : INNER_ENTRY_BYTES
  const bytes = new Uint8Array(NODE_HEAD_BYTES + node.count * entryBytes)
  writeU16(bytes, 0, node.level)
  writeU16(bytes, 2, node.count)
  let at = NODE_HEAD_BYTES
  for (let index = 0; index < node.count; index++, at += entryBytes) {
    const { kind, id, number, position, bytes: pageBytes } = node.entry(index)
    writeU16(bytes, at, kind)
    writeU32(bytes, at + 2, id)
    writeU48(bytes, at + 6, number)
    writeU64(bytes, at + 12, position)
    writeU32(bytes, at + 20, pageBytes)
    if (node.level > 0) writeU64(bytes, at + 24, node.children[index]!.lowest)
  }
  return bytes
}

/** Decodes a node. The children of an inner node have a position, but no entries yet. */
export function decodeNode(bytes: Uint8Array, start: number): PageNode {
  const node = new PageNode(readU16(bytes, start))
  const count = readU16(bytes, start + 2)
  const entryBytes = node.level === 0 ? LEAF_ENTRY_BYTES : INNER_ENTRY_BYTES
  let at = start + NODE_HEAD_BYTES
  for (let index = 0; index < count; index++, at += entryBytes) {
    let child: PageNode | undefined
    if (node.level > 0) {
      child = new PageNode(node.level - 1)
      child.position = readU64(bytes, at + 12)
      child.bytes = readU32(bytes, at + 20)
      child.lowest = readU64(bytes, at + 24)
      child.dirty = false
    }
    const owner = ownerOf(readU16(bytes, at) as PageKind, readU32(bytes, at + 2))
    node.insert(index, owner, readU48(bytes, at + 6), child)
    if (child === undefined) node.place(index, readU64(bytes, at + 12), readU32(bytes, at + 20))
  }
  node.dirty = false
  return node
}
