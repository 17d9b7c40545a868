/**
 * The place of the next record to deliver within its batch. Deliveries and readers take the records of a batch in order,
 * so the search for a record continues where the last delivery ended.
 */
import { recordSize } from '@sluice/protocol'
import { WAYPOINT_RECORDS, recordAt, type Block } from '../log/blocks.js'
import { checkBatchAt, slotInBatch, type BatchUser, type Location } from '../queue/index.js'

export class RecordCursor {
  /** Position of the batch; -1 before the first delivery. */
  #batchPosition = -1
  /** Slot of a record in that batch, and its distance in bytes from the start of the batch. */
  #slot = 0
  #byte = 0

  /**
   * Returns the byte in the block of the first of `count` messages. The location is that of the first message, whose batch
   * is at the byte `batchAt` of the block.
   * @throws SluiceError CORRUPT
   */
  find(location: Location, count: number, queue: BatchUser, block: Block, batchAt: number): number {
    const { bytes } = block
    const isOther = this.#batchPosition !== location.batchPosition
    if (isOther) checkBatchAt(location, queue, bytes, batchAt)
    const slot = slotInBatch(location, count, bytes, batchAt)
    if (isOther || this.#slot > slot || slot - this.#slot > WAYPOINT_RECORDS) {
      this.#batchPosition = location.batchPosition
      this.#slot = slot
      this.#byte = recordAt(block, batchAt, slot) - batchAt
    }
    while (this.#slot < slot) {
      this.#byte += recordSize(bytes, batchAt + this.#byte)
      this.#slot++
    }
    return batchAt + this.#byte
  }

  /** Called when `count` records of `bytes` bytes, from the found one on, are done. */
  advance(count: number, bytes: number): void {
    this.#slot += count
    this.#byte += bytes
  }
}
