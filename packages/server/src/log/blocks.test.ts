import { BATCH_HEADER_BYTES, BATCH_TYPE, sealBatch } from '@sluice/protocol'
import { expect, test } from 'vitest'
import { BLOCKS_DEFAULTS, Blocks } from './blocks.js'
import { MemoryLog } from './memory-log.js'

const BATCH_BYTES = BATCH_HEADER_BYTES + 400

/** Batches side by side from position 0 on, and what is read of them. */
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

test('a batch that a block ends within is found in a block of its own, whatever was looked at last', async () => {
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

test('what is being read early is not read again by who needs it meanwhile', async () => {
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

test('an early read that fails troubles nobody: whoever needs the batch reads it again', async () => {
  const { log, length, reads } = storedBatches(1)
  const readRange = log.readRange.bind(log)
  log.readRange = () => Promise.reject(new Error('the disk is away'))
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

test('early reads leave room for those that somebody waits for', async () => {
  const { log, length, reads } = storedBatches(8)
  const blocks = new Blocks(log, BLOCKS_DEFAULTS)
  blocks.setDurable(length)
  for (let at = 0; at < length; at += BATCH_BYTES) blocks.loadEarly(at)
  await new Promise<void>((resolve) => setImmediate(resolve))
  expect(reads).toEqual([0])
})

test('parts that are read in order go through memory that is used again, and those that are still there stay as they were', async () => {
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
