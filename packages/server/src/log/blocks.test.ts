import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  recordSize,
  sealBatch,
  slotOfIndex,
  sparseBytes,
  writeSparse,
} from '@sluice/protocol'
import { describe, expect, test } from 'vitest'
import { batchOf } from '../testing/bench.js'
import { BLOCKS_DEFAULTS, Blocks, WAYPOINT_RECORDS, recordAt } from './blocks.js'
import { MemoryLog } from './memory-log.js'

const BATCH_BYTES = BATCH_HEADER_BYTES + 400

/** Returns a log with consecutive batches from position 0 on, and a list that receives the position of each read. */
function storedBatches(count: number): { log: MemoryLog; length: number; reads: number[] } {
  const stored = new Uint8Array(count * BATCH_BYTES)
  for (let at = 0; at < stored.length; at += BATCH_BYTES) {
    stored[at + BATCH_HEADER_BYTES] = at / BATCH_BYTES
    sealBatch(stored, at, at + BATCH_BYTES, { type: BATCH_TYPE.messages, count: 1 })
  }
  const log = new MemoryLog()
  const reads: number[] = []
  log.readRange = (position, length) => {
    reads.push(position)
    return Promise.resolve(stored.slice(position, position + length))
  }
  return { log, length: stored.length, reads }
}

test('a batch is found in the block that has all of it, even if a block with a part of it was used last', async () => {
  const { log, length } = storedBatches(3)
  const blocks = new Blocks(log, { ...BLOCKS_DEFAULTS, readAheadBytes: BATCH_BYTES * 2 - 100 })
  blocks.setDurable(length)
  await blocks.load(0, true)
  expect(blocks.findBatch(0)).toBeDefined()
  expect(blocks.findBatch(BATCH_BYTES)).toBeUndefined()
  await blocks.load(BATCH_BYTES, true)
  expect(blocks.findBatch(0)).toBeDefined()
  expect(blocks.findBatch(BATCH_BYTES)?.position).toBe(BATCH_BYTES)
})

test('a batch that is being read early is not read again when it is needed', async () => {
  const { log, length, reads } = storedBatches(2)
  const blocks = new Blocks(log, BLOCKS_DEFAULTS)
  blocks.setDurable(length)
  blocks.loadEarly(BATCH_BYTES)
  blocks.loadEarly(BATCH_BYTES)
  await blocks.load(BATCH_BYTES, false)
  expect(blocks.findBatch(BATCH_BYTES)).toBeDefined()
  blocks.loadEarly(BATCH_BYTES)
  expect(reads).toEqual([BATCH_BYTES])
})

test('a failed early read is ignored, and the batch is read again when it is needed', async () => {
  const { log, length, reads } = storedBatches(1)
  const readRange = log.readRange.bind(log)
  log.readRange = () => Promise.reject(new Error('The disk was removed.'))
  const blocks = new Blocks(log, BLOCKS_DEFAULTS)
  blocks.setDurable(length)
  blocks.loadEarly(0)
  await new Promise<void>((resolve) => setImmediate(resolve))
  expect(blocks.findBatch(0)).toBeUndefined()
  log.readRange = readRange
  await blocks.load(0, true)
  expect(blocks.findBatch(0)).toBeDefined()
  expect(reads).toEqual([0])
})

test('early reads leave room for blocks that are needed', async () => {
  const { log, length, reads } = storedBatches(8)
  const blocks = new Blocks(log, BLOCKS_DEFAULTS)
  blocks.setDurable(length)
  for (let at = 0; at < length; at += BATCH_BYTES) blocks.loadEarly(at)
  await new Promise<void>((resolve) => setImmediate(resolve))
  expect(reads).toEqual([0])
})

