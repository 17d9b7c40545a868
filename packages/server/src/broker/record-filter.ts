/**
 * The part of a message filter that concerns the record: key, id and headers. They are encoded once, when the request
 * arrives; then records are compared as bytes. Called by readers and by requests about messages.
 *
 * Invariant: `matches` walks the headers of a record once and makes no text and no view of bytes. Its work grows with the
 * size of the record's headers, and with the number of wanted headers only by its logarithm.
 */
import { HEADER_OVERHEAD_BYTES, readU16, recordLayout, type MessageFilter } from '@sluice/protocol'

interface WantedHeader {
  readonly name: Uint8Array
  readonly value: Uint8Array
  /** Whether the last header with this name, of those walked so far in a record, has this value. */
  isMet: boolean
}

/** Bytes that are compared for one step of work. */
const BYTES_IN_STEP = 16

/** Work after which a request about messages lets other input be served; this takes one or two milliseconds. */
export const FILTER_STEPS_MAX = 16_384

export class RecordFilter {
  /** Whether the filter checks a part of the record. If false, every record matches. */
  readonly needsRecord: boolean
  /**
   * Work done for records since `endsTurn` last returned true: a step for each header, for each name or value compared,
   * and for each 16 of their bytes.
   */
  steps = 0
  readonly #key: Uint8Array | undefined
  readonly #id: Uint8Array | undefined
  /** In the order of `#compare`, so that a binary search finds a name. */
  readonly #headers: WantedHeader[]
  /** Size of the wanted headers in a record. */
  readonly #headersBytes: number

  constructor({ key, id, headers }: MessageFilter) {
    this.needsRecord = key !== undefined || id !== undefined || headers !== undefined
    this.#key = key === undefined ? undefined : Buffer.from(key)
    this.#id = id === undefined ? undefined : Buffer.from(id)
    this.#headers = Object.entries(headers ?? {})
      .map(([name, value]) => ({ name: Buffer.from(name), value: Buffer.from(value), isMet: false }))
      .sort((one, other) => this.#compare(one.name, other.name, 0, other.name.length))
    this.#headersBytes = this.#headers.reduce(
      (sum, { name, value }) => sum + HEADER_OVERHEAD_BYTES + name.length + value.length,
      0,
    )
  }

  /**
   * Whether the record at `at` matches. Keys, ids and headers are compared as bytes, because different byte strings that
   * are not valid UTF-8 can decode to the same text. Of two headers with the same name, the last one counts.
   */
  matches(bytes: Uint8Array, at: number): boolean {
    if (!this.needsRecord) return true
    const { keyAt, idAt, headersAt, payloadAt } = recordLayout(bytes, at)
    // If the record has no key or no id, its part is empty, and the bytes there belong to the next part.
    if (this.#key !== undefined && (keyAt === idAt || !this.#isEqual(this.#key, bytes, keyAt + 1, idAt)))
      return false
    if (
      this.#id !== undefined &&
      (idAt === headersAt || !this.#isEqual(this.#id, bytes, idAt + 1, headersAt))
    )
      return false
    return this.#headers.length === 0 || this.#matchesHeaders(bytes, headersAt, payloadAt)
  }

  /** Whether `steps` has reached the work of one turn; then starts it again from 0. */
  endsTurn(): boolean {
    if (this.steps < FILTER_STEPS_MAX) return false
    this.steps = 0
    return true
  }

  #matchesHeaders(bytes: Uint8Array, start: number, end: number): boolean {
    if (end - start < this.#headersBytes) return false
    const headers = this.#headers
    this.steps += headers.length
    for (let i = 0; i < headers.length; i++) headers[i]!.isMet = false
    let met = 0
    for (let at = start; at < end;) {
      const nameEnd = at + 1 + bytes[at]!
      const valueAt = nameEnd + 2
      const valueEnd = valueAt + readU16(bytes, nameEnd)
      this.steps++
      const wanted = this.#find(bytes, at + 1, nameEnd)
      if (wanted !== undefined) {
        const isMet = this.#isEqual(wanted.value, bytes, valueAt, valueEnd)
        if (isMet !== wanted.isMet) met += isMet ? 1 : -1
        wanted.isMet = isMet
      }
      at = valueEnd
    }
    return met === headers.length
  }

  // The wanted header with the name `bytes[start, end)`.
  #find(bytes: Uint8Array, start: number, end: number): WantedHeader | undefined {
    let low = 0
    let high = this.#headers.length
    while (low < high) {
      const middle = (low + high) >> 1
      const wanted = this.#headers[middle]!
      const order = this.#compare(wanted.name, bytes, start, end)
      if (order === 0) return wanted
      if (order < 0) low = middle + 1
      else high = middle
    }
    return undefined
  }

  #isEqual(wanted: Uint8Array, bytes: Uint8Array, start: number, end: number): boolean {
    return this.#compare(wanted, bytes, start, end) === 0
  }

  // Orders by length, then by bytes. Returns 0 if `wanted` is equal to `bytes[start, end)`.
  #compare(wanted: Uint8Array, bytes: Uint8Array, start: number, end: number): number {
    this.steps++
    const { length } = wanted
    if (length !== end - start) return length - (end - start)
    let i = 0
    while (i < length && wanted[i] === bytes[start + i]) i++
    this.steps += Math.floor(i / BYTES_IN_STEP)
    return i === length ? 0 : wanted[i]! - bytes[start + i]!
  }
}
