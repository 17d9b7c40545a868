import { expect, it } from 'vitest'
import { Orphans } from './orphans.js'

it('lets a message wait twice as long after each release, up to a minute, and does not wake released messages', () => {
  const orphans = new Orphans()
  const end = orphans.begin('q', [7])
  const woken: number[] = []
  const waits: number[] = []
  for (let time = 0; time < 9; time++) {
    waits.push(orphans.patienceMs('q', 7))
    const wake = (): number => woken.push(time)
    orphans.wait('q', 7, wake)
    if (time < 8) orphans.released('q', 7, wake)
  }
  expect(waits).toEqual([1, 2, 4, 8, 16, 32, 60, 60, 60].map((seconds) => seconds * 1_000))
  end()
  // The only message that was still waiting is the last one.
  expect(woken).toEqual([8])
  expect(orphans.has('q')).toBe(false)
  expect(orphans.patienceMs('q', 7)).toBe(1_000)
})

it('wakes a waiting message when the last of several handlers ends', () => {
  const orphans = new Orphans()
  const ends = [orphans.begin('q', [1, 'key']), orphans.begin('q', ['key'])]
  let woken = 0
  orphans.wait('q', 'key', () => woken++)
  ends[0]!()
  expect([woken, orphans.holds('q', 1), orphans.holds('q', 'key')]).toEqual([0, false, true])
  ends[1]!()
  expect([woken, orphans.holds('q', 'key')]).toEqual([1, false])
})
