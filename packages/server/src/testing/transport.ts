/** A connection whose peer reads at once what is written to it. */
import type { FrameDecoder } from '@sluice/protocol'
import type { Transport } from '../net/peer.js'

/** The peer reads with `decoder`, before `write` returns. */
export function readingTransport(decoder: FrameDecoder): Transport {
  return {
    peer: '',
    write: (bytes, written) => {
      decoder.push(bytes)
      written()
    },
    pause: () => {},
    resume: () => {},
    end: () => {},
  }
}
