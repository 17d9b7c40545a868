/**
 * Compacts the streams with `compact: 'key'`: removes each message that has a newer one with the same key, and each message
 * without a body that is older than `tombstoneAge` and the newest of its key. Called once per turn; a step handles one chunk
 * at most, and waits while a block is read.
 *
 * A pass goes from the newest messages to the oldest ones and keeps the keys that it has seen in a table. A message whose
 * key is in the table has a newer one. When the table is full, the pass goes on to the oldest message without adding keys,
 * and then begins another part, from the first message that was not added. A tombstone is removed at the end of a part,
 * when the older messages of its key are gone; otherwise they would count as the newest.
 *
 * Invariant: facts about groups precede those of a pass in the log, and a message that a group holds is not removed. So a
 * stream keeps the messages that its groups have not finished.
 *
 * Invariant: no step needs an earlier one. What was removed is in the log, and everything else is found again.
 */
import {
  BATCH_ATTRIBUTE,
  RECORD_FLAG,
  RECORD_HEADER_BYTES,
  RECORD_TIME_BYTES,
  SluiceError,
  batchAttributes,
  recordFlags,
  recordPayloadAt,
  recordSize,
} from '@sluice/protocol'
import type { Blocks } from '../log/blocks.js'
import {
  CHUNK_MESSAGES,
  ID_WORDS,
  KeyTable,
  addBits,
  countRange,
  emptyLocation,
  hashId,
  type Queue,
} from '../queue/index.js'
import type { ColdChunks } from '../state/cold-chunks.js'
import type { Space } from '../state/space.js'
import type { State } from '../state/state.js'
import { RecordCursor } from './record-cursor.js'
import type { Turn } from './turn.js'
import type { Writer } from './writer.js'

/** Maximum number of keys in the table; it then takes about 10 MB. */
const KEYS_MAX = 262_144
/** Maximum number of tombstones that one part of a pass removes. */
const TOMBSTONES_MAX = 16_384
/**
 * Number of chunks that a pass changes before it waits for a checkpoint. A changed chunk stays in memory until its page is
 * written.
 */
const CHANGED_MAX = 4_096

/** What was read of a message. */
const UNREAD = 0
const NO_KEY = 1
const KEYED = 2
const TOMBSTONE = 3

const DONE = -1

/** A pass over one stream. */
interface Pass {
  readonly stream: Queue
  /** Next offset of the stream when the pass began. */
  readonly end: number
  /** Tombstones that were published at this time or before are removed. */
  readonly agedMs: number
  /** Publish time of the oldest tombstone that is kept because of its age; 0 if there is none. */
  tombstoneMs: number
  /** The messages below this offset are in this part. */
  partEnd: number
  /** Number of the chunk that is being read; -1 at the end of the part. */
  number: number
  /** End of the part that follows; 0 if there is none. */
  nextEnd: number
  table: KeyTable
  /** Offsets of the tombstones to remove, by the entry of their key. The newest one is first. */
  readonly tombstones: Map<number, number>
  /** Whether a message could not be read, so that no tombstone is removed: the message could have the same key. */
  isIncomplete: boolean
}

export interface CompactionOptions {
  readonly onNotice?: ((event: string, details: object) => void) | undefined
}

export class Compaction {
  /** Tests set lower numbers. */
  static keysMax = KEYS_MAX
  static tombstonesMax = TOMBSTONES_MAX
  static changedMax = CHANGED_MAX
  readonly #state: State
  readonly #blocks: Blocks
  readonly #cold: ColdChunks
  readonly #space: Space
  readonly #turn: Turn
  readonly #writer: Writer
  readonly #onNotice: CompactionOptions['onNotice']
  /** Streams that wait for a pass. */
  readonly #waiting = new Set<Queue>()
  #pass: Pass | undefined
  #isLoading = false
  /** Position that could not be read; -1 if there is none. */
  #unreadablePosition = -1
  /** Number of chunks that were changed since `#checkpoints` checkpoints had begun. */
  #changed = 0
  #checkpoints = 0
  readonly #location = emptyLocation()
  /** Of the messages of the chunk that is being read: what was read, and the hashes of their keys. */
  readonly #kinds = new Uint8Array(CHUNK_MESSAGES)
  readonly #hashes = new Uint32Array(CHUNK_MESSAGES * ID_WORDS)
  readonly #removed = new Uint32Array(CHUNK_MESSAGES / 32)

  constructor(
    state: State,
    blocks: Blocks,
    cold: ColdChunks,
    space: Space,
    turn: Turn,
    writer: Writer,
    { onNotice }: CompactionOptions,
  ) {
    this.#state = state
    this.#blocks = blocks
    this.#cold = cold
    this.#space = space
    this.#turn = turn
    this.#writer = writer
    this.#onNotice = onNotice
  }

  /** Whether a pass is running or waits. */
  get isWanted(): boolean {
    return this.#pass !== undefined || this.#waiting.size > 0
  }

