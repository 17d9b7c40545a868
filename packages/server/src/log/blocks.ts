/**
 * The parts of the log that are in memory. Recent blocks are what was appended last, in place: entries are built in
 * them, written from them and read from them. Cold blocks were read back from disk, with some bytes ahead.
 *
 * Invariant: what a block says about a position is what the log holds there. A recent block is only given up once
 * all of it is durable, so every position is either in a recent block or readable from disk.
 */
import { BATCH_HEADER_BYTES, LIMITS, SluiceError, batchIsIntact, batchLength } from '@sluice/protocol'
import type { Log } from './log.js'

export interface Block {
  /** Place in the log of `bytes[0]`. */
  position: number
  bytes: Uint8Array
  /** Bytes that are valid. */
  used: number
  /** Of a cold block: the batch whose checksum was compared last; -1 while it has not been used. */
  checkedPosition: number
  /** Of a cold block: how much had been read back when it came. */
  readonly arrivedAtBytes: number
  /** Whether what comes after it needs no more looking for: only a part that is read in order has something to follow. */
  isFollowed: boolean
}

export interface BlocksOptions {
  readonly blockBytes: number
  /** Bounds of the two kinds. Blocks that are not durable yet are kept beyond theirs. */
  readonly recentBytes: number
  readonly coldBytes: number
  /** How much is read at once when a cold part is read in order. */
  readonly readAheadBytes: number
}

export const BLOCKS_DEFAULTS: BlocksOptions = {
  blockBytes: 2 << 20,
  recentBytes: 24 << 20,
  coldBytes: 16 << 20,
  readAheadBytes: 512 << 10,
}

export class Blocks {
  readonly #log: Log
  readonly #options: BlocksOptions
  readonly #recent: Block[] = []
  /** Least recently used first. */
  readonly #cold: Block[] = []
  readonly #spare: Uint8Array[] = []
  /** Of cold blocks that were given up, each as long as what is read ahead. */
  readonly #spareCold: Uint8Array[] = []
  #recentBytes = 0
  #coldBytes = 0
  #durable = 0
  /** All that was read back so far. */
  #readBytes = 0
  /** How much is read ahead now: less than the most while blocks go before they are used. */
  #aheadBytes: number
  /** Length of the batch that was read last by itself. */
  #typicalBytes: number = EXACT_BYTES
  #last: Block | undefined
  /** How much is read where nothing is read ahead: as much as the last batch had. */
  #exactBytes: number = EXACT_BYTES
  /** By position. */
  readonly #loading = new Map<number, Promise<void>>()

  constructor(log: Log, options: BlocksOptions) {
    this.#log = log
    this.#options = options
    this.#aheadBytes = options.readAheadBytes
  }

  /** How much is read with a batch that is read ahead of. */
  get readAheadBytes(): number {
    return this.#aheadBytes
  }

