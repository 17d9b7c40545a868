/**
 * Frames. A frame has a 12-byte header and a payload. The decoder does no I/O. It gives the same frames for any split
 * of a byte stream. It refuses a hostile length when it reads the header, before it allocates memory for the frame.
 *
 * Layout: u32 payload length · u8 opcode · u8 flags · u16 channel · u32 correlation.
 */
import { readU16, readU32, writeU16, writeU32 } from './bytes.js'
import { SluiceError } from './errors.js'
import { LIMITS } from './limits.js'

export const FRAME_HEADER_BYTES = 12

const OPCODE_AT = 4
const FLAGS_AT = 5
const CHANNEL_AT = 6
const CORRELATION_AT = 8

/**
 * Number of bytes of the preface, which each side sends first, the client before the server: "SLCE", major, minor, u16
 * 0.
 */
export const PREFACE_BYTES = 8
export const PROTOCOL_MAJOR = 1
export const PROTOCOL_MINOR = 0
/** Version of the protocol after the preface; HELLO negotiates it. */
export const PROTOCOL_VERSION = 1
const MAGIC = [0x53, 0x4c, 0x43, 0x45] as const

/** A frame whose payload is `bytes[start, end)`; `bytes` is only valid while the frame is being handled. */
export interface Frame {
  readonly opcode: number
  readonly flags: number
  readonly channel: number
  readonly correlation: number
  readonly bytes: Uint8Array
  readonly start: number
  readonly end: number
}

/** Receives each frame as it completes. `bytes` is only valid during the call. */
export type FrameSink = (
  opcode: number,
  flags: number,
  channel: number,
  correlation: number,
  bytes: Uint8Array,
  start: number,
  end: number,
) => void

/** Writes a frame header for a payload of `payloadBytes`. Returns the position after the header. */
export function writeFrameHeader(
  bytes: Uint8Array,
  at: number,
  payloadBytes: number,
  opcode: number,
  channel: number,
  correlation: number,
): number {
  writeU32(bytes, at, payloadBytes)
  bytes[at + OPCODE_AT] = opcode
  bytes[at + FLAGS_AT] = 0
  writeU16(bytes, at + CHANNEL_AT, channel)
  writeU32(bytes, at + CORRELATION_AT, correlation)
  return at + FRAME_HEADER_BYTES
}

/** Corrects the length in the frame header at `at`, after the payload has become longer. */
export function writeFrameLength(bytes: Uint8Array, at: number, payloadBytes: number): void {
  writeU32(bytes, at, payloadBytes)
}

/** Replaces the correlation in the frame header at `at`. */
export function writeFrameCorrelation(bytes: Uint8Array, at: number, correlation: number): void {
  writeU32(bytes, at + CORRELATION_AT, correlation)
}

export function encodePreface(): Uint8Array {
  return Uint8Array.of(...MAGIC, PROTOCOL_MAJOR, PROTOCOL_MINOR, 0, 0)
}

const EMPTY = new Uint8Array(0)

/**
 * Splits a byte stream into a preface and frames.
 *
 * Invariant: `held[0, have)` is the beginning of exactly one unfinished preface or frame. `need` is its size or, while its
 * header is incomplete, the size of the header. Whenever `push` returns, `have < need`. Between frames `held` is empty: a
 * decoder keeps memory only for a frame that has begun.
 */
export class FrameDecoder {
  /** Maximum size of a frame, header included; raised when the handshake is done. */
  frameBytesMax: number = LIMITS.frameBytesUnauthenticated
  readonly #sink: FrameSink
  #held: Uint8Array = EMPTY
  #have = 0
  #need: number
  #inPreface: boolean
  #isOurs: boolean
  #stopped = false

  /** `preface`: whether the stream begins with one (false in tests of bare frames). */
  constructor(sink: FrameSink, preface = true) {
    this.#sink = sink
    this.#inPreface = preface
    this.#isOurs = !preface
    this.#need = preface ? PREFACE_BYTES : FRAME_HEADER_BYTES
  }

  /** Number of bytes of the unfinished frame that have arrived. */
  get heldBytes(): number {
    return this.#have
  }

  /** Capacity of the buffer of the unfinished frame, for a memory budget; 0 between frames. */
  get capacityBytes(): number {
    return this.#held.length
  }

  /** Whether the stream began with the magic bytes of this protocol. */
  get isOurs(): boolean {
    return this.#isOurs
  }

  /** Stops the decoder: no further frame reaches the sink, not even from the chunk that is being pushed. */
  stop(): void {
    this.#stopped = true
    this.#held = EMPTY
    this.#have = 0
  }