  /** Called when the deadline of the queue has passed. */
  note(queue: Queue): void {
    if (queue.nextPassMs > this.#turn.nowMs) return
    queue.numbers!.isCompacting = true
    this.#waiting.add(queue)
    this.#turn.wake()
  }

  /** Does a part of the work. */
  step(): void {
    if (this.#isLoading) return
    const pass = this.#pass ?? this.#begin()
    if (pass === undefined) return
    const { stream } = pass
    if (!this.#state.has(stream) || stream.stream!.compact !== 'key') {
      this.#end(pass)
      return
    }
    if (this.#mustWait()) return
    let position: number
    try {
      position = pass.number === DONE ? this.#finishPart(pass) : this.#stepChunk(pass)
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error
      this.#skip(pass, error)
      position = DONE
    }
    if (position === DONE) this.#turn.wake()
    else this.#load(pass, position)
  }

  // Whether too many changed chunks are in memory.
  #mustWait(): boolean {
    if (this.#space.checkpoints !== this.#checkpoints) {
      this.#checkpoints = this.#space.checkpoints
      this.#changed = 0
    }
    if (this.#changed < Compaction.changedMax) return false
    this.#space.isCheckpointWanted = true
    this.#turn.wake()
    return true
  }

  #begin(): Pass | undefined {
    for (const stream of this.#waiting) {
      this.#waiting.delete(stream)
      if (!this.#state.has(stream) || stream.stream!.compact !== 'key') {
        stream.numbers!.isCompacting = false
        continue
      }
      const pass: Pass = {
        stream,
        end: stream.next,
        agedMs: this.#turn.nowMs - stream.stream!.tombstoneAgeMs,
        tombstoneMs: 0,
        partEnd: 0,
        number: 0,
        nextEnd: 0,
        table: new KeyTable(),
        tombstones: new Map(),
        isIncomplete: false,
      }
      this.#beginPart(pass, stream.next)
      this.#pass = pass
      return pass
    }
    return undefined
  }

  #beginPart(pass: Pass, end: number): void {
    pass.partEnd = end
    pass.nextEnd = 0
    pass.table = new KeyTable()
    pass.tombstones.clear()
    this.#goTo(pass, Math.ceil(end / CHUNK_MESSAGES))
  }

  // Continues with the chunk before `number`.
  #goTo(pass: Pass, number: number): void {
    pass.number = pass.stream.chunks.retention?.numberBefore(number) ?? DONE
    this.#kinds.fill(UNREAD)
  }

