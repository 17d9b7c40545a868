/**
 * Frames that are to be sent to a client. The frames are written here during a turn, wait for the entry of the turn,
 * and are sent in order once the entry is durable.
 *
 * Invariant: a frame reaches the transport only after `sendDurable` was called with an LSN at or above the gate of the
 * frame, which is the LSN of the entry for which it waits.
 */
import { FRAME_HEADER_BYTES, FrameDecoder, OP, writeFrameHeader } from '@sluice/protocol'

/** Receives the bytes to send. `bytes` must not be changed until `written` is called. */
export interface OutboxTransport {
  write(bytes: Uint8Array, written: () => void): void
}

interface Page {
  gate: number
  readonly bytes: Uint8Array
  readonly length: number
  /** Total size of the published batches that frames in this page answer. */
  readonly answersBytes: number
  /** Number of frames in this page that no delivery may overtake. */
  readonly barriers: number
}

const PAGE_BYTES_MIN = 4 << 10
/** A page of at least this length is not enlarged by copying; the next frame starts another page. */
const PAGE_BYTES_GROWN = 256 << 10

export class Outbox {
  /** The bytes of the page being filled. The caller writes a payload here, at the index that `begin` returned. */
  bytes: Uint8Array = NO_BYTES
  /** Number of the page being filled. The array of a page is reused, so it does not identify the page. */
  page = 0
  /** Bytes that wait for the disk or for the client. */
  outstandingBytes = 0
  /** The part of `outstandingBytes` that waits only for the client. */
  unreadBytes = 0
  /** Total size of the published batches whose answers wait for the disk. */
  inFlightBytes = 0
  /** Number of waiting frames that no delivery may overtake: all except answers to publishes and settles. */
  barriers = 0
  #answersBytes = 0
  #pageBarriers = 0
  #length = 0
  /** Full pages of this turn. */
  #filled: Page[] = []
  /** Pages of earlier turns, which wait for their entries. */
  #gated: Page[] = []
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
      this.#pageBarriers++
    }
    return at
  }

  frame(opcode: number, channel: number, correlation: number, payload: Uint8Array): void {
    const at = this.begin(opcode, channel, correlation, payload.length)
    this.bytes.set(payload, at)
  }

  /**
   * Extends the last frame, which ends at `frameEnd` of `page`, by `bytes`, and returns the index of the added bytes.
   * Returns -1 if the frame is no longer the last frame of the page being filled, or if the page is full.
   */
  extend(page: number, frameEnd: number, bytes: number): number {
    if (page !== this.page || frameEnd !== this.#length || frameEnd + bytes > this.bytes.length) return -1
    this.#length += bytes
    this.outstandingBytes += bytes
    return frameEnd
  }

  /** Records that the frame written last answers a batch of `bytes`. */
  answers(bytes: number): void {
    this.inFlightBytes += bytes
    this.#answersBytes += bytes
  }

  endTurn(gate: number): void {
    if (this.#length > 0) this.#fill()
    for (const page of this.#filled) {
      page.gate = gate
      this.#gated.push(page)
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
    this.#pageBarriers = 0
  }

  /** Recounts everything and compares the result with the counters. @throws Error naming what differs */
  invariants(): void {
    let bytes = this.unreadBytes + this.#length
    let answersBytes = this.#answersBytes
    let barriers = checkFrames(this.bytes, this.#length, this.#pageBarriers)
    let lastGate = 0
    for (const page of this.#gated) {
      if (page.gate < lastGate)
        differs(`a page waits for ${page.gate} behind a page that waits for ${lastGate}`)
      lastGate = page.gate
    }
    for (const page of this.#filled)
      if (page.gate !== Infinity) differs(`a page of this turn waits for ${page.gate}`)
    for (const page of [...this.#gated, ...this.#filled]) {
      bytes += page.length
      answersBytes += page.answersBytes
      barriers += checkFrames(page.bytes, page.length, page.barriers)
    }
    if (bytes !== this.outstandingBytes)
      differs(`${this.outstandingBytes} bytes are outstanding, counted ${bytes}`)
    if (answersBytes !== this.inFlightBytes)
      differs(`${this.inFlightBytes} bytes are in flight, counted ${answersBytes}`)
    if (barriers !== this.barriers) differs(`${this.barriers} frames are barriers, counted ${barriers}`)
  }

  #send(page: Page): void {
    const { bytes, length } = page
    this.inFlightBytes -= page.answersBytes
    this.barriers -= page.barriers
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
      barriers: this.#pageBarriers,
    })
    this.bytes = NO_BYTES
    this.#length = 0
    this.#answersBytes = 0
    this.#pageBarriers = 0
  }

  #makeRoom(total: number): void {
    if (this.#length >= PAGE_BYTES_GROWN) this.#fill()
    const held = this.#length
    const larger = take(Math.max(held + total, held * 4))
    larger.set(this.bytes.subarray(0, held))
    if (this.bytes.length > 0) giveBack(this.bytes)
    this.bytes = larger
    this.page++
  }
}

const NO_BYTES = new Uint8Array(0)

function isBarrier(opcode: number): boolean {
  return opcode !== OP.PUBLISH_OK && opcode !== OP.PUBLISH_ERR && opcode !== OP.SETTLE_OK
}

// Checks that a page contains whole frames, and that `barriers` of these frames must not be overtaken by deliveries.
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
  if (frameEnd !== length) differs(`the frames of a page of ${length} bytes end at ${frameEnd}`)
  if (counted !== barriers) differs(`a page has ${barriers} barriers, counted ${counted}`)
  return barriers
}

function differs(what: string): never {
  throw new Error(`outbox: ${what}`)
}

// The size of a page is a power of two. All connections share the spare pages, because a page is used for only a few
// turns.
const SPARE_PAGES = 8
const SPARE_BYTES_MAX = 1 << 20
const spare = new Map<number, Uint8Array[]>()

function take(bytes: number): Uint8Array {
  let size = PAGE_BYTES_MIN
  while (size < bytes) size *= 2
  return spare.get(size)?.pop() ?? new Uint8Array(Buffer.allocUnsafeSlow(size).buffer)
}

function giveBack(bytes: Uint8Array): void {
  if (bytes.length > SPARE_BYTES_MAX) return
  let pages = spare.get(bytes.length)
  if (pages === undefined) {
    pages = []
    spare.set(bytes.length, pages)
  }
  if (pages.length < SPARE_PAGES) pages.push(bytes)
}
