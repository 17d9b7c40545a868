import { QUEUE_OPTION_DEFAULTS } from '@sluice/protocol'
import fc from 'fast-check'
import { describe, expect, it, vi } from 'vitest'
import { Chunks } from './chunks.js'
import { ID_WORDS } from './hash.js'
import { HashIndex } from './hash-index.js'
import { IdWindow, PendingIds } from './ids.js'
import { Keys, NONE } from './keys.js'
import type { Pages } from './pages.js'
import { runs } from '../../../../test/amount.js'
import { expectSame } from '../../../../test/same.js'

/** Makes a hash whose first word often collides. */
function words(id: number): Uint32Array {
  return Uint32Array.of(id % 7, id, id * 3, 1)
}

/** Contents of the pages of a window, by page number, and the number of pages that exist. */
class WindowPages implements Pages {
  readonly written = new Map<number, Uint8Array>()
  count = 0

  summary(): undefined {}

  created(): void {
    this.count++
  }

  removed(_kind: number, _id: number, number: number): void {
    this.count--
    this.written.delete(number)
  }
}

class Names extends HashIndex {
  readonly hashes: number[] = []
  protected override wordOf(ref: number): number {
    return this.hashes[ref]! % 5
  }
  protected override isHashOf(ref: number, _h0: number, h1: number): boolean {
    return this.hashes[ref] === h1
  }
  find(hash: number): number {
    return this.lookUp(hash % 5, hash, 0, 0)
  }
  put(hash: number): void {
    this.enter(this.hashes.push(hash) - 1)
  }
  drop(hash: number): void {
    this.remove(this.find(hash))
  }
}

/** An index of hashes that are all different, as in practice. */
class Spread extends HashIndex {
  protected override wordOf(ref: number): number {
    return Math.imul(ref, 0x9e3779b1) >>> 0
  }
  protected override isHashOf(ref: number, h0: number): boolean {
    return this.wordOf(ref) === h0
  }
  find(ref: number): number {
    return this.lookUp(this.wordOf(ref), 0, 0, 0)
  }
  put(ref: number): void {
    this.enter(ref)
  }
  drop(ref: number): void {
    this.remove(ref)
  }
}

describe('HashIndex', () => {
  it('holds the same entries as a set, even if hashes collide', () => {
    let compared = 0
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 40 }), { minLength: 200, maxLength: 400 }), (list) => {
        const index = new Names()
        const plain = new Set<number>()
        for (const hash of list) {
          if (plain.delete(hash)) index.drop(hash)
          else {
            plain.add(hash)
            index.put(hash)
          }
          expectSame(index.size, plain.size)
        }
        for (let hash = 0; hash <= 40; hash++) {
          const ref = index.find(hash)
          expectSame(ref === -1 ? undefined : index.hashes[ref], plain.has(hash) ? hash : undefined)
          compared++
        }
      }),
      { numRuns: 100 },
    )
    expect(compared).toBe(4_100)
  })

  it('grows and shrinks by one segment at a time, and finds every entry at each size', () => {
    const COUNT = 60_000
    const index = new Spread()
    let least = Infinity
    let worst = 0
    const change = (what: () => void): void => {
      const before = index.places
      what()
      worst = Math.max(worst, Math.abs(index.places - before))
    }
    for (let ref = 0; ref < COUNT; ref++) {
      change(() => index.put(ref))
      if (ref > 4_096) least = Math.min(least, index.size / index.places)
    }
    expect(worst).toBeLessThanOrEqual(4_096)
    // Between a quarter and three eighths of the places are used, so an entry takes at most 32 bytes.
    expect(least).toBeGreaterThan(0.25)
    expect(index.size / index.places).toBeLessThanOrEqual(0.375)
    const refs = Array.from({ length: COUNT }, (_, ref) => ref)
    expect(refs.filter((ref) => index.find(ref) !== ref)).toEqual([])
    let wrong = 0
    // Entries are removed in a different order from the one in which they were added.
    for (let step = 0; step < COUNT; step++) {
      const ref = (step * 7_919) % COUNT
      change(() => index.drop(ref))
      const other = (ref + 7_919) % COUNT
      if (index.find(ref) !== -1 || index.find(other) !== (step + 1 < COUNT ? other : -1)) wrong++
    }
    expect(wrong).toBe(0)
    expect(worst).toBeLessThanOrEqual(4_096)
    expect(index.size).toBe(0)
    expect(index.places).toBeLessThanOrEqual(16)
  })
})

