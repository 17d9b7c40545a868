/**
 * Sends bytes to a broker and receives bytes from it. The connection uses only this interface, so tests need no socket.
 */
import { createConnection, type Socket } from 'node:net'
import type { Address } from './url.js'

/** Events of a transport. `closed` is the last one. */
export interface TransportEvents {
  opened(): void
  /** Called when bytes arrive. They are valid only during the call. */
  data(chunk: Uint8Array): void
  /** Called when all bytes of the `write` that returned false are sent. */
  drained(): void
  closed(error: Error | undefined): void
}

export interface Transport {
  /** Sends the chunks in one write. Returns false when the peer reads slowly; `drained` follows when all is sent. */
  write(chunks: readonly Uint8Array[]): boolean
  /** Closes after everything is sent. */
  end(): void
  /** Closes at once. */
  destroy(): void
}

/** Starts to connect. Calls `opened` or `closed` later, never during the call. */
export type Dial = (address: Address, events: TransportEvents) => Transport

// Size of the read buffer. Each connection has one read buffer, which each read overwrites. Larger reads need fewer
// turns of the event loop.
const READ_BYTES = 256 * 1024

const END_MS_MAX = 2_000

export const dialTcp: Dial = (address, events) => {
  const socket: Socket = createConnection({
    host: address.host,
    port: address.port,
    noDelay: true,
    onread: {
      buffer: new Uint8Array(READ_BYTES),
      callback: (byteCount, buffer) => {
        events.data(buffer.subarray(0, byteCount))
        return true
      },
    },
  })
  let failure: Error | undefined
  socket.on('connect', () => events.opened())
  socket.on('drain', () => events.drained())
  socket.on('error', (error) => {
    failure = error
  })
  // When the peer ends its side, the connection ends, because the protocol has no half-open state.
  socket.on('end', () => socket.destroy())
  socket.on('close', () => events.closed(failure))
  return {
    write(chunks) {
      if (chunks.length === 1) return socket.write(chunks[0]!)
      socket.cork()
      let flowing = true
      for (const chunk of chunks) flowing = socket.write(chunk)
      socket.uncork()
      return flowing
    },
    end() {
      socket.end()
      // A peer that does not close its side must not keep this process alive.
      setTimeout(() => socket.destroy(), END_MS_MAX).unref()
    },
    destroy: () => void socket.destroy(),
  }
}
