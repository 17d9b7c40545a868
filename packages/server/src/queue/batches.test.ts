import fc from 'fast-check'
import { expect, it } from 'vitest'
import { BatchTable, NOT_SHARED } from './batches.js'
import { runs } from '../../../../test/amount.js'
import { expectSame } from '../../../../test/same.js'

interface Batch {
  first: number
  position: number
  timeMs: number
  bytes: number
  /** Index in the batch, if the batch is shared; otherwise `NOT_SHARED`. */
  shared: number
  /** Number of needed messages and scale of the share, if the batch is shared; otherwise 0. */
  needed: number
  scale: number
}

const notShared = { shared: NOT_SHARED, needed: 0, scale: 0 }

function contentsOf(table: BatchTable): Batch[] {
  return Array.from({ length: table.count }, (_, batch) => ({
    first: table.first(batch),
    position: table.position(batch),
    timeMs: table.timeMs(batch),
    bytes: table.bytes(batch),
    shared: table.sharedIndex(batch),
    needed: table.isShared(batch) ? table.sharedNeeded(batch) : 0,
    scale: table.scale(batch),
  }))
}

const far = fc.oneof(
  { weight: 40, arbitrary: fc.integer({ min: 0, max: 2 ** 20 }) },
  { weight: 1, arbitrary: fc.constantFrom(2 ** 32 - 1, 2 ** 32, -1, -(2 ** 20)) },
)

const size = fc.oneof(
  { weight: 60, arbitrary: fc.integer({ min: 48, max: 2 ** 16 - 1 }) },
  { weight: 1, arbitrary: fc.constantFrom(2 ** 16, 2 ** 32 - 1) },
)

const shared = fc.oneof(
  { weight: 20, arbitrary: fc.constant(NOT_SHARED) },
  { weight: 1, arbitrary: fc.integer({ min: 0, max: 65_534 }) },
)

it('returns the pushed batches, however far apart they are, and also after a page was decoded', () => {
  let wide = 0
  let narrow = 0
  let tablesWithShared = 0
  fc.assert(
    fc.property(
      fc.integer({ min: 2 ** 26, max: 2 ** 52 }),
      fc.integer({ min: 2 ** 26, max: 2 ** 47 }),
      fc.array(fc.tuple(fc.integer({ min: 1, max: 20 }), far, far, size, shared), {
        minLength: 1,
        maxLength: 50,
      }),
      fc.array(
        fc.tuple(fc.nat(49), fc.oneof(fc.nat(2 ** 20), fc.nat(2 ** 33)), fc.integer({ min: 1, max: 50 })),
        { maxLength: 4 },
      ),
      fc.boolean(),
      (position, timeMs, steps, moved, isInOrder) => {
        const table = new BatchTable()
        const plain: Batch[] = []
        let first = 3
        // Positions and times either ascend, as in a log, or are in any order.
        const before = { position, timeMs }
        for (const [messages, positionAbove, timeAbove, bytes, shared] of steps) {
          const batch = {
            first,
            position: before.position + positionAbove,
            timeMs: before.timeMs + timeAbove,
            bytes,
            shared,
            needed: shared === NOT_SHARED ? 0 : 1 + (Math.abs(positionAbove) % 1024),
            scale: shared === NOT_SHARED ? 0 : timeAbove & 31,
          }
          if (isInOrder) Object.assign(before, batch)
          table.push(batch.first, batch.position, batch.timeMs, bytes)
          if (shared !== NOT_SHARED) table.share(shared, batch.needed, batch.scale)
          plain.push(batch)
          first += messages
        }
        for (const [batch, above, part] of moved) {
          if (batch >= plain.length) continue
          // A copy is as large as the batch, or smaller.
          const bytes = Math.ceil(plain[batch]!.bytes / part)
          const isShared = plain[batch]!.shared !== NOT_SHARED
          const after = isShared ? { needed: 1 + (above % 1024), scale: part & 31 } : { needed: 0, scale: 0 }
          if (isShared) table.moveShared(batch, position + above, bytes, after.needed, after.scale)
          else table.move(batch, position + above, bytes)
          Object.assign(plain[batch]!, { position: position + above, bytes, ...after })
        }
        expect(contentsOf(table)).toEqual(plain)
        if (table.hasShared) tablesWithShared++
        else if (table.isNarrow) narrow++
        else wide++
        for (let index = 3; index < first; index++)
          expectSame(
            table.find(index),
            plain.findLastIndex((batch) => batch.first <= index),
          )
        const page = new Uint8Array(table.pageBytes + 8)
        expect(table.encode(page, 5)).toBe(5 + table.pageBytes)
        const again = new BatchTable()
        expect(again.decode(page, 5, table.count, table.form)).toBe(5 + table.pageBytes)
        // Further batches can be pushed.
        for (const one of [table, again]) one.push(first, position + 7, timeMs + 9, 99)
        plain.push({ first, position: position + 7, timeMs: timeMs + 9, bytes: 99, ...notShared })
        expect(contentsOf(again)).toEqual(plain)
        expect(contentsOf(table)).toEqual(plain)
      },
    ),
    { numRuns: runs(240, 3_000) },
  )
  expect(wide).toBeGreaterThan(30)
  expect(narrow).toBeGreaterThan(30)
  expect(tablesWithShared).toBeGreaterThan(10)
})

