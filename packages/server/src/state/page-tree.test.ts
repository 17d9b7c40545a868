/** The page tree against a plain map, across checkpoints during which pages are removed, and across restarts. */
import fc from 'fast-check'
import { afterEach, expect, it } from 'vitest'
import { PAGE, type PageKind } from '../queue/index.js'
import { decodeNode, encodeNode, type PageNode } from './page-node.js'
import { NODE_ENTRIES_MAX, PageTree } from './page-tree.js'
import { runs } from '../../../../test/amount.js'
import { expectSame } from '../../../../test/same.js'

interface Key {
  readonly kind: PageKind
  readonly id: number
  readonly number: number
}

const KINDS = Object.values(PAGE)
const textOf = ({ kind, id, number }: Key): string => `${kind}/${id}/${number}`

/** A log that holds the nodes of a tree, and gives each page that is written a position. */
class Disk {
  position = 1
  readonly nodes = new Map<number, Uint8Array>()
  root: Uint8Array = new Uint8Array(0)

  append(bytes: number): number {
    const at = this.position
    this.position += bytes
    return at
  }

  /** Writes a checkpoint. `between` runs after each node. Returns the number of nodes that were written. */
  write(tree: PageTree, evacuateBefore = 0, between: () => void = () => {}): number {
    let written = 0
    for (const node of tree.nodesToWrite(evacuateBefore)) {
      const bytes = encodeNode(node)
      const position = this.append(bytes.length)
      this.nodes.set(position, bytes)
      tree.nodeWritten(node, position, bytes.length)
      written++
      between()
    }
    this.root = encodeNode(tree.root)
    return written
  }

  read(): PageTree {
    const root = decodeNode(this.root, 0)
    const fill = (node: PageNode): void => {
      for (const child of node.children) {
        child.take(decodeNode(this.nodes.get(child.position)!, 0))
        fill(child)
      }
    }
    fill(root)
    const tree = new PageTree()
    tree.restore(root)
    return tree
  }
}

function listed(tree: PageTree): Map<string, number> {
  return new Map([...tree].map((page) => [textOf(page), page.position]))
}

const STEP = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      step: fc.constant('write' as const),
      id: fc.nat(40),
      from: fc.nat(400),
      count: fc.integer({ min: 1, max: 300 }),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      step: fc.constant('remove' as const),
      id: fc.nat(40),
      from: fc.nat(400),
      count: fc.integer({ min: 1, max: 600 }),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      step: fc.constant('checkpoint' as const),
      evacuate: fc.double({ min: 0, max: 1, noNaN: true }),
      removed: fc.nat(3),
    }),
  },
)

afterEach(() => {
  PageTree.entriesMax = NODE_ENTRIES_MAX
})

it('lists the pages that a plain map lists, through splits, joins, checkpoints and restarts', () => {
  const deepest = compareWithMap(STEP, runs(8, 300))
  expect(deepest).toBeGreaterThan(0)
})

it('lists the pages that a plain map lists, with nodes of four entries', () => {
  PageTree.entriesMax = 4
  const step = fc.oneof(
    ...(['write', 'remove'] as const).map((kind) =>
      fc.record({
        step: fc.constant(kind),
        id: fc.nat(8),
        from: fc.nat(12),
        count: fc.integer({ min: 1, max: 6 }),
      }),
    ),
    // Single pages between pages that were removed.
    ...([1, 1, 1, 20] as const).map((count) =>
      fc.record({
        step: fc.constant(count === 1 ? ('write' as const) : ('remove' as const)),
        id: fc.nat(1),
        from: fc.nat(60),
        count: fc.constant(count),
      }),
    ),
    fc.record({
      step: fc.constant('checkpoint' as const),
      evacuate: fc.double({ min: 0, max: 1, noNaN: true }),
      removed: fc.nat(3),
    }),
  )
  expect(compareWithMap(step, runs(200, 5_000), 120)).toBeGreaterThan(2)
})

