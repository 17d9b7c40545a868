import { expect, test } from 'vitest'
import { isAccepted, isDedupFull, planIds, planRoom } from './admission.js'
import type { Message, MessageOptions } from './message.js'

const PLAIN: MessageOptions = {
  priority: 0,
  key: undefined,
  id: undefined,
  replaces: false,
  delayMs: undefined,
  atMs: undefined,
  ttlMs: undefined,
}
const NEXT = 100

interface Known {
  readonly offset: number
  readonly isWaiting: boolean
}

/** Plans a batch whose ids are given as strings: `a` has the id a, `a!` has it and also replaces, '' has no id. */
function plan(
  ids: readonly string[],
  known: Readonly<Record<string, Known>> = {},
  options = { unique: 'window', dedupWindowMs: 1000 } as const as Parameters<typeof planIds>[2],
): { duplicates: [number, number][]; replaced: number[]; newIds: number; accepted: number[] } {
  const contents = ids.map((text) => ({
    ...PLAIN,
    id: text === '' ? undefined : text.replace('!', ''),
    replaces: text.endsWith('!'),
  }))
  const waiting = new Set(
    Object.values(known).flatMap(({ offset, isWaiting }) => (isWaiting ? [offset] : [])),
  )
  const found = planIds(
    contents,
    NEXT,
    options,
    (id) => known[id]?.offset,
    (offset) => waiting.has(offset),
  )
  return {
    duplicates: [...found.duplicates],
    replaced: [...found.replaced],
    newIds: found.newIds,
    accepted: ids.flatMap((_, index) => (isAccepted(found, NEXT, index) ? [index] : [])),
  }
}

test('a message without an id is no duplicate', () => {
  expect(plan(['', ''])).toEqual({ duplicates: [], replaced: [], newIds: 0, accepted: [0, 1] })
})

test('the first message with an id is accepted, in the queue and in the batch', () => {
  expect(plan(['a', 'b', 'a'], { b: { offset: 7, isWaiting: true } })).toEqual({
    duplicates: [
      [1, 7],
      [2, NEXT],
    ],
    replaced: [],
    newIds: 1,
    accepted: [0],
  })
})

test('a message replaces a waiting one, and the answer names the offset of the new message', () => {
  expect(plan(['a!'], { a: { offset: 7, isWaiting: true } })).toEqual({
    duplicates: [[0, NEXT]],
    replaced: [7],
    newIds: 0,
    accepted: [0],
  })
})

test('a message that cannot be replaced makes the new one a duplicate', () => {
  expect(plan(['a!'], { a: { offset: 7, isWaiting: false } })).toEqual({
    duplicates: [[0, 7]],
    replaced: [],
    newIds: 0,
    accepted: [],
  })
})

test('if several messages of a batch replace, the last of them is accepted', () => {
  expect(plan(['a', 'a!', 'a!', 'a'])).toEqual({
    duplicates: [
      [0, NEXT + 2],
      [1, NEXT + 2],
      [3, NEXT + 2],
    ],
    replaced: [],
    newIds: 1,
    accepted: [2],
  })
  // The first message of the batch with an id decides whether the known message with that id is replaced.
  expect(plan(['a', 'a!'], { a: { offset: 7, isWaiting: true } }).accepted).toEqual([])
  expect(plan(['a!', 'a!'], { a: { offset: 7, isWaiting: true } })).toMatchObject({
    duplicates: [
      [0, NEXT + 1],
      [1, NEXT + 1],
    ],
    replaced: [7],
    accepted: [1],
  })
})

test('a queue without a window knows no ids; a queue of unique pending ids needs no window', () => {
  const known = { a: { offset: 7, isWaiting: true } }
  expect(plan(['a'], known, { unique: 'window', dedupWindowMs: 0 }).duplicates).toEqual([])
  expect(plan(['a'], known, { unique: 'pending', dedupWindowMs: 0 }).duplicates).toEqual([[0, 7]])
})

