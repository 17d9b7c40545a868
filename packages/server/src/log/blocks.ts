/**
 * The parts of the log that are in memory. Recent blocks are the end of the log: entries are built in them, written
 * from them and read from them. Cold blocks were read back from disk, some with the bytes that follow the needed batch.
 *
 * Invariant: a block has the same bytes as the log at its position. A recent block is evicted only once all of it is
 * durable, so every position is in a recent block or readable from disk.
 */
import {
  BATCH_HEADER_BYTES,
  LIMITS,
  SluiceError,
  batchIsIntact,
  batchLength,
  firstRecordAt,
  presentCount,
  recordSize,
} from '@sluice/protocol'
import type { Log } from './log.js'

export interface Block {
  /** Position of `bytes[0]` in the log. */
  position: number
  bytes: Uint8Array
  /** Number of valid bytes. */
  used: number
  /**
   * For a cold block: position of the batch whose checksum was verified last; -1 while the block is unused. For a
   * recent block: RECENT.
   */
  checkedPosition: number
  /** For a cold block: value of `#readBytes` when the block was read. */
  readonly arrivedAtBytes: number
  /**
   * Whether a read-ahead of the block after this one was considered. True from the start if that block should not be
   * read ahead.
   */
  isFollowed: boolean
  /** Waypoints of long batches, by the index of the batch's first byte in the block; see `recordAt`. */
  waypoints: Map<number, Waypoints> | undefined
}

/** Waypoints: positions of every 64th record of a batch, up to the furthest record that was looked up so far. */
interface Waypoints {
  /** Distances from the start of the batch to the records 64, 128 and so on, in bytes. */
  readonly bytes: Uint32Array
  known: number
}

export interface BlocksOptions {
  readonly blockBytes: number
  /** Maximum total size of each kind of block, in bytes. Blocks that are not durable yet are kept beyond this limit. */
  readonly recentBytes: number
  readonly coldBytes: number
  /** Size of one read when a cold part of the log is read in order, in bytes. */
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
  /** Buffers of evicted cold blocks, each of `#aheadBytes`. */
  readonly #spareCold: Uint8Array[] = []
  #recentBytes = 0
  #coldBytes = 0
  #durable = 0
  /** Total bytes read from disk. */
  #readBytes = 0
  /**
   * Current size of a read-ahead, in bytes. It is less than the maximum while blocks are evicted before they are used.
   */
  #aheadBytes: number
  /** Length of the last batch that was read without read-ahead. */
  #typicalBytes: number = EXACT_BYTES
  #last: Block | undefined
  /** Size of a read without read-ahead, in bytes: about the length of the last batch that was read this way. */
  #exactBytes: number = EXACT_BYTES
  /** Reads in progress, by position. */
  readonly #loading = new Map<number, Promise<void>>()

  constructor(log: Log, options: BlocksOptions) {
    this.#log = log
    this.#options = options
    this.#aheadBytes = options.readAheadBytes
  }

  /** Size of a read-ahead, in bytes. */
  get readAheadBytes(): number {
    return this.#aheadBytes
  }

