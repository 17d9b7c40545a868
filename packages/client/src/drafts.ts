/**
 * Records in the making: what a caller publishes becomes a record behind the others of its batch, in a buffer that grows
 * with them and is used again once they are sent.
 *
 * Invariant: a buffer that was given back is in no draft; those that are kept take `POOL_BYTES` at most. The producer
 * writes batches here, and the records of atomic steps.
 */
import {
  CONTENT_TYPE,
  LIMITS,
  RECORD_HEADER_BYTES,
  recordBytes,
  sizeText,
  SluiceError,
  textBytes,
  writeRecordHead,
  type ContentType,
  type RecordOptions,
} from '@sluice/protocol'
import { checkText, packBody } from './body.js'

const BYTES_FIRST = 2 * 1024
/** None that is longer is kept for later, and of the others this many bytes: enough for a thousand queues in one turn. */
const BYTES_KEPT = 256 * 1024
const POOL_BYTES = 2 << 20

/** Records, or what begins with them, in the making. */
interface Draft {
  bytes: Buffer
  end: number
}

export function contentTypeOf(body: unknown): ContentType {
  if (typeof body === 'string') return CONTENT_TYPE.text
  return body instanceof Uint8Array ? CONTENT_TYPE.bytes : CONTENT_TYPE.msgpack
}

/** What is written of a body; data is overwritten by the next call. @throws SluiceError INVALID_BODY */
export function payloadOf(body: unknown, contentType: ContentType): string | Uint8Array {
  return contentType === CONTENT_TYPE.msgpack ? packBody(body) : (body as string | Uint8Array)
}

/** Makes room for `bytes` more. */
export function reserve(draft: Draft, bytes: number): void {
  const need = draft.end + bytes
  if (need <= draft.bytes.length) return
  const grown = Buffer.allocUnsafeSlow(Math.max(need, draft.bytes.length * 2))
  draft.bytes.copy(grown, 0, 0, draft.end)
  draft.bytes = grown
}

export class Drafts {
  /** What the broker accepts of one message. */
  messageBytesMax: number = LIMITS.messageBytesMax
  readonly #pool: Buffer[] = []
  #poolBytes = 0

  /** A buffer for a draft. */
  take(): Buffer {
    const bytes = this.#pool.pop()
    if (bytes === undefined) return Buffer.allocUnsafeSlow(BYTES_FIRST)
    this.#poolBytes -= bytes.length
    return bytes
  }

  /** The draft with this buffer is over. */
  give(bytes: Buffer): void {
    const { length } = bytes
    if (length < BYTES_FIRST || length > BYTES_KEPT) return
    if (this.#poolBytes + length > POOL_BYTES) return
    this.#poolBytes += length
    this.#pool.push(bytes)
  }

  /**
   * Writes a record behind the last one, without counting it yet; returns where it ends.
   * @throws SluiceError MESSAGE_TOO_LARGE, INVALID_BODY, and those of an option
   */
  append(
    draft: Draft,
    payload: string | Uint8Array,
    contentType: ContentType,
    options: RecordOptions | undefined,
  ): number {
    const at = draft.end
    const headBytes = options === undefined ? RECORD_HEADER_BYTES : recordBytes(options, 0)
    const payloadAt = at + headBytes
    let payloadBytes: number
    if (typeof payload === 'string') {
      checkText(payload)
      // UTF-8 takes at most three bytes for a UTF-16 unit; a long text is measured rather than overestimated.
      const bytesMax = payload.length < 1024 ? payload.length * 3 : textBytes(payload)
      this.#checkSize(headBytes, payload.length < 1024 ? payload.length : bytesMax)
      reserve(draft, headBytes + bytesMax)
      payloadBytes = draft.bytes.write(payload, payloadAt, 'utf8')
    } else {
      payloadBytes = payload.length
      this.#checkSize(headBytes, payloadBytes)
      reserve(draft, headBytes + payloadBytes)
      draft.bytes.set(payload, payloadAt)
    }
    this.#checkSize(headBytes, payloadBytes)
    writeRecordHead(draft.bytes, at, options, contentType, payloadBytes)
    return payloadAt + payloadBytes
  }

  /** A record by itself, for an atomic step. @throws SluiceError as `append` */
  record(body: unknown, options: RecordOptions | undefined): Uint8Array {
    const draft = { bytes: this.take(), end: 0 }
    try {
      const contentType = contentTypeOf(body)
      const end = this.append(draft, payloadOf(body, contentType), contentType, options)
      return new Uint8Array(draft.bytes.subarray(0, end))
    } finally {
      this.give(draft.bytes)
    }
  }

  /** @throws Error naming what differs */
  invariants(): void {
    const bytes = this.#pool.reduce((sum, { length }) => sum + length, 0)
    if (bytes !== this.#poolBytes || bytes > POOL_BYTES)
      throw new Error(`drafts: ${this.#poolBytes} bytes are kept, counted ${bytes}, of ${POOL_BYTES}`)
    if (new Set(this.#pool).size !== this.#pool.length)
      throw new Error('drafts: a buffer was given back twice')
  }

  /** Lets go of the buffers that are kept. */
  clear(): void {
    this.#pool.length = 0
    this.#poolBytes = 0
  }

  #checkSize(headBytes: number, payloadBytes: number): void {
    const bytes = headBytes - RECORD_HEADER_BYTES + payloadBytes
    if (bytes > this.messageBytesMax) {
      throw new SluiceError(
        'MESSAGE_TOO_LARGE',
        `A message has ${bytes} bytes; the broker accepts at most ${sizeText(this.messageBytesMax)}.`,
      )
    }
  }
}