  #end({ stream }: Pass): void {
    this.#pass = undefined
    stream.numbers!.isCompacting = false
    stream.numbers!.passedMs = this.#turn.nowMs
    if (this.#state.has(stream)) this.#turn.armQueue(stream)
    if (this.#waiting.size > 0) this.#turn.wake()
  }

  // Reads the keys of the chunk, and removes messages from it. Returns `DONE`, or the position that must be loaded before.
  #stepChunk(pass: Pass): number {
    const { stream, number } = pass
    const base = number * CHUNK_MESSAGES
    const { retention } = stream.chunks
    if (retention?.has(number) === true) {
      if (stream.isCold(base) && !this.#cold.takeBack(stream, base))
        return this.#cold.positionOf(stream, base)
      const position = this.#readKeys(pass, base)
      if (position !== DONE) return position
      this.#compactChunk(pass, base)
    }
    this.#goTo(pass, number)
    return DONE
  }

  // @throws SluiceError CORRUPT
  #readKeys({ stream, partEnd }: Pass, base: number): number {
    const kinds = this.#kinds
    const location = this.#location
    const records = new RecordCursor()
    const retained = stream.heldChunk(base)!.retained!
    const end = Math.min(partEnd - base, CHUNK_MESSAGES)
    for (let index = retained.next(0); index < end; index = retained.next(index + 1)) {
      if (kinds[index] !== UNREAD) continue
      stream.locate(base + index, location)
      const block = this.#blocks.findBatch(location.batchPosition)
      if (block === undefined) return location.batchPosition
      const batchAt = location.batchPosition - block.position
      const recordAt = records.find(location, 1, stream, block, batchAt)
      const hasTraits = (batchAttributes(block.bytes, batchAt) & BATCH_ATTRIBUTE.traits) !== 0
      kinds[index] = hasTraits
        ? readKey(block.bytes, recordAt, this.#state.seed, this.#hashes, index * ID_WORDS)
        : NO_KEY
    }
    return DONE
  }

  // Removes what has a newer message, from the newest message of the chunk to the oldest.
  #compactChunk(pass: Pass, base: number): void {
    const { stream, table, tombstones } = pass
    const chunk = stream.heldChunk(base)!
    const blocked: number[] = []
    this.#removed.fill(0)
    for (let index = Math.min(pass.partEnd - base, CHUNK_MESSAGES) - 1; index >= 0; index--) {
      const kind = this.#kinds[index]!
      if (kind < KEYED || !stream.isRetained(base + index)) continue
      const entry = table.find(this.#hashes, index * ID_WORDS)
      if (entry !== -1) {
        addBits(this.#removed, index, index + 1)
        if (tombstones.has(entry)) blocked.push(index, entry)
      } else if (pass.nextEnd === 0) {
        const isFull = table.size >= Compaction.keysMax || tombstones.size >= Compaction.tombstonesMax
        if (isFull) {
          pass.nextEnd = base + index + 1
          continue
        }
        const added = table.add(this.#hashes, index * ID_WORDS)
        if (kind !== TOMBSTONE) continue
        const publishedMs = chunk.publishedAt(index)
        if (publishedMs <= pass.agedMs) tombstones.set(added, base + index)
        else if (pass.tombstoneMs === 0 || publishedMs < pass.tombstoneMs) pass.tombstoneMs = publishedMs
      }
    }
    this.#remove(stream, base)
    // The tombstone of a message that a group holds stays.
    for (let at = 0; at < blocked.length; at += 2)
      if (stream.isRetained(base + blocked[at]!)) tombstones.delete(blocked[at + 1]!)
  }

  // Removes the set of messages from the chunk in memory, except those that a group holds.
  #remove(stream: Queue, base: number): void {
    stream.withoutHeld(base, this.#removed)
    const count = countRange(this.#removed, 0, CHUNK_MESSAGES)
    if (count === 0) return
    this.#writer.writeNoted()
    stream.facts.compact(base, count, this.#removed)
    stream.compactFact(base, count, this.#removed)
    this.#turn.changed(stream)
    this.#changed++
  }

  // Removes the tombstones of the part, chunk by chunk, and then begins the next part or ends the pass.
  #finishPart(pass: Pass): number {
    const { stream, tombstones } = pass
    if (pass.isIncomplete && tombstones.size > 0) {
      // A later pass tries again.
      pass.tombstoneMs = Math.max(1, pass.agedMs)
      tombstones.clear()
    }
    const first = tombstones.values().next().value
    if (first === undefined) {
      if (pass.nextEnd > 0) this.#beginPart(pass, pass.nextEnd)
      else {
        stream.passDone(pass.end, pass.tombstoneMs)
        this.#end(pass)
      }
      return DONE
    }
    const base = first - (first % CHUNK_MESSAGES)
    const isKept = stream.chunks.retention?.has(base / CHUNK_MESSAGES) === true
    if (isKept && stream.isCold(base) && !this.#cold.takeBack(stream, base))
      return this.#cold.positionOf(stream, base)
    this.#removed.fill(0)
    for (const [entry, offset] of tombstones) {
      const index = offset - base
      if (index < 0) break
      tombstones.delete(entry)
      if (isKept && stream.isRetained(offset)) addBits(this.#removed, index, index + 1)
    }
    this.#remove(stream, base)
    return DONE
  }

  #load(pass: Pass, position: number): void {
    this.#isLoading = true
    const done = (): void => {
      this.#isLoading = false
      this.#turn.wake()
    }
    this.#blocks.load(position, false).then(done, (error: unknown) => {
      this.#skipUnreadable(pass, position, error)
      done()
    })
  }

  // After the wait, the messages can have been copied or removed, so only a second failure at the same position counts.
  #skipUnreadable(pass: Pass, position: number, error: unknown): void {
    if (this.#unreadablePosition !== position) {
      this.#unreadablePosition = position
      return
    }
    this.#unreadablePosition = -1
    this.#skip(pass, error)
  }

  // Continues after a chunk that cannot be read.
  #skip(pass: Pass, error: unknown): void {
    const { name } = pass.stream
    this.#onNotice?.('a stream could not be compacted', {
      stream: name,
      offset: pass.number * CHUNK_MESSAGES,
      error,
    })
    pass.isIncomplete = true
    if (pass.number !== DONE) this.#goTo(pass, pass.number)
  }
}

// Reads the hash of the key of the record at `at` into `hashes[to]`. Returns the kind of the record.
function readKey(
  bytes: Uint8Array,
  at: number,
  seed: State['seed'],
  hashes: Uint32Array,
  to: number,
): number {
  const flags = recordFlags(bytes, at)
  if ((flags & RECORD_FLAG.key) === 0) return NO_KEY
  let next = at + RECORD_HEADER_BYTES
  for (const flag of [RECORD_FLAG.delay, RECORD_FLAG.at, RECORD_FLAG.ttl])
    if ((flags & flag) !== 0) next += RECORD_TIME_BYTES
  hashId(bytes, next + 1, next + 1 + bytes[next]!, seed, hashes, to)
  return recordPayloadAt(bytes, at) === at + recordSize(bytes, at) ? TOMBSTONE : KEYED
}
