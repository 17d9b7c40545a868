import { QUEUE_OPTION_DEFAULTS } from '@sluice/protocol'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { ID_WORDS } from './hash.js'
import { HashIndex } from './hash-index.js'
import { IdWindow } from './ids.js'
import { Keys, NONE } from './keys.js'

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

/** Hashes as good as they really are: no two are alike. */
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

/** Of every two things one has the hash of all the others. */
class Same extends Spread {
  protected override wordOf(ref: number): number {
    return ref % 2 === 0 ? 5 : super.wordOf(ref)
  }
  /** The lowest with the hash of `ref`, or of those that share one for -1. */
  lowestOf(ref: number): number {
    return this.lowest(ref === -1 ? 5 : this.wordOf(ref), 0, 0, 0)
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

  it('grows and shrinks by a segment at a time, and finds everything meanwhile', () => {
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
    // A quarter is full at least, 32 bytes each, and three eighths at most.
    expect(least).toBeGreaterThan(0.25)
    expect(index.size / index.places).toBeLessThanOrEqual(0.375)
    const refs = Array.from({ length: COUNT }, (_, ref) => ref)
    expect(refs.filter((ref) => index.find(ref) !== ref)).toEqual([])
    let wrong = 0
    // In another order than they came.
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

  it('holds any number of things that have one hash, beside others', () => {
    const index = new Same()
    for (let ref = 0; ref < 20_000; ref++) index.put(ref)
    expect(index.lowestOf(3)).toBe(3)
    expect(index.lowestOf(-1)).toBe(0)
    // Those that share a hash go last, then others come: the segment that had become long is split like any.
    for (let ref = 1; ref < 20_000; ref += 2) index.drop(ref)
    for (let ref = 0; ref < 12_000; ref += 2) index.drop(ref)
    expect(index.size).toBe(4_000)
    for (let ref = 0; ref < 12_000; ref += 2) index.put(ref + 20_001)
    expect(index.places).toBeLessThan(60_000)
    for (let ref = 12_000; ref < 20_000; ref += 2) index.drop(ref)
    for (let ref = 0; ref < 12_000; ref += 2) index.drop(ref + 20_001)
    expect(index.size).toBe(0)
    expect(index.places).toBeLessThanOrEqual(16)
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
    // The slot is used again, and nothing of its former life is in it.
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

  it('keeps what is known of each, whichever come and go, and the room of those that are there', () => {
    let most = 0
    fc.assert(
      fc.property(fc.array(fc.nat(6), { minLength: 10, maxLength: 20 }), (list) => {
        const keys = new Keys()
        const plain = new Map<number, number>()
        let next = 0
        // Room for more than ten pages is taken in any case.
        for (const what of [6, 6, 6, ...list]) {
          // Thousands come, or most of those that are there go.
          if (what > 2) {
            for (let i = 0; i < what * 700; i++) {
              const slot = keys.hold(next, 77)
              keys.setHead(slot, next * 10)
              keys.setTail(slot, next * 20)
              keys.offer(slot, next * 30, next * 40)
              keys.countLeased(slot, 1)
              if (plain.has(slot)) expect(slot).toBe('another slot than one that is in use')
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
          // One comparison for all: there are hundreds of thousands.
          const wrong = [...plain].filter(([slot, key]) => {
            const isFound = keys.hold(key, 77) === slot
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
      { numRuns: 8 },
    )
    expect(most).toBeGreaterThan(10)
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
