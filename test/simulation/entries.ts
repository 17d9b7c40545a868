/**
 * Entries for tests of a log. The writer maintains the chain of entries as the broker does; the batches are made up, and
 * their bytes differ from entry to entry, so that a test can distinguish entries from each other and from damage.
 */
import { BATCH_HEADER_BYTES, BATCH_TYPE, sealBatch } from '@sluice/protocol'
import { ENTRY_HEADER_BYTES, entryPaddedBytes, sealEntry } from '../../packages/server/src/log/entry.js'
import { placeEntry } from '../../packages/server/src/log/segment.js'
import type { Log, LogBounds } from '../../packages/server/src/log/log.js'

export interface MadeEntry {
  readonly position: number
  readonly lsn: number
  readonly bytes: Uint8Array
  readonly crc: number
}

/** A padded entry with one batch for each of `recordBytes`. */
export function makeEntry(
  chain: { lsn: number; previousCrc: number; position: number; salt: number; epoch?: number },
  recordBytes: readonly number[],
): MadeEntry {
  const length = recordBytes.reduce((sum, bytes) => sum + BATCH_HEADER_BYTES + bytes, ENTRY_HEADER_BYTES)
  const bytes = new Uint8Array(entryPaddedBytes(length))
  let at = ENTRY_HEADER_BYTES
  recordBytes.forEach((records, index) => {
    const end = at + BATCH_HEADER_BYTES + records
    for (let byte = at + BATCH_HEADER_BYTES; byte < end; byte++) {
      bytes[byte] = (chain.lsn * 31 + index * 7 + byte * 13) & 0xff
    }
    sealBatch(bytes, at, end, { type: BATCH_TYPE.facts, count: 1, batchNumber: chain.lsn })
    at = end
  })
  const crc = sealEntry(bytes, 0, length, {
    lsn: chain.lsn,
    position: chain.position,
    epoch: chain.epoch ?? 1,
    previousCrc: chain.previousCrc,
    timeMs: 1_700_000_000_000 + chain.lsn,
    salt: chain.salt,
    batches: recordBytes.length,
  })
  return { position: chain.position, lsn: chain.lsn, bytes, crc }
}

/** Appends made-up entries one after the other. */
export class EntryWriter {
  readonly #log: Log
  readonly #salt: number
  /** Position of the next entry, if the segment has room for it. */
  next: number
  lsn: number
  previousCrc: number
  /** Entries whose `append` resolved. */
  readonly durable: MadeEntry[] = []
  /** The entry that is being appended, or whose append failed. */
  underWay: MadeEntry | undefined

  constructor(log: Log, bounds: LogBounds) {
    this.#log = log
    this.#salt = bounds.salt
    this.next = bounds.nextPosition
    this.lsn = bounds.nextLsn
    this.previousCrc = bounds.lastCrc
  }

  make(recordBytes: readonly number[]): MadeEntry {
    const length = recordBytes.reduce((sum, bytes) => sum + BATCH_HEADER_BYTES + bytes, ENTRY_HEADER_BYTES)
    const position = placeEntry(this.next, length, this.#log.segmentBytes)
    return makeEntry(
      { lsn: this.lsn, previousCrc: this.previousCrc, position, salt: this.#salt },
      recordBytes,
    )
  }

  async append(recordBytes: readonly number[]): Promise<MadeEntry> {
    const entry = this.make(recordBytes)
    this.underWay = entry
    await this.#log.append(entry.position, entry.lsn, entry.bytes)
    this.underWay = undefined
    this.durable.push(entry)
    this.follow(entry)
    return entry
  }

  /** Continues after this entry, which was appended by other means. */
  follow(entry: MadeEntry): void {
    this.next = entry.position + entry.bytes.length
    this.lsn = entry.lsn + 1
    this.previousCrc = entry.crc
  }
}