it('has the page layout that the document describes', () => {
  const table = new BatchTable()
  table.push(0, 0x0001_0203_0405_0607, 0x1112_1314_1516, 0x2122)
  table.push(0x0304, 0x0001_0203_0405_0607 + 0xf1f2_f3f4, 0x1112_1314_1516 + 0x0a0b_0c0d, 0x2324)
  const narrow = new Uint8Array(table.pageBytes)
  table.encode(narrow, 0)
  expect(Buffer.from(narrow).toString('hex')).toBe(
    [
      '0000',
      '0706050403020100',
      '161514131211',
      '0000',
      '00000000',
      '00000000',
      '2221',
      '0403',
      'f4f3f2f1',
      '0d0c0b0a',
      '2423',
    ].join(''),
  )
  table.move(1, 0x0000_0000_0405_0607, 0x1314)
  const wide = new Uint8Array(table.pageBytes)
  table.encode(wide, 0)
  expect(Buffer.from(wide).toString('hex')).toBe(
    [
      '0000',
      '0706050403020100',
      '161514131211',
      '22210000',
      '0403',
      '0706050400000000',
      '23211f1d1211',
      '14130000',
    ].join(''),
  )
  table.share(0x0506, 0x0102, 5)
  const shared = new Uint8Array(table.pageBytes)
  table.encode(shared, 0)
  expect(Buffer.from(shared).toString('hex')).toBe(
    [
      ...['0000', '0706050403020100', '161514131211', '22210000', '0000', '0000'],
      ...['0403', '0706050400000000', '23211f1d1211', '14130000', '0705', '0115'],
    ].join(''),
  )
})

it('keeps the batches of the remaining messages, and the first and last batch', () => {
  let checked = 0
  fc.assert(
    fc.property(
      fc.uniqueArray(fc.nat(199), { minLength: 1, maxLength: 60 }),
      fc.uniqueArray(fc.nat(199), { maxLength: 40 }),
      (firsts, left) => {
        firsts.sort((a, b) => a - b)
        left.sort((a, b) => a - b)
        const table = new BatchTable()
        for (const first of firsts) table.push(first, first * 1_000, first * 7, 100 + first)
        if (firsts.length % 2 === 0) table.share(7, 3, 2)
        const live = left.filter((index) => index >= firsts[0]!)
        const before = live.map((index) => [
          table.positionAt(index),
          table.timeAt(index),
          table.bytes(table.find(index)),
          table.sharedIndex(table.find(index)),
        ])
        table.keep(live)
        table.trim()
        expect(
          live.map((index) => [
            table.positionAt(index),
            table.timeAt(index),
            table.bytes(table.find(index)),
            table.sharedIndex(table.find(index)),
          ]),
        ).toEqual(before)
        expect(table.count).toBeLessThanOrEqual(live.length + 2)
        expect(table.room).toBe(Math.max(2, table.count))
        expect([table.first(0), table.first(table.count - 1)]).toEqual([firsts[0], firsts.at(-1)])
        checked += live.length
      },
    ),
  )
  expect(checked).toBeGreaterThan(100)
})