describe('PendingIds', () => {
  type Step = 'add' | 'done' | 'first' | 'again'
  const steps = fc.array(
    fc.record({
      how: fc.constantFrom<Step>('add', 'add', 'add', 'done', 'first', 'again'),
      pick: fc.nat(),
      id: fc.nat(3),
    }),
    { minLength: 100, maxLength: 400 },
  )

  it('finds the first of several pending messages with the same id, whichever messages are added and removed', () => {
    let compared = 0
    fc.assert(
      fc.property(steps, (list) => {
        const chunks = new Chunks()
        const pending = new PendingIds(chunks)
        const lists = new Map<number, number[]>()
        const gone: { readonly id: number; readonly offset: number }[] = []
        let next = 1_000
        for (const { how, pick, id } of list) {
          const others = lists.get(id) ?? []
          lists.set(id, others)
          if (how === 'add') {
            // Some offsets are far apart.
            const offset = (next += pick % 7 === 0 ? 3_000 : 1)
            chunks.toFill(offset).setId(offset % 1_024, words(id), 0)
            pending.add(offset)
            others.push(offset)
          } else if (how === 'again') {
            const [back] = gone.splice(pick % Math.max(1, gone.length), 1)
            if (back === undefined) continue
            pending.add(back.offset)
            lists.get(back.id)!.push(back.offset)
          } else if (others.length > 0) {
            const [offset] = others.splice(how === 'first' ? 0 : pick % others.length, 1)
            pending.done(offset!)
            gone.push({ id, offset: offset! })
          }
          for (const [each, offsets] of lists) {
            const isMeant = (offset: number): boolean => offset % 2 === 0
            const found = [pending.find(words(each), 0), pending.find(words(each), 0, isMeant)]
            const expected = [offsets[0] ?? -1, offsets.find(isMeant) ?? -1]
            if (found.join() !== expected.join()) expect(found).toEqual(expected)
            compared++
          }
          expectSame(pending.count, [...lists.values()].filter(({ length }) => length > 0).length)
        }
      }),
      { numRuns: 60 },
    )
    expect(compared).toBeGreaterThan(20_000)
  })

  it('takes a few steps for each message, even if many messages have the same id', () => {
    const COUNT = 5_000
    const chunks = new Chunks()
    const pending = new PendingIds(chunks)
    for (let offset = 0; offset < COUNT; offset++) chunks.toFill(offset).setId(offset % 1_024, words(1), 0)
    const looks = vi.spyOn(chunks, 'at')
    for (let offset = 0; offset < COUNT; offset++) pending.add(offset)
    expect(pending.count).toBe(1)
    // Entries are removed in a different order from the one in which they were added.
    for (let step = 0; step < COUNT; step++) pending.done((step * 7_919) % COUNT)
    expect(pending.count).toBe(0)
    expect(pending.places).toBeLessThanOrEqual(16)
    expect(looks.mock.calls.length).toBeLessThan(40 * COUNT)
  })
})

describe('Keys', () => {
  it('keeps the slot of a key while one of its messages is in the queue', () => {
    const keys = new Keys()
    const slot = keys.hold(1, 2)
    expect(keys.hold(1, 2)).toBe(slot)
    const other = keys.hold(1, 3)
    expect(other).not.toBe(slot)
    keys.release(slot)
    expect(new Set(keys.slots())).toEqual(new Set([slot, other]))
    // The slot is reused, without its old contents.
    keys.setHead(slot, 4)
    keys.setTail(slot, 5)
    keys.offer(slot, 4, 1_000)
    keys.countLeased(slot, 1)
    keys.countRetrying(slot, 1)
    keys.release(slot)
    expect([...keys.slots()]).toEqual([other])
    expect(keys.hold(9, 9)).toBe(slot)
    expect([keys.headOf(slot), keys.tailOf(slot), keys.offeredOf(slot)]).toEqual([NONE, NONE, NONE])
    expect([keys.sinceOf(slot), keys.leasedOf(slot), keys.retryingOf(slot)]).toEqual([0, 0, 0])
    expect([keys.low(slot), keys.high(slot)]).toEqual([9, 9])
  })

  it('keeps the values of each key, whichever keys are added and removed, and releases unused pages', () => {
    let most = 0
    fc.assert(
      fc.property(fc.array(fc.nat(6), { minLength: 10, maxLength: 20 }), (list) => {
        // The hashes are spread: consecutive ones would form one chain, and each removal would walk to its end.
        const hashOf = (key: number): number => Math.imul(key, 0x9e3779b1) >>> 0
        const keys = new Keys()
        const plain = new Map<number, number>()
        let next = 0
        // The list starts with additions, so that there are always more than ten pages.
        for (const what of [6, 6, 6, ...list]) {
          // Adds thousands of keys, or removes most of them.
          if (what > 2) {
            for (let i = 0; i < what * 700; i++) {
              const slot = keys.hold(hashOf(next), 77)
              keys.setHead(slot, next * 10)
              keys.setTail(slot, next * 20)
              keys.offer(slot, next * 30, next * 40)
              keys.countLeased(slot, 1)
              if (plain.has(slot)) expect(slot).toBe('a slot that is not in use')
              plain.set(slot, next++)
            }
          } else {
            for (const [slot, key] of plain) {
              if (key % 5 === what) continue
              keys.release(slot)
              plain.delete(slot)
            }
          }
          most = Math.max(most, keys.pages)
          expect(keys.size).toBe(plain.size)
          expect([...keys.slots()].filter((slot) => !plain.has(slot))).toEqual([])
          // All keys are compared at once, because there are hundreds of thousands.
          const wrong = [...plain].filter(([slot, key]) => {
            const isFound = keys.hold(hashOf(key), 77) === slot
            keys.release(slot)
            const line = keys.headOf(slot) === key * 10 && keys.tailOf(slot) === key * 20
            const offer = keys.offeredOf(slot) === key * 30 && keys.sinceOf(slot) === key * 40
            return !isFound || !line || !offer || keys.leasedOf(slot) !== 1
          })
          expect(wrong).toEqual([])
        }
        for (const slot of plain.keys()) keys.release(slot)
        expect(keys.size).toBe(0)
        expect(keys.pages).toBeLessThanOrEqual(1)
      }),
      { numRuns: runs(1, 40) },
    )
    expect(most).toBeGreaterThan(10)
  }, 120_000)
})

