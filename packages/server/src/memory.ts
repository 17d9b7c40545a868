/**
 * The memory of a broker process. What can be bounded by itself gets a share of the budget: the log in memory, what
 * waits for the disk, frames that are half received, answers and deliveries that were not read. The rest follows what
 * is irregular in the queues; when it comes to the mark, publishes are refused until consumers have drained it.
 */
import { totalmem } from 'node:os'
import { runInNewContext } from 'node:vm'
import { getHeapStatistics, setFlagsFromString } from 'node:v8'
import type { BlocksOptions } from './log/blocks.js'

/** Below this the broker has no room for its parts. */
export const MEMORY_BYTES_MIN = 192 << 20

/** Half of what the machine has, or of what the container allows if that is less. */
export function defaultMemoryBytes(): number {
  const allowed = process.constrainedMemory()
  const bytes = totalmem()
  const most = allowed !== undefined && allowed > 0 ? Math.min(bytes, allowed) : bytes
  return Math.max(MEMORY_BYTES_MIN, Math.floor(most / 2))
}

export interface MemoryShares {
  readonly blocks: Pick<BlocksOptions, 'recentBytes' | 'coldBytes'>
  /** Bytes that may wait for the disk. */
  readonly pendingBytesMax: number
  /** Of half-received frames, all connections together. */
  readonly receiveBytesMax: number
  /** Of what connections have not read, all together. It stands in buffers of up to twice the size. */
  readonly outboundBytesMax: number
}

/** With a budget of 512 MiB or more, log and disk have as much as speeds them up. */
export function sharesOf(budgetBytes: number): MemoryShares {
  const share = (part: number, bytesMax: number): number => Math.floor(Math.min(budgetBytes / part, bytesMax))
  return {
    blocks: { recentBytes: share(20, 24 << 20), coldBytes: share(30, 16 << 20) },
    pendingBytesMax: share(16, 32 << 20),
    receiveBytesMax: share(8, 256 << 20),
    outboundBytesMax: share(16, 512 << 20),
  }
}

/**
 * What Node itself takes beside V8's objects and buffers: 48 MiB for its code, stacks and allocator, and 32 for the two
 * halves of the young generation, which V8 keeps while anything happens, whatever lives in them.
 */
const RUNTIME_BYTES = 80 << 20
/** Above this share of the budget publishes are refused, below the other one they are taken again. */
const FULL_AT = 0.875
const CLEARS_AT = 0.825
/**
 * Garbage is told from what is used so often, and no oftener: it stops everything for a moment. Meanwhile only what is
 * over the budget itself counts as full.
 */
const COLLECT_INTERVAL_MS = 1_000

export interface Meter {
  /** Bytes of objects and buffers, garbage included. */
  read(): number
  /** Gets rid of garbage. */
  collect(): void
}

export const PROCESS_METER: Meter = {
  read() {
    // Buffers are part of `external`.
    try {
      const { heapUsed, external } = process.memoryUsage()
      return heapUsed + external
    } catch {
      // It opens a file, for a number that is not needed here, and throws without a free descriptor.
      const { used_heap_size, external_memory } = getHeapStatistics()
      return used_heap_size + external_memory
    }
  },
  collect() {
    collect ??= exposedCollector()
    collect()
  },
}

let collect: (() => void) | undefined

// V8 gives its collector to whatever context is made after the flag.
function exposedCollector(): () => void {
  setFlagsFromString('--expose-gc')
  return runInNewContext('gc') as () => void
}

export class MemoryGauge {
  readonly budgetBytes: number
  /** Runtime, objects and buffers. */
  usedBytes = 0
  isFull = false
  readonly #meter: Meter
  #collectedMs = -Infinity

  constructor(budgetBytes: number, meter: Meter) {
    this.budgetBytes = budgetBytes
    this.#meter = meter
  }

  /** Looks anew. Returns whether `isFull` is another now. */
  look(nowMs: number): boolean {
    const mark = (this.isFull ? CLEARS_AT : FULL_AT) * this.budgetBytes
    this.#read()
    let isFull = this.usedBytes > mark
    // A process at rest does not collect its garbage: it would stay full for ever.
    if (isFull && nowMs >= this.#collectedMs + COLLECT_INTERVAL_MS) {
      this.#collectedMs = nowMs
      this.#meter.collect()
      this.#read()
      isFull = this.usedBytes > mark
    } else if (isFull && !this.isFull) isFull = this.usedBytes > this.budgetBytes
    if (isFull === this.isFull) return false
    this.isFull = isFull
    return true
  }

  #read(): void {
    this.usedBytes = RUNTIME_BYTES + this.#meter.read()
  }
}
