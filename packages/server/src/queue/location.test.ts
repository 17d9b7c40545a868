import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  QUEUE_OPTION_DEFAULTS,
  sealBatch,
  sparseBytes,
  stampBatch,
  writeSparse,
} from '@sluice/protocol'
import { expect, test } from 'vitest'
import { Arrivals } from './arrivals.js'
import { NOT_SHARED } from './batches.js'
import { CHUNK_MESSAGES } from './bits.js'
import { SHARED_QUEUE_ID, checkBatchAt, emptyLocation, slotInBatch } from './location.js'
import { Queue } from './queue.js'
import { batchOf } from '../testing/bench.js'
import { CountedUse } from '../testing/log-use.js'

const COUNTS = [1, 300, 2_500, 7, 900, 1_024, 40]

function headerOf(queueId: number, base: number, count: number): Uint8Array {
  const bytes = new Uint8Array(BATCH_HEADER_BYTES)
  sealBatch(bytes, 0, BATCH_HEADER_BYTES, { type: BATCH_TYPE.messages, count })
  stampBatch(bytes, 0, queueId, base, 1, 1)
  return bytes
}

test('a location gives the batch of its message, and the header of that batch gives the index of the message', () => {
  const definition = { name: 'q', options: QUEUE_OPTION_DEFAULTS, createdAtMs: 0, paused: false, idsFrom: 0 }
  const queue = new Queue(1, definition, new CountedUse(), new Arrivals(4))
  queue.open(1)
  const location = emptyLocation()
  const batches = COUNTS.map((count, index) => {
    const base = queue.next
    queue.append(count, 10_000 * index, 5 + index, count * 100)
    return { base, count, position: 10_000 * index, timeMs: 5 + index }
  })
  let located = 0
  for (const { base, count, position, timeMs } of batches) {
    const header = headerOf(1, base, count)
    for (let offset = base; offset < base + count; offset++) {
      queue.locate(offset, location)
      const chunkBase = offset - (offset % CHUNK_MESSAGES)
      expect(location).toEqual({
        offset,
        batchPosition: position,
        publishedAtMs: timeMs,
        batchFrom: Math.max(base, chunkBase),
        batchEnd: Math.min(base + count, chunkBase + CHUNK_MESSAGES),
        sharedIndex: NOT_SHARED,
      })
      checkBatchAt(location, queue, header, 0)
      if (slotInBatch(location, 1, header, 0) === offset - base) located++
    }
  }
  expect(located).toBe(COUNTS.reduce((sum, count) => sum + count, 0))
})

test('in a sparse batch, messages are found by their slots, and a message without a record is an error', () => {
  const batch = batchOf([{}, {}, {}, {}, {}, {}], 1)
  stampBatch(batch, 0, 1, 100, 1, 1)
  const indexes = [1, 3, 4]
  const sparse = new Uint8Array(sparseBytes(batch, 0, indexes))
  writeSparse(sparse, 0, batch, 0, indexes, sparse.length, 0)
  const slot = (offset: number, count: number): number =>
    slotInBatch({ ...emptyLocation(), batchPosition: 512, offset }, count, sparse, 0)
  expect([slot(101, 1), slot(103, 1), slot(103, 2), slot(104, 1)]).toEqual([0, 1, 1, 2])
  for (const [offset, count] of [
    [100, 1],
    [102, 1],
    [105, 1],
    [101, 2],
    [104, 2],
  ] as const)
    expect(() => slot(offset, count)).toThrow(
      `The batch at position 512 of the log does not have the messages from ${offset} to ${offset + count - 1}.`,
    )
})

test.each([
  ['of another queue', headerOf(2, 10, 5)],
  ['that begins elsewhere', headerOf(1, 9, 6)],
  ['that is longer', headerOf(1, 10, 6)],
  ['that ends before the message', headerOf(1, 10, 3)],
])('rejects a batch %s', (_, header) => {
  const location = { ...emptyLocation(), offset: 13, batchPosition: 512, batchFrom: 10, batchEnd: 15 }
  expect(() => checkBatchAt(location, { batchOwner: 1, name: 'q' }, header, 0)).toThrow(
    'The batch at position 512 of the log is not the batch of the queue q that was written there.',
  )
  checkBatchAt(location, { batchOwner: 1, name: 'q' }, headerOf(1, 10, 5), 0)
})

test.each([
  ['of a queue', headerOf(1, 10, 9)],
  ['that ends before the message', headerOf(SHARED_QUEUE_ID, 0, 6)],
])('rejects a batch %s as a shared batch', (_, header) => {
  const place = { ...emptyLocation(), batchPosition: 512, batchFrom: 10, batchEnd: 20, sharedIndex: 3 }
  expect(() => checkBatchAt({ ...place, offset: 13 }, { batchOwner: 1, name: 'q' }, header, 0)).toThrow(
    'The batch at position 512 of the log is not the batch of the queue q that was written there.',
  )
  checkBatchAt({ ...place, offset: 13 }, { batchOwner: 1, name: 'q' }, headerOf(SHARED_QUEUE_ID, 0, 7), 0)
  expect(slotInBatch({ ...place, offset: 13 }, 1, header, 0)).toBe(6)
})
