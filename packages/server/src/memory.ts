/**
 * The memory budget of a broker process. Four parts have their own limit, which is a share of the budget: the log in
 * memory, writes that wait for the disk, partly received frames, and unread answers and deliveries. The rest is for
 * the state of queues, which grows with leases, keys, ids and delays. When the process nears its budget, publishes
 * are refused until consumers have settled enough messages. Called by the server.
 */
import { totalmem } from 'node:os'
import { runInNewContext } from 'node:vm'
import { getHeapStatistics, setFlagsFromString } from 'node:v8'
import type { BlocksOptions } from './log/blocks.js'

/** Minimum budget in bytes; a broker with all its parts needs this much memory. */
export const MEMORY_BYTES_MIN = 192 << 20

/** Half of the machine's memory, or of the container's limit if that is lower; at least `MEMORY_BYTES_MIN`. */
export function defaultMemoryBytes(): number {
  const allowed = process.constrainedMemory()
  const bytes = totalmem()
  const most = allowed !== undefined && allowed > 0 ? Math.min(bytes, allowed) : bytes
  return Math.max(MEMORY_BYTES_MIN, Math.floor(most / 2))
}

export interface MemoryShares {
  readonly blocks: Pick<BlocksOptions, 'recentBytes' | 'coldBytes'>
  /** Maximum number of bytes that wait for the disk. */
  readonly pendingBytesMax: number
  /** Maximum size of the partly received frames of all connections, in bytes. */
  readonly receiveBytesMax: number
  /** Maximum number of unread bytes of all connections. The buffers of these bytes take up to twice as much memory. */
  readonly outboundBytesMax: number
}

/**
 * Divides the budget. Above a budget of 512 MiB, the shares of the log and of waiting writes do not grow, because
 * larger shares would not make the broker faster.
 */
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
 * Memory of Node besides objects and buffers: 48 MiB for code, stacks and the allocator, and 32 MiB for the two halves of the
 * young generation, which V8 keeps while the process is busy.
 */
const RUNTIME_BYTES = 80 << 20
/** Publishes are refused above FULL_AT of the budget, and accepted again below CLEARS_AT of the budget. */
const FULL_AT = 0.875
const CLEARS_AT = 0.825
/**
 * Minimum time between two garbage collections, because each collection stops the process for a moment. Between two
 * collections, memory counts as full only above the whole budget, because the reading includes garbage.
 */
const COLLECT_INTERVAL_MS = 1_000

export interface Meter {
  /** Returns the bytes of objects and buffers, including garbage. */
  read(): number
  /** Collects garbage. */
  collect(): void
}

export const PROCESS_METER: Meter = {
  read() {
    // `external` includes buffers.
    try {
      const { heapUsed, external } = process.memoryUsage()
      return heapUsed + external
    } catch {
      // `memoryUsage` opens a file, and throws if no file descriptor is free.
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

// V8 exposes its collector only in contexts created after the flag is set.
function exposedCollector(): () => void {
  setFlagsFromString('--expose-gc')
  return runInNewContext('gc') as () => void
}

/** Decides whether a process is near its memory budget. Reads the meter when the server calls `look`. */
export class MemoryGauge {
  readonly budgetBytes: number
  /** Memory for runtime, objects and buffers at the last reading, in bytes. */
  usedBytes = 0
  isFull = false
  readonly #meter: Meter
  #collectedMs = -Infinity

  constructor(budgetBytes: number, meter: Meter) {
    this.budgetBytes = budgetBytes
    this.#meter = meter
  }

  /** Reads the meter. Returns whether `isFull` changed. */
  look(nowMs: number): boolean {
    const mark = (this.isFull ? CLEARS_AT : FULL_AT) * this.budgetBytes
    this.#read()
    let isFull = this.usedBytes > mark
    // An idle process does not collect its garbage. Without this collection its memory would stay full.
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
