/** The number of batches in flight that both sides agree on. */
import {
  FRAME_HEADER_BYTES,
  LIMITS,
  MECHANISM,
  PREFACE_BYTES,
  decodeHelloOk,
  encodeAuth,
  encodeHello,
} from '@sluice/protocol'
import { expect, test } from 'vitest'
import { Handshake, type Agreement } from './handshake.js'
import { SESSION_DEFAULTS } from './settings.js'

const HOST = { messageBytesMax: 1 << 20, inFlightBatchesMax: 2_048, boot: 1 }

function agreed(inFlightBatchesMax: number, host: typeof HOST): [Handshake, Agreement] {
  const handshake = new Handshake(host, SESSION_DEFAULTS, 0)
  const hello = encodeHello({
    versionMin: 1,
    versionMax: 1,
    features: 0,
    frameBytesMax: LIMITS.frameBytesDefault,
    heartbeatMs: 0,
    producer: new Uint8Array(16),
    acceptedNumber: 0,
    inFlightBatchesMax,
    name: '',
  })
  handshake.takeHello(hello, 0, hello.length)
  const auth = encodeAuth({ mechanism: MECHANISM.anonymous, identity: '', secret: new Uint8Array(0) })
  return [handshake, handshake.takeAuth(auth, 0, auth.length)]
}

test.each([
  ['the client', 100, 2_048, 100],
  ['the log, for a client that accepts any number', 0, 2_048, 2_048],
  ['the log, for a client that asks for more', 3_000, 2_048, 2_048],
  ['the settings', 0, LIMITS.inFlightBatchesMax, SESSION_DEFAULTS.inFlightBatchesMax],
])('the number of batches in flight is limited by %s', (_who, asked, ofTheLog, expected) => {
  const [handshake, agreement] = agreed(asked, { ...HOST, inFlightBatchesMax: ofTheLog })
  expect(agreement.inFlightBatchesMax).toBe(expected)
  const welcome = handshake.welcome(agreement)
  expect(decodeHelloOk(welcome, PREFACE_BYTES + FRAME_HEADER_BYTES, welcome.length).inFlightBatchesMax).toBe(
    expected,
  )
})
