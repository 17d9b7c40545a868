/** The trie against a matcher that follows the definition of the wildcards word by word. */
import { describe, expect, it } from 'vitest'
import { PatternTrie, VISITS_MAX } from './pattern-trie.js'
import { matchesTopic } from '../../../../test/rules/topic.js'
import { Chance } from '../../../../test/simulation/chance.js'
import { seedsFrom } from '../../../../test/amount.js'

function isMatch(pattern: string, name: string): boolean {
  const trie = new PatternTrie<number>()
  trie.add(pattern, 1)
  const [found = 0] = trie.match(name)
  expect(matchesTopic(pattern, name)).toBe(found === 1)
  return found === 1
}

describe('a pattern', () => {
  it.each([
    ['orders.created', 'orders.created', true],
    ['orders.created', 'orders', false],
    ['orders', 'orders.created', false],
    ['orders.*', 'orders.created', true],
    ['orders.*', 'orders', false],
    ['orders.*', 'orders.eu.created', false],
    ['orders.#', 'orders', true],
    ['orders.#', 'orders.eu.created', true],
    ['#', 'a', true],
    ['#.created', 'created', true],
    ['#.created', 'orders.eu.created', true],
    ['#.created', 'orders.created.eu', false],
    ['orders.#.created', 'orders.created', true],
    ['orders.#.created', 'orders.a.b.created', true],
    ['#.eu.#', 'orders.eu', true],
    ['#.eu.#', 'orders.us.created', false],
    ['#.#', 'a', true],
    ['*.#.*', 'a', false],
    ['*.#.*', 'a.b', true],
  ])('%s and the name %s: %s', (pattern, name, expected) => {
    expect(isMatch(pattern, name)).toBe(expected)
  })
})

it.each(seedsFrom(1, 8, 2_000))('finds the patterns that a naive matcher finds, seed %i', (seed) => {
  const chance = new Chance(seed)
  const words = ['a', 'b', 'c']
  const levels = (from: readonly string[]): string =>
    Array.from({ length: chance.int(1, 6) }, () => chance.pick(from)).join('.')
  const trie = new PatternTrie<string>()
  const known: { pattern: string; value: string }[] = []
  let found = 0
  for (let step = 0; step < 300; step++) {
    if (chance.hit(0.4)) {
      const pattern = levels([...words, '*', '#'])
      const value = `${pattern} ${chance.int(0, 2)}`
      trie.add(pattern, value)
      if (!known.some((each) => each.value === value)) known.push({ pattern, value })
    } else if (known.length > 0 && chance.hit(0.3)) {
      const [{ pattern, value }] = known.splice(chance.int(0, known.length - 1), 1) as [(typeof known)[0]]
      trie.remove(pattern, value)
      trie.remove(pattern, value)
    }
    const name = levels(words)
    const expected = known.filter(({ pattern }) => matchesTopic(pattern, name)).map(({ value }) => value)
    expect(trie.match(name).toSorted()).toEqual(expected.toSorted())
    found += expected.length
    for (const { pattern } of known.slice(0, 3))
      expect(trie.at(pattern)).toEqual(
        new Set(known.filter((each) => each.pattern === pattern).map(({ value }) => value)),
      )
    expect(trie.nodes).toBeLessThanOrEqual(2 * new Set(known.map(({ pattern }) => pattern)).size)
  }
  for (const { pattern, value } of known) trie.remove(pattern, value)
  expect(trie.nodes).toBe(0)
  expect(found).toBeGreaterThan(200)
})

it('visits each node once for each level, whatever the number of # in a pattern', () => {
  const trie = new PatternTrie<number>()
  trie.add(Array.from({ length: 32 }, () => '#').join('.'), 1)
  trie.add(`${Array.from({ length: 15 }, () => '#.a').join('.')}.#.b`, 2)
  const name = Array.from({ length: 32 }, () => 'a').join('.')
  // A matcher that tries every split would not end.
  expect(trie.match(name)).toEqual([1])
})

describe('a match', () => {
  // The patterns count from 0 in binary digits `*` and `#`, and end with a level that no name has.
  const hostile = (patterns: number): PatternTrie<number> => {
    const trie = new PatternTrie<number>()
    for (let at = 0; at < patterns; at++) {
      const digits = at.toString(2).padStart(16, '0')
      trie.add(`${digits.replaceAll('0', '*.').replaceAll('1', '#.')}end`, at)
    }
    trie.add('a.#', -1)
    return trie
  }
  const name = Array.from({ length: 32 }, () => 'a').join('.')

  it('is refused beyond the limit of visits, and leaves the trie as it was', () => {
    const trie = hostile(16_384)
    expect(() => trie.match(name)).toThrow(`more than ${VISITS_MAX} branches`)
    expect(trie.match('a')).toEqual([-1])
  })

  it('is answered below the limit', () => {
    expect(hostile(64).match(name)).toEqual([-1])
  })
})