  /**
   * Takes the next bytes of the stream and passes each whole frame to the sink, in order. An error, including one that
   * the sink throws, stops the decoder, because the start of the next frame is then unknown.
   * @throws SluiceError PROTOCOL_VERSION (not this protocol, or another major version), FRAME_TOO_LARGE
   */
  push(chunk: Uint8Array): void {
    try {
      let at = 0
      while (!this.#stopped && at < chunk.length) {
        if (this.#have === 0 && !this.#inPreface) {
          at = this.#frames(chunk, at)
          if (this.#stopped || at === chunk.length) return
        }
        at = this.#hold(chunk, at)
      }
    } catch (error) {
      this.stop()
      throw error
    }
  }

  // Passes on the whole frames of the chunk without a copy. Returns the position of the first unfinished frame.
  #frames(chunk: Uint8Array, from: number): number {
    let at = from
    const end = chunk.length
    while (end - at >= FRAME_HEADER_BYTES) {
      const total = this.#frameBytes(chunk, at)
      if (end - at < total) break
      this.#emit(chunk, at, total)
      if (this.#stopped) return end
      at += total
    }
    return at
  }

  // Copies bytes to the unfinished preface or frame, and passes on the frame when it is whole.
  #hold(chunk: Uint8Array, at: number): number {
    const take = Math.min(this.#need - this.#have, chunk.length - at)
    this.#reserve(this.#have + take)
    this.#held.set(chunk.subarray(at, at + take), this.#have)
    this.#have += take
    if (this.#inPreface) {
      checkMagic(this.#held, this.#have)
      this.#isOurs = this.#have >= MAGIC.length
      checkMajor(this.#held, this.#have)
    }
    if (this.#have < this.#need) return at + take
    if (this.#inPreface) {
      this.#inPreface = false
    } else if (this.#need === FRAME_HEADER_BYTES) {
      const total = this.#frameBytes(this.#held, 0)
      if (total > FRAME_HEADER_BYTES) {
        this.#need = total
        return at + take
      }
      this.#emit(this.#held, 0, total)
    } else {
      this.#emit(this.#held, 0, this.#need)
    }
    this.#have = 0
    this.#need = FRAME_HEADER_BYTES
    giveBack(this.#held)
    this.#held = EMPTY
    return at + take
  }

  #frameBytes(bytes: Uint8Array, at: number): number {
    const total = readU32(bytes, at) + FRAME_HEADER_BYTES
    if (total > this.frameBytesMax) {
      throw new SluiceError(
        'FRAME_TOO_LARGE',
        `A frame has ${total} bytes; at most ${this.frameBytesMax} are accepted.`,
      )
    }
    return total
  }

  #emit(bytes: Uint8Array, at: number, total: number): void {
    this.#sink(
      bytes[at + OPCODE_AT]!,
      bytes[at + FLAGS_AT]!,
      readU16(bytes, at + CHANNEL_AT),
      readU32(bytes, at + CORRELATION_AT),
      bytes,
      at + FRAME_HEADER_BYTES,
      at + total,
    )
  }

  // The buffer grows with the bytes that have arrived, by doubling, and not with the length in a header.
  #reserve(bytes: number): void {
    if (bytes <= this.#held.length) return
    const wanted = Math.min(this.#need, bytes * 2)
    const grown = spareFor(this.#need) ?? spareFor(wanted) ?? new Uint8Array(sizeFor(wanted))
    grown.set(this.#held.subarray(0, this.#have))
    giveBack(this.#held)
    this.#held = grown
  }
}

// All decoders of the process share the buffers of finished frames. With one buffer for each connection, memory would grow
// with the number of connections. A new buffer for each frame would cost as much as the copy.
const SPARE_SIZE_MIN = 256
const SPARE_SIZE_MAX = 256 * 1024
const SPARE_BYTES_MAX = 2 * 1024 * 1024
/** Buffers by the number of leading zero bits of their size. */
const spare: Uint8Array[][] = Array.from({ length: 33 }, () => [])
let spareBytes = 0

/**
 * Returns the size of a buffer for `bytes`: a power of two, or exactly `bytes` if buffers of that size are not shared.
 */
function sizeFor(bytes: number): number {
  if (bytes > SPARE_SIZE_MAX) return bytes
  return bytes <= SPARE_SIZE_MIN ? SPARE_SIZE_MIN : 2 ** (32 - Math.clz32(bytes - 1))
}

function spareFor(bytes: number): Uint8Array | undefined {
  if (bytes > SPARE_SIZE_MAX) return undefined
  const found = spare[Math.clz32(sizeFor(bytes))]!.pop()
  if (found !== undefined) spareBytes -= found.length
  return found
}

function giveBack(bytes: Uint8Array): void {
  const { length } = bytes
  if (length < SPARE_SIZE_MIN || length > SPARE_SIZE_MAX || spareBytes + length > SPARE_BYTES_MAX) return
  spareBytes += length
  spare[Math.clz32(length)]!.push(bytes)
}

// This is checked as soon as bytes arrive, so that a peer of another protocol is refused at its fourth byte at the latest.
function checkMagic(bytes: Uint8Array, have: number): void {
  for (let i = 0; i < Math.min(have, MAGIC.length); i++) {
    if (bytes[i] !== MAGIC[i]) {
      throw new SluiceError('PROTOCOL_VERSION', 'The peer does not speak the Sluice protocol.')
    }
  }
}

function checkMajor(bytes: Uint8Array, have: number): void {
  if (have > 4 && bytes[4] !== PROTOCOL_MAJOR) {
    throw new SluiceError(
      'PROTOCOL_VERSION',
      `The peer speaks major version ${bytes[4]} of the protocol; this side speaks version ${PROTOCOL_MAJOR}.`,
    )
  }
}