test('new ids are refused beyond the maximum, and known ids are never refused', () => {
  expect(isDedupFull(8, 2, { dedupMaxIds: 10 })).toBe(false)
  expect(isDedupFull(9, 2, { dedupMaxIds: 10 })).toBe(true)
  expect(isDedupFull(12, 0, { dedupMaxIds: 10 })).toBe(false)
})

type Occupant = Pick<Message, 'offset' | 'content' | 'bytes' | 'state'>

function occupant(offset: number, priority: number, state: Message['state'] = 'ready', bytes = 10): Occupant {
  return { offset, content: { ...PLAIN, priority }, bytes, state }
}

function room(
  occupants: readonly Occupant[],
  sizes: readonly number[],
  options: Partial<Parameters<typeof planRoom>[2]>,
  excessMax = Infinity,
): { isFull: boolean; evicted: number[]; excess: number } {
  const all = { maxMessages: 0, maxBytes: 0, overflow: 'drop-oldest', ...options } as const
  const { evicted, ...rest } = planRoom(occupants, sizes, all, excessMax)
  return { ...rest, evicted: evicted.map(({ offset }) => offset) }
}

test('a queue has room up to its limits of messages and of bytes', () => {
  const occupants = [occupant(1, 0), occupant(2, 0)]
  const reject = { overflow: 'reject' } as const
  expect(room(occupants, [10], { ...reject, maxMessages: 3 }).isFull).toBe(false)
  expect(room(occupants, [10, 10], { ...reject, maxMessages: 3 }).isFull).toBe(true)
  expect(room(occupants, [10], { ...reject, maxBytes: 30 }).isFull).toBe(false)
  expect(room(occupants, [11], { ...reject, maxBytes: 30 }).isFull).toBe(true)
  expect(room(occupants, [1e9], reject).isFull).toBe(false)
})

test('a batch without new messages needs no room, even in a queue over its limit', () => {
  expect(room([occupant(1, 0), occupant(2, 0)], [], { maxMessages: 1 })).toEqual({
    isFull: false,
    evicted: [],
    excess: 0,
  })
})

test('messages of the lowest priority make room, the oldest first, and no more than needed', () => {
  const occupants = [occupant(1, 5), occupant(2, 0), occupant(3, 0, 'scheduled'), occupant(4, 9)]
  expect(room(occupants, [10], { maxMessages: 4 }).evicted).toEqual([2])
  expect(room(occupants, [10, 10, 10], { maxMessages: 4 }).evicted).toEqual([2, 3, 1])
  expect(room(occupants, [15], { maxBytes: 40 }).evicted).toEqual([2, 3])
})

test('a leased message is not evicted', () => {
  const occupants = [occupant(1, 0, 'leased'), occupant(2, 5)]
  expect(room(occupants, [10], { maxMessages: 2 })).toEqual({ isFull: false, evicted: [2], excess: 0 })
  expect(room(occupants, [10, 10], { maxMessages: 2 })).toEqual({ isFull: true, evicted: [], excess: 0 })
})

test('a queue over its limit loses as many messages as it gets, and some more', () => {
  const occupants = Array.from({ length: 8 }, (_, offset) => occupant(offset, 0))
  const plan = (sizes: number[], excessMax: number, options: object = { maxMessages: 3 }): object =>
    room(occupants, sizes, options, excessMax)
  expect(plan([10], 0)).toEqual({ isFull: false, evicted: [0], excess: 0 })
  expect(plan([10, 10], 2)).toEqual({ isFull: false, evicted: [0, 1, 2, 3], excess: 2 })
  expect(plan([10], Infinity)).toEqual({ isFull: false, evicted: [0, 1, 2, 3, 4, 5], excess: 5 })
  expect(plan([15], 1, { maxBytes: 40 })).toEqual({ isFull: false, evicted: [0, 1, 2], excess: 1 })
  // Before the publish, only one of the two limits is exceeded.
  expect(plan([30], 0, { maxMessages: 20, maxBytes: 80 }).valueOf()).toMatchObject({ excess: 0 })
  expect(plan([30], 1, { maxMessages: 3, maxBytes: 90 })).toEqual({
    isFull: false,
    evicted: [0, 1, 2],
    excess: 1,
  })
})
