/** Frames of a client. Tests use them to drive a session with bytes. */
import {
  FRAME_HEADER_BYTES,
  MECHANISM,
  OP,
  encodeAuth,
  encodeHello,
  encodePreface,
  writeFrameHeader,
} from '@sluice/protocol'
import { SESSION_DEFAULTS } from '../session/settings.js'

export function frame(opcode: number, payload: Uint8Array = new Uint8Array(0), channel = 0): Uint8Array {
  const bytes = new Uint8Array(FRAME_HEADER_BYTES + payload.length)
  bytes.set(payload, writeFrameHeader(bytes, 0, payload.length, opcode, channel, 0))
  return bytes
}

/**
 * Returns the preface, HELLO and AUTH of a client that accepts frames of `frameBytesMax` bytes. `label` need not be
 * valid UTF-8.
 */
export function greeting(
  frameBytesMax: number = SESSION_DEFAULTS.frameBytesMax,
  label: Uint8Array = new Uint8Array(0),
): Uint8Array {
  const hello = {
    versionMin: 1,
    versionMax: 1,
    features: 0,
    frameBytesMax,
    heartbeatMs: 0,
    producer: new Uint8Array(16),
    acceptedNumber: 0,
    inFlightBatchesMax: 0,
    name: 'n'.repeat(label.length),
  }
  const helloBytes = encodeHello(hello)
  helloBytes.set(label, helloBytes.length - label.length)
  const auth = { mechanism: MECHANISM.anonymous, identity: '', secret: new Uint8Array(0) }
  return Buffer.concat([encodePreface(), frame(OP.HELLO, helloBytes), frame(OP.AUTH, encodeAuth(auth))])
}
