import { QUEUE_OPTION_DEFAULTS } from '@sluice/protocol'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { ID_WORDS } from './hash.js'
import { HashIndex } from './hash-index.js'
import { IdWindow } from './ids.js'
import { Keys } from './keys.js'

/** A hash that collides often in its first word, as a bad day would have it. */
function words(id: number): Uint32Array {
  return Uint32Array.of(id % 7, id, id * 3, 1)
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

describe('HashIndex', () => {
  it('holds what a set holds, however its hashes collide', () => {
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
          expect(index.size).toBe(plain.size)
        }
        for (let hash = 0; hash <= 40; hash++) {
          const ref = index.find(hash)
          expect(ref === -1 ? undefined : index.hashes[ref]).toBe(plain.has(hash) ? hash : undefined)
          compared++
        }
      }),
      { numRuns: 100 },
    )
    expect(compared).toBe(4_100)
  })
})

describe('Keys', () => {
  it('gives a key one slot for as long as one of its messages is there', () => {
    const keys = new Keys()
    const slot = keys.hold(1, 2)
    expect(keys.hold(1, 2)).toBe(slot)
    const other = keys.hold(1, 3)
    expect(other).not.toBe(slot)
    keys.release(slot)
    expect(new Set(keys.slots())).toEqual(new Set([slot, other]))
    keys.release(slot)
    expect([...keys.slots()]).toEqual([other])
    // The slot is used again, and nothing of its former life is in it.
    keys.leased[slot] = 5
    expect(keys.hold(9, 9)).toBe(slot)
    expect(keys.leased[slot]).toBe(0)
    for (let i = 0; i < 1_000; i++) keys.hold(i, 77)
    expect(keys.size).toBe(1_002)
  })
})

type Step =
  | { readonly kind: 'accept'; readonly id: number }
  | { readonly kind: 'pass'; readonly ms: number }
  | { readonly kind: 'pages' }

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    {
      weight: 20,
      arbitrary: fc.record({ kind: fc.constant('accept' as const), id: fc.integer({ min: 0, max: 3000 }) }),
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
  it('knows an id for its window and no longer, also when it is read back from its pages', () => {
    let looked = 0
    let duplicates = 0
    let restarts = 0
    fc.assert(
      fc.property(steps, (list) => {
        let window = new IdWindow()
        const log = new Map<number, Uint8Array>()
        const plain = new Map<number, { readonly offset: number; readonly untilMs: number }>()
        let nowMs = 1_000
        let offset = 0
        let position = 0
        for (const step of list) {
          if (step.kind === 'pass') nowMs += step.ms
          window.forgetUntil(nowMs - WINDOW_MS)
          for (const [id, { untilMs }] of plain) if (untilMs <= nowMs) plain.delete(id)
          if (step.kind === 'accept') {
            const expected = plain.get(step.id)?.offset ?? -1
            expect(window.find(words(step.id), 0)).toBe(expected)
            looked++
            if (expected === -1) {
              window.remember(words(step.id), 0, offset, nowMs)
              plain.set(step.id, { offset, untilMs: nowMs + WINDOW_MS })
            } else duplicates++
            offset++
          } else if (step.kind === 'pages') {
            for (const page of window.pagesToWrite(position - 5)) {
              log.set(++position, window.encodePage(page))
              window.pageWritten(page, position)
            }
            const restored = new IdWindow()
            // In any order, as the directory lists them.
            for (const at of [...window.pagePositions()].reverse())
              restored.restorePage(log.get(at)!, 0, log.get(at)!.length, at)
            restored.restored()
            restored.forgetUntil(nowMs - WINDOW_MS)
            window = restored
            restarts++
          }
          expect(window.size).toBe(plain.size)
        }
      }),
      { numRuns: 15 },
    )
    expect(looked).toBeGreaterThan(10_000)
    expect(duplicates).toBeGreaterThan(1_000)
    expect(restarts).toBeGreaterThan(100)
    expect(words(3)).toHaveLength(ID_WORDS)
    expect(QUEUE_OPTION_DEFAULTS.dedupMaxIds).toBe(1_000_000)
  })
})
