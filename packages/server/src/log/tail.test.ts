import { BATCH_HEADER_BYTES, BATCH_TYPE, sealBatch } from '@sluice/protocol'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BLOCKS_DEFAULTS, Blocks } from './blocks.js'
import { ENTRY_HEADER_BYTES, entryBatches } from './entry.js'
import { MemoryLog } from './memory-log.js'
import { Tail } from './tail.js'
import { expectSame } from '../../../../test/same.js'

const SEGMENT_BYTES = 16 * 1024

async function open(options: { beforeAppend?: () => Promise<void>; entryBytesMax?: number } = {}): Promise<{
  log: MemoryLog
  tail: Tail
  blocks: Blocks
  durable: number[]
  failures: unknown[]
}> {
  const log = new MemoryLog({ segmentBytes: SEGMENT_BYTES, ...options })
  const blocks = new Blocks(log, { ...BLOCKS_DEFAULTS, blockBytes: 4096, recentBytes: 8192 })
  const durable: number[] = []
  const failures: unknown[] = []
  const tail = new Tail(log, await log.open(), blocks)
  tail.report({ durable: (lsn) => durable.push(lsn), failed: (error) => failures.push(error) })
  return { log, tail, blocks, durable, failures }
}

/** Appends one batch whose record bytes are all `fill`; returns its position. */
function add(tail: Tail, bytes: number, fill: number): number {
  const at = tail.reserve(bytes, 1)
  tail.bytes.fill(fill, at + BATCH_HEADER_BYTES, at + bytes)
  sealBatch(tail.bytes, at, at + bytes, { type: BATCH_TYPE.messages, count: 1 })
  return tail.add(bytes)
}

/** Flushes until everything that was added is durable. */
async function settled(tail: Tail): Promise<void> {
  for (let turn = 0; !tail.isIdle; turn++) {
    if (turn === 10_000) throw new Error('The tail did not become idle.')
    tail.flush(1)
    await Promise.resolve()
  }
}