  get memoryBytes(): number {
    let spareBytes = this.#spare.length * this.#options.blockBytes
    for (const bytes of this.#spareCold) spareBytes += bytes.length
    return this.#recentBytes + this.#coldBytes + spareBytes
  }

  /** Starts a recent block at `position` with room for at least `bytes`. */
  begin(position: number, bytes: number): Block {
    const size = Math.max(bytes, this.#options.blockBytes)
    const spare = size === this.#options.blockBytes ? this.#spare.pop() : undefined
    const block = {
      position,
      bytes: spare ?? new Uint8Array(size),
      used: 0,
      checkedPosition: RECENT,
      arrivedAtBytes: 0,
      isFollowed: true,
      waypoints: undefined,
    }
    this.#recent.push(block)
    this.#recentBytes += size
    this.#evict()
    return block
  }

  /** Position before which every entry is on disk. */
  get durablePosition(): number {
    return this.#durable
  }

  /** Called when every entry before `position` is durable. */
  setDurable(position: number): void {
    this.#durable = position
    if (this.#recentBytes > this.#options.recentBytes) this.#evict()
  }

  /**
   * The block with the whole batch at `position`; undefined when the batch must be loaded.
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
   * Reads the batch at `position` from disk, with the following bytes if `ahead`; `findBatch` then finds it. Calls for the
   * same position share one read.
   * @throws SluiceError CORRUPT when the length in its header is impossible; errors of the log's `readRange`
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
   * Starts to read the batch at `position` and the following bytes before a delivery waits for it. Does nothing while
   * another read is in progress, because needed reads go first and early reads for many queues would evict each other's
   * blocks.
   */
  loadEarly(position: number): void {
    if (this.#loading.size > 0 || this.has(position) || !this.#hasRoomFor(this.#aheadBytes)) return
    // An error is reported when the batch is needed.
    this.load(position, true).catch(() => {})
  }

  /**
   * Reads the batches at `positions` before deliveries wait for them. Reads only as many of the first batches as the
   * cache can keep until they are used. Resolves when these batches have been read. An error is reported when the batch
   * is needed.
   */
  async loadAhead(positions: Iterable<number>): Promise<void> {
    const left = positions[Symbol.iterator]()
    const readOn = async (): Promise<void> => {
      for (let next = left.next(); next.done !== true; next = left.next()) {
        if (this.has(next.value)) continue
        // Includes reads in progress, whose bytes are not in the cache yet.
        if (!this.#hasRoomFor(this.#typicalBytes * (this.#loading.size + 1))) return
        await this.load(next.value, false).catch(() => {})
      }
    }
    // The length of a batch is unknown until it is read, so only two are read at once.
    await Promise.all([readOn(), readOn()])
  }

  // Unused blocks take at most half of the cache. If they took more, later blocks would evict earlier ones, which would
  // then be read twice.
  #hasRoomFor(bytes: number): boolean {
    let unused = bytes
    for (const block of this.#cold) if (!this.#isSpent(block)) unused += block.bytes.length
    return unused <= this.#options.coldBytes / 2
  }

  // Whether a block was used, or was read so long ago that probably no delivery needs it any more.
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
      waypoints: undefined,
    })
    this.#coldBytes += bytes.length
    this.#last = undefined
    while (this.#coldBytes > this.#options.coldBytes && this.#cold.length > 1) this.#evictCold()
  }

  // Evicts the least recently used block that is spent or, if no block is spent, the least recently used block.
  #evictCold(): void {
    const spent = this.#cold.findIndex((block) => this.#isSpent(block))
    const [block] = this.#cold.splice(Math.max(0, spent), 1)
    const { position, bytes, checkedPosition } = block!
    this.#coldBytes -= bytes.length
    const isAhead = bytes.length === this.#aheadBytes
    // The buffer is reused. With a new buffer for every block of a long backlog, a full garbage collection ran every
    // 130 ms and took a quarter of the broker's time per message.
    if (isAhead && this.#spareCold.length < SPARE_COLD_MAX) this.#spareCold.push(bytes)
    if (bytes.length < this.#aheadBytes) return
    // If many queues are read in order, blocks are evicted sooner. With shorter reads they are kept longer.
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

/** A block counts as spent if it is still unused once this many times the size of the cache has been read. */
const STALE_AT = 4
/**
 * A read-ahead is halved when less than AHEAD_LESS_AT of a block was used, and doubled when more than AHEAD_MORE_AT was
 * used.
 */
const AHEAD_LESS_AT = 0.25
const AHEAD_MORE_AT = 0.75
/** A read-ahead is never smaller than the maximum size divided by this number. */
const AHEAD_PARTS_MAX = 8
/** Maximum number of buffers of evicted cold blocks that are kept: one for each read that can run at the same time. */
const SPARE_COLD_MAX = 2
/** `checkedPosition` of a recent block: its bytes were checked when they arrived. */
const RECENT = -2
/** Minimum size of a read without read-ahead, in bytes. Most batches with scheduled messages are not longer. */
const EXACT_BYTES = LIMITS.batchBytesScheduledTarget

/** Whether `block` has the whole batch at `position`. A block that was read ahead can end within a batch. */
export function holdsBatch(block: Block, position: number): boolean {
  const at = position - block.position
  return at >= 0 && at + BATCH_HEADER_BYTES <= block.used && at + batchLength(block.bytes, at) <= block.used
}

/**
 * Number of records from one waypoint to the next. A waypoint takes less than a hundredth of the memory of these
 * records.
 */
export const WAYPOINT_RECORDS = 64

/**
 * Returns the byte in the block at which the record in `slot` of the batch at byte `batchAt` starts. The bytes of a record
 * are found only by the sizes of the records before it, so records are walked in order. Messages of one batch can
 * be needed one by one, in any order, so waypoints shorten the walk.
 */
export function recordAt(block: Block, batchAt: number, slot: number): number {
  const { bytes } = block
  const waypoints = slot < WAYPOINT_RECORDS ? undefined : waypointsOf(block, batchAt)
  const waypoint =
    waypoints === undefined ? 0 : Math.min(Math.floor(slot / WAYPOINT_RECORDS), waypoints.known)
  let at =
    waypoints === undefined || waypoint === 0
      ? firstRecordAt(bytes, batchAt)
      : batchAt + waypoints.bytes[waypoint - 1]!
  for (let record = waypoint * WAYPOINT_RECORDS + 1; record <= slot; record++) {
    at += recordSize(bytes, at)
    if (waypoints !== undefined && record % WAYPOINT_RECORDS === 0)
      waypoints.bytes[waypoints.known++] = at - batchAt
  }
  return at
}

function waypointsOf(block: Block, batchAt: number): Waypoints {
  const all = (block.waypoints ??= new Map<number, Waypoints>())
  let waypoints = all.get(batchAt)
  if (waypoints === undefined) {
    const records = Math.min(presentCount(block.bytes, batchAt), LIMITS.batchCountMax)
    waypoints = { bytes: new Uint32Array(Math.floor(records / WAYPOINT_RECORDS)), known: 0 }
    all.set(batchAt, waypoints)
  }
  return waypoints
}

function corrupt(position: number): SluiceError {
  return new SluiceError(
    'CORRUPT',
    `The bytes at position ${position} of the log do not match their checksum.`,
  )
}
