import { textBytes, writeText } from '@sluice/protocol'
import fc from 'fast-check'
import { expect, it } from 'vitest'
import type { Queue } from '../queue/index.js'
import { NameCache } from './name-cache.js'
import { runs } from '../../../../test/amount.js'
import { expectSame } from '../../../../test/same.js'

const named = (name: string): Queue => ({ name }) as Queue

/** Looks up `name` in the middle of a byte array, as in a frame. */
function find(cache: NameCache, name: string): Queue | undefined {
  const bytes = new Uint8Array(textBytes(name) + 5).fill(0x61)
  writeText(bytes, 3, name)
  return cache.find(bytes, 3, bytes.length - 2)
}

it('finds the same queues as the map while queues are created and deleted', () => {
  let found = 0
  let gone = 0
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.constantFrom('make', 'look', 'look', 'delete'), fc.nat(300)), {
        minLength: 200,
        maxLength: 1_000,
        size: 'max',
      }),
      (steps) => {
        const queues = new Map<string, Queue>()
        const cache = new NameCache(queues)
        for (const [what, number] of steps) {
          // Shorter names are prefixes of longer ones.
          const name = 'n'.repeat(1 + (number % 7)) + String(number % 3 === 0 ? number : '')
          const queue = queues.get(name)
          if (what === 'make' && queue === undefined) queues.set(name, named(name))
          else if (what === 'delete' && queue !== undefined) {
            queues.delete(name)
            cache.forget(queue)
          }
          expectSame(find(cache, name), queues.get(name))
          if (queues.has(name)) found++
          else if (queue !== undefined) gone++
        }
      },
    ),
    { numRuns: runs(30, 1_000) },
  )
  expect(found).toBeGreaterThan(1_000)
  expect(gone).toBeGreaterThan(1_000)
})

it('finds each of 20,000 queues, and a queue that was deleted and created again', () => {
  const queues = new Map(Array.from({ length: 20_000 }, (_, i) => [`load-${i}`, named(`load-${i}`)]))
  const cache = new NameCache(queues)
  for (let round = 0; round < 2; round++)
    for (const [name, queue] of queues) if (find(cache, name) !== queue) expect(name).toBe('found')
  cache.forget(queues.get('load-7')!)
  const again = named('load-7')
  queues.set('load-7', again)
  expect(find(cache, 'load-7')).toBe(again)
})

it('finds nothing for bytes that are not a name', () => {
  const cache = new NameCache(new Map([['a', named('a')]]))
  expect(cache.find(Uint8Array.of(0x61), 0, 0)).toBeUndefined()
  expect(cache.find(Uint8Array.of(0x61, 0x00), 0, 2)).toBeUndefined()
  expect(cache.find(Uint8Array.of(0xff, 0xfe), 0, 2)).toBeUndefined()
  expect(cache.find(Uint8Array.of(0x61), 0, 1)?.name).toBe('a')
})
