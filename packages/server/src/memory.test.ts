import { describe, expect, test, vi } from 'vitest'
import { MEMORY_BYTES_MIN, MemoryGauge, PROCESS_METER, sharesOf } from './memory.js'

const MIB = 1 << 20
const RUNTIME_MIB = 80

/** A heap, with its use and its garbage in MiB. */
class Heap {
  used = 0
  garbage = 0
  collections = 0

  read(): number {
    return (this.used + this.garbage) * MIB
  }

  collect(): void {
    this.collections++
    this.garbage = 0
  }
}

describe('a gauge of 1,000 MiB', () => {
  function gauge(): { heap: Heap; gauge: MemoryGauge } {
    const heap = new Heap()
    return { heap, gauge: new MemoryGauge(1_000 * MIB, heap) }
  }

  test('is full above 875 MiB, until it falls to 825', () => {
    const { heap, gauge: one } = gauge()
    const told: [number, boolean][] = []
    const levels = [100, 874, 875, 876, 950, 850, 826, 825, 874, 876]
    levels.forEach((level, index) => {
      heap.used = level - RUNTIME_MIB
      if (one.look(index * 1_000)) told.push([level, one.isFull])
    })
    expect(told).toEqual([
      [876, true],
      [825, false],
      [876, true],
    ])
    expect(one.usedBytes).toBe(876 * MIB)
  })

  test('does not count garbage, and collects it at most once a second', () => {
    const { heap, gauge: one } = gauge()
    heap.used = 450
    for (let ms = 0; ms < 10_000; ms += 50) {
      heap.garbage += 20
      expect(one.look(ms)).toBe(false)
    }
    expect(heap.collections).toBeGreaterThan(5)
    expect(heap.collections).toBeLessThanOrEqual(10)
    heap.used = 900
    expect(one.look(20_000)).toBe(true)
    // All used memory is garbage, but only a collection can show that.
    heap.used = 0
    heap.garbage = 900
    expect(one.look(20_050)).toBe(false)
    expect(one.look(21_000)).toBe(true)
    expect(one.isFull).toBe(false)
    // Shortly after a collection the share of garbage is unknown, so memory counts as full only above the whole budget.
    heap.garbage = 900
    expect(one.look(21_050)).toBe(false)
    heap.garbage = 1_000
    expect(one.look(21_100)).toBe(true)
    expect(one.isFull).toBe(true)
    expect(one.look(22_000)).toBe(true)
    expect(one.isFull).toBe(false)
  })
})

test('the meter reads without a free file descriptor', () => {
  const usage = vi.spyOn(process, 'memoryUsage').mockImplementation(() => {
    throw Object.assign(new Error('EMFILE: too many open files, uv_resident_set_memory'), { code: 'EMFILE' })
  })
  const read = PROCESS_METER.read()
  expect(usage).toHaveBeenCalledTimes(1)
  usage.mockRestore()
  expect(Math.abs(PROCESS_METER.read() - read)).toBeLessThan(64 * MIB)
})

test('the meter of the process counts buffers until they are collected', () => {
  PROCESS_METER.collect()
  const before = PROCESS_METER.read()
  // This is a separate function, because a register of the outer function could keep the buffer reachable.
  const hold = (): void => {
    const held = new Uint8Array(64 * MIB).fill(1)
    expect(PROCESS_METER.read() - before).toBeGreaterThan(60 * MIB)
    expect(held[5]).toBe(1)
  }
  hold()
  PROCESS_METER.collect()
  // A collection frees buffers in the background, and the next collection waits until they are freed.
  PROCESS_METER.collect()
  expect(PROCESS_METER.read() - before).toBeLessThan(16 * MIB)
})

test.each([MEMORY_BYTES_MIN, 256 * MIB, 512 * MIB, 2048 * MIB, 65536 * MIB])(
  'the shares of a budget of %d bytes leave room for the queues',
  (budgetBytes) => {
    const { blocks, pendingBytesMax, receiveBytesMax, outboundBytesMax } = sharesOf(budgetBytes)
    const shared =
      blocks.recentBytes + blocks.coldBytes + pendingBytesMax + receiveBytesMax + 2 * outboundBytesMax
    expect(shared + RUNTIME_MIB * MIB).toBeLessThan(0.875 * budgetBytes)
    for (const bytes of [blocks.recentBytes, blocks.coldBytes, pendingBytesMax, receiveBytesMax])
      expect(bytes).toBeGreaterThanOrEqual(4 * MIB)
  },
)