  get memoryBytes(): number {
    let spareBytes = this.#spare.length * this.#options.blockBytes
    for (const bytes of this.#spareCold) spareBytes += bytes.length
    return this.#recentBytes + this.#coldBytes + spareBytes
  }

  /** Begins a recent block at `position` with room for at least `bytes`. */
  begin(position: number, bytes: number): Block {
    const size = Math.max(bytes, this.#options.blockBytes)
    const spare = size === this.#options.blockBytes ? this.#spare.pop() : undefined
    const block = {
      position,
      bytes: spare ?? new Uint8Array(size),
      used: 0,
      checkedPosition: -1,
      arrivedAtBytes: 0,
      isFollowed: true,
    }
    this.#recent.push(block)
    this.#recentBytes += size
    this.#evict()
    return block
  }

  /** Everything before this is on disk. */
  get durablePosition(): number {
    return this.#durable
  }

  /** Everything before `position` is durable. */
  setDurable(position: number): void {
    this.#durable = position
    if (this.#recentBytes > this.#options.recentBytes) this.#evict()
  }

  /**
   * The block that holds the whole batch at `position`, or undefined when it has to be loaded.
   * @throws SluiceError CORRUPT when bytes from disk do not match their checksum
   */
  findBatch(position: number): Block | undefined {
    const block = this.#find(position)
    if (block === undefined) return undefined
    const at = position - block.position
    const length = batchLength(block.bytes, at)
    if (block.checkedPosition !== position && block.checkedPosition !== RECENT) {
      if (length < BATCH_HEADER_BYTES) throw corrupt(position)
      if (!batchIsIntact(block.bytes, at, at + length)) throw corrupt(position)
      block.checkedPosition = position
    }
    return block
  }

  /** Whether the batch at `position` is in memory. */
  has(position: number): boolean {
    return this.#find(position) !== undefined
  }

  /**
   * Reads the batch at `position` from disk, and what follows it if `ahead`. Then `findBatch` finds it.
   * One that is being read is not read twice.
   * @throws SluiceError CORRUPT when it cannot be as long as it says; whatever the log's `readRange` throws
   */
  load(position: number, ahead: boolean): Promise<void> {
    let loading = this.#loading.get(position)
    if (loading === undefined) {
      loading = this.#load(position, ahead).finally(() => this.#loading.delete(position))
      this.#loading.set(position, loading)
    }
    return loading
  }

  /**
   * Begins to read the batch at `position` and what follows it, before anybody waits for it. Not while something else
   * is read: what somebody waits for goes first, and what many queues read early would push each other out.
   */
  loadEarly(position: number): void {
    if (this.#loading.size > 0 || this.has(position) || !this.#hasRoomFor(this.#aheadBytes)) return
    // Whether it can be read shows when it is needed.
    this.load(position, true).catch(() => {})
  }

  /**
   * Reads the batches at `positions` before anybody waits for them, as many of the first ones as have room until they are
   * used. Resolves when that is done; whether one can be read shows when it is needed.
   */
  async loadAhead(positions: Iterable<number>): Promise<void> {
    const left = positions[Symbol.iterator]()
    const readOn = async (): Promise<void> => {
      for (let next = left.next(); next.done !== true; next = left.next()) {
        if (this.has(next.value)) continue
        // With what is being read meanwhile, which is not in the cache yet.
        if (!this.#hasRoomFor(this.#typicalBytes * (this.#loading.size + 1))) return
        await this.load(next.value, false).catch(() => {})
      }
    }
    // The length of a batch is known once it is read, so only a few are read at once.
    await Promise.all([readOn(), readOn()])
  }

  // What is read before it is needed takes no more than half of the cache until it is used: more would push out what
  // comes first in favour of what comes later, and be read again.
  #hasRoomFor(bytes: number): boolean {
    let unused = bytes
    for (const block of this.#cold) if (!this.#isSpent(block)) unused += block.bytes.length
    return unused <= this.#options.coldBytes / 2
  }

  // It was used, or it came so long ago that what it was read for is gone.
  #isSpent({ checkedPosition, arrivedAtBytes }: Block): boolean {
    return checkedPosition !== -1 || this.#readBytes - arrivedAtBytes > STALE_AT * this.#options.coldBytes
  }

  async #load(position: number, ahead: boolean): Promise<void> {
    const segmentEnd = (Math.floor(position / this.#log.segmentBytes) + 1) * this.#log.segmentBytes
    const end = Math.min(segmentEnd, this.#durable > position ? this.#durable : segmentEnd)
    const wanted = Math.min(ahead ? this.#aheadBytes : this.#exactBytes, end - position)
    const spare = this.#spareCold.at(-1)?.length === wanted ? this.#spareCold.pop() : undefined
    let bytes = await this.#log.readRange(position, wanted, spare)
    const length = bytes.length < BATCH_HEADER_BYTES ? Infinity : batchLength(bytes, 0)
    if (length > end - position) throw corrupt(position)
    if (!ahead) {
      this.#typicalBytes = length
      this.#exactBytes = Math.max(EXACT_BYTES, Math.min(length, LIMITS.batchBytesTarget))
    }
    if (length > bytes.length) bytes = await this.#log.readRange(position, length)
    this.#readBytes += bytes.length
    this.#cold.push({
      position,
      bytes,
      used: bytes.length,
      checkedPosition: -1,
      arrivedAtBytes: this.#readBytes,
      isFollowed: !ahead,
    })
    this.#coldBytes += bytes.length
    this.#last = undefined
    while (this.#coldBytes > this.#options.coldBytes && this.#cold.length > 1) this.#evictCold()
  }

  // What was used goes first; else what came first.
  #evictCold(): void {
    const spent = this.#cold.findIndex((block) => this.#isSpent(block))
    const [block] = this.#cold.splice(Math.max(0, spent), 1)
    const { position, bytes, checkedPosition } = block!
    this.#coldBytes -= bytes.length
    const isAhead = bytes.length === this.#aheadBytes
    // Used again: new memory for all that a long backlog is read through was a full garbage collection every 130 ms, and
    // a quarter of what the broker spent on a message.
    if (isAhead && this.#spareCold.length < SPARE_COLD_MAX) this.#spareCold.push(bytes)
    if (bytes.length < this.#aheadBytes) return
    // Where many queues are read in order, each block has less time. Reading less leaves it more.
    const { readAheadBytes } = this.#options
    const last = checkedPosition - position
    const usedPart = checkedPosition === -1 ? 0 : (last + batchLength(bytes, last)) / bytes.length
    if (usedPart < AHEAD_LESS_AT)
      this.#setAhead(Math.max(this.#aheadBytes / 2, readAheadBytes / AHEAD_PARTS_MAX))
    else if (usedPart > AHEAD_MORE_AT) this.#setAhead(Math.min(this.#aheadBytes * 2, readAheadBytes))
  }

  #setAhead(bytes: number): void {
    if (bytes === this.#aheadBytes) return
    this.#aheadBytes = bytes
    this.#spareCold.length = 0
  }

  #find(position: number): Block | undefined {
    const last = this.#last
    if (last !== undefined && holdsBatch(last, position)) return last
    for (let i = this.#recent.length - 1; i >= 0; i--) {
      const block = this.#recent[i]!
      if (position < block.position) continue
      if (position >= block.position + block.used) break
      block.checkedPosition = RECENT
      this.#last = block
      return block
    }
    for (let i = this.#cold.length - 1; i >= 0; i--) {
      const block = this.#cold[i]!
      if (!holdsBatch(block, position)) continue
      if (i < this.#cold.length - 1) {
        this.#cold.splice(i, 1)
        this.#cold.push(block)
      }
      this.#last = block
      return block
    }
    return undefined
  }

  #evict(): void {
    while (this.#recentBytes > this.#options.recentBytes && this.#recent.length > 1) {
      const oldest = this.#recent[0]!
      if (oldest.position + oldest.used > this.#durable) return
      this.#recent.shift()
      this.#recentBytes -= oldest.bytes.length
      if (this.#last === oldest) this.#last = undefined
      if (oldest.bytes.length === this.#options.blockBytes && this.#spare.length === 0)
        this.#spare.push(oldest.bytes)
    }
  }
}

/** After the cache was read this many times over, a block that was not used is not waited for any more. */
const STALE_AT = 4
/** Reading ahead shrinks when less than this part of a block was used, down to one of these parts, and grows above. */
const AHEAD_LESS_AT = 0.25
const AHEAD_MORE_AT = 0.75
const AHEAD_PARTS_MAX = 8
/** Buffers of cold blocks that are kept to be used again: as many as are read at once. */
const SPARE_COLD_MAX = 2
/** Mark of a recent block: its bytes were checked when they came. */
const RECENT = -2
/** Least that is read when one message far from the others is needed: most batches with such messages are no longer. */
const EXACT_BYTES = LIMITS.batchBytesScheduledTarget

/** Whether `block` holds the whole batch at `position`. One that was read ahead can end within a batch. */
export function holdsBatch(block: Block, position: number): boolean {
  const at = position - block.position
  return at >= 0 && at + BATCH_HEADER_BYTES <= block.used && at + batchLength(block.bytes, at) <= block.used
}

function corrupt(position: number): SluiceError {
  return new SluiceError(
    'CORRUPT',
    `The bytes at position ${position} of the log do not match their checksum.`,
  )
}
