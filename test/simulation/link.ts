/**
 * One connection between a simulated client and a session: two byte streams that the world moves piece by piece. Bytes
 * that the session writes stay in the session's memory until the simulated kernel has room for them, so that a session
 * that changes them too early is noticed. A frozen link moves no bytes, and neither side notices.
 */
import type { Transport } from '../../packages/server/src/net/peer.js'
import type { Session } from '../../packages/server/src/session/session.js'
import type { Chance } from './chance.js'

/** A queue of bytes, filled and emptied in pieces of any size. */
class ByteQueue {
  length = 0
  #chunks: Uint8Array[] = []

  push(bytes: Uint8Array): void {
    if (bytes.length === 0) return
    this.#chunks.push(bytes)
    this.length += bytes.length
  }

  take(count: number): Uint8Array {
    const out = new Uint8Array(count)
    let filled = 0
    while (filled < count) {
      const head = this.#chunks[0]!
      const part = head.subarray(0, count - filled)
      out.set(part, filled)
      filled += part.length
      if (part.length === head.length) this.#chunks.shift()
      else this.#chunks[0] = head.subarray(part.length)
    }
    this.length -= count
    return out
  }

  clear(): void {
    this.#chunks = []
    this.length = 0
  }
}

interface Unsent {
  bytes: Uint8Array
  readonly written: () => void
}

/** The client's end of a connection. */
export interface LinkEnd {
  receive(bytes: Uint8Array): void
  /** Called when the other side has closed, or the connection broke. */
  closed(link: Link): void
}

export class Link implements Transport {
  readonly address: string
  readonly number: number
  readonly kernelBytes: number
  session: Session | undefined
  client: LinkEnd | undefined
  /** Called with the bytes that the session writes, at the moment of the write. */
  onWrite: ((bytes: Uint8Array) => void) | undefined
  /** Whether the link is frozen. It moves no bytes until this is false again. */
  frozen = false
  /** Whether the client reads little or nothing. */
  slow = false
  /** Whether the session has ended the connection. Bytes that the session wrote before the end still arrive. */
  ended = false
  /** Whether the session knows that the client is gone. */
  severed = false
  paused = false
  readonly toServer = new ByteQueue()
  readonly #toClient = new ByteQueue()
  readonly #unsent: Unsent[] = []

  constructor(number: number, address: string, kernelBytes: number) {
    this.number = number
    this.address = address
    this.kernelBytes = kernelBytes
  }

  // --- Transport, for the session ---

  write(bytes: Uint8Array, written: () => void): void {
    this.onWrite?.(bytes)
    if (this.severed || this.ended) return
    this.#unsent.push({ bytes, written })
  }

  pause(): void {
    this.paused = true
  }

  resume(): void {
    this.paused = false
  }

  end(): void {
    this.ended = true
  }

  // --- for the client ---

  send(bytes: Uint8Array): void {
    if (!this.severed) this.toServer.push(bytes)
  }

  // --- for the world ---

  get unsentBytes(): number {
    let bytes = 0
    for (const unsent of this.#unsent) bytes += unsent.bytes.length
    return bytes
  }

  get canReachServer(): boolean {
    return (
      !this.frozen && !this.paused && !this.severed && this.session !== undefined && this.toServer.length > 0
    )
  }

  get canBeAccepted(): boolean {
    return this.#unsent.length > 0 && this.#toClient.length < this.kernelBytes
  }

  get canReachClient(): boolean {
    return !this.frozen && this.client !== undefined && (this.#toClient.length > 0 || this.isDrained)
  }

  /**
   * Whether all bytes that the session wrote before its end have arrived, and the client has not noticed the end yet.
   */
  get isDrained(): boolean {
    return this.ended && !this.severed && this.#unsent.length === 0 && this.#toClient.length === 0
  }

  /** Moves bytes from the session's memory to the kernel. */
  accept(chance: Chance): void {
    const head = this.#unsent[0]!
    const room = this.kernelBytes - this.#toClient.length
    const count = chance.hit(0.7)
      ? Math.min(room, head.bytes.length)
      : chance.int(1, Math.min(room, head.bytes.length))
    this.#toClient.push(head.bytes.slice(0, count))
    if (count < head.bytes.length) {
      head.bytes = head.bytes.subarray(count)
      return
    }
    this.#unsent.shift()
    head.written()
  }

  takeForServer(chance: Chance): Uint8Array {
    return this.toServer.take(cut(chance, this.toServer.length))
  }

  takeForClient(chance: Chance): Uint8Array {
    return this.#toClient.take(cut(chance, this.#toClient.length))
  }

  get bytesForClient(): number {
    return this.#toClient.length
  }

  /** Breaks both directions. The world then notifies the session. */
  sever(): void {
    this.severed = true
    this.#unsent.length = 0
    this.toServer.clear()
    this.#toClient.clear()
  }
}

// The number of bytes to move: in most cases all available bytes, otherwise some of them, sometimes only one.
function cut(chance: Chance, available: number): number {
  if (chance.hit(0.6)) return available
  if (chance.hit(0.1)) return 1
  return chance.int(1, available)
}
