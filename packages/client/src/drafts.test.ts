import { checkRecords, CONTENT_TYPE, LIMITS } from '@sluice/protocol'
import { expect, it } from 'vitest'
import { Drafts, reserve } from './drafts.js'

it('writes records one after the other, in a buffer that grows', () => {
  const drafts = new Drafts()
  const draft = { bytes: drafts.take(), end: 0 }
  const first = draft.bytes.length
  for (const payload of ['', 'x'.repeat(1023), 'é'.repeat(2000), new Uint8Array(5000)]) {
    const type = typeof payload === 'string' ? CONTENT_TYPE.text : CONTENT_TYPE.bytes
    draft.end = drafts.append(draft, payload, type, { key: 'k' })
  }
  expect(draft.bytes.length).toBeGreaterThan(first)
  const found = checkRecords(draft.bytes, 0, draft.end, 4, LIMITS.messageBytesMax)
  expect(typeof found).toBe('number')
})

it('counts the options and the body of a message against the limit of the broker', () => {
  const drafts = new Drafts()
  drafts.messageBytesMax = 100
  const draft = { bytes: drafts.take(), end: 0 }
  expect(() => drafts.append(draft, new Uint8Array(100), CONTENT_TYPE.bytes, undefined)).not.toThrow()
  const tooLarge = expect.objectContaining({ code: 'MESSAGE_TOO_LARGE' }) as Error
  expect(() => drafts.append(draft, new Uint8Array(101), CONTENT_TYPE.bytes, undefined)).toThrow(tooLarge)
  expect(() => drafts.append(draft, 'é'.repeat(51), CONTENT_TYPE.text, undefined)).toThrow(tooLarge)
  expect(() => drafts.append(draft, new Uint8Array(100), CONTENT_TYPE.bytes, { key: 'k' })).toThrow(tooLarge)
  expect(draft.end).toBe(0)
})

it('reuses buffers, but keeps neither a large one nor more than its bound', () => {
  const drafts = new Drafts()
  const bytes = drafts.take()
  drafts.give(bytes)
  expect(drafts.take()).toBe(bytes)
  const large = { bytes: drafts.take(), end: 0 }
  reserve(large, 300 * 1024)
  drafts.give(large.bytes)
  expect(drafts.take()).not.toBe(large.bytes)
  const given = Array.from({ length: 20 }, () => Buffer.allocUnsafeSlow(256 * 1024))
  for (const one of given) drafts.give(one)
  const taken = new Set(given.map(() => drafts.take()))
  expect(given.filter((one) => taken.has(one)).length).toBe(8)
})

it('makes a record that shares no bytes with later ones', () => {
  const drafts = new Drafts()
  const one = drafts.record('one', undefined)
  const copy = new Uint8Array(one)
  drafts.record('two', undefined)
  expect(one).toEqual(copy)
})
