/**
 * Bytes to and from a broker. The connection knows only these few methods, so that tests script a peer without a
 * socket.
 */
import { createConnection, type Socket } from 'node:net'
import type { Address } from './url.js'

/** What a transport tells the connection. After `closed` nothing more is told. */
export interface TransportEvents {
  opened(): void
  /** The bytes are valid only during the call. */
  data(chunk: Uint8Array): void
  /** What made `write` return false has left. */
  drained(): void
  closed(error: Error | undefined): void
}

export interface Transport {
  /** Sends the chunks in one go. False: the peer is slower than this side; `drained` tells when it has caught up. */
  write(chunks: readonly Uint8Array[]): boolean
  /** Closes after what was written has left. */
  end(): void
  /** Closes at once. */
  destroy(): void
}

/** Begins to connect; the outcome is told by `opened` or `closed`, never during the call. */
export type Dial = (address: Address, events: TransportEvents) => Transport

// One buffer per connection, overwritten by each read: whoever keeps bytes copies them. Larger reads mean fewer turns.
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
  // The peer's end ends the connection: the protocol has no half-open state.
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
