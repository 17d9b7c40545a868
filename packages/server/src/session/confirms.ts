/**
 * PUBLISH_OK frames, written into the outbox of a connection. Confirms of one turn share a frame for as long as no other
 * frame comes between them.
 */
import {
  FRAME_HEADER_BYTES,
  OP,
  publishOkItemBytes,
  writeFrameLength,
  writePublishOkItem,
  type Placed,
} from '@sluice/protocol'
import type { Outbox } from './outbox.js'

/** Confirms that share a frame; one with many duplicates goes alone, and fits every agreed frame. */
const CONFIRMS_BYTES_MAX = 64 << 10

export class Confirms {
  /** The frame that was written last: its page, and where its payload begins and ends there. */
  #page = -1
  #payloadAt = 0
  #end = 0

  /** Returns whether a frame was begun for it. */
  write(outbox: Outbox, batchNumber: number, { baseOffset, duplicates }: Placed): boolean {
    const bytes = publishOkItemBytes(duplicates)
    const fits = this.#end - this.#payloadAt + bytes <= CONFIRMS_BYTES_MAX
    let at = fits ? outbox.extend(this.#page, this.#end, bytes) : -1
    const begins = at === -1
    if (begins) {
      at = outbox.begin(OP.PUBLISH_OK, 0, 0, bytes)
      this.#page = outbox.page
      this.#payloadAt = at
    }
    this.#end = writePublishOkItem(outbox.bytes, at, batchNumber, baseOffset, duplicates)
    writeFrameLength(outbox.bytes, this.#payloadAt - FRAME_HEADER_BYTES, this.#end - this.#payloadAt)
    return begins
  }
}
