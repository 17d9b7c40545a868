import { describe, expect, it } from 'vitest'
import { hasHeaders, matchesTopic } from './topic.js'

describe('a pattern', () => {
  it.each([
    ['a.b', 'a.b', true],
    ['a.b', 'a', false],
    ['a.*', 'a.b', true],
    ['a.*', 'a', false],
    ['a.*', 'a.b.c', false],
    ['a.#', 'a', true],
    ['a.#', 'a.b.c', true],
    ['#.a', 'a', true],
    ['#.b.#', 'a.b', true],
    ['#.b.#', 'a.c', false],
    ['*.#.*', 'a', false],
    ['*.#.*', 'a.b', true],
  ])('%s and the name %s: %s', (pattern, name, expected) => {
    expect(matchesTopic(pattern, name)).toBe(expected)
  })
})

it('requires all headers, or any', () => {
  const headers = { a: '1', b: '2' }
  expect(hasHeaders(undefined, {})).toBe(true)
  expect(hasHeaders({ kind: 'all', headers }, { ...headers, c: '' })).toBe(true)
  expect(hasHeaders({ kind: 'all', headers }, { a: '1' })).toBe(false)
  expect(hasHeaders({ kind: 'any', headers }, { a: '1', b: '' })).toBe(true)
  expect(hasHeaders({ kind: 'any', headers }, { a: '', b: '' })).toBe(false)
})
