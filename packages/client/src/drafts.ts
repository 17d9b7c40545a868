/**
 * Encodes published messages as records. The records of a batch are written one after the other to a buffer that grows
 * and is reused once the batch is sent. The producer uses this for batches and for the records of atomic steps.
 *
 * Invariant: a buffer in the pool is in no draft. The buffers in the pool have at most `POOL_BYTES` bytes in total.
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
/** Maximum size of a buffer that is reused. */
const BYTES_KEPT = 256 * 1024
/** Maximum size of the pool. It is enough to publish to a thousand queues in one turn. */
const POOL_BYTES = 2 << 20

/** A buffer, and the end of the bytes written to it. */
interface Draft {
  bytes: Buffer
  end: number
}

export function contentTypeOf(body: unknown): ContentType {
  if (typeof body === 'string') return CONTENT_TYPE.text
  return body instanceof Uint8Array ? CONTENT_TYPE.bytes : CONTENT_TYPE.msgpack
}

/** The payload of a body. The next call overwrites packed data. @throws SluiceError INVALID_BODY */
export function payloadOf(body: unknown, contentType: ContentType): string | Uint8Array {
  return contentType === CONTENT_TYPE.msgpack ? packBody(body) : (body as string | Uint8Array)
}

/** Makes room for `bytes` more bytes. */
export function reserve(draft: Draft, bytes: number): void {
  const need = draft.end + bytes
  if (need <= draft.bytes.length) return
  const grown = Buffer.allocUnsafeSlow(Math.max(need, draft.bytes.length * 2))
  draft.bytes.copy(grown, 0, 0, draft.end)
  draft.bytes = grown
}

export class Drafts {
  /** Maximum size of a message that the broker accepts, in bytes. */
  messageBytesMax: number = LIMITS.messageBytesMax
  readonly #pool: Buffer[] = []
  #poolBytes = 0

  /** Takes a buffer for a draft. */
  take(): Buffer {
    const bytes = this.#pool.pop()
    if (bytes === undefined) return Buffer.allocUnsafeSlow(BYTES_FIRST)
    this.#poolBytes -= bytes.length
    return bytes
  }

  /**
   * Puts the buffer of a draft that has ended back into the pool, unless the buffer is too large or the pool is full.
   */
  give(bytes: Buffer): void {
    const { length } = bytes
    if (length < BYTES_FIRST || length > BYTES_KEPT) return
    if (this.#poolBytes + length > POOL_BYTES) return
    this.#poolBytes += length
    this.#pool.push(bytes)
  }

  /**
   * Writes a record after the last one, and returns the end of the record. The caller accepts the record by moving
   * `draft.end` there.
   * @throws SluiceError MESSAGE_TOO_LARGE, INVALID_BODY, and the errors of an invalid option
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
      // UTF-8 takes at most three bytes for a UTF-16 unit. A long text is measured, because this bound would be far too
      // high.
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

  /** Encodes a single record, for an atomic step. @throws SluiceError like `append` */
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
      throw new Error(`drafts: kept ${this.#poolBytes} bytes, counted ${bytes}; the limit is ${POOL_BYTES}`)
    if (new Set(this.#pool).size !== this.#pool.length)
      throw new Error('drafts: a buffer was given back twice')
  }

  /** Empties the pool. */
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
