/**
 * Planted bugs of the tree of pages, of cold chunks and of retention. They are found in worlds with long backlogs; see
 * backlog.ts.
 */
import {
  CHUNK_MESSAGES,
  Chunk,
  FactBuffer,
  PAGE,
  type PageKind,
} from '../../packages/server/src/queue/index.js'
import { Contents } from '../../packages/server/src/queue/contents.js'
import { Source } from '../../packages/server/src/queue/source.js'
import { Chunks } from '../../packages/server/src/queue/chunks.js'
import { ColdChunks } from '../../packages/server/src/state/cold-chunks.js'
import { PageNode } from '../../packages/server/src/state/page-node.js'
import { PageTree } from '../../packages/server/src/state/page-tree.js'
import { Replay } from '../../packages/server/src/state/replay.js'
import type { Defect } from './defect.js'
import { replaced } from './defects.js'

/** The nodes from the root to the leaf of a page. */
function pathTo(tree: PageTree, kind: PageKind, id: number, number: number): PageNode[] {
  const path: PageNode[] = []
  const owner = kind * 2 ** 32 + id
  for (let node: PageNode | undefined = tree.root; node !== undefined;) {
    path.push(node)
    node = node.children[Math.max(0, node.search(owner, number, true) - 1)]
  }
  return path
}

/** Replaces a getter of a class until it is restored. */
function replacedGetter<Class extends object>(
  prototype: Class,
  name: keyof Class,
  get: (this: Class) => unknown,
): () => void {
  const before = Object.getOwnPropertyDescriptor(prototype, name)!
  Object.defineProperty(prototype, name, { configurable: true, get })
  return () => Object.defineProperty(prototype, name, before)
}