describe('blocks that are read early', () => {
  const CACHE = 8
  const settings = { ...BLOCKS_DEFAULTS, coldBytes: CACHE * BATCH_BYTES, readAheadBytes: BATCH_BYTES }

  // A log that returns exactly one batch for each read.
  function exactly(count: number): ReturnType<typeof storedBatches> {
    const stored = storedBatches(count)
    const { log } = stored
    const read = log.readRange.bind(log)
    log.readRange = async (position) => read(position, BATCH_BYTES)
    return stored
  }

  test('take at most half of the cache until they are used, and each batch is read once', async () => {
    const { log, length, reads } = exactly(200)
    const blocks = new Blocks(log, settings)
    blocks.setDurable(length)
    const positions = Array.from({ length: 200 }, (_, index) => index * BATCH_BYTES)
    // The order in which the batches are needed differs from the order in which they are stored, and a queue looks only
    // a limited number of messages ahead.
    const due = positions.map((_, index) => positions[(index * 77) % 200]!)
    for (let at = 0; at < due.length; at++) {
      if (blocks.findBatch(due[at]!) !== undefined) continue
      const needed = blocks.load(due[at]!, false)
      await Promise.all([needed, blocks.loadAhead(due.slice(at + 1, at + 65))])
      expect(blocks.findBatch(due[at]!)).toBeDefined()
      expect(due.slice(at + 1).filter((position) => blocks.has(position)).length).toBeLessThanOrEqual(
        CACHE / 2,
      )
    }
    expect(reads.length).toBe(200)
  })

  test('are not evicted by blocks that another queue reads and uses', async () => {
    const { log, length, reads } = exactly(100)
    const blocks = new Blocks(log, settings)
    blocks.setDurable(length)
    // The first read shows the length of batches.
    await blocks.load(99 * BATCH_BYTES, false)
    blocks.findBatch(99 * BATCH_BYTES)
    await blocks.loadAhead([0, 1, 2, 3].map((index) => index * BATCH_BYTES))
    const early = reads.length - 1
    expect(early).toBeGreaterThan(1)
    for (let index = 10; index < 30; index++) {
      await blocks.load(index * BATCH_BYTES, false)
      expect(blocks.findBatch(index * BATCH_BYTES)).toBeDefined()
    }
    for (let index = 0; index < early; index++) expect(blocks.has(index * BATCH_BYTES)).toBe(true)
    // Unused blocks eventually count as spent, and other queues may read ahead again.
    for (let index = 30; index < 90; index++) {
      await blocks.load(index * BATCH_BYTES, false)
      blocks.findBatch(index * BATCH_BYTES)
    }
    for (let index = 0; index < early; index++) expect(blocks.has(index * BATCH_BYTES)).toBe(false)
    const before = reads.length
    await blocks.loadAhead([90, 91].map((index) => index * BATCH_BYTES))
    expect(reads.length).toBe(before + 2)
  })

  test('are shorter when many queues are read in order, and have the maximum size again for few queues', async () => {
    const { log, length } = storedBatches(2_000)
    const readAheadBytes = 16 * BATCH_BYTES
    const blocks = new Blocks(log, { ...settings, readAheadBytes, coldBytes: 4 * readAheadBytes })
    blocks.setDurable(length)
    const readInOrder = async (queues: number, rounds: number): Promise<void> => {
      for (let round = 0; round < rounds; round++) {
        for (let queue = 0; queue < queues; queue++) {
          const position = (queue * 100 + round) * BATCH_BYTES
          if (blocks.findBatch(position) !== undefined) continue
          await blocks.load(position, true)
          expect(blocks.findBatch(position)).toBeDefined()
        }
      }
    }
    await readInOrder(20, 10)
    expect(blocks.readAheadBytes).toBeLessThanOrEqual(readAheadBytes / 4)
    await readInOrder(1, 100)
    await readInOrder(1, 100)
    expect(blocks.readAheadBytes).toBe(readAheadBytes)
  })
})

test('reading in order reuses buffers, and blocks in the cache keep their bytes', async () => {
  const { log, length } = storedBatches(12)
  const read = log.readRange.bind(log)
  const memory = new Set<ArrayBufferLike>()
  log.readRange = async (position, bytes, into) => {
    const part = into ?? new Uint8Array(bytes)
    part.set(await read(position, bytes))
    memory.add(part.buffer)
    return part
  }
  const coldBytes = 3 * BATCH_BYTES
  const blocks = new Blocks(log, { ...BLOCKS_DEFAULTS, readAheadBytes: BATCH_BYTES, coldBytes })
  blocks.setDurable(length)
  for (let at = 0; at < length; at += BATCH_BYTES) {
    await blocks.load(at, true)
    for (let kept = Math.max(0, at - 2 * BATCH_BYTES); kept <= at; kept += BATCH_BYTES)
      expect(blocks.findBatch(kept)?.bytes[BATCH_HEADER_BYTES]).toBe(kept / BATCH_BYTES)
    expect(blocks.memoryBytes).toBeLessThanOrEqual(coldBytes + BATCH_BYTES)
  }
  expect(memory.size).toBe(4)
})

