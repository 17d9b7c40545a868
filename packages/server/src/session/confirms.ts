/** Writes PUBLISH_OK frames. Consecutive confirms of one turn share a frame. */
import {
  FRAME_HEADER_BYTES,
  OP,
  publishOkItemBytes,
  writeFrameLength,
  writePublishOkItem,
  type Placed,
} from '@sluice/protocol'
import type { Outbox } from './outbox.js'

/** Maximum payload of a shared frame. A confirm with many duplicates can be longer; then it gets its own frame. */
const CONFIRMS_BYTES_MAX = 64 << 10

export class Confirms {
  /** Buffer of the last frame, and the start and end of the frame's payload in it. */
  #bufferNumber = -1
  #payloadAt = 0
  #end = 0

  /** Writes a confirm. Returns whether the confirm started a new frame. */
  write(outbox: Outbox, batchNumber: number, { baseOffset, duplicates }: Placed): boolean {
    const bytes = publishOkItemBytes(duplicates)
    const fits = this.#end - this.#payloadAt + bytes <= CONFIRMS_BYTES_MAX
    let at = fits ? outbox.extend(this.#bufferNumber, this.#end, bytes) : -1
    const begins = at === -1
    if (begins) {
      at = outbox.begin(OP.PUBLISH_OK, 0, 0, bytes)
      this.#bufferNumber = outbox.bufferNumber
      this.#payloadAt = at
    }
    this.#end = writePublishOkItem(outbox.bytes, at, batchNumber, baseOffset, duplicates)
    writeFrameLength(outbox.bytes, this.#payloadAt - FRAME_HEADER_BYTES, this.#end - this.#payloadAt)
    return begins
  }
}