describe('tail', () => {
  it('continues after the header of the next segment when an entry ends exactly at the end of its segment', async () => {
    const { log, tail } = await open()
    const bounds = await log.open()
    const left = SEGMENT_BYTES - (bounds.nextPosition % SEGMENT_BYTES)
    add(tail, left - ENTRY_HEADER_BYTES, 1)
    tail.flush(1)
    await settled(tail)
    expect((await log.open()).nextPosition % SEGMENT_BYTES).toBe(0)
    const position = add(tail, 100, 2)
    tail.flush(1)
    await settled(tail)
    expect(position % SEGMENT_BYTES).toBe(4096 + ENTRY_HEADER_BYTES)
    expect(log.entries).toHaveLength(2)
  })

  it('writes any sequence of batches whole, in order, and at the reported positions', async () => {
    let checked = 0
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.record({
            bytes: fc.integer({ min: BATCH_HEADER_BYTES, max: 12_000 }),
            flush: fc.boolean(),
            wait: fc.boolean(),
          }),
          { minLength: 5, maxLength: 60, size: 'max' },
        ),
        async (steps) => {
          const { log, tail, blocks, durable, failures } = await open()
          const placed: { position: number; bytes: number; fill: number }[] = []
          for (const [i, step] of steps.entries()) {
            const gateBefore = tail.gate
            placed.push({ position: add(tail, step.bytes, i & 255), bytes: step.bytes, fill: i & 255 })
            expectSame(tail.gate >= gateBefore, true)
            expectSame(tail.gate, tail.openLsn)
            const block = blocks.findBatch(placed.at(-1)!.position)
            expect(block).toBeDefined()
            if (step.flush) tail.flush(1)
            if (step.wait) await settled(tail)
          }
          await settled(tail)
          expect(failures).toEqual([])
          expect(durable).toEqual(durable.map((_, i) => durable[0]! + i))
          expect(tail.durableLsn).toBe(tail.openLsn - 1)
          const found: number[] = []
          for (const entry of log.entries)
            for (const at of entryBatches(entry.bytes, 0)) found.push(entry.position + at)
          expect(found).toEqual(placed.map(({ position }) => position))
          for (const { position, bytes, fill } of placed) {
            const stored = await log.readRange(position, bytes)
            expect(stored[bytes - 1]).toBe(bytes === BATCH_HEADER_BYTES ? stored[bytes - 1] : fill)
            checked++
          }
        },
      ),
      { numRuns: 60 },
    )
    expect(checked).toBeGreaterThan(500)
  })

  it('seals an entry before it exceeds entryBytesMax, wherever its block and its segment end', async () => {
    const entryBytesMax = 2_048
    const roomBytes = entryBytesMax - ENTRY_HEADER_BYTES
    let checked = 0
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: BATCH_HEADER_BYTES, max: roomBytes }), { minLength: 20, maxLength: 60 }),
        async (sizes) => {
          const { log, tail } = await open({ entryBytesMax })
          for (const bytes of sizes) add(tail, bytes, 1)
          const pendingBytes = sizes.reduce((sum, bytes) => sum + bytes, 0)
          expect(tail.pendingBytes).toBeGreaterThan(pendingBytes - entryBytesMax)
          await settled(tail)
          expect(tail.pendingBytes).toBe(0)
          let batches = 0
          for (const { bytes } of log.entries) {
            expect(bytes.length).toBeLessThanOrEqual(entryBytesMax)
            batches += [...entryBatches(bytes, 0)].length
            checked++
          }
          expect(batches).toBe(sizes.length)
        },
      ),
      { numRuns: 30 },
    )
    expect(checked).toBeGreaterThan(300)
  })

  it('fills an entry up to entryBytesMax, and throws for a batch that is one byte larger', async () => {
    const entryBytesMax = 2_048
    const { log, tail } = await open({ entryBytesMax })
    add(tail, entryBytesMax - ENTRY_HEADER_BYTES, 1)
    add(tail, 1_000, 2)
    add(tail, entryBytesMax - ENTRY_HEADER_BYTES - 1_000, 3)
    await settled(tail)
    expect(log.entries.map(({ bytes }) => bytes.length)).toEqual([entryBytesMax, entryBytesMax])
    expect(() => tail.reserve(entryBytesMax - ENTRY_HEADER_BYTES + 1, 1)).toThrow(
      'An entry needs 2560 bytes; entryBytesMax of the log is 2048.',
    )
  })

  it('keeps the gate at the previous entry while no entry is open', async () => {
    const { tail } = await open()
    expect(tail.gate).toBe(tail.durableLsn)
    add(tail, 100, 1)
    expect(tail.gate).toBe(tail.durableLsn + 1)
    tail.flush(1)
    expect(tail.gate).toBe(tail.durableLsn + 1)
    await settled(tail)
    expect(tail.gate).toBe(tail.durableLsn)
  })

  it('reports nothing durable and writes nothing after a failed write', async () => {
    let writes = 0
    const { tail, durable, failures } = await open({
      beforeAppend: () => {
        writes++
        return writes === 2 ? Promise.reject(new Error('EIO')) : Promise.resolve()
      },
    })
    for (let i = 0; i < 4; i++) {
      add(tail, 200, i)
      tail.flush(1)
      for (let turn = 0; turn < 10; turn++) await Promise.resolve()
    }
    expect(writes).toBe(2)
    expect(durable).toHaveLength(1)
    expect(failures).toHaveLength(1)
  })

  it('evicts recent blocks only when they are durable, and reads them back', async () => {
    const { tail, blocks } = await open()
    const positions: number[] = []
    for (let i = 0; i < 12; i++) {
      positions.push(add(tail, 3_000, i))
      tail.flush(1)
    }
    for (const position of positions) expect(blocks.findBatch(position)).toBeDefined()
    await settled(tail)
    add(tail, 3_000, 99)
    const evicted = positions.filter((position) => blocks.findBatch(position) === undefined)
    expect(evicted.length).toBeGreaterThan(4)
    await blocks.load(evicted[0]!, true)
    const block = blocks.findBatch(evicted[0]!)!
    expect(block.bytes[evicted[0]! - block.position + BATCH_HEADER_BYTES]).toBe(0)
  })
})