type Step =
  | { readonly kind: 'accept'; readonly id: number }
  | { readonly kind: 'pass'; readonly ms: number }
  | { readonly kind: 'pages' }

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    {
      weight: 20,
      arbitrary: fc.record({ kind: fc.constant('accept' as const), id: fc.integer({ min: 0, max: 1000 }) }),
    },
    {
      weight: 3,
      arbitrary: fc.record({ kind: fc.constant('pass' as const), ms: fc.integer({ min: 0, max: 400 }) }),
    },
    { weight: 1, arbitrary: fc.constant({ kind: 'pages' as const }) },
  ),
  { minLength: 1500, maxLength: 4000, size: 'max' },
)
const WINDOW_MS = 5_000

describe('IdWindow', () => {
  it('remembers an id for the time of the window and no longer, even after ids are restored from pages', () => {
    const numRuns = runs(5, 150)
    let looked = 0
    let duplicates = 0
    let restarts = 0
    fc.assert(
      fc.property(steps, (list) => {
        const pages = new WindowPages()
        let window = new IdWindow(pages)
        const plain = new Map<number, { readonly offset: number; readonly untilMs: number }>()
        let nowMs = 1_000
        let offset = 0
        let position = 0
        for (const step of list) {
          if (step.kind === 'pass') nowMs += step.ms
          window.forgetUntil(nowMs - WINDOW_MS)
          // The oldest id is forgotten first.
          for (const [id, { untilMs }] of plain) {
            if (untilMs > nowMs) break
            plain.delete(id)
          }
          if (step.kind === 'accept') {
            const expected = plain.get(step.id)?.offset ?? -1
            expectSame(window.find(words(step.id), 0), expected)
            looked++
            if (expected === -1) {
              window.remember(words(step.id), 0, offset, nowMs)
              plain.set(step.id, { offset, untilMs: nowMs + WINDOW_MS })
            } else duplicates++
            offset++
          } else if (step.kind === 'pages') {
            for (const page of window.pagesToWrite()) {
              pages.written.set(page, window.encodePage(page))
              window.pageWritten(page)
            }
            const restored = new IdWindow(pages)
            // Recovery passes pages in the order of their positions, which need not be the order of their numbers.
            for (const bytes of [...pages.written.values()].reverse())
              restored.restorePage(bytes, 0, bytes.length, ++position)
            restored.restored()
            restored.forgetUntil(nowMs - WINDOW_MS)
            window = restored
            restarts++
            const [from, end] = window.pageNumbers
            expect(pages.count).toBe(end - from)
            for (const number of pages.written.keys()) expect(number >= from && number < end).toBe(true)
          }
          expectSame(window.size, plain.size)
        }
      }),
      { numRuns },
    )
    expect(looked).toBeGreaterThan(1_000 * numRuns)
    expect(duplicates).toBeGreaterThan(100 * numRuns)
    expect(restarts).toBeGreaterThan(20 * numRuns)
    expect(words(3)).toHaveLength(ID_WORDS)
    expect(QUEUE_OPTION_DEFAULTS.dedupMaxIds).toBe(1_000_000)
  })
})
