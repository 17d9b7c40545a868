/**
 * Distinguishable bodies: each contains its producer, its number, and the time at which it should be sent. They show
 * which of the confirmed messages were consumed.
 */
import type { Body } from './driver.js'
import type { Scenario } from './scenario.js'

const POOL_BYTES_MAX = 256 << 20
const HEAD_BYTES = 24

interface Data {
  readonly producer: number
  readonly sequence: number
  readonly atMs: number
  readonly text: string
}

/** Makes bodies for one producer. Byte bodies come from a pool, because the allocation of each would be measured too. */
export class Bodies {
  readonly #producer: number
  readonly #size: number
  readonly #text: string | undefined
  readonly #pool: Uint8Array[] = []
  readonly #views: DataView[] = []
  #sequence = 0

  constructor(producer: number, { bodyBytes, body, inFlight, rate }: Scenario) {
    this.#producer = producer
    this.#size = bodyBytes
    // The field names, the numbers and the msgpack encoding take about 60 bytes.
    this.#text = body === 'object' ? 'x'.repeat(Math.max(0, bodyBytes - 60)) : undefined
    if (this.#text !== undefined) return
    const wanted = Math.max(inFlight * 2, rate, 2_048)
    const count = Math.max(inFlight + 1, Math.min(wanted, Math.floor(POOL_BYTES_MAX / bodyBytes)))
    for (let i = 0; i < count; i++) {
      const bytes = new Uint8Array(this.#size).fill(0x78)
      this.#pool.push(bytes)
      this.#views.push(new DataView(bytes.buffer))
    }
  }

  /** Returns the next body. The bytes of a body are reused, but only after at least `inFlight` other bodies. */
  next(atMs: number): Body {
    const sequence = this.#sequence++
    if (this.#text !== undefined) return { producer: this.#producer, sequence, atMs, text: this.#text }
    const slot = sequence % this.#pool.length
    const view = this.#views[slot]!
    view.setUint32(0, this.#producer)
    view.setUint32(4, sequence)
    view.setFloat64(8, atMs)
    view.setUint32(HEAD_BYTES - 4, sequence ^ CHECK)
    return this.#pool[slot]!
  }
}

const CHECK = 0x5a5a_1234

/** Records which messages arrived, by producer. */
export class Seen {
  readonly #bits: Uint8Array[] = []
  duplicates = 0
  damaged = 0

  /** `copy`: index of this copy among the `copies` that were made of each body. */
  take(body: Body, copy = 0, copies = 1): void {
    if (!(body instanceof Uint8Array)) {
      const { producer, sequence } = body as Data
      this.#mark(producer * copies + copy, sequence)
      return
    }
    const sequence = u32(body, 4)
    if (u32(body, HEAD_BYTES - 4) !== (sequence ^ CHECK) >>> 0) {
      this.damaged++
      return
    }
    this.#mark(u32(body, 0) * copies + copy, sequence)
  }

  #mark(producer: number, sequence: number): void {
    let bits = this.#bits[producer]
    const byte = sequence >>> 3
    if (bits === undefined || byte >= bits.length) {
      const grown = new Uint8Array(Math.max(4_096, byte * 2))
      if (bits !== undefined) grown.set(bits)
      this.#bits[producer] = bits = grown
    }
    const mask = 1 << (sequence & 7)
    if ((bits[byte]! & mask) !== 0) this.duplicates++
    bits[byte]! |= mask
  }

  /** The sets of arrived messages, by producer, for another process. */
  get bits(): readonly (Uint8Array | undefined)[] {
    return this.#bits
  }

  /** Adds the messages that another process received. */
  merge(bits: readonly (Uint8Array | undefined)[]): void {
    for (const [producer, from] of bits.entries()) {
      if (from === undefined) continue
      const into = new Uint8Array(Math.max(from.length, this.#bits[producer]?.length ?? 0))
      into.set(from)
      for (const [byte, other] of (this.#bits[producer] ?? []).entries()) {
        this.duplicates += ONES[into[byte]! & other]!
        into[byte]! |= other
      }
      this.#bits[producer] = into
    }
  }

  get distinct(): number {
    let count = 0
    for (const bits of this.#bits) for (const byte of bits ?? []) count += ONES[byte]!
    return count
  }
}

/** The time at which the body should be sent. */
export function atMsOf(body: Body): number {
  return body instanceof Uint8Array
    ? new DataView(body.buffer, body.byteOffset).getFloat64(8)
    : (body as Data).atMs
}

const ONES = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll('0', '').length)

function u32(bytes: Uint8Array, at: number): number {
  return ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0
}

/** The bytes of a body, for brokers that accept only bytes; data becomes JSON. Byte bodies are not copied. */
export function encoded(body: Body): Buffer {
  return body instanceof Uint8Array
    ? Buffer.from(body.buffer, body.byteOffset, body.byteLength)
    : Buffer.from(JSON.stringify(body))
}

export function decoded(bytes: Uint8Array, isData: boolean): Body {
  return isData ? (JSON.parse(Buffer.from(bytes).toString()) as Body) : bytes
}