export const STORAGE_DEFECTS: readonly Defect[] = [
  {
    name: 'a node is not written again after a page of it moved',
    install: () =>
      replaced(PageTree.prototype, (before) => ({
        written(this: PageTree, kind, id, number, position, bytes, summary) {
          const isMoved = this.positionOf(kind, id, number) !== -1
          const path = pathTo(this, kind, id, number)
          const wereDirty = path.map(({ dirty }) => dirty)
          before.written.call(this, kind, id, number, position, bytes, summary)
          if (isMoved) for (const [at, node] of path.entries()) node.dirty = wereDirty[at]!
        },
      })),
  },
  {
    name: 'a split loses the last entry of a node',
    install: () =>
      replaced(PageNode.prototype, (before) => ({
        split(this: PageNode, index) {
          const right = before.split.call(this, index)
          if (right.count > 1) right.removeEntries(right.count - 1, right.count)
          return right
        },
      })),
  },
  {
    name: 'a page that is gone stays listed',
    install: () =>
      replaced(PageTree.prototype, (before) => ({
        removed(this: PageTree, kind, id, number) {
          const page = this.find(kind, id, number)
          before.removed.call(this, kind, id, number)
          if (page === undefined || kind !== PAGE.chunk) return
          const node = pathTo(this, kind, id, number).at(-1)!
          const owner = kind * 2 ** 32 + id
          const index = node.search(owner, number, false)
          node.insert(index, owner, number)
          node.place(index, page.position, page.bytes)
        },
      })),
  },
  {
    name: 'the lowest position below a node ignores its first entry',
    install: () =>
      replacedGetter(PageNode.prototype, 'lowestNow', function (this: PageNode) {
        let lowest = Infinity
        for (let index = Math.min(1, this.count - 1); index < this.count; index++) {
          const { position } = this.entry(index)
          lowest = Math.min(lowest, position, this.children[index]?.lowest ?? Infinity)
        }
        return lowest
      }),
  },
  {
    name: 'a summary names the old segments after a relocation',
    install: () =>
      replaced(PageTree.prototype, (before) => ({
        written(this: PageTree, kind, id, number, position, bytes, summary) {
          const old = kind === PAGE.chunk ? this.summary(id, number) : undefined
          const kept = old === undefined || summary === undefined ? summary : { ...summary, uses: old.uses }
          before.written.call(this, kind, id, number, position, bytes, kept)
        },
      })),
  },
  {
    name: 'a chunk with leased messages leaves memory',
    install: () =>
      replaced(Contents.prototype, (before) => ({
        makeCold(this: Contents, chunk) {
          Object.defineProperty(chunk.marks, 'areNone', { value: true, configurable: true })
          const isCold = before.makeCold.call(this, chunk)
          if (!isCold) Reflect.deleteProperty(chunk.marks, 'areNone')
          return isCold
        },
      })),
  },
  {
    name: 'a chunk that was relocated leaves memory before its page is written again',
    install: () =>
      replaced(Contents.prototype, (before) => ({
        makeCold(this: Contents, chunk) {
          const { dirty } = chunk
          chunk.dirty = false
          const isCold = before.makeCold.call(this, chunk)
          if (!isCold) chunk.dirty = dirty
          return isCold
        },
      })),
  },
  {
    name: 'the chunks whose leases can be claimed are not read after a restart',
    install: () => replaced(Replay.prototype, () => ({ coldHeads: () => [] })),
  },
  {
    name: 'the chunks whose leases can be claimed are counted, and not their messages',
    install: () =>
      replaced(Chunks.prototype, () => ({
        coldHead(this: Chunks, messages) {
          const numbers = [...this].map(({ number }) => number)
          const all = [...numbers, ...this.coldNumbers].sort((a, b) => a - b)
          return all
            .slice(0, messages / CHUNK_MESSAGES)
            .filter((number) => this.isCold(number * CHUNK_MESSAGES))
        },
      })),
  },
  {
    name: 'the counters of a queue are taken for older than its chunks',
    install: () =>
      replaced(Replay.prototype, (before) => ({
        restorePage(this: Replay, bytes, at, position) {
          before.restorePage.call(this, bytes, at, bytes[at + 12] === PAGE.counters ? 0 : position)
        },
      })),
  },
  {
    name: 'the definition of a queue is not written again after a change',
    install: () =>
      replaced(Contents.prototype, () => ({
        definitionChanged(this: Contents) {
          this.dirty = true
        },
      })),
  },
  {
    name: 'a fact about a cold chunk is skipped at a start',
    install: () => replaced(Replay.prototype, () => ({ coldIn: () => [] })),
  },
  {
    name: 'a cold chunk is taken back from the page before its newest one',
    install: () => {
      const older = new WeakMap<PageTree, Map<string, number>>()
      const restore = [
        replaced(PageTree.prototype, (before) => ({
          written(this: PageTree, kind, id, number, position, bytes, summary) {
            const last = this.positionOf(kind, id, number)
            const known = older.get(this) ?? new Map<string, number>()
            older.set(this, known)
            if (kind === PAGE.chunk && last !== -1) known.set(`${id}:${number}`, last)
            before.written.call(this, kind, id, number, position, bytes, summary)
          },
          positionOf(this: PageTree, kind, id, number) {
            const newest = before.positionOf.call(this, kind, id, number)
            return isTakingBack ? (older.get(this)?.get(`${id}:${number}`) ?? newest) : newest
          },
        })),
        replaced(ColdChunks.prototype, (before) => ({
          positionOf(this: ColdChunks, queue, offset) {
            isTakingBack = true
            const position = before.positionOf.call(this, queue, offset)
            isTakingBack = false
            return position
          },
        })),
      ]
      return () => {
        for (const one of restore) one()
      }
    },
  },
  {
    name: 'a purge leaves the bytes of cold chunks in their segments',
    install: () => replaced(Chunks.prototype, () => ({ removeUses() {} })),
  },
  {
    name: 'the release of retained messages is not written',
    install: () => replaced(FactBuffer.prototype, () => ({ release() {} })),
  },
  {
    name: 'the end of retention releases one message too many',
    install: () =>
      replaced(Source.prototype, (before) => ({
        releaseFact(this: Source, from, end) {
          before.releaseFact.call(this, from, end + 1)
        },
      })),
  },
  {
    name: 'an acknowledged message is not retained if it is the last of its batch',
    install: () =>
      replaced(Chunk.prototype, (before) => ({
        retain(this: Chunk, from, to, ackedMs, bytes) {
          return before.retain.call(this, from, to - from > 1 ? to - 1 : to, ackedMs, bytes)
        },
      })),
  },
  {
    name: 'retained messages do not keep their batch in the log',
    install: () =>
      replaced(Chunk.prototype, () => ({
        isUnneededHere(this: Chunk, batch) {
          return this.isGoneHere(batch)
        },
      })),
  },
]

let isTakingBack = false