it('finds each page after nodes whose first entries were added late are joined', () => {
  PageTree.entriesMax = 4
  const tree = new PageTree()
  const disk = new Disk()
  const numbers = new Set<number>()
  const write = (...added: number[]): void => {
    for (const number of added) {
      if (!numbers.has(number)) tree.created()
      numbers.add(number)
      tree.written(PAGE.chunk, 1, number, disk.append(10), 10)
    }
  }
  const remove = (...removed: number[]): void => {
    for (const number of removed) {
      numbers.delete(number)
      tree.removed(PAGE.chunk, 1, number)
    }
  }
  write(10, 18, 9, 6, 36, 22, 39, 25, 31)
  remove(22)
  write(26, 34, 28, 29, 30)
  remove(28, 29)
  write(17, 29, 19)
  remove(19)
  // The checkpoint joins nodes.
  disk.write(tree)
  for (const number of numbers) expect(tree.positionOf(PAGE.chunk, 1, number)).toBeGreaterThan(0)
  remove(...numbers)
  tree.audit()
  expect([tree.size, tree.bytes, tree.nodes]).toEqual([0, 0, 1])
})

type Step =
  | { readonly step: 'write' | 'remove'; readonly id: number; readonly from: number; readonly count: number }
  | { readonly step: 'checkpoint'; readonly evacuate: number; readonly removed: number }

/** Returns the highest level of a root. */
function compareWithMap(step: fc.Arbitrary<Step>, numRuns: number, maxLength = 60): number {
  let deepest = 0
  fc.assert(
    fc.property(fc.array(step, { minLength: 20, maxLength }), (steps) => {
      const disk = new Disk()
      let tree = new PageTree()
      const plain = new Map<string, Key & { position: number }>()
      const removeSome = (count: number): void => {
        for (const page of [...plain.values()].slice(0, count)) {
          tree.removed(page.kind, page.id, page.number)
          plain.delete(textOf(page))
        }
      }
      for (const step of steps) {
        if (step.step === 'checkpoint') {
          const before = Math.floor(disk.position * step.evacuate)
          const old = [...plain.values()].filter(({ position }) => position < before)
          let moved = 0
          for (let page = tree.nextBefore(before); page !== undefined; page = tree.nextBefore(before, page)) {
            const position = disk.append(page.bytes)
            tree.written(page.kind, page.id, page.number, position, page.bytes)
            plain.get(textOf(page))!.position = position
            moved++
          }
          expect(moved).toBe(old.length)
          const atStart = listed(tree)
          disk.write(tree, before, () => removeSome(step.removed))
          tree.audit()
          deepest = Math.max(deepest, tree.root.level)
          const restored = disk.read()
          restored.audit()
          const now = listed(tree)
          const found = listed(restored)
          // Pages that were removed in the meantime can still be listed, but no other pages.
          for (const [key, position] of now) expectSame(found.get(key), position)
          for (const [key, position] of found) expectSame(atStart.get(key), position)
          expect(restored.root.lowestNow).toBeGreaterThanOrEqual(before)
          for (const page of [...restored]) {
            if (plain.has(textOf(page))) continue
            restored.removed(page.kind, page.id, page.number)
          }
          tree = restored
          tree.audit()
        } else {
          for (let number = step.from; number < step.from + step.count; number++) {
            const key = { kind: KINDS[step.id % KINDS.length]!, id: step.id, number }
            const known = plain.get(textOf(key))
            if (step.step === 'remove') {
              if (known !== undefined) tree.removed(key.kind, key.id, key.number)
              plain.delete(textOf(key))
              continue
            }
            if (known === undefined) tree.created()
            const position = disk.append(10 + (number % 7))
            tree.written(key.kind, key.id, key.number, position, 10 + (number % 7))
            plain.set(textOf(key), { ...key, position })
          }
          tree.audit()
        }
        expect(tree.count).toBe(plain.size)
        for (const page of tree) expectSame(page.position, plain.get(textOf(page))?.position)
      }
    }),
    { numRuns },
  )
  return deepest
}

it('writes one leaf and its parents when one page in a million has changed, and nothing when none has', () => {
  const disk = new Disk()
  const tree = new PageTree()
  for (let id = 1; id <= 100_000; id++) {
    for (let number = 0; number < 3; number++) {
      tree.created()
      tree.written(PAGE.chunk, id, number, disk.append(100), 100)
    }
  }
  expect(disk.write(tree)).toBe(tree.nodes - 1)
  expect(tree.nodes).toBeLessThan((300_000 / NODE_ENTRIES_MAX) * 1.1)
  expect(disk.write(tree)).toBe(0)
  tree.written(PAGE.chunk, 50_000, 1, disk.append(100), 100)
  expect(disk.write(tree)).toBe(tree.root.level)
  for (let id = 1; id < 100_000; id++)
    for (let number = 0; number < 3; number++) tree.removed(PAGE.chunk, id, number)
  expect([tree.nodes, tree.size, tree.bytes]).toEqual([1, 3, 300])
  tree.audit()
})
