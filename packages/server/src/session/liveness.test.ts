import { FrameDecoder, OP } from '@sluice/protocol'
import { expect, test } from 'vitest'
import { Liveness } from './liveness.js'

const HEARTBEAT_MS = 1_000

function livenessOf(): { liveness: Liveness; sent: number[] } {
  const sent: number[] = []
  const decoder = new FrameDecoder((opcode) => void sent.push(opcode), false)
  const transport = { write: (bytes: Uint8Array) => decoder.push(bytes) }
  return { liveness: new Liveness(transport, HEARTBEAT_MS, 0), sent }
}

test('a silent client times out after two heartbeats, not counting the time that the process was stalled', () => {
  const { liveness } = livenessOf()
  expect(liveness.overdue(2 * HEARTBEAT_MS, 0)).toBe(undefined)
  expect(liveness.overdue(2 * HEARTBEAT_MS + 1, 0)?.code).toBe('HEARTBEAT_TIMEOUT')
  expect(liveness.overdue(2 * HEARTBEAT_MS + 1, 1)).toBe(undefined)
  liveness.received(10_000)
  // A long stall does not move the last receipt into the future.
  expect(liveness.overdue(11_000, 5_000)).toBe(undefined)
  expect(liveness.overdue(13_000, 0)).toBe(undefined)
  expect(liveness.overdue(13_001, 0)?.code).toBe('HEARTBEAT_TIMEOUT')
})

test('PING is sent after half a heartbeat of silence', () => {
  const { liveness, sent } = livenessOf()
  liveness.beat(HEARTBEAT_MS / 2 - 1)
  expect(sent).toEqual([])
  liveness.beat(HEARTBEAT_MS / 2)
  liveness.beat(HEARTBEAT_MS - 1)
  expect(sent).toEqual([OP.PING])
  liveness.sent(HEARTBEAT_MS)
  liveness.beat(HEARTBEAT_MS * 1.5 - 1)
  expect(sent).toEqual([OP.PING])
  liveness.pong(7, HEARTBEAT_MS)
  expect(sent).toEqual([OP.PING, OP.PONG])
})