/** A sparse copy with every third record of the batch. */
function sparseOf(batch: Uint8Array, count: number): { sparse: Uint8Array; indexes: number[] } {
  const indexes = Array.from({ length: Math.floor(count / 3) }, (_, i) => 3 * i + 1)
  const sparse = new Uint8Array(sparseBytes(batch, 0, indexes))
  writeSparse(sparse, 0, batch, 0, indexes, sparse.length, BATCH_ATTRIBUTE.relocated)
  return { sparse, indexes }
}

test('a sparse batch that was damaged on disk is reported with its position, whichever byte is wrong', async () => {
  const { sparse } = sparseOf(batchOf([{ bodyBytes: 3 }, { bodyBytes: 9 }, {}, {}, { bodyBytes: 0 }], 1), 6)
  let found = 0
  for (let at = 0; at < sparse.length; at++) {
    const damaged = sparse.slice()
    damaged[at]! ^= 1 << (at % 8)
    const log = new MemoryLog()
    log.readRange = (position, length) => Promise.resolve(damaged.slice(position, position + length))
    const blocks = new Blocks(log, BLOCKS_DEFAULTS)
    blocks.setDurable(damaged.length)
    try {
      await blocks.load(0, false)
      if (blocks.findBatch(0) === undefined) found++
    } catch (error) {
      expect(error).toMatchObject({
        code: 'CORRUPT',
        message: expect.stringContaining('position 0') as string,
      })
      found++
    }
  }
  expect(found).toBe(sparse.length)
})

test('the records of a sparse batch are found by their slots, in any order', () => {
  const RECORDS = 12 * WAYPOINT_RECORDS
  const batch = batchOf(
    Array.from({ length: RECORDS }, (_, index) => ({ bodyBytes: index % 50, key: `k${index}` })),
    1,
  )
  const { sparse, indexes } = sparseOf(batch, RECORDS)
  const block = new Blocks(new MemoryLog(), BLOCKS_DEFAULTS).begin(0, 1)
  const start = 40
  block.bytes.set(sparse, start)
  const whole = new Blocks(new MemoryLog(), BLOCKS_DEFAULTS).begin(0, 1)
  whole.bytes.set(batch, 0)
  let same = 0
  for (let step = 0; step < indexes.length; step++) {
    const index = indexes[(step * 89) % indexes.length]!
    const at = recordAt(block, start, slotOfIndex(block.bytes, start, index))
    const original = recordAt(whole, 0, index)
    const end = original + recordSize(batch, original)
    expect(block.bytes.slice(at, at + end - original)).toEqual(batch.slice(original, end))
    same++
  }
  expect(same).toBe(RECORDS / 3)
})

test('the records of two batches are found in any order, and each waypoint is set once', () => {
  const RECORDS = 3 * WAYPOINT_RECORDS + 5
  const batches = [0, 1].map((number) =>
    batchOf(
      Array.from({ length: RECORDS }, (_, index) => ({ bodyBytes: (index * 7 + number) % 50 })),
      number + 1,
    ),
  )
  const starts: number[] = []
  const block = new Blocks(new MemoryLog(), BLOCKS_DEFAULTS).begin(0, 1)
  for (const batch of batches) {
    block.bytes.set(batch, block.used)
    for (let at = BATCH_HEADER_BYTES; at < batch.length; at += recordSize(batch, at))
      starts.push(block.used + at)
    block.used += batch.length
  }
  expect(starts).toHaveLength(2 * RECORDS)
  // Looks up every record of both batches, alternately and from the last, so that successive look-ups are far apart.
  for (let step = 0; step < 2 * RECORDS; step++) {
    const number = step % 2
    const index = RECORDS - 1 - ((step * 89) % RECORDS)
    const found = recordAt(block, number === 0 ? 0 : batches[0]!.length, index)
    expect(found).toBe(starts[number * RECORDS + index])
  }
  expect([...block.waypoints!.values()].map(({ known }) => known)).toEqual([3, 3])
})
