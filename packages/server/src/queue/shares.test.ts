import { BATCH_HEADER_BYTES } from '@sluice/protocol'
import fc from 'fast-check'
import { expect, it } from 'vitest'
import { REFER_BYTES } from './facts.js'
import { countedRows, sharesOf } from './shares.js'

/** Scales are below this, so that they fit in the words of a row. */
const SCALES = 2 ** 5

it('add up to what a copy of the batch appends, and bound it from each row', () => {
  fc.assert(
    fc.property(
      fc.oneof(fc.integer({ min: 49, max: 4_096 }), fc.integer({ min: 49, max: 2 ** 32 - 100 })),
      fc.integer({ min: 1, max: 65_536 }),
      fc.nat(65_536),
      (batchBytes, counted, others) => {
        const shares = sharesOf(batchBytes, counted)
        const written = batchBytes + BATCH_HEADER_BYTES + (counted + others) * REFER_BYTES
        const sum = shares.counted.bytes * counted + shares.uncounted.bytes * others
        expect(sum).toBeGreaterThanOrEqual(written)
        expect(sum).toBeLessThan(written + counted)
        for (const { bytes, scale } of [shares.counted, shares.uncounted]) {
          expect(bytes * 2 ** scale).toBeGreaterThanOrEqual(batchBytes + BATCH_HEADER_BYTES + REFER_BYTES)
          expect(scale).toBeLessThan(SCALES)
        }
      },
    ),
  )
})

it('of a row that is alone are what a copy of the batch appends', () => {
  const { counted } = sharesOf(1_000, 1)
  expect(counted).toEqual({ bytes: 1_000 + BATCH_HEADER_BYTES + REFER_BYTES, scale: 0 })
})

it('are counted by the rows whose facts say so', () => {
  const refer = { queueId: 1, offset: 0, count: 1, index: 0 }
  expect(countedRows([true, false, true].map((isCounted) => ({ ...refer, isCounted })))).toBe(2)
})
