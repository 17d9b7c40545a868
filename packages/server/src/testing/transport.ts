/** A connection whose client reads all bytes at once. */
import type { FrameDecoder } from '@sluice/protocol'
import type { Transport } from '../net/peer.js'

/** Returns a transport whose client decodes the bytes with `decoder` before `write` returns. */
export function readingTransport(decoder: FrameDecoder): Transport {
  return {
    address: '',
    write: (bytes, written) => {
      decoder.push(bytes)
      written()
    },
    pause: () => {},
    resume: () => {},
    end: () => {},
  }
}
