/**
 * Frames that are to be sent to a client. The frames are written here during a turn, and are sent in order once the entry
 * of the turn is durable, or at the end of the turn if its gate is 0.
 *
 * Invariant: a frame reaches the transport only after `sendDurable` was called with an LSN at or above the gate of the
 * frame, which is the LSN of the entry for which it waits.
 */
import { FRAME_HEADER_BYTES, FrameDecoder, OP, writeFrameHeader } from '@sluice/protocol'

/** Receives the bytes to send. `bytes` must not be changed until `written` is called. */
export interface OutboxTransport {
  write(bytes: Uint8Array, written: () => void): void
}

interface SendBuffer {
  gate: number
  readonly bytes: Uint8Array
  readonly length: number
  /** Total size of the published batches that frames in this buffer answer. */
  readonly answersBytes: number
  /** Number of frames in this buffer that no delivery may overtake. */
  readonly barriers: number
}

const BUFFER_BYTES_MIN = 4 << 10
/** A buffer of at least this length is not enlarged by copying; the next frame starts another buffer. */
const BUFFER_BYTES_GROWN = 256 << 10

export class Outbox {
  /** The bytes of the buffer being filled. The caller writes a payload here, at the index that `begin` returned. */
  bytes: Uint8Array = NO_BYTES
  /** Number of the buffer being filled. The array of a buffer is reused, so it does not identify the buffer. */
  bufferNumber = 0
  /** Bytes that wait for the disk or for the client. */
  outstandingBytes = 0
  /** The part of `outstandingBytes` that waits only for the client. */
  unreadBytes = 0
  /** Total size of the published batches whose answers wait for the disk. */
  inFlightBytes = 0
  /** Number of waiting frames that no delivery may overtake: all except answers to publishes and settles. */
  barriers = 0
  #answersBytes = 0
  #bufferBarriers = 0
  #length = 0
  /** Full buffers of this turn. */
  #filled: SendBuffer[] = []
  /** Buffers of earlier turns, which wait for their entries. */
  #gated: SendBuffer[] = []
  readonly #transport: OutboxTransport
  readonly #written: () => void

  /** `written` is called each time the transport has sent some of the bytes. */
  constructor(transport: OutboxTransport, written: () => void) {
    this.#transport = transport
    this.#written = written
  }

  get isEmpty(): boolean {
    return this.#length === 0 && this.#filled.length === 0 && this.#gated.length === 0
  }

