import { BATCH_HEADER_BYTES, BATCH_TYPE, sealBatch } from '@sluice/protocol'
import { expect, test } from 'vitest'
import { BLOCKS_DEFAULTS, Blocks } from './blocks.js'
import { MemoryLog } from './memory-log.js'

test('a batch that a block ends within is found in a block of its own, whatever was looked at last', async () => {
  const batchBytes = BATCH_HEADER_BYTES + 400
  const stored = new Uint8Array(3 * batchBytes)
  for (let at = 0; at < stored.length; at += batchBytes)
    sealBatch(stored, at, at + batchBytes, { type: BATCH_TYPE.messages, count: 1 })
  const log = new MemoryLog()
  log.readRange = (position, length) => Promise.resolve(stored.slice(position, position + length))
  const blocks = new Blocks(log, { ...BLOCKS_DEFAULTS, readAheadBytes: batchBytes * 2 - 100 })
  blocks.setDurable(stored.length)
  await blocks.load(0, true)
  expect(blocks.findBatch(0)).toBeDefined()
  expect(blocks.findBatch(batchBytes)).toBeUndefined()
  await blocks.load(batchBytes, true)
  expect(blocks.findBatch(0)).toBeDefined()
  expect(blocks.findBatch(batchBytes)?.position).toBe(batchBytes)
})
