import { FRAME_HEADER_BYTES, OP } from '@sluice/protocol'
import { expect, test } from 'vitest'
import { Outbox } from './outbox.js'

test('a frame is not made longer on another page, also when that has the same bytes again', () => {
  const sent: Uint8Array[] = []
  const transport = { write: (bytes: Uint8Array) => void sent.push(Uint8Array.from(bytes)) }
  const outbox = new Outbox(transport, () => {})
  outbox.begin(OP.PUBLISH_OK, 0, 0, 20)
  const { bytes, page } = outbox
  // The page becomes too small, and then the one that takes its place is full.
  outbox.frame(OP.RESULT, 0, 0, new Uint8Array((1 << 20) - 32 - FRAME_HEADER_BYTES))
  outbox.frame(OP.SETTLE_OK, 0, 0, new Uint8Array(4))
  outbox.frame(OP.SETTLE_OK, 0, 0, new Uint8Array(4))
  expect(outbox.bytes).toBe(bytes)
  expect(outbox.extend(page, FRAME_HEADER_BYTES + 20, 20)).toBe(-1)
  outbox.endTurn(1)
  outbox.release(1)
  expect(sent.map(({ length }) => length)).toEqual([1 << 20, 32])
})