  /** Writes a frame header and returns the index of its payload in `bytes`. */
  begin(opcode: number, channel: number, correlation: number, payloadBytes: number): number {
    const total = FRAME_HEADER_BYTES + payloadBytes
    if (this.#length + total > this.bytes.length) this.#makeRoom(total)
    const at = writeFrameHeader(this.bytes, this.#length, payloadBytes, opcode, channel, correlation)
    this.#length += total
    this.outstandingBytes += total
    if (isBarrier(opcode)) {
      this.barriers++
      this.#bufferBarriers++
    }
    return at
  }

  frame(opcode: number, channel: number, correlation: number, payload: Uint8Array): void {
    const at = this.begin(opcode, channel, correlation, payload.length)
    this.bytes.set(payload, at)
  }

  /**
   * Extends the last frame, which ends at `frameEnd` of the buffer with this number, by `bytes`, and returns the index of
   * the added bytes. Returns -1 if the frame is no longer the last frame of the buffer being filled, or if the buffer is
   * full.
   */
  extend(bufferNumber: number, frameEnd: number, bytes: number): number {
    if (
      bufferNumber !== this.bufferNumber ||
      frameEnd !== this.#length ||
      frameEnd + bytes > this.bytes.length
    )
      return -1
    this.#length += bytes
    this.outstandingBytes += bytes
    return frameEnd
  }

  /** Records that the last written frame is the answer to a batch of `bytes` bytes. */
  answers(bytes: number): void {
    this.inFlightBytes += bytes
    this.#answersBytes += bytes
  }

  endTurn(gate: number): void {
    if (this.#length > 0) this.#fill()
    for (const buffer of this.#filled) {
      buffer.gate = gate
      this.#gated.push(buffer)
    }
    this.#filled = []
  }

  /** Sends the frames whose entries are durable, and returns whether other frames still wait. */
  sendDurable(durableLsn: number): boolean {
    let sent = 0
    while (sent < this.#gated.length && this.#gated[sent]!.gate <= durableLsn)
      this.#send(this.#gated[sent++]!)
    if (sent > 0) this.#gated.splice(0, sent)
    return !this.isEmpty
  }

  /** Drops the waiting frames. Bytes that the transport already has still count as unread. */
  clear(): void {
    this.bytes = NO_BYTES
    this.#length = 0
    this.#filled = []
    this.#gated = []
    this.outstandingBytes = this.unreadBytes
    this.inFlightBytes = 0
    this.#answersBytes = 0
    this.barriers = 0
    this.#bufferBarriers = 0
  }

  /** Recounts everything and compares the result with the counters. @throws Error naming what differs */
  invariants(): void {
    let bytes = this.unreadBytes + this.#length
    let answersBytes = this.#answersBytes
    let barriers = checkFrames(this.bytes, this.#length, this.#bufferBarriers)
    let lastGate = 0
    for (const buffer of this.#gated) {
      if (buffer.gate < lastGate)
        differs(`a buffer waits for ${buffer.gate} behind a buffer that waits for ${lastGate}`)
      lastGate = buffer.gate
    }
    for (const buffer of this.#filled)
      if (buffer.gate !== Infinity) differs(`a buffer of this turn waits for ${buffer.gate}`)
    for (const buffer of [...this.#gated, ...this.#filled]) {
      bytes += buffer.length
      answersBytes += buffer.answersBytes
      barriers += checkFrames(buffer.bytes, buffer.length, buffer.barriers)
    }
    if (bytes !== this.outstandingBytes)
      differs(`the counter of outstanding bytes is ${this.outstandingBytes}; a recount gives ${bytes}`)
    if (answersBytes !== this.inFlightBytes)
      differs(`the counter of bytes in flight is ${this.inFlightBytes}; a recount gives ${answersBytes}`)
    if (barriers !== this.barriers)
      differs(`the counter of barriers is ${this.barriers}; a recount gives ${barriers}`)
  }

  #send(buffer: SendBuffer): void {
    const { bytes, length } = buffer
    this.inFlightBytes -= buffer.answersBytes
    this.barriers -= buffer.barriers
    this.unreadBytes += length
    this.#transport.write(length === bytes.length ? bytes : bytes.subarray(0, length), () => {
      this.outstandingBytes -= length
      this.unreadBytes -= length
      giveBack(bytes)
      this.#written()
    })
  }

  #fill(): void {
    this.#filled.push({
      gate: Infinity,
      bytes: this.bytes,
      length: this.#length,
      answersBytes: this.#answersBytes,
      barriers: this.#bufferBarriers,
    })
    this.bytes = NO_BYTES
    this.#length = 0
    this.#answersBytes = 0
    this.#bufferBarriers = 0
  }

  #makeRoom(total: number): void {
    if (this.#length >= BUFFER_BYTES_GROWN) this.#fill()
    const held = this.#length
    const larger = take(Math.max(held + total, held * 4))
    larger.set(this.bytes.subarray(0, held))
    if (this.bytes.length > 0) giveBack(this.bytes)
    this.bytes = larger
    this.bufferNumber++
  }
}

const NO_BYTES = new Uint8Array(0)

function isBarrier(opcode: number): boolean {
  return opcode !== OP.PUBLISH_OK && opcode !== OP.PUBLISH_ERR && opcode !== OP.SETTLE_OK
}

// Checks that a buffer contains whole frames, and that `barriers` of these frames must not be overtaken by deliveries.
// Returns `barriers`.
function checkFrames(bytes: Uint8Array, length: number, barriers: number): number {
  let counted = 0
  let frameEnd = 0
  const decoder = new FrameDecoder((opcode, _flags, _channel, _correlation, _bytes, _start, end) => {
    if (isBarrier(opcode)) counted++
    frameEnd = end
  }, false)
  decoder.frameBytesMax = Infinity
  decoder.push(bytes.subarray(0, length))
  if (frameEnd !== length) differs(`the frames of a buffer of ${length} bytes end at ${frameEnd}`)
  if (counted !== barriers)
    differs(`the counter of barriers of a buffer is ${barriers}; a recount gives ${counted}`)
  return barriers
}

function differs(what: string): never {
  throw new Error(`outbox: ${what}`)
}

// The size of a buffer is a power of two. All connections share the spare buffers, because a buffer is used for only a
// few turns.
const SPARE_BUFFERS = 8
const SPARE_BYTES_MAX = 1 << 20
const spare = new Map<number, Uint8Array[]>()

function take(bytes: number): Uint8Array {
  let size = BUFFER_BYTES_MIN
  while (size < bytes) size *= 2
  return spare.get(size)?.pop() ?? new Uint8Array(Buffer.allocUnsafeSlow(size).buffer)
}

function giveBack(bytes: Uint8Array): void {
  if (bytes.length > SPARE_BYTES_MAX) return
  let buffers = spare.get(bytes.length)
  if (buffers === undefined) {
    buffers = []
    spare.set(bytes.length, buffers)
  }
  if (buffers.length < SPARE_BUFFERS) buffers.push(bytes)
}
